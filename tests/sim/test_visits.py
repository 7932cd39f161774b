"""A packet with a bound on its visits makes so many, asks an MPVU if it must, and goes home."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from aats.installed import load_agent, load_policy
from aats.lineage import RecordKind
from aats.packet import UNLIMITED, Header, Plugin
from aats.routing.observe import ROWS
from aats.testing.worlds import ring, small_world, star, tally_packet
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


def test_a_cycle_goes_to_every_node_of_a_network_wider_than_an_observation() -> None:
    small = small_world(star(ROWS + 10), policies=load_policy, agents=load_agent)
    header, payload = tally_packet(small, target=2.0)  # never met
    holders = ROWS + 8  # all but the owner and the MPVU
    mandate = replace(
        header.mandate, policy=Plugin("cycle"), budget=UNLIMITED,
        method=Plugin("tally", {"visits": holders}),
        requirement=tuple(replace(t, verifier="any") for t in header.mandate.requirement),
    )  # fmt: skip
    signed = sign_mandate(mandate, small.identities[small.owner])
    small.world.start()
    small.world.submit(small.owner, replace(header, mandate=signed), payload, 0.0)
    small.world.run(4000.0, lambda: bool(small.world.deliveries))
    chain = small.world.deliveries[0].header.chain
    assert len({r.node for r in chain if r.kind is RecordKind.TRAIN}) == holders
