"""The least a visit can do while every byte of the model has to travel on: for bench_visit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from aats.learning.method import Carry, Plan, Stop, Work

STEP = 1e-6


@dataclass(frozen=True, slots=True)
class Touch:
    """Adds a millionth to every weight, so that no tensor is known at the next stop."""

    name: ClassVar[str] = "touch"

    def plan(self, stop: Stop) -> Plan | None:
        """Return one step, whatever the data."""
        return Plan(dict.fromkeys(stop.data, 1), batch_size=1)

    def train(self, model: Any, work: Work) -> Carry | None:
        """Touch every tensor."""
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(STEP)
        return None
