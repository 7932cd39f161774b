"""One Gaussian a class: moments that add up exactly, and rows drawn from them.

Of each class the count, the mean and the *scatter* (the sum of squared deviations from the
mean) are kept: of every feature by itself (`rank` 0), or as `rank` directions whose outer
products add up to it. Moments of two sets of rows make those of both:

    n = n1 + n2,  mu = (n1 mu1 + n2 mu2) / n,
    S = S1 + S2 + (n1 n2 / n) (mu1 - mu2)(mu1 - mu2)^T

This is exact for diagonals, and for directions as long as there are enough of them; otherwise
those of most variance are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from aats.errors import ModelError
from aats.payload import Array
from aats.roles.data import Labels

Floats = npt.NDArray[np.float64]

EXACT = 128
"""Above so many rows and features directions are found by iteration: a full decomposition of
784 features takes seconds."""
OVER, ROUNDS = 10, 8
"""Directions beyond those wanted, and rounds, of the iteration."""

PARTS = "classes", "count", "mean", "scatter"


@dataclass(frozen=True, slots=True, eq=False)
class Gaussians:
    """The moments of the classes of one skill; those without rows are left out."""

    classes: Labels
    """[m], ascending."""
    count: Floats
    """[m] rows, above 0; no whole numbers where noise was added."""
    mean: Floats
    """[m, d]."""
    scatter: Floats
    """[m, d] for diagonals, [m, rank, d] for directions."""

    @property
    def rank(self) -> int:
        """Directions of a class; 0 for diagonals."""
        return self.scatter.shape[1] if self.scatter.ndim == 3 else 0

    @classmethod
    def empty(cls, width: int, rank: int) -> Gaussians:
        """Return the moments of no class."""
        shape = (0, rank, width) if rank else (0, width)
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, width)), np.zeros(shape))

    @classmethod
    def of(cls, x: npt.ArrayLike, y: Labels, *, rank: int, minimum: int = 1) -> Gaussians:
        """Return the moments of labelled rows.

        Args:
            x: [n, d] rows.
            y: [n] labels.
            rank: Directions kept; 0 for diagonals. Never more than half the rows of a class: as
                many directions as rows would be the rows themselves.
            minimum: A class with fewer rows is left out.
        """
        rows = np.asarray(x, np.float64)
        known, counts = np.unique(y, return_counts=True)
        kept = known[counts >= minimum]
        out = cls.empty(rows.shape[1], rank)
        for label in kept:
            own = rows[y == label]
            mean = own.mean(0)
            away = own - mean
            if rank:
                scatter = _directions(away, np.ones(len(own)), rank, min(rank, len(own) // 2))
            else:
                scatter = np.square(away).sum(0)
            one = cls(np.array([label]), np.array([float(len(own))]), mean[None], scatter[None])
            out = out._beside(one)
        return out

    def merged(self, other: Gaussians) -> Gaussians:
        """Return the moments of both sets of rows."""
        return combined([self, other])

    def sample(self, labels: Labels, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Return a row [n, d] for each label, all of which must be among `classes`."""
        place = np.searchsorted(self.classes, labels)
        freedom = np.maximum(self.count - 1, 1)
        if not self.rank:
            noise = rng.standard_normal((len(labels), self.mean.shape[1]))
            scale = np.sqrt(self.scatter[place] / freedom[place, None])
            return np.asarray(self.mean[place] + scale * noise, np.float32)
        noise = rng.standard_normal((len(labels), self.rank)) / np.sqrt(freedom[place, None])
        x = np.empty((len(labels), self.mean.shape[1]), np.float32)
        for i in np.unique(place):
            of_class = place == i
            x[of_class] = self.mean[i] + np.einsum("nk,kd->nd", noise[of_class], self.scatter[i])
        return x

    def covariance(self, place: int) -> Floats:
        """Return the covariance [d, d] of the class at a place."""
        scatter = self.scatter[place]
        full = scatter.T @ scatter if self.rank else np.diag(scatter)
        out: Floats = full / max(self.count[place] - 1, 1)
        return out

    def arrays(self) -> dict[str, Array]:
        """Return what travels; single precision but for the counts."""
        return {
            "classes": self.classes,
            "count": self.count,
            "mean": self.mean.astype(np.float32),
            "scatter": self.scatter.astype(np.float32),
        }

    @classmethod
    def read(
        cls, arrays: Mapping[str, Array], place: str, *, width: int, rank: int, num_classes: int
    ) -> Gaussians:
        """Return moments that travelled; those of no class if there are none.

        Raises:
            ModelError: If they are not of the shapes expected, not finite or impossible.
        """
        if not arrays:
            return cls.empty(width, rank)
        try:
            labels, count, mean, scatter = (arrays[part] for part in PARTS)
        except KeyError as error:
            raise ModelError(f"{place}: {error.args[0]!r} is missing") from None
        m = len(labels) if labels.ndim == 1 else -1
        shapes = [(m,), (m, width), (m, rank, width) if rank else (m, width)]
        if [a.shape for a in (count, mean, scatter)] != shapes or labels.dtype != np.int64:
            raise ModelError(f"{place}: shapes do not fit {width} features and rank {rank}")
        found = cls(
            np.array(labels, np.int64), np.array(count, np.float64), np.array(mean, np.float64),
            np.array(scatter, np.float64),
        )  # fmt: skip
        finite = all(np.isfinite(a).all() for a in (found.count, found.mean, found.scatter))
        ordered = (np.diff(found.classes) > 0).all() and (found.classes >= 0).all()
        possible = (found.count > 0).all() and (rank > 0 or (found.scatter >= 0).all())
        if not (finite and ordered and possible) or found.classes.max(initial=0) >= num_classes:
            raise ModelError(f"{place}: no moments of classes 0-{num_classes - 1}")
        return found

    def _beside(self, other: Gaussians) -> Gaussians:
        """Return these classes and others, none of which is among them."""
        labels = np.concatenate([self.classes, other.classes])
        order = np.argsort(labels)
        return Gaussians(
            labels[order],
            np.concatenate([self.count, other.count])[order],
            np.concatenate([self.mean, other.mean])[order],
            np.concatenate([self.scatter, other.scatter])[order],
        )


