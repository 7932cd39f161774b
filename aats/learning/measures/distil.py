"""Learning without forgetting (Li and Hoiem, 2016): the received model is the teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aats.learning.language import everywhere
from aats.learning.measures.measure import Measure
from aats.learning.method import Plan, Stop
from aats.learning.models import predict
from aats.payload import Array


class Distil(Measure):
    """(1 - share) of the loss, share of cross-entropy against the teacher, on local rows.

    Both predictions are softened by the temperature; its square keeps the gradient's size
    (Hinton et al. 2015). The teacher is the model as it arrived, also where a mean of weights
    (`ema`) arrived and training goes on from others. At the packet's first visit nothing is taught:
    what untrained weights say is noise, and later teachers would hand it on.
    """

    name = "distil"
    needs = frozenset({"criterion"})

    def __init__(self, share: float, temperature: float) -> None:
        super().__init__()
        self._share, self._temperature = share, temperature
        self._teacher: nn.Module | None = None

    def begin(self, model: nn.Module, stop: Stop, plan: Plan, state: Mapping[str, Array]) -> None:
        """Keep the model as it arrived, if it has learned anything."""
        if stop.trained.get("visits", 0.0) > 1:
            self._teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def criterion(
        self, value: Tensor, logits: Tensor, x: Tensor, y: Tensor, skill: str
    ) -> Tensor:  # fmt: skip
        """Return the mixture of the loss and the teacher's."""
        if self._teacher is None:
            return value
        t = self._temperature
        self.forwards += len(x)
        with torch.no_grad():
            # The logits of a text model may be those of every token of the rows.
            last = len(logits) == len(x)
            taught_by = predict(self._teacher, x, skill) if last else everywhere(self._teacher, x)
            soft = (taught_by / t).softmax(1)
        taught = t * t * nn.functional.cross_entropy(logits / t, soft)
        return (1 - self._share) * value + self._share * taught
