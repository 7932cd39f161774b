"""What a node daemon asks of a transport: a control lane, a bulk lane, and a directory of peers.

`aats.transport.zmq` implements the control lane over ZeroMQ, `aats.transport.bulk` the bulk lane
over TCP; a third party may plug in its own (entry-point group `aats.transports`).

How a packet's tensors travel: the receiver's `expect` opens (or resumes) its part file, finds
out what is missing and raises a `TicketReady`. The daemon puts the ticket on the control lane,
where it is encrypted, together with the accept that waits for it (kind `Kind.BOTH`) or by
itself (`Kind.TICKET`); the sender's daemon hands it to `take_ticket`. The ticket carries the
transfer's random token and key and the ranges to send, so the receiver's disk decides what
travels, not the `known` of an `Accept`, which may be out of date. Ticket and `send` may come in
either order. The core's messages never contain keys.

A receiver that lacks nothing waits for the sender's word, too, and has the packet only then: a
sender that never learnt of the accept may give the packet to somebody else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from aats.ids import CustodyKey, NodeId
from aats.node.events import PacketReceived, TransferFailed
from aats.payload import Manifest


class Kind(IntEnum):
    """What a frame on the control lane is: the first byte."""

    MESSAGE = 1
    """A core message, as `wire.encode_message` makes it."""
    TICKET = 2
    """A bulk ticket, opaque to the daemon."""
    BOTH = 3
    """A bulk ticket and the message that it goes with, as `joined` has them."""


def joined(ticket: bytes, message: bytes) -> bytes:
    """Return a frame of kind `Kind.BOTH`: two frames would cost another wake-up at each end."""
    return len(ticket).to_bytes(4, "little") + ticket + message


def parted(data: bytes) -> tuple[bytes, bytes]:
    """Return ticket and message of a `joined` frame. What a stranger made up parts somehow."""
    end = 4 + int.from_bytes(data[:4], "little")
    return data[4:end], data[end:]


@dataclass(frozen=True, slots=True)
class Incoming:
    """One authenticated frame from a neighbour."""

    sender: NodeId
    kind: Kind
    data: bytes


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The connection to a neighbour came up (both ends authenticated) or went down."""

    peer: NodeId
    up: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know: goes to the log, and to nobody else.

    `name` is one of "control.stranger", "control.denied", "control.spoofed",
    "control.malformed", "control.dropped", "bulk.malformed".
    """

    name: str
    fields: dict[str, str | int | float]


ControlEvent = Incoming | LinkChanged | Notice


class ControlTransport(Protocol):
    """Small authenticated messages between neighbours; at most once, in order per peer."""

    async def start(self) -> None:
        """Bind, and connect to every neighbour.

        Raises:
            LocalError: Naming the address, if it is in use.
        """

    def send(self, peer: NodeId, data: bytes, kind: Kind = Kind.MESSAGE) -> bool:
        """Queue one frame; never waits. False: dropped (no link, or the queue is full)."""

    def events(self) -> AsyncIterator[ControlEvent]:
        """Yield what happens on this lane, in order, until `close`."""

    async def close(self) -> None:
        """Close every socket; what is queued is dropped."""


@dataclass(frozen=True, slots=True)
class TicketReady:
    """Put `data` on the control lane to `to`, by itself or with the accept."""

    to: NodeId
    key: CustodyKey
    data: bytes


@dataclass(frozen=True, slots=True)
class ReceptionFailed:
    """An expected transfer ended without the packet; what arrived is kept for the next offer."""

    sender: NodeId
    key: CustodyKey
    reason: str


BulkEvent = TicketReady | PacketReceived | TransferFailed | ReceptionFailed | Notice


class BulkTransport(Protocol):
    """Tensors of packets, straight from one node's store into another's.

    All methods return at once and may be called from any thread; outcomes come as events to the
    callback given at construction, on the transport's own thread.
    """

    def start(self) -> None:
        """Bind and begin to serve.

        Raises:
            LocalError: Naming the address, if it is in use.
        """

    def expect(
        self, sender: NodeId, key: CustodyKey, manifest: Manifest, overhead_bytes: int = 0
    ) -> None:
        """Make room for an accepted offer and take its tensors.

        Answers with a `TicketReady`, then `PacketReceived` once every digest holds and the sender
        has begun to `send`, or `ReceptionFailed`. `overhead_bytes` (the offer's own size) is added
        to its wire bytes.
        """

    def take_ticket(self, sender: NodeId, data: bytes) -> None:
        """Take a ticket that came on the control lane from `sender`."""

    def send(self, to: NodeId, key: CustodyKey, source: CustodyKey, manifest: Manifest) -> None:
        """Send what `to` lacks of the payload stored under `source`; it knows it as `key`.

        Raises nothing; answers with `TransferFailed` if it stops. Success is the receiver's
        custody message, not an event of this lane.
        """

    def cancel(self, key: CustodyKey) -> None:
        """Stop a transfer in either direction; no event follows. Part files stay."""

    def close(self) -> None:
        """Stop the thread and close every socket."""


BulkCallback = Callable[[BulkEvent], None]
