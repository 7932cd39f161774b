"""Visits done together in the simulated world: bytes, faults, lossy links, one seed one trace."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from aats.compose import build_world
from aats.config.load import build
from aats.ids import NodeId
from aats.ledger.record import check_chain
from aats.node.commands import RunTask, TellTask
from aats.node.events import Event
from aats.node.tasks import FollowTask, VisitTask
from aats.packet import Header
from aats.replay import Divergence, EventLog, replay
from aats.sim.link import LinkSpec
from aats.sim.network import SimulatedWorld

CLIENTS = ["n1", "n2", "n3", "n4"]
MODEL = {"name": "mlp", "features": 8, "hidden": [12, 10], "classes": 3}
FAST = {"lr": 0.1, "batch_size": 16, "decay": 1.0}


def scenario(method: dict[str, Any], model: dict[str, Any] = MODEL, **nodes: dict[str, Any]) -> Any:
    return build(
        {
            "scenario": {"name": "streams", "seed": 3},
            "topology": {"generator": {"name": "star", "nodes": 6}},
            "node": {"contributes_to": ["n5"], "streams": True},
            "nodes": {
                "n0": {"roles": ["owner", "compute"]},
                "n5": {"roles": ["mpvu"], "contributes_to": []},
                **nodes,
            },
            "data": {
                "skills": {
                    "blobs": {
                        "source": {
                            "name": "synthetic", "samples": 500, "classes": 3, "spread": 0.5,
                        }
                    }
                }
            },
            "packets": [
                {
                    "name": "learner",
                    "owner": "n0",
                    "requirement": [{"skill": "blobs", "value": 0.9}],
                    "model": model,
                    "method": {**FAST, **method},
                    "rendezvous": "assemble",
                    "policy": "least-visited",
                    "budget": {"hops": 40},
                }
            ],
        }
    )  # fmt: skip


SPLIT = {"name": "split", "cut": 1}
METHODS = [SPLIT, {"name": "splitfed", "cut": 2}, {"name": "rws", "segments": 2}]


def run(world: SimulatedWorld, limit_s: float = 600.0) -> Header:
    world.start()
    assert world.run(limit_s, lambda: bool(world.deliveries)), world.lines[-5:]
    return world.deliveries[0].header


def named(world: SimulatedWorld, name: str) -> list[dict[str, Any]]:
    return [e for e in map(json.loads, world.lines) if e["event"] == name]


def first_visit(world: SimulatedWorld) -> dict[str, Any]:
    """Run until the first visit is over; return its line of the trace."""
    world.start()
    assert world.run(200.0, lambda: bool(named(world, "visit.finished"))), world.lines[-5:]
    return named(world, "visit.finished")[0]


def crash_amid(node: str, after: int, then: Callable[[SimulatedWorld], None]) -> Any:
    """Return a hook that acts once a node has been told `after` frames."""
    told = 0

    def hook(shell: Any, event: object) -> None:
        nonlocal told
        if shell.node == node and isinstance(event, TellTask):
            told += 1
            if told == after:
                then(world_of[0])

    world_of: list[SimulatedWorld] = []
    return hook, world_of


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["name"])
def test_a_model_trained_together_is_verified_and_comes_home(method: dict[str, Any]) -> None:
    world = build_world(scenario(method))
    header = run(world)
    assert header.requirement_met
    check_chain(header.chain)
    world.deliveries[0].payload.verify()
    for visit in named(world, "visit.finished"):
        assert visit["stream_bytes"] == sum(visit["stream_links"].values()) > 0
        assert visit["samples"] > 200
    streamed = sum(v["stream_bytes"] for v in named(world, "visit.finished"))
    moved = sum(e["wire_bytes"] for e in named(world, "packet.received"))
    probed = named(world, "packet.home")[0]["probe_bytes"]
    assert header.spent.bytes == streamed + moved + probed
    assert header.spent.joules > 0


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["name"])
def test_one_seed_one_trace(method: dict[str, Any]) -> None:
    first, second = build_world(scenario(method)), build_world(scenario(method))
    run(first)
    run(second)
    assert first.lines == second.lines


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["name"])
def test_links_that_lose_double_and_reorder_change_the_bytes_and_nothing_else(
    method: dict[str, Any],
) -> None:
    clean = first_visit(build_world(scenario(method)))
    world = build_world(scenario(method))
    for link in world.links:
        worse = LinkSpec(
            link.spec.a, link.spec.b, 1e8, 0.005, loss=0.05, duplicate=0.2, reorder=0.2,
            jitter_s=0.01,
        )  # fmt: skip
        for lane in link.control.values():
            lane._spec, lane.loss = worse, worse.loss
    rough = first_visit(world)
    assert rough["version"] == clean["version"]
    assert rough["samples"] == clean["samples"]
    assert rough["stream_bytes"] > clean["stream_bytes"]
    assert rough["seconds"] > clean["seconds"]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["name"])
@pytest.mark.parametrize("restarts", [True, False])
def test_training_goes_on_without_a_client_that_dies_in_mid_stream(
    method: dict[str, Any], restarts: bool
) -> None:
    world = build_world(scenario(method))

    def die(world: SimulatedWorld) -> None:
        world.crash(NodeId("n2"), for_good=not restarts)
        if restarts:
            world.restart(NodeId("n2"), at=world.now + 0.5)

    hook, world_of = crash_amid("n2", 3, die)
    world_of.append(world)
    world.hooks.append(hook)
    header = run(world)
    assert header.requirement_met
    visits = named(world, "visit.finished")
    assert "lost n2" in visits[0]["note"]
    assert named(world, "stream.lost")[0]["partner"] == "n2"
    assert "lost" not in visits[-1]["note"]


def test_a_leader_that_restarts_does_the_visit_again_from_custody() -> None:
    clean = first_visit(build_world(scenario(SPLIT)))
    world = build_world(scenario(SPLIT))

    def die(world: SimulatedWorld) -> None:
        world.crash(NodeId("n0"))
        world.restart(NodeId("n0"), at=world.now + 1.0)

    hook, world_of = crash_amid("n0", 5, die)
    world_of.append(world)
    world.hooks.append(hook)
    again = first_visit(world)
    assert len(named(world, "visit.started")) == 2
    assert again["version"] == clean["version"]
    assert again["t"] > clean["t"]


def test_followers_of_a_dead_leader_end() -> None:
    world = build_world(scenario(SPLIT))
    hook, world_of = crash_amid("n0", 5, lambda w: w.crash(NodeId("n0"), for_good=True))
    world_of.append(world)
    world.hooks.append(hook)
    world.start()
    world.run(60.0)
    assert all(not shell._talks for shell in world.nodes.values())


def test_a_node_that_works_with_nobody_elsewhere_is_not_asked() -> None:
    world = build_world(scenario(SPLIT, n3={"streams": False}))
    visit = first_visit(world)
    assert not [link for link in visit["stream_links"] if "n3" in link]
    assert named(world, "visit.started")[0]["partners"] == ["n1", "n2", "n4"]


def test_frames_larger_than_a_message_go_in_parts() -> None:
    wide = {"name": "mlp", "features": 8, "hidden": [30_000], "classes": 3}
    world = build_world(scenario({**SPLIT, "batch_size": 200}, wide))
    visit = first_visit(world)
    client_part = 4 * (8 * 30_000 + 30_000)
    assert client_part > 2 << 19
    handed = {"n1>n2", "n2>n3", "n3>n4"}
    assert all(visit["stream_links"][link] > 2 * client_part for link in handed)
    assert visit["note"].startswith("4 clients")


def test_a_core_rebuilt_from_its_events_is_equal() -> None:
    world = build_world(scenario(SPLIT))
    world.logs.update((NodeId(n), EventLog()) for n in ("n0", "n1"))
    first_visit(world)
    for node, log in world.logs.items():
        assert not isinstance(replay(log, world.nodes[node].parts.make_core), Divergence)


def test_followers_do_not_wait_in_line_behind_a_visit_that_leads() -> None:
    """Two packets that lead at each other's partner both get on."""
    world = build_world(scenario(SPLIT))
    kinds: list[tuple[str, type]] = []

    def note(shell: Any, event: Event | object) -> None:
        if isinstance(event, RunTask):
            kinds.append((shell.node, type(event.task)))

    world.hooks.append(note)
    first_visit(world)
    assert ("n0", VisitTask) in kinds
    assert {n for n, kind in kinds if kind is FollowTask} == set(CLIENTS)
