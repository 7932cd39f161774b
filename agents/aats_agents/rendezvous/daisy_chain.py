"""Daisy-chaining (FedDC: Kamp et al., ICLR 2023): models go round the nodes, and meet at times.

Averaging needs enough data at each client for a local model worth averaging; a model that has
been to several small nodes has seen enough.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aats.advert import Partner
from aats.ids import NodeId
from aats.packet import Errand, Header, Plugin
from aats.routing.rendezvous import Finish, Fork, Plan
from aats_agents.rendezvous.base import check, drawn, is_done, stops


@dataclass(frozen=True, slots=True)
class DaisyChainRendezvous:
    """A child for each node; each takes `every` stops by a row of a Latin square, then all meet.

    At each step every node has one of the models, and no model comes to a node again before it
    has been at all of them.

    Raises:
        ValueError: On a figure out of range.
    """

    every: int = 5
    """Stops between two merges."""
    clients: int = 0
    """Nodes, and children, between two merges, drawn anew each time; 0: all in reach."""
    rounds: int = 0
    """Merges after which the packet goes home, its requirement met or not; 0: no such bound."""
    within_s: float = 300.0
    """The children are merged at the latest so long after they set out."""
    quorum: float = 0.5
    """Share of the children without which nothing is merged, and all set out again."""
    weighting: str = "equal"
    """"equal": all alike, as FedDC has it; "samples": by the rows each trained on."""

    def __post_init__(self) -> None:
        check(self.within_s, self.quorum, self.weighting, clients=self.clients, rounds=self.rounds)
        if self.every < 1:
            raise ValueError(f"every is {self.every}, must be at least 1")

    @property
    def merge(self) -> str | Plugin:
        """The mean."""
        return Plugin("mean", {"weighting": self.weighting})

    def plan(
        self, header: Header, partners: Sequence[Partner], now: float, rng: random.Random
    ) -> Plan | None:
        """Return one errand a row; None without partners."""
        if is_done(header, self.rounds):
            return Finish()
        if not (nodes := stops(partners)):
            return None
        rows = latin_rows(drawn(nodes, self.clients, rng), self.every, rng)
        errands = tuple(Errand(row, visits=len(row)) for row in rows)
        return Fork(errands, self.within_s, self.quorum)


def latin_rows(nodes: Sequence[NodeId], stops: int, rng: random.Random) -> list[tuple[NodeId, ...]]:
    """Return one row of stops a node: at each step the rows are at different nodes.

    The columns are those of a Latin square, and of another one after it where there are more
    stops than nodes: within each square a row has every node once. No row stays where it is, if
    there is anywhere else to go.
    """
    shifts: list[int] = []
    while len(shifts) < stops:
        square = rng.sample(range(len(nodes)), len(nodes))
        stays = shifts and square[0] == shifts[-1]
        shifts += [*square[1:], square[0]] if stays else square
    seats = rng.sample(list(nodes), len(nodes))
    return [
        tuple(seats[(row + shift) % len(seats)] for shift in shifts[:stops])
        for row in range(len(seats))
    ]
