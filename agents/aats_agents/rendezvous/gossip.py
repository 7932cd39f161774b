"""Gossip: several models walk by the packet's policy and average where their ways cross."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aats.advert import Partner
from aats.packet import Errand, Header
from aats_agents.rendezvous.base import Rounds, at_least, stops


@dataclass(frozen=True, slots=True)
class GossipRendezvous(Rounds):
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

    def __post_init__(self) -> None:
        Rounds.__post_init__(self)
        at_least(1, walkers=self.walkers, visits=self.visits)

    def errands(
        self, header: Header, partners: Sequence[Partner], rng: random.Random
    ) -> tuple[Errand, ...]:
        """Return one errand a walker; none where there is nowhere to walk."""
        errand = Errand(visits=self.visits, meet=self.meet)
        return (errand,) * self.walkers if stops(partners) else ()
