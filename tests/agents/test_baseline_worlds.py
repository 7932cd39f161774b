"""Every baseline on real learning, with and without wrong labels: who survives, and who does not.

The figures to hold are those of the literature where it has them: metrics that touch trusted data
(or cap the loss) survive a quarter of random labels, those that believe labels are captured by
them and end below chance, walks visit good and bad alike.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from aats.plugins import load
from tests.agents.test_worlds import MESH, Walk, walk

GUARDED = ["minibatch", "alignment", "probe-gain", "balance-gain", "capped-loss", "greedy"]
UNGUARDED = ["loss", "label-variance", "load-variance", "oort"]
BLIND = ["random", "least-visited", "cycle", "metropolis", "jump"]
TRAINED = ["rl", "greedy-prior"]
SEEDS = 5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@cache
def mean_of(name: str, bad_share: float, hops: int) -> Walk:
    policy = load("aats.policies", name)()
    walks = [walk(policy, s, bad_share=bad_share, hops=hops, setting=MESH) for s in range(SEEDS)]
    return Walk(
        float(np.mean([w.final for w in walks])), float(np.mean([w.bad_share for w in walks]))
    )


def on_bad_data(name: str) -> Walk:
    return mean_of(name, 0.25, 200)


@pytest.mark.parametrize("name", GUARDED)
def test_guarded_policies_survive_bad_data(name: str) -> None:
    found = on_bad_data(name)
    assert found.final >= 0.85
    assert found.final >= on_bad_data("random").final + 0.05
    assert found.bad_share <= 0.15


@pytest.mark.parametrize("name", UNGUARDED)
def test_policies_that_believe_labels_are_captured_by_wrong_ones(name: str) -> None:
    found = on_bad_data(name)
    assert found.bad_share >= 0.4
    assert found.final <= on_bad_data("random").final - 0.05


def test_the_gradient_norm_is_captured_less_than_the_loss() -> None:
    found = on_bad_data("gradient-norm")
    assert 0.28 <= found.bad_share < on_bad_data("loss").bad_share
    assert found.final < on_bad_data("random").final


@pytest.mark.parametrize("name", BLIND)
def test_blind_policies_visit_good_and_bad_alike(name: str) -> None:
    assert on_bad_data(name).bad_share == pytest.approx(0.25, abs=0.04)


def test_a_bandit_learns_who_is_bad_too_late_to_stay_away() -> None:
    found = on_bad_data("bandit")
    assert found.bad_share >= 0.15
    assert found.final >= on_bad_data("random").final - 0.02


@pytest.mark.parametrize("name", TRAINED)
def test_what_was_trained_for_seconds_does_no_worse_than_chance(name: str) -> None:
    assert on_bad_data(name).final >= on_bad_data("random").final
    assert on_bad_data(name).bad_share <= on_bad_data("random").bad_share
    assert mean_of(name, 0.0, 120).final >= mean_of("random", 0.0, 120).final


def test_the_default_beats_chance_where_half_of_the_nodes_are_bad() -> None:
    found, chance = mean_of("minibatch", 0.5, 200), mean_of("random", 0.5, 200)
    assert found.final >= chance.final + 0.05
    assert found.bad_share <= 0.4


@pytest.mark.parametrize("name", GUARDED)
def test_on_clean_data_guards_cost_nothing(name: str) -> None:
    # Later all of them have seen everything, and chance catches up.
    found = mean_of(name, 0.0, 120)
    assert found.final >= mean_of("random", 0.0, 120).final + 0.005
    assert found.final >= mean_of("least-visited", 0.0, 120).final - 0.005


@pytest.mark.parametrize("name", [*UNGUARDED, "gradient-norm", "bandit", *BLIND])
def test_on_clean_data_no_policy_falls_behind_chance(name: str) -> None:
    assert mean_of(name, 0.0, 120).final >= mean_of("random", 0.0, 120).final - 0.01


@pytest.mark.parametrize("name", UNGUARDED)
def test_on_clean_data_those_that_believe_labels_do_well(name: str) -> None:
    assert mean_of(name, 0.0, 120).final >= mean_of("random", 0.0, 120).final + 0.01
