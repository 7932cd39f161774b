"""The receiving half of the bulk lane: chunks into parts. All of it runs on the bulk thread."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from secrets import token_bytes

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aats.errors import AatsError, WireError
from aats.ids import CustodyKey, NodeId
from aats.node.events import PacketReceived
from aats.payload import Manifest
from aats.spool import Bytes, Part, size_of
from aats.store import NodeStore
from aats.transport.base import BulkCallback, Notice, ReceptionFailed, TicketReady
from aats.transport.hub import SocketThread
from aats.transport.stream import MAX_FRAME_BYTES, Connection
from aats.transport.ticket import (
    HEAD_BYTES,
    KEY_BYTES,
    TAG_BYTES,
    TOKEN_BYTES,
    FrameKind,
    Head,
    Ticket,
    cipher,
    nonce,
    pack_head,
)

CONNECTIONS_KEPT = 256
"""Open at the same time; beyond, one that has proved nothing goes, or else the most silent."""
GREETING_S = 5.0
"""A connection that has shown no valid token for so long is closed."""
BUFFERS_KEPT = 8
REPLIES_BYTES = 64 << 10
"""Answers waiting for a sender to read them."""
OF_SENDERS = frozenset({FrameKind.CHUNK, FrameKind.READY})


@dataclass(slots=True)
class Reception:
    """One packet on its way in."""

    sender: NodeId
    key: CustodyKey
    part: Part
    ticket: Ticket
    cipher: AESGCM | None
    wire_bytes: int
    done: bytearray
    """One byte a chunk: 1 if it has come."""
    heard: float
    """When the last chunk came, monotonic seconds."""
    filling: dict[int, Connection] = field(default_factory=dict)
    """Chunk index -> the one connection that may write it."""

    def size_of(self, index: int) -> int:
        """Return the bytes of a chunk as it travels."""
        return size_of(self.part.chunks[index]) + (TAG_BYTES if self.cipher else 0)


class Receiver:
    """Takes chunks from connections and puts them where they belong.

    Args:
        listener: Where senders connect.
        thread: The bulk thread.
        store: Where parts are.
        on_event: Called with what comes of it.
        encrypt: Issue tickets with a key.
    """

    def __init__(
        self,
        listener: socket.socket,
        thread: SocketThread,
        store: NodeStore,
        on_event: BulkCallback,
        *,
        encrypt: bool,
    ) -> None:
        self._listener, self._thread = listener, thread
        self._store, self._on_event = store, on_event
        self._encrypt = encrypt
        self._receptions: dict[bytes, Reception] = {}
        self._connections: dict[Connection, bool] = {}
        """Every open connection: has it shown a valid token?"""
        self._buffers: list[Bytes] = []

    def accept(self) -> None:
        """Take one connection; make room for it if there are too many."""
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # gone again, or no descriptor left
        if len(self._connections) >= CONNECTIONS_KEPT:
            worst = min(self._connections, key=lambda c: (self._connections[c], c.heard))
            self._drop(worst)
        self._connections[Connection(sock, self._thread, self)] = False

    def expect(self, sender: NodeId, key: CustodyKey, manifest: Manifest, overhead: int) -> None:
        """Open or resume the part of an accepted offer, and issue a ticket for it."""
        live = next(
            (r for r in self._receptions.values() if r.key == key and r.sender == sender), None
        )
        if live is not None and live.part.manifest == manifest:
            self._issue(live)
            return
        self.forget(key)
        try:
            part = self._store.incoming(key, manifest)
        except (AatsError, OSError) as error:
            self._on_event(ReceptionFailed(sender, key, str(error)))
            return
        chunks = part.chunks if not part.is_complete else ()
        ranges = part.missing if chunks else ()
        secret = token_bytes(KEY_BYTES) if self._encrypt else b""
        ticket = Ticket(key, token_bytes(TOKEN_BYTES), secret, ranges, bytes(len(chunks)))
        reception = Reception(
            sender, key, part, ticket, cipher(secret), overhead, bytearray(len(chunks)),
            time.monotonic(),
        )  # fmt: skip
        self._receptions[ticket.token] = reception
        self._issue(reception)
        try:
            part.prepare()  # while the ticket travels
        except OSError as error:
            self._break_off(reception, str(error))

    def _issue(self, reception: Reception) -> None:
        """Hand out the ticket, for the first time or once more to a sender that forgot it."""
        ticket = reception.ticket
        fresh = Ticket(
            ticket.key, ticket.token, ticket.secret, ticket.ranges, bytes(reception.done)
        )
        data = fresh.encode()
        reception.wire_bytes += len(data)
        self._on_event(TicketReady(reception.sender, reception.key, data))

    def place(self, connection: Connection, head: Head) -> Bytes:
        """Return where the bytes of a frame go: the part's mapping, or a buffer on the way.

        Raises:
            WireError: If no sender says this, or it is of a transfer that nobody here knows.
        """
        reception = self._receptions.get(head.token)
        if head.kind not in OF_SENDERS or (
            reception is None and not self._connections.get(connection)
        ):
            raise WireError(f"bulk frame {head.kind.name} of an unknown transfer")
        self._connections[connection] = True
        if reception is not None and head.kind is FrameKind.CHUNK and self._fits(reception, head):
            former = reception.filling.get(head.index)
            if former is not None:
                self._drop(former)  # its sender has dialled anew
            reception.filling[head.index] = connection
            slot = reception.part.begin(head.index) if reception.cipher is None else None
            if slot is not None:
                return slot
        return self._buffer()[: head.size]

    def grew(self, connection: Connection, head: Head, count: int) -> None:
        """Hash what has come of a chunk that is received where it belongs."""
        reception = self._receptions.get(head.token)
        if (
            reception is None
            or reception.cipher is not None
            or reception.filling.get(head.index) is not connection
        ):
            return
        try:
            reception.part.grew(head.index, count)
        except WireError as error:
            self._spoil(reception, str(error), connection)

    @staticmethod
    def _fits(reception: Reception, head: Head) -> bool:
        """Return whether a chunk is wanted and as long as the plan says."""
        part = reception.part
        return (
            head.index < len(part.chunks)
            and part.wants(head.index)
            and head.size == reception.size_of(head.index)
        )

    def take(self, connection: Connection, head: Head, data: Bytes) -> None:
        """Take a chunk whose bytes are there, or the word that none is needed."""
        index, reception = head.index, self._receptions.get(head.token)
        if reception is None:
            self._release(data)
            self._reply(connection, FrameKind.REFUSED, head.token, index, b"unknown transfer")
            return
        try:
            if head.kind is FrameKind.CHUNK:
                self._place(reception, index, data, connection)
            else:
                self._release(data)
        except InvalidTag:
            self._break_off(reception, f"chunk {index}: tampered with", connection)
            return
        except WireError as error:
            self._spoil(reception, str(error), connection)
            return
        finally:
            self._release(data)
        reception.wire_bytes += HEAD_BYTES + head.size
        reception.heard = connection.heard
        if not self._receptions.get(head.token):
            return
        if reception.part.num_waiting:
            self._reply(connection, FrameKind.CREDIT, head.token, index)
        else:  # once nobody up the stack holds on to the mapping: it may soon be recycled
            self._thread.call(lambda: self._finish(reception, connection))

    def lost(self, connection: Connection, reason: str) -> None:
        """Learn that a connection is over; its transfers wait for the sender's next word."""
        if not self._connections.pop(connection, True):
            self._on_event(Notice("bulk.malformed", {"reason": reason}))
        for reception in self._receptions.values():
            for index in [i for i, c in reception.filling.items() if c is connection]:
                del reception.filling[index]

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self._connections[connection] = True  # by our own will: nothing to tell
        self.lost(connection, "")

    def _buffer(self) -> Bytes:
        return self._buffers.pop() if self._buffers else np.empty(MAX_FRAME_BYTES, np.uint8)

    def _release(self, data: Bytes) -> None:
        """Keep the buffer that `data` is the beginning of, if it is one of ours."""
        whole = data.base
        if (
            isinstance(whole, np.ndarray)
            and whole.base is None
            and whole.size == MAX_FRAME_BYTES
            and len(self._buffers) < BUFFERS_KEPT
        ):
            self._buffers.append(whole)

    def _place(self, reception: Reception, index: int, data: Bytes, connection: Connection) -> None:
        """Put one chunk where it belongs, unless it was received there.

        Raises:
            WireError: If it does not fit the plan, or makes a tensor wrong.
            InvalidTag: If somebody on the way has changed it.
        """
        part = reception.part
        if index >= len(part.chunks):
            raise WireError(f"chunk {index}, the plan has {len(part.chunks)}")
        if len(data) != reception.size_of(index):
            raise WireError(
                f"chunk {index}: {len(data)} bytes, the plan says {reception.size_of(index)}"
            )
        if reception.filling.pop(index, None) is not connection:
            return  # has come before
        slot = part.slot(index)
        if reception.cipher is None:
            if slot is None:
                part.write(index, data)
            else:
                part.wrote(index)
        elif slot is None:
            size = size_of(part.chunks[index])
            part.write(index, self._decrypted(reception, index, data, np.empty(size, np.uint8)))
        else:
            self._decrypted(reception, index, data, slot)
            part.wrote(index)
        reception.done[index] = 1

    @staticmethod
    def _decrypted(reception: Reception, index: int, data: Bytes, into: Bytes) -> Bytes:
        assert reception.cipher is not None
        token = reception.ticket.token
        reception.cipher.decrypt_into(nonce(index), data.data, token, into.data)
        return into

    def _finish(self, reception: Reception, connection: Connection) -> None:
        if reception.ticket.token not in self._receptions:
            return  # forgotten meanwhile
        try:
            if not reception.part.is_complete:
                reception.part.complete()
        except WireError as error:
            self._spoil(reception, str(error), connection)
            return
        self._let_go(reception)
        self._on_event(PacketReceived(reception.sender, reception.key, reception.wire_bytes))
        self._reply(connection, FrameKind.DONE, reception.ticket.token)

    def _spoil(
        self, reception: Reception, reason: str, connection: Connection | None = None
    ) -> None:
        """Give up on bytes that are wrong: none of them is kept."""
        self._let_go(reception)
        reception.part.close()
        self._store.discard(reception.key)
        self._break_off(reception, reason, connection)

    def _reply(
        self,
        connection: Connection,
        kind: FrameKind,
        token: bytes,
        index: int = 0,
        text: bytes = b"",
    ) -> None:
        """Answer a sender; one that reads no answers is cut off."""
        if connection.waiting_bytes > REPLIES_BYTES:
            self._drop(connection)
        elif connection.is_open:
            connection.send(pack_head(kind, token, index, len(text)), text)

    # --- on the bulk thread: sending ----------------------------------------------------------

    def forget(self, key: CustodyKey) -> None:
        """Take no more chunks of a packet."""
        for reception in [r for r in self._receptions.values() if r.key == key]:
            self._let_go(reception)

    def _let_go(self, reception: Reception) -> None:
        """End a reception: what is still coming of it goes nowhere."""
        self._receptions.pop(reception.ticket.token, None)
        for connection in set(reception.filling.values()):
            connection.divert()
        reception.filling.clear()

    def sweep(self, silence_s: float) -> None:
        """Give up on senders that have been silent for so long; what came stays."""
        now = time.monotonic()
        for connection in [
            c for c, proved in self._connections.items()
            if not proved and now - c.heard > min(silence_s, GREETING_S)
        ]:  # fmt: skip
            self._drop(connection)
        for reception in [r for r in self._receptions.values() if now - r.heard > silence_s]:
            self._break_off(reception, f"no chunk from {reception.sender} for {silence_s:g} s")

    def close(self) -> None:
        """Let go of every part."""
        for reception in self._receptions.values():
            self._store.abandon(reception.key)
        self._receptions.clear()
        for connection in tuple(self._connections):
            self._drop(connection)

    def _break_off(
        self, reception: Reception, reason: str, connection: Connection | None = None
    ) -> None:
        """Give up on a transfer; its part stays for the next offer."""
        self._let_go(reception)
        self._store.abandon(reception.key)
        if connection is not None:
            self._reply(
                connection, FrameKind.REFUSED, reception.ticket.token, 0, reason.encode()[:500]
            )
        self._on_event(ReceptionFailed(reception.sender, reception.key, reason))
