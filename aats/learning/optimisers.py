"""Steps of SGD with momentum and of Adam on chosen tensors, moments in float32.

Moments exist for what was stepped on only, and are as many as the formulas of a method's memory
say: torch's own optimisers would want the masters' gradients in float32, too.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Optimiser(Protocol):
    """Makes the steps of one visit."""

    def step(self, p: nn.Parameter, weight: Tensor, gradient: Tensor, lr: float) -> None:
        """Move a weight in place.

        Args:
            p: Whose moments to use.
            weight: What to move, float32.
            gradient: Of any dtype.
            lr: Learning rate.
        """
        ...


class Sgd:
    """SGD with momentum (heavy ball), at rest at first."""

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._velocity: dict[nn.Parameter, Tensor] = {}

    def step(self, p: nn.Parameter, weight: Tensor, gradient: Tensor, lr: float) -> None:
        """See `Optimiser.step`."""
        if not self._momentum:
            weight.sub_(gradient, alpha=lr)
            return
        if p in self._velocity:
            self._velocity[p].mul_(self._momentum).add_(gradient)
        else:
            self._velocity[p] = gradient.to(torch.float32, copy=True)
        weight.sub_(self._velocity[p], alpha=lr)


class Adam:
    """Adam (Kingma and Ba 2015), bias corrected."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self._betas, self._epsilon = betas, epsilon
        self._moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self._steps: dict[nn.Parameter, int] = {}

    def step(self, p: nn.Parameter, weight: Tensor, gradient: Tensor, lr: float) -> None:
        """See `Optimiser.step`."""
        if p not in self._moments:
            zeros = torch.zeros_like(weight, dtype=torch.float32)
            self._moments[p] = zeros, zeros.clone()
            self._steps[p] = 0
        (first, second), (a, b) = self._moments[p], self._betas
        self._steps[p] += 1
        g = gradient.float()
        first.mul_(a).add_(g, alpha=1 - a)
        second.mul_(b).addcmul_(g, g, value=1 - b)
        rate = lr / (1 - a ** self._steps[p])
        scale = (second / (1 - b ** self._steps[p])).sqrt_().add_(self._epsilon)
        weight.addcdiv_(first, scale, value=-rate)
