"""A journey as a picture and as a text: the network, the packet and its trail, skills, budget."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aats_envs.episodes import COSTS, Episodes, one
from aats_envs.network import KnowledgeNetwork

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RENDER_MODES = ["rgb_array", "ansi"]
SIZE_INCHES, DPI = (9.6, 5.8), 100

INK, FAINT, GROUND = "#23272f", "#c9ced6", "#ffffff"
GOOD, BAD, RELAY = "#4c8fbd", "#c8553d", "#d5dae1"
UNIT, HOME, PACKET, DONE = "#7b5ea7", "#3d8b61", "#f0a30a", "#3d8b61"
NODE_AREA = 110.0, 420.0
"""Square points of the smallest and the largest data node."""


def network_of(episodes: Episodes, row: int) -> KnowledgeNetwork:
    """Return the network of a row, drawn again from its key."""
    rng = np.random.default_rng(int(episodes.sim.keys[row]))
    return episodes.sim.source.draw(rng)


def picture(episodes: Episodes, row: int) -> npt.NDArray[np.uint8]:
    """Return a picture [H, W, 3] of a row's journey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    network, told = network_of(episodes, row), one(episodes.told(np.array([row])))
    figure = Figure(SIZE_INCHES, DPI, facecolor=GROUND)
    canvas = FigureCanvasAgg(figure)
    _draw_network(figure.add_axes((0.01, 0.09, 0.6, 0.83)), episodes, row, network, told)
    _draw_skills(figure.add_axes((0.7, 0.56, 0.27, 0.34)), network, told)
    _draw_spent(figure.add_axes((0.7, 0.14, 0.27, 0.28)), network, told)
    figure.text(0.02, 0.94, _title(episodes, row, network, told), color=INK, fontsize=11)
    _draw_key(figure.add_axes((0.01, 0.01, 0.6, 0.07)))
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: npt.NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def text(episodes: Episodes, row: int) -> str:
    """Return a row's journey in words: where it stands, and what it may do next."""
    network, told = network_of(episodes, row), one(episodes.told(np.array([row])))
    lines = [_title(episodes, row, network, told)]
    for t, name in enumerate(network.skills):
        mark = "verified" if told["verified"][t] else ""
        lines.append(f"  {name:12} {told['accuracy'][t]:.3f} of {told['target'][t]:.3f} {mark}")
    for name, limit in zip(COSTS, network.budget, strict=True):
        allowed = f" of {limit:.4g}" if np.isfinite(limit) else ""
        lines.append(f"  {name:12} {told[name]:.4g}{allowed}")
    lines.append("  trail        " + " > ".join(map(str, episodes.sim.trail[row])))
    nodes, mask = told["nodes"], told["action_mask"]
    legal = [f"{i}:{_kind(network, nodes[i])}{nodes[i]}" for i in np.flatnonzero(mask)]
    lines.append("  may go to    " + " ".join(legal))
    return "\n".join(lines)


def _kind(network: KnowledgeNetwork, node: int) -> str:
    if node == network.home:
        return "home "
    return "mpvu " if network.is_mpvu[node] else ""


def _title(episodes: Episodes, row: int, network: KnowledgeNetwork, told: dict[str, Any]) -> str:
    state = told["ending"] or told["stage"]
    steps = int(episodes.sim.steps[row])
    return f"{network.name}   decision {steps}   at node {told['at']}   {state}"


def _bad_share(network: KnowledgeNetwork) -> npt.NDArray[np.float64]:
    """Return [N] the share of wrong labels."""
    wrong, rows = network.wrong.sum(axis=(1, 2)), (network.clean + network.wrong).sum(axis=(1, 2))
    share: npt.NDArray[np.float64] = wrong / np.maximum(1.0, rows)
    return share


