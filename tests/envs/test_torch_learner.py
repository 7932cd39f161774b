"""Learning in earnest inside the environment is that of the simulated world, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aats.compose import compose
from aats.config import Scenario, load_scenario
from aats.oam.view import RunView
from aats.packet import Plugin
from aats.simulate import simulate
from aats_agents.evaluate.case import Case
from aats_agents.evaluate.journeys import drive
from aats_agents.policies.itinerary import ItineraryPolicy
from aats_envs.from_scenario import RealTask, from_scenario
from aats_envs.network import KnowledgeNetwork
from aats_envs.search import Given, oracle
from aats_envs.simulator import Simulator
from aats_envs.torch_learner import TorchLearner, Travelling

RING = Path(__file__).parents[2] / "examples" / "ring"
STOPS = "n1", "n2", "n3", "n2", "n5"


@pytest.fixture(scope="module")
def world() -> tuple[KnowledgeNetwork, RealTask]:
    ((network, task),) = from_scenario(load_scenario(RING))
    return network, task


@pytest.fixture(scope="module")
def hard() -> Scenario:
    """Return the ring with a target that no visit comes near."""
    scenario = load_scenario(RING)
    (packet,) = scenario.packets
    target = (replace(packet.requirement[0], value=0.999),)
    plugin = Plugin("itinerary", {"stops": list(STOPS)})
    return replace(scenario, packets=(replace(packet, policy=plugin, requirement=target),))


def travelled(network: KnowledgeNetwork, task: RealTask, stops: tuple[str, ...]) -> Travelling:
    """Return the model after a journey in the environment."""
    at = [str(site.name) for site in network.layout.sites]
    sim = Simulator(Given([network]), 1, probes=0, learner=TorchLearner.of(task))
    sim.reset([0], [1])
    for stop in stops:
        sim.look()
        (row,) = np.flatnonzero(sim.seen.rows[0] == at.index(stop))
        sim.step(np.array([row]))
    model: Travelling = sim.models[0]
    return model


def test_the_same_way_gives_the_weights_of_the_simulated_world(hard: Scenario) -> None:
    ((network, task),) = from_scenario(hard)
    ((header, _),) = simulate(hard, compose(hard), RunView().apply).values()
    visits = [r for r in header.chain if r.kind.value in ("train", "rolled-back")]
    assert tuple(r.node for r in visits[: len(STOPS)]) == STOPS
    model = travelled(network, task, STOPS)
    assert model.header.version == visits[len(STOPS) - 1].version
    assert [e.hop for e in model.header.journal] == [r.hop for r in visits[: len(STOPS)]]


def test_a_model_that_was_handed_out_never_changes(hard: Scenario) -> None:
    ((network, task),) = from_scenario(hard)
    first = travelled(network, task, STOPS[:2])
    before = bytes(first.payload.arena)
    again, longer = (travelled(network, task, stops) for stops in (STOPS[:2], STOPS))
    assert bytes(first.payload.arena) == before == bytes(again.payload.arena)
    assert longer.header.version != first.header.version


def test_the_oracle_of_real_training_is_what_its_route_comes_to(
    world: tuple[KnowledgeNetwork, RealTask],
) -> None:
    network, task = world
    learner = TorchLearner.of(task)
    route = oracle(network, 1, learner=learner, widths=(1, 2), most_visits=60)
    assert route.success
    names = [str(network.layout.sites[s].name) for s in route.stops[:-1]]
    case = Case("ring", 1, network)
    (journey,) = drive("oracle", lambda _: ItineraryPolicy(tuple(names)), [case], learner=learner)
    assert journey.success
    assert journey.seconds == pytest.approx(route.seconds)


def test_probes_are_those_of_a_node(world: tuple[KnowledgeNetwork, RealTask]) -> None:
    network, task = world
    sim = Simulator(Given([network]), 1, learner=TorchLearner.of(task))
    sim.reset([0], [1])
    rows = np.zeros(2, np.int64)
    nodes = np.flatnonzero(network.has_data)[:2]
    models = np.repeat(sim.models, 2)
    found = sim.learner.probe(rows, nodes, models, sim.when(rows))
    assert np.isfinite(found.gain).all()
    assert (found.loss > 0).all()
    assert found.loss[0] != found.loss[1]
