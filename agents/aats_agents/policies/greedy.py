"""One step ahead by the law of learning: the visit expected to gain most per second."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from aats.learning.dynamics import Dynamics, Floats, Scores, moved, suspected
from aats.learning.fit import load_fit
from aats.routing.features import GLOBALS
from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import (
    Option,
    choose_by,
    data_options,
    eligible,
    errand,
    per_second,
    recall,
    staleness,
)

_BELIEF = GLOBALS.index("belief_mean")
SURE = 1e-3
"""Knowledge is kept this far from 0 and 1, so that its odds are finite."""


@dataclass(frozen=True, slots=True)
class GreedyPolicy:
    """The data node whose visit is expected to raise knowledge most per second.

    Expected by the law of learning (`aats.learning.dynamics`) with the constants of a fit. What
    the model knows of each class follows from the samples of it trained on so far, and is then
    brought to what the packet believes of itself. How many of a node's labels are wrong follows
    from its probes, of now or remembered while they hold, or else from its advert; a law that
    believes labels walks into the wrong ones. Staleness discounts a gain, for the law does not
    know that the same data teach less each time. Nodes that hurt and the two visited last are
    left out unless nothing else is left.
    """

    name = "greedy"
    fit: str = "classic"
    """Constants by name: those that ship with `aats.learning.fit`."""
    probes: int = 3
    """Nodes probed at each stop, at most: those of highest score whose answer is there sooner
    than a visit would be over."""
    patience: float = 8.0
    """Hops after which a visited node counts half of a new one."""

    def __post_init__(self) -> None:
        if self.probes < 0 or self.patience < 0:
            raise ValueError("probes and patience must be >= 0")
        _dynamics(self.fit)

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return the most promising nodes of whose labels nothing is known yet."""
        unknown = [
            o
            for o in eligible(observation)
            if o.candidate.probe_allowed
            and o.candidate.probe_s <= o.cost_s
            and _found(o, observation) is None
        ]
        scores = self._scores(unknown, observation)
        return sorted(scores, key=lambda i: (-scores[i], i))[: self.probes]

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the data node of most expected gain per second."""
        if settled := errand(observation):
            return settled
        scores = self._scores(eligible(observation), observation)
        return choose_by(scores, observation, "most gain expected per second at {node} ({score})")

    def _scores(self, options: Sequence[Option], observation: Observation) -> dict[int, float]:
        known = self._known(observation)
        return {o.index: per_second(self._gain(o, known, observation), o.cost_s) for o in options}

    def _known(self, observation: Observation) -> dict[str, Floats]:
        """Return knowledge [C] of each skill that the nodes in reach have."""
        belief = float(observation.globals[_BELIEF])
        found = {}
        for skill in sorted({s for o in data_options(observation) for s in o.candidate.samples}):
            shown = [o.candidate.labels.get(skill, ()) for o in data_options(observation)]
            used = observation.labels_used.get(skill, ())
            classes = max(2, len(used), *map(len, shown))
            rows = np.zeros(classes)
            rows[: len(used)] = used
            chance = np.full(classes, 1 / classes)
            known = moved(chance, rows, 0.0, 0.0, _dynamics(self.fit))
            found[skill] = _levelled(known, belief) if belief > 0 else known
        return found

    def _gain(self, option: Option, known: dict[str, Floats], observation: Observation) -> float:
        """Return by how much the mean knowledge is expected to rise."""
        stop, law = option.candidate, _dynamics(self.fit)
        probe = _found(option, observation)
        total = 0.0
        for skill, samples in sorted(stop.samples.items()):
            now = known[skill]
            rows = np.full(len(now), samples / len(now))
            if skill in stop.labels:
                rows = np.zeros(len(now))
                rows[: len(stop.labels[skill])] = stop.labels[skill]
            wrong = 1 - stop.quality
            if probe is not None:
                wrong = float(suspected(now, rows, probe, np.ones(len(now)), law))
            after = moved(now, rows * (1 - wrong), rows.sum() * wrong, stop.visits, law)
            total += float((after - now).mean())
        gain = total / max(1, len(known))
        return gain * staleness(option, self.patience) if gain > 0 else gain


@cache
def _dynamics(name: str) -> Dynamics:
    return load_fit(name).dynamics


def _levelled(known: Floats, mean: float) -> Floats:
    """Return knowledge moved by the same factor on the odds of each class, to have this mean."""
    goal = min(1 - SURE, max(SURE, mean))
    odds = np.clip(known, SURE, 1 - SURE)
    odds = odds / (1 - odds)
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        found: Floats = odds * np.exp(middle) / (1 + odds * np.exp(middle))
        low, high = (middle, high) if found.mean() < goal else (low, middle)
    return found


def _found(option: Option, observation: Observation) -> Scores | None:
    """Return what a probe says that holds and was judged on trusted data."""
    probe = option.probe or recall(option, observation)
    if probe is None or probe.gain == 0.0 == probe.alignment:
        return None
    return Scores(*(np.array(x) for x in (probe.gain, probe.alignment, probe.loss, 0.0)))