def _draw_network(
    axes: Axes, episodes: Episodes, row: int, network: KnowledgeNetwork, told: dict[str, Any]
) -> None:
    from matplotlib.collections import LineCollection

    place, n = network.position, network.num_nodes
    x, y = place.T
    ends = np.argwhere(np.triu(network.neighbours))
    axes.add_collection(LineCollection(list(place[ends]), colors=FAINT, linewidths=1, zorder=1))

    rows = (network.clean + network.wrong).sum(axis=(1, 2))
    low, high = NODE_AREA
    area = np.where(network.has_data, low + (high - low) * rows / max(1.0, rows.max()), low)
    kinds = [
        (network.has_data, "o", GOOD), (~network.has_data, "o", RELAY),
        (network.is_mpvu, "s", UNIT), (np.arange(n) == network.home, "p", HOME),
    ]  # fmt: skip
    for chosen, marker, colour in kinds:
        at = np.flatnonzero(chosen)
        size = area[at] if marker == "o" else np.maximum(area[at], 230.0)
        axes.scatter(x[at], y[at], s=size, c=colour, marker=marker, edgecolors=GROUND,
                     linewidths=1, zorder=3)  # fmt: skip
    axes.scatter(x, y, s=area * _bad_share(network), c=BAD, linewidths=0, zorder=3)

    trail = episodes.sim.trail[row]
    for i, (start, end) in enumerate(pairwise(trail)):
        axes.annotate(
            "", place[end], place[start], zorder=2,
            arrowprops={
                "arrowstyle": "-|>", "color": PACKET, "linewidth": 1.8, "shrinkA": 7, "shrinkB": 9,
                "alpha": max(0.2, 0.85 ** (len(trail) - 2 - i)),
                "connectionstyle": "arc3,rad=0.15",
            },
        )  # fmt: skip
    legal = np.unique(told["nodes"][told["action_mask"] > 0])
    axes.scatter(x[legal], y[legal], s=area[legal] + 190, facecolors="none", edgecolors=INK,
                 linewidths=0.9, linestyles=(0, (2, 2)), zorder=4)  # fmt: skip
    here = told["at"]
    axes.scatter(x[here], y[here], s=max(area[here], 230.0) + 260, facecolors="none",
                 edgecolors=PACKET, linewidths=3.2, zorder=5)  # fmt: skip
    visits = episodes.sim.visits[row]
    for i in range(n):
        light = network.has_data[i] or network.is_mpvu[i] or i == network.home
        axes.text(x[i], y[i], str(i), ha="center", va="center", fontsize=7, zorder=6,
                  color=GROUND if light else INK)  # fmt: skip
        if visits[i]:
            axes.annotate(f"x{int(visits[i])}", place[i], (9, 8), textcoords="offset points",
                          fontsize=7, color=INK, zorder=6)  # fmt: skip
    axes.margins(0.07)
    axes.set_axis_off()


def _draw_skills(axes: Axes, network: KnowledgeNetwork, told: dict[str, Any]) -> None:
    count = len(network.skills)
    for t in range(count):
        value, target = told["accuracy"][t], told["target"][t]
        colour = DONE if told["verified"][t] else GOOD
        axes.barh(t, value, height=0.5, color=colour)
        axes.plot([target, target], [t - 0.36, t + 0.36], color=INK, linewidth=2)
        axes.text(0.02, t, f"{value:.2f}", va="center", fontsize=8, color=GROUND)
        if told["verified"][t]:
            axes.text(1.0, t, "verified", va="center", ha="right", fontsize=8, color=DONE)
    _frame(axes, "Skills: accuracy believed, target", list(network.skills), max(3, count))


def _draw_spent(axes: Axes, network: KnowledgeNetwork, told: dict[str, Any]) -> None:
    names = []
    for i, (name, limit) in enumerate(zip(COSTS, network.budget, strict=True)):
        share = told[name] / limit if np.isfinite(limit) else 0.0
        axes.barh(i, min(1.0, share), height=0.5, color=BAD if share > 0.9 else GOOD)
        scale, unit = (1e6, "MB ") if name == "bytes" else (1.0, "")
        allowed = f"of {limit / scale:.4g}" if np.isfinite(limit) else "(no limit)"
        axes.text(1.0, i - 0.42, f"{told[name] / scale:.4g} {unit}{allowed}", ha="right",
                  fontsize=7, color=INK)  # fmt: skip
        names.append(name)
    _frame(axes, "Spent, share of the budget", names, len(names))


def _frame(axes: Axes, title: str, names: list[str], count: int) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(count - 0.4, -0.7)
    axes.set_yticks(range(len(names)), names, fontsize=8, color=INK)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=7, color=INK)
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _draw_key(axes: Axes) -> None:
    items = [
        ("data", "o", GOOD, GROUND), ("wrong labels", "o", BAD, GROUND),
        ("no data", "o", RELAY, GROUND), ("MPVU", "s", UNIT, GROUND), ("home", "p", HOME, GROUND),
        ("packet", "o", "none", PACKET), ("may go", "o", "none", INK),
    ]  # fmt: skip
    place = 0.03
    for name, marker, face, edge in items:
        axes.scatter(place, 0.5, s=75, marker=marker, facecolors=face, edgecolors=edge,
                     linewidths=2 if edge == PACKET else 1,
                     linestyles=(0, (2, 2)) if edge == INK else "solid")  # fmt: skip
        axes.text(place + 0.018, 0.5, name, va="center", fontsize=8, color=INK)
        place += 0.072 + 0.0115 * len(name)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_axis_off()
