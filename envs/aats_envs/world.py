"""One network of a family, before anything is asked of it: data, noise, speeds on a layout.

A fixed number of NumPy calls on whole arrays. The same family, pool and generator state give the
same arrays bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from aats.ids import NodeId
from aats.learning.dynamics import Dynamics
from aats.learning.fit import BOUNDS
from aats.node.desk import CoreConfig
from aats_envs.family import Family, Range, Shares
from aats_envs.network import KnowledgeNetwork
from aats_envs.pool import CONSTANTS, Ground, Pool
from aats_envs.rows import deal

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PROBE_MAX_BYTES = CoreConfig(NodeId("any")).probe_max_bytes
"""Above it nodes do not send a model to be probed."""
SKILLS = "skill-a", "skill-b", "skill-c"
LURE_ROWS = 2.0
"""How many times the rows of other nodes a bad one has that lures."""
LURE_SPEED = 0.3
"""Exponent on its place in the range of speeds, 0-1: the median is at 0.81."""
SHARD_ALPHA = 10.0
"""Concentration of a class over its holders, where nodes hold but a few classes."""
TINY = 1e-12
LEVELS = np.array([0.5, 0.9])
"""Knowledge, of its ceiling, between which a visit's effect is taken as linear."""
KEPT = 0.97
"""A visit keeps no more of the knowledge before it than this, so that each walk has an end."""
PROBES = 8
"""Links that probes cross for each link that the packet does, roughly."""
SPARE = 2.0
"""How much more generous the budgets of time, bytes and energy are than that of hops."""
OUTAGE = 0.5
"""Longest outage as a share of a journey."""
LEAST, MOST = np.array([BOUNDS[name] for name in CONSTANTS]).T
CEILING, START, NOVELTY, HARM = map(CONSTANTS.index, ("ceiling", "start", "novelty", "harm"))


def world(
    family: Family, pool: Pool, rng: np.random.Generator, *, with_rows: bool = False
) -> KnowledgeNetwork:
    """Return a network of the family, with targets of 0, no budget and no outages.

    Args:
        family: What to draw from.
        pool: Of a family with the same layouts and tasks.
        rng: The source of all that is drawn here.
        with_rows: Whether rows are dealt, for models that learn by them.
    """
    ground = pool.grounds[rng.integers(len(pool.grounds))]
    n, task = len(ground.position), ground.task
    once = iter(rng.random(24).tolist())
    roles = _roles(family, n, rng.permutation(n), once)
    lured = next(once) < family.lures
    rows = _rows(family, ground, roles, rng, once, LURE_ROWS if lured else 1.0)
    node = rng.random((11, n))
    if lured:
        node[5, roles.data[: roles.bad]] **= LURE_SPEED
    told = _told(family, ground, rows, node[:5], rng, once)
    constants = _constants(family, ground, rng, once)
    speed = scaled(family.samples_per_s, node[5])
    joules = scaled(family.watts, node[6]) / speed
    error = family.speed_error
    shown_speed = speed * np.exp(error * rng.standard_normal(n)) if error else speed
    t = ground.skills
    network = KnowledgeNetwork(
        name=ground.name,
        position=ground.position,
        neighbours=ground.neighbours,
        transfer_s=ground.transfer_s,
        shown_transfer_s=ground.shown_s,
        probe_s=ground.probe_s,
        links=ground.links,
        has_data=rows.held > 0,
        is_mpvu=roles.is_mpvu,
        home=roles.home,
        clean=rows.clean,
        wrong=rows.wrong,
        shown=told.labels,
        shown_samples=told.samples,
        shows_labels=told.shows_labels,
        quality=told.quality,
        freshness_s=-family.age_s * np.log1p(-node[10]),
        probe_allowed=told.probe_allowed,
        samples_per_s=speed,
        shown_per_s=shown_speed,
        joules_per_sample=joules,
        queue=-family.queue * np.log1p(-rng.random(n)),
        down=np.full((n, 2), np.inf),
        classes=np.full(t, ground.classes),
        target=np.zeros(t),
        reference=np.full(t, ground.reference),
        test=np.full(t, ground.test),
        epochs=task.epochs,
        budget=np.full(4, np.inf),
        size_bytes=ground.size_bytes,
        probe_bytes=ground.probe_bytes,
        dynamics=tuple(Dynamics(*row) for row in constants.tolist()),
        layout=ground.layout,
        skills=SKILLS[:t],
        fit_epochs=ground.fit_epochs,
    )
    if not with_rows:
        return network
    return replace(network, rows=deal(network, task.average_last, rng))


class _Roles(NamedTuple):
    home: int
    is_mpvu: Bools
    mpvus: Ints
    data: Ints
    """Nodes that hold data, the bad ones first."""
    bad: int
    """How many."""


class _Rows(NamedTuple):
    clean: Floats
    wrong: Floats
    held: Floats
    """[N] training rows of all skills."""
    share_wrong: Floats
    """[N]"""


class _Told(NamedTuple):
    labels: Floats
    samples: Floats
    shows_labels: Bools
    quality: Floats
    probe_allowed: Bools


