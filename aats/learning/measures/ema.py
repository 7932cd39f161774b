"""An exponential mean of the weights is shipped and judged; training goes on from the raw ones.

How fast it forgets is a half-life in hops, so that a change of the steps at a visit does not
change the method. The mean is over what was trained: the initial weights have no share in it
(the correction of Adam, Kingma and Ba 2015, eq. 3).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.measures.measure import Measure, carried, snapshot
from aats.learning.method import Plan, Stop
from aats.payload import Array

RAW, WEIGHT = "raw.", "weight"


class Ema(Measure):
    """The mean over ends of visits, or over all steps; one copy of the weights travels along."""

    name = "ema"

    def __init__(self, half_life: float, each_step: bool) -> None:
        super().__init__()
        self._half_life, self._each_step = half_life, each_step
        self._keep, self._weight = 0.0, 0.0
        self._mean: dict[str, Tensor] = {}

    def begin(self, model: nn.Module, stop: Stop, plan: Plan, state: Mapping[str, Array]) -> None:
        """Take the mean from the model, and give the model the raw weights."""
        self._keep = 0.5 ** (1 / (self._half_life * (plan.total if self._each_step else 1)))
        weight = state.get(WEIGHT, np.zeros(1))
        if weight.shape != (1,) or not 0 <= weight[0] <= 1:
            raise ModelError(f"state 'ema.{WEIGHT}' must be one number in 0-1")
        self._weight = float(weight[0])
        self._mean = snapshot(model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if (raw := carried(state, RAW + name, p)) is not None:
                    p.copy_(raw)

    def stepped(self, model: nn.Module) -> None:
        """Add the weights after a step."""
        if self._each_step:
            self._add(model)

    def finish(self, model: nn.Module, stop: Stop) -> Mapping[str, Array]:
        """Give the model the mean; the raw weights travel along."""
        if not self._each_step:
            self._add(model)
        raw = snapshot(model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(self._mean.get(name, p))
        return {
            WEIGHT: np.array([self._weight]),
            **{RAW + name: weight.numpy() for name, weight in raw.items()},
        }

    def _add(self, model: nn.Module) -> None:
        self._weight = self._keep * self._weight + (1 - self._keep)
        share = (1 - self._keep) / self._weight
        with torch.no_grad():
            for name, p in model.named_parameters():
                self._mean.setdefault(name, p.clone()).lerp_(p, share)
