"""Random walk: the floor every other policy is measured against."""

from __future__ import annotations

import random
from dataclasses import dataclass

from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import data_options, errand


@dataclass(frozen=True, slots=True)
class RandomPolicy:
    """Any legal data node, all alike."""

    name = "random"

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nothing: chance needs no knowledge."""
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return a data node drawn uniformly."""
        if settled := errand(observation):
            return settled
        options = data_options(observation)
        pick = rng.choice(options)
        share = 1 / len(options)
        return Choice(
            pick.index,
            f"drew {pick.candidate.node} from {len(options)} data nodes",
            {o.candidate.node: share for o in options},
        )
