from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import zmq

from aats.errors import LocalError
from aats.ids import NodeId
from aats.transport.base import ControlEvent, Incoming, Kind, LinkChanged, Notice
from aats.transport.hub import Hub
from aats.transport.keys import CurveKeys, Directory, Endpoint
from aats.transport.shape import LinkShape
from aats.transport.zmq import QUEUE_MESSAGES, ControlLane
from aats.wire import MAX_MESSAGE_BYTES

pytestmark = pytest.mark.asyncio

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
ANY = "tcp://127.0.0.1:0"


class World:
    """Lanes of several nodes in one process, each knowing the others."""

    def __init__(self, *, secure: bool = True) -> None:
        self.secure = secure
        self.hub = Hub()
        self.directory = Directory()
        self.keys: dict[NodeId, CurveKeys] = {}
        self.lanes: list[ControlLane] = []

    async def lane(self, node: NodeId, bind: str = ANY, **options: object) -> ControlLane:
        keys = self.keys.setdefault(node, CurveKeys.generate()) if self.secure else None
        endpoint = Endpoint(node, curve_key=keys.public if keys else b"")
        self.directory.add(endpoint)
        lane = ControlLane(node, bind, self.directory, keys, hub=self.hub, **options)  # type: ignore[arg-type]
        await lane.start()
        self.directory.add(replace(endpoint, control=lane.address))
        self.lanes.append(lane)
        return lane


@asynccontextmanager
async def world(*, secure: bool = True) -> AsyncIterator[World]:
    found = World(secure=secure)
    try:
        yield found
    finally:
        for lane in found.lanes:
            await lane.close()
        found.hub.close()


async def until(lane: ControlLane, wanted: Callable[[ControlEvent], bool]) -> ControlEvent:
    async with asyncio.timeout(10):
        async for event in lane.events():
            if wanted(event):
                return event
    raise AssertionError("the lane closed")


async def link_up(lane: ControlLane, peer: NodeId) -> None:
    lane.connect(peer)
    await until(lane, lambda e: e == LinkChanged(peer, up=True))


def is_message(event: ControlEvent) -> bool:
    return isinstance(event, Incoming)


@pytest.mark.parametrize("secure", [True, False])
async def test_messages_arrive_in_order_under_their_senders_name(secure: bool) -> None:
    async with world(secure=secure) as w:
        a, b = await w.lane(A), await w.lane(B)
        await link_up(a, B)
        for i in range(100):
            assert a.send(B, f"{i}".encode(), Kind.TICKET if i % 2 else Kind.MESSAGE)
        for i in range(100):
            got = await until(b, is_message)
            assert got == Incoming(A, Kind.TICKET if i % 2 else Kind.MESSAGE, f"{i}".encode())


async def test_a_send_without_a_link_says_so() -> None:
    async with world() as w:
        a = await w.lane(A)
        assert not a.send(B, b"x")


async def test_a_link_goes_down_and_up_with_its_peer() -> None:
    async with world() as w:
        a, b = await w.lane(A), await w.lane(B)
        await link_up(a, B)
        address = b.address
        await b.close()
        await until(a, lambda e: e == LinkChanged(B, up=False))
        assert not a.send(B, b"x")
        again = await w.lane(B, address)
        await until(a, lambda e: e == LinkChanged(B, up=True))
        assert a.send(B, b"hello again")
        assert await until(again, is_message) == Incoming(A, Kind.MESSAGE, b"hello again")


async def test_a_port_in_use_is_the_callers_mistake_and_named() -> None:
    async with world() as w:
        a = await w.lane(A)
        b = ControlLane(B, a.address, w.directory, CurveKeys.generate(), hub=w.hub)
        with pytest.raises(LocalError, match=a.address):
            await b.start()


async def knock(w: World, to: ControlLane, prepare: Callable[[zmq.Socket[bytes]], None]) -> None:
    """Connect to a lane with a socket of our own making and send on it."""
    with w.hub.context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        prepare(stranger)
        stranger.connect(to.address)
        stranger.send(b"\1let me in")
        got = await until(to, lambda e: isinstance(e, Notice | Incoming))
        assert isinstance(got, Notice), got
        assert got.name in ("control.stranger", "control.spoofed"), got


def with_keys(server: bytes, keys: CurveKeys, name: str = "") -> Callable[..., None]:
    def prepare(sock: zmq.Socket[bytes]) -> None:
        sock.setsockopt(zmq.CURVE_SERVERKEY, server)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        sock.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        if name:
            sock.setsockopt_string(zmq.ROUTING_ID, name)

    return prepare


async def test_a_stranger_without_keys_gets_nowhere() -> None:
    async with world() as w:
        await knock(w, await w.lane(A), lambda sock: None)


async def test_a_stranger_with_keys_nobody_knows_gets_nowhere() -> None:
    async with world() as w:
        a = await w.lane(A)
        await knock(w, a, with_keys(w.keys[A].public, CurveKeys.generate()))


