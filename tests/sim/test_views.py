"""Nodes with views of the same samples, in the simulated world: one result in it and in line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aats.compose import build_packets, build_world, compose, simulated_identity
from aats.config.load import build, load_scenario
from aats.config.scenario import Scenario
from aats.errors import ScenarioError
from aats.ids import NodeId
from aats.learning.backend import backend_of
from aats.learning.method import Work, method_of
from aats.learning.visit import stop_of
from aats.ledger.record import check_chain
from aats.payload import MODEL
from aats.sim.network import SimulatedWorld
from aats.testing.streams import StreamRun, run_stream

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_views"
HOME = NodeId("home")
INL = {"name": "inl", "epochs": 1, "batch_size": 16, "lr": 0.01, "s": 0.03, "timeout_s": 4.0}


def scenario(
    channel: str = "levels", value: float = 0.01, into: str = "", **method: Any
) -> Scenario:
    """Return three nodes around one that knows the labels; `into`: where the left half goes."""
    views = {"left": ("a", "occlude"), "noisy": ("b", "noise"), "whole": ("c", "identity")}
    return build(
        {
            "scenario": {"name": "views", "seed": 5},
            "topology": {
                "names": ["home", "a", "b", "c"],
                "edges": [["home", "a"], ["home", "b"], ["b", "c"], ["a", "c"]],
            },
            "node": {"streams": True},
            "nodes": {"home": {"roles": ["owner", "data", "compute"]}},
            "data": {
                "skills": {
                    "digits": {
                        "source": "digits",
                        "test": 0.8,
                        "views": {
                            **{
                                v: {"node": n, "transform": t, "labels": False, "missing": 0.1}
                                for v, (n, t) in views.items()
                            },
                            "labels": {"node": "home", "transform": "nothing"},
                        },
                    }
                }
            },
            "packets": [
                {
                    "name": "pair",
                    "owner": "home",
                    "requirement": [{"skill": "digits", "value": value, "verifier": "any"}],
                    "rendezvous": {"name": "assemble", "at_data": True},
                    "method": {**INL, **method},
                    "model": {
                        "name": "inl", "classes": 10, "code": 4, "channel": channel,
                        "views": {
                            "left": {"shape": [64], "hidden": [16], "into": into},
                            "noisy": {"shape": [64], "hidden": [16]},
                            "whole": {"shape": [64], "hidden": [16]},
                        },
                    },
                }
            ],
        }
    )  # fmt: skip


def run(world: SimulatedWorld) -> SimulatedWorld:
    world.start()
    assert world.run(600.0, lambda: bool(world.deliveries)), world.lines[-5:]
    return world


def named(world: SimulatedWorld, name: str) -> list[dict[str, Any]]:
    return [e for e in map(json.loads, world.lines) if e["event"] == name]


def in_line(of: Scenario) -> tuple[dict[str, np.ndarray[Any, Any]], StreamRun]:
    """Return the weights after the first visit, all sides run in line in this process."""
    plan = compose(of)
    (packet,) = build_packets(of, plan, lambda node: simulated_identity(of, node), 0.0)
    header, payload = packet.header, packet.payload
    method = method_of(header.mandate.method)[0]
    backend = backend_of(header.mandate.architecture)
    data = {name: node.data for name, node in plan.nodes.items()}
    stop = stop_of(header, HOME, data[HOME], payload)
    work_plan = method.plan(stop)
    assert work_plan is not None
    others = {name: data[name] for name in sorted(data) if name != HOME}
    with backend.scope(stop.seed):
        model = backend.load(header.mandate.architecture, payload)
        done = run_stream(
            method, backend.subject(model), Work(stop, work_plan), others, header=header
        )  # type: ignore[arg-type]
        tensors = backend.tensors(model, payload)
    return {name: np.array(t.data) for name, t in tensors.items()}, done


@pytest.mark.parametrize(
    ("channel", "into", "coded"),
    [("levels", "", False), ("levels", "whole", True), ("dithered", "whole", True),
     ("gaussian", "whole", False)],
)  # fmt: skip
def test_a_network_of_nodes_ends_with_the_weights_of_one_process(
    channel: str, into: str, coded: bool
) -> None:
    of = scenario(channel, into=into, coded=coded)
    want, _ = in_line(of)
    world = run(build_world(of))
    arrays = world.deliveries[0].payload.arrays(MODEL)
    assert arrays.keys() == want.keys()
    for name, array in arrays.items():
        assert np.array_equal(array, want[name]), name


def test_the_account_on_the_wire_holds_the_bytes_that_the_driver_counts() -> None:
    of = scenario("levels", into="whole")
    _, done = in_line(of)
    (visit,) = named(run(build_world(of)), "visit.finished")
    sent: dict[str, float] = {}
    for (sender, receiver, _), size in done.bytes.items():
        sent[f"{sender}>{receiver}"] = sent.get(f"{sender}>{receiver}", 0.0) + size
    frames: dict[str, int] = {}
    for (sender, receiver, _), count in done.frames.items():
        frames[f"{sender}>{receiver}"] = frames.get(f"{sender}>{receiver}", 0) + count
    for link, size in sent.items():
        # Home and c are two links apart; a frame has a header and is signed.
        crossed = 2 if {"home", "c"} == set(link.split(">")) else 1
        most = size + 3000 * frames[link] + 20_000
        assert crossed * size < visit["stream_links"][link] < crossed * most


def test_training_goes_on_without_an_inner_node_that_dies() -> None:
    world = build_world(scenario(into="whole", value=0.2))
    world.start()
    assert world.run(100.0, lambda: bool(named(world, "stream.joined")))
    world.run(world.now + 0.05, lambda: False)
    world.crash(NodeId("c"))
    assert world.run(600.0, lambda: bool(world.deliveries)), world.lines[-5:]
    header = world.deliveries[0].header
    assert header.requirement_met
    check_chain(header.chain)
    assert "whole" in named(world, "visit.finished")[0]["note"]


def test_the_example_meets_its_requirement_at_a_verifier_that_joins_the_views() -> None:
    world = run(build_world(load_scenario(EXAMPLE)))
    header = world.deliveries[0].header
    assert header.requirement_met
    trained = header.trained
    for view in ("half", "noisy"):
        assert 8 < trained[f"bits.{view}"] < 16
    for visit in named(world, "visit.finished"):
        assert visit["node"] == "registry"


def test_contradictions_in_a_scenario_are_refused() -> None:
    with pytest.raises(ScenarioError, match="known data nodes are"):
        load_scenario(EXAMPLE, ["data.skills.digits.views.half.node=ministry"])
    with pytest.raises(ScenarioError, match="known transforms are"):
        load_scenario(EXAMPLE, ["data.skills.digits.views.half.transform=blurr"])
    with pytest.raises(ScenarioError, match="drop nodes and partition"):
        load_scenario(EXAMPLE, ["data.skills.digits.partition=shards"])
