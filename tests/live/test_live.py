"""Whole networks of real processes and sockets on this machine."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from aats.ids import NodeId
from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.node.fault import FaultPoint, Moment

if TYPE_CHECKING:
    from conftest import Network, Run

Ring = Callable[..., dict[NodeId, Any]]


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
    plans = make_ring(4)
    run = network.run(plans, deaths=dict.fromkeys(plans, points), hops=40, target=0.97)
    check(run)
    died = run.of("node.process-died")
    assert len(died) >= len(points) - 1
    assert {e["code"] for e in died} == {-signal.SIGKILL}
