"""Largest gradient next: where a step would move the model most, whichever way."""

from __future__ import annotations

import random
from dataclasses import dataclass

from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import (
    choose_by,
    data_options,
    errand,
    least_visited,
    probe_order,
)


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
        if settled := errand(observation):
            return settled
        scores = {o.index: o.probe.gradient_norm for o in data_options(observation) if o.probe}
        if not scores:
            return least_visited(observation, "no probe at hand; ")
        return choose_by(scores, observation, "the gradient is largest at {node} ({score})")
