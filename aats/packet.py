"""The AI packet: a header with a return address and no destination (DA-ITN IV).

The header has two parts. The *mandate* is what the owner wants; the owner signs it once and
nobody changes it. The rest is the packet's state on its way; the node that holds it signs the
whole header when it hands the packet on. Tensors travel beside it (`aats.payload`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Any

from aats.ids import BRANCH, CustodyKey, NodeId, PacketId, Version
from aats.lineage import Record, RecordKind
from aats.payload import Manifest

TRAIL_LENGTH = 64
"""Nodes kept in `Header.trail`; bounds the header's size."""
JOURNAL_LENGTH = 128
"""Visits kept in the header; `Header.chain` has the whole story. Bounds the header's size."""
PROBES_KEPT = 64
"""Probes kept in the header, each of another node."""


class PacketKind(StrEnum):
    """What the packet carries: a model to train, a query to answer, a model to deploy."""

    TRAIN = "train"
    QUERY = "query"
    DEPLOY = "deploy"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in by entry-point name, with its parameters (JSON values only)."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)


METHOD, POLICY = Plugin("sequential"), Plugin("rl")
"""What a packet does at a stop, and how it picks its next one, unless its owner says otherwise."""


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a requirement: this skill, by this metric, at least this value."""

    skill: str
    value: float
    metric: str = "accuracy"
    verifier: str = "mpvu"
    """Who must have said so: "mpvu" (any MPVU, signed) or "any" (an own estimate will do)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What has been, or may be, spent. As a budget, infinity is "as much as needed"."""

    hops: float = 0.0
    seconds: float = 0.0
    bytes: float = 0.0
    joules: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.hops + other.hops,
            self.seconds + other.seconds,
            self.bytes + other.bytes,
            self.joules + other.joules,
        )

    def exceeds(self, budget: Cost) -> bool:
        """Return whether any part is above the budget's."""
        return (
            self.hops > budget.hops
            or self.seconds > budget.seconds
            or self.bytes > budget.bytes
            or self.joules > budget.joules
        )


UNLIMITED = Cost(inf, inf, inf, inf)


@dataclass(frozen=True, slots=True)
class Owner:
    """The return address: the node the packet comes home to, and its Ed25519 public key."""

    node: NodeId
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build the module the tensors belong to: a registry name and its config."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)


class EstimateSource(StrEnum):
    """Where a skill estimate comes from, least trusted first."""

    LOCAL = "local"
    """A node's own held-out data."""
    REFERENCE = "reference"
    """The small trusted set that the packet carries."""
    MPVU = "mpvu"
    """A verification unit's signed verdict."""


@dataclass(frozen=True, slots=True)
class SkillEstimate:
    """The latest estimate of one skill: value with a 95 % interval, on n samples, by whom."""

    skill: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    by: NodeId
    source: EstimateSource
    version: Version
    """The model version that was measured."""
    signature: bytes = b""
    """The MPVU's Ed25519 signature over the verdict (`aats.ledger.record.verdict_bytes`)."""


