"""Largest gradient next: where a step would move the model most, whichever way."""

from __future__ import annotations

import random
from dataclasses import dataclass

from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import choose_probed, probe_order


@dataclass(frozen=True, slots=True)
class GradientNormPolicy:
    """The probed node whose minibatch gives the largest gradient; unguarded, as `loss`."""

    name = "gradient-norm"
    probes: int = 4
    """Nodes probed at each stop."""

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return the stalest data nodes."""
        return probe_order(observation, self.probes, rng)

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the probed data node of largest gradient."""
        return choose_probed(
            observation,
            lambda probe: probe.gradient_norm,
            "the gradient is largest at {node} ({score})",
        )
