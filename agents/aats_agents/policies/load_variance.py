"""Load-aware label variance: the cheapest of the nodes that keep the classes even enough."""

from __future__ import annotations

import random
from dataclasses import dataclass

from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import choose_by, data_options, errand, least_visited
from aats_agents.policies.label_variance import variance_after


@dataclass(frozen=True, slots=True)
class LoadVariancePolicy:
    """The least seconds among the nodes after which the variance of the classes is under a cap.

    Load-aware Tram-FL (Kainuma and Nishio, arXiv 2506.09769) minimises latency under a cap on
    the variance; there the cap is a number, here a share of what there is to choose from. It
    believes adverts, as `label-variance` does.
    """

    name = "load-variance"
    batch: float = 100.0
    """Samples a visit is expected to use; spread over the node's classes as it has them."""
    slack: float = 0.25
    """The cap: 0 is the smallest variance there is, as for `label-variance`, 1 the largest."""

    def __post_init__(self) -> None:
        if self.batch <= 0 or not 0 <= self.slack <= 1:
            raise ValueError("batch must be above 0, slack within 0-1")

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nothing: adverts say enough."""
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the cheapest data node under the cap."""
        if settled := errand(observation):
            return settled
        shown = [o for o in data_options(observation) if o.candidate.labels]
        if not shown:
            return least_visited(observation, "no histogram is shown; ")
        after = [variance_after(o.candidate, observation, self.batch) for o in shown]
        cap = min(after) + self.slack * (max(after) - min(after))
        costs = {o.index: -o.cost_s for o, v in zip(shown, after, strict=True) if v <= cap}
        return choose_by(
            costs, observation, f"{{node}} is the cheapest that keeps the variance under {cap:.4g}"
        )