@dataclass(frozen=True, slots=True)
class VisitEntry:
    """One line of the journal: a stop, and what came of it."""

    node: NodeId
    hop: int
    action: str
    """"train", "verify", "refused" or "rolled-back"."""
    gain: float
    """Change of the mean capped skill on trusted data (0 where nothing was trained)."""
    samples: int
    advert_data_seq: int
    """The node's data-advert version at that time: a node that hurt is avoided until it changes."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ProbeEntry:
    """What the last probe of a node found, so that it need not be asked again at every stop."""

    node: NodeId
    hop: int
    gain: float
    """As `aats.messages.ProbeScores` has them."""
    alignment: float
    loss: float
    advert_data_seq: int


@dataclass(frozen=True, slots=True)
class Mandate:
    """What the owner wants, signed once by the owner. There is no destination in it."""

    id: PacketId
    kind: PacketKind
    owner: Owner
    created: float
    """Unix seconds (virtual seconds in the simulated world)."""
    deadline: float
    """Unix seconds after which the packet goes home whatever it has; infinity for none."""
    requirement: tuple[Target, ...]
    budget: Cost
    architecture: Architecture
    method: Plugin
    policy: Plugin
    seed: int
    label: str = ""
    """A name for people."""
    rendezvous: Plugin | None = None
    """How it works at several nodes at one moment; None: at one after the other only."""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Errand:
    """What one child of a fork does before it goes back to be merged."""

    itinerary: tuple[NodeId, ...] = ()
    """Whose data to visit, in this order; empty: its policy picks each stop."""
    visits: int = 1
    """Stops after which it goes back; an itinerary that is done ends the errand, too."""
    meet: bool = False
    """Average with the last sibling that left a copy at a stop before training there."""
    until: float = inf
    """When it goes back whatever it has done, in seconds of the deadline's clock; set at the
    fork."""

    @property
    def is_over(self) -> bool:
        """Whether every stop is done."""
        return self.visits <= 0

    def after_stop(self) -> Errand:
        """Return what is left after one more stop, whatever came of it."""
        left = self.itinerary[1:]
        over = bool(self.itinerary) and not left
        return replace(self, itinerary=left, visits=0 if over else self.visits - 1)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an AI packet: the mandate and the packet's state on its way."""

    mandate: Mandate
    hop: int = 0
    """Custody moves so far (links travelled)."""
    epoch: int = 0
    spent: Cost = Cost()
    skills: tuple[SkillEstimate, ...] = ()
    """At most one per (skill, source)."""
    version: Version = Version("")
    """Content hash of the `model.` tensors in the manifest."""
    base: Version = Version("")
    """The version the packet left its owner with."""
    chain: tuple[Record, ...] = ()
    """The packet's whole signed history, oldest first; hash-linked, so any node can check it."""
    probe_bytes: float = 0.0
    """Part of `spent.bytes` that went into probes."""
    journal: tuple[VisitEntry, ...] = ()
    probed: tuple[ProbeEntry, ...] = ()
    """At most one per node, the newest last."""
    labels_used: dict[str, list[float]] = field(default_factory=dict)
    """Per skill, samples of each class trained on so far (Tram-FL's cumulative counts)."""
    trained: dict[str, float] = field(default_factory=dict)
    """Method state that is a number: e.g. {"visits": 7, "cycle": 1}."""
    manifest: Manifest = Manifest()
    itinerary: tuple[NodeId, ...] = ()
    """Only if one was computed centrally; empty for a packet that steers itself."""
    trail: tuple[NodeId, ...] = ()
    """The nodes that had custody of it, each once, the latest last: they have a say in which of
    its copies lives."""
    branch: str = ""
    """Which child of a fork it is (`aats.ids.branch_name`); "" for the trunk."""
    errand: Errand | None = None
    """What a child has left to do; None for the trunk."""
    rendezvous: NodeId = NodeId("")
    """Where a child goes back to, to be merged; "" for the trunk."""
    awaited: tuple[PacketId, ...] = ()
    """The children the trunk waits for; while there are any it stays where it is."""
    merge_by: float = 0.0
    """When it merges those that are back, in seconds of the deadline's clock."""
    quorum: float = 0.0
    """Share of the children without which it does not."""
    holder: NodeId = NodeId("")
    """Who signed this state."""
    signature: bytes = b""

    @property
    def lineage(self) -> str:
        """Id of the last ledger record, "" before the first."""
        return self.chain[-1].id if self.chain else ""

    @property
    def id(self) -> PacketId:
        """The packet's id; a child has one of its own."""
        return PacketId(self.mandate.id + self.branch)

    @property
    def key(self) -> CustodyKey:
        """The key of custody for this copy."""
        return CustodyKey(self.id, self.hop, self.epoch)

    @property
    def home(self) -> NodeId:
        """Where it returns to: a child to its rendezvous, the trunk to its owner."""
        return self.rendezvous or self.mandate.owner.node

    @property
    def fork_epoch(self) -> int:
        """The trunk's epoch when this child set out: with that trunk it lives and dies."""
        found = BRANCH.fullmatch(self.branch)
        return int(found[2]) if found else self.epoch

    @property
    def hops_left(self) -> float:
        """Hops left of the budget (TTL)."""
        return self.mandate.budget.hops - self.spent.hops

    def estimate(self, target: Target) -> SkillEstimate | None:
        """Return the most trusted estimate for a target, whatever version it measured."""
        rank = {source: i for i, source in enumerate(EstimateSource)}
        found = [s for s in self.skills if s.skill == target.skill and s.metric == target.metric]
        return max(found, key=lambda s: rank[s.source], default=None)

    def belief(self, target: Target) -> float | None:
        """Return the newest value believed for a target: of this version, most trusted first."""
        found = [s for s in self.skills if s.skill == target.skill and s.metric == target.metric]
        rank = {source: i for i, source in enumerate(EstimateSource)}
        current = [s for s in found if s.version == self.version] or found
        best = max(current, key=lambda s: rank[s.source], default=None)
        return best.value if best else None

    def met(self, target: Target) -> bool:
        """Return whether a target is met by this very version, by whom it must be."""
        wanted = {EstimateSource.MPVU} if target.verifier == "mpvu" else set(EstimateSource)
        return any(
            s.skill == target.skill
            and s.metric == target.metric
            and s.version == self.version
            and s.source in wanted
            and s.value >= target.value
            for s in self.skills
        )

    @property
    def requirement_met(self) -> bool:
        """Whether every target is met."""
        return all(self.met(t) for t in self.mandate.requirement)

    def with_estimates(self, new: tuple[SkillEstimate, ...]) -> Header:
        """Return the header with estimates of the same (skill, metric, source) replaced."""
        fresh = {(s.skill, s.metric, s.source) for s in new}
        kept = tuple(s for s in self.skills if (s.skill, s.metric, s.source) not in fresh)
        return replace(self, skills=kept + new)

    @property
    def forked(self) -> Record | None:
        """The record of the last fork, None before the first."""
        forks = (r for r in reversed(self.chain) if r.kind is RecordKind.FORK)
        return next(forks, None)

    def joined_chain(self, *others: Header | None) -> tuple[Record, ...]:
        """Return the packet's history and that of others of its family, each record once.

        Of the others it is what their last record follows: what else they bring joins nothing.
        """
        histories = (self.chain, *(other._history() for other in others if other))
        return tuple({r.id: r for history in histories for r in history}.values())

    def follows(self, record: str) -> bool:
        """Return whether the last record of the chain is, or comes after, the one of this id."""
        return record == self.lineage or any(record in r.parents for r in self._history())

    def _history(self) -> tuple[Record, ...]:
        """Return the last record of the chain and all it follows, in the chain's order."""
        known = {r.id: r for r in self.chain}
        found, left = set[str](), [self.lineage]
        while left:
            name = left.pop()
            if name in known and name not in found:
                found.add(name)
                left += known[name].parents
        return tuple(r for r in self.chain if r.id in found)

    def on_own_hop(self) -> Header:
        """Return the header on a hop on which nothing has taken effect yet.

        A hop in place rises without a link and costs none, so that what is done next at the same
        node is an effect of its own.
        """
        used = any(r.hop == self.hop and r.kind is not RecordKind.INIT for r in self.chain)
        used = used or any(entry.hop == self.hop for entry in self.journal)
        return replace(self, hop=self.hop + 1) if used else self

    def moved_by(self, node: NodeId) -> Header:
        """Return the header one hop on, `node` having had custody of it."""
        trail = (*(n for n in self.trail if n != node), node)[-TRAIL_LENGTH:]
        return replace(self, hop=self.hop + 1, trail=trail)

    def with_visit(self, entry: VisitEntry) -> Header:
        """Return the header with one more line in the journal (the oldest falls off)."""
        return replace(self, journal=(*self.journal, entry)[-JOURNAL_LENGTH:])

    def with_probes(self, new: tuple[ProbeEntry, ...]) -> Header:
        """Return the header with these probes remembered instead of older ones."""
        fresh = {entry.node for entry in new}
        kept = tuple(entry for entry in self.probed if entry.node not in fresh)
        return replace(self, probed=(*kept, *new)[-PROBES_KEPT:])
