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
from aats.packet import Errand, Header
from aats_agents.rendezvous.base import Rounds, at_least, drawn, stops


@dataclass(frozen=True, slots=True)
class DaisyChainRendezvous(Rounds):
    """A child for each node; each takes `every` stops by a row of a Latin square, then all meet.

    At each step every node has one of the models, and no model comes to a node again before it
    has been at all of them.

    Raises:
        ValueError: On a figure out of range.
    """

    every: int = 5
    """Stops between two merges."""
    clients: int = 0
    """Nodes between two merges, drawn anew each time; 0: all in reach."""
    walkers: int = 0
    """Children between two merges: rows of the square, 1 for one chain; 0: one a node."""

    def __post_init__(self) -> None:
        Rounds.__post_init__(self)
        at_least(0, clients=self.clients, walkers=self.walkers)
        at_least(1, every=self.every)

    def errands(
        self, header: Header, partners: Sequence[Partner], rng: random.Random
    ) -> tuple[Errand, ...]:
        """Return one errand a row; none without partners."""
        rows = latin_rows(drawn(stops(partners), self.clients, rng), self.every, rng)
        return tuple(Errand(row, visits=len(row)) for row in rows[: self.walkers or None])


def latin_rows(nodes: Sequence[NodeId], stops: int, rng: random.Random) -> list[tuple[NodeId, ...]]:
    """Return one row of stops a node: at each step the rows are at different nodes.

    The columns are those of a Latin square, and of another one after it where there are more
    stops than nodes: within each square a row has every node once. No row stays where it is, if
    there is anywhere else to go.
    """
    shifts: list[int] = []
    while nodes and len(shifts) < stops:
        square = rng.sample(range(len(nodes)), len(nodes))
        stays = shifts and square[0] == shifts[-1]
        shifts += [*square[1:], square[0]] if stays else square
    seats = rng.sample(list(nodes), len(nodes))
    return [
        tuple(seats[(row + shift) % len(seats)] for shift in shifts[:stops])
        for row in range(len(seats))
    ]
