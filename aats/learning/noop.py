"""A visit that trains nothing: for measuring the transport, and for packets that only ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aats.learning.method import Carry, Plan, Stop, Work


@dataclass(frozen=True, slots=True)
class NoopMethod:
    """Leaves the payload as it came: no model is built unless a reference set judges it."""

    def plan(self, stop: Stop) -> Plan | None:
        """Return None: no work."""
        return None

    def train(self, model: Any, work: Work) -> Carry | None:
        """Do nothing."""
        return None
