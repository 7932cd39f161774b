"""What a node core wants done, in order. Imperatives.

The shell carries them out one after the other: a `Save...` is durable before the next command
starts, so what a message promises is true when it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aats.ids import CustodyKey, NodeId
from aats.lineage import Record
from aats.messages import Message, Relay
from aats.node.events import CustodyRow
from aats.node.tasks import Task, Told
from aats.packet import Header
from aats.payload import Manifest


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Put a message on the control lane to a neighbour. May be lost."""

    to: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Fill a relayed `ProbeAsk` with the model and reference tensors of a packet, and send it.

    The shell packs the `model.` and `ref.` tensors of the payload stored under `source` into
    `ask.manifest` and `ask.tensors`; the rest is `SendMessage`.
    """

    to: NodeId
    relay: Relay
    source: CustodyKey


@dataclass(frozen=True, slots=True)
class ExpectPacket:
    """Make room for an accepted offer and take its tensors from the bulk lane.

    The shell answers with `PacketReceived` once every digest holds (tensors that the `Accept`
    named as known are copied from the store).
    """

    sender: NodeId
    key: CustodyKey
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Send the tensors the receiver lacks on the bulk lane, under the receiver's key."""

    to: NodeId
    key: CustodyKey
    source: CustodyKey
    """The key under which our store has the payload."""
    manifest: Manifest
    known: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class CancelTransfer:
    """Stop a transfer (either direction) and free what it held."""

    key: CustodyKey


@dataclass(frozen=True, slots=True)
class SaveCustody:
    """Write one row, and with it, in one transaction, ledger records. Durable on return.

    For a first row of a received packet this is the custody point: the part file gets its
    final name, then the row is written. With `outcome` the task's result becomes the payload
    that leaves (the arrived one stays until then). Children of a fork share the payload of
    `row`, those that were merged go with their payloads: all of it happens, or nothing.
    """

    row: CustodyRow
    records: tuple[Record, ...] = ()
    outcome: int = 0
    """The task whose new tensors become this row's payload; 0: none."""
    children: tuple[CustodyRow, ...] = ()
    """First rows of children, with the payload of `row`, or some of its tensors."""
    dropped: tuple[CustodyKey, ...] = ()
    """Rows that are deleted, as by `DropCustody`."""


@dataclass(frozen=True, slots=True)
class DropCustody:
    """Delete row and payload; remember the key as seen."""

    key: CustodyKey


@dataclass(frozen=True, slots=True)
class SaveState:
    """Write one named value of the core's own durable state."""

    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class RunTask:
    """Run a task outside the event loop; answer with `TaskFinished` or `TaskFailed`."""

    task_id: int
    task: Task
    timeout_s: float


@dataclass(frozen=True, slots=True)
class CancelTask:
    """Stop a task; no answer is wanted any more."""

    task_id: int


@dataclass(frozen=True, slots=True)
class TellTask:
    """Give a running task what came for it; one that has ended needs it no more."""

    task_id: int
    told: Told


@dataclass(frozen=True, slots=True)
class DeliverPacket:
    """The packet is home: hand it to the owner's application (model, log, lineage)."""

    header: Header


@dataclass(frozen=True, slots=True)
class Trace:
    """One line for `events.jsonl`: a name and plain JSON fields. The shell adds time and node."""

    event: str
    fields: dict[str, Any] = field(default_factory=dict)


Command = (
    SendMessage | SendProbe | ExpectPacket | SendPacket | CancelTransfer | SaveCustody
    | DropCustody | SaveState | RunTask | CancelTask | TellTask | DeliverPacket | Trace
)  # fmt: skip
