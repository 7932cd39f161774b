"""Many small networks side by side, each with weights of its own, in NumPy.

A network is a row [P] of weights: a perceptron of one hidden layer, or for several skills the one
of `aats.learning.models.Departments`, first layers and heads by skill around a shared trunk. Every
product is of one network's matrices, whose shapes do not depend on its neighbours: what comes of
many is bit for bit what comes of each.

Shapes: n networks, m rows, T skills, F columns of a row, W hidden, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aats_envs.network import Ints
from aats_envs.rows import WIDTH

Array = npt.NDArray[np.float32]

HIDDEN, TRUNK = 32, 16
"""W of a single skill, and of several."""
NEVER = np.float32(-1e9)
"""Logit of a class that is not in use."""
TINY = np.float32(1e-12)


class Layers(NamedTuple):
    """Views of weights [n, P]. The last row of the latter two is the bias."""

    first: Array
    """[n, T, F, W]"""
    trunk: Array
    """[n, W + 1, W]; empty for one skill."""
    heads: Array
    """[n, T, W + 1, C]"""


class Rows(NamedTuple):
    """Rows of one skill for each network."""

    skill: Ints
    """[n]"""
    x: Array
    """[n, m, F]"""
    y: Ints
    """[n, m]"""
    weight: Array
    """[n, m] in the loss; 0 for padding."""
    unused: Array
    """[n, 1, C] `NEVER` where a class is not in use, else 0."""


@dataclass(frozen=True, slots=True)
class Perceptrons:
    """The networks of so many skills and classes."""

    skills: int
    classes: int

    @property
    def width(self) -> int:
        """W."""
        return HIDDEN if self.skills == 1 else TRUNK

    @property
    def size(self) -> int:
        """P."""
        return sum(self._sizes())

    def layers(self, flat: Array) -> Layers:
        """Return the layers of weights [n, P]."""
        n, t, w = len(flat), self.skills, self.width
        first, trunk, _ = self._sizes()
        return Layers(
            flat[:, :first].reshape(n, t, WIDTH, w),
            flat[:, first : first + trunk].reshape(n, trunk // w, w),
            flat[:, first + trunk :].reshape(n, t, w + 1, self.classes),
        )

    def untrained(self, seed: int) -> Array:
        """Return [P] weights by He et al. (2015), biases zero."""
        rng = np.random.default_rng(seed)
        flat = np.zeros((1, self.size), np.float32)
        for layer in self.layers(flat):
            inputs = layer.shape[-2] - 1
            if inputs > 0:
                drawn = rng.standard_normal((*layer.shape[:-2], inputs, layer.shape[-1]))
                layer[..., :-1, :] = drawn * np.sqrt(2 / inputs)
        only: Array = flat[0]
        return only

    def logits(self, flat: Array, rows: Rows) -> Array:
        """Return [n, m, C]."""
        return self._forward(self.layers(flat), rows)[2]

    def gradient(self, flat: Array, rows: Rows) -> tuple[Array, Array]:
        """Return losses [n] and gradients [n, P] of cross-entropy."""
        layers, i = self.layers(flat), np.arange(len(flat))
        below, hidden, logits = self._forward(layers, rows)
        share = np.exp(logits - logits.max(axis=2, keepdims=True))
        share /= share.sum(axis=2, keepdims=True)
        at = i[:, None], np.arange(rows.y.shape[1]), rows.y
        loss = -(rows.weight * np.log(np.maximum(share[at], TINY))).sum(axis=1)
        share[at] -= 1
        share *= rows.weight[..., None]

        slope = np.zeros_like(flat)
        first, trunk, heads = self.layers(slope)
        heads[i, rows.skill, :-1] = hidden.swapaxes(1, 2) @ share
        heads[i, rows.skill, -1] = share.sum(axis=1)
        back = share @ layers.heads[i, rows.skill, :-1].swapaxes(1, 2)
        back *= hidden > 0
        if self.skills > 1:
            trunk[:, :-1] = below.swapaxes(1, 2) @ back
            trunk[:, -1] = back.sum(axis=1)
            back = back @ layers.trunk[:, :-1].swapaxes(1, 2)
            back *= below > 0
        first[i, rows.skill] = rows.x.swapaxes(1, 2) @ back
        return loss, slope

    def _forward(self, layers: Layers, rows: Rows) -> tuple[Array, Array, Array]:
        """Return the first hidden layer, the last, which for one skill is the same, and logits."""
        i = np.arange(len(rows.skill))
        below = rows.x @ layers.first[i, rows.skill]
        np.maximum(below, 0, out=below)
        hidden = below
        if self.skills > 1:
            hidden = below @ layers.trunk[:, :-1] + layers.trunk[:, -1:]
            np.maximum(hidden, 0, out=hidden)
        head = layers.heads[i, rows.skill]
        logits: Array = np.matmul(hidden, head[:, :-1])
        logits += head[:, -1:]
        logits += rows.unused
        return below, hidden, logits

    def _sizes(self) -> tuple[int, int, int]:
        t, w = self.skills, self.width
        return t * WIDTH * w, (w + 1) * w if t > 1 else 0, t * (w + 1) * self.classes
