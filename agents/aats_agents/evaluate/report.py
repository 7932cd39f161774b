"""Journeys of several policies compared, paired by episode: figures, a table, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from aats.oam.compare import RESAMPLES, bootstrap_median
from aats.oam.plots import PACKET_COLOURS
from aats.oam.progress import human_bytes
from aats_agents.evaluate.case import Journey
from aats_agents.evaluate.specs import ORACLE, Spec
from aats_envs.simulator import Reward

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAILURE = Reward().failure
"""What a journey without success costs besides its own seconds, in usual stops."""
ALL = "all"
"""Stands for all families together."""
ByCase = dict[tuple[str, int, str], Journey]


def charged_s(journey: Journey) -> float:
    """Return the seconds of a journey; one that failed is charged for it."""
    return journey.seconds + (0.0 if journey.success else FAILURE * journey.unit_s)


def bootstrap_mean(values: npt.ArrayLike, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean and its 95 % percentile bootstrap interval; nan where there is nothing."""
    data = np.asarray(values, np.float64)
    if not len(data):
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(data), (RESAMPLES, len(data)))
    low, high = np.percentile(data[draws].mean(axis=1), [2.5, 97.5])
    return float(data.mean()), float(low), float(high)


def summarise(journeys: Sequence[Journey], specs: Sequence[Spec]) -> dict[str, dict[str, Any]]:
    """Return by family, and for all of them, what every policy comes to, as plain JSON values.

    Ratios are geometric means over episodes, paired, to the family's best heuristic: of seconds
    where both succeed, and of charged seconds over all. `gap_closed` is the share of the way, in
    logarithms of charged seconds, from the best heuristic to the oracle.
    """
    families = list(dict.fromkeys(j.family for j in journeys))
    found = {
        family: _compared([j for j in journeys if j.family == family], specs) for family in families
    }
    if len(families) > 1:
        found[ALL] = _compared(journeys, specs)
    return found


def _compared(journeys: Sequence[Journey], specs: Sequence[Spec]) -> dict[str, Any]:
    runs: dict[str, ByCase] = {spec.name: {} for spec in specs}
    for journey in journeys:
        runs[journey.policy][journey.family, journey.seed, journey.network] = journey
    common = [case for case in next(iter(runs.values())) if all(case in r for r in runs.values())]
    log_s = {
        name: np.log([charged_s(by_case[case]) for case in common])
        for name, by_case in runs.items()
    }
    rivals = [s.name for s in specs if s.is_heuristic] or [specs[0].name]
    best = min(rivals, key=lambda name: float(log_s[name].mean()))
    policies = {}
    for spec in specs:
        mine = [runs[spec.name][case] for case in common]
        entry: dict[str, Any] = {
            field: _interval(*bootstrap_median([getattr(j, field) for j in mine]), "median")
            for field in ("seconds", "hops", "bytes")
        }
        entry["success"] = float(np.mean([j.success for j in mine]))
        entry["bad_visits"] = float(np.mean([j.bad_visits for j in mine]))
        entry["wall_s"] = float(np.mean([j.wall_s for j in mine]))
        theirs = [runs[best][case] for case in common]
        both = np.array([a.success and b.success for a, b in zip(mine, theirs, strict=True)])
        seconds = np.log([a.seconds / b.seconds for a, b in zip(mine, theirs, strict=True)])
        entry["both_succeed"] = {**_ratio(seconds[both]), "n": int(both.sum())}
        entry["charged"] = _ratio(log_s[spec.name] - log_s[best])
        if ORACLE in runs:
            entry["gap_closed"] = _closed(log_s[spec.name], log_s[best], log_s[ORACLE])
        policies[spec.name] = entry
    return {"episodes": len(common), "best_heuristic": best, "policies": policies}


def _interval(value: float, low: float, high: float, name: str) -> dict[str, Any]:
    return {name: value, "ci95": [low, high]}


def _ratio(logs: npt.NDArray[np.float64]) -> dict[str, Any]:
    mean, low, high = np.exp(bootstrap_mean(logs)).tolist()
    return _interval(mean, low, high, "ratio")


