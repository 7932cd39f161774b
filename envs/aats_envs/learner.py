"""What a visit does to a model: the `Learner` protocol, and learning by formula."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aats.learning.dynamics import (
    Dynamics,
    Scores,
    accuracy,
    moved,
    probed,
    scattered,
    shaken,
)
from aats_envs.batch import Networks
from aats_envs.chance import Keys, Stream, normals
from aats_envs.network import Floats, Ints

Models = npt.NDArray[Any]
"""[n, ...]: one model a row, whatever a learner takes for a model."""

PROBE_ROWS = 16.0
PERSISTENT = 0.9
"""Correlation of the luck of one and the same trusted set from one version to the next."""


class Learner(Protocol):
    """Models, one to a row. `rows` [n] are indices into the networks; all else is [n, ...]."""

    def fresh(self, rows: Ints) -> Models:
        """Return untrained models."""
        ...

    def visit(self, rows: Ints, nodes: Ints, visits: Floats, models: Models, at: At) -> Models:
        """Return the models after a visit to the data of `nodes`, `visits` earlier ones."""
        ...

    def judged(self, rows: Ints, models: Models, at: At) -> Floats:
        """Return [n, T] the accuracy on the packet's trusted rows."""
        ...

    def verdict(self, rows: Ints, models: Models, at: At) -> Floats:
        """Return [n, T] the accuracy on the MPVUs' test set."""
        ...

    def probe(self, rows: Ints, nodes: Ints, models: Models, at: At) -> Scores:
        """Return the scores of a probe at `nodes`."""
        ...


class Certain(Learner, Protocol):
    """A learner that can tell how good a model is, luck apart."""

    def exact(self, rows: Ints, models: Models) -> Floats:
        """Return [n, T] the accuracy."""
        ...


class At:
    """Where in their episodes the rows are: what random numbers are drawn by.

    Args:
        keys: [n] of the rows' episodes.
        steps: [n] of the rows.
        hops: [n] links travelled.
    """

    def __init__(self, keys: Keys, steps: Ints, hops: Floats) -> None:
        self.keys, self.steps, self.hops = keys, steps, hops

    def of(self, places: Ints) -> At:
        """Return the same of some of the rows."""
        return At(self.keys[places], self.steps[places], self.hops[places])

    def normals(self, stream: Stream, count: int, *, episode: bool = False) -> Floats:
        """Return [n, count] standard normal numbers, the same at each step of an episode if so."""
        steps = np.zeros_like(self.steps) if episode else self.steps
        return normals(self.keys, steps, stream, count)


class Surrogate:
    """Learning by formula (`aats.learning.dynamics`); a model is its knowledge [T, C]."""

    def __init__(self, networks: Networks) -> None:
        self._net = networks
        limits = networks.limits
        self._shape = limits.skills, limits.classes

    def fresh(self, rows: Ints) -> Floats:
        """See `Learner`."""
        is_class = np.arange(self._shape[1]) < self._net.classes[rows][..., None]
        start = np.asarray(self._net.dynamics.start)[rows]
        return np.where(is_class, start[..., None], 0.0)

    def visit(self, rows: Ints, nodes: Ints, visits: Floats, models: Floats, at: At) -> Floats:
        """See `Learner`."""
        net = self._net
        law = self._law(rows)
        after = moved(
            models, net.clean[rows, nodes], net.wrong[rows, nodes].sum(axis=-1),
            np.repeat(visits[:, None], self._shape[0], axis=1), law,
            (net.epochs[rows] / net.fit_epochs[rows])[:, None], self._classes(rows),
        )  # fmt: skip
        draws = at.normals(Stream.VISIT, self._shape[0] * self._shape[1])
        return shaken(after, draws.reshape(after.shape), law)

    def judged(self, rows: Ints, models: Floats, at: At) -> Floats:
        """See `Learner`. The same trusted rows are as lucky or unlucky at every version, nearly."""
        t = self._shape[0]
        lasting = at.normals(Stream.EPISODE, 2 * t, episode=True)[:, :t]
        luck = PERSISTENT * lasting
        luck = luck + np.sqrt(1 - PERSISTENT**2) * at.normals(Stream.ESTIMATE, t)
        return self._measured(rows, models, luck, self._net.reference[rows])

    def verdict(self, rows: Ints, models: Floats, at: At) -> Floats:
        """See `Learner`."""
        t = self._shape[0]
        luck = at.normals(Stream.EPISODE, 2 * t, episode=True)[:, t:]
        return self._measured(rows, models, luck, self._net.test[rows])

    def exact(self, rows: Ints, models: Models) -> Floats:
        """Return [n, T] the accuracy on all rows there could be."""
        weights = (np.arange(self._shape[1]) < self._classes(rows)[..., None]).astype(np.float64)
        return accuracy(models, weights, self._law(rows))

    def probe(self, rows: Ints, nodes: Ints, models: Floats, at: At) -> Scores:
        """See `Learner`: the mean over the wanted skills that the node holds."""
        net = self._net
        clean, wrong = net.clean[rows, nodes], net.wrong[rows, nodes]
        law, classes = self._law(rows), self._classes(rows)
        weights = (np.arange(self._shape[1]) < classes[..., None]).astype(np.float64)
        scores = probed(models, clean, wrong, weights, law, PROBE_ROWS, classes)
        t = self._shape[0]
        # A node is probed at most once at each step, so it may stand for the stream's place.
        draws = normals(at.keys, at.steps, Stream.PROBE, 4 * t, nodes * 4 * t)
        draws = draws.reshape(len(rows), t, 4)
        rows_held = clean.sum(axis=-1) + wrong.sum(axis=-1)
        held = rows_held > 0
        found = scattered(scores, draws, law, wrong.sum(axis=-1) / np.maximum(rows_held, 1.0))
        count = np.maximum(1, held.sum(axis=-1))
        return Scores(*(np.where(held, score, 0.0).sum(axis=-1) / count for score in found))

    def _measured(self, rows: Ints, models: Floats, luck: Floats, n: Floats) -> Floats:
        true = self.exact(rows, models)
        spread = np.sqrt(true * (1 - true) / np.maximum(n, 1.0))
        found: Floats = np.clip(true + luck * spread, 0.0, 1.0)
        return found

    def _law(self, rows: Ints) -> Dynamics:
        law = self._net.dynamics
        return Dynamics(**{f.name: getattr(law, f.name)[rows] for f in fields(Dynamics)})

    def _classes(self, rows: Ints) -> Ints:
        """Return [n, T] classes in use, 1 for padding, which then learns nothing."""
        return np.maximum(1, self._net.classes[rows])
