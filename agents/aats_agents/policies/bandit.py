"""A bandit over the nodes in reach: most gain per second that the journal leaves possible."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import choose_by, data_options, errand, per_second


@dataclass(frozen=True, slots=True)
class BanditPolicy:
    """The highest upper bound of what a visit gains on trusted data, per second.

    Upper confidence bounds (UCB1, Auer et al. 2002) divided by cost, as for bandits with a
    budget (Ding et al., AAAI 2013). The arms are the nodes in reach now. What a node gave at its
    last visit stands for its mean: gains shrink as the model learns, so the old ones mislead
    (Garivier and Moulines, arXiv 0805.3415). All of it is in the packet's journal. One bad visit
    per node is the price of knowing.
    """

    name = "bandit"
    boldness: float = 0.5
    """Factor on the uncertainty, in units of the largest gain or loss seen last."""

    def __post_init__(self) -> None:
        if self.boldness < 0:
            raise ValueError(f"boldness is {self.boldness}, must be >= 0")

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nothing: it learns by visiting."""
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the data node of the highest bound per second."""
        if settled := errand(observation):
            return settled
        options = data_options(observation)
        unit = max((abs(c.last_gain) for c in observation.candidates), default=0.0) or 1.0
        bounds = {}
        for option in options:
            stop = option.candidate
            doubt = math.sqrt(math.log(2 + observation.hop) / (1 + stop.visits))
            bound = stop.last_gain / unit + self.boldness * doubt
            bounds[option.index] = per_second(bound, option.cost_s)
        return choose_by(
            bounds,
            observation,
            "past gain and what is not known of it, per second: {node} ({score})",
        )