def between(span: Shares, u: float) -> float:
    """Return what lies at u, 0-1, of a range."""
    return span[0] + (span[1] - span[0]) * u


@overload
def scaled(span: Range, u: float) -> float: ...
@overload
def scaled(span: Range, u: Floats) -> Floats: ...
def scaled(span: Range, u: float | Floats) -> float | Floats:
    """Return what lies at u, 0-1, of a range by its logarithm."""
    out: float | Floats = span[0] * (span[1] / span[0]) ** u
    return out


def _roles(family: Family, n: int, order: Ints, once: Iterator[float]) -> _Roles:
    low, high = family.mpvus
    mpvus = order[1 : 1 + low + int((high - low + 1) * next(once))]
    others = order[1 + len(mpvus) :]
    data = others[: max(2, round(between(family.data_share, next(once)) * len(others)))]
    is_mpvu = np.zeros(n, np.bool_)
    is_mpvu[mpvus] = True
    bad = round(between(family.bad, next(once)) * len(data))
    return _Roles(int(order[0]), is_mpvu, mpvus, data, min(bad, len(data) - 1))


def _rows(
    family: Family, ground: Ground, roles: _Roles, rng: np.random.Generator,
    once: Iterator[float], lure: float,
) -> _Rows:  # fmt: skip
    n, d = len(ground.position), len(roles.data)
    shape = (d, ground.skills, ground.classes)
    spread = family.volume_spread
    rows = np.exp(spread * rng.standard_normal(shape[:2]) - spread * spread / 2)
    rows *= scaled(ground.task.rows, next(once))
    rows[: roles.bad] *= lure
    share = between(family.skill_share, next(once))
    if share < 1 and ground.skills > 1:
        lot = rng.random(shape[:2])
        holds = (lot < share) | (lot == lot.min(1, keepdims=True))
        holds[-1] = True  # a good node, so that each skill can be learnt somewhere
        rows *= holds
    sharded = next(once) < family.shards
    alpha, u = SHARD_ALPHA if sharded else scaled(family.alpha, next(once)), next(once)
    mix = rng.standard_gamma(alpha, shape)
    if sharded:
        low, high = family.shard_classes
        mix *= rng.random(shape).argsort(2) < low + int((high - low + 1) * u)
    mix *= (rows / np.maximum(mix.sum(2), TINY))[..., None]
    if ground.task.supply:
        mix *= np.minimum(1.0, ground.task.supply / np.maximum(mix.sum(0), TINY))
    chance = rng.random((3, *shape))
    true = np.floor(mix + chance[0])
    bad = np.zeros((d, 1, 1))
    bad[: roles.bad, 0, 0] = np.interp(rng.random(roles.bad), (0, 1), family.wrong)
    missed = np.floor(true * bad + chance[1])
    # A wrong label is any of the other classes.
    astray = (missed.sum(2, keepdims=True) - missed) / (ground.classes - 1)
    full = np.zeros((2, n, ground.skills, ground.classes))
    full[0, roles.data] = true - missed
    full[1, roles.data] = np.floor(astray + chance[2])
    share_wrong = np.zeros(n)
    share_wrong[roles.data] = bad[:, 0, 0]
    return _Rows(full[0], full[1], full.sum((0, 2, 3)), share_wrong)


def _told(
    family: Family, ground: Ground, rows: _Rows, lot: Floats, rng: np.random.Generator,
    once: Iterator[float],
) -> _Told:  # fmt: skip
    """Return what nodes say of their rows; `lot` is [5, N], drawn uniformly."""
    labels = rows.clean + rows.wrong
    stale = lot[0] < between(family.stale, next(once))
    if stale.any():
        labels[stale] = np.floor(labels[stale] * rng.random(labels[stale].shape))
    samples = labels.sum(2)
    lies = lot[1] < between(family.liars, next(once))
    if lies.any():
        samples[lies] = np.floor(samples[lies] * scaled(family.lie, next(once)))
        labels[lies] = samples[lies][..., None] / ground.classes
    shows = lot[2] >= between(family.withheld, next(once))
    labels[~shows] = 0.0
    admits = lot[3] < between(family.honest, next(once))
    allowed = lot[4] >= between(family.refused, next(once))
    if ground.probe_bytes > PROBE_MAX_BYTES:
        allowed[:] = False
    return _Told(
        labels,
        samples,
        np.repeat(shows[:, None], ground.skills, axis=1),
        np.where(admits & ~lies, 1 - rows.share_wrong, 1.0),
        allowed,
    )


def _constants(
    family: Family, ground: Ground, rng: np.random.Generator, once: Iterator[float]
) -> Floats:
    """Return the constants of learning [T, F]: of a ceiling, what it lacks is randomised."""
    fit = ground.constants
    out = fit.copy()
    if family.randomised:
        factor = np.exp(family.randomised * rng.standard_normal(out.shape))
        out *= factor
        out[:, CEILING] = 1 - (1 - fit[:, CEILING]) * factor[:, CEILING]
        out = np.minimum(np.maximum(out, LEAST), MOST)
    out[:, START] = 1 / ground.classes
    out[:, NOVELTY] += between(family.novelty, next(once))
    out[:, HARM] *= scaled(family.harm, next(once))
    return out
