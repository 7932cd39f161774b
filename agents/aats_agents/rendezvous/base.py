"""What planners of forks share: figures they check, rounds counted, clients drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf

from aats.advert import Partner
from aats.ids import NodeId
from aats.packet import Header

WEIGHTINGS = "samples", "equal"


def check(within_s: float, quorum: float, weighting: str, **counts: int) -> None:
    """Check what all planners of forks have.

    Raises:
        ValueError: Naming the figure and what is allowed.
    """
    if not 0 < within_s < inf:
        raise ValueError(f"within_s is {within_s}, must be positive and finite")
    if not 0 <= quorum <= 1:
        raise ValueError(f"quorum is {quorum}, must be between 0 and 1")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}, allowed are {', '.join(WEIGHTINGS)}")
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} is {count}, must be at least 0")


def is_done(header: Header, rounds: int) -> bool:
    """Return whether a packet was merged `rounds` times; never for 0."""
    return 0 < rounds <= header.trained.get("cycle", 0)


def stops(partners: Sequence[Partner]) -> list[NodeId]:
    """Return the nodes that a child can train at: a view of the data alone is none."""
    return [p.node for p in partners if any(data.samples and not data.view for data in p.data)]


def drawn(nodes: list[NodeId], clients: int, rng: random.Random) -> list[NodeId]:
    """Return the nodes that take part: all in the order given, or `clients` of them by lot."""
    return rng.sample(nodes, min(clients, len(nodes))) if clients else nodes
