from __future__ import annotations

import errno
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aats.errors import LocalError
from aats.ids import CustodyKey, NodeId, new_packet_id
from aats.node.events import CustodyRow, PacketReceived, TransferFailed
from aats.packet import UNLIMITED, Architecture, Header, Mandate, Owner, PacketKind, Plugin
from aats.payload import Manifest, Payload, pack
from aats.spool import CHUNK_BYTES, Progress, plan
from aats.store import NodeStore
from aats.transport import bulk, reception
from aats.transport.base import BulkEvent, Notice, ReceptionFailed, TicketReady
from aats.transport.bulk import BulkLane
from aats.transport.hub import Hub
from aats.transport.keys import Directory, Endpoint
from aats.transport.reception import Receiver
from aats.transport.sending import WINDOW_CHUNKS, Sender
from aats.transport.shape import LinkShape
from aats.transport.ticket import (
    HEAD_BYTES,
    TAG_BYTES,
    FrameKind,
    Ticket,
    cipher,
    nonce,
    pack_head,
    unpack_head,
)

ANY = "tcp://127.0.0.1:0"
PATIENCE_S = 10


class Node:
    """A store, a bulk lane, and the events of both in a queue."""

    def __init__(self, world: World, name: str, **options: object) -> None:
        self.name, self.world = NodeId(name), world
        self.store = NodeStore(world.root / name, quota_bytes=options.pop("quota_bytes", None))  # type: ignore[arg-type]
        self.events: queue.Queue[BulkEvent] = queue.Queue()
        self.lane = BulkLane(
            self.name, ANY, world.directory, self.store, self._on_event, hub=world.hub,
            **{"encrypt": world.encrypt, **options},  # type: ignore[arg-type]
        )  # fmt: skip
        self.lane.start()
        world.directory.add(Endpoint(self.name, bulk=self.lane.address))

    def _on_event(self, event: BulkEvent) -> None:
        if isinstance(event, TicketReady):
            self.world.carry(self.name, event)
        else:
            self.events.put(event)

    def next(self) -> BulkEvent:
        return self.events.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self.lane.close()
        self.store.close()


class World:
    """Nodes in one process; tickets are carried by hand, so a test may look into them."""

    def __init__(self, root: Path, *, encrypt: bool) -> None:
        self.root, self.encrypt = root, encrypt
        self.hub, self.directory = Hub(), Directory()
        self.nodes: dict[NodeId, Node] = {}
        self.tickets: list[Ticket] = []
        self.tamper: Callable[[Ticket], Ticket] = lambda ticket: ticket
        self.loses_tickets = False

    def node(self, name: str, **options: object) -> Node:
        node = self.nodes[NodeId(name)] = Node(self, name, **options)
        return node

    def carry(self, sender: NodeId, event: TicketReady) -> None:
        ticket = self.tamper(Ticket.decode(event.data))
        self.tickets.append(ticket)
        if not self.loses_tickets:
            self.nodes[event.to].lane.take_ticket(sender, ticket.encode())

    def lose_accept(self, source: Node, target: Node, payload: Payload, key: CustodyKey) -> None:
        """An offer is accepted, and its sender does not learn of it: nobody has the packet."""
        self.loses_tickets = True
        target.lane.expect(source.name, key.next(), payload.manifest)
        self.hub.thread.call_and_wait(lambda: None)
        self.loses_tickets = False
        assert target.events.empty(), "received, and the sender knows nothing of it"

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        self.hub.close()


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    found = World(tmp_path, encrypt=request.param)
    yield found
    found.close()


def tensors(seed: int, **sizes: int) -> Payload:
    """A payload of f32 tensors `model.<name>` with so many items each."""
    rng = np.random.default_rng(seed)
    return pack({f"model.{n}": rng.standard_normal(k, np.float32) for n, k in sizes.items()})


def key_of(seed: int, hop: int = 0) -> CustodyKey:
    return CustodyKey(new_packet_id(seed, random.Random(seed)), hop)


def row_of(key: CustodyKey, manifest: Manifest) -> CustodyRow:
    mandate = Mandate(
        key.packet, PacketKind.TRAIN, Owner(NodeId("a"), bytes(32)), 0.0, 1.0, (), UNLIMITED,
        Architecture("mlp"), Plugin("noop"), Plugin("random"), 0,
    )  # fmt: skip
    return CustodyRow(key, "held", Header(mandate, hop=key.hop, manifest=manifest))


