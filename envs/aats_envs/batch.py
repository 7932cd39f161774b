"""Many knowledge networks side by side: each field padded to the largest, rows put one by one."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Protocol

import numpy as np

from aats.learning.dynamics import Dynamics
from aats.routing.features import label_shape
from aats_envs.network import Bools, Floats, Ints, KnowledgeNetwork

CONSTANTS = tuple(f.name for f in fields(Dynamics))
CONSTANTS_OF = attrgetter(*CONSTANTS)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest network of a source."""

    nodes: int
    mpvus: int
    skills: int
    classes: int

    @classmethod
    def of(cls, networks: Sequence[KnowledgeNetwork]) -> Limits:
        """Return the limits of some networks."""
        shapes = [network.clean.shape for network in networks]
        return cls(
            nodes=max(n for n, _, _ in shapes),
            mpvus=max(int(network.is_mpvu.sum()) for network in networks),
            skills=max(t for _, t, _ in shapes),
            classes=max(c for _, _, c in shapes),
        )


class Source(Protocol):
    """Where networks come from."""

    limits: Limits

    def draw(self, rng: np.random.Generator) -> KnowledgeNetwork:
        """Return a network; the same generator state gives the same network."""
        ...


class Networks:
    """B networks. A field is that of `KnowledgeNetwork` with [B] in front, but for those below.

    Args:
        size: B.
        limits: N, T, C and M, the number of MPVUs.
    """

    def __init__(self, size: int, limits: Limits) -> None:
        n, t, c, m = limits.nodes, limits.skills, limits.classes, limits.mpvus
        b = size
        self.size, self.limits = size, limits
        self.drawn: list[KnowledgeNetwork | None] = [None] * b
        """By row, as it was put."""
        self.num_nodes: Ints = np.zeros(b, np.int64)
        self.transfer_s: Floats = np.full((b, n, n), np.inf)
        self.shown_transfer_s: Floats = np.full((b, n, n), np.inf)
        self.probe_s: Floats = np.full((b, n, n), np.inf)
        self.links: Floats = np.zeros((b, n, n))
        self.verify_s: Floats = np.full((b, n), np.inf)
        """[B, N] from there to the nearest MPVU."""
        self.mpvu_at: Ints = np.full((b, m), -1)
        """[B, M] nodes, -1 pads."""
        self.home: Ints = np.zeros(b, np.int64)
        self.has_data: Bools = np.zeros((b, n), np.bool_)
        self.clean: Floats = np.zeros((b, n, t, c))
        self.wrong: Floats = np.zeros((b, n, t, c))
        self.shown: Floats = np.zeros((b, n, t, c))
        self.label_shape: Floats = np.zeros((b, n, t, 3))
        """[B, N, T, 3] of what is shown (`aats.routing.features.label_shape`)."""
        self.shown_samples: Floats = np.zeros((b, n, t))
        self.shows_labels: Bools = np.zeros((b, n, t), np.bool_)
        self.quality: Floats = np.ones((b, n))
        self.freshness_s: Floats = np.zeros((b, n))
        self.probe_allowed: Bools = np.zeros((b, n), np.bool_)
        self.samples_per_s: Floats = np.ones((b, n))
        self.shown_per_s: Floats = np.ones((b, n))
        self.joules_per_sample: Floats = np.zeros((b, n))
        self.queue: Floats = np.zeros((b, n))
        self.down: Floats = np.full((b, n, 2), np.inf)
        self.classes: Ints = np.zeros((b, t), np.int64)
        self.target: Floats = np.zeros((b, t))
        self.reference: Floats = np.zeros((b, t))
        self.test: Floats = np.zeros((b, t))
        self.epochs: Floats = np.ones(b)
        self.fit_epochs: Floats = np.ones(b)
        self.budget: Floats = np.full((b, 4), np.inf)
        self.size_bytes: Floats = np.zeros(b)
        self.probe_bytes: Floats = np.zeros(b)
        self._laws: Floats = np.ones((len(CONSTANTS), b, t))
        self.dynamics = Dynamics(*self._laws)

    def alike(self, size: int) -> Networks:
        """Return `size` rows that are all the first of these, in the same memory: to be read."""
        other = copy(self)
        other.size, other.drawn = size, self.drawn[:1] * size
        for name, values in vars(self).items():
            if isinstance(values, np.ndarray):
                setattr(other, name, np.broadcast_to(values[:1], (size, *values.shape[1:])))
        laws = {
            f.name: np.broadcast_to(law[:1], (size, *law.shape[1:]))
            for f in fields(Dynamics)
            if isinstance(law := getattr(self.dynamics, f.name), np.ndarray)
        }
        other.dynamics = Dynamics(**laws)
        return other

    def put(self, row: int, network: KnowledgeNetwork) -> None:
        """Replace a row; `describe` it before anybody looks at it.

        Raises:
            ValueError: If the network is larger than the limits.
        """
        n, (t, c) = network.num_nodes, network.clean.shape[1:]
        mpvus = np.flatnonzero(network.is_mpvu)
        limits = self.limits
        allowed = limits.nodes, limits.mpvus, limits.skills, limits.classes
        if any(a > b for a, b in zip((n, len(mpvus), t, c), allowed, strict=True)):
            raise ValueError(
                f"{network.name}: {n} nodes, {len(mpvus)} MPVUs, {t} skills of {c} classes; "
                f"the limits are {limits}"
            )
        self.drawn[row] = network
        self.num_nodes[row] = n
        self.home[row] = network.home
        self.epochs[row] = network.epochs
        self.fit_epochs[row] = network.fit_epochs
        self.budget[row] = network.budget
        self.size_bytes[row] = network.size_bytes
        self.probe_bytes[row] = network.probe_bytes
        self.mpvu_at[row] = -1
        self.mpvu_at[row, : len(mpvus)] = mpvus
        for name, empty in (
            ("transfer_s", np.inf), ("shown_transfer_s", np.inf), ("probe_s", np.inf),
            ("links", 0.0),
        ):  # fmt: skip
            field = getattr(self, name)
            field[row] = empty
            field[row, :n, :n] = getattr(network, name)
        self.verify_s[row] = np.inf
        if len(mpvus):
            self.verify_s[row, :n] = network.shown_transfer_s[:, mpvus].min(axis=1)
        for name in ("clean", "wrong", "shown"):
            field = getattr(self, name)
            field[row] = 0.0
            field[row, :n, :t, :c] = getattr(network, name)
        for name in ("shown_samples", "shows_labels"):
            field = getattr(self, name)
            field[row] = 0
            field[row, :n, :t] = getattr(network, name)
        for name in (
            "has_data", "quality", "freshness_s", "probe_allowed", "samples_per_s", "shown_per_s",
            "joules_per_sample", "queue", "down",
        ):  # fmt: skip
            field = getattr(self, name)
            field[row, n:] = name.endswith("_per_s")  # nobody is infinitely slow
            field[row, :n] = getattr(network, name)
        for name in ("classes", "target", "reference", "test"):
            field = getattr(self, name)
            field[row] = 0
            field[row, :t] = getattr(network, name)
        self._laws[:, row] = 1.0
        self._laws[:, row, :t] = np.array([CONSTANTS_OF(law) for law in network.dynamics]).T

    def describe(self, rows: Ints) -> None:
        """Work out what follows from what rows that have been replaced show."""
        self.label_shape[rows] = label_shape(self.shown[rows], self.classes[rows, None])
