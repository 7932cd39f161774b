"""Gossip: several models walk by the packet's policy and average where their ways cross."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aats.advert import Partner
from aats.packet import Errand, Header, Plugin
from aats.routing.rendezvous import Finish, Fork, Plan
from aats_agents.rendezvous.base import check, is_done, stops


@dataclass(frozen=True, slots=True)
class GossipRendezvous:
    """`walkers` children go where their policy leads them; after `visits` stops they all meet.

    With `meet` a walker averages, before it trains, with the last other walker that was at the
    node and left a copy there: nobody waits for anybody (gossip learning: Ormandi et al. 2013).
    Walkers differ by what chance their policy takes: one that leaves nothing to chance leads
    them all the same way.

    Raises:
        ValueError: On a figure out of range.
    """

    walkers: int = 4
    visits: int = 10
    """Stops of each walker between two merges."""
    meet: bool = True
    rounds: int = 0
    """Merges after which the packet goes home, its requirement met or not; 0: no such bound."""
    within_s: float = 300.0
    """The walkers are merged at the latest so long after they set out."""
    quorum: float = 0.5
    """Share of the walkers without which nothing is merged, and all set out again."""
    weighting: str = "equal"
    """"equal": all alike; "samples": by the rows each trained on."""

    def __post_init__(self) -> None:
        check(self.within_s, self.quorum, self.weighting, rounds=self.rounds)
        if self.walkers < 1 or self.visits < 1:
            raise ValueError(
                f"walkers is {self.walkers}, visits is {self.visits}; both must be at least 1"
            )

    @property
    def merge(self) -> str | Plugin:
        """The mean."""
        return Plugin("mean", {"weighting": self.weighting})

    def plan(
        self, header: Header, partners: Sequence[Partner], now: float, rng: random.Random
    ) -> Plan | None:
        """Return one errand a walker; None where there is nowhere to walk."""
        if is_done(header, self.rounds):
            return Finish()
        if not stops(partners):
            return None
        errand = Errand(visits=self.visits, meet=self.meet)
        return Fork((errand,) * self.walkers, self.within_s, self.quorum)
