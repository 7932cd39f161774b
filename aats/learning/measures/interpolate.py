"""Averaging with the received model: w <- (1 - b) received + b trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.measures.measure import Measure, snapshot
from aats.learning.measures.options import SEEN
from aats.learning.method import Plan, Stop
from aats.payload import Array


class Interpolate(Measure):
    """Ships the mean of the received and the trained weights.

    With "seen", b = n / (n + n seen before), n being a visited node's training rows: every row
    counts alike, a node as often as it is visited.
    """

    name = "interpolate"

    def __init__(self, share: float | str) -> None:
        super().__init__()
        self._share = share
        self._received: dict[str, Tensor] = {}
        self._seen = self._rows = 0.0

    def begin(self, model: nn.Module, stop: Stop, plan: Plan, state: Mapping[str, Array]) -> None:
        """Keep the received weights; read how many rows they have seen."""
        self._received = snapshot(model)
        self._rows = float(sum(stop.data[skill].samples for skill in plan.steps))
        seen = state.get(SEEN, np.zeros(1))
        if seen.shape != (1,) or not (np.isfinite(seen).all() and seen[0] >= 0):
            raise ModelError(f"state 'interpolate.{SEEN}' must be one number, 0 or above")
        self._seen = float(seen[0])

    def finish(self, model: nn.Module, stop: Stop) -> Mapping[str, Array]:
        """Move the trained weights back towards the received ones."""
        share = self._share
        if isinstance(share, str):
            share = self._rows / (self._rows + self._seen)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in self._received:
                    p.lerp_(self._received[name], 1 - share)
        counts = self._share == SEEN
        return {SEEN: np.array([self._seen + self._rows])} if counts else {}
