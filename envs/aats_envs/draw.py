"""Networks of a family, and what is asked of their packets: targets that can be met, budgets.

A model is led round the good nodes by the law of learning, many networks at once; what it comes
to on the way bounds the targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aats.errors import ScenarioError
from aats_envs.batch import Limits, Networks
from aats_envs.chance import Keys
from aats_envs.family import Family
from aats_envs.learner import At, Certain, Surrogate
from aats_envs.network import Floats, KnowledgeNetwork
from aats_envs.pool import Pool
from aats_envs.row_learner import RowLearner
from aats_envs.world import between, scaled, world

VISITS = 48
"""Of the model that is led round."""
GOOD = 0.2
"""Wrong labels of a good node, at most."""
PROBES = 8
"""Links that probes cross for each link that the packet does, roughly."""
SPARE = 2.0
"""How much more generous the budgets of time, bytes and energy are than that of hops."""
LEAST_RISE = 0.3
"""Of the way from chance to perfect that a model led round must have come at its best: a network
where it does not has little to teach by visits alone, and is drawn again."""
TRIES = 50
OUTAGE = 0.5
"""Longest outage as a share of a journey."""


def draw(family: Family, pool: Pool, rng: np.random.Generator) -> KnowledgeNetwork:
    """Return a network of the family, with what is asked of its packet.

    Args:
        family: What to draw from.
        pool: Of a family with the same layouts and tasks.
        rng: The source of all that is drawn here.
    """
    (lesson,) = lessons(family, pool, rng, 1)
    return wish(family, lesson, rng)


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A network, and what it can teach: all of a wish that is the same for every packet."""

    network: KnowledgeNetwork
    curve: Floats
    """[V + 1, T] accuracy of a model led round, up to its best."""
    step: float
    """Links of a short way from one data node to the next."""
    errands: float
    """Links to a verifier and home."""
    hop_s: float
    visit_s: float
    visit_joules: float

    @classmethod
    def of(cls, network: KnowledgeNetwork, curve: Floats) -> Lesson:
        """Return the lesson of a network with a curve by `reach`."""
        data, home = np.flatnonzero(network.has_data), network.home
        mpvus = np.flatnonzero(network.is_mpvu)
        third, ways = max(1, len(data) // 3), np.ix_(data, data)
        held = (network.clean[data] + network.wrong[data]).sum(axis=(1, 2)) * network.epochs
        return cls(
            network=network,
            curve=curve[: int(_rise(network, curve).argmax()) + 1],
            step=float(np.sort(network.links[ways], axis=1)[:, 1 : 1 + third].mean()),
            errands=float(network.links[home, mpvus].mean() + network.links[home].mean()),
            hop_s=float(network.transfer_s[ways].sum() / max(1, network.links[ways].sum())),
            visit_s=float((held / network.samples_per_s[data]).mean()),
            visit_joules=float((held * network.joules_per_sample[data]).mean()),
        )


def lessons(
    family: Family, pool: Pool, rng: np.random.Generator, count: int, *, with_rows: bool = False
) -> tuple[Lesson, ...]:
    """Return networks that have something to teach.

    Args:
        family: What to draw from.
        pool: Of a family with the same layouts and tasks.
        rng: The source of all that is drawn here.
        count: How many.
        with_rows: Whether models learn by rows there, and not by formula.

    Raises:
        ScenarioError: If the family has hardly any.
    """
    found: list[Lesson] = []
    for _ in range(TRIES):
        missing = range(count - len(found))
        drawn = [world(family, pool, rng, with_rows=with_rows) for _ in missing]
        for network, curve in zip(drawn, reach(drawn, int(rng.integers(2**31))), strict=True):
            if _rise(network, curve).max() >= LEAST_RISE:
                found.append(Lesson.of(network, curve))
        if len(found) == count:
            return tuple(found)
    allowed = (
        f"fewer than 1 in {TRIES} of its networks teach a model a third of what there is to know"
    )
    raise ScenarioError("family", family.to_dict(), allowed)


def reach(networks: Sequence[KnowledgeNetwork], seed: int) -> list[Floats]:
    """Return for each network [V + 1, T] the accuracy of a model led round its good nodes.

    It learns by rows where the networks have some, by formula where not.

    Args:
        networks: The networks.
        seed: Of the order of the nodes.
    """
    limits = Limits.of(networks)
    batch = Networks(len(networks), limits)
    for row, network in enumerate(networks):
        batch.put(row, network)
    by_rows = networks[0].rows is not None
    learner: Certain = RowLearner(batch) if by_rows else Surrogate(batch)
    rows = np.arange(len(networks))
    keys: Keys = rows.astype(np.uint64) + np.uint64(seed)
    order = [_order(network, np.random.default_rng([seed, row])) for row, network in
             enumerate(networks)]  # fmt: skip
    models, visits = learner.fresh(rows), np.zeros((len(rows), limits.nodes))
    curve = [learner.exact(rows, models)]
    for step in range(VISITS):
        nodes = np.array([nodes[step % len(nodes)] for nodes in order])
        at = At(keys, np.full(len(rows), step), np.zeros(len(rows)))
        models = learner.visit(rows, nodes, visits[rows, nodes], models, at)
        visits[rows, nodes] += 1
        curve.append(learner.exact(rows, models))
    return [c[:, : len(n.classes)] for c, n in zip(np.stack(curve, axis=1), networks, strict=True)]


def wish(family: Family, lesson: Lesson, rng: np.random.Generator) -> KnowledgeNetwork:
    """Return the lesson's network with targets, a budget and outages drawn.

    Args:
        family: What to draw from.
        lesson: The network, and what it can teach.
        rng: The source of what is drawn.
    """
    network, curve = lesson.network, lesson.curve
    chance = 1 / network.classes
    share = between(family.target, rng.random())
    target = np.maximum(chance + share * (curve[-1] - chance), chance)
    visits = max(1, int((curve >= target).all(axis=1).argmax()))
    work = scaled(family.budget, rng.random()) * visits
    hops = math.ceil(work * lesson.step + work / visits * 2 * lesson.errands)
    journey_s = work * lesson.visit_s + hops * lesson.hop_s
    budget = np.array([hops, np.inf, np.inf, np.inf])
    if rng.random() < family.bounded:
        wire_bytes = hops * (network.size_bytes + PROBES * network.probe_bytes)
        budget[1:] = SPARE * np.array([journey_s, wire_bytes, work * lesson.visit_joules])
    n = network.num_nodes
    struck = rng.random(n) < between(family.outages, rng.random())
    struck[network.home] = False
    begin, last = journey_s * rng.random(n), journey_s * OUTAGE * rng.random(n)
    down = np.where(struck[:, None], np.stack([begin, begin + last], axis=1), np.inf)
    return replace(network, target=np.floor(1000 * target) / 1000, budget=budget, down=down)


def _rise(network: KnowledgeNetwork, curve: Floats) -> Floats:
    """Return [V + 1] the way from chance to perfect, mean over the skills."""
    chance = 1 / network.classes
    rise: Floats = ((curve - chance) / (1 - chance)).mean(axis=1)
    return rise


def _order(network: KnowledgeNetwork, rng: np.random.Generator) -> list[int]:
    held = network.clean.sum(axis=(1, 2)) + network.wrong.sum(axis=(1, 2))
    share = network.wrong.sum(axis=(1, 2)) / np.maximum(held, 1.0)
    data = np.flatnonzero(network.has_data)
    good = data[share[data] <= GOOD]
    chosen: list[int] = rng.permutation(good if len(good) else data).tolist()
    return chosen
