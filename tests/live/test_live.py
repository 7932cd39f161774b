"""Whole networks of real processes and sockets on this machine."""

from __future__ import annotations

import json
import random
import signal
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from aats.errors import LocalError
from aats.ids import NodeId
from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.live import LiveNode, LiveOptions, LiveWorld, TraceEvent
from aats.node.fault import FaultPoint, Moment
from aats.node.spec import PEERS_FILE, DaemonSpec, WorkSettings
from aats.node.supervisor import Backoff
from aats.packet import Plugin
from aats.transport.keys import CurveKeys, Directory

if TYPE_CHECKING:
    from conftest import Network, Run

OPTIONS = LiveOptions(backoff=Backoff(first_s=0.05, tries=20))
TIMES = {"settle_s": 0.2, "offer_timeout_s": 0.4, "avoid_s": 2.0, "retry_s": 0.1}

OF_FORKS = (Moment.FORKED, Moment.MERGING)
EFFECTS = (RecordKind.TRAIN, RecordKind.ROLLED_BACK)

Ring = Callable[..., list[LiveNode]]


def check(run: Run) -> None:
    """Check what must hold of every run: met, verified, nothing done twice."""
    (delivered,) = run.delivered
    header = delivered.header
    assert header.requirement_met
    check_chain(header.chain)
    delivered.payload().verify()
    kinds = Counter((r.hop, r.kind) for r in header.chain if r.kind is not RecordKind.VERIFY)
    assert max(kinds.values()) == 1
    assert header.chain[0].kind is RecordKind.INIT
    assert header.chain[-1].kind is RecordKind.HOME


def waiting(at: str, until: Path) -> Plugin:
    """Return a method whose visit at one node lasts until there is such a file.

    A visit takes less time than the look of the world into the nodes' events.
    """
    return Plugin("hostile", {"how": "wait", "at": at, "until": str(until)})


def test_a_packet_goes_round_a_ring_and_comes_home_with_its_requirement(
    network: Network, make_ring: Ring
) -> None:
    run = network.run(make_ring(4))
    check(run)
    lines = (network.directory / "events.jsonl").read_text().splitlines()
    times = [json.loads(line)["t"] for line in lines]
    assert times == sorted(times)
    assert len(run.of("node.up")) == 4


def test_a_packet_survives_a_kill_9_at_every_moment_of_a_hop(
    network: Network, make_ring: Ring
) -> None:
    points = [
        FaultPoint(Moment.OFFERED, 0), FaultPoint(Moment.RECEIVING, 1),
        FaultPoint(Moment.STORED, 1), FaultPoint(Moment.WORKING, 2),
        FaultPoint(Moment.WORKED, 2), FaultPoint(Moment.SENDING, 3),
        FaultPoint(Moment.RELEASED, 3),
    ]  # fmt: skip
    # Between two nodes there is one way; so little is learnt that the last to die works again.
    method = Plugin("surrogate", {"tau": 120.0})
    run = network.run(make_ring(2, deaths=points), hops=40, method=method)
    check(run)
    assert [e["code"] for e in run.of("node.died")] == [-signal.SIGKILL] * len(points)


@pytest.mark.slow
@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("moment", [m for m in Moment if m not in (*OF_FORKS, Moment.SPEAKING)])
def test_a_packet_survives_a_kill_9_at_one_moment(
    network: Network, make_ring: Ring, tmp_path: Path, moment: Moment, hop: int
) -> None:
    is_over = tmp_path / "over"

    def note(world: LiveWorld, event: TraceEvent) -> None:
        if event["event"] == "node.died":
            is_over.touch()

    arrives_at_hop_0 = hop == 0 and moment in (Moment.RECEIVING, Moment.STORED)
    if arrives_at_hop_0:
        is_over.touch()
    run = network.run(
        make_ring(4, deaths=[FaultPoint(moment, hop)]), watch=note, hops=40, target=0.97,
        method=waiting("n3", is_over),
    )  # fmt: skip
    check(run)
    assert bool(run.of("node.died")) != arrives_at_hop_0


