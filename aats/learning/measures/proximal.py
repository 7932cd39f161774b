"""FedProx (Li et al., MLSys 2020): stay near the weights that were received."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aats.learning.measures.measure import Measure, moved, snapshot
from aats.learning.method import Plan, Stop
from aats.payload import Array


class Proximal(Measure):
    """Adds mu / 2 times the squared distance to the received weights."""

    name = "proximal"
    needs = frozenset({"loss"})

    def __init__(self, mu: float) -> None:
        super().__init__()
        self._mu = mu
        self._received: dict[str, Tensor] = {}

    def begin(self, model: nn.Module, stop: Stop, plan: Plan, state: Mapping[str, Array]) -> None:
        """Keep the received weights."""
        self._received = snapshot(model)

    def term(self, value: Tensor, model: nn.Module, skill: str) -> Tensor:
        """Return the loss with the distance added."""
        distances = [way.square().sum() for _, way in moved(model, self._received)]
        return value + self._mu / 2 * torch.stack(distances).sum()
