"""A learning curve: what evaluations on held-out networks found, as CSV and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

TOLERANCE = 0.01
"""Success within so much of the best counts as equal: 256 journeys tell no finer."""


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation."""

    steps: int
    """Decisions trained on so far."""
    success: float
    """Share of journeys that ended with every target verified."""
    cost: float
    """Mean cost of a journey in usual stops of its network, failures included."""
    reward: float
    """Mean sum of rewards."""
    hops: float
    """Mean decisions of a journey."""


def best(points: Sequence[Point]) -> int:
    """Return the index of the best: success first, then cost; of equal ones the earliest."""
    enough = max(p.success for p in points) - TOLERANCE
    worthy = [i for i, p in enumerate(points) if p.success >= enough]
    return min(worthy, key=lambda i: points[i].cost)


def write_csv(points: Sequence[Point], path: Path) -> None:
    """Write one line a point."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Point)])
        writer.writeheader()
        writer.writerows(map(asdict, points))


def draw(points: Sequence[Point], path: Path, title: str) -> None:
    """Draw cost and success over steps as a PNG."""
    from matplotlib.figure import Figure

    steps = [p.steps for p in points]
    figure = Figure(figsize=(7, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(steps, [p.cost for p in points], marker="o", color="tab:blue")
    upper.axhline(points[0].cost, linestyle=":", color="grey", label="at the start")
    upper.set(title=title, ylabel="cost of a journey [usual stops]")
    upper.legend()
    lower.plot(steps, [p.success for p in points], marker="o", color="tab:green")
    lower.axvline(points[best(points)].steps, linestyle=":", color="grey", label="kept")
    lower.set(xlabel="decisions trained on", ylabel="success", ylim=(-0.02, 1.02))
    lower.legend()
    figure.savefig(path, format="png", dpi=120)
