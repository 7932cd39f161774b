"""The ticket of a bulk transfer, and the heads of its frames.

The receiver issues a ticket on the encrypted control lane: a random token that only the two
ends know, a random key for this one transfer, the ranges of the arena that are missing, and
which chunks of them (`spool.plan`) have come already.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aats.errors import WireError
from aats.ids import CustodyKey, PacketId
from aats.payload import MAX_TENSORS
from aats.spool import Range

VERSION = 1
TOKEN_BYTES = 16
KEY_BYTES = 32
TAG_BYTES = 16
"""AES-GCM's tag behind an encrypted chunk."""
_TICKET = struct.Struct("<BB16s32sQQHII")
"""Version, encrypted?, token, key, hop, epoch, length of id, number of ranges, of chunks."""
_HEAD = struct.Struct("<BB16sII")
"""Version, kind, token, chunk index, bytes that follow."""
HEAD_BYTES = _HEAD.size


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a sender needs to know for one transfer."""

    key: CustodyKey
    token: bytes
    secret: bytes
    """AES-256 key; empty on an insecure network."""
    ranges: tuple[Range, ...]
    done: bytes
    """One byte a chunk of `plan(ranges)`: 1 if it has come."""

    def __repr__(self) -> str:
        return f"Ticket(key={self.key}, ranges={len(self.ranges)}, chunks={len(self.done)})"

    def encode(self) -> bytes:
        """Return the ticket as bytes."""
        name = self.key.packet.encode()
        head = _TICKET.pack(
            VERSION, bool(self.secret), self.token, self.secret or bytes(KEY_BYTES),
            self.key.hop, self.key.epoch, len(name), len(self.ranges), len(self.done),
        )  # fmt: skip
        body = b"".join(struct.pack("<QQ", *r) for r in self.ranges)
        return head + name + body + self.done

    @classmethod
    def decode(cls, data: bytes) -> Ticket:
        """Return the ticket that `data` is.

        Raises:
            WireError: If it is none.
        """
        if len(data) < _TICKET.size:
            raise WireError(f"ticket: {len(data)} bytes, must be at least {_TICKET.size}")
        version, encrypted, token, secret, hop, epoch, length, ranges, chunks = _TICKET.unpack_from(
            data
        )
        if version != VERSION:
            raise WireError(f"ticket: version {version}, must be {VERSION}")
        at = _TICKET.size + length
        if ranges > MAX_TENSORS or len(data) != at + 16 * ranges + chunks:
            raise WireError(f"ticket: {len(data)} bytes do not fit its {ranges} ranges")
        try:
            packet = PacketId(data[_TICKET.size : at].decode())
        except UnicodeDecodeError as error:
            raise WireError("ticket: packet id is no text") from error
        found = tuple(struct.unpack_from("<QQ", data, at + 16 * i) for i in range(ranges))
        return cls(
            CustodyKey(packet, hop, epoch), token, secret if encrypted else b"", found,
            data[at + 16 * ranges :],
        )  # fmt: skip

    def check(self, total_bytes: int) -> None:
        """Check that the ranges ascend within the payload: before anything is made of them.

        Raises:
            WireError: If not.
        """
        end = 0
        for start, stop in self.ranges:
            if not end <= start < stop <= total_bytes:
                raise WireError(f"ticket: range {start}-{stop} outside {end}-{total_bytes}")
            end = stop


class FrameKind(IntEnum):
    """What a frame on the bulk lane is."""

    CHUNK = 1
    """Sender to receiver: the bytes of one chunk follow."""
    CREDIT = 2
    """Back: this chunk is in place; one more may come."""
    DONE = 3
    """Back: every digest holds. Not yet durable: that is the custody message's word."""
    REFUSED = 4
    """Back: this token is unknown, or the bytes are wrong; the reason follows."""
    READY = 5
    """Sender to receiver: I know that you lack nothing. Only now may you take the packet."""


@dataclass(frozen=True, slots=True)
class Head:
    """What comes before the bytes of a frame."""

    kind: FrameKind
    token: bytes
    index: int
    size: int
    """Bytes that follow."""


def pack_head(kind: FrameKind, token: bytes, index: int = 0, size: int = 0) -> bytes:
    """Return the head of a frame of `size` bytes."""
    return _HEAD.pack(VERSION, kind, token, index, size)


def unpack_head(data: bytes | bytearray | memoryview) -> Head:
    """Return the head that `data` is.

    Raises:
        WireError: If it is none of this version.
    """
    if len(data) != _HEAD.size:
        raise WireError(f"bulk head: {len(data)} bytes, must be {_HEAD.size}")
    version, kind, token, index, size = _HEAD.unpack(data)
    if version != VERSION:
        raise WireError(f"bulk head: version {version}, must be {VERSION}")
    try:
        return Head(FrameKind(kind), token, index, size)
    except ValueError as error:
        raise WireError(f"bulk head: kind {kind}") from error


def nonce(index: int) -> bytes:
    """Return the AES-GCM nonce of a chunk: its index, under a key that serves one transfer."""
    return index.to_bytes(12, "little")


def cipher(secret: bytes) -> AESGCM | None:
    """Return the cipher of a transfer; None if it is plain."""
    return AESGCM(secret) if secret else None
