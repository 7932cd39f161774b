"""Calibrated softmax: how frequent each class is at a node does not become part of the model.

The frequencies of the labels trained on are added to the logits as logarithms, in training only
(logit adjustment: Menon et al., arXiv 2007.07314). What they explain need not be learnt, so the
model does not drift towards the classes of the node last visited. It predicts as if all classes
were equally frequent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aats.learning.measures.measure import Measure
from aats.learning.method import Plan, Stop
from aats.payload import Array

UNSEEN = 0.5
"""Rows that a class is taken to have besides those that it has: the logarithm stays finite."""


class Calibrated(Measure):
    """Adds the logarithm of each class's frequency: at the node, and among rows added here."""

    name = "calibrated"
    needs = frozenset({"criterion"})

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, Tensor] = {}

    def begin(self, model: nn.Module, stop: Stop, plan: Plan, state: Mapping[str, Array]) -> None:
        """Count the node's labels."""
        self._counts = {
            skill: torch.bincount(torch.from_numpy(data.train_y))
            for skill, data in stop.data.items()
        }

    def criterion(
        self, value: Tensor, logits: Tensor, x: Tensor, y: Tensor, skill: str
    ) -> Tensor:  # fmt: skip
        """Return cross-entropy of the logits with the frequencies added."""
        # A model may know more classes than the node.
        counts, width = self._counts[skill], logits.shape[1]
        counts = nn.functional.pad(counts, (0, width - len(counts)))
        counts = self._counts[skill] = counts + torch.bincount(y, minlength=width)
        shares = (counts + UNSEEN) / (counts + UNSEEN).sum()
        return nn.functional.cross_entropy(logits + shares.log().to(logits.dtype), y)
