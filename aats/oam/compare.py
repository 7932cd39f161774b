"""Policies compared over seeds: medians with 95 % bootstrap intervals, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from aats.oam.progress import human_bytes

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one policy under one seed, its packets averaged."""

    policy: str
    seed: int
    seconds: float
    """Mean seconds until a packet was home (simulated, or real when live)."""
    hops: float
    bytes: float
    success: float
    """Share of the packets whose requirement was met and verified."""
    bad_visits: float
    """Share of the training visits that went to nodes with wrong labels."""


def bootstrap_median(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the median and its 95 % percentile bootstrap interval.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("no values to take a median of")
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), (RESAMPLES, len(data)))
    medians = np.median(data[draws], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(data)), float(low), float(high)


def summarise(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Return per policy the medians, intervals and rates as plain JSON values.

    `vs_first` compares with the first policy named: the median over seeds of the ratio of
    seconds under the same seed, with its interval.
    """
    names = list(dict.fromkeys(o.policy for o in outcomes))
    by_policy = {n: {o.seed: o for o in outcomes if o.policy == n} for n in names}
    first = by_policy[names[0]]
    found: dict[str, dict[str, Any]] = {}
    for name, runs in by_policy.items():
        rows = [runs[s] for s in sorted(runs)]
        entry: dict[str, Any] = {}
        for field in ("seconds", "hops", "bytes"):
            median, low, high = bootstrap_median([getattr(r, field) for r in rows])
            entry[field] = {"median": median, "ci95": [low, high]}
        entry["success"] = float(np.mean([r.success for r in rows]))
        entry["bad_visits"] = float(np.mean([r.bad_visits for r in rows]))
        ratios = [runs[s].seconds / first[s].seconds for s in sorted(runs) if s in first]
        median, low, high = bootstrap_median(ratios)
        entry["vs_first"] = {"median": median, "ci95": [low, high]}
        found[name] = entry
    return found


def table(summary: Mapping[str, Mapping[str, Any]], *, world: str, seeds: int) -> Table:
    """Return the comparison as a table for people."""
    first = next(iter(summary))
    shown = Table(title=f"{len(summary)} policies, {seeds} seeds, world {world}: "
                  "median [95 % bootstrap interval]", title_justify="left")  # fmt: skip
    for column in ("policy", "seconds", f"of {first}'s", "hops", "bytes", "success", "bad visits"):
        shown.add_column(column, justify="left" if column == "policy" else "right")
    for name, e in summary.items():
        size = e["bytes"]
        shown.add_row(
            name,
            _interval(e["seconds"], "{:.1f}"),
            _interval(e["vs_first"], "{:.2f}"),
            _interval(e["hops"], "{:.1f}"),
            f"{human_bytes(size['median'])} "
            f"[{human_bytes(size['ci95'][0])}, {human_bytes(size['ci95'][1])}]",
            f"{e['success']:.0%}",
            f"{e['bad_visits']:.0%}",
        )
    return shown


def _interval(entry: Mapping[str, Any], form: str) -> str:
    low, high = (form.format(v) for v in entry["ci95"])
    return f"{form.format(entry['median'])} [{low}, {high}]"


def plain(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the single runs as plain JSON values, for `compare.json`."""
    return [asdict(o) for o in outcomes]
