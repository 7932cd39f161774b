"""A visit that is done together: the packet stays, and its method exchanges with partners."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aats.packet import Header
from aats.routing.rendezvous import Assemble, Partner

MOST_PARTNERS = 256
"""Of one visit: each costs a little of the task and of the leader's memory."""


@dataclass(frozen=True, slots=True)
class AssembleRendezvous:
    """Assembles every other node in reach that holds wanted data, in the order of their names."""

    at_data: bool = False
    """Only where the packet is at a node with wanted data itself: a method whose leader needs
    labels can do nothing anywhere else."""

    merge = "mean"

    def plan(
        self, header: Header, partners: Sequence[Partner], now: float, rng: random.Random
    ) -> Assemble | None:
        """Return the assembly; None where nobody else has anything to bring."""
        del header, now, rng
        if self.at_data and not any(p.data and not p.links for p in partners):
            return None
        others = tuple(p.node for p in partners if p.links and p.data)
        return Assemble(others[:MOST_PARTNERS]) if others else None
