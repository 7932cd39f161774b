"""Consolidation: what mattered to earlier nodes is held fast (EWC, Kirkpatrick et al. 2017).

Importance is the diagonal of the empirical Fisher matrix, the mean squared gradient of a row's
loss. It travels with the packet and decays at each visit (cyclic weight consolidation, arXiv
2405.10647). The anchor is the end of the last visit, which is what arrives, so it need not
travel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.measures.measure import Measure, carried, generator, moved, snapshot
from aats.learning.method import Plan, Stop
from aats.learning.models import predict
from aats.learning.modules import rows
from aats.payload import Array

IMPORTANCE, PEAK = "importance.", "peak."
LEVELS = 255


class Ewc(Measure):
    """Adds strength / 2 times sum F (w - received)^2; afterwards F <- decay F + F here."""

    name = "ewc"
    needs = frozenset({"loss"})

    def __init__(
        self, strength: float, decay: float, max_rows: int, batch_size: int, bits: int
    ) -> None:
        super().__init__()
        self._strength, self._decay = strength, decay
        self._max_rows, self._batch_size, self._bits = max_rows, batch_size, bits
        self._received: dict[str, Tensor] = {}
        self._importance: dict[str, Tensor] = {}
        self._skills: tuple[str, ...] = ()

    def begin(self, model: nn.Module, stop: Stop, plan: Plan, state: Mapping[str, Array]) -> None:
        """Keep the received weights; read their importance."""
        self._received = snapshot(model)
        self._skills = tuple(skill for skill, steps in plan.steps.items() if steps)
        for name, p in self._received.items():
            if (found := _read(state, name, p)) is not None:
                self._importance[name] = found

    def term(self, value: Tensor, model: nn.Module, skill: str) -> Tensor:
        """Return the loss with the weighted distance added."""
        found = [
            (self._importance[name] * way.square()).sum()
            for name, way in moved(model, self._received)
            if name in self._importance
        ]
        return value + self._strength / 2 * torch.stack(found).sum() if found else value

    def finish(self, model: nn.Module, stop: Stop) -> Mapping[str, Array]:
        """Measure the importance here and add it to what is left of the old one."""
        state: dict[str, Array] = {}
        for name, here in self._measured(model, stop).items():
            old = self._importance.get(name)
            total = here if old is None else self._decay * old + here
            if self._bits == 32:
                state[IMPORTANCE + name] = total.numpy()
            else:
                # The root of it: importances differ by orders of magnitude.
                peak = total.max()
                state[PEAK + name] = peak.reshape(1).numpy()
                level = LEVELS * (total / peak.clamp_min(torch.finfo(peak.dtype).tiny)).sqrt()
                state[IMPORTANCE + name] = level.round().to(torch.uint8).numpy()
        return state

    def _measured(self, model: nn.Module, stop: Stop) -> dict[str, Tensor]:
        """Return the mean over rows of squared gradients, by parameter."""
        model.eval()
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(p) for name, p in named.items()}
        rng, counted = generator(stop, self.name), 0
        for skill in self._skills:
            data = stop.data[skill]
            drawn = rng.permutation(data.samples)[: -(-self._max_rows // len(self._skills))]
            for part in np.array_split(drawn, -(-len(drawn) // self._batch_size)):
                x, y = rows(data.train_x[part]), torch.from_numpy(data.train_y[part])
                loss = nn.functional.cross_entropy(predict(model, x, skill), y)
                found = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
                for name, gradient in zip(named, found, strict=True):
                    if gradient is not None:
                        # A mean of k gradients has a k-th of their variance.
                        total[name] += len(part) ** 2 * gradient.square()
                counted += len(part)
        self.forwards += 3 * counted
        return {name: t / max(counted, 1) for name, t in total.items()}


def _read(state: Mapping[str, Array], name: str, like: Tensor) -> Tensor | None:
    """Return the importance that travelled, None if there is none.

    Raises:
        ModelError: If it is not of the parameter's shape, or not finite and 0 or above.
    """
    found = carried(state, IMPORTANCE + name, like)
    if found is None:
        return None
    peak = state.get(PEAK + name)
    if peak is not None:
        if peak.shape != (1,) or not np.isfinite(peak).all():
            raise ModelError(f"state 'ewc.{PEAK}{name}' must be one finite number")
        found = (found / LEVELS).square() * float(peak[0])
    if (found < 0).any():
        raise ModelError(f"state 'ewc.{IMPORTANCE}{name}' must be 0 or above")
    return found