def test_a_receiver_killed_amid_a_transfer_resumes_it(network: Network, make_ring: Ring) -> None:
    ballast_bytes = 24 << 20
    death = FaultPoint(Moment.RECEIVING, 1, after_s=0.5)
    run = network.run(
        make_ring(3, links_bps=2e8, deaths=[death]),
        ballast_bytes=ballast_bytes,
        options=replace(OPTIONS, shaping=True),
    )
    check(run)
    assert len(run.of("node.died")) == 1
    first = next(e for e in run.of("packet.received") if e["hop"] == 1)
    assert first["wire_bytes"] < ballast_bytes


def test_a_node_killed_from_outside_while_it_works_is_no_loss(
    network: Network, make_ring: Ring, tmp_path: Path
) -> None:
    killed, may_go_on = [], tmp_path / "go-on"

    def kill_once(world: LiveWorld, event: TraceEvent) -> None:
        if event["event"] == "visit.started" and event["node"] == "n2" and not killed:
            killed.append(event)
            world.kill(event["node"])
        if event["event"] == "node.died":
            may_go_on.touch()

    run = network.run(make_ring(4, times=TIMES), watch=kill_once, method=waiting("n2", may_go_on))
    check(run)
    assert [(e["node"], e["code"]) for e in run.of("node.died")] == [("n2", -signal.SIGKILL)]
    begun = [e["hop"] for e in run.of("visit.started") if e["node"] == "n2"]
    assert begun[:2] == [killed[0]["hop"]] * 2


def test_a_node_that_stays_dead_with_the_packet_costs_no_more_than_its_work(
    network: Network, make_ring: Ring
) -> None:
    dead = []

    def bury(world: LiveWorld, event: TraceEvent) -> None:
        if event["event"] == "visit.started" and event["node"] == "n2" and not dead:
            dead.append(event)
            world.take_down(event["node"])

    method = Plugin("hostile", {"how": "hang", "at": "n2"})
    run = network.run(make_ring(5), watch=bury, hops=40, method=method)
    check(run)
    assert run.of("packet.regenerated")
    visits = {(e["node"], e["hop"]) for e in run.of("visit.finished")}
    before = {(node, hop) for node, hop in visits if hop < dead[0]["hop"]}
    (delivered,) = run.delivered
    assert before
    assert before <= {(r.node, r.hop) for r in delivered.header.chain}
    assert "n2" not in {node for node, _ in visits}


@pytest.mark.parametrize("how", ["segfault", "memory", "hang"])
def test_a_method_that_harms_its_process_is_a_refused_visit(
    network: Network, make_ring: Ring, how: str
) -> None:
    work = WorkSettings(memory_bytes=1 << 28)
    plans = make_ring(3, times={**TIMES, "task_timeout_s": 3.0}, work=work)
    run = network.run(plans, method=Plugin("hostile", {"how": how, "at": "n1"}), hops=5)
    (delivered,) = run.delivered
    check_chain(delivered.header.chain)
    assert {e["node"] for e in run.of("visit.failed")} == {"n1"}
    assert not run.of("node.died")


def test_an_mpvu_verifies_with_samples_that_its_neighbours_gave(
    network: Network, make_ring: Ring
) -> None:
    run = network.run(make_ring(4, mpvu=NodeId("n2")), verifier="mpvu", hops=24)
    check(run)
    assert run.of("verdict")


def test_many_nodes_share_one_process(network: Network, make_ring: Ring) -> None:
    run = network.run(make_ring(6), options=replace(OPTIONS, nodes_per_process=6))
    check(run)
    assert len({e["node"] for e in run.of("node.up")}) == 6


