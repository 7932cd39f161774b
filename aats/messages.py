"""Every message on the control lane, as plain values. Packets' tensors go on the bulk lane."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from aats.advert import SignedAdvert
from aats.ids import CustodyKey, NodeId, PacketId, Version
from aats.packet import Architecture, Header
from aats.payload import Manifest


class RefusalReason(StrEnum):
    """Why a node does not take a packet or answer a request."""

    FULL = "full"
    NOT_TRUSTED = "not-trusted"
    SCHEMA = "schema-mismatch"
    TOO_LARGE = "too-large"
    OLDER_EPOCH = "older-epoch"
    DONE = "done"
    BAD_SIGNATURE = "bad-signature"
    BAD_LINEAGE = "bad-lineage"
    BAD_MODEL = "bad-model"
    QUERY_BUDGET = "query-budget"
    PRIVACY = "privacy"
    UNKNOWN = "unknown"
    FAILED = "failed"


# --- link state -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flood:
    """Adverts that are new to the sender."""

    adverts: tuple[SignedAdvert, ...]


@dataclass(frozen=True, slots=True)
class SummaryEntry:
    """One line of a summary."""

    origin: NodeId
    seq: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What the sender knows: anti-entropy on contact and from time to time."""

    entries: tuple[SummaryEntry, ...]


@dataclass(frozen=True, slots=True)
class Pull:
    """Asks for the adverts of these origins; with none named, for a summary of all."""

    origins: tuple[NodeId, ...]


# --- custody ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer:
    """Offers a packet under the key it will have at the receiver.

    The header is signed by the sender (`header.holder`). `onward` and `data_of` belong to this
    link, not to the packet: the rest of the path to the chosen stop, and whose data to visit
    there (a compute node may hold those of others). Any node on the path may override them.
    """

    key: CustodyKey
    header: Header
    onward: tuple[NodeId, ...] = ()
    data_of: NodeId = NodeId("")


@dataclass(frozen=True, slots=True)
class Accept:
    """Takes the offer; names the tensor digests it already holds (HAVE)."""

    key: CustodyKey
    known: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """Does not take the offer, and why."""

    key: CustodyKey
    reason: RefusalReason
    detail: str = ""
    epoch: int = 0
    """The epoch the refuser knows to be alive (for OLDER_EPOCH)."""


@dataclass(frozen=True, slots=True)
class Custody:
    """The receiver has the packet durably: the sender's copy is now the spare."""

    key: CustodyKey


@dataclass(frozen=True, slots=True)
class Moved:
    """The packet has left the sender for good (or is home): the spare behind may go."""

    key: CustodyKey
    """The key at the sender of this message."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Custodian to spare holder: I still have it."""

    key: CustodyKey


@dataclass(frozen=True, slots=True)
class Ask:
    """Spare holder to custodian: what became of it?"""

    key: CustodyKey


@dataclass(frozen=True, slots=True)
class Superseded:
    """A copy of this packet with a higher epoch is alive: drop the one you have."""

    key: CustodyKey
    """The living key's packet and epoch."""


# --- requests relayed hop by hop ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProbeAsk:
    """Asks a data node what a visit would bring.

    Mode score: the model comes, scalars leave. Mode minibatch: no tensors, samples come back.
    """

    packet: PacketId
    version: Version
    architecture: Architecture
    skills: tuple[str, ...]
    seed: int
    method_lr: float = 0.0
    """Learning rate for trial steps; 0: the probe's default."""
    manifest: Manifest = Manifest()
    tensors: bytes = b""
    data_of: NodeId = NodeId("")
    """Whose data, where a compute node holds those of others; "" for the node's own."""


@dataclass(frozen=True, slots=True)
class ProbeScores:
    """What a probe found, clipped. Losses are mean cross-entropies over the skills asked."""

    gain: float
    """Fall of the loss on the packet's reference set after a few trial steps here."""
    alignment: float
    """Projection of the minibatch's gradient on the reference set's, normalised to -1..1."""
    loss: float
    """Loss of the packet's model on this node's minibatch."""
    gradient_norm: float
    samples: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """Answer to a probe: scores, or (mode minibatch) raw samples, or a refusal."""

    scores: ProbeScores | None = None
    manifest: Manifest = Manifest()
    tensors: bytes = b""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples a data node gives to an MPVU (for its test set) or to the compute node it trusts."""

    purpose: str
    """"verify" or "train"."""
    incarnation: int
    """Of the receiver, as the sender knows it."""
    manifest: Manifest = Manifest()
    tensors: bytes = b""


@dataclass(frozen=True, slots=True)
class SamplesAck:
    """The receiver keeps the samples."""

    purpose: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Custodian to owner: the packet is here. Lets the owner follow it, and know it is not lost."""

    key: CustodyKey


# --- streams: nodes that do a visit together ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class StreamOpening:
    """What a partner needs to know before it takes part; comes with the first frame."""

    header: Header
    """The packet's mandate and numbers, without its history."""
    partners: tuple[NodeId, ...]
    """All who take part besides the leader: they may speak to each other."""


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """A frame of a stream, or a part of one that is large.

    The session is the relay's `request`. Parts are counted per session and direction; what is
    not acknowledged is sent again.
    """

    seq: int
    ack: int
    """Parts received so far in the other direction, without a gap."""
    kind: str
    """In the method's own words; the same for all parts of a frame."""
    manifest: Manifest = Manifest()
    """Of the whole frame; with its last part only."""
    tensors: bytes = b""
    """This part's share of the arena."""
    numbers: dict[str, float] = field(default_factory=dict)
    more: bool = False
    """Further parts belong to the same frame."""
    opening: StreamOpening | None = None
    account: dict[str, float] = field(default_factory=dict)
    """To the leader: `joules`, and bytes by "sender>receiver"; since the session began."""


@dataclass(frozen=True, slots=True)
class StreamAck:
    """A sign of life, and how much has arrived."""

    ack: int
    account: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The sender takes no part in the session (any more)."""

    reason: str = ""


RelayBody = (
    ProbeAsk | ProbeReply | Samples | SamplesAck | Whereabouts | StreamFrame | StreamAck | StreamEnd
)


@dataclass(frozen=True, slots=True)
class Relay:
    """A request or an answer to a node that is no neighbour; forwarded along the map."""

    src: NodeId
    dst: NodeId
    request: str
    """Chosen by the asker; an answer repeats it."""
    ttl: int
    body: RelayBody = field(default_factory=lambda: SamplesAck("", 0))
    signature: bytes = b""
    """Of `src` over all but `ttl`: nobody on the way can speak for it. A probe has none (the
    shell puts its tensors in), and says nothing that anybody believes."""


Message = (
    Flood | Summary | Pull | Offer | Accept | Refuse | Custody | Moved | Alive | Ask | Superseded
    | Relay
)  # fmt: skip
