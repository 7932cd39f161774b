"""Federated averaging (McMahan et al. 2017) as errands of one packet's children."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aats.advert import Partner
from aats.lineage import RecordKind
from aats.packet import Errand, Header
from aats_agents.rendezvous.base import Rounds, at_least, drawn, stops


@dataclass(frozen=True, slots=True)
class FedAvgRendezvous(Rounds):
    """Each round: one child to each client, one visit there, back, and the weighted mean.

    No node is the server: the round meets wherever the packet is, and with `move` somewhere else
    each time. The learning rate decays by the round (`cycle`), and `proximal` in the method's
    parameters makes it FedProx.

    Raises:
        ValueError: On a figure out of range.
    """

    clients: int = 0
    """Nodes a round, drawn anew each time; 0: every node in reach that holds wanted data."""
    within_s: float = 60.0
    weighting: str = "samples"
    move: bool = False
    """Between rounds the packet moves to a node of its policy's choice: no fixed meeting point."""

    def __post_init__(self) -> None:
        Rounds.__post_init__(self)
        at_least(0, clients=self.clients)

    def errands(
        self, header: Header, partners: Sequence[Partner], rng: random.Random
    ) -> tuple[Errand, ...]:
        """Return one errand a client; none without clients, or where it shall move first."""
        if self.move and met_here(header, partners):
            return ()
        return tuple(Errand((node,)) for node in drawn(stops(partners), self.clients, rng))


def met_here(header: Header, partners: Sequence[Partner]) -> bool:
    """Return whether the last thing that happened to the packet was a merge at this very node.

    A node without wanted data is none of the partners; a packet only moves on to nodes with some,
    so one that is at none of them has not moved.
    """
    if not header.chain or header.chain[-1].kind is not RecordKind.MERGE:
        return False
    here = [partner.node for partner in partners if partner.links == 0]
    return not here or here[0] == header.chain[-1].node
