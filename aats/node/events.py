"""What happens to a node: the only input of its core besides the clock. Past participles."""

from __future__ import annotations

from dataclasses import dataclass

from aats.advert import ComputeAdvert, DataAdvert, LinkAdvert
from aats.ids import CustodyKey, NodeId
from aats.messages import Message
from aats.node.tasks import Result, Spending, Spoken
from aats.packet import Header


@dataclass(frozen=True, slots=True)
class Started:
    """The node is up. `rows` is what its custody store held (empty on a first start)."""

    incarnation: int
    rows: tuple[CustodyRow, ...] = ()
    state: dict[str, bytes] | None = None
    seen: tuple[CustodyKey, ...] = ()
    """Keys of copies that had been here and are dropped."""


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A control message from a neighbour whose identity the transport has authenticated."""

    sender: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A neighbour is reachable (again); figures are configured or measured."""

    link: LinkAdvert


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A neighbour is no longer reachable."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class PacketReceived:
    """The bulk lane has every tensor of an accepted offer, verified; not yet durable.

    The sender knows of the accept: even where nothing was missing, it has begun to send.
    """

    sender: NodeId
    key: CustodyKey
    wire_bytes: int
    """Bytes this transfer took on the wire, header included."""


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """An outgoing bulk transfer stopped. `began`: at least one chunk had left."""

    key: CustodyKey
    to: NodeId
    reason: str
    began: bool


@dataclass(frozen=True, slots=True)
class PacketSubmitted:
    """The owner's application hands in a packet; its payload is in the store under its key."""

    header: Header


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """A task's result."""

    task: int
    result: Result
    spending: Spending = Spending()


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A task crashed, hung past its limit, or raised; the node goes on."""

    task: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskSpoke:
    """A running task has a frame for another node."""

    task: int
    frame: Spoken


@dataclass(frozen=True, slots=True)
class DataChanged:
    """The node's own data or compute changed: advertise anew."""

    data: tuple[DataAdvert, ...]
    compute: ComputeAdvert


@dataclass(frozen=True, slots=True)
class Leaving:
    """The node is to stop soon: it takes nothing more, finishes and hands on what is here."""


@dataclass(frozen=True, slots=True)
class CustodyRow:
    """One durable row: a packet's copy at this node. The payload lies in the store.

    `status` is one of `aats.node.custody.Status`.
    """

    key: CustodyKey
    status: str
    header: Header
    """As it arrived (HELD) or as it leaves (WORKED, SPARE)."""
    sender: NodeId = NodeId("")
    """Where it came from: who holds the spare."""
    chosen: tuple[NodeId, ...] = ()
    """Path to the chosen stop, first link first; saved before anything is offered."""
    data_of: NodeId = NodeId("")
    onward: tuple[NodeId, ...] = ()


Event = (
    Started | MessageReceived | LinkUp | LinkDown | PacketReceived | TransferFailed
    | PacketSubmitted | TaskFinished | TaskFailed | TaskSpoke | DataChanged | Leaving
)  # fmt: skip