def test_a_port_in_use_is_named(network: Network, make_ring: Ring) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = replace(OPTIONS, base_port=port)
        with pytest.raises(LocalError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            network.run(make_ring(2), options=options)


def test_a_stranger_without_a_key_gets_nowhere(network: Network, make_ring: Ring) -> None:
    knocked = []

    def knock(world: LiveWorld, event: TraceEvent) -> None:
        if event["event"] == "packet.received" and not knocked:
            spec = DaemonSpec.load(world.directory(NodeId("n1")))
            knocked.append(_knock(spec))

    run = network.run(make_ring(3), watch=knock)
    check(run)
    assert knocked == [False]
    assert not run.of("message.rejected")


def _knock(spec: DaemonSpec) -> bool:
    """Talk to a node with a key of our own making; return whether it let us in."""
    keys = CurveKeys.generate()
    peers = Directory.load(spec.directory / PEERS_FILE)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.curve_serverkey = peers.get(spec.node).curve_key
        dealer.curve_publickey, dealer.curve_secretkey = keys.public, keys.secret
        monitor = dealer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        dealer.connect(spec.control)
        assert monitor.poll(10_000)
        event = parse_monitor_message(monitor.recv_multipart())["event"]
        dealer.disable_monitor()
        monitor.close()
        return bool(event == zmq.EVENT_HANDSHAKE_SUCCEEDED)


@pytest.mark.slow
def test_twenty_nodes_come_up_and_leave_no_process_behind(
    network: Network, make_ring: Ring
) -> None:
    run = network.run(make_ring(20), hops=30)
    check(run)
    assert len({e["node"] for e in run.of("node.up")}) == 20
    assert not network.server.pids


@pytest.mark.parametrize("moment", [Moment.STORED, Moment.WORKED])
def test_a_packet_on_disks_survives_a_kill_9(
    network: Network, make_ring: Ring, moment: Moment
) -> None:
    options = replace(OPTIONS, custody="host")
    run = network.run(make_ring(3, deaths=[FaultPoint(moment, 1)]), options=options)
    check(run)
    assert [e["code"] for e in run.of("node.died")] == [-signal.SIGKILL]


NODES, PACKETS, KILLS = 6, 10, 140
SLOW = Plugin("surrogate", {"tau": 5000.0})
"""Learns so little at a visit that a packet travels until its hops are used up."""
PATIENCE = Backoff(first_s=0.05, longest_s=0.2, tries=10 * KILLS)


def exact_deaths(rng: random.Random, count: int) -> list[FaultPoint]:
    """Return exact moments; each node that comes to one dies there once."""
    every = [FaultPoint(moment, hop) for moment in Moment for hop in range(1, 30)]
    return rng.sample(every, count)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_hundred_kills_lose_no_packet(network: Network, make_ring: Ring, seed: int) -> None:
    rng, seen = random.Random(seed), Counter[str]()

    def kill(world: LiveWorld, event: TraceEvent) -> None:
        seen[event["event"]] += 1
        moments = ("decision", "packet.moved", "packet.received", "visit.started")
        if seen["node.died"] < KILLS and event["event"] in moments and rng.random() < 0.3:
            is_near = rng.random() < 0.8
            world.kill(event["node"] if is_near else NodeId(f"n{rng.randrange(NODES)}"))

    run = network.run(
        make_ring(NODES, deaths=exact_deaths(rng, 10)), watch=kill, seeds=range(PACKETS),
        hops=60, target=1.0, method=SLOW, ballast_bytes=1 << 20, limit_s=380,
        options=replace(OPTIONS, backoff=PATIENCE),
    )  # fmt: skip
    died = [e for e in run.of("node.died") if e["code"] == -signal.SIGKILL]
    assert len(died) >= 100
    assert len(run.delivered) == PACKETS
    for delivered in run.delivered:
        check_chain(delivered.header.chain)
        delivered.payload().verify()
        effects = Counter(r.hop for r in delivered.header.chain if r.kind in EFFECTS)
        assert max(effects.values()) == 1
    everywhere = {r.id: r for r in network.records() if r.kind in EFFECTS}
    assert max(Counter((r.packet, r.hop, r.epoch) for r in everywhere.values()).values()) == 1
