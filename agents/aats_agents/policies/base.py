"""What routing policies share: errands that need no policy, costs, ranks, whom to probe."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from aats.messages import ProbeScores
from aats.packet import ProbeEntry
from aats.routing.policy import Candidate, Choice, Observation, Phase, StopKind

NEVER = 1_000
"""Hops since the last visit that a node never visited counts as."""

TINY_S = 1e-9
"""Nothing is free."""

MIN_MEMORY = 4
"""Hops that a probe holds at least. It holds until the packet is twice as old as it was then:
what a young model gains says little of what an older one will."""

SUSPECT_MEMORY = 4
"""A suspect stays one that many times longer: bad data are seldom mended."""


@dataclass(frozen=True, slots=True)
class Option:
    """A legal data node: its index in the observation, and itself."""

    index: int
    candidate: Candidate
    probe: ProbeScores | None

    @property
    def cost_s(self) -> float:
        """Seconds to go there and work."""
        return self.candidate.transfer_s + self.candidate.compute_s

    @property
    def hops_since(self) -> int:
        """Hops since the last visit; many for a node never visited."""
        return max(0, self.candidate.hops_since) if self.candidate.visits else NEVER


def data_options(observation: Observation) -> list[Option]:
    """Return the legal data nodes, in the observation's order."""
    return [
        Option(i, c, observation.probes.get(c.node))
        for i in observation.legal()
        if (c := observation.candidates[i]).kind is StopKind.DATA
    ]


def eligible(observation: Observation) -> list[Option]:
    """Return the legal data nodes but those that hurt and the one it came from, if any is left."""
    options = data_options(observation)
    came_from = set(observation.visited[-2:])
    kind = [o for o in options if not o.candidate.hurt]
    fresh = [o for o in kind if o.candidate.node not in came_from]
    return fresh or kind or options


def recall(option: Option, observation: Observation) -> ProbeEntry | None:
    """Return what an earlier probe found, while that holds and no visit since tells more."""
    stop = option.candidate
    probed = stop.probed
    if probed is None or (stop.visits and stop.hops_since < stop.hops_since_probe):
        return None
    is_suspect = probed.gain <= 0 and probed.loss > math.log(num_classes(observation))
    holds = max(MIN_MEMORY, probed.hop) * (SUSPECT_MEMORY if is_suspect else 1)
    return probed if stop.hops_since_probe <= holds else None


def errand(observation: Observation) -> Choice | None:
    """Return the choice where there is nothing to choose by metric, else None.

    Verification and the way home are the same for every policy: the cheapest MPVU once every
    target is believed met, home when the packet returns; without a data node in reach, the
    cheapest legal stop.
    """
    kinds = {observation.candidates[i].kind for i in observation.legal()}
    if observation.phase is Phase.VERIFY and StopKind.MPVU in kinds:
        return _cheapest(
            observation, StopKind.MPVU, "every target is believed met: {} is the cheapest MPVU"
        )
    if observation.phase is Phase.RETURN and StopKind.HOME in kinds:
        return _cheapest(
            observation, StopKind.HOME, "the work is done or the budget is: home to {}"
        )
    if StopKind.DATA in kinds:
        return None
    if StopKind.MPVU in kinds:
        return _cheapest(observation, StopKind.MPVU, "no data node in reach: to MPVU {}")
    return _cheapest(observation, StopKind.HOME, "no data node and no MPVU in reach: home to {}")


def _cheapest(observation: Observation, kind: StopKind, reason: str) -> Choice:
    stops = {i: c for i in observation.legal() if (c := observation.candidates[i]).kind is kind}
    costs = {i: _cost_s(stop) for i, stop in stops.items()}
    index = min(stops, key=lambda i: (costs[i], stops[i].node))
    scores = {stop.node: -costs[i] for i, stop in stops.items()}
    return Choice(index, reason.format(stops[index].node), scores)


def choose_by(scores: dict[int, float], observation: Observation, reason: str) -> Choice:
    """Return the choice of the highest score; of equal ones the lowest index.

    `reason` may use {node} and {score}.
    """
    index = max(scores, key=lambda i: (scores[i], -i))
    node = observation.candidates[index].node
    return Choice(
        index,
        reason.format(node=node, score=f"{scores[index]:.4g}"),
        {observation.candidates[i].node: float(score) for i, score in scores.items()},
    )


