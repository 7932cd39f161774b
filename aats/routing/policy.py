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
from aats.topology.stops import Candidate, StopKind, Topology

__all__ = [
    "BoolArray", "Candidate", "Choice", "FloatArray", "Observation", "Phase", "RoutePolicy",
    "StopKind", "Topology",
]  # fmt: skip

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class Phase(StrEnum):
    """What the packet is after; decides which kinds of stop are legal."""

    SEEK = "seek"
    """Train: some target is not believed met."""
    VERIFY = "verify"
    """Every target is believed met, a verdict is missing."""
    RETURN = "return"
    """Everything verified, or the budget or the deadline is used up."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy sees.

    `features[i]` describes `candidates[i]`; rows past their number are zero and masked.
    """

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
    """Visits to data nodes so far by this packet."""
    visited: tuple[NodeId, ...] = ()
    """Whose data the packet visited, newest last; as long as the journal remembers."""
    seed: int = 0
    """The packet's own: what must be the same at every stop is drawn from it."""

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
    """A routing policy. State between decisions belongs in the packet, not in the object.

    One that goes by names alone may set `sees_all = True`: then every candidate has a row in what
    it observes, and not only the most promising (`aats.routing.observe.ROWS`).
    """

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
