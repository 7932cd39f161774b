"""Highest loss next: where the model knows least, if labels can be believed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import choose_probed, probe_order


@dataclass(frozen=True, slots=True)
class LossPolicy:
    """The probed node on whose minibatch the model's loss is highest.

    Wrong labels have the highest loss of all: an unguarded rule, kept as a baseline.
    """

    name = "loss"
    probes: int = 4
    """Nodes probed at each stop."""

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return the stalest data nodes."""
        return probe_order(observation, self.probes, rng)

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the probed data node of highest loss."""
        return choose_probed(
            observation, lambda probe: probe.loss, "the loss is highest at {node} ({score} nats)"
        )
