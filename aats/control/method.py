"""TAG: which way of learning suits a task (DA-ITN's training algorithm generator).

A decision made before anything runs, from what adverts and the packet say; pure, explained in
words. The thresholds come from measurements: the pattern of Li and Lyu (NeurIPS 2023: strong skew,
few local steps and models that are not convex favour a chain, many steps and convex ones favour
averaging), Snake's memory formula (arXiv 2405.03372), and this project's own benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from aats.advert import DataAdvert
from aats.packet import Plugin

STRONG_SKEW = 0.5
"""Mean Jensen-Shannon divergence (base 2) of the nodes' labels from all labels. With ten classes:
one a node 0.76, two 0.61; Dirichlet 0.1 is 0.51, 0.5 is 0.22, 2 is 0.07."""
MANY_STEPS = 40
"""Local steps of a visit from which averaging's drift is outweighed: 50 in Li and Lyu, 5 is few."""
TRAINING_COPIES = 4.0
"""Weights, gradients and two moments, each of the model's size."""
SNAKE_SHARE = 3.0
"""Gradients and two moments of the slice that trains, in slices."""
SPLIT_SHARE = 0.25
"""Part of a model that its client keeps when it is cut early."""


Shares = npt.NDArray[np.float64]
"""[nodes, classes], each row sums to 1."""


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
    """Whether the model is linear in its weights."""
    aligned_views: bool = False
    """Whether nodes hold different features of the same samples."""
    bits_per_sample: float = inf
    """What a link may carry for each sample, where views are joined."""
    memory_bytes: float = inf
    """Of the smallest node."""
    blocks: int = 1
    """Blocks the model can be cut into."""
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
        """What the way is called in tables: of the rendezvous if it has a plan of its own."""
        plan = self.rendezvous.name if self.rendezvous else ""
        return plan if plan not in ("", "assemble") else self.method.name


def label_skew(histograms: Sequence[Sequence[float]]) -> float:
    """Return the mean Jensen-Shannon divergence (base 2) of histograms from their sum, 0-1.

    Args:
        histograms: Samples of each class, one histogram for each node; empty ones do not count.
    """
    width = max((len(h) for h in histograms), default=0)
    table = np.array([[*h, *[0.0] * (width - len(h))] for h in histograms if sum(h) > 0])
    if table.size == 0:
        return 0.0
    shares, pooled = table / table.sum(1, keepdims=True), table.sum(0) / table.sum()
    middle = (shares + pooled) / 2
    return float(
        ((_kl(shares, middle) + _kl(pooled[None].repeat(len(shares), 0), middle)) / 2).mean()
    )


def setting_of(
    adverts: Mapping[str, Sequence[DataAdvert]], *, model_bytes: float, **known: float | bool
) -> Setting:
    """Return the setting that adverts tell of, one skill's.

    Args:
        adverts: By node, its adverts for the skill; histograms may be withheld.
        model_bytes: Of the model that shall travel.
        known: Other fields of `Setting`, where they are known; they win.
    """
    held = [advert for every in adverts.values() for advert in every]
    views = {advert.view for advert in held if advert.view}
    found: dict[str, float | bool] = {
        "skew": label_skew([advert.labels for advert in held]),
        "aligned_views": len(views) > 1,
    }
    return Setting(nodes=len(adverts), model_bytes=model_bytes, **{**found, **known})  # type: ignore[arg-type]


def recommend(setting: Setting) -> Advice:
    """Return the way of learning that suits a setting. The first rule that applies decides."""
    s = setting
    if s.aligned_views:
        return _joined(s)
    if s.removable:
        return _advice("lora", None, "contributions must be removable: one adapter for each visit")
    need = TRAINING_COPIES * s.model_bytes
    if need > s.memory_bytes:
        return _too_large(s, need)
    if s.passes <= 1:
        why = f"each node is visited {s.passes:g} time: only replay keeps what was learned before"
        return _advice("sequential", None, why, replay="gaussian") if s.skew > 0.1 else _advice(
            "sequential", None, "each node is visited once, and nodes are alike: a plain chain"
        )  # fmt: skip
    averaging = 2 * s.model_bytes * s.nodes * s.rounds
    if averaging > s.budget_bytes:
        return _thrifty(s, averaging)
    if s.convex:
        if s.skew < STRONG_SKEW and s.local_steps < MANY_STEPS:
            why = "a convex model, mild skew, few steps: both ways tie, a chain sends half as much"
            return _advice("sequential", None, why)
        return _averaged("a convex model under skew or with many local steps: averaging wins")
    if s.local_steps >= MANY_STEPS and s.skew < STRONG_SKEW:
        return _averaged(
            f"{s.local_steps:g} local steps and a skew of {s.skew:.2f}: averaging wins"
        )
    why = (
        f"a skew of {s.skew:.2f} with {s.local_steps:g} local steps and a model that is not convex"
    )
    return _advice("sequential", None, f"{why}: a chain learns more from each transfer")


def _joined(s: Setting) -> Advice:
    both = "nodes hold different features of the same samples: their codes are joined"
    assemble = Plugin("assemble")
    if s.bits_per_sample < inf:
        why = f"links carry {s.bits_per_sample:g} bits a sample: the rate is part of the loss"
        return _advice("inl", assemble, both, why)
    return _advice("vfl", assemble, both, "links carry whatever codes take: no rate term")


def _too_large(s: Setting, need: float) -> Advice:
    why = f"training takes {_mb(need)}, the smallest node has {_mb(s.memory_bytes)}"
    snake = s.model_bytes * (1 + SNAKE_SHARE * min(1.0, 3 / max(1, s.blocks)))
    if snake <= s.memory_bytes:
        return _advice("snake", None, why, f"a slice of three blocks takes {_mb(snake)}")
    part = SPLIT_SHARE * need
    more = f"a slice takes {_mb(snake)}; a client's part of a split model about {_mb(part)}"
    return _advice("split", Plugin("assemble"), why, more)


def _thrifty(s: Setting, averaging: float) -> Advice:
    why = f"averaging would send {_mb(averaging)}, allowed are {_mb(s.budget_bytes)}"
    chain = s.model_bytes * s.nodes * s.rounds
    if chain <= s.budget_bytes:
        return _advice("sequential", None, why, f"a chain sends {_mb(chain)}")
    return _advice("snake", None, why, f"a chain sends {_mb(chain)}, a Snake only slices of it")


def _averaged(why: str) -> Advice:
    return _advice("sequential", Plugin("fedavg"), why)


def _advice(method: str, rendezvous: Plugin | None, *reasons: str, **params: object) -> Advice:
    return Advice(Plugin(method, dict(params)), rendezvous, reasons)


def _kl(p: Shares, q: Shares) -> Shares:
    safe = np.where(p > 0, p, 1.0)
    found: Shares = (p * np.log2(safe / np.where(q > 0, q, 1.0))).sum(1)
    return found


def _mb(size: float) -> str:
    return f"{size / 1e6:.3g} MB"
