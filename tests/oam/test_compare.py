"""Policies compared over seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aats.oam.compare import Outcome, bootstrap_median, plain, summarise, table


def outcomes(policy: str, seconds: list[float]) -> list[Outcome]:
    """Return one outcome a seed."""
    return [Outcome(policy, i, s, 10.0, 1e4, 1.0, 0.25) for i, s in enumerate(seconds)]


def test_the_interval_holds_the_median_and_narrows_with_more_seeds() -> None:
    rng = np.random.default_rng(0)
    few = bootstrap_median(list(rng.normal(5, 1, 10)))
    many = bootstrap_median(list(rng.normal(5, 1, 400)))
    assert few[1] <= few[0] <= few[2]
    assert many[2] - many[1] < few[2] - few[1]
    assert many[1] < 5 < many[2]
    with pytest.raises(ValueError, match="no values"):
        bootstrap_median([])


def test_ratios_are_paired_by_seed() -> None:
    slow = [1.0, 10.0, 100.0]
    summary = summarise(outcomes("random", slow) + outcomes("good", [s / 2 for s in slow]))
    assert summary["good"]["vs_first"] == {"median": 0.5, "ci95": [0.5, 0.5]}
    assert summary["random"]["vs_first"]["median"] == 1.0
    assert summary["good"]["seconds"]["median"] == 5.0
    assert summary["good"]["success"] == 1.0
    assert summary["good"]["bad_visits"] == 0.25
    json.dumps(summary)
    json.dumps(plain(outcomes("good", slow)))


def test_the_table_names_every_policy() -> None:
    shown = table(summarise(outcomes("random", [1.0]) + outcomes("loss", [2.0])), world="sim",
                  seeds=1)  # fmt: skip
    assert shown.row_count == 2