def hop(source: Node, target: Node, payload: Payload, key: CustodyKey) -> PacketReceived:
    """Move a payload and save it at the target; return what the target was told."""
    if key not in [row.key for row in source.store.rows()]:
        source.store.submit(key, payload)
        source.store.save(row_of(key, payload.manifest))
    target.lane.expect(source.name, key.next(), payload.manifest)
    source.lane.send(target.name, key.next(), key, payload.manifest)
    event = target.next()
    assert isinstance(event, PacketReceived), event
    target.store.save(row_of(key.next(), payload.manifest))
    found = target.store.payload(key.next())
    found.verify()
    for spec in payload.manifest.tensors:
        assert bytes(found.bytes_of(spec)) == bytes(payload.bytes_of(spec))
    return event


@pytest.mark.parametrize(
    "sizes",
    [
        {"w": 10},
        {"w": 1, "empty": 0, "b": 3},
        {"w": CHUNK_BYTES // 4},
        {"w": CHUNK_BYTES // 4 + 1},
        {"w": 3 * CHUNK_BYTES // 4 - 16, "b": 5, "v": CHUNK_BYTES},
        {f"t{i}": 1000 + i for i in range(700)},
    ],
    ids=["small", "empty-tensor", "one-chunk", "one-more", "many-chunks", "many-tensors"],
)
def test_a_payload_arrives_as_it_was(world: World, sizes: dict[str, int]) -> None:
    a, b = world.node("a"), world.node("b")
    payload = tensors(1, **sizes)
    event = hop(a, b, payload, key_of(1))
    assert payload.manifest.total <= event.wire_bytes <= payload.manifest.total * 1.01 + 400


def test_a_payload_without_tensors_travels_on_a_word(world: World) -> None:
    hop(world.node("a"), world.node("b"), Payload(), key_of(1))


@pytest.mark.parametrize("why", ["empty", "another has it", "it came before"])
def test_nobody_has_a_packet_before_its_sender_begins_to_send(world: World, why: str) -> None:
    a, b = world.node("a"), world.node("b")
    payload, key = Payload() if why == "empty" else tensors(1, w=10), key_of(2)
    a.store.submit(key, payload)
    a.store.save(row_of(key, payload.manifest))
    if why == "another has it":
        hop(a, b, payload, key_of(1))
    elif why == "it came before":
        b.lane.expect(a.name, key.next(), payload.manifest)
        a.lane.send(b.name, key.next(), key, payload.manifest)
        assert isinstance(b.next(), PacketReceived)
        a.lane.cancel(key.next())
    for _ in range(2):
        world.lose_accept(a, b, payload, key)
    hop(a, b, payload, key)
    assert a.events.empty()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_lost_only_what_was_sent_is_received(world: World, seed: int) -> None:
    rng = random.Random(f"lost accepts/{seed}")
    nodes = [world.node(name) for name in "abc"]
    payloads = [Payload(), tensors(1, w=10), tensors(2, w=CHUNK_BYTES // 2)]
    for trip in range(8):
        source, target = rng.sample(nodes, 2)
        payload, key = rng.choice(payloads), key_of(trip)
        source.store.submit(key, payload)
        source.store.save(row_of(key, payload.manifest))
        for _ in range(rng.randint(0, 3)):
            world.lose_accept(source, target, payload, key)
            if rng.random() < 0.5:
                target.lane.cancel(key.next())
        if rng.random() < 0.8:  # else the sender gives up
            hop(source, target, payload, key)


def test_only_what_the_receiver_lacks_travels(world: World) -> None:
    a, b = world.node("a"), world.node("b")
    sizes = {"body": CHUNK_BYTES, "norm": 64, "head": 3000, "bias": 10}
    first = tensors(1, **sizes)
    hop(a, b, first, key_of(1))
    arrays = first.arrays()
    changed = pack({**arrays, "model.head": arrays["model.head"] + np.float32(1)})
    event = hop(a, b, changed, key_of(2))
    ticket = len(world.tickets[-1].encode())
    tag = TAG_BYTES if world.encrypt else 0
    assert event.wire_bytes == 4 * 3000 + HEAD_BYTES + tag + ticket
    again = hop(a, b, changed, key_of(3))
    assert again.wire_bytes == len(world.tickets[-1].encode()) + HEAD_BYTES


def test_many_small_changes_share_a_chunk(world: World) -> None:
    a, b = world.node("a"), world.node("b")
    first = tensors(1, **{f"t{i}": 500 for i in range(400)})
    hop(a, b, first, key_of(1))
    changed = pack(
        {n: x + np.float32(1) if i % 2 else x for i, (n, x) in enumerate(first.arrays().items())}
    )
    hop(a, b, changed, key_of(2))
    assert len(world.tickets[-1].ranges) == 200
    assert len(world.tickets[-1].done) == 1


def test_transfers_at_the_same_time_do_not_mix(world: World) -> None:
    a, b, c = (world.node(name) for name in "abc")
    payloads = {key_of(i): tensors(i, w=CHUNK_BYTES + i) for i in range(4)}
    for i, (key, payload) in enumerate(payloads.items()):
        source = (a, c)[i % 2]
        source.store.submit(key, payload)
        b.lane.expect(source.name, key.next(), payload.manifest)
        source.lane.send(b.name, key.next(), key, payload.manifest)
    for _ in payloads:
        event = b.next()
        assert isinstance(event, PacketReceived), event
        key = replace(event.key, hop=0)
        b.store.save(row_of(event.key, payloads[key].manifest))
        assert bytes(b.store.payload(event.key).arena) == bytes(payloads[key].arena)


class Gate:
    """Lets a store's `incoming` deliver so many chunks, then breaks the transfer."""

    def __init__(self, lane: BulkLane, key: CustodyKey, after: int) -> None:
        self.lane, self.key, self.left = lane, key, after
        self.broken = threading.Event()

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.lane._forget(self.key)
            self.broken.set()


def test_a_broken_transfer_resumes_with_what_is_missing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = world.node("a"), world.node("b")
    payload, key = tensors(1, v=7, w=5 * CHUNK_BYTES // 2), key_of(1)
    gate = Gate(b.lane, key.next(), 6)
    place = Receiver._place

    def counted(receiver: Receiver, *args: object) -> None:
        place(receiver, *args)  # type: ignore[arg-type]
        gate()

    monkeypatch.setattr(Receiver, "_place", counted)
    a.store.submit(key, payload)
    a.store.save(row_of(key, payload.manifest))
    b.lane.expect(a.name, key.next(), payload.manifest)
    a.lane.send(b.name, key.next(), key, payload.manifest)
    assert gate.broken.wait(PATIENCE_S)
    failed = a.next()
    assert failed == TransferFailed(key.next(), b.name, "unknown transfer", True)
    event = hop(a, b, payload, key)
    resent = event.wire_bytes - (payload.manifest.total - 6 * CHUNK_BYTES)
    assert resent < 1000


def test_an_offer_repeated_while_it_runs_changes_nothing(world: World) -> None:
    a = world.node("a", shaping=lambda peer: LinkShape(200e6, 0.0))
    b = world.node("b")
    payload, key = tensors(1, w=2 * CHUNK_BYTES), key_of(1)
    a.store.submit(key, payload)
    for _ in range(3):
        b.lane.expect(a.name, key.next(), payload.manifest)
        a.lane.send(b.name, key.next(), key, payload.manifest)
    event = b.next()
    assert isinstance(event, PacketReceived), event
    tickets = sum(len(t.encode()) for t in world.tickets)
    tags = len(world.tickets[0].done) * (HEAD_BYTES + (TAG_BYTES if world.encrypt else 0))
    assert event.wire_bytes == payload.manifest.total + tickets + tags
    assert len({t.token for t in world.tickets}) == 1


def test_wrong_bytes_are_refused_and_not_kept(world: World) -> None:
    a, b = world.node("a"), world.node("b")
    payload, key = tensors(1, v=9, w=2 * CHUNK_BYTES), key_of(1)
    specs = payload.manifest.tensors
    wrong = Manifest((specs[0], specs[1]._replace(digest=bytes(32))), payload.manifest.total)
    a.store.submit(key, Payload(wrong, payload.arena))
    b.lane.expect(a.name, key.next(), wrong)
    a.lane.send(b.name, key.next(), key, wrong)
    refused, failed = b.next(), a.next()
    assert isinstance(refused, ReceptionFailed)
    assert "model.w" in refused.reason
    assert isinstance(failed, TransferFailed)
    assert "model.w" in failed.reason
    assert not list(b.store.spool.glob("*.pro*"))
    hop(a, b, payload, key_of(2))


def test_a_payload_that_is_not_the_one_offered_is_not_sent(world: World) -> None:
    a, b = world.node("a"), world.node("b")
    payload, key = tensors(1, w=10), key_of(1)
    a.store.submit(key, payload)
    a.lane.send(b.name, key.next(), key, tensors(2, w=10).manifest)
    assert isinstance(a.next(), TransferFailed)
    a.lane.send(b.name, key.next(), key_of(3), payload.manifest)
    assert isinstance(a.next(), TransferFailed)


def test_no_room_is_said_before_anything_is_allocated(world: World) -> None:
    a, b = world.node("a"), world.node("b", quota_bytes=1000)
    payload, key = tensors(1, w=1000), key_of(1)
    b.lane.expect(a.name, key.next(), payload.manifest)
    event = b.next()
    assert isinstance(event, ReceptionFailed)
    assert "1000 bytes are in use" in event.reason
    assert not list(b.store.spool.iterdir())


def test_no_room_to_note_what_has_come_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = world.node("a"), world.node("b")
    payload, key = tensors(1, w=CHUNK_BYTES), key_of(1)

    def create(*_: object) -> Progress:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Progress, "create", create)
        b.lane.expect(a.name, key.next(), payload.manifest)
        event = b.next()
    assert isinstance(event, ReceptionFailed)
    assert "No space left" in event.reason
    # The sender learns of it as soon as it begins; its core then offers the packet again.
    a.store.submit(key, payload)
    a.store.save(row_of(key, payload.manifest))
    a.lane.send(b.name, key.next(), key, payload.manifest)
    assert isinstance(a.next(), TransferFailed)
    assert isinstance(b.next(), Notice)
    hop(a, b, payload, key)


def test_tampering_on_the_way_is_noticed(tmp_path: Path) -> None:
    world = World(tmp_path, encrypt=True)
    world.tamper = lambda ticket: replace(ticket, secret=bytes(32))
    a, b = world.node("a"), world.node("b")
    payload, key = tensors(1, w=1000), key_of(1)
    a.store.submit(key, payload)
    b.lane.expect(a.name, key.next(), payload.manifest)
    a.lane.send(b.name, key.next(), key, payload.manifest)
    event = b.next()
    assert isinstance(event, ReceptionFailed)
    assert "tampered" in event.reason
    world.close()


def test_a_node_that_encrypts_sends_nothing_in_the_clear(tmp_path: Path) -> None:
    world = World(tmp_path, encrypt=True)
    a, b = world.node("a"), world.node("b", encrypt=False)
    payload, key = tensors(1, w=1000), key_of(1)
    a.store.submit(key, payload)
    b.lane.expect(a.name, key.next(), payload.manifest)
    a.lane.send(b.name, key.next(), key, payload.manifest)
    event = a.next()
    assert isinstance(event, TransferFailed)
    assert "encrypts" in event.reason
    world.close()


@pytest.mark.parametrize(
    "ranges",
    [((0, (1 << 64) - 1),), ((8, 4),), ((64, 128), (0, 32))],
    ids=["outside", "back", "order"],
)
def test_a_ticket_that_asks_for_what_is_not_there_is_refused(
    world: World, ranges: tuple[tuple[int, int], ...]
) -> None:
    world.tamper = lambda ticket: replace(ticket, ranges=ranges)
    a, b = world.node("a"), world.node("b")
    payload, key = tensors(1, w=1000), key_of(1)
    a.store.submit(key, payload)
    b.lane.expect(a.name, key.next(), payload.manifest)
    a.lane.send(b.name, key.next(), key, payload.manifest)
    event = a.next()
    assert isinstance(event, TransferFailed)
    assert not event.began


def dialled(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    stranger = socket.create_connection((host, int(port)), PATIENCE_S)
    stranger.settimeout(PATIENCE_S)
    return stranger


def is_cut_off(stranger: socket.socket) -> bool:
    try:
        return stranger.recv(1) == b""
    except ConnectionResetError:
        return True


GUESS = bytes(16)
HOSTILE = [
    b"x" * HEAD_BYTES,
    b"\x16\x03\x01" + bytes(300),
    pack_head(FrameKind.CHUNK, GUESS),
    pack_head(FrameKind.CHUNK, GUESS, 0, 100) + b"data",
    pack_head(FrameKind.CHUNK, GUESS, 0, 2 * CHUNK_BYTES),
    pack_head(FrameKind.CREDIT, GUESS),
    pack_head(FrameKind.READY, GUESS),
]


@pytest.mark.parametrize("data", HOSTILE)
def test_a_stranger_at_the_bulk_port_is_cut_off(world: World, data: bytes) -> None:
    b = world.node("b")
    with dialled(b.lane.address) as stranger:
        stranger.sendall(data)
        assert isinstance(b.next(), Notice)
        assert is_cut_off(stranger)
    hop(world.node("a"), b, tensors(1, w=10), key_of(1))


def test_a_stranger_that_says_nothing_is_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "SILENCE_S", 0.05)
    with dialled(world.node("b").lane.address) as stranger:
        assert is_cut_off(stranger)


def test_many_strangers_do_not_keep_a_sender_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "CONNECTIONS_KEPT", 4)
    a, b = world.node("a"), world.node("b")
    hop(a, b, tensors(1, w=10), key_of(1))
    strangers = [dialled(b.lane.address) for _ in range(12)]
    hop(a, b, tensors(2, w=10), key_of(2))
    assert is_cut_off(strangers[0])
    for stranger in strangers:
        stranger.close()


def expected(world: World, num_items: int) -> tuple[Node, Payload, CustodyKey, Ticket]:
    """A receiver that waits for a payload, and the ticket it gave out."""
    b = world.node("b")
    world.node("a")
    payload, key = tensors(1, w=num_items), key_of(1)
    b.lane.expect(NodeId("a"), key.next(), payload.manifest)
    world.hub.thread.call_and_wait(lambda: None)
    return b, payload, key.next(), world.tickets[0]


def frame(ticket: Ticket, payload: Payload, index: int) -> bytes:
    """A chunk as it travels."""
    ((start, end),) = plan(ticket.ranges)[index]
    data = bytes(payload.arena[start:end])
    found = cipher(ticket.secret)
    sealed = data if found is None else found.encrypt(nonce(index), data, ticket.token)
    return pack_head(FrameKind.CHUNK, ticket.token, index, len(sealed)) + sealed


def test_a_sender_that_dials_anew_takes_over_and_the_old_one_writes_no_more(world: World) -> None:
    b, payload, key, ticket = expected(world, CHUNK_BYTES // 2)
    chunk = frame(ticket, payload, 0)
    with dialled(b.lane.address) as old, dialled(b.lane.address) as new:
        old.sendall(chunk[: len(chunk) // 2])
        while not b.lane._receiver._receptions[ticket.token].filling:  # type: ignore[union-attr]
            world.hub.thread.call_and_wait(lambda: None)
        new.sendall(chunk)
        assert new.recv(HEAD_BYTES) == pack_head(FrameKind.CREDIT, ticket.token)
        assert is_cut_off(old)
        new.sendall(chunk + frame(ticket, payload, 1))
        event = b.next()
    assert isinstance(event, PacketReceived), event
    b.store.save(row_of(key, payload.manifest))
    b.store.payload(key).verify()


def test_a_forgotten_transfer_writes_no_more(world: World) -> None:
    b, payload, key, ticket = expected(world, CHUNK_BYTES // 2)
    chunk = frame(ticket, payload, 0)
    with dialled(b.lane.address) as sender:
        sender.sendall(chunk[: len(chunk) // 2])
        while not b.lane._receiver._receptions[ticket.token].filling:  # type: ignore[union-attr]
            world.hub.thread.call_and_wait(lambda: None)
        part = b.store.incoming(key, payload.manifest)
        b.lane.cancel(key)
        world.hub.thread.call_and_wait(lambda: None)
        assert part.arena is not None
        before = bytes(part.arena.view(payload.manifest.total))
        sender.sendall(chunk[len(chunk) // 2 :])
        assert unpack_head(sender.recv(HEAD_BYTES)).kind is FrameKind.REFUSED
        assert bytes(part.arena.view(payload.manifest.total)) == before
    assert b.events.empty()


def test_a_sender_that_sends_nothing_of_what_lacks_gets_nowhere(world: World) -> None:
    b, _, _, ticket = expected(world, 1000)
    with dialled(b.lane.address) as sender:
        sender.sendall(pack_head(FrameKind.READY, ticket.token))
        assert unpack_head(sender.recv(HEAD_BYTES)).kind is FrameKind.CREDIT
    assert b.events.empty()


def test_a_chunk_of_the_wrong_size_ends_the_transfer(world: World) -> None:
    b, _, _, ticket = expected(world, 1000)
    with dialled(b.lane.address) as sender:
        sender.sendall(pack_head(FrameKind.CHUNK, ticket.token, 0, 5) + b"short")
        event = b.next()
    assert isinstance(event, ReceptionFailed)
    assert "the plan says" in event.reason


def test_a_connection_that_breaks_fails_its_transfers_at_once(world: World) -> None:
    a = world.node("a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        port = server.getsockname()[1]
        world.directory.add(Endpoint(NodeId("b"), bulk=f"tcp://127.0.0.1:{port}"))
        payload, key = tensors(1, w=1000), key_of(1)
        a.store.submit(key, payload)
        a.lane.send(NodeId("b"), key.next(), key, payload.manifest)
        ticket = Ticket(key.next(), bytes(16), b"k" * 32, ((0, 4000),), bytes(1))
        a.lane.take_ticket(NodeId("b"), ticket.encode())
        server.accept()[0].close()
        event = a.next()
    assert isinstance(event, TransferFailed)
    assert "connection to b" in event.reason


def test_unix_sockets_serve_as_well(tmp_path: Path) -> None:
    world = World(tmp_path, encrypt=False)
    store = NodeStore(tmp_path / "c")
    lane = BulkLane(
        NodeId("c"), f"ipc://{tmp_path}/s", world.directory, store, lambda event: None,
        hub=world.hub,
    )  # fmt: skip
    lane.start()
    assert (tmp_path / "s").is_socket()
    lane.close()
    assert not (tmp_path / "s").exists()
    store.close()
    world.close()


def test_what_falls_silent_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "SILENCE_S", 0.05)
    a, b = world.node("a"), world.node("b")
    payload, key = tensors(1, w=1000), key_of(1)
    a.store.submit(key, payload)
    a.lane.send(b.name, key.next(), key, payload.manifest)
    event = a.next()
    assert isinstance(event, TransferFailed)
    assert not event.began
    b.lane.expect(a.name, key.next(), payload.manifest)
    assert isinstance(b.next(), ReceptionFailed)


def test_a_cancelled_transfer_is_silent(world: World) -> None:
    a, b = world.node("a"), world.node("b")
    payload, key = tensors(1, w=1000), key_of(1)
    a.store.submit(key, payload)
    a.lane.send(b.name, key.next(), key, payload.manifest)
    a.lane.cancel(key.next())
    b.lane.expect(a.name, key.next(), payload.manifest)
    b.lane.cancel(key.next())
    world.hub.thread.call_and_wait(lambda: None)
    assert a.events.empty()
    assert b.events.empty()
    a.lane.cancel(key.next())
    hop(a, b, payload, key)


def test_a_shaped_link_has_the_bandwidth_it_is_given(world: World) -> None:
    a = world.node("a", shaping=lambda peer: LinkShape(400e6, 0.01))
    b = world.node("b")
    payload = tensors(1, w=CHUNK_BYTES)
    begin = time.monotonic()
    hop(a, b, payload, key_of(1))
    assert time.monotonic() - begin >= payload.manifest.total * 8 / 400e6


def test_an_address_in_use_is_the_callers_mistake_and_named(world: World) -> None:
    a = world.node("a")
    store = NodeStore(world.root / "c")
    lane = BulkLane(
        NodeId("c"), a.lane.address, world.directory, store, lambda event: None, hub=world.hub
    )
    with pytest.raises(LocalError, match=a.lane.address):
        lane.start()
    lane.close()
    store.close()


def test_the_window_bounds_what_is_under_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = world.node("a"), world.node("b")
    most = 0
    push = Sender._push

    def counted(sender: Sender, transfer: object, *args: object) -> None:
        nonlocal most
        push(sender, transfer, *args)  # type: ignore[arg-type]
        most = max(most, len(transfer.under_way))  # type: ignore[attr-defined]

    monkeypatch.setattr(Sender, "_push", counted)
    hop(a, b, tensors(1, w=5 * CHUNK_BYTES // 2), key_of(1))
    assert most == WINDOW_CHUNKS
    assert len(a.lane._sender._buffers) <= 2 * WINDOW_CHUNKS
