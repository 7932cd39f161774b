"""Nested widths: a node that is too small for a model trains a slice of it.

So one packet serves large and small nodes (HeteroFL, Diao et al., ICLR 2021; see `widths`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from aats.learning.method import Carry, Stop, Work
from aats.learning.sequential import SequentialMethod
from aats.learning.widths import Slice, ratio_for

COPIES = 3.0
"""Weights, gradients and momentum, each of the model's size: what training holds."""


@dataclass(frozen=True, slots=True)
class NestedMethod(SequentialMethod):
    """`sequential` on the widest slice that fits into the node's memory.

    Raises:
        ValueError: On a number out of range, or on options that need the whole model.
    """

    ratios: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Shares of the hidden channels to choose from."""
    ratio: float = 0.0
    """This one everywhere, whatever the node's memory; 0: by memory."""

    def __post_init__(self) -> None:
        SequentialMethod.__post_init__(self)
        object.__setattr__(self, "ratios", tuple(self.ratios))
        if not self.ratios or not all(0 < r <= 1 for r in (*self.ratios, self.ratio or 1.0)):
            raise ValueError(f"ratios {self.ratios} and ratio {self.ratio} must be in 0-1, not 0")
        if self.ships_mean or self.carry_momentum:
            raise ValueError("average_last and carry_momentum need the same weights at every stop")

    def ratio_at(self, stop: Stop, model_bytes: float) -> float:
        """Return the share of channels a node trains; all where it names no memory."""
        memory = stop.compute.memory_bytes
        if self.ratio or not memory:
            return self.ratio or max(self.ratios)
        return ratio_for(memory / COPIES, model_bytes, self.ratios)

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        """Train a slice and add what it learned to the model."""
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        ratio = self.ratio_at(work.stop, size)
        if ratio == 1.0:
            return SequentialMethod.train(self, model, work)
        part = Slice(model, ratio)
        SequentialMethod.train(self, part.narrow, work)
        part.expand()
        return Carry(trained={"ratio": ratio})
