"""Label variance: keep the classes used so far even (Tram-FL, Maejima et al., version A)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import pvariance

from aats.routing.policy import Candidate, Choice, Observation
from aats_agents.policies.base import choose_by, data_options, errand, least_visited


@dataclass(frozen=True, slots=True)
class LabelVariancePolicy:
    """The node after which the counts of classes trained on have the smallest variance.

    Only nodes that show a histogram are considered. It believes what they show, and noisy
    labels look balanced: an unguarded rule, kept as a baseline.
    """

    name = "label-variance"
    batch: float = 100.0
    """Samples a visit is expected to use; spread over the node's classes as it has them."""

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nothing: adverts say enough."""
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the data node with the smallest expected variance; may be the one it is at."""
        if settled := errand(observation):
            return settled
        shown = [o for o in data_options(observation) if o.candidate.labels]
        if not shown:
            return least_visited(observation, "no histogram is shown; ")
        scores = {o.index: -variance_after(o.candidate, observation, self.batch) for o in shown}
        return choose_by(
            scores, observation, "after {node} the classes used are most even (-variance {score})"
        )


def variance_after(candidate: Candidate, observation: Observation, batch: float) -> float:
    """Return the population variance of the classes used, after a visit, summed over the skills.

    Args:
        candidate: A data node that shows its histograms.
        observation: Has what was used so far.
        batch: Samples the visit uses, spread over the node's classes as it has them.
    """
    skills = {*observation.labels_used, *candidate.labels}
    total = 0.0
    for skill in sorted(skills):
        histogram = candidate.labels.get(skill, ())
        used = list(observation.labels_used.get(skill) or [0.0] * len(histogram))
        held = sum(histogram)
        if held > 0 and len(histogram) == len(used):
            used = [u + batch / held * h for u, h in zip(used, histogram, strict=True)]
        total += pvariance(used) if used else 0.0
    return total
