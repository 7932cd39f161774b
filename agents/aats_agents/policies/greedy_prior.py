"""The heuristic that trained policies start as, on its own: deterministic, by columns alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from aats.routing.policy import Choice, Observation
from aats.routing.probing import worth
from aats_agents.policies.base import choose_by
from aats_agents.prior import Prior


@dataclass(frozen=True, slots=True)
class GreedyPriorPolicy(Prior):
    """The most promising stop per second, by weights of what adverts, probes and visits told."""

    name = "greedy-prior"
    probes: int = 3
    """Nodes probed at each stop, at most."""

    def __post_init__(self) -> None:
        Prior.__post_init__(self)
        if self.probes < 0:
            raise ValueError(f"probes is {self.probes}, must be >= 0")

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return the candidates worth a probe."""
        asked = worth(observation.features, observation.globals, observation.mask, self.probes)
        return [int(i) for i in np.flatnonzero(asked)]

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the stop of the highest score."""
        logits = self.logits(observation.features, observation.globals, observation.mask)
        scores = {i: float(logits[i] / self.sharpness) for i in observation.legal()}
        return choose_by(scores, observation, "most promise per second at {node}")
