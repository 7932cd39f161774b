"""The receiving half of the bulk lane: chunks into parts. All of it runs on the bulk thread."""

from __future__ import annotations

import time
from dataclasses import dataclass
from secrets import token_bytes

import numpy as np
import zmq
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aats.errors import AatsError, WireError
from aats.ids import CustodyKey, NodeId
from aats.node.events import PacketReceived
from aats.payload import Manifest
from aats.spool import Bytes, Part, size_of
from aats.store import NodeStore
from aats.transport.base import BulkCallback, Notice, ReceptionFailed, TicketReady
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

FRAMES_A_TURN = 16
"""Frames taken from a socket before others get their turn."""


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


class Receiver:
    """Takes chunks from a ROUTER socket and puts them where they belong.

    Args:
        router: Bound; the receiver reads it and replies on it.
        store: Where parts are.
        on_event: Called with what comes of it.
        encrypt: Issue tickets with a key.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        store: NodeStore,
        on_event: BulkCallback,
        *,
        encrypt: bool,
    ) -> None:
        self._router, self._store, self._on_event = router, store, on_event
        self._encrypt = encrypt
        self._receptions: dict[bytes, Reception] = {}

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
        if not chunks:
            self._finish(reception, b"")

    def _issue(self, reception: Reception) -> None:
        """Hand out the ticket, for the first time or once more to a sender that forgot it."""
        ticket = reception.ticket
        fresh = Ticket(
            ticket.key, ticket.token, ticket.secret, ticket.ranges, bytes(reception.done)
        )
        data = fresh.encode()
        reception.wire_bytes += len(data)
        self._on_event(TicketReady(reception.sender, reception.key, data))

    def take_chunks(self) -> None:
        """Read the socket until it is empty, or others want their turn."""
        for _ in range(FRAMES_A_TURN):
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
        except InvalidTag:
            self._break_off(reception, f"chunk {index}: tampered with", peer)
            return
        except WireError as error:
            self._spoil(reception, str(error), peer)
            return
        reception.wire_bytes += HEAD_BYTES + len(frames[2])
        reception.heard = time.monotonic()
        if reception.part.num_waiting:
            self._reply(peer, FrameKind.CREDIT, token, index)
        else:
            self._finish(reception, peer)

    def _place(self, reception: Reception, index: int, data: Bytes) -> None:
        """Put one chunk where it belongs.

        Raises:
            WireError: If it does not fit the plan, or makes a tensor wrong.
            InvalidTag: If somebody on the way has changed it.
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
    def _decrypted(reception: Reception, index: int, data: Bytes, into: Bytes) -> Bytes:
        assert reception.cipher is not None
        token = reception.ticket.token
        reception.cipher.decrypt_into(nonce(index), data.data, token, into.data)
        return into

    def _finish(self, reception: Reception, peer: bytes) -> None:
        try:
            if not reception.part.is_complete:
                reception.part.complete()
        except WireError as error:
            self._spoil(reception, str(error), peer)
            return
        del self._receptions[reception.ticket.token]
        if peer:
            self._reply(peer, FrameKind.DONE, reception.ticket.token)
        self._on_event(PacketReceived(reception.sender, reception.key, reception.wire_bytes))

    def _spoil(self, reception: Reception, reason: str, peer: bytes = b"") -> None:
        """Give up on bytes that are wrong: none of them is kept."""
        reception.part.close()
        self._store.discard(reception.key)
        self._break_off(reception, reason, peer)

    def _reply(
        self, peer: bytes, kind: FrameKind, token: bytes, index: int = 0, text: bytes = b""
    ) -> None:
        try:
            self._router.send_multipart([peer, pack_head(kind, token, index), text], zmq.NOBLOCK)
        except zmq.ZMQError:
            return  # the sender is gone; it resumes with its next offer

    # --- on the bulk thread: sending ----------------------------------------------------------

    def forget(self, key: CustodyKey) -> None:
        """Take no more chunks of a packet."""
        for reception in [r for r in self._receptions.values() if r.key == key]:
            del self._receptions[reception.ticket.token]

    def sweep(self, silence_s: float) -> None:
        """Give up on senders that have been silent for so long; what came stays."""
        now = time.monotonic()
        for reception in [r for r in self._receptions.values() if now - r.heard > silence_s]:
            self._break_off(reception, f"no chunk from {reception.sender} for {silence_s:g} s")

    def close(self) -> None:
        """Let go of every part."""
        for reception in self._receptions.values():
            self._store.abandon(reception.key)
        self._receptions.clear()

    def _break_off(self, reception: Reception, reason: str, peer: bytes = b"") -> None:
        """Give up on a transfer; its part stays for the next offer."""
        self._receptions.pop(reception.ticket.token, None)
        self._store.abandon(reception.key)
        if peer:
            self._reply(peer, FrameKind.REFUSED, reception.ticket.token, 0, reason.encode()[:500])
        self._on_event(ReceptionFailed(reception.sender, reception.key, reason))
