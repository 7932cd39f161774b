"""Blocks: in forward order, each parameter in exactly one, and a chain of them is the model."""

from typing import Any

import pytest
import torch
from torch import nn

from aats.errors import ModelError
from aats.learning.blocks import blocks_of, modules_of, parameters_of, size_of
from aats.learning.models import build
from aats.packet import Architecture

IMAGES = {"side": 8, "classes": 3}
BUILT_IN: dict[str, dict[str, Any]] = {
    "vgg": {**IMAGES, "width": 4},
    "cnn": IMAGES,
    "mlp": {"features": 64, "hidden": [8, 8], "classes": 3},
    "logistic": {"features": 64, "classes": 3},
    "transformer": {"vocabulary": 9, "length": 5, "depth": 3, "classes": 3},
    "departments": {"features": {"a": 3, "b": 4}, "classes": {"a": 2, "b": 2}},
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_parameter_of_every_architecture_is_in_exactly_one_block(name: str) -> None:
    model = build(Architecture(name, BUILT_IN[name]))
    found = [p for block in blocks_of(model) for p in parameters_of(model, block)]
    assert sorted(found) == sorted(n for n, _ in model.named_parameters())
    total = sum(p.numel() for p in model.parameters())
    assert sum(size_of(model, block) for block in blocks_of(model)) == total


def test_a_vgg_has_eleven_blocks_and_of_a_width_of_64_the_published_size() -> None:
    model = build(Architecture("vgg", {"side": 28, "classes": 10}))
    assert len(blocks_of(model)) == 11
    assert sum(p.numel() for p in model.parameters()) == 154_074


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3), (8, 1), (2, 1)])
def test_a_vgg_takes_square_images_of_2_to_32_pixels(side: int, channels: int) -> None:
    config = {"side": side, "channels": channels, "width": 4, "classes": 5}
    model = build(Architecture("vgg", config))
    assert model(torch.zeros(2, channels, side, side)).shape == (2, 5)
    assert model(torch.zeros(2, channels * side * side)).shape == (2, 5)


def test_a_vgg_refuses_larger_images() -> None:
    with pytest.raises(ModelError, match="side 33, allowed is 2-32"):
        build(Architecture("vgg", {"side": 33, "classes": 2}))


@pytest.mark.parametrize("name", ["vgg", "cnn", "mlp"])
def test_the_blocks_of_a_chain_run_one_after_the_other_are_the_model(name: str) -> None:
    model = build(Architecture(name, BUILT_IN[name])).eval()
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    hidden = x
    for block in blocks_of(model):
        for module in modules_of(model, block):
            hidden = module(hidden)
    assert torch.equal(hidden, model(x))


def test_what_has_no_weight_matrix_belongs_to_the_layer_before() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4),
                          nn.ReLU(), nn.Linear(4, 2))  # fmt: skip
    assert [block.parts for block in blocks_of(model)] == [("0", "1", "2", "3", "4"), ("5",)]


def test_an_architecture_declares_its_blocks() -> None:
    model = build(Architecture("transformer", BUILT_IN["transformer"]))
    names = [block.name for block in blocks_of(model)]
    assert names == ["embedding", "layer0", "layer1", "layer2", "head"]


def test_blocks_can_be_named_by_who_asks() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    blocks = blocks_of(model, [["0", "1"], "2"])
    assert [block.parts for block in blocks] == [("0", "1"), ("2",)]


@pytest.mark.parametrize(
    ("named", "wrong"),
    [
        (["0", "7"], "the model has no '7'"),
        (["0"], "'1.weight' is in no block"),
        (["0", "1", ["0"]], "'0.weight' is in 0 and 0"),
    ],
)
def test_blocks_that_do_not_cover_the_model_once_are_refused(named: list[Any], wrong: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(ModelError, match=wrong):
        blocks_of(model, named)


def test_a_parameter_of_the_module_itself_must_be_declared() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.body = nn.Linear(2, 2)

    model = Scaled()
    with pytest.raises(ModelError, match="'scale' is in no block"):
        blocks_of(model)
    assert len(blocks_of(model, [["scale", "body"]])) == 1
