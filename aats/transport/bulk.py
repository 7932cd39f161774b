"""The bulk lane: a payload's chunks from one store's mapping into another's, over ZeroMQ.

    receiver                         sender
    expect: part file, ticket  ----->  take_ticket        (control lane, encrypted)
                               <-----  CHUNK 0..3         (bulk lane: ROUTER <- DEALER)
    CREDIT as each is in place ----->  CHUNK 4, 5, ...
    DONE, all digests hold     ----->  transfer forgotten

Chunks leave the sender's mapping without a copy and go from the received frame straight into
the part's mapping: copied, or decrypted, which replaces the copy. At most `WINDOW_CHUNKS` of a
transfer are under way, which bounds memory at both ends. The receiver knows the plan, so the
last chunk is the end; nothing else says so.

A transfer that breaks leaves its part file; the next offer's ticket names what is still
missing. A stranger at the bulk port has no token, and what it says is dropped.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_bytes

import numpy as np
import zmq
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aats.errors import AatsError, LocalError, WireError
from aats.ids import CustodyKey, NodeId
from aats.node.events import PacketReceived, TransferFailed
from aats.payload import Manifest, Payload
from aats.spool import CHUNK_BYTES, Bytes, Chunk, Part, plan, size_of
from aats.store import NodeStore
from aats.transport.base import BulkCallback, BulkEvent, Notice, ReceptionFailed, TicketReady
from aats.transport.hub import Hub
from aats.transport.keys import Directory
from aats.transport.shape import Pacer, Shaping
from aats.transport.ticket import (
    HEAD_BYTES,
    KEY_BYTES,
    TAG_BYTES,
    TOKEN_BYTES,
    FrameKind,
    Ticket,
    cipher,
    nonce,
    pack_head,
    unpack_head,
)

WINDOW_CHUNKS = 4
"""Chunks of one transfer under way: 8 MiB, enough for 1 Gbit/s at 60 ms."""
SILENCE_S = 30.0
"""A transfer without progress for so long has failed. One chunk takes 17 s at 1 Mbit/s."""
TICKETS_KEPT = 256
"""Tickets that came before the core said to send."""
DEALERS_KEPT = 64
"""Connections kept open to receivers, the latest used."""
_TURN = 16
"""Frames taken from a socket before others get their turn."""


@dataclass(slots=True)
class _Reception:
    sender: NodeId
    key: CustodyKey
    part: Part
    ticket: Ticket
    cipher: AESGCM | None
    wire_bytes: int
    done: bytearray
    heard: float


@dataclass(slots=True)
class _Transfer:
    to: NodeId
    key: CustodyKey
    payload: Payload
    heard: float
    token: bytes = b""
    cipher: AESGCM | None = None
    chunks: tuple[Chunk, ...] = ()
    waiting: list[int] = field(default_factory=list)
    """Indices still to send, last first."""
    under_way: dict[int, Bytes | None] = field(default_factory=dict)
    """Chunk index -> the buffer it was encrypted or gathered in, to be used again."""
    began: bool = False


class BulkLane:
    """One node's transfers, in and out.

    Args:
        node: This node.
        bind: Address to listen at, e.g. "tcp://127.0.0.1:0" (port 0: any free one).
        directory: Bulk addresses of the others.
        store: Where payloads are and go.
        on_event: Called with every `BulkEvent`, on the bulk thread; must not block.
        encrypt: AES-256-GCM on every chunk; False for a network where all links are trusted.
        hub: Shared with other nodes of this process; an own one if None.
        shaping: Bandwidth and latency to imitate on outgoing links.
    """

    def __init__(
        self,
        node: NodeId,
        bind: str,
        directory: Directory,
        store: NodeStore,
        on_event: BulkCallback,
        *,
        encrypt: bool = True,
        hub: Hub | None = None,
        shaping: Shaping | None = None,
    ) -> None:
        self.node, self.address = node, bind
        self._directory, self._store, self._on_event = directory, store, on_event
        self._encrypt, self._shaping = encrypt, shaping
        self._hub = hub or Hub()
        self._owns_hub = hub is None
        self._thread = self._hub.thread
        self._router: zmq.Socket[bytes] | None = None
        self._dealers: OrderedDict[NodeId, zmq.Socket[bytes]] = OrderedDict()
        self._dialled: dict[NodeId, str] = {}
        self._receptions: dict[bytes, _Reception] = {}
        self._transfers: dict[tuple[NodeId, CustodyKey], _Transfer] = {}
        self._tickets: OrderedDict[tuple[NodeId, CustodyKey], Ticket] = OrderedDict()
        self._pacers: dict[NodeId, Pacer] = {}
        self._buffers: list[Bytes] = []
        self._blocked: dict[NodeId, list[Callable[[], None]]] = {}

    # --- for other threads --------------------------------------------------------------------

    def start(self) -> None:
        """Bind and begin to serve; `address` is then the real one.

        Raises:
            LocalError: Naming the address, if it is in use or cannot be bound.
        """
        router = self._hub.context.socket(zmq.ROUTER)
        _bound(router, rcvhwm=2 * WINDOW_CHUNKS)
        try:
            router.bind(self.address)
        except zmq.ZMQError as error:
            router.close(linger=0)
            raise LocalError(f"bulk lane of {self.node}: {self.address}: {error}") from error
        self.address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._router = router
        self._thread.call(self._serve)

    def expect(
        self, sender: NodeId, key: CustodyKey, manifest: Manifest, overhead_bytes: int = 0
    ) -> None:
        """See `BulkTransport.expect`."""
        self._thread.call(lambda: self._expect(sender, key, manifest, overhead_bytes))

    def take_ticket(self, sender: NodeId, data: bytes) -> None:
        """See `BulkTransport.take_ticket`."""
        self._thread.call(lambda: self._take_ticket(sender, data))

    def send(self, to: NodeId, key: CustodyKey, source: CustodyKey, manifest: Manifest) -> None:
        """See `BulkTransport.send`."""
        self._thread.call(lambda: self._send(to, key, source, manifest))

    def cancel(self, key: CustodyKey) -> None:
        """See `BulkTransport.cancel`."""
        self._thread.call(lambda: self._cancel(key))

    def close(self) -> None:
        """Close every socket; an own hub's thread ends."""
        self._thread.call_and_wait(self._close)
        if self._owns_hub:
            self._hub.close()

    # --- on the bulk thread: receiving --------------------------------------------------------

    def _serve(self) -> None:
        assert self._router is not None
        self._thread.on_readable(self._router, self._take_chunks)
        self._thread.at(time.monotonic() + SILENCE_S / 4, self._sweep)

    def _expect(self, sender: NodeId, key: CustodyKey, manifest: Manifest, overhead: int) -> None:
        live = next(
            (r for r in self._receptions.values() if r.key == key and r.sender == sender), None
        )
        if live is not None and live.part.manifest == manifest:
            self._issue(live)
            return
        self._forget_receptions(key)
        try:
            part = self._store.incoming(key, manifest)
        except (AatsError, OSError) as error:
            self._on_event(ReceptionFailed(sender, key, str(error)))
            return
        chunks = part.chunks if not part.is_complete else ()
        ranges = part.missing if chunks else ()
        secret = token_bytes(KEY_BYTES) if self._encrypt else b""
        ticket = Ticket(key, token_bytes(TOKEN_BYTES), secret, ranges, bytes(len(chunks)))
        reception = _Reception(
            sender, key, part, ticket, cipher(secret), overhead, bytearray(len(chunks)),
            time.monotonic(),
        )  # fmt: skip
        self._receptions[ticket.token] = reception
        self._issue(reception)
        if not chunks:
            self._finish(reception, b"")

    def _issue(self, reception: _Reception) -> None:
        """Hand out the ticket, for the first time or once more to a sender that forgot it."""
        ticket = reception.ticket
        fresh = Ticket(
            ticket.key, ticket.token, ticket.secret, ticket.ranges, bytes(reception.done)
        )
        data = fresh.encode()
        reception.wire_bytes += len(data)
        self._on_event(TicketReady(reception.sender, reception.key, data))

    def _take_chunks(self) -> None:
        assert self._router is not None
        for _ in range(_TURN):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._take_chunk(frames)

    def _take_chunk(self, frames: list[zmq.Frame]) -> None:
        peer = frames[0].bytes
        try:
            if len(frames) != 3:
                raise WireError(f"bulk message of {len(frames)} frames, must be 3")
            kind, token, index = unpack_head(frames[1].buffer)
            if kind is not FrameKind.CHUNK:
                raise WireError(f"bulk message of kind {kind.name}, must be CHUNK")
        except WireError as error:
            self._on_event(Notice("bulk.malformed", {"reason": str(error)}))
            return
        reception = self._receptions.get(token)
        if reception is None:
            self._reply(peer, FrameKind.REFUSED, token, index, b"unknown transfer")
            return
        try:
            self._place(reception, index, np.frombuffer(frames[2].buffer, np.uint8))
        except WireError as error:
            self._spoil(reception, peer, str(error))
            return
        reception.wire_bytes += HEAD_BYTES + len(frames[2])
        reception.heard = time.monotonic()
        if reception.part.num_waiting:
            self._reply(peer, FrameKind.CREDIT, token, index)
        else:
            self._finish(reception, peer)

    def _place(self, reception: _Reception, index: int, data: Bytes) -> None:
        """Put one chunk where it belongs.

        Raises:
            WireError: If it does not fit the plan, was tampered with, or makes a tensor wrong.
        """
        part = reception.part
        if index >= len(part.chunks):
            raise WireError(f"chunk {index}, the plan has {len(part.chunks)}")
        size = size_of(part.chunks[index])
        if len(data) != size + (TAG_BYTES if reception.cipher else 0):
            raise WireError(f"chunk {index}: {len(data)} bytes, the plan says {size}")
        if not part.wants(index):
            return
        slot = part.slot(index)
        if reception.cipher is None:
            part.write(index, data)
        elif slot is None:
            part.write(index, self._decrypted(reception, index, data, np.empty(size, np.uint8)))
        else:
            self._decrypted(reception, index, data, slot)
            part.wrote(index)
        reception.done[index] = 1

    @staticmethod
    def _decrypted(reception: _Reception, index: int, data: Bytes, into: Bytes) -> Bytes:
        assert reception.cipher is not None
        try:
            reception.cipher.decrypt_into(
                nonce(index), data.data, reception.ticket.token, into.data
            )
        except InvalidTag as error:
            raise WireError(f"chunk {index}: tampered with") from error
        return into

    def _finish(self, reception: _Reception, peer: bytes) -> None:
        try:
            if not reception.part.is_complete:
                reception.part.complete()
        except WireError as error:
            self._spoil(reception, peer, str(error))
            return
        del self._receptions[reception.ticket.token]
        if peer:
            self._reply(peer, FrameKind.DONE, reception.ticket.token)
        self._on_event(PacketReceived(reception.sender, reception.key, reception.wire_bytes))

    def _spoil(self, reception: _Reception, peer: bytes, reason: str) -> None:
        """Give up on bytes that are wrong: none of them is kept."""
        del self._receptions[reception.ticket.token]
        reception.part.close()
        self._store.discard(reception.key)
        if peer:
            self._reply(peer, FrameKind.REFUSED, reception.ticket.token, 0, reason.encode()[:500])
        self._on_event(ReceptionFailed(reception.sender, reception.key, reason))

    def _reply(
        self, peer: bytes, kind: FrameKind, token: bytes, index: int = 0, text: bytes = b""
    ) -> None:
        assert self._router is not None
        try:
            self._router.send_multipart([peer, pack_head(kind, token, index), text], zmq.NOBLOCK)
        except zmq.ZMQError:
            return  # the sender is gone; it resumes with its next offer

    # --- on the bulk thread: sending ----------------------------------------------------------

    def _send(self, to: NodeId, key: CustodyKey, source: CustodyKey, manifest: Manifest) -> None:
        if (to, key) in self._transfers:
            return  # offered again while it runs: the ticket tells whether to begin anew
        try:
            payload = self._store.payload(source)
            if payload.manifest != manifest:
                raise LocalError(f"the payload of {source} is not the one offered")
            self._directory.get(to)
        except (KeyError, AatsError) as error:
            self._on_event(TransferFailed(key, to, str(error), False))
            return
        self._transfers[to, key] = _Transfer(to, key, payload, time.monotonic())
        ticket = self._tickets.pop((to, key), None)
        if ticket is not None:
            self._begin(self._transfers[to, key], ticket)

    def _take_ticket(self, sender: NodeId, data: bytes) -> None:
        try:
            ticket = Ticket.decode(data)
        except WireError as error:
            self._on_event(Notice("bulk.malformed", {"peer": sender, "reason": str(error)}))
            return
        transfer = self._transfers.get((sender, ticket.key))
        if transfer is None:
            self._tickets[sender, ticket.key] = ticket
            if len(self._tickets) > TICKETS_KEPT:
                self._tickets.popitem(last=False)
        elif transfer.token != ticket.token:
            self._begin(transfer, ticket)

    def _begin(self, transfer: _Transfer, ticket: Ticket) -> None:
        try:
            ticket.check(transfer.payload.manifest.total)
            if self._encrypt and not ticket.secret:
                raise WireError("ticket: no key, but this node encrypts")
            chunks = plan(ticket.ranges)
            if len(ticket.done) != len(chunks):
                raise WireError(f"ticket: {len(ticket.done)} marks for {len(chunks)} chunks")
        except WireError as error:
            self._fail(transfer, str(error))
            return
        transfer.token, transfer.cipher, transfer.chunks = (
            ticket.token, cipher(ticket.secret), chunks,
        )  # fmt: skip
        transfer.waiting = [i for i in reversed(range(len(chunks))) if not ticket.done[i]]
        transfer.under_way = {}
        transfer.heard = time.monotonic()
        if not transfer.waiting:
            del self._transfers[transfer.to, transfer.key]
            return
        self._pump(transfer)

    def _pump(self, transfer: _Transfer) -> None:
        """Send as much as the window allows."""
        while transfer.waiting and len(transfer.under_way) < WINDOW_CHUNKS:
            index = transfer.waiting.pop()
            transfer.under_way[index] = None
            self._pace(transfer, index)

    def _pace(self, transfer: _Transfer, index: int) -> None:
        if self._shaping is None:
            self._push(transfer, transfer.token, index)
            return
        if transfer.to not in self._pacers:
            self._pacers[transfer.to] = Pacer(self._shaping(transfer.to))
        token, size = transfer.token, size_of(transfer.chunks[index])
        self._thread.at(
            self._pacers[transfer.to].arrival(size, time.monotonic()),
            lambda: self._push(transfer, token, index),
        )

    def _push(self, transfer: _Transfer, token: bytes, index: int) -> None:
        if transfer.token != token or index not in transfer.under_way:
            return
        try:
            dealer = self._dealer(transfer.to)
        except LocalError as error:
            self._fail(transfer, str(error))
            return
        buffer, data = self._sealed(transfer, index)
        transfer.under_way[index] = buffer
        try:
            head = pack_head(FrameKind.CHUNK, token, index)
            dealer.send_multipart([head, data], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._release(buffer)
            transfer.under_way[index] = None
            self._retry(transfer, token, index)
            return
        transfer.began = True
        transfer.heard = time.monotonic()

    def _retry(self, transfer: _Transfer, token: bytes, index: int) -> None:
        """Try again once the connection is there (or has room)."""
        dealer = self._dealer(transfer.to)
        pending = self._blocked.setdefault(transfer.to, [])
        pending.append(lambda: self._push(transfer, token, index))
        self._thread.on_writable(dealer, lambda: self._unblock(transfer.to))

    def _unblock(self, to: NodeId) -> None:
        self._thread.on_writable(self._dealers[to], None)
        for push in self._blocked.pop(to, []):
            push()

    def _sealed(self, transfer: _Transfer, index: int) -> tuple[Bytes | None, memoryview]:
        """Return a chunk as it travels, and the buffer it lies in unless it is the mapping."""
        chunk, arena = transfer.chunks[index], transfer.payload.arena
        plain: Bytes | None = None
        if len(chunk) > 1:
            plain = self._buffer()
            at = 0
            for start, end in chunk:
                np.copyto(plain[at : at + end - start], np.frombuffer(arena[start:end], np.uint8))
                at += end - start
        size = size_of(chunk)
        data = arena[chunk[0][0] : chunk[0][1]] if plain is None else plain[:size].data
        if transfer.cipher is None:
            return plain, data
        sealed = self._buffer()
        ciphertext = sealed[: size + TAG_BYTES].data
        transfer.cipher.encrypt_into(nonce(index), data, transfer.token, ciphertext)
        if plain is not None:
            self._release(plain)
        return sealed, ciphertext

    def _buffer(self) -> Bytes:
        return self._buffers.pop() if self._buffers else np.empty(CHUNK_BYTES + TAG_BYTES, np.uint8)

    def _release(self, buffer: Bytes | None) -> None:
        if buffer is not None and len(self._buffers) < 2 * WINDOW_CHUNKS:
            self._buffers.append(buffer)

    def _dealer(self, to: NodeId) -> zmq.Socket[bytes]:
        address = self._directory.get(to).bulk
        if to in self._dealers and self._dialled[to] != address:
            self._hang_up(to)
        if to in self._dealers:
            self._dealers.move_to_end(to)
            return self._dealers[to]
        dealer = self._hub.context.socket(zmq.DEALER)
        _bound(dealer, rcvhwm=1000)
        try:
            dealer.connect(address)
        except zmq.ZMQError as error:
            dealer.close(linger=0)
            raise LocalError(f"bulk address of {to}: {error}") from error
        self._thread.on_readable(dealer, lambda: self._take_replies(to))
        self._dealers[to], self._dialled[to] = dealer, address
        if len(self._dealers) > DEALERS_KEPT:
            busy = {transfer.to for transfer in self._transfers.values()}
            idle = next((peer for peer in self._dealers if peer not in busy), None)
            if idle is not None:
                self._hang_up(idle)
        return dealer

    def _hang_up(self, to: NodeId) -> None:
        dealer = self._dealers.pop(to)
        self._thread.on_readable(dealer, None)
        self._thread.on_writable(dealer, None)
        self._blocked.pop(to, None)
        dealer.close(linger=0)

    def _take_replies(self, to: NodeId) -> None:
        for _ in range(_TURN):
            dealer = self._dealers.get(to)
            if dealer is None:
                return
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if len(frames) != 2:
                    raise WireError(f"bulk reply of {len(frames)} frames, must be 2")
                self._take_reply(to, *unpack_head(frames[0]), frames[1])
            except WireError as error:
                self._on_event(Notice("bulk.malformed", {"peer": to, "reason": str(error)}))

    def _take_reply(
        self, to: NodeId, kind: FrameKind, token: bytes, index: int, text: bytes
    ) -> None:
        transfer = next(
            (t for t in self._transfers.values() if t.to == to and t.token == token), None
        )
        if transfer is None:
            return  # of a transfer that is over
        transfer.heard = time.monotonic()
        if kind is FrameKind.CREDIT and index in transfer.under_way:
            self._release(transfer.under_way.pop(index))
            self._pump(transfer)
        elif kind is FrameKind.DONE:
            for buffer in transfer.under_way.values():
                self._release(buffer)
            del self._transfers[to, transfer.key]
        elif kind is FrameKind.REFUSED:
            self._fail(transfer, text.decode("utf-8", "replace")[:500])

    def _fail(self, transfer: _Transfer, reason: str) -> None:
        self._transfers.pop((transfer.to, transfer.key), None)
        transfer.token = b""
        self._on_event(TransferFailed(transfer.key, transfer.to, reason, transfer.began))

    # --- both ---------------------------------------------------------------------------------

    def _cancel(self, key: CustodyKey) -> None:
        self._forget_receptions(key)
        self._store.abandon(key)
        for to, transfer_key in [k for k in self._transfers if k[1] == key]:
            self._transfers.pop((to, transfer_key)).token = b""
        for ticket_key in [k for k in self._tickets if k[1] == key]:
            del self._tickets[ticket_key]

    def _forget_receptions(self, key: CustodyKey) -> None:
        for reception in [r for r in self._receptions.values() if r.key == key]:
            del self._receptions[reception.ticket.token]

    def _sweep(self) -> None:
        """Give up on what has been silent for too long."""
        now = time.monotonic()
        for transfer in [t for t in self._transfers.values() if now - t.heard > SILENCE_S]:
            self._fail(transfer, f"no sign of {transfer.to} for {SILENCE_S:g} s")
        for reception in [r for r in self._receptions.values() if now - r.heard > SILENCE_S]:
            self._forget_receptions(reception.key)
            self._store.abandon(reception.key)
            reason = f"no chunk from {reception.sender} for {SILENCE_S:g} s"
            self._on_event(ReceptionFailed(reception.sender, reception.key, reason))
        if self._router is not None:
            self._thread.at(now + SILENCE_S / 4, self._sweep)

    def _close(self) -> None:
        for to in tuple(self._dealers):
            self._hang_up(to)
        for reception in tuple(self._receptions.values()):
            self._store.abandon(reception.key)
        self._receptions.clear()
        self._transfers.clear()
        if self._router is not None:
            self._thread.on_readable(self._router, None)
            self._router.close(linger=0)
            self._router = None


def _bound(sock: zmq.Socket[bytes], *, rcvhwm: int) -> None:
    """Set the limits that keep a peer from using up our memory, and the timers."""
    sock.setsockopt(zmq.MAXMSGSIZE, CHUNK_BYTES + 4096)
    sock.setsockopt(zmq.RCVHWM, rcvhwm)
    sock.setsockopt(zmq.SNDHWM, 1000 if sock.type == zmq.ROUTER else 4 * WINDOW_CHUNKS)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.IMMEDIATE, 1)
    sock.setsockopt(zmq.RECONNECT_IVL, 20)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    sock.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
    if sock.type == zmq.ROUTER:
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)


__all__ = ["SILENCE_S", "WINDOW_CHUNKS", "BulkEvent", "BulkLane"]
