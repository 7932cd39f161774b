"""Rows at the nodes of a drawn network: real and made-up tables, dealt as the network says.

What a network tells in counts (`clean`, `wrong`) is filled here with rows of a table: each node
has its own, no row is dealt twice before all of its class have been, and a wrong label is any
other class's. The rows that a packet trusts, and those of an MPVU's test set, are nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aats.learning.datasets import load_dataset
from aats_envs.network import Floats, Ints, KnowledgeNetwork

Table = npt.NDArray[np.float32]

WIDTH = 65
"""Columns of a row: 64 features, zeros where a table has fewer, and a one for the bias."""
REAL = "digits", "breast-cancer", "diabetes"
"""Tables that come with scikit-learn."""
MADE_UP = 6
"""Tables of as many classes as the digits, and as many again of two."""
ROWS = 400
"""Of a class of a made-up table."""
SHARES = 0.7, 0.85
"""Of the rows of a class: nodes deal from those below the first, packets trust those up to the
second, MPVUs test by the rest."""
REAL_SHARE = 0.5
"""Of the networks that could have a real table."""
MOST_TRUSTED, MOST_TEST = 128, 512
"""Rows of a skill."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A table to be learnt: by class, the rows in `table` for nodes, packets and MPVUs."""

    is_real: bool
    dealt: tuple[Ints, ...]
    trusted: tuple[Ints, ...]
    test: tuple[Ints, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Deal:
    """Who holds which rows of a table, by number, of a network's N nodes and T skills."""

    table: Table
    """[R, WIDTH] the same of all networks of a source."""
    at: Ints
    """[R] rows of the table, by node, then by skill, else in random order."""
    label: Ints
    """[R] as they are labelled."""
    first: Ints
    """[N, T] in `at`."""
    held: Ints
    """[N, T] how many."""
    trusted: tuple[tuple[Ints, Ints], ...]
    """[T] rows and labels of the packet's trusted set."""
    test: tuple[tuple[Ints, Ints], ...]
    """[T] of the MPVUs' test set."""
    start: int
    """Seed of the untrained weights."""
    average_last: int
    """As of the sequential method: visits whose mean weights are shipped."""


@lru_cache(maxsize=1)
def library() -> tuple[Table, tuple[Subject, ...]]:
    """Return all tables [R, WIDTH] in one, and the subjects by rows of it."""
    tables: list[tuple[npt.NDArray[Any], Ints, bool]] = []
    for name in REAL:
        data = load_dataset(name)
        tables.append((data.x.reshape(len(data), -1), data.y, True))
    for number in range(2 * MADE_UP):
        rng = np.random.default_rng([0x7AB1E, number])
        tables.append((*_made_up(10 if number < MADE_UP else 2, rng), False))
    total = sum(len(y) for _, y, _ in tables)
    table = np.zeros((total, WIDTH), np.float32)
    table[:, -1] = 1.0
    subjects, first = [], 0
    for number, (x, y, is_real) in enumerate(tables):
        table[first : first + len(y), : x.shape[1]] = x
        rng = np.random.default_rng([0x5EAC, number])
        of_class = [first + rng.permutation(np.flatnonzero(y == c)) for c in range(y.max() + 1)]
        cut = [np.split(rows, (np.array(SHARES) * len(rows)).astype(int)) for rows in of_class]
        subjects.append(Subject(is_real, *(tuple(part[i] for part in cut) for i in range(3))))
        first += len(y)
    return table, tuple(subjects)


def deal(network: KnowledgeNetwork, average_last: int, rng: np.random.Generator) -> Deal:
    """Return rows for a network's counts.

    Args:
        network: The counts, the classes, the sizes of the trusted and the test sets.
        average_last: Of the packet's method.
        rng: The source of all that is drawn.
    """
    n, t = network.num_nodes, len(network.classes)
    subjects = _subjects(network.classes.tolist(), rng)
    dealt = [_dealt(network, skill, subject, rng) for skill, subject in enumerate(subjects)]
    cell = np.concatenate([d.node * t + skill for skill, d in enumerate(dealt)])
    order = rng.permutation(len(cell))
    order = order[np.argsort(cell[order], kind="stable")]
    held = np.bincount(cell, minlength=n * t)
    return Deal(
        table=library()[0],
        at=np.concatenate([d.at for d in dealt])[order],
        label=np.concatenate([d.label for d in dealt])[order],
        first=(np.cumsum(held) - held).reshape(n, t),
        held=held.reshape(n, t),
        trusted=tuple(d.trusted for d in dealt),
        test=tuple(d.test for d in dealt),
        start=int(rng.integers(2**31)),
        average_last=average_last,
    )


class _Dealt(NamedTuple):
    node: Ints
    at: Ints
    label: Ints
    trusted: tuple[Ints, Ints]
    test: tuple[Ints, Ints]


def _dealt(
    network: KnowledgeNetwork, skill: int, subject: Subject, rng: np.random.Generator
) -> _Dealt:
    """Return the rows of one skill: at the nodes, on the packet, at the MPVUs."""
    count = int(network.classes[skill])
    chosen = rng.permutation(len(subject.dealt))[:count]
    clean, wrong = (a[:, skill, :count].astype(int) for a in (network.clean, network.wrong))
    counts = np.stack([clean, wrong])
    is_wrong, node, label = np.repeat(
        np.indices(counts.shape).reshape(3, -1), counts.ravel(), axis=1
    )
    # A row whose label is wrong is one of another class.
    shows = (label + is_wrong * rng.integers(1, count, size=len(label))) % count
    at = np.empty(len(label), np.int64)
    for c in range(count):
        mine = rng.permutation(np.flatnonzero(shows == c))
        at[mine] = _in_turn(subject.dealt[chosen[c]], len(mine), rng)

    def unseen(pools: tuple[Ints, ...], size: int) -> tuple[Ints, Ints]:
        labels = np.sort(np.arange(size) % count)
        of_class = (_in_turn(pools[chosen[c]], int((labels == c).sum()), rng) for c in range(count))
        return np.concatenate(list(of_class)), labels

    trusted = unseen(subject.trusted, min(MOST_TRUSTED, int(network.reference[skill])))
    test = unseen(subject.test, min(MOST_TEST, int(network.test[skill])))
    return _Dealt(node, at, label, trusted, test)


def _subjects(classes: Sequence[int], rng: np.random.Generator) -> list[Subject]:
    """Return a subject for each skill, no two the same, real ones or made-up ones.

    Raises:
        ValueError: If there is none of so many classes.
    """
    real = rng.random() < REAL_SHARE
    free = list(library()[1])
    chosen = []
    for count in classes:
        fitting = [s for s in free if (len(s.dealt) == 2 if count == 2 else len(s.dealt) >= count)]
        if not fitting:
            raise ValueError(f"a skill of {count} classes: no table has so many")
        wanted = [s for s in fitting if s.is_real == real] or fitting
        chosen.append(wanted[rng.integers(len(wanted))])
        free.remove(chosen[-1])
    return chosen


def _in_turn(pool: Ints, count: int, rng: np.random.Generator) -> Ints:
    """Return `count` of a pool, each as often as any other give or take one."""
    rounds = [rng.permutation(pool) for _ in range(-(-count // len(pool)))]
    return np.concatenate([*rounds, pool[:0]])[:count]


def _made_up(classes: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Return rows and labels: a class is some clouds in a plane of few dimensions, bent."""
    latent, features = int(rng.integers(4, 10)), int(rng.integers(10, 33))
    clouds = int(rng.integers(1, 4))
    spread = rng.uniform(0.4, 0.9) if classes > 2 else rng.uniform(0.7, 1.6)
    centre = rng.standard_normal((classes, clouds, latent))
    y = np.repeat(np.arange(classes), ROWS)
    z = centre[y, rng.integers(clouds, size=len(y))]
    z = z + spread * rng.standard_normal(z.shape)
    lift = rng.standard_normal((2, latent, features)) / np.sqrt(latent)
    x = z @ lift[0] + np.tanh(2 * (z @ lift[1]))
    return (x - x.mean(0)) / x.std(), y
