"""Custody: the duty to keep a packet until the next node has it durably, and once more.

Theory of operation. A copy of a packet at a node has a durable `Status`, kept in one row of the
node's store, and moves through it only along `TRANSITIONS`:

    HELD    arrived and durable; the sender has been told (its copy is now the spare behind)
    WORKED  the work due here is done (or none was due): the packet is to be moved on
    SPARE   the next node has it durably; ours stays until that node has moved it on, too
    CACHED  nobody depends on it: kept for its tensors, so that a revisit sends less
    RESTING a child of a fork that is back, waiting to be merged with its siblings
    ORIGIN  the owner's own first copy: kept until the packet is home
    HOME    the owner has it; the end of the journey

One node may die for good without losing the packet: the node behind it still has a spare. A
custodian says `Alive` to the spare's holder; when it falls silent the holder asks, and when
nobody answers it takes its spare back (SPARE -> WORKED) under a higher epoch, which is flooded
as a notice: every older copy is dropped on sight.

Nobody takes custody before its sender has learnt of the accept and begun to send, even where no
tensor is missing. So a node that gives up on a neighbour knows: either it sent nothing, and the
neighbour has not got the packet, or it did, and cannot know whether the neighbour stored it. Then
it raises the epoch, too, before it offers the packet elsewhere. So an effect may be computed
twice, but of two copies only one lineage survives.

A packet that forks stays where it is, WORKED, and its children are copies of their own beside it,
written in one transaction with it. They return to this node and rest, and the merge replaces all
of them by the trunk's new row in one transaction, too. Whatever becomes of a child, the trunk
waits no longer than its time; whatever becomes of the trunk, its children are dead with it: a
trunk that was taken up from a spare, under a higher epoch, knows nothing of them and forks anew.

Custodians tell the owner where its packet is. If the owner hears nothing for long, whatever
chain of failures it was, it sends its origin out again under a higher epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from aats.ids import CustodyKey, NodeId
from aats.messages import ProbeScores
from aats.node.events import CustodyRow
from aats.packet import Header


class Status(StrEnum):
    """Durable state of one copy."""

    HELD = "held"
    WORKED = "worked"
    SPARE = "spare"
    CACHED = "cached"
    RESTING = "resting"
    ORIGIN = "origin"
    HOME = "home"


TRANSITIONS: dict[Status, tuple[Status, ...]] = {
    Status.HELD: (Status.WORKED, Status.HOME),
    Status.WORKED: (Status.WORKED, Status.SPARE, Status.HOME, Status.ORIGIN, Status.RESTING),
    Status.SPARE: (Status.CACHED, Status.WORKED, Status.ORIGIN),
    Status.ORIGIN: (Status.WORKED,),
    Status.CACHED: (),
    Status.RESTING: (),
    Status.HOME: (),
}
"""Legal changes of status; dropping a copy is legal from any."""


class Doing(StrEnum):
    """What a custodian is at with a copy right now (volatile)."""

    NOTHING = "nothing"
    WORKING = "working"
    PROBING = "probing"
    OFFERING = "offering"
    SENDING = "sending"
    WAITING = "waiting"
    GATHERING = "gathering"


@dataclass(slots=True)
class Probing:
    """Probes that a decision waits for."""

    open: dict[NodeId, NodeId] = field(default_factory=dict)
    """Candidate -> the node that answers for it."""
    scores: dict[NodeId, ProbeScores] = field(default_factory=dict)
    since: float = 0.0
    """When they were sent."""
    answered: int = 0
    bytes: float = 0.0
    """Put on the wire by the probes so far."""


@dataclass(slots=True)
class Copy:
    """One copy of a packet at this node: its durable row and what is going on with it."""

    row: CustodyRow
    since: float
    """When this node took it, by its own clock; the packet is charged from here."""
    doing: Doing = Doing.NOTHING
    task: int = 0
    outgoing: Header | None = None
    """The signed header on offer."""
    tries: int = 0
    uncertain: bool = False
    """We began to send to `chosen[0]`, which may have stored the packet without our knowing."""
    avoid: dict[NodeId, float] = field(default_factory=dict)
    """Stops that refused or did not answer, and until when to leave them out."""
    failures: int = 0
    decision: Probing | None = None
    asked: int = 0
    """Unanswered questions to the custodian (status SPARE)."""
    met: Copy | None = None
    """What a sibling left here, with which the visit in hand is averaged."""
    outdated_by: int = 0
    """Highest epoch for which a neighbour has refused it."""

    @property
    def key(self) -> CustodyKey:
        """The key in the store."""
        return self.row.key

    @property
    def header(self) -> Header:
        """The header as it stands."""
        return self.row.header

    @property
    def status(self) -> Status:
        """Durable status."""
        return Status(self.row.status)

    @property
    def next_key(self) -> CustodyKey:
        """The key the packet has, or would have, at the next node."""
        return self.row.header.key.next()

    def change(self, status: Status, **fields: object) -> CustodyRow:
        """Set the row's status and fields; return the new row, to be saved.

        Raises:
            AssertionError: If `TRANSITIONS` does not allow it: a fault of ours.
        """
        assert status in TRANSITIONS[self.status], f"{self.key}: {self.status} -> {status}"
        self.row = replace(self.row, status=status.value, **fields)  # type: ignore[arg-type]
        return self.row
