from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aats.errors import ModelError
from aats.learning import models
from aats.learning.modules import ModuleBackend
from aats.packet import Architecture
from aats.payload import MODEL, Payload, pack

LADDER = Architecture("ladder-for-tests")


class Ladder(nn.Module):
    """A model with as many steps as came."""

    def __init__(self) -> None:
        super().__init__()
        self.foot = nn.Linear(2, 2)
        self.steps = nn.ParameterDict()

    def grow(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if name.startswith("steps."):
                if shape != (2,):
                    raise ModelError(f"step {name!r} of shape {shape}, allowed is (2,)")
                self.add(name.removeprefix("steps."))

    def add(self, name: str) -> None:
        self.steps[name] = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.foot(x)
        for step in self.steps.values():
            out = out + step
        return out


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: Mapping[str, Any]) -> nn.Module:
        return Ladder()

    monkeypatch.setitem(models._LOCAL, LADDER.name, build)


def payload(**steps: list[float]) -> Payload:
    first = dict(ModuleBackend().initial(LADDER, 0))
    more = {f"{MODEL}steps.{k}": np.array(v, np.float32) for k, v in steps.items()}
    return pack({**first, **more})


def test_what_came_is_loaded_and_leaves_as_it_came() -> None:
    backend, carried = ModuleBackend(), payload(one=[1, 2], two=[3, 4])
    model = backend.load(LADDER, carried)
    assert model.module.steps["two"].tolist() == [3, 4]
    left = backend.tensors(model, carried)
    assert [*left] == [t.name for t in carried.manifest.tensors]


def test_a_tensor_added_on_the_way_travels_under_model() -> None:
    backend, carried = ModuleBackend(), payload(one=[1, 2])
    model = backend.load(LADDER, carried)
    model.module.requires_grad_(False)
    model.module.add("two")
    left = backend.tensors(model, carried)
    assert f"{MODEL}steps.two" in left
    assert left[f"{MODEL}steps.two"].digest == b""
    kept = {t.name: t.digest for t in carried.manifest.tensors}
    assert {n: t.digest for n, t in left.items() if n in kept} == kept


def test_a_strange_shape_is_the_modules_to_refuse() -> None:
    with pytest.raises(ModelError, match=r"'steps\.one' of shape \(3,\), allowed is"):
        ModuleBackend().load(LADDER, payload(one=[1, 2, 3]))


def test_what_a_module_made_no_room_for_is_refused() -> None:
    carried = pack({**payload().arrays(), f"{MODEL}other": np.zeros(2, np.float32)})
    with pytest.raises(ModelError, match=r"'other' .* is not expected"):
        ModuleBackend().load(LADDER, carried)


def test_other_modules_still_may_not_grow() -> None:
    plain = Architecture("logistic", {"features": 2, "classes": 3})
    carried = pack(dict(ModuleBackend().initial(plain, 0)))
    model = ModuleBackend().load(plain, carried)
    model.module.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    with pytest.raises(ModelError, match="'extra' came out of training"):
        ModuleBackend().tensors(model, carried)
