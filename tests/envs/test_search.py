from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from aats_envs.draw import draw
from aats_envs.network import KnowledgeNetwork
from aats_envs.pool import Pool
from aats_envs.presets import preset
from aats_envs.search import Expected, Given, Route, advertised, oracle, plan
from aats_envs.simulator import SECONDS, Simulator

QUICK = (2, 4)


@cache
def pool(family: str) -> Pool:
    return Pool(preset(family), 4)


def network(seed: int, family: str = "small") -> KnowledgeNetwork:
    return draw(preset(family), pool(family), np.random.default_rng(seed))


def followed(found: KnowledgeNetwork, route: Route, key: int) -> tuple[float, bool]:
    """Return what the route costs in an episode, and whether it ends well."""
    sim = Simulator(Given([found]), 1, probes=0)
    sim.reset([0], [key])
    success = False
    for stop in route.stops:
        sim.look()
        rows, mask = sim.seen.rows[0], sim.seen.mask[0]
        nodes = [int(sim.stop_of(rows[[i]])[1][0]) if mask[i] else -1 for i in range(sim.k)]
        outcome = sim.step(np.array([nodes.index(stop)]))
        success = bool(outcome.success[0])
    return float(sim.spent[0, SECONDS]), success


@pytest.mark.parametrize("family", ["small", "train"])
@pytest.mark.parametrize("seed", range(3))
def test_a_route_costs_in_an_episode_what_the_search_said(seed: int, family: str) -> None:
    found = network(seed, family)
    route = oracle(found, seed, widths=QUICK)
    assert len(route.stops) > 2
    assert followed(found, route, seed) == (route.seconds, route.success)


def test_the_same_search_finds_the_same_route() -> None:
    assert oracle(network(1), 1, widths=QUICK) == oracle(network(1), 1, widths=QUICK)


def test_a_wider_search_is_never_worse() -> None:
    for seed in range(3):
        narrow, wide = (oracle(network(seed), seed, widths=w) for w in ((2,), (2, 8)))
        assert wide.success >= narrow.success
        assert wide.seconds <= narrow.seconds or not narrow.success


def test_one_who_knows_all_stays_out_of_bad_nodes_and_ends_at_home() -> None:
    bad = good = 0
    for seed in range(4):
        found = network(seed)
        route = oracle(found, seed, widths=QUICK)
        if not route.success:
            continue
        assert route.stops[-1] == found.home
        assert found.is_mpvu[route.stops[-2]]
        is_bad = found.wrong.sum(axis=(1, 2)) > 0
        visits = [s for s in route.stops if found.has_data[s]]
        bad += sum(is_bad[visits])
        good += len(visits) - sum(is_bad[visits])
    assert good > 8 * bad, (good, bad)


def test_a_plan_goes_by_adverts_alone() -> None:
    found = network(2)
    swapped = replace(found, clean=found.wrong.copy(), wrong=found.clean.copy(),
                      samples_per_s=found.samples_per_s[::-1].copy())  # fmt: skip
    assert plan(found, widths=QUICK).stops == plan(swapped, widths=QUICK).stops
    told = advertised(found)
    np.testing.assert_allclose(
        (told.clean + told.wrong).sum(axis=2), found.shown_samples, atol=0.5 * found.clean.shape[2]
    )


def test_without_luck_two_keys_are_one_episode() -> None:
    found = network(3)
    one, other = (oracle(found, key, learner=Expected, widths=QUICK) for key in (1, 2))
    assert one == other
    assert oracle(found, 1, widths=QUICK) != oracle(found, 2, widths=QUICK)


def test_where_nothing_helps_it_says_so() -> None:
    tight = np.array([12.0, np.inf, np.inf, np.inf])
    found = replace(network(0), target=np.ones(1), budget=tight)
    route = oracle(found, 0, widths=(2,))
    assert not route.success
    assert route.visits > 0
