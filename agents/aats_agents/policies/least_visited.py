"""Least visited first: even coverage without any knowledge of the data."""

from __future__ import annotations

import random
from dataclasses import dataclass

from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import errand, least_visited


@dataclass(frozen=True, slots=True)
class LeastVisitedPolicy:
    """The data node this packet has visited least; then the longest ago; then the cheapest."""

    name = "least-visited"

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nothing: the journal says enough."""
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the least visited data node."""
        return errand(observation) or least_visited(observation)
