from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.errors import WireError
from aats.ids import CustodyKey, new_packet_id
from aats.transport.base import joined, parted
from aats.transport.shape import LinkShape, Pacer
from aats.transport.ticket import FrameKind, Head, Ticket, nonce, pack_head, unpack_head

KEY = CustodyKey(new_packet_id(1, random.Random(1)), 3, 10_007)
TICKET = Ticket(KEY, bytes(16), bytes(32), ((0, 64), (128, 1000)), b"\0\1")

NUMBERS = st.integers(0, (1 << 64) - 1)


@given(
    st.binary(min_size=16, max_size=16),
    st.sampled_from([b"", bytes(32), bytes(range(32))]),
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=5),
    st.binary(max_size=20),
)
def test_a_ticket_is_read_as_it_was_written(
    token: bytes, secret: bytes, ranges: list[tuple[int, int]], done: bytes
) -> None:
    ticket = Ticket(KEY, token, secret, tuple(ranges), done)
    assert Ticket.decode(ticket.encode()) == ticket


@given(st.binary(max_size=300), st.integers(0, 200), st.integers(0, 255))
def test_junk_is_no_ticket(junk: bytes, place: int, byte: int) -> None:
    good = bytearray(TICKET.encode())
    good[place % len(good)] = byte
    for data in (junk, bytes(good), TICKET.encode() + junk):
        try:
            Ticket.decode(data).check(1000)
        except WireError:
            continue


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_ticket_and_message_part_as_they_were_joined(ticket: bytes, message: bytes) -> None:
    assert parted(joined(ticket, message)) == (ticket, message)


@given(st.binary(max_size=40))
def test_junk_parts_into_what_is_there(junk: bytes) -> None:
    ticket, message = parted(junk)
    assert junk[4:] == ticket + message


def test_a_ticket_does_not_show_its_key() -> None:
    assert "secret" not in repr(TICKET)


@pytest.mark.parametrize(
    "ranges", [((0, 2000),), ((10, 5),), ((64, 128), (0, 64)), ((5, 5),), ((0, 64), (32, 96))]
)
def test_ranges_ascend_within_the_payload(ranges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(WireError, match="range"):
        Ticket(KEY, bytes(16), b"", ranges, b"\0").check(1000)


@given(st.binary(max_size=40) | st.binary(min_size=26, max_size=26))
def test_junk_is_no_head(junk: bytes) -> None:
    try:
        head = unpack_head(junk)
    except WireError:
        return
    assert pack_head(head.kind, head.token, head.index, head.size) == junk


def test_nonces_differ() -> None:
    assert len({nonce(i) for i in (0, 1, 255, 256, 2**32 - 1)}) == 5
    assert {len(nonce(i)) for i in (0, 2**32 - 1)} == {12}


def test_every_kind_has_a_head() -> None:
    for kind in FrameKind:
        assert unpack_head(pack_head(kind, bytes(16), 7, 9)) == Head(kind, bytes(16), 7, 9)


def test_a_link_is_shared_first_come_first_served() -> None:
    pacer = Pacer(LinkShape(bandwidth_bps=8e6, latency_s=0.5))
    assert pacer.arrival(1_000_000, 10.0) == pytest.approx(11.5)
    assert pacer.arrival(1_000_000, 10.0) == pytest.approx(12.5)
    assert pacer.arrival(1_000_000, 20.0) == pytest.approx(21.5)
    assert Pacer(LinkShape()).arrival(1 << 30, 5.0) == 5.0
