"""Methods: the shipped ones conform, the kit catches what does not, a user's own is a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aats.errors import ScenarioError, UnknownPluginError
from aats.ids import NodeId
from aats.learning import method as methods
from aats.learning import models
from aats.learning.datasets import classes as class_rows
from aats.learning.method import (
    Carry,
    Guard,
    Method,
    Plan,
    Stop,
    Work,
    method_of,
    passes,
    progress,
)
from aats.learning.noop import NoopMethod
from aats.learning.sequential import SequentialMethod
from aats.learning.surrogate import SurrogateMethod
from aats.learning.weights import initial_payload
from aats.packet import Architecture, Plugin
from aats.roles.data import NodeData, SkillData
from aats.testing import check_method
from aats.testing.methods import (
    CLASSES,
    FEATURES,
    MLP,
    SKILL,
    Walk,
    blobs,
    header_for,
    reference_for,
)


def rows(samples: int = 200, classes: int = 4) -> NodeData:
    data = class_rows(classes, samples)
    return NodeData.of(SkillData.of(SKILL, data.x, data.y, num_classes=classes))


@pytest.mark.parametrize(
    ("method", "architecture", "data"),
    [
        (SequentialMethod(), MLP, None),
        (SequentialMethod(epochs=2, average_last=3, momentum=0.9), MLP, None),
        (SequentialMethod(equal_steps=5), MLP, None),
        (SequentialMethod(), Architecture("logistic", {"features": 8, "classes": 3}), None),
        (NoopMethod(), MLP, None),
        (SurrogateMethod(), Architecture("surrogate", {"classes": {SKILL: 4}}), rows()),
    ],
)
def test_shipped_methods_conform(
    method: Method, architecture: Architecture, data: NodeData | None
) -> None:
    check_method(method, architecture, data)


class Net(nn.Module):
    """A user's module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x) * self.scale
        return out


@dataclass(frozen=True)
class Mine:
    """A user's loop."""

    lr: float = 0.1

    def plan(self, stop: Stop) -> Plan | None:
        return passes(stop, epochs=5, batch_size=16)

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        optimiser = torch.optim.Adam(model.parameters(), lr=self.lr)
        for skill, x, y in work:
            optimiser.zero_grad()
            work.loss(model, torch.from_numpy(x), torch.from_numpy(y), skill).backward()
            optimiser.step()
        return None


def test_a_users_own_model_and_loop_learn() -> None:
    models.local("net", lambda config: Net())
    methods.local("mine", Mine)
    architecture = Architecture("net")
    check_method(Mine(), architecture)
    found, guard, measures = method_of(Plugin("mine", {"lr": 0.05, "rollback_drop": 0.5}))
    assert (found, guard) == (Mine(0.05), Guard(rollback_drop=0.5))
    assert not measures
    data = blobs()
    walk = Walk(header_for(architecture), initial_payload(architecture, 0, reference_for(data)))
    assert walk.visit(found, NodeData.of(data)).gain > 0.3


def test_a_plan_is_in_proportion_to_the_data() -> None:
    def plan(samples: int, **params: Any) -> int:
        stop = Stop(NodeId("a"), 0, 0, {SKILL: blobs(samples)})
        found = SequentialMethod(**params).plan(stop)
        return found.total if found else 0

    assert [plan(n, batch_size=10) for n in (60, 300, 600)] == [5, 24, 48]
    assert plan(300, batch_size=10, epochs=2) == 48
    assert plan(300, batch_size=10, max_steps=7) == 7
    assert plan(60, equal_steps=40) == plan(600, equal_steps=40) == 40
    assert SequentialMethod().plan(Stop(NodeId("a"), 0, 0, {})) is None


def test_work_of_one_epoch_has_every_row_once() -> None:
    data = blobs(101)
    stop = Stop(NodeId("a"), 3, 5, {SKILL: data})
    work = Work(stop, Plan({SKILL: 3}, 32))
    drawn = [x for _, x, _ in work]
    assert sorted(r.tobytes() for b in drawn for r in b) == sorted(
        r.tobytes() for r in data.train_x
    )
    assert min(len(b) for b in drawn) > 1
    assert (work.steps, work.samples) == (3, data.samples)
    assert work.labels[SKILL].tolist() == list(data.histogram)
    whole = Work(stop, Plan({SKILL: 3}, 32))
    whole.take_all()
    assert (whole.steps, whole.samples, whole.labels[SKILL].tolist()) == (
        work.steps,
        work.samples,
        work.labels[SKILL].tolist(),
    )


def test_a_cycle_ends_when_the_packet_has_come_round() -> None:
    walk = Walk(header_for(), initial_payload(MLP, 0))
    cycles = []
    for node in "abcabcabab":
        walk.visit(NoopMethod(), NodeData(), NodeId(node))
        cycles.append(int(walk.header.trained["cycle"]))
    assert cycles == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert progress(walk.header, NodeId("z"))["distinct"] == 4


def test_unknown_methods_and_parameters_are_named_with_the_nearest() -> None:
    with pytest.raises(UnknownPluginError, match="did you mean 'sequential'"):
        method_of(Plugin("sequentail"))
    with pytest.raises(ScenarioError, match="did you mean 'epochs'"):
        method_of(Plugin("sequential", {"epoch": 2}))
    with pytest.raises(ScenarioError, match="a number is wanted"):
        method_of(Plugin("sequential", {"lr": "fast"}))
    with pytest.raises(ScenarioError, match="above 0"):
        method_of(Plugin("sequential", {"lr": -1.0}))
    with pytest.raises(ScenarioError, match="did you mean 'rollback_drop'"):
        method_of(Plugin("noop", {"rolback_drop": 0.1}))


def test_the_average_of_the_last_visits_is_shipped_and_training_goes_on_from_the_last() -> None:
    plain, averaging = SequentialMethod(lr=0.1), SequentialMethod(lr=0.1, average_last=3)
    data = [NodeData.of(blobs(60, seed)) for seed in range(4)]
    one = Walk(header_for(), initial_payload(MLP, 0))
    two = Walk(header_for(), initial_payload(MLP, 0))
    past = []
    for i, held in enumerate(data):
        one.visit(plain, held, NodeId(f"n{i}"))
        two.visit(averaging, held, NodeId(f"n{i}"))
        past.append(one.payload.arrays("model."))
    for name, shipped in two.payload.arrays("model.").items():
        mean = np.stack([p[name] for p in past[-3:]]).mean(0, np.float64)
        assert np.array_equal(shipped, mean.astype(np.float32))
    assert len(two.payload.arrays("state.")) == 3 * len(past[0])


def test_weights_of_skills_share_the_work() -> None:
    stop = Stop(NodeId("a"), 0, 0, {"x": blobs(120, skill="x"), "y": blobs(120, skill="y")})
    plan = SequentialMethod(batch_size=8, weights={"x": 2.0, "y": 0.5}).plan(stop)
    assert plan is not None
    assert plan.steps == {"x": 24, "y": 6}
