"""Children that come back from a hostile node: the trunk stands, and goes home with the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from aats.ids import NodeId
from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.node.arrival import MAX_HOPS, MAX_LINES, MAX_SPENT
from aats.node.custody import Copy
from aats.node.joining import MAX_CLASSES
from aats.node.work import Work
from aats.packet import Cost, Header
from aats.wire import decode_header, encode_header
from tests.node.test_gathering import each, home_of, world

ROGUE = NodeId("n1")
HUGE = (1 << 63) - 1
Twist = Callable[[Header, Header], Header]
"""A child's header before its visit at the rogue's and after it -> what goes back."""


def no_record(before: Header, after: Header) -> Header:
    return replace(before, journal=after.journal, errand=after.errand)


def no_record_of_a_hop_far_ahead(before: Header, after: Header) -> Header:
    return replace(no_record(before, after), hop=MAX_HOPS - 10)


def boasts(before: Header, after: Header) -> Header:
    *rest, last = after.journal
    lines = (replace(last, samples=HUGE),) * 3
    return replace(after, journal=(*rest, *lines))


def spent_nothing(before: Header, after: Header) -> Header:
    return replace(after, spent=Cost(), probe_bytes=0.0)


def spent_all_there_is(before: Header, after: Header) -> Header:
    return replace(after, spent=replace(after.spent, bytes=MAX_SPENT), probe_bytes=1.7e308)


def counts_absurdly(before: Header, after: Header) -> Header:
    many = {f"n{i}": 1.7e308 for i in range(200)}
    return replace(after, trained={**after.trained, "visits": -1e308, "diverged": 1e308, **many})


def has_seen_all_skills(before: Header, after: Header) -> Header:
    many = {f"skill {i}": [1.0] for i in range(MAX_LINES - 1)}
    return replace(after, labels_used={**after.labels_used, **many})


def has_a_class_for_every_number(before: Header, after: Header) -> Header:
    skill = after.mandate.requirement[0].skill
    return replace(after, labels_used={**after.labels_used, skill: [1.0] * 60_000})


@pytest.mark.parametrize(
    "twist",
    [no_record, no_record_of_a_hop_far_ahead, boasts, spent_nothing, spent_all_there_is,
     counts_absurdly, has_seen_all_skills, has_a_class_for_every_number],
)  # fmt: skip
def test_what_a_rogue_makes_of_a_child_stops_nobody(
    twist: Twist, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked = Work.worked

    def twisted(self: Work, copy: Copy, header: Header, *more: Any) -> None:
        if self._desk.node == ROGUE and header.branch and len(header.chain) > 2:
            header = twist(copy.header, header)
            more = more if header.chain[-1].node == ROGUE else ()
        worked(self, copy, header, *more)

    monkeypatch.setattr(Work, "worked", twisted)
    home = home_of(world(each))
    check_chain(home.chain)
    assert decode_header(encode_header(home)) == home
    assert len([r for r in home.chain if r.kind is RecordKind.MERGE]) > 1
    assert home.requirement_met
    assert home.hop < 1 << 30
    assert 0 < home.trained["visits"] < 1000
    assert 0 <= home.trained.get("diverged", 0.0) < 1000
    assert max(len(home.trained), len(home.labels_used)) < MAX_LINES * 3 // 4
    assert max(map(len, home.labels_used.values()), default=0) <= MAX_CLASSES
    assert home.spent.bytes < MAX_SPENT / 100
    assert home.spent.hops >= 2 * home.trained["cycle"]
