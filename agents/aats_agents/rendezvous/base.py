"""What rendezvous with forks share: rounds of errands, merged by a mean."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from aats.advert import Partner
from aats.ids import NodeId
from aats.packet import Errand, Header, Plugin
from aats.routing.rendezvous import Finish, Fork, Plan

WEIGHTINGS = "samples", "equal"


@dataclass(frozen=True, slots=True)
class Rounds(ABC):
    """Rounds of a fork and a merge; which errands a round has is for each kind to say.

    Raises:
        ValueError: On a figure out of range, naming it and what is allowed.
    """

    rounds: int = 0
    """Merges after which the packet goes home, its requirement met or not; 0: no such bound."""
    within_s: float = 300.0
    """A round is merged at the latest so long after the fork."""
    quorum: float = 0.5
    """Share of the children without which nothing is merged, and all set out again."""
    weighting: str = "equal"
    """"equal": all alike; "samples": by the rows each trained on."""

    def __post_init__(self) -> None:
        if not 0 < self.within_s < inf:
            raise ValueError(f"within_s is {self.within_s}, must be positive and finite")
        if not 0 <= self.quorum <= 1:
            raise ValueError(f"quorum is {self.quorum}, must be between 0 and 1")
        if self.weighting not in WEIGHTINGS:
            allowed = ", ".join(WEIGHTINGS)
            raise ValueError(f"weighting is {self.weighting!r}, allowed are {allowed}")
        at_least(0, rounds=self.rounds)

    @property
    def merge(self) -> str | Plugin:
        """The mean."""
        return Plugin("mean", {"weighting": self.weighting})

    def plan(
        self, header: Header, partners: Sequence[Partner], now: float, rng: random.Random
    ) -> Plan | None:
        """Return the next round, None without errands; the end after `rounds`."""
        if 0 < self.rounds <= header.trained.get("cycle", 0):
            return Finish()
        errands = self.errands(header, partners, rng)
        return Fork(errands, self.within_s, self.quorum) if errands else None

    @abstractmethod
    def errands(
        self, header: Header, partners: Sequence[Partner], rng: random.Random
    ) -> tuple[Errand, ...]:
        """Return the errands of one round, one for each child; none where nobody can train."""


def at_least(low: int, **counts: int) -> None:
    """Check counts.

    Raises:
        ValueError: Naming the first that is too low.
    """
    for name, count in counts.items():
        if count < low:
            raise ValueError(f"{name} is {count}, must be at least {low}")


def stops(partners: Sequence[Partner]) -> list[NodeId]:
    """Return the nodes that a child can train at: a view of the data alone is none."""
    return [p.node for p in partners if any(data.samples and not data.view for data in p.data)]


def drawn(nodes: list[NodeId], clients: int, rng: random.Random) -> list[NodeId]:
    """Return the nodes that take part: all in the order given, or `clients` of them by lot."""
    return rng.sample(nodes, min(clients, len(nodes))) if clients else nodes