def combined(banks: Sequence[Gaussians], signs: Sequence[float] = ()) -> Gaussians:
    """Return the moments of the rows of all banks together.

    Args:
        banks: At least one, all of one width and rank.
        signs: A factor on the rows of each: -1 takes rows out that were counted before. Empty
            for 1 each.
    """
    signs = signs or [1.0] * len(banks)
    first = banks[0]
    out = Gaussians.empty(first.mean.shape[1], first.rank)
    for label in np.unique(np.concatenate([bank.classes for bank in banks])):
        found = [
            (sign, bank, int(np.searchsorted(bank.classes, label)))
            for sign, bank in zip(signs, banks, strict=True)
            if label in bank.classes
        ]
        sign = np.array([s for s, _, _ in found])
        count = np.array([bank.count[i] for _, bank, i in found])
        means = np.stack([bank.mean[i] for _, bank, i in found])
        scatters = [bank.scatter[i] for _, bank, i in found]
        total = float(sign @ count)
        if total <= 0:
            continue
        mean = (sign * count) @ means / total
        between = np.sqrt(count)[:, None] * (means - mean)
        if first.rank:
            rows = np.concatenate([*scatters, between])
            weights = np.concatenate([np.repeat(sign, first.rank), sign])
            scatter = (
                scatters[0] if len(found) == 1 else _directions(rows, weights, first.rank)
            )  # fmt: skip
        else:
            scatter = np.maximum(sign @ (np.stack(scatters) + np.square(between)), 0.0)
        out = out._beside(
            Gaussians(np.array([label]), np.array([total]), mean[None], scatter[None])
        )
    return out


