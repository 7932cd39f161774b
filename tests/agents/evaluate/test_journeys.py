from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from aats.packet import Plugin
from aats.routing.features import FEATURES
from aats.routing.policy import Choice, Observation, RoutePolicy, StopKind
from aats_agents.evaluate.case import Case, drawn
from aats_agents.evaluate.journeys import drive
from aats_agents.evaluate.specs import Spec, maker
from aats_agents.policies.greedy_prior import GreedyPriorPolicy
from aats_agents.policies.random_walk import RandomPolicy
from aats_agents.prior import Prior
from aats_envs.presets import preset
from aats_envs.search import Given, oracle
from aats_envs.simulator import BYTES, SECONDS, Simulator


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return drawn("small", preset("small"), range(6))


def test_a_policy_object_goes_the_way_of_its_arrays(cases: list[Case]) -> None:
    found = drive("greedy-prior", lambda _: GreedyPriorPolicy(), cases)
    sim = Simulator(Given([case.network for case in cases]), len(cases), probes=3)
    sim.reset(range(len(cases)), [case.key for case in cases])
    going = np.ones(len(cases), np.bool_)
    while going.any():
        sim.look()
        seen = sim.seen
        logits = Prior().logits(seen.features, seen.globals, seen.mask)
        outcome = sim.step(np.where(seen.mask, logits, -np.inf).argmax(axis=1))
        for row in np.flatnonzero(going & (outcome.terminated | outcome.truncated)):
            assert found[row].seconds == sim.spent[row, SECONDS]
            assert found[row].bytes == sim.spent[row, BYTES]
            assert found[row].success == outcome.success[row]
        going &= ~(outcome.terminated | outcome.truncated)


@pytest.mark.parametrize("family", ["small", "train"])
def test_a_journey_does_not_depend_on_its_neighbours(family: str) -> None:
    cases = drawn(family, preset(family), range(6))
    together = drive("random", lambda _: RandomPolicy(), cases)
    for case, journey in zip(cases, together, strict=True):
        (alone,) = drive("random", lambda _: RandomPolicy(), [case])
        assert (alone.seconds, alone.hops, alone.success) == (
            journey.seconds, journey.hops, journey.success
        )  # fmt: skip


def test_what_the_oracle_found_is_what_its_journeys_cost() -> None:
    cases = drawn("train", preset("train"), range(4))
    found = drive("oracle", maker(Spec("oracle", Plugin("oracle"))), cases)
    for case, journey in zip(cases, found, strict=True):
        route = oracle(case.network, case.key)
        assert (journey.seconds, journey.success) == (route.seconds, route.success)


@dataclass
class Watcher:
    """Walks at random, probes what is legal, and notes what it is shown."""

    name = "watcher"
    shown: list[Observation]

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        return observation.legal()[:2]

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        self.shown.append(observation)
        return RandomPolicy().choose(observation, rng)


def test_an_observation_is_whole(cases: list[Case]) -> None:
    shown: list[Observation] = []

    def make(_: Case) -> RoutePolicy:
        return Watcher(shown)

    (journey,) = drive("watcher", make, cases[:1])
    assert len(shown) > 5
    first, last = shown[0], shown[-1]
    assert first.hop == 0
    assert not first.visited
    assert last.hop == len(last.visited) > 3
    for seen in shown:
        assert seen.candidates[-1].kind is StopKind.HOME
        assert not seen.mask[len(seen.candidates) :].any()
        for c in seen.candidates:
            if c.kind is StopKind.DATA:
                assert c.visits == seen.visited.count(c.node)
        # What is asked is shown, in words and in columns.
        column = FEATURES.index("has_probe")
        asked = {
            seen.candidates[i].node
            for i in range(len(seen.candidates))
            if seen.features[i, column] > 0.5
        }
        assert asked == set(seen.probes)
    assert any(seen.probes for seen in shown)
    assert journey.hops > 0
