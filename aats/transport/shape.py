"""Links with the bandwidth and latency that a scenario says, on a network that is faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from aats.ids import NodeId


@dataclass(frozen=True, slots=True)
class LinkShape:
    """What a link shall feel like in one direction."""

    bandwidth_bps: float = inf
    """Bits per second."""
    latency_s: float = 0.0
    """One way, seconds."""


Shaping = Callable[[NodeId], LinkShape]
"""The shape of the link to a neighbour."""


class Pacer:
    """When what is handed to a link now arrives at its far end: first come, first served."""

    def __init__(self, shape: LinkShape) -> None:
        self._shape = shape
        self._free_at = 0.0

    def arrival(self, size_bytes: int, now: float) -> float:
        """Put `size_bytes` on the link at time `now`; return when their last bit is through."""
        self._free_at = max(now, self._free_at) + 8 * size_bytes / self._shape.bandwidth_bps
        return self._free_at + self._shape.latency_s
