"""Pictures of a run: the network with the packets' routes on it, and skills over hops and bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from aats.advert import Role
from aats.config import Scenario
from aats.oam.view import PacketView, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PACKET_COLOURS = ("#1f6feb", "#d1495b", "#2a9d8f", "#b07aa1", "#e9a03b", "#6c757d")
ROLE_COLOURS = {"data": "#8ab6d6", "mpvu": "#f2c14e", "owner": "#9bc99b", "none": "#d9d9d9"}
BAD_LABELS = 0.2
"""A node with at least this share of wrong labels is ringed in red (and counted as bad)."""


def bad_nodes(scenario: Scenario) -> set[str]:
    """Return the nodes whose labels are wrong on purpose, beyond `BAD_LABELS`."""
    return {
        name
        for name, node in scenario.nodes.items()
        if any(held.wrong_labels >= BAD_LABELS for held in node.data.values())
    }


def svg(figure: Figure) -> str:
    """Return a figure as SVG text, without the XML prologue, the same for the same input."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "aats", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def network_map(scenario: Scenario, packets: Sequence[PacketView]) -> Figure:
    """Draw the network once per packet, with the packet's route on it, numbered by hop."""
    from matplotlib.figure import Figure

    rows = max(1, len(packets))
    figure = Figure(figsize=(9.8, 5.4 * rows))
    at = layout(scenario)
    for number in range(rows):
        axes = figure.add_subplot(rows, 1, number + 1)
        for link in scenario.network.links:
            (x0, y0), (x1, y1) = at[link.a], at[link.b]
            width = 0.5 + min(2.2, link.bandwidth_bps / 400e6)
            axes.plot([x0, x1], [y0, y1], color="#ced4da", linewidth=width, zorder=1)
        _draw_nodes(axes, scenario, at)
        for packet in packets[number : number + 1]:
            _draw_route(axes, packet, at, number)
            axes.set_title(packet.name, loc="left", fontsize=10,
                           color=PACKET_COLOURS[number % len(PACKET_COLOURS)])  # fmt: skip
        axes.set_axis_off()
        axes.margins(0.07)
    _legend(figure.axes[-1])
    figure.tight_layout()
    return figure


def layout(scenario: Scenario) -> dict[str, tuple[float, float]]:
    """Return where to draw each node: where it is, moved as little as keeps all apart."""
    sites = scenario.network.sites
    names = [str(site.name) for site in sites]
    at = np.array([s.position for s in sites], np.float64).reshape(-1, 2)
    at = (at - at.min(axis=0)) / np.maximum(np.ptp(at, axis=0), 1e-9)
    apart = min(0.16, 0.7 / max(1.0, np.sqrt(len(sites))))
    for _ in range(300):
        gap = at[:, None] - at[None, :]
        # Flat ellipses: a label is wider than it is high.
        length = np.hypot(gap[..., 0] * 0.8, gap[..., 1] * 1.15)
        np.fill_diagonal(length, np.inf)
        push = np.maximum(0.0, apart - length)
        if not push.any():
            break
        tie = np.where(length[..., None] < 1e-6, [[[1e-3, 2e-3]]], gap)
        at += 0.25 * (push[..., None] * tie / np.maximum(length, 1e-3)[..., None]).sum(axis=1)
    return {name: (float(x), float(y)) for name, (x, y) in zip(names, at, strict=True)}


def _draw_nodes(axes: Axes, scenario: Scenario, at: Mapping[str, tuple[float, float]]) -> None:
    bad = bad_nodes(scenario)
    for name, node in scenario.nodes.items():
        kind = next(
            (r.value for r in (Role.MPVU, Role.OWNER, Role.DATA) if r in node.roles), "none"
        )
        x, y = at[name]
        axes.scatter(
            [x], [y], s=170, marker="s" if kind == "mpvu" else "o", color=ROLE_COLOURS[kind],
            edgecolors="#c1121f" if name in bad else "#495057",
            linewidths=2.4 if name in bad else 0.9, zorder=3,
        )  # fmt: skip
        axes.annotate(name, (x, y), xytext=(0, 9), textcoords="offset points", ha="center",
                      va="bottom", fontsize=8, zorder=7,
                      bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.4})  # fmt: skip


