"""Work that a node core asks its shell to do, and what comes back. No tensors in here.

A task is run outside the event loop (live) or in line on the virtual clock (simulated), by the
same function `aats.roles.runner.run_task(task, context)`. Every outcome comes back as a
`TaskFinished` or `TaskFailed` event.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aats.advert import ComputeAdvert, Partner
from aats.ids import CustodyKey, NodeId
from aats.messages import ProbeAsk, ProbeReply, ProbeScores, Samples
from aats.packet import Header, Plugin, SkillEstimate
from aats.payload import Manifest


@dataclass(frozen=True, slots=True)
class Beside:
    """A payload that a task reads besides its packet's own: where the store has it."""

    key: CustodyKey
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class VisitTask:
    """Let the packet's method work on this node's data (WORK and ASSESS)."""

    header: Header
    data_of: NodeId
    """Whose data: this node's, or those of a node that entrusted them to it."""
    partners: tuple[Partner, ...] = ()
    """Nodes that do the visit together with this one, by streams (`aats.learning.stream`)."""
    compute: ComputeAdvert = ComputeAdvert()
    """What this node computes with, as it advertises it."""
    bandwidth_bps: float = 0.0
    """Of this node's fastest live link, bits per second; 0 where it has none."""
    met: Beside | None = None
    """What a sibling left here, averaged with the packet's own model before it trains."""


@dataclass(frozen=True, slots=True)
class VisitResult:
    """What a visit did. The new tensors lie in the shell's store under the packet's key."""

    manifest: Manifest
    """Of the payload as it leaves (unchanged if nothing was trained or all was rolled back)."""
    estimates: tuple[SkillEstimate, ...]
    """On the packet's reference set and on local held-out data, for the new version."""
    action: str
    """"train" or "rolled-back"."""
    note: str = ""
    gain: float = 0.0
    """Change of the mean capped skill value (value / target, at most 1) on the reference set."""
    steps: int = 0
    samples: int = 0
    loss_before: float = 0.0
    loss_after: float = 0.0
    labels_used: dict[str, list[float]] = field(default_factory=dict)
    trained: dict[str, float] = field(default_factory=dict)
    """The method's numbers for the header (replaces `Header.trained`)."""
    flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Spoken:
    """A frame of a stream, as a task gives it to its core or gets it."""

    node: NodeId
    """Whom it is for, or whom it is from."""
    kind: str
    manifest: Manifest = Manifest()
    tensors: bytes = b""
    numbers: dict[str, float] = field(default_factory=dict)
    wire_bytes: int = 0
    """What came: its size on each link, framing included."""
    joules: float = 0.0
    """What goes: spent by the task so far."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A node that took part in a stream will say no more."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class FollowTask:
    """Do a partner's side of a stream with this node's data."""

    about: Header
    """The packet's mandate and numbers; it is not here."""
    leader: NodeId
    partners: tuple[NodeId, ...]
    """All who take part besides the leader, this node too."""
    opening: Spoken


@dataclass(frozen=True, slots=True)
class FollowResult:
    """A partner's side has ended. What came of it is at the leader's."""


@dataclass(frozen=True, slots=True)
class MergePart:
    """A child that came back to be merged."""

    payload: Beside
    samples: int
    """Rows it trained on since the fork."""
    nodes: tuple[NodeId, ...]
    """Whose they were, in order."""


@dataclass(frozen=True, slots=True)
class MergeTask:
    """Make one model of a packet's children, and judge it on what the packet trusts."""

    header: Header
    """The trunk as it forked, without its chain."""
    rule: Plugin
    """The merge rule (`aats.merges`)."""
    parts: tuple[MergePart, ...]


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge made. The new tensors lie in the shell's store under the task's number."""

    manifest: Manifest
    """The trunk's own if the merge was undone."""
    estimates: tuple[SkillEstimate, ...]
    """On the packet's reference set, for the new version."""
    note: str = ""
    """Why it was undone or a child left out, "" otherwise."""
    gain: float = 0.0
    """Change of the mean capped skill on the reference set, against the trunk as it forked."""
    loss_before: float = 0.0
    loss_after: float = 0.0
    left_out: tuple[int, ...] = ()
    """Places among the parts of those that could not be used."""


@dataclass(frozen=True, slots=True)
class ProbeTask:
    """Score a packet's model on this node's minibatch, or on `batch` that another node sent."""

    ask: ProbeAsk
    batch: ProbeReply | None = None
    header: Header | None = None
    """Set when the packet itself is here and its model is in the store (scoring a batch)."""


@dataclass(frozen=True, slots=True)
class BatchTask:
    """Draw a raw minibatch to hand out (probe mode minibatch)."""

    ask: ProbeAsk


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Outcome of a `ProbeTask` (scores) or a `BatchTask` (reply with samples)."""

    reply: ProbeReply


@dataclass(frozen=True, slots=True)
class VerifyTask:
    """Measure the packet's model on this MPVU's test set."""

    header: Header


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """Unsigned verdict: one estimate per target skill; the core signs."""

    estimates: tuple[SkillEstimate, ...]
    test_set: str = ""
    """Content hash of the test set, for the record."""
    manifest: Manifest | None = None
    """Of the payload as it leaves, if contributions were taken out before it was measured."""
    harms: dict[str, float] = field(default_factory=dict)
    """By contribution, what was taken out and how much it harmed."""


@dataclass(frozen=True, slots=True)
class ContributeTask:
    """Choose the samples this node gives away for `purpose` ("verify" or "train")."""

    purpose: str
    to: NodeId
    incarnation: int


@dataclass(frozen=True, slots=True)
class ContributeResult:
    """The samples chosen, ready to send."""

    samples: Samples


@dataclass(frozen=True, slots=True)
class AdoptTask:
    """Add samples another node gave us to our test set or to the data we work on for it."""

    giver: NodeId
    samples: Samples


@dataclass(frozen=True, slots=True)
class AdoptResult:
    """The samples are kept (False: refused, e.g. an outlier site; see note)."""

    accepted: bool
    note: str = ""


Task = (
    VisitTask | MergeTask | ProbeTask | BatchTask | VerifyTask | ContributeTask | AdoptTask
    | FollowTask
)  # fmt: skip
Result = (
    VisitResult | MergeResult | ProbeResult | VerifyResult | ContributeResult | AdoptResult
    | FollowResult
)  # fmt: skip
Told = Spoken | Lost
"""What a running task is told."""


def others_of(task: Task) -> tuple[Beside, ...]:
    """Return the payloads that a task reads besides its packet's own."""
    match task:
        case MergeTask(parts=parts):
            return tuple(part.payload for part in parts)
        case VisitTask(met=Beside() as met):
            return (met,)
        case _:
            return ()


@dataclass(frozen=True, slots=True)
class Spending:
    """What a task cost, as the shell measured (live) or computed (simulated) it."""

    seconds: float = 0.0
    joules: float = 0.0


__all__ = [
    "AdoptResult", "AdoptTask", "BatchTask", "Beside", "ContributeResult", "ContributeTask",
    "FollowResult", "FollowTask", "Lost", "MergePart", "MergeResult", "MergeTask", "ProbeResult",
    "ProbeScores", "ProbeTask", "Result",
    "Spending", "Spoken", "Task", "Told", "VerifyResult", "VerifyTask", "VisitResult",
    "VisitTask",
]  # fmt: skip