def _directions(rows: Floats, weights: Floats, rank: int, most: int | None = None) -> Floats:
    """Return [rank, d] whose outer products best add up to sum weights rows rows^T.

    Args:
        rows: [r, d].
        weights: [r]; negative ones take away.
        rank: Number of rows returned; zero rows fill up.
        most: Number of directions kept, `rank` by default.
    """
    r, d = rows.shape
    a, w = torch.from_numpy(np.ascontiguousarray(rows)), torch.from_numpy(weights)
    if min(r, d) > EXACT and (weights > 0).all():  # work where most of the variance is
        basis = _widest(w.sqrt()[:, None] * a, rank + OVER)
        small = basis.T @ (a.T * w)
        values, vectors = torch.linalg.eigh(small @ (a @ basis))
        vectors = basis @ vectors
    elif r < d:  # work in the span of the rows
        basis, triangle = torch.linalg.qr(a.T)
        values, vectors = torch.linalg.eigh(triangle * w @ triangle.T)
        vectors = basis @ vectors
    else:
        values, vectors = torch.linalg.eigh(a.T * w @ a)
    kept = min(rank if most is None else most, len(values))
    out = torch.zeros((rank, d), dtype=torch.float64)
    if kept:
        top = values[-kept:].clamp_min(0.0).sqrt()
        out[:kept] = (vectors[:, -kept:] * top).T.flip(0)
    found: Floats = out.numpy()
    return found


def _widest(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """Return an orthonormal basis [d, rank] of nearly the most variance (subspace iteration)."""
    start = np.random.default_rng(0).standard_normal((rows.shape[1], rank))
    basis: torch.Tensor = torch.linalg.qr(torch.from_numpy(start))[0]
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis))[0]
    return basis


def noise_scale(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the standard deviation of the Gaussian mechanism (Balle and Wang 2018, theorem 8).

    The smallest with which a release whose Euclidean norm one row can change by `sensitivity` is
    (epsilon, delta)-differentially private; unlike the classical formula right for every epsilon.
    """

    def spent(sigma: float) -> float:
        a, b = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
        return _phi(a - b) - math.exp(epsilon) * _phi(-a - b)

    low, high = 0.0, sensitivity
    while spent(high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def _phi(t: float) -> float:
    return math.erfc(-t / math.sqrt(2)) / 2


def private(
    x: npt.ArrayLike, y: Labels, *, num_classes: int, clip: float, epsilon: float, delta: float,
    minimum: int, rng: np.random.Generator,
) -> Gaussians:  # fmt: skip
    """Return diagonal moments that are (epsilon, delta)-differentially private.

    Neighbours differ by one row more or less. Rows are cut to norm `clip`; of every class,
    those without rows included, count, sum / clip and sum of squares / clip^2 get noise; all
    else follows from these. One row changes one class's, each by at most 1 in norm.

    Args:
        x: [n, d] rows.
        y: [n] labels.
        num_classes: All classes of the skill.
        clip: Largest norm of a row.
        epsilon: Above 0.
        delta: In 0-1.
        minimum: A class whose noisy count is below it is left out.
        rng: Must be secret: whoever knows its seed can take the noise away.
    """
    rows = np.asarray(x, np.float64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows * np.minimum(1.0, clip / np.maximum(norm, np.finfo(np.float64).tiny)) / clip
    sigma = noise_scale(epsilon, delta, math.sqrt(3))
    out = Gaussians.empty(rows.shape[1], 0)
    for label in range(num_classes):
        own = rows[y == label]
        count = len(own) + sigma * rng.standard_normal()
        total = own.sum(0) + sigma * rng.standard_normal(rows.shape[1])
        squares = np.square(own).sum(0) + sigma * rng.standard_normal(rows.shape[1])
        if count >= minimum:
            mean = total / count
            scatter = np.maximum(squares - count * np.square(mean), 0.0)
            out = out._beside(Gaussians(
                np.array([label]), np.array([count]), clip * mean[None], clip**2 * scatter[None]
            ))  # fmt: skip
    return out
