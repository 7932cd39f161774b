"""The sending half of the bulk lane: a stored payload out as chunks, on the bulk thread."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aats.errors import AatsError, LocalError, WireError
from aats.ids import CustodyKey, NodeId
from aats.node.events import TransferFailed
from aats.payload import Manifest, Payload
from aats.spool import CHUNK_BYTES, Bytes, Chunk, plan, size_of
from aats.store import NodeStore
from aats.transport.base import BulkCallback, Notice
from aats.transport.hub import Hub
from aats.transport.keys import Directory
from aats.transport.shape import Pacer, Shaping
from aats.transport.stream import Connection, dial
from aats.transport.ticket import (
    TAG_BYTES,
    FrameKind,
    Head,
    Ticket,
    cipher,
    nonce,
    pack_head,
)

WINDOW_CHUNKS = 4
"""Chunks of one transfer under way: 8 MiB, enough for 1 Gbit/s at 60 ms."""
TICKETS_KEPT = 256
"""Tickets that came before the core said to send."""
CONNECTIONS_KEPT = 64
"""Connections kept open to receivers, the latest used."""
READY_INDEX = 0
"""Stands for the one frame of a transfer without chunks."""
TEXT_BYTES = 500
"""Of a reply."""


@dataclass(slots=True)
class Transfer:
    """One packet on its way out."""

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


class Sender:
    """Sends chunks over a connection to each receiver, at most a window of each transfer.

    Args:
        hub: Whose thread to use.
        directory: Where receivers are.
        store: Where payloads are.
        on_event: Called with `TransferFailed` and notices.
        encrypt: Refuse tickets without a key.
        shaping: Bandwidth and latency to imitate.
    """

    def __init__(
        self,
        hub: Hub,
        directory: Directory,
        store: NodeStore,
        on_event: BulkCallback,
        *,
        encrypt: bool,
        shaping: Shaping | None,
    ) -> None:
        self._thread = hub.thread
        self._directory, self._store, self._on_event = directory, store, on_event
        self._encrypt, self._shaping = encrypt, shaping
        self._connections: OrderedDict[NodeId, Connection] = OrderedDict()
        self._dialled: dict[NodeId, str] = {}
        self._transfers: dict[tuple[NodeId, CustodyKey], Transfer] = {}
        self._tickets: OrderedDict[tuple[NodeId, CustodyKey], Ticket] = OrderedDict()
        self._pacers: dict[NodeId, Pacer] = {}
        self._buffers: list[Bytes] = []

    def send(self, to: NodeId, key: CustodyKey, source: CustodyKey, manifest: Manifest) -> None:
        """Begin a transfer, at once or when its ticket comes."""
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
        self._transfers[to, key] = Transfer(to, key, payload, time.monotonic())
        ticket = self._tickets.pop((to, key), None)
        if ticket is not None:
            self._begin(self._transfers[to, key], ticket)

    def take_ticket(self, sender: NodeId, data: bytes) -> None:
        """Begin (anew) the transfer a ticket is for, or keep it until the core says so."""
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

    def _begin(self, transfer: Transfer, ticket: Ticket) -> None:
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
        missing = [i for i in reversed(range(len(chunks))) if not ticket.done[i]]
        transfer.waiting = missing if chunks else [READY_INDEX]
        transfer.under_way = {}
        transfer.heard = time.monotonic()
        if not transfer.waiting:
            del self._transfers[transfer.to, transfer.key]
            return
        self._pump(transfer)

    def _pump(self, transfer: Transfer) -> None:
        """Send as much as the window allows."""
        while transfer.waiting and len(transfer.under_way) < WINDOW_CHUNKS:
            index = transfer.waiting.pop()
            transfer.under_way[index] = None
            self._pace(transfer, index)

    def _pace(self, transfer: Transfer, index: int) -> None:
        if self._shaping is None:
            self._push(transfer, transfer.token, index)
            return
        if transfer.to not in self._pacers:
            self._pacers[transfer.to] = Pacer(self._shaping(transfer.to))
        token, size = transfer.token, size_of(transfer.chunks[index]) if transfer.chunks else 0
        self._thread.at(
            self._pacers[transfer.to].arrival(size, time.monotonic()),
            lambda: self._push(transfer, token, index),
        )

    def _push(self, transfer: Transfer, token: bytes, index: int) -> None:
        if transfer.token != token or index not in transfer.under_way:
            return
        try:
            connection = self._connection(transfer.to)
        except LocalError as error:
            self._fail(transfer, str(error))
            return
        transfer.heard = time.monotonic()
        if not transfer.chunks:
            connection.send(pack_head(FrameKind.READY, token))
            return
        buffer, data = self._sealed(transfer, index)
        transfer.under_way[index] = buffer
        transfer.began = True
        connection.send(pack_head(FrameKind.CHUNK, token, index, len(data)), data)

    def _sealed(self, transfer: Transfer, index: int) -> tuple[Bytes | None, memoryview]:
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

    def _connection(self, to: NodeId) -> Connection:
        address = self._directory.get(to).bulk
        if to in self._connections and self._dialled[to] != address:
            self._hang_up(to)
        if to in self._connections:
            self._connections.move_to_end(to)
            return self._connections[to]
        try:
            connection = dial(address, self._thread, self)
        except LocalError as error:
            raise LocalError(f"bulk address of {to}: {error}") from error
        self._connections[to], self._dialled[to] = connection, address
        if len(self._connections) > CONNECTIONS_KEPT:
            busy = {transfer.to for transfer in self._transfers.values()}
            idle = next((peer for peer in self._connections if peer not in busy), None)
            if idle is not None:
                self._hang_up(idle)
        return connection

    def _hang_up(self, to: NodeId) -> None:
        self._connections.pop(to).close()

    def place(self, connection: Connection, head: Head) -> Bytes:
        """Return a buffer for the text of a reply.

        Raises:
            WireError: If it is too long for one.
        """
        if head.size > TEXT_BYTES:
            raise WireError(f"bulk reply of {head.size} bytes, allowed are {TEXT_BYTES}")
        return np.empty(head.size, np.uint8)

    def grew(self, connection: Connection, head: Head, count: int) -> None:
        """Wait for the rest: a reply is short."""

    def take(self, connection: Connection, head: Head, data: Bytes) -> None:
        """Take a reply."""
        to = next((n for n, c in self._connections.items() if c is connection), None)
        if to is not None:
            self._take_reply(to, head.kind, head.token, head.index, data.tobytes())

    def lost(self, connection: Connection, reason: str) -> None:
        """Give up on what was under way over a connection that broke."""
        to = next((n for n, c in self._connections.items() if c is connection), None)
        if to is None:
            return
        del self._connections[to]
        for transfer in [t for t in self._transfers.values() if t.to == to and t.under_way]:
            self._fail(transfer, f"connection to {to}: {reason}")

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

    def _fail(self, transfer: Transfer, reason: str) -> None:
        self._transfers.pop((transfer.to, transfer.key), None)
        transfer.token = b""
        self._on_event(TransferFailed(transfer.key, transfer.to, reason, transfer.began))

    # --- both ends of a transfer's life -------------------------------------------------------

    def forget(self, key: CustodyKey) -> None:
        """Send no more of a packet, to anybody."""
        for to, transfer_key in [k for k in self._transfers if k[1] == key]:
            self._transfers.pop((to, transfer_key)).token = b""
        for ticket_key in [k for k in self._tickets if k[1] == key]:
            del self._tickets[ticket_key]

    def sweep(self, silence_s: float) -> None:
        """Give up on receivers that have been silent for so long."""
        now = time.monotonic()
        for transfer in [t for t in self._transfers.values() if now - t.heard > silence_s]:
            self._fail(transfer, f"no sign of {transfer.to} for {silence_s:g} s")
            busy = {transfer.to for transfer in self._transfers.values()}
            if transfer.to in self._connections and transfer.to not in busy:
                self._hang_up(transfer.to)  # what is queued there would keep the payload

    def close(self) -> None:
        """Close every connection."""
        for to in tuple(self._connections):
            self._hang_up(to)
        self._transfers.clear()
