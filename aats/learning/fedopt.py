"""Merge rules with an optimiser of their own (FedOpt: Reddi et al. 2021, algorithm 2).

The parts' mean is not taken as it is: the trunk less the mean is a *pseudo-gradient* g, and the
trunk takes one step of an optimiser along it. Its moments travel as `state.merge.` tensors of
the trunk, one or two models' worth. With m and v the moments, per element:

    m <- beta_1 m + (1 - beta_1) g                       (avgm: m <- beta_1 m + g)
    adagrad: v <- v + g^2
    adam:    v <- beta_2 v + (1 - beta_2) g^2
    yogi:    v <- v - (1 - beta_2) g^2 sign(v - g^2)
    trunk <- trunk - lr m / (sqrt(v) + tau)              (avgm: trunk <- trunk - lr m)

v starts at tau^2, m at 0; there is no correction of the moments' bias, as in the paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aats.errors import ModelError
from aats.learning.merge import (
    CARRIED,
    FloatArray,
    Part,
    Trunk,
    check_weighting,
    is_averaged,
    mean_of,
    shares,
)
from aats.payload import Array

FIRST, SECOND = f"{CARRIED}m.", f"{CARRIED}v."


class _Stepping(ABC):
    """A rule that steps along the pseudo-gradient of every averaged tensor."""

    __slots__ = ()
    weighting: str

    def merge(self, trunk: Trunk, parts: Sequence[Part]) -> Trunk:
        """Return the trunk one step on."""
        weights = shares(parts, self.weighting)
        model, state = dict(trunk.model), dict(trunk.state)
        for name, old in trunk.model.items():
            if is_averaged(old):
                start = old.astype(np.float64)
                gradient = start - mean_of(name, parts, weights)
                step, moments = self.step(trunk, name, gradient)
                model[name] = (start - step).astype(old.dtype)
                state |= {key: moment.astype(np.float32) for key, moment in moments.items()}
        return Trunk(model, state)

    @abstractmethod
    def step(
        self, trunk: Trunk, name: str, gradient: FloatArray
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Return what to subtract from a tensor, and the moments to carry on."""


@dataclass(frozen=True, slots=True)
class AvgM(_Stepping):
    """FedAvgM: the server's step has momentum. With `momentum` 0 and `lr` 1 it is the mean.

    Raises:
        ValueError: On a number out of range.
    """

    lr: float = 1.0
    """The server's learning rate."""
    momentum: float = 0.9
    weighting: str = "samples"

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)
        check_weighting(self.weighting)

    def step(
        self, trunk: Trunk, name: str, gradient: FloatArray
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Return the step of heavy-ball momentum."""
        m = self.momentum * _moment(trunk, FIRST + name, gradient, 0.0) + gradient
        return self.lr * m, {FIRST + name: m}


@dataclass(frozen=True, slots=True)
class _Adaptive(_Stepping):
    """What the three rules with a second moment share.

    Raises:
        ValueError: On a number out of range.
    """

    lr: float = 0.03
    """The server's learning rate."""
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 0.001
    """How adaptive: small lets rare weights take long steps."""
    weighting: str = "samples"

    def __post_init__(self) -> None:
        _check(self.lr, self.beta_1, self.beta_2)
        if not self.tau > 0:
            raise ValueError(f"tau is {self.tau}, must be above 0")
        check_weighting(self.weighting)

    def step(
        self, trunk: Trunk, name: str, gradient: FloatArray
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Return the step along the first moment, scaled by the second."""
        m = _moment(trunk, FIRST + name, gradient, 0.0)
        m = self.beta_1 * m + (1 - self.beta_1) * gradient
        v = _moment(trunk, SECOND + name, gradient, self.tau**2)
        v = self.second(v, gradient * gradient)
        return self.lr * m / (np.sqrt(v) + self.tau), {FIRST + name: m, SECOND + name: v}

    @abstractmethod
    def second(self, v: FloatArray, square: FloatArray) -> FloatArray:
        """Return the new second moment for the square of the gradient."""


class Adam(_Adaptive):
    """FedAdam: recent rounds count most."""

    def second(self, v: FloatArray, square: FloatArray) -> FloatArray:
        """Return the moving mean of squares."""
        return self.beta_2 * v + (1 - self.beta_2) * square


class Yogi(_Adaptive):
    """FedYogi: as Adam, but a small gradient after large ones shrinks v by little."""

    def second(self, v: FloatArray, square: FloatArray) -> FloatArray:
        """Return v moved towards the square by a step that does not depend on v's size."""
        moved: FloatArray = v - (1 - self.beta_2) * square * np.sign(v - square)
        return moved


class Adagrad(_Adaptive):
    """FedAdagrad: every round counts alike, so steps grow shorter; `beta_2` is not used."""

    def second(self, v: FloatArray, square: FloatArray) -> FloatArray:
        """Return the sum of squares."""
        return v + square


def _check(lr: float, *shares: float) -> None:
    if not lr > 0 or not all(0 <= share < 1 for share in shares):
        raise ValueError("lr must be above 0, momentum and betas in 0-1 (not 1)")


def _moment(trunk: Trunk, name: str, like: Array, start: float) -> FloatArray:
    """Return a carried moment in float64, `start` everywhere before the first merge.

    Raises:
        ModelError: If it does not fit its tensor or is not finite.
    """
    carried = trunk.state.get(name)
    if carried is None:
        return np.full(like.shape, start)
    moment: FloatArray = carried.astype(np.float64)
    if moment.shape != like.shape or not np.isfinite(moment).all():
        raise ModelError(f"tensor {name!r} must be finite and of shape {list(like.shape)}")
    return moment
