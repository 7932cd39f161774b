"""Information bottleneck: a stochastic code that keeps what the label needs and little else.

The encoder gives each row a normal distribution of codes; the classifier sees a code drawn from
it. The loss is cross-entropy plus beta times the divergence of that distribution from the unit
normal, a bound on what the code tells of the row (Alemi et al., ICLR 2017). Judged and probed is
the mean code. Codes instead of rows can be replayed: `replay` with `replay_space = "feature"`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.method import Loss, Work
from aats.learning.models import Config
from aats.learning.sequential import SequentialMethod

MAX_LOG_VARIANCE = 10.0
"""Larger ones are cut: their exponential would leave single precision."""


class Bottleneck(nn.Module):
    """Encoder, stochastic code, linear classifier."""

    def __init__(self, widths: tuple[int, ...], code: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Linear(widths[-1], 2 * code))
        self.classifier = nn.Linear(code, classes)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [n, code] of each row's codes."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a drawn code in training, of the mean code otherwise."""
        mean, log_variance = self.encode(x)
        return self.classify(drawn(mean, log_variance) if self.training else mean)

    def classify(self, code: Tensor) -> Tensor:
        """Return the logits of codes."""
        return cast(Tensor, self.classifier(code))


def drawn(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return a code for each row, drawn from its distribution."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the mean divergence, in nats, of the rows' distributions from the unit normal."""
    each = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return each.mean()


def build_bottleneck(config: Mapping[str, Any]) -> nn.Module:
    """Return a classifier over a stochastic code.

    Config: `features`, `hidden` (64; a number or a list), `code` (16), `classes`.
    """
    c = Config("bottleneck", config, "features", "hidden", "code", "classes")
    widths = (c.size("features"), *c.sizes("hidden", (64,)))
    for a, b in itertools.pairwise(widths):
        c.matrix(a, b)
    return Bottleneck(widths, c.size("code", 16), c.size("classes", low=2))


@dataclass(frozen=True, slots=True)
class BottleneckMethod(SequentialMethod):
    """Sequential training of a model of architecture `bottleneck`.

    Raises:
        ValueError: On a number out of range.
    """

    beta: float = 1e-3
    """Weight of the divergence; 0 leaves the noise without a price."""

    def __post_init__(self) -> None:
        SequentialMethod.__post_init__(self)
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta is {self.beta!r}, allowed is 0 or above")

    def loss(self, work: Work) -> Loss:
        """Return cross-entropy of a drawn code plus beta times the divergence."""

        def base(model: nn.Module, x: Tensor, y: Tensor, skill: str) -> Tensor:
            if not isinstance(model, Bottleneck):
                raise ModelError(
                    "method 'bottleneck' needs a model with a stochastic code: architecture "
                    "'bottleneck'"
                )
            mean, log_variance = model.encode(x)
            logits = model.classify(drawn(mean, log_variance))
            value: Tensor = work.criterion(logits, x, y, skill)
            return value + self.beta * divergence(mean, log_variance)

        return work.composed(base)
