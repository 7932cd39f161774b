"""The conformance check says what is wrong with a method, one typical fault each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aats.learning.method import Carry, Plan, Stop, Work, passes
from aats.learning.sgd import sgd
from aats.testing import check_method
from aats.testing.methods import SKILL


@dataclass
class Right:
    """A method without fault, as a ground for those with one."""

    def plan(self, stop: Stop) -> Plan | None:
        return passes(stop, 1.0, 16)

    def train(self, model: nn.Module, work: Work) -> Any:
        sgd(model, work, lr=0.05)
        return self.carry(work)

    def carry(self, work: Work) -> Any:
        return Carry({"state.seen": np.ones(3, np.float32)}, {"seen": 1.0}, "well")


def shift(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(by)


class Unseeded(Right):
    def train(self, model: nn.Module, work: Work) -> Any:
        sgd(model, work, lr=0.05)
        shift(model, np.random.default_rng().random())


@dataclass
class Remembers(Right):
    """Keeps momentum in the object: on a network, in one process of one node."""

    velocity: dict[str, torch.Tensor] = field(default_factory=dict)

    def train(self, model: nn.Module, work: Work) -> Any:
        sgd(model, work, lr=0.05, momentum=0.9, velocity=self.velocity)


class Spoils(Right):
    def train(self, model: nn.Module, work: Work) -> Any:
        for data in work.stop.data.values():
            torch.from_numpy(data.train_x).div_(2)
        sgd(model, work, lr=0.05)


class WritesState(Right):
    def train(self, model: nn.Module, work: Work) -> Any:
        sgd(model, work, lr=0.05)
        for array in work.stop.state.values():
            array += 1  # type: ignore[operator]
        return self.carry(work)


class Beside(Right):
    """Trains on the node's rows at once, past the work that is counted."""

    def train(self, model: nn.Module, work: Work) -> Any:
        data = work.stop.data[SKILL]
        loss = work.loss(model, torch.from_numpy(data.train_x.copy()),
                         torch.from_numpy(data.train_y.copy()), SKILL)  # fmt: skip
        loss.backward()
        shift(model, 0.01)


class Diverges(Right):
    def train(self, model: nn.Module, work: Work) -> Any:
        sgd(model, work, lr=0.05)
        shift(model, float("nan"))


class OwnLoss(Right):
    def train(self, model: nn.Module, work: Work) -> Any:
        sgd(model, work, lr=0.05, loss=lambda m, x, y, _: nn.functional.cross_entropy(m(x), y))


class Pretends(Right):
    """Asks for the loss and minimises another."""

    def train(self, model: nn.Module, work: Work) -> Any:
        def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor, skill: str) -> torch.Tensor:
            work.loss(m, x, y, skill)
            return nn.functional.cross_entropy(m(x), y)

        sgd(model, work, lr=0.05, loss=loss)


class Renames(Right):
    def train(self, model: nn.Module, work: Work) -> Any:
        sgd(model, work, lr=0.05)
        model.register_parameter("extra", nn.Parameter(torch.zeros(2)))


def carries(value: Any) -> Right:
    """Return a method that returns this."""
    method = type("Carries", (Right,), {"carry": lambda self, work: value})()
    assert isinstance(method, Right)
    return method


def plans(plan: Callable[[Stop], Any]) -> Right:
    """Return a method with this plan."""
    method = type("Plans", (Right,), {"plan": lambda self, stop: plan(stop)})()
    assert isinstance(method, Right)
    return method


ONES = np.ones(2)


def test_a_method_without_fault_passes() -> None:
    check_method(Right())


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Unseeded(), "Unseeded: not deterministic: one seed, two results"),
        (Remembers(), "Remembers: keeps state in the object"),
        (Spoils(), "Spoils: changes the node's data in place"),
        (WritesState(), "WritesState: writes into what belongs to the packet"),
        (Beside(), "Beside: weights changed, but no minibatch was drawn"),
        (Diverges(), "Diverges: .*NaN or infinite"),
        (OwnLoss(), "OwnLoss: ignores work.loss, so a mandate's measures would fail: "),
        (Pretends(), "Pretends: asks for work.loss but does not minimise it"),
        (carries(Carry({"mine.x": ONES})), "state must be under 'state.': mine.x"),
        (carries(Carry({"state.x": ONES.astype(complex)})), "complex128 cannot travel; allowed"),
        (carries(Carry({"state.x": ONES * np.nan})), "'state.x' has NaN"),
        (carries(Carry({"state.x": [1.0]})), "state.x is list; state is NumPy arrays"),
        (carries(Carry(trained={"x": "high"})), r"trained\['x'\] is 'high'; a finite number"),
        (carries(Carry(note=3)), "note is 3; text is wanted"),
        (carries({"x": 1}), "train returned dict; allowed are Carry and None"),
        (plans(lambda stop: Plan({"other": 1})), "beyond the data: 1 steps where the node holds"),
        (plans(lambda stop: Plan({"other": 1}) if stop.data else None),
         r"beyond the data: steps on \['other'\], held is \['blobs'\]"),
        (plans(lambda stop: Plan(dict.fromkeys(stop.data, 1 << 21)) if stop.data else None),
         "plans 2097152 steps; a visit has at most 1048576"),
        (plans(lambda stop: Plan(dict.fromkeys(stop.data, 0))), "a plan without steps"),
        (plans(lambda stop: Plan(dict.fromkeys(stop.data, 3), 0)), "rows below what there can be"),
        (plans(lambda stop: stop.data and 5), "plan returned int"),
        (plans(lambda stop: passes(stop, 1 + np.random.default_rng().integers(1 << 30), 16)),
         "plan differs"),
    ],
)  # fmt: skip
def test_each_fault_is_told_in_words(method: Right, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_method(method)


def test_one_without_a_loss_may_say_so() -> None:
    check_method(OwnLoss(), takes_measures=False)
