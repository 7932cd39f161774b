"""Federated averaging (McMahan et al. 2017) as errands of one packet's children."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aats.advert import Partner
from aats.lineage import RecordKind
from aats.packet import Errand, Header, Plugin
from aats.routing.rendezvous import Finish, Fork, Plan
from aats_agents.rendezvous.base import check, drawn, is_done, stops


@dataclass(frozen=True, slots=True)
class FedAvgRendezvous:
    """Each round: one child to each client, one visit there, back, and the weighted mean.

    No node is the server: the round meets wherever the packet is, and with `move` somewhere else
    each time. The learning rate decays by the round (`cycle`), and `proximal` in the method's
    parameters makes it FedProx.

    Raises:
        ValueError: On a figure out of range.
    """

    clients: int = 0
    """Nodes a round, drawn anew each time; 0: every node in reach that holds wanted data."""
    rounds: int = 0
    """Merges after which the packet goes home, its requirement met or not; 0: no such bound."""
    within_s: float = 60.0
    """A round is merged at the latest so long after the fork."""
    quorum: float = 0.5
    """Share of the children without which a round is repeated."""
    weighting: str = "samples"
    """"samples": by the rows each client trained on; "equal": all alike."""
    move: bool = False
    """Between rounds the packet moves to a node of its policy's choice: no fixed meeting point."""

    def __post_init__(self) -> None:
        check(self.within_s, self.quorum, self.weighting, clients=self.clients, rounds=self.rounds)

    @property
    def merge(self) -> str | Plugin:
        """The weighted mean."""
        return Plugin("mean", {"weighting": self.weighting})

    def plan(
        self, header: Header, partners: Sequence[Partner], now: float, rng: random.Random
    ) -> Plan | None:
        """Return one errand a client; None without clients, or where it shall move first."""
        if is_done(header, self.rounds):
            return Finish()
        nodes = stops(partners)
        if not nodes or (self.move and met_here(header, partners)):
            return None
        errands = tuple(Errand((node,)) for node in drawn(nodes, self.clients, rng))
        return Fork(errands, self.within_s, self.quorum)


def met_here(header: Header, partners: Sequence[Partner]) -> bool:
    """Return whether the last thing that happened to the packet was a merge at this very node.

    A node without wanted data is none of the partners; a packet only moves on to nodes with some,
    so one that is at none of them has not moved.
    """
    if not header.chain or header.chain[-1].kind is not RecordKind.MERGE:
        return False
    here = [partner.node for partner in partners if partner.links == 0]
    return not here or here[0] == header.chain[-1].node
