"""What a mandate may ask for, and what it is told if it asks for nonsense."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from aats.errors import ModelError, ScenarioError
from aats.learning import method as methods
from aats.learning.measures.options import Measures
from aats.learning.method import Guard, method_of
from aats.learning.noop import NoopMethod
from aats.learning.sequential import SequentialMethod
from aats.learning.visit import visit_by
from aats.learning.weights import initial_payload
from aats.node.tasks import VisitTask
from aats.packet import Architecture, Plugin
from aats.roles.data import NodeData
from aats.testing.methods import NODE, SKILL, blobs, header_for


def test_a_methods_parameters_may_ask_for_measures() -> None:
    plugin = Plugin("sequential", {"lr": 0.5, "distil": 0.5, "temperature": 2.0, "ema": 3,
                                   "rollback_drop": 0.5})  # fmt: skip
    method, guard, measures = method_of(plugin)
    assert method == SequentialMethod(lr=0.5)
    assert guard == Guard(rollback_drop=0.5)
    assert measures == Measures(distil=0.5, temperature=2.0, ema=3)
    assert measures.names() == ("distil", "ema")
    assert not Measures()


def test_what_a_method_has_itself_is_the_methods() -> None:
    @dataclass(frozen=True)
    class Own(NoopMethod):
        temperature: float = 4.0

    methods.local("own-temperature", Own)
    method, _, measures = method_of(Plugin("own-temperature", {"temperature": 3.0, "distil": 0.5}))
    assert method == Own(3.0)
    assert measures == Measures(distil=0.5)
    methods.local("own-function", lambda temperature: Own(temperature))
    assert method_of(Plugin("own-function", {"temperature": 2.0}))[0] == Own(2.0)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"distil": 1.0}, "distil is 1.0, allowed is 0 to below 1"),
        ({"distil": "much"}, "a number is wanted"),
        ({"replay": -0.1}, "replay is -0.1"),
        ({"ema": -1}, "ema is -1, allowed is 0 or above"),
        ({"proximal": float("inf")}, "proximal is inf"),
        ({"sam": float("nan")}, "a number is wanted"),
        ({"interpolate": "half"}, "allowed is a number between 0 and 1, or 'seen'"),
        ({"interpolate": 1.5}, "interpolate is 1.5"),
        ({"temperature": 2.0}, "temperature has no effect without distil"),
        ({"distil": 0.5, "temperature": 0.0}, "temperature is 0.0, allowed is above 0"),
        ({"ewc_decay": 0.5}, "ewc_decay has no effect without ewc"),
        ({"ewc": 1.0, "ewc_bits": 4}, "ewc_bits is 4, allowed are 8 and 32"),
        ({"ewc": 1.0, "ewc_rows": 0}, "ewc_rows and ewc_batch at least 1"),
        ({"ema_steps": True}, "ema_steps has no effect without ema"),
        ({"replay": 0.5, "replay_space": "rows"}, "replay_space is 'rows'"),
        ({"replay": 0.5, "replay_minimum": 1}, "replay_minimum at least 2"),
        ({"replay": 0.5, "replay_epsilon": 1.0}, "replay_epsilon needs replay_clip"),
        ({"replay": 0.5, "replay_rank": 0, "replay_delta": 1.0}, "replay_delta is 1.0"),
        ({"replay_clip": 1.0}, "replay_clip has no effect without replay"),
        ({"ema": 1, "average_last": 3}, "the method ships a mean of its own"),
        ({"masked": "no"}, "masked is 'no', allowed is true or false"),
        ({"masked": True, "calibrated": True}, "masked and calibrated exclude each other"),
        ({"ewc": 1.0, "ewc_rows": 2.5}, "ewc_rows is 2.5, allowed is a whole number"),
        ({"distill": 0.5}, "did you mean 'distil'"),
    ],
)
def test_nonsense_is_told(params: dict[str, object], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        method_of(Plugin("sequential", params))


def test_a_surrogate_has_nothing_to_measure() -> None:
    architecture = Architecture("surrogate", {"classes": {SKILL: 3}})
    with pytest.raises(ModelError, match=r"counter-measures \(distil\) need a model of weights"):
        visit_by(
            NoopMethod(), Guard(), VisitTask(header_for(architecture), NODE),
            initial_payload(architecture, 0), NodeData.of(blobs()), node=NODE,
            allocate=lambda total: memoryview(bytearray(total)), measures=Measures(distil=0.5),
        )  # fmt: skip
