"""Utility of a node by its loss, its size and its speed (Oort), for a packet that selects one."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import (
    Option,
    data_options,
    draw,
    errand,
    probe_order,
)

EXPLORED = 0.98
"""Factor on the share of exploring stops for each visit, as Oort has it."""
LEAST_EXPLORING = 0.2
CLIP = 0.95
"""Quantile that utilities are clipped to, against outliers."""
CUT = 0.95
"""Of the best utility: those above are drawn among, so that an error in it does not last."""


@dataclass(frozen=True, slots=True)
class OortPolicy:
    """Samples x loss, a bonus for staleness, less for nodes slower than is preferred.

    A share of stops, 0.9 at first, explores: it draws from the nodes never visited, the fast in
    favour. The others draw among those whose utility is close to the best. After Lai et al.,
    OSDI 2021 (arXiv 2010.06081): utility (n loss, clipped at its 95th percentile and scaled to
    0-1) + sqrt(0.1 ln t / t_last), times (T / t_i)^alpha where a node takes longer than the
    preferred T. The loss is that of the last probe of a node; Oort has that of its last round.
    The mean loss stands for the root of the mean square. It trusts losses, so it is unguarded.
    """

    name = "oort"
    probes: int = 4
    """Nodes probed at each stop."""
    exploring: float = 0.9
    """Share of stops that explore at first; x 0.98 at each visit, at least 0.2 or this."""
    alpha: float = 2.0
    """How hard slow nodes are punished."""

    def __post_init__(self) -> None:
        if self.probes < 0 or self.alpha < 0 or not 0 <= self.exploring <= 1:
            raise ValueError("probes and alpha must be >= 0, exploring within 0-1")

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return data nodes drawn with the stalest in favour."""
        return probe_order(observation, self.probes, rng)

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return a new node, if it explores, or one of high utility."""
        if settled := errand(observation):
            return settled
        options = data_options(observation)
        preferred = median(o.cost_s for o in options)
        new = [o for o in options if not o.candidate.visits]
        losses = {o.index: loss for o in options if (loss := _loss(o)) is not None}
        share = max(
            self.exploring * EXPLORED**observation.hop, min(LEAST_EXPLORING, self.exploring)
        )
        if not losses or (new and rng.random() < share):
            pace = {o.index: 1 / max(o.cost_s, 1e-9) for o in new or options}
            return _drawn(pace, observation, rng, "exploring: drew {} by speed", pace)
        known = [o for o in options if o.index in losses]
        statistical = _statistical(known, losses)
        utility = {
            o.index: (value + _staleness(o, observation)) * self._speed(o, preferred)
            for o, value in zip(known, statistical, strict=True)
        }
        bar = CUT * max(utility.values())
        best = {i: max(u, 1e-9) for i, u in utility.items() if u >= bar}
        reason = "drew {} from those of highest utility by loss, size, staleness and speed"
        return _drawn(best, observation, rng, reason, utility)

    def _speed(self, option: Option, preferred: float) -> float:
        late = option.cost_s > preferred
        return float((preferred / option.cost_s) ** self.alpha) if late else 1.0


def _loss(option: Option) -> float | None:
    probe = option.probe or option.candidate.probed
    return probe.loss if probe else None


def _statistical(options: Sequence[Option], losses: Mapping[int, float]) -> list[float]:
    """Return samples x loss, clipped at a quantile and scaled to 0-1."""
    found = [sum(o.candidate.samples.values()) * losses[o.index] for o in options]
    ordered = sorted(found)
    top = ordered[min(len(ordered) - 1, math.floor(CLIP * len(ordered)))]
    clipped = [min(value, top) for value in found]
    low = min(clipped)
    return [(value - low) / (top - low) if top > low else 1.0 for value in clipped]


def _staleness(option: Option, observation: Observation) -> float:
    """Return Oort's bonus for a node not visited for long; the most for one never visited."""
    now = observation.hop + 1
    last = max(1, now - option.candidate.hops_since - 1) if option.candidate.visits else 1
    return math.sqrt(0.1 * math.log(now) / last)


def _drawn(
    weights: Mapping[int, float],
    observation: Observation,
    rng: random.Random,
    reason: str,
    scores: Mapping[int, float],
) -> Choice:
    index = draw(weights, 1, rng)[0]
    named = {observation.candidates[i].node: score for i, score in scores.items()}
    return Choice(index, reason.format(observation.candidates[index].node), named)
