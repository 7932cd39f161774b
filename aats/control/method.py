"""TAG: which way of learning suits a task (DA-ITN's training algorithm generator).

A decision made before anything runs, from what adverts and the packet say; pure, explained in
words. The thresholds come from measurements of others and of this project, none of them from the
worlds that `benchmarks/advice.py` tries them on: Li and Lyu (NeurIPS 2023: strong skew, few local
steps and models that are not convex favour a chain, many steps and convex ones favour averaging);
the memory of Snake Learning (arXiv 2405.03372), as `aats.learning.memory` finds it; forgetting in a
single pass as `benchmarks/forgetting.py` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from aats.advert import DataAdvert
from aats.control.cost import averaging_bytes, chain_bytes
from aats.control.divergence import jensen_shannon
from aats.ids import NodeId
from aats.packet import Plugin

STRONG_SKEW = 0.5
"""Mean Jensen-Shannon divergence (bits) of the nodes' labels from all labels. With ten classes:
one a node 0.76, two 0.61; Dirichlet 0.1 is 0.48, 0.5 is 0.22, 2 is 0.07."""
ALIKE = 0.02
"""Divergence up to which nodes count as alike: some two hundred rows drawn evenly have 0.01."""
MANY_STEPS = 40
"""Local steps of a visit from which averaging's drift is outweighed: 50 in Li and Lyu, 5 is few."""
TRAINING_COPIES = 3.0
"""Weights, gradients and momentum, each of the model's size."""
SNAKE_COPIES = 2.0
"""Gradients and momentum, each of the size of what is trained."""
SPLIT_SHARE = 0.25
"""Part of a model that a client keeps when it is cut early."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a task before it runs."""

    nodes: int
    """Nodes with wanted data."""
    model_bytes: float
    skew: float = 0.0
    """See `label_skew`; 0-1."""
    local_steps: float = 10.0
    """SGD steps of one visit (rows / batch x epochs)."""
    convex: bool = False
    """Whether the loss is convex in the weights: logistic regression."""
    aligned_views: bool = False
    """Whether nodes hold different features of the same samples."""
    bits_per_sample: float = inf
    """What links may carry for each sample, where views are joined."""
    memory_bytes: float = inf
    """Of the smallest node with wanted data."""
    server_bytes: float = 0.0
    """Memory of the largest node that computes, which may run the rest of a split model."""
    slice_share: float = 1.0
    """Largest part of the model that one visit of a Snake trains; 1: it has no blocks."""
    passes: float = inf
    """Visits each node allows; 1: the model comes by once."""
    removable: bool = False
    """Whether a node's contribution must be removable afterwards."""
    budget_bytes: float = inf
    """What the packet may send."""
    rounds: float = 10.0
    """Rounds or cycles it is expected to take."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A way of learning, and why."""

    method: Plugin
    rendezvous: Plugin | None
    reasons: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the way is called: its rendezvous, if that has a plan of its own."""
        plan = self.rendezvous.name if self.rendezvous else ""
        return plan if plan not in ("", "assemble") else self.method.name


def label_skew(histograms: Sequence[Sequence[float]]) -> float:
    """Return the mean Jensen-Shannon divergence (bits) of histograms from their sum, 0-1.

    Args:
        histograms: Samples of each class, one histogram for each node; empty ones do not count.
    """
    width = max((len(h) for h in histograms), default=0)
    table = np.array([[*h, *[0.0] * (width - len(h))] for h in histograms if sum(h) > 0])
    pooled = table.sum(0)
    return sum(jensen_shannon(h, pooled) for h in table) / max(1, len(table))


def setting_of(
    adverts: Mapping[NodeId, Sequence[DataAdvert]], *, model_bytes: float, **known: float | bool
) -> Setting:
    """Return the setting that adverts tell of.

    Args:
        adverts: By node, its adverts for the wanted skills; histograms may be withheld.
        model_bytes: Of the model that shall travel.
        known: Other fields of `Setting`, where they are known; they win.
    """
    by_skill: dict[str, list[DataAdvert]] = {}
    for advert in (advert for every in adverts.values() for advert in every):
        by_skill.setdefault(advert.skill, []).append(advert)
    skews = [label_skew([a.labels for a in held]) for held in by_skill.values()]
    found: dict[str, float | bool] = {
        "skew": max(skews, default=0.0),
        "aligned_views": any(len({a.view for a in h if a.view}) > 1 for h in by_skill.values()),
    }
    return Setting(nodes=len(adverts), model_bytes=model_bytes, **{**found, **known})  # type: ignore[arg-type]


def recommend(setting: Setting) -> Advice:
    """Return the way of learning that suits a setting. The first rule that applies decides."""
    s = setting
    need = TRAINING_COPIES * s.model_bytes
    if s.aligned_views:
        return _joined(s)
    if s.removable:
        return _advice("lora", None, "contributions must be removable: one adapter for each visit")
    if need > s.memory_bytes:
        return _too_large(s, need)
    if s.passes <= 1:
        return _single_pass(s)
    averaging = averaging_bytes(s.model_bytes, s.nodes, s.rounds)
    if averaging > s.budget_bytes:
        return _thrifty(s, averaging)
    return _round_and_round(s)


def _joined(s: Setting) -> Advice:
    both = "nodes hold different features of the same samples: their codes are joined"
    if s.bits_per_sample < inf:
        why = f"links carry {s.bits_per_sample:g} bits a sample: the rate is part of the loss"
        return _advice("inl", "assemble", both, why)
    return _advice("vfl", "assemble", both, "links carry whatever codes take: no rate term")


def _too_large(s: Setting, need: float) -> Advice:
    why = f"training takes {_mb(need)}, the smallest node has {_mb(s.memory_bytes)}"
    snake = s.model_bytes * (1 + SNAKE_COPIES * s.slice_share)
    fits = s.slice_share < 1 and snake <= s.memory_bytes
    if need <= s.server_bytes and (s.budget_bytes == inf or not fits):
        more = f"a node of {_mb(s.server_bytes)} can run the rest of a split model, so that every "
        return _advice("split", "assemble", why, more + "row trains every weight")
    if fits:
        return _advice("snake", None, why, f"with a slice that is trained it takes {_mb(snake)}")
    less = f"a client's part of a split model takes about {_mb(SPLIT_SHARE * need)}"
    return _advice("split", "assemble", why, less, "no node can train it, nor a slice of it")


def _single_pass(s: Setting) -> Advice:
    once = "each node is visited once"
    if s.skew <= ALIKE:
        return _advice("sequential", None, once, f"nodes are alike ({_skew(s)}): a plain chain")
    why = f"nodes differ ({_skew(s)}): replay keeps what was learned before"
    return _advice("sequential", None, once, why, replay=0.5)


def _thrifty(s: Setting, averaging: float) -> Advice:
    why = f"averaging would send {_mb(averaging)}, allowed are {_mb(s.budget_bytes)}"
    chain = chain_bytes(s.model_bytes, s.nodes, s.rounds)
    if chain <= s.budget_bytes:
        return _advice("sequential", None, why, f"a chain sends {_mb(chain)}")
    visits = s.budget_bytes / s.model_bytes
    return _advice("sequential", None, why, f"a chain makes {visits:.0f} visits of that")


def _round_and_round(s: Setting) -> Advice:
    steps = f"{s.local_steps:.0f} local steps"
    if s.convex and (s.skew >= STRONG_SKEW or s.local_steps >= MANY_STEPS):
        return _advice("sequential", "fedavg", f"a convex model, {steps}, {_skew(s)}: averaging")
    if s.convex:
        why = "a convex model, mild skew, few steps: both ways tie, a chain sends half as much"
        return _advice("sequential", None, why)
    if s.local_steps >= MANY_STEPS and s.skew < STRONG_SKEW:
        return _advice("sequential", "fedavg", f"{steps} at {_skew(s)}: averaging")
    why = f"{_skew(s)}, {steps}, a model that is not convex"
    return _advice("sequential", None, f"{why}: a chain learns more from each transfer")


def _advice(method: str, rendezvous: str | None, *reasons: str, **params: object) -> Advice:
    return Advice(Plugin(method, dict(params)), Plugin(rendezvous) if rendezvous else None, reasons)


def _skew(s: Setting) -> str:
    return f"a label skew of {s.skew:.2f}"


def _mb(size: float) -> str:
    return f"{size / 1e6:.3g} MB"
