"""Visits that several live nodes do together, and the deaths of each of them, by kill -9."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from aats.advert import ComputeAdvert, LinkAdvert, NodePolicy, Role
from aats.ids import NodeId
from aats.learning.weights import initial_payload
from aats.ledger.record import check_chain
from aats.live import LiveNode, LiveWorld, TraceEvent
from aats.node.desk import CoreConfig
from aats.node.fault import FaultPoint, Moment
from aats.packet import Architecture, Cost, Header, Plugin, Target
from aats.payload import Payload
from aats.roles.data import NodeData
from aats.roles.owner import make_packet
from aats.testing.methods import CLASSES, FEATURES, SKILL, blobs

if TYPE_CHECKING:
    from conftest import Network, Run

TIMES = {
    "settle_s": 0.2, "offer_timeout_s": 0.4, "avoid_s": 1.0, "retry_s": 0.1, "alive_s": 0.3,
    "silence_s": 2.0, "task_timeout_s": 20.0,
}  # fmt: skip
MLP = Architecture("mlp", {"features": FEATURES, "hidden": [16, 12], "classes": CLASSES})
FAST = {"lr": 0.1, "batch_size": 16, "decay": 1.0, "patience_s": 5.0}
METHODS = {
    "split": Plugin("split", {"cut": 1, "epochs": 2, **FAST}),
    "splitfed": Plugin("splitfed", {"cut": 2, "epochs": 3, **FAST}),
    "rws": Plugin("rws", {"segments": 2, "rounds": 6, **FAST}),
}


def line_of(deaths: dict[str, FaultPoint]) -> list[LiveNode]:
    """Return n0 (owner, no data) - n1 - n2 - n3, all but the first with data."""
    names = [NodeId(f"n{i}") for i in range(4)]
    nodes = []
    for i, name in enumerate(names):
        data = NodeData.of(blobs(120, seed=i)) if i else NodeData()
        roles = (Role.DATA, Role.COMPUTE) if i else (Role.OWNER, Role.COMPUTE)
        core = CoreConfig(
            name, roles, data.adverts(), ComputeAdvert(1000.0), NodePolicy(streams=True), **TIMES
        )
        peers = [names[j] for j in (i - 1, i + 1) if 0 <= j < len(names)]
        links = tuple(LinkAdvert(p, 1e9, 0.0005) for p in peers)
        nodes.append(LiveNode(core, data, links, deaths=(deaths[name],) if name in deaths else ()))
    return nodes


def packet(world: LiveWorld, *, method: Plugin, seed: int = 1) -> tuple[Header, Payload]:
    trusted = blobs(90, seed=9)
    payload = initial_payload(MLP, seed, {SKILL: (trusted.train_x, trusted.train_y)})
    return make_packet(
        world.identity(NodeId("n0")), MLP, (Target(SKILL, 0.9, verifier="any"),),
        created=time.time(), method=method, policy=Plugin("cycle"),
        rendezvous=Plugin("assemble"), budget=Cost(20, 1e6, 1e15, 1e15), payload=payload,
        seed=seed,
    )  # fmt: skip


def go(network: Network, method: str, deaths: dict[str, FaultPoint] | None = None) -> Run:
    run = network.run(line_of(deaths or {}), make=packet, method=METHODS[method])
    (delivered,) = run.delivered
    assert delivered.header.requirement_met
    check_chain(delivered.header.chain)
    delivered.payload().verify()
    return run


@pytest.mark.parametrize("method", METHODS)
def test_live_nodes_train_a_model_together(network: Network, method: str) -> None:
    run = go(network, method)
    for visit in run.of("visit.finished"):
        assert visit["stream_bytes"] == sum(visit["stream_links"].values()) > 0
        assert "lost" not in visit["note"]
    joined = {e["node"] for e in run.of("stream.joined")}
    assert joined == {"n1", "n2", "n3"}


@pytest.mark.parametrize("method", METHODS)
def test_a_client_killed_in_mid_stream_is_done_without(network: Network, method: str) -> None:
    run = go(network, method, {"n3": FaultPoint(Moment.SPEAKING, 0)})
    assert [e["node"] for e in run.of("node.died")] == ["n3"]
    first = run.of("visit.finished")[0]
    assert "lost n3" in first["note"]
    assert first["samples"] > 0
    assert first["action"] == "train"


@pytest.mark.slow
def test_a_leader_killed_in_mid_stream_does_the_visit_again(network: Network) -> None:
    run = go(network, "split", {"n0": FaultPoint(Moment.SPEAKING, 0, after_s=0.2)})
    assert [e["node"] for e in run.of("node.died")] == ["n0"]
    started = [e["hop"] for e in run.of("visit.started")]
    assert started[:2] == [0, 0]
    assert [e["hop"] for e in run.of("visit.finished")].count(0) == 1


@pytest.mark.slow
def test_a_partner_that_stays_dead_costs_one_silence(network: Network) -> None:
    def bury(world: LiveWorld, event: TraceEvent) -> None:
        if event["event"] == "stream.joined" and event["node"] == "n3":
            world.take_down(NodeId("n3"))

    run = network.run(line_of({}), make=packet, method=METHODS["rws"], watch=bury)
    (delivered,) = run.delivered
    assert delivered.header.requirement_met
    assert {e["partner"] for e in run.of("stream.lost")} == {"n3"}
    assert "lost n3" in run.of("visit.finished")[0]["note"]
    assert not run.of("visit.failed")