def _draw_route(
    axes: Axes, packet: PacketView, at: Mapping[str, tuple[float, float]], number: int
) -> None:
    """Draw one arrow per link and direction, with the hops at which it was travelled."""
    colour = PACKET_COLOURS[number % len(PACKET_COLOURS)]
    moves: dict[tuple[str, str], list[int]] = {}
    for hop, (a, b) in enumerate(pairwise(packet.route), start=1):
        if a != b:
            moves.setdefault((a, b), []).append(hop)
    for (a, b), hops in moves.items():
        bend = 0.16
        axes.annotate(
            "", at[b], at[a], zorder=4,
            arrowprops={
                "arrowstyle": "-|>", "color": colour, "linewidth": 1.1 + 0.4 * len(hops),
                "alpha": 0.8, "shrinkA": 8, "shrinkB": 8,
                "connectionstyle": f"arc3,rad={bend}",
            },
        )  # fmt: skip
        (x0, y0), (x1, y1) = at[a], at[b]
        mx, my = (x0 + x1) / 2 + bend * (y1 - y0) / 2, (y0 + y1) / 2 - bend * (x1 - x0) / 2
        text = " ".join(map(str, hops[:4])) + (" .." if len(hops) > 4 else "")
        axes.annotate(text, (mx, my), fontsize=7, color=colour, ha="center", va="center",
                      zorder=6, bbox={"boxstyle": "round,pad=0.15", "fc": "white",
                                      "ec": colour, "lw": 0.5})  # fmt: skip


def _legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    def dot(kind: str, label: str) -> Line2D:
        return Line2D([], [], marker="s" if kind == "mpvu" else "o", linestyle="", markersize=9,
                      markerfacecolor=ROLE_COLOURS[kind], markeredgecolor="#495057",
                      label=label)  # fmt: skip

    wrong = Line2D([], [], marker="o", linestyle="", markersize=9, markerfacecolor="white",
                   markeredgecolor="#c1121f", markeredgewidth=2, label="wrong labels")  # fmt: skip
    dots = [dot("data", "data node"), dot("mpvu", "MPVU"), dot("owner", "owner"),
            dot("none", "transit"), wrong]  # fmt: skip
    axes.legend(handles=dots, fontsize=8, frameon=False, ncols=len(dots), loc="upper center",
                bbox_to_anchor=(0.5, 0.0))  # fmt: skip


def skill_curves(packet: PacketView) -> Figure:
    """Draw each skill against hops and against bytes moved; targets dashed, verdicts as stars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.0))
    left, right = figure.subplots(1, 2, sharey=True)
    ways: tuple[tuple[Axes, str, Callable[[Point], float]], ...] = (
        (left, "hops", lambda p: p.hop),
        (right, "bytes moved, kB", lambda p: p.bytes / 1e3),
    )
    for axes, label, x in ways:
        for number, (skill, target) in enumerate(packet.requirement.items()):
            colour = PACKET_COLOURS[number % len(PACKET_COLOURS)]
            points = [p for p in packet.curve if p.skill == skill]
            _draw_curve(axes, [p for p in points if p.source != "mpvu"], x, colour, skill)
            verdicts = [p for p in points if p.source == "mpvu"]
            axes.plot([x(p) for p in verdicts], [p.value for p in verdicts], "*", color=colour,
                      markersize=13, markeredgecolor="black", markeredgewidth=0.5)  # fmt: skip
            axes.axhline(target, color=colour, linestyle="--", linewidth=0.9)
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
    left.set_ylabel("value")
    if packet.requirement:
        left.legend(fontsize=8, frameon=False, loc="lower right")
    figure.tight_layout()
    return figure


def _draw_curve(
    axes: Axes, points: Iterable[Point], x: Callable[[Point], float], colour: str, label: str
) -> None:
    listed = list(points)
    axes.plot([x(p) for p in listed], [p.value for p in listed], "o-", color=colour,
              markersize=3, linewidth=1.3, label=label)  # fmt: skip


def comparison(summary: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw median seconds with intervals per policy, and the share of bad visits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 0.6 + 0.45 * len(summary)))
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(summary)
    for row, name in enumerate(names):
        entry = summary[name]
        median, (low, high) = entry["seconds"]["median"], entry["seconds"]["ci95"]
        left.errorbar([median], [row], xerr=[[median - low], [high - median]], fmt="o",
                      color=PACKET_COLOURS[0], capsize=3)  # fmt: skip
        left.annotate(f" {entry['success']:.0%} met", (high, row), fontsize=7, va="center",
                      xytext=(4, 0), textcoords="offset points")  # fmt: skip
        right.barh([row], [entry["bad_visits"]], color=PACKET_COLOURS[1], height=0.55)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.margins(x=0.2)
    left.set_xlabel("seconds to requirement, median and 95 % interval")
    right.set_xlabel("share of training visits to nodes with wrong labels")
    right.set_xlim(0, 1)
    for axes in (left, right):
        axes.grid(alpha=0.25, axis="x")
    figure.tight_layout()
    return figure
