"""Sequential training: the whole model works through the node's own data, then moves on.

Work is in proportion to the node's data: with equal work at unequal hospitals sequential
training loses 5 points against FedAvg, with proportional work it ties at 7.5 times fewer
transfers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from aats.errors import ModelError
from aats.learning.method import Carry, Loss, Plan, Stop, Work, passes
from aats.learning.momentum import BITS, PREFIX, RANGE, mean_momentum, read_momentum, write_momentum
from aats.learning.sgd import sgd
from aats.payload import STATE, Array

_LAST = f"{STATE}last."


@dataclass(frozen=True, slots=True)
class SequentialMethod:
    """SGD on the node's rows, learning rate decayed each time the packet comes round.

    Raises:
        ValueError: On a number out of range.
    """

    epochs: float = 1.0
    """Passes over the node's rows at a visit."""
    batch_size: int = 32
    lr: float = 0.03
    """3-30 times below what averaging methods use."""
    decay: float = 0.9
    """Factor on the learning rate for each cycle."""
    momentum: float = 0.0
    carry_momentum: int = 0
    """Momentum goes on at the next node instead of starting at rest, in so many bits on the way:
    8, 16 or 32. 0: off."""
    clip: float = 1.0
    """Largest gradient norm; 0 for none."""
    max_steps: int = 0
    """Most steps at a visit; 0 for no bound."""
    average_last: int = 0
    """Ship the mean of the weights after the last n visits; those n travel along. 0, 1: off."""
    equal_steps: int = 0
    """This many steps everywhere, whatever the node holds: the negative control. 0: off."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Factors on `epochs` by skill."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1 or self.lr <= 0:
            raise ValueError("epochs and lr must be above 0, batch_size at least 1")
        if not 0 < self.decay <= 1 or not 0 <= self.momentum < 1 or self.clip < 0:
            raise ValueError("decay must be in 0-1 (not 0), momentum in 0-1 (not 1), clip >= 0")
        if self.carry_momentum not in BITS:
            raise ValueError(f"carry_momentum is {self.carry_momentum!r}, allowed are {BITS}")
        if self.carry_momentum and (not self.momentum or self.ships_mean):
            raise ValueError(
                "carry_momentum needs momentum above 0, and weights that training goes on from, "
                "not average_last"
            )
        if min(self.max_steps, self.average_last, self.equal_steps) < 0:
            raise ValueError("max_steps, average_last and equal_steps must be at least 0")

    @property
    def ships_mean(self) -> bool:
        """Whether other weights are shipped than those that training goes on from."""
        return self.average_last > 1

    def plan(self, stop: Stop) -> Plan | None:
        """Return `epochs` passes over every wanted skill the node has."""
        if self.equal_steps and stop.data:
            share = max(1, self.equal_steps // len(stop.data))
            return Plan(dict.fromkeys(stop.data, share), self.batch_size)
        return passes(
            stop, self.epochs, self.batch_size, weights=self.weights, max_steps=self.max_steps
        )

    def loss(self, work: Work) -> Loss:
        """Return what to minimise: cross-entropy and the mandate's measures."""
        return work.loss

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        """Train; with `average_last`, go on from the newest weights and ship the mean."""
        stop = work.stop
        if self.ships_mean:
            _restore(model, stop.state)
        velocity = read_momentum(model, stop.state, self.carry_momentum)
        sgd(
            model, work, lr=self.lr * self.decay**stop.cycle * stop.caution,
            momentum=self.momentum, clip=self.clip, velocity=velocity, loss=self.loss(work),
        )  # fmt: skip
        if self.carry_momentum:
            return Carry(write_momentum(velocity, self.carry_momentum))
        return Carry(self._average(model, stop.state)) if self.ships_mean else None

    def merge_state(
        self, trunk: Mapping[str, Array], states: Sequence[Mapping[str, Array]]
    ) -> Mapping[str, Array]:
        """Return the mean momentum; the weights of past visits end where copies are merged."""
        return {
            **{name: a for name, a in trunk.items() if not name.startswith((_LAST, PREFIX, RANGE))},
            **mean_momentum(states),
        }

    def _average(self, model: nn.Module, state: Mapping[str, Array]) -> dict[str, Array]:
        """Give the model the mean of its weights over the last visits; return those weights."""
        carried: dict[str, Array] = {}
        with torch.no_grad():
            for name, p in model.named_parameters():
                past = [p.detach().numpy().copy()]
                older = (_carried(state, i, name, p) for i in range(self.average_last - 1))
                past += [weight for weight in older if weight is not None]
                p.copy_(torch.from_numpy(np.mean(past, axis=0, dtype=np.float64)))
                carried |= {f"{_LAST}{i}.{name}": weight for i, weight in enumerate(past)}
        return carried


def _restore(model: nn.Module, state: Mapping[str, Array]) -> None:
    """Give the model the newest weights of those it was averaged from."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if (newest := _carried(state, 0, name, p)) is not None:
                p.copy_(torch.from_numpy(newest.copy()))


def _carried(state: Mapping[str, Array], age: int, name: str, like: nn.Parameter) -> Array | None:
    """Return the weights of `age` visits before the last, None if they do not travel.

    Raises:
        ModelError: If they are not of the parameter's shape, or not finite.
    """
    weight = state.get(f"{_LAST}{age}.{name}")
    if weight is not None and (weight.shape != tuple(like.shape) or not np.isfinite(weight).all()):
        raise ModelError(
            f"tensor '{_LAST}{age}.{name}' must be finite and of shape {list(like.shape)}"
        )
    return weight
