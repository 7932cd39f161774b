from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aats.ids import NodeId
from aats.packet import ProbeEntry
from aats.routing.observe import observe
from aats.routing.probing import worth
from aats.topology.stops import Candidate, StopKind, Topology
from tests.routing.test_observe import HOME, packet, stop, visit


def asked(*stops: Candidate, count: int = 2, visits: int = 1) -> list[str]:
    header = packet(journal=tuple(visit("elsewhere", hop=i) for i in range(visits)))
    seen = observe(header, Topology(NodeId("a"), (*stops, HOME)), 0.0)
    chosen = worth(seen.features, seen.globals, seen.mask, count)
    return [str(seen.candidates[i].node) for i in np.flatnonzero(chosen)]


A = stop("a", compute_s=9.0, probe_s=1.0)


def test_the_most_promising_unknown_ones_are_asked() -> None:
    rich, poor = replace(A, samples={"digits": 300}), replace(A, samples={"digits": 3})
    named = [replace(s, node=NodeId(n)) for n, s in zip("pqr", (poor, rich, rich), strict=True)]
    assert asked(*named) == ["q", "r"]
    assert asked(*named, count=0) == []


def test_a_model_that_knows_nothing_asks_nobody() -> None:
    assert asked(A, visits=0) == []
    assert asked(A) == ["a"]


@pytest.mark.parametrize(
    "change",
    [{"probe_allowed": False}, {"hurt": True}, {"probe_s": 6.0}, {"transfer_s": float("inf")}],
)
def test_who_refuses_or_hurt_or_is_too_slow_is_not_asked(change: dict[str, object]) -> None:
    assert asked(replace(A, **change)) == []  # type: ignore[arg-type]


def test_an_answer_holds_until_the_packet_is_twice_as_old() -> None:
    def probed(hops_ago: int, gain: float = 1.0) -> Candidate:
        entry = ProbeEntry(NodeId("a"), 0, gain, 1.0, 1.0, 0)
        return replace(A, probed=entry, hops_since_probe=hops_ago)

    assert asked(probed(4)) == []
    assert asked(probed(5)) == ["a"]
    assert asked(probed(10), visits=20) == []
    assert asked(probed(11), visits=20) == ["a"]
    assert asked(probed(11, gain=-1.0), visits=20) == []
    assert asked(probed(40, gain=-1.0), visits=20) == ["a"]


def test_a_batch_is_asked_as_each_alone() -> None:
    kinds = (A, replace(A, hurt=True), stop("m", StopKind.MPVU), replace(A, transfer_s=5.0))
    header = packet(journal=(visit("elsewhere"),))
    seen = [observe(header, Topology(NodeId("a"), (s, A, HOME)), 0.0) for s in kinds]
    batch = worth(*(np.stack([getattr(s, f) for s in seen]) for f in
                    ("features", "globals", "mask")), 1)  # fmt: skip
    for row, one in zip(batch, seen, strict=True):
        assert (row == worth(one.features, one.globals, one.mask, 1)).all()