async def test_who_takes_another_server_key_for_ours_gets_nowhere() -> None:
    async with world() as w:
        a, _ = await w.lane(A), await w.lane(B)
        await knock(w, a, with_keys(w.keys[B].public, w.keys[B]))


async def test_a_known_peer_cannot_speak_as_another() -> None:
    async with world() as w:
        a, _, _ = await w.lane(A), await w.lane(B), await w.lane(C)
        await knock(w, a, with_keys(w.keys[A].public, w.keys[B], name="c"))


async def test_a_known_peer_is_who_its_key_says() -> None:
    async with world() as w:
        a, _ = await w.lane(A), await w.lane(B)
        with w.hub.context.socket(zmq.DEALER) as sock:
            sock.setsockopt(zmq.LINGER, 0)
            with_keys(w.keys[A].public, w.keys[B], name="b")(sock)
            sock.connect(a.address)
            sock.send(b"\1hello")
            assert await until(a, is_message) == Incoming(B, Kind.MESSAGE, b"hello")


async def test_without_encryption_only_names_of_the_directory_are_heard() -> None:
    async with world(secure=False) as w:
        a = await w.lane(A)
        await knock(w, a, lambda sock: sock.setsockopt_string(zmq.ROUTING_ID, "nobody"))


@pytest.mark.parametrize("frames", [[b""], [b"\0old version"], [b"\1", b"two"], [b"\xff" * 100]])
async def test_a_malformed_message_is_dropped_with_a_notice(frames: list[bytes]) -> None:
    async with world(secure=False) as w:
        a, b = await w.lane(A), await w.lane(B)
        with w.hub.context.socket(zmq.DEALER) as sock:
            sock.setsockopt(zmq.LINGER, 0)
            sock.setsockopt_string(zmq.ROUTING_ID, "b")
            sock.connect(a.address)
            sock.send_multipart(frames)
            got = await until(a, lambda e: isinstance(e, Notice))
            assert isinstance(got, Notice)
            assert got.name == "control.malformed"
        await link_up(b, A)
        assert b.send(A, b"still well")
        assert await until(a, is_message) == Incoming(B, Kind.MESSAGE, b"still well")


async def test_an_oversize_message_is_refused_here_and_cut_off_there() -> None:
    async with world(secure=False) as w:
        a, b = await w.lane(A), await w.lane(B)
        await link_up(b, A)
        assert not b.send(A, bytes(MAX_MESSAGE_BYTES + 1))
        assert b.send(A, bytes(MAX_MESSAGE_BYTES))
        got = await until(a, is_message)
        assert isinstance(got, Incoming)
        assert len(got.data) == MAX_MESSAGE_BYTES
        with w.hub.context.socket(zmq.DEALER) as sock:
            sock.setsockopt(zmq.LINGER, 0)
            sock.setsockopt_string(zmq.ROUTING_ID, "b")
            monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            sock.connect(a.address)
            sock.send(bytes(MAX_MESSAGE_BYTES + 100))
            assert await asyncio.to_thread(monitor.poll, 10_000)
            sock.disable_monitor()
            monitor.close()


async def test_a_neighbour_that_comes_to_know_us_later_lets_us_in() -> None:
    async with world() as w:
        b = await w.lane(B)
        stranger = Directory(w.directory)
        keys = CurveKeys.generate()
        a = ControlLane(A, ANY, stranger, keys, [B], hub=w.hub)
        w.lanes.append(a)
        await a.start()
        await until(a, lambda e: isinstance(e, Notice) and e.name == "control.denied")
        w.directory.add(Endpoint(A, a.address, curve_key=keys.public))
        await until(a, lambda e: e == LinkChanged(B, up=True))
        assert a.send(B, b"at last")
        assert await until(b, is_message) == Incoming(A, Kind.MESSAGE, b"at last")


async def test_a_full_queue_drops_and_says_so() -> None:
    async with world() as w:
        a = await w.lane(A, shaping=lambda peer: LinkShape(latency_s=60.0))
        await w.lane(B)
        await link_up(a, B)
        sent = [a.send(B, b"x") for _ in range(QUEUE_MESSAGES + 5)]
        assert sent == [True] * QUEUE_MESSAGES + [False] * 5


async def test_latency_delays_and_keeps_order() -> None:
    async with world() as w:
        a = await w.lane(A, shaping=lambda peer: LinkShape(1e6, 0.02))
        b = await w.lane(B)
        await link_up(a, B)
        started = asyncio.get_running_loop().time()
        for i in range(20):
            assert a.send(B, bytes([i]))
        for i in range(20):
            got = await until(b, is_message)
            assert got == Incoming(A, Kind.MESSAGE, bytes([i]))
        assert asyncio.get_running_loop().time() - started >= 0.02


async def test_events_end_with_the_lane() -> None:
    async with world() as w:
        a = await w.lane(A)
        reader: Awaitable[list[ControlEvent]] = asyncio.ensure_future(_all(a))
        await asyncio.sleep(0)
        await a.close()
        assert await asyncio.wait_for(reader, 5) == []


async def _all(lane: ControlLane) -> list[ControlEvent]:
    return [event async for event in lane.events()]
