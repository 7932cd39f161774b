"""FedProx (Li et al., MLSys 2020): stay near the weights that were received."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aats.learning.measures.measure import Measure, snapshot
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
        distances = [
            (p - self._received[name]).square().sum()
            for name, p in model.named_parameters()
            if name in self._received and p.requires_grad
        ]
        return value + self._mu / 2 * torch.stack(distances).sum()
