"""Advertisements: what a node says of its data, compute, models and links (DA-ITN G-KRRM).

Fields are typed and have units; nobody adds them up into one number but the packet itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from aats.ids import NodeId, PacketId


class Role(StrEnum):
    """What a node offers (DA-ITN roles)."""

    DATA = "data"
    COMPUTE = "compute"
    MPVU = "mpvu"
    OWNER = "owner"
    TRANSIT = "transit"


class ProbeMode(StrEnum):
    """What a data node lets a packet learn of its data before a visit."""

    SCORE = "score"
    """The model comes to the data, clipped scalars leave."""
    MINIBATCH = "minibatch"
    """Raw samples leave: for peers that are trusted with them."""
    NONE = "none"
    """Adverts only."""


@dataclass(frozen=True, slots=True)
class LinkAdvert:
    """A live link to a neighbour as its owner sees it."""

    peer: NodeId
    bandwidth_bps: float
    """Bits per second."""
    latency_s: float
    """One way, seconds."""
    loss: float = 0.0
    """Share of messages lost, 0-1."""


@dataclass(frozen=True, slots=True)
class DataAdvert:
    """What a node holds for one skill."""

    skill: str
    schema: str
    """Digest of feature names and types; a packet trains only on the schema it knows."""
    samples: int
    labels: tuple[int, ...] = ()
    """Label histogram of the training part; empty where the node's policy keeps it."""
    quality: float = 1.0
    """The node's own claim, 0-1 (share of clean samples). Nobody has checked it."""
    freshness_s: float = 0.0
    """Age of the newest sample in seconds."""
    seq: int = 1
    """Version of this data: changes when the data do."""
    delegate: NodeId = NodeId("")
    """The compute node trusted to work on this data; "" for the node itself."""
    view: str = ""
    """Which part of each sample the node sees; "" for all of it. A view alone is no stop."""


@dataclass(frozen=True, slots=True)
class ComputeAdvert:
    """What a node computes with."""

    samples_per_s: float = 0.0
    """Measured training samples per second of the reference step; 0: no compute offered."""
    memory_bytes: int = 0
    queue: int = 0
    """Visits waiting."""
    joules_per_sample: float = 0.0


@dataclass(frozen=True, slots=True)
class Partner:
    """A node that may work with others at the same moment, as seen from where a packet is."""

    node: NodeId
    data: tuple[DataAdvert, ...] = ()
    """For the skills the packet wants; empty for a node that only computes."""
    compute: ComputeAdvert = ComputeAdvert()
    transfer_s: float = 0.0
    """Expected seconds to move the packet there."""
    links: int = 1
    """Links between here and there."""


@dataclass(frozen=True, slots=True)
class NodePolicy:
    """What a node allows."""

    probe: ProbeMode = ProbeMode.SCORE
    max_packet_bytes: int = 4 << 30
    contributes_to: tuple[NodeId, ...] = ()
    """MPVUs to which the node gives samples for a test set."""
    streams: bool = False
    """Whether the node works along with packets that are elsewhere: what a method sends (say,
    activations of its rows, and their labels) then leaves the node."""


@dataclass(frozen=True, slots=True)
class Notice:
    """News of a packet: the epoch that is alive, or that it is home (`done`)."""

    packet: PacketId
    epoch: int
    done: bool = False


@dataclass(frozen=True, slots=True)
class Advert:
    """One node's link state: everything others may know of it."""

    origin: NodeId
    seq: int
    public_key: bytes
    """Ed25519; binds the node id to the key that signs its headers and records."""
    roles: tuple[Role, ...] = ()
    links: tuple[LinkAdvert, ...] = ()
    data: tuple[DataAdvert, ...] = ()
    compute: ComputeAdvert = ComputeAdvert()
    policy: NodePolicy = NodePolicy()
    notices: tuple[Notice, ...] = ()
    incarnation: int = 0
    """Starts of this node: volatile state others gave it is gone when it changes."""
    labels: dict[str, str] = field(default_factory=dict)
    """Free words for people (city, hospital name)."""


@dataclass(frozen=True, slots=True)
class SignedAdvert:
    """An advert as it floods: the signed body, and its age, which grows on the way."""

    origin: NodeId
    seq: int
    age_s: float
    body: bytes
    """`wire.encode_advert(Advert)`."""
    signature: bytes
    """Ed25519 over `body`."""
