"""Sharpness-aware minimisation (Foret et al., ICLR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aats.learning.measures.measure import Measure
from aats.learning.method import Loss


class Sam(Measure):
    """Takes the gradient at w + rho g / |g| instead of w."""

    name = "sam"
    needs = frozenset({"loss"})

    def __init__(self, rho: float) -> None:
        super().__init__()
        self._rho = rho

    def around(self, loss: Loss) -> Loss:
        """Return the loss at the point up the slope; its gradient is the one wanted."""

        def uphill(model: nn.Module, x: Tensor, y: Tensor, skill: str) -> Tensor:
            names, params = zip(
                *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
            )
            found = torch.autograd.grad(loss(model, x, y, skill), params, allow_unused=True)
            self.forwards += 3 * len(x)
            slope = [
                torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)
            ]
            norm = torch.stack([g.square().sum() for g in slope]).sum().sqrt()
            scale = self._rho / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            there = {
                f"model.{n}": p + scale * g for n, p, g in zip(names, params, slope, strict=True)
            }
            at: Tensor = functional_call(_Whole(model, loss), there, (x, y, skill))
            return at

        return uphill


class _Whole(nn.Module):
    """A model and its loss, so that both see the weights they are called with."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, x: Tensor, y: Tensor, skill: str) -> Tensor:
        value: Tensor = self._loss(self.model, x, y, skill)
        return value
