"""A packet with a bound on its visits makes so many, asks an MPVU if it must, and goes home."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from aats.installed import load_agent, load_policy
from aats.lineage import RecordKind
from aats.packet import Header, Plugin
from aats.testing.worlds import ring, small_world, tally_packet
from aats.wire import sign_mandate


def run(visits: object, *, verifier: str = "mpvu", target: float = 0.999) -> Header:
    small = small_world(ring(6), policies=load_policy, agents=load_agent)
    header, payload = tally_packet(small, target=target)
    mandate = replace(
        header.mandate,
        method=Plugin("tally", {"visits": visits}),
        policy=Plugin("cycle"),
        requirement=tuple(replace(t, verifier=verifier) for t in header.mandate.requirement),
    )
    signed = sign_mandate(mandate, small.identities[small.owner])
    world = small.world
    world.start()
    world.submit(small.owner, replace(header, mandate=signed), payload, 0.0)
    world.run(4000.0, lambda: bool(world.deliveries))
    home: Header = world.deliveries[0].header
    return home


def kinds(header: Header) -> Sequence[RecordKind]:
    return [r.kind for r in header.chain[1:-1]]


@pytest.mark.parametrize("visits", [1, 2, 3])
def test_it_makes_so_many_visits_has_them_judged_and_goes_home(visits: int) -> None:
    home = run(visits)
    assert kinds(home) == [RecordKind.TRAIN] * visits + [RecordKind.VERIFY]
    assert not home.requirement_met


def test_nobody_is_asked_where_nobody_must_be() -> None:
    assert kinds(run(2, verifier="any")) == [RecordKind.TRAIN] * 2


def test_a_requirement_that_is_met_ends_it_before() -> None:
    assert kinds(run(9, target=0.3)) == [RecordKind.TRAIN, RecordKind.VERIFY]


@pytest.mark.parametrize("strange", [0, -1, "x", None])
def test_what_is_no_bound_is_none(strange: object) -> None:
    assert kinds(run(strange, target=0.6)).count(RecordKind.TRAIN) == 2
