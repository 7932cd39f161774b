"""Next-hop metrics in their pure form: probe a few nodes, go where one number is highest.

The formulas that have been proposed for judging a candidate by a minibatch, each a policy by
name, so that they can be compared. No cost, no memory, no exploration but the draw of who is
probed: `minibatch` has those.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from aats.messages import ProbeScores
from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import (
    Option,
    balances,
    choose_by,
    data_options,
    errand,
    least_visited,
    num_classes,
    probe_order,
    ranks,
)

WARM_UP = 20
"""Visits after which a loss above chance speaks against a node: a model that has seen little
makes many a loss high."""

Probed = Sequence[tuple[Option, ProbeScores]]


def _capped_loss(probed: Probed, observation: Observation) -> list[float]:
    chance = math.log(num_classes(observation))
    is_warm = observation.hop >= WARM_UP
    return [-p.loss if is_warm and p.loss > chance else p.loss for _, p in probed]


def _balance_gain(probed: Probed, observation: Observation) -> list[float]:
    by_balance = ranks(balances([o for o, _ in probed], observation))
    by_gain = ranks([p.gain for _, p in probed])
    return [b + 2 * g for b, g in zip(by_balance, by_gain, strict=True)]


METRICS: dict[str, tuple[Callable[[Probed, Observation], list[float]], str]] = {
    "loss": (
        lambda probed, _: [p.loss for _, p in probed],
        "the loss is highest at {node} ({score} nats)",
    ),
    "gradient-norm": (
        lambda probed, _: [p.gradient_norm for _, p in probed],
        "the gradient is largest at {node} ({score})",
    ),
    "capped-loss": (
        _capped_loss,
        "the loss is highest at {node}, those above chance put last ({score} nats)",
    ),
    "alignment": (
        lambda probed, _: [p.alignment for _, p in probed],
        "the gradient agrees most with that of trusted data at {node} ({score})",
    ),
    "probe-gain": (
        lambda probed, _: [p.gain for _, p in probed],
        "trial steps gain most on trusted data at {node} ({score} nats)",
    ),
    "balance-gain": (
        _balance_gain,
        "best by rank of class balance and twice that of trial steps' gain at {node} ({score})",
    ),
}
"""By name, the scores of probed nodes and the reason to give."""


@dataclass(frozen=True, slots=True)
class MetricPolicy:
    """The probed node that scores highest, of equal ones the first; the least visited without.

    The metrics differ by their formula alone; each has a class, because a packet names its
    policy alone.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    """Of `METRICS`."""
    probes: int = 4
    """Nodes probed at each stop."""

    def __post_init__(self) -> None:
        if self.probes < 0:
            raise ValueError(f"probes is {self.probes}, must be >= 0")

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return data nodes drawn with the stalest in favour."""
        return probe_order(observation, self.probes, rng)

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the probed data node of the highest score."""
        if settled := errand(observation):
            return settled
        probed = [(o, o.probe) for o in data_options(observation) if o.probe]
        if not probed:
            return least_visited(observation, "no probe at hand; ")
        score, reason = METRICS[self.metric]
        values = score(probed, observation)
        scores = {o.index: value for (o, _), value in zip(probed, values, strict=True)}
        return choose_by(scores, observation, reason)


class ProbeGainPolicy(MetricPolicy):
    """Most gain on the packet's trusted samples after a few trial steps on the minibatch.

    The question "what would a minibatch from there do to this model" of DA-ITN (arXiv 2501.05323,
    section IV), answered by trying it.
    """

    name = "probe-gain"
    metric = "probe-gain"


class LossPolicy(MetricPolicy):
    """Highest loss: where the model knows least, if labels can be believed.

    Wrong labels have the highest loss of all: an unguarded rule, kept as a baseline. The loss of
    power-of-choice client selection (Cho et al., arXiv 2010.01243).
    """

    name = "loss"
    metric = "loss"


class GradientNormPolicy(MetricPolicy):
    """Largest gradient: where a step would move the model most, whichever way.

    Importance sampling for SGD (Katharopoulos and Fleuret, arXiv 1803.00942); unguarded, as
    `loss`.
    """

    name = "gradient-norm"
    metric = "gradient-norm"


class CappedLossPolicy(MetricPolicy):
    """Highest loss, but what is above chance after the first visits counts against a node.

    A model that has learnt something beats chance on right labels. A guard without trusted data
    against labels that are random; not against a poisoner who keeps the loss low.
    """

    name = "capped-loss"
    metric = "capped-loss"


class AlignmentPolicy(MetricPolicy):
    """Gradient that agrees most with that of the packet's trusted samples (probe projection).

    As GRAD-MATCH and its kin choose data by the gradient of a trusted set (Killamsetty et al.,
    arXiv 2103.00123); what is against it scores below zero.
    """

    name = "alignment"
    metric = "alignment"


class BalanceGainPolicy(MetricPolicy):
    """Sum of two ranks: how even the classes used would be, and twice that of trial steps' gain.

    The label gap of Tram-FL (Maejima et al., arXiv 2308.04762), guarded by trusted data.
    """

    name = "balance-gain"
    metric = "balance-gain"
