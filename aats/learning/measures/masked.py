"""Masked softmax: what a node does not have is not unlearnt there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aats.learning.measures.measure import Measure
from aats.learning.method import Plan, Stop
from aats.payload import Array


class Masked(Measure):
    """Only logits of classes present enter the loss: the node's, and those replayed so far."""

    name = "masked"
    needs = frozenset({"criterion"})

    def __init__(self) -> None:
        super().__init__()
        self._present: dict[str, Tensor] = {}

    def begin(self, model: nn.Module, stop: Stop, plan: Plan, state: Mapping[str, Array]) -> None:
        """Note the node's classes."""
        self._present = {
            skill: torch.unique(torch.from_numpy(data.train_y)) for skill, data in stop.data.items()
        }

    def criterion(
        self, value: Tensor, logits: Tensor, x: Tensor, y: Tensor, skill: str
    ) -> Tensor:  # fmt: skip
        """Return cross-entropy over the classes present."""
        present = self._present[skill] = torch.unique(torch.cat([self._present[skill], y]))
        absent = torch.ones(logits.shape[1], dtype=torch.bool).index_fill(0, present, False)
        return nn.functional.cross_entropy(logits.masked_fill(absent, -torch.inf), y)