def _closed(
    mine: npt.NDArray[np.float64], best: npt.NDArray[np.float64], oracle: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Return the share of the gap closed, with an interval over episodes."""
    draws = np.random.default_rng(0).integers(0, len(mine), (RESAMPLES, len(mine)))
    gained, gap = (best - mine)[draws].mean(axis=1), (best - oracle)[draws].mean(axis=1)
    # Where the best heuristic is as good as the oracle there is no gap to close.
    shares = gained[gap > 0] / gap[gap > 0]
    if not len(shares) or (best - oracle).mean() <= 0:
        return _interval(float("nan"), float("nan"), float("nan"), "share")
    low, high = np.percentile(shares, [2.5, 97.5])
    value = float((best - mine).mean() / (best - oracle).mean())
    return _interval(value, float(low), float(high), "share")


def table(summary: Mapping[str, Mapping[str, Any]], family: str, *, world: str) -> Table:
    """Return one family's comparison as a table for people."""
    found = summary[family]
    best = found["best_heuristic"]
    shown = Table(
        title=f"{family}: {found['episodes']} episodes, world {world}; medians and ratios with "
        "95 % bootstrap intervals",
        title_justify="left",
    )
    columns = "policy", "seconds", f"of {best}'s", "failures charged", "gap closed", "met"
    for column in (*columns, "hops", "bytes", "bad visits"):
        shown.add_column(column, justify="left" if column == "policy" else "right")
    for name, e in found["policies"].items():
        closed = e.get("gap_closed")
        shown.add_row(
            name,
            _told(e["seconds"], "median", "{:.2f}"),
            _told(e["both_succeed"], "ratio", "{:.2f}"),
            _told(e["charged"], "ratio", "{:.2f}"),
            _told(closed, "share", "{:.0%}") if closed else "",
            f"{e['success']:.0%}",
            f"{e['hops']['median']:.0f}",
            human_bytes(e["bytes"]["median"]),
            f"{e['bad_visits']:.0%}",
        )
    return shown


def _told(entry: Mapping[str, Any], name: str, form: str) -> str:
    low, high = (form.format(v) for v in entry["ci95"])
    return f"{form.format(entry[name])} [{low}, {high}]"


def plot(summary: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw each policy's charged seconds over the best heuristic's, and what share met its targets.

    Large dots with intervals are all families together, small ones single families.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    families = [f for f in summary if f != ALL]
    whole = ALL if ALL in summary else families[0]
    policies = sorted(
        summary[whole]["policies"],
        key=lambda name: float(summary[whole]["policies"][name]["charged"]["ratio"]),
    )
    figure = Figure(figsize=(9.5, 1.5 + 0.4 * len(policies)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for row, name in enumerate(policies):
        for number, family in enumerate(families if whole == ALL else ()):
            found = summary[family]["policies"][name]["charged"]
            colour = PACKET_COLOURS[1 + number % (len(PACKET_COLOURS) - 1)]
            label = family if row == 0 else None
            left.plot([found["ratio"]], [row + 0.25], "o", color=colour, markersize=4, label=label)
        entry = summary[whole]["policies"][name]
        ratio, (low, high) = entry["charged"]["ratio"], entry["charged"]["ci95"]
        left.errorbar([ratio], [row], xerr=[[ratio - low], [high - ratio]], fmt="o", capsize=3,
                      color=PACKET_COLOURS[0], markersize=7)  # fmt: skip
        right.barh([row], [entry["success"]], color=PACKET_COLOURS[2], height=0.5)
        right.annotate(f"{entry['success']:.0%}", (entry["success"], row), xytext=(3, 0),
                       textcoords="offset points", va="center", fontsize=7)  # fmt: skip
    left.axvline(1.0, color="#495057", linewidth=0.9, linestyle="--")
    left.set_xscale("log")
    left.set_yticks(range(len(policies)), policies)
    left.invert_yaxis()
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("seconds home, failures charged, over the best heuristic's")
    right.set_xlabel("share of packets that met")
    right.set_xlim(0, 1.12)
    for axes in (left, right):
        axes.grid(alpha=0.25, axis="x", which="both")
    if whole == ALL:
        figure.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False,
                      ncols=min(6, len(families)), loc="upper center")  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 0.93 if whole == ALL else 1))
    return figure


def plain(journeys: Sequence[Journey]) -> list[dict[str, Any]]:
    """Return single journeys as plain JSON values."""
    return [asdict(journey) for journey in journeys]
