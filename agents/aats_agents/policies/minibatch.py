"""The default policy: trial steps on a few candidates, judged on data the packet trusts."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from aats.ids import NodeId
from aats.messages import ProbeScores
from aats.routing.features import FEATURES
from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import (
    Option,
    balances,
    choose_by,
    data_options,
    errand,
    num_classes,
    probe_order,
    ranks,
    relative_costs,
)

_NEED_SUPPLY = FEATURES.index("need_supply")
MOST_COST = 4.0
"""Costs count up to this many times the median's, and down to its inverse: beyond, a stop's
price says more of a far node than of what the packet gains there."""

SUSPICION = 4.0
"""What a gain is divided by where the loss is above chance: wrong labels can make an overconfident
model look better for a step or two; a class nobody has taught yet gains more than that."""


@dataclass(frozen=True, slots=True)
class MinibatchPolicy:
    """Most gain on trusted data and most even classes, per cost.

    Of the nodes probed now, those on which a few trial steps lower the loss on the packet's
    reference set are ranked: twice the rank by that gain, plus the rank by label balance, plus
    a bonus for staleness, over relative cost. If none of them does, the least bad one is taken;
    if nobody lets itself be probed, adverts and what earlier visits gained decide. It neither
    returns at once to where it came from, nor to a node that hurt until that node's data change,
    unless nothing else is left.
    """

    name = "minibatch"
    probes: int = 4
    """Nodes probed at each stop."""
    epsilon: float = 0.1
    """Share of stops drawn from all that help, so that a wrong belief does not last. Drawn from
    all there are, it would send the packet to every node it knows to be bad."""
    staleness: float = 0.01
    """Bonus times ln(1 + hops since the last visit)."""
    probe_weight: float = 2.0
    """Of the gain's rank against the balance's."""
    warm_up: int = 20
    """Visits after which a loss above chance counts against a node (without a reference set)."""

    def __post_init__(self) -> None:
        if self.probes < 0 or not 0 <= self.epsilon <= 1 or self.probe_weight < 0:
            raise ValueError("probes and probe_weight must be >= 0, epsilon within 0-1")

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return a few data nodes, the stalest in favour."""
        return probe_order(observation, self.probes, rng)

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the data node with the most guarded gain per cost."""
        if settled := errand(observation):
            return settled
        options = _eligible(observation)
        gains = {o.index: self._gain(o.probe, observation) for o in options if o.probe}
        good = [o for o in options if gains.get(o.index, 0.0) > 0]
        if (good or not gains) and rng.random() < self.epsilon:
            pick = rng.choice(good or options)
            return Choice(pick.index, f"exploring: drew {pick.candidate.node}", _named(good, gains))
        if good:
            merits = [gains[o.index] for o in good]
            scores = self._scores(good, merits, observation)
            reason = "most trusted gain and balance for its cost at {node} ({score})"
        elif gains:
            scores = gains
            reason = "no probed node helps; the least bad is {node} ({score} nats)"
        else:
            merits = [_promise(o, observation) for o in options]
            scores = self._scores(options, merits, observation)
            reason = "no probe at hand; by adverts and past gain {node} ({score})"
        return choose_by(scores, observation, reason)

    def _gain(self, probe: ProbeScores, observation: Observation) -> float:
        """Return nats gained on trusted data; without such data the loss, capped at chance."""
        is_suspect = observation.hop >= self.warm_up and probe.loss > math.log(
            num_classes(observation)
        )
        if probe.gain == 0.0 and probe.alignment == 0.0:
            return -probe.loss if is_suspect else probe.loss
        return probe.gain / SUSPICION if is_suspect and probe.gain > 0 else probe.gain

    def _scores(
        self, options: list[Option], merits: list[float], observation: Observation
    ) -> dict[int, float]:
        by_merit = ranks(merits)
        by_balance = ranks(balances(options, observation))
        costs = relative_costs(options, most=MOST_COST)
        return {
            o.index: (self.probe_weight * m + b + self.staleness * math.log1p(o.hops_since)) / c
            for o, m, b, c in zip(options, by_merit, by_balance, costs, strict=True)
        }


def _eligible(observation: Observation) -> list[Option]:
    """Return the legal data nodes but those that hurt and the one it came from, if any is left."""
    options = data_options(observation)
    came_from = set(observation.visited[-2:])
    kind = [o for o in options if not o.candidate.hurt]
    fresh = [o for o in kind if o.candidate.node not in came_from]
    return fresh or kind or options


def _named(options: list[Option], scores: dict[int, float]) -> dict[NodeId, float]:
    return {o.candidate.node: scores[o.index] for o in options}


def _promise(option: Option, observation: Observation) -> float:
    """Return what adverts and the last visit promise: need x supply, and the last gain."""
    need = float(observation.features[option.index, _NEED_SUPPLY])
    return need + option.candidate.last_gain
