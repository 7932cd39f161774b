"""How a packet chooses its next stop: the `RoutePolicy` protocol and what it sees.

A policy gets an `Observation` and a random source and returns a `Choice` with its reasons. It
knows nothing of sockets, clocks or tensors, so the same object runs live, simulated and in the
learning environment.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from aats.ids import NodeId
from aats.messages import ProbeScores

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class StopKind(StrEnum):
    """What a candidate stop would be visited for."""

    DATA = "data"
    MPVU = "mpvu"
    HOME = "home"


class Phase(StrEnum):
    """What the packet is after; decides which kinds of stop are legal."""

    SEEK = "seek"
    """Train: some target is not believed met."""
    VERIFY = "verify"
    """Every target is believed met, a verdict is missing."""
    RETURN = "return"
    """Everything verified, or the budget or the deadline is used up."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible next stop as the packet's topology (DRRT) shows it."""

    node: NodeId
    """Whose data, or which MPVU or owner."""
    kind: StopKind
    path: tuple[NodeId, ...]
    """Links to the stop, first link first; the last element is where the packet stops
    (`node`, or the compute node it trusts)."""
    transfer_s: float
    """Estimated seconds to move this packet there along the path."""
    compute_s: float
    """Estimated seconds of work there, its queue included."""
    samples: dict[str, int] = field(default_factory=dict)
    """Per wanted skill, training samples advertised."""
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Per wanted skill, the advertised histogram; a skill is absent where it is withheld."""
    quality: float = 1.0
    """Sample-weighted mean of the advertised quality."""
    freshness_s: float = 0.0
    age_s: float = 0.0
    """Of the advert."""
    visits: int = 0
    """By this packet, from its journal."""
    hops_since: int = -1
    """Hops since the last visit, -1 for never."""
    last_gain: float = 0.0
    hurt: bool = False
    """The last visit lowered trusted skill and the node's data have not changed since."""
    probe_allowed: bool = True
    data_seq: int = 0


@dataclass(frozen=True, slots=True)
class Topology:
    """One packet's knowledge, resource and reachability topology (DRRT), cut from the map."""

    here: NodeId
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy sees. `features[i]` describes `candidates[i]`; rows past their number are
    zero and masked."""

    features: FloatArray
    """[K, F], columns named by `observe.FEATURES`."""
    globals: FloatArray
    """[G], named by `observe.GLOBALS`."""
    mask: BoolArray
    """[K], True where the choice is legal now; never all False."""
    candidates: tuple[Candidate, ...]
    """At most K, same order as the rows."""
    phase: Phase
    here: NodeId
    probes: dict[NodeId, ProbeScores]
    """Probe results at hand, by candidate."""
    labels_used: dict[str, tuple[float, ...]]
    """Per skill, samples of each class trained on so far."""
    hop: int
    """Visits so far by this packet."""

    def legal(self) -> list[int]:
        """Return the indices of the legal candidates."""
        return [i for i in range(len(self.candidates)) if self.mask[i]]


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision and why: goes to the trace as it is."""

    index: int
    """Into `Observation.candidates`."""
    reason: str
    """In words, for a person."""
    scores: dict[NodeId, float] = field(default_factory=dict)
    """Per candidate considered, in the policy's own unit; higher is better."""


@runtime_checkable
class RoutePolicy(Protocol):
    """A routing policy. State between decisions belongs in the packet, not in the object."""

    name: str

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return indices of the candidates to probe before choosing, best first; often none."""
        ...

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the next stop among the legal candidates.

        Args:
            observation: What the packet knows; `mask` has at least one True.
            rng: Seeded from the packet and the hop, so that a decision can be repeated.
        """
        ...
