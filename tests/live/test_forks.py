"""Packets that fork, on real processes that are killed at each of its moments."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from aats.ids import NodeId
from aats.learning.weights import initial_payload
from aats.ledger.record import check_chain, heads
from aats.lineage import RecordKind
from aats.live import LiveNode, LiveOptions, LiveWorld, TraceEvent
from aats.node.fault import FaultPoint, Moment
from aats.node.supervisor import Backoff
from aats.packet import Architecture, Cost, Header, Plugin, Target
from aats.payload import Payload
from aats.roles.data import NodeData, SkillData
from aats.roles.owner import make_packet
from aats.store import NodeStore

if TYPE_CHECKING:
    from conftest import Network, Run

Ring = Callable[..., list[LiveNode]]

SKILL, CLASSES = "colours", 4
MODEL = Architecture("logistic", {"features": CLASSES, "classes": CLASSES})


def rows(seed: int) -> NodeData:
    """Return data that a linear model learns, but for a fifth whose labels are wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, CLASSES, 120)
    x = np.eye(CLASSES, dtype=np.float32)[true]
    y = np.where(rng.random(120) < 0.2, (true + 1) % CLASSES, true)
    return NodeData.of(SkillData.of(SKILL, x, y, num_classes=CLASSES))


def nodes(make_ring: Ring, deaths: Sequence[FaultPoint] = (), at: str = "") -> list[LiveNode]:
    """Return a ring of four nodes whose data a linear model learns; one has fault points."""
    found = []
    for number, node in enumerate(make_ring(4)):
        data = rows(number)
        core = replace(node.core, data=data.adverts())
        fate = tuple(deaths) if core.node == at else ()
        found.append(LiveNode(core, data, node.links, node.work, fate))
    return found


def forking(
    world: LiveWorld, *, seed: int, within_s: float = 30.0, rendezvous: str = "fedavg",
    rounds: int = 2, **params: object,
) -> tuple[Header, Payload]:  # fmt: skip
    """Return a packet of node n0 that forks, and wants more than can be learned."""
    trusted = rows(99).skills[SKILL]
    payload = initial_payload(MODEL, seed, {SKILL: (trusted.train_x, trusted.train_y)})
    return make_packet(
        world.identity(NodeId("n0")),
        MODEL,
        (Target(SKILL, 1.0, verifier="any"),),
        created=time.time(),
        method=Plugin("sequential", {"lr": 0.01}),
        policy=Plugin("random"),
        rendezvous=Plugin(rendezvous, {"within_s": within_s, "rounds": rounds, **params}),
        budget=Cost(200, 1e6, 1e15, 1e15),
        payload=payload,
        seed=seed,
    )


def check(network: Network, run: Run, merged: int, at_least: int = 0) -> None:
    """Check history, model and stores of a run that is over.

    A child may be left out where a node took longer to come back than others wait for it.
    """
    (delivered,) = run.delivered
    chain = delivered.header.chain
    check_chain(chain)
    assert heads(chain) == (chain[-1],)
    delivered.payload().verify()
    every = {record.id: record for record in chain}
    tips = [every[p].branch for r in chain if r.kind is RecordKind.MERGE for p in r.parents[1:]]
    assert len(tips) == len(set(tips)), "a child was merged twice"
    assert (at_least or merged) <= len(tips) <= merged
    for directory in sorted((network.directory / "nodes").iterdir()):
        store = NodeStore(directory)
        left = [row for row in store.rows() if row.status not in ("home", "cached")]
        store.close()
        assert not [row for row in left if row.header.branch and row.status == "resting"]


def test_a_live_packet_forks_and_merges(network: Network, make_ring: Ring) -> None:
    run = network.run(nodes(make_ring), make=forking)
    check(network, run, merged=8)
    assert [e["missing"] for e in run.of("packet.merged")] == [[], []]


def test_a_client_killed_while_it_works_works_again(network: Network, make_ring: Ring) -> None:
    deaths = [FaultPoint(Moment.WORKING, 1)]
    run = network.run(nodes(make_ring, deaths, "n1"), make=forking)
    assert [e["code"] for e in run.of("node.died")] == [-signal.SIGKILL]
    check(network, run, merged=8, at_least=6)


def test_a_client_that_stays_dead_is_left_out(network: Network, make_ring: Ring) -> None:
    def bury(world: LiveWorld, event: TraceEvent) -> None:
        if event["event"] == "node.died":
            world.take_down(NodeId("n2"))

    run = network.run(
        nodes(make_ring, [FaultPoint(Moment.WORKING, 2)], "n2"), make=forking, watch=bury,
        options=LiveOptions(backoff=Backoff(first_s=10.0)), within_s=3.0, rounds=1, quorum=0.5,
    )  # fmt: skip
    (merge,) = run.of("packet.merged")
    assert len(merge["merged"]) == 3
    assert len(merge["missing"]) == 1
    check(network, run, merged=3)


@pytest.mark.parametrize("moment", [Moment.FORKED, Moment.MERGING])
def test_a_rendezvous_killed_while_it_waits_or_merges_goes_on(
    network: Network, make_ring: Ring, moment: Moment
) -> None:
    run = network.run(nodes(make_ring, [FaultPoint(moment, 0)], "n0"), make=forking)
    assert [e["code"] for e in run.of("node.died")] == [-signal.SIGKILL]
    check(network, run, merged=8, at_least=6)


def test_walkers_meet_on_live_nodes(network: Network, make_ring: Ring) -> None:
    run = network.run(
        nodes(make_ring), make=forking, rendezvous="gossip", rounds=1, walkers=3, visits=6
    )
    (delivered,) = run.delivered
    check_chain(delivered.header.chain)
    assert any(e.get("met") for e in run.of("visit.started"))
    assert any(len(r.parents) == 2 for r in delivered.header.chain if r.kind is RecordKind.TRAIN)