def least_visited(observation: Observation, why: str = "") -> Choice:
    """Return the data node visited least, of those the longest ago, of those the cheapest."""
    options = data_options(observation)
    best = min(
        options,
        key=lambda o: (o.candidate.visits, -o.hops_since, o.cost_s, o.candidate.node),
    )
    visits = best.candidate.visits
    times = "never visited" if not visits else f"visited least ({visits} times)"
    scores = {o.candidate.node: -float(o.candidate.visits) for o in options}
    return Choice(best.index, f"{why}{best.candidate.node} was {times}", scores)


def probe_order(observation: Observation, count: int, rng: random.Random) -> list[int]:
    """Return up to `count` legal data nodes worth a probe, drawn with the stalest in favour.

    Drawn, because the stalest alone would soon be those that were probed and not chosen: they
    would be probed for ever. Left out are nodes that refuse probes, were probed already, or hurt
    the model.
    """
    worth = [
        o
        for o in data_options(observation)
        if o.candidate.probe_allowed and o.probe is None and not o.candidate.hurt
    ]
    return draw({o.index: math.log1p(1 + o.hops_since) for o in worth}, count, rng)


def draw(weights: Mapping[int, float], count: int, rng: random.Random) -> list[int]:
    """Return up to `count` keys, drawn by weight (above 0) without replacement.

    After Efraimidis and Spirakis 2006.
    """
    keys = {i: math.log(1 - rng.random()) / weight for i, weight in weights.items()}
    return sorted(keys, key=lambda i: -keys[i])[:count]


def ranks(values: Sequence[float]) -> list[float]:
    """Return each value's rank among them, 0 the lowest to 1 the highest; ties share the mean."""
    if len(values) < 2:
        return [1.0] * len(values)
    ordered = sorted(values)
    low = {v: i for i, v in reversed(list(enumerate(ordered)))}
    high = {v: i for i, v in enumerate(ordered)}
    return [(low[v] + high[v]) / 2 / (len(values) - 1) for v in values]


def relative_costs(costs_s: Sequence[float], most: float) -> list[float]:
    """Return each cost over the median one, kept within 1/most..most."""
    costs = [max(cost, 1e-9) for cost in costs_s]
    usual = median(costs) if costs else 1.0
    return [min(most, max(1 / most, cost / usual)) for cost in costs]


def per_second(gain: float, seconds: float) -> float:
    """Return a gain over its seconds; a loss times them, for the dearer one is the worse."""
    return gain / max(seconds, TINY_S) if gain > 0 else gain * seconds


def staleness(option: Option, patience: float) -> float:
    """Return 0-1: what is left to learn at a node, half after `patience` hops, 1 if it is new."""
    since = option.hops_since + 1
    return since / (since + patience) if option.candidate.visits else 1.0


def num_classes(observation: Observation) -> int:
    """Return the number of classes that adverts and past training tell of, at least 2."""
    shown = (h for c in observation.candidates for h in c.labels.values())
    return max(2, *map(len, (*shown, *observation.labels_used.values(), (), ())))


def balances(options: Sequence[Option], observation: Observation) -> list[float]:
    """Return for each option how even the classes used would be after a visit, 0-1.

    Entropy of what was used plus what the node has, over that of equal classes, mean over the
    skills whose histogram it shows; 0 for a node that shows none.
    """
    return [
        sum(
            _evenness(histogram, observation.labels_used.get(skill, ()))
            for skill, histogram in sorted(o.candidate.labels.items())
        )
        / max(1, len(o.candidate.labels))
        for o in options
    ]


def _evenness(histogram: Sequence[float], used: Sequence[float]) -> float:
    if len(used) != len(histogram):
        used = [0.0] * len(histogram)
    counts = [h + u for h, u in zip(histogram, used, strict=True)]
    total = sum(counts)
    if total <= 0 or len(counts) < 2:
        return 0.0
    entropy = -math.fsum(c / total * math.log(c / total) for c in counts if c > 0)
    return entropy / math.log(len(counts))


def _cost_s(candidate: Candidate) -> float:
    return candidate.transfer_s + candidate.compute_s
