"""Slices of a model for small nodes, growth, and the method that uses slices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aats.advert import ComputeAdvert
from aats.errors import ModelError
from aats.learning.measures.options import Measures
from aats.learning.method import Stop
from aats.learning.models import build, initialise
from aats.learning.nested import NestedMethod
from aats.learning.weights import initial_payload
from aats.learning.widths import Slice, grow, ratio_for
from aats.packet import Architecture
from aats.roles.data import NodeData
from aats.testing import check_method
from aats.testing.methods import MLP as WALKED
from aats.testing.methods import Walk, blobs, header_for

MLP = Architecture("mlp", {"features": 12, "hidden": [16, 24], "classes": 5})
CNN = Architecture("cnn", {"side": 8, "widths": [8, 16], "classes": 5})


def made(architecture: Architecture, seed: int = 0) -> nn.Sequential:
    model = build(architecture)
    initialise(model, seed)
    assert isinstance(model, nn.Sequential)
    return model


def rows(architecture: Architecture, n: int = 200) -> torch.Tensor:
    width = 12 if architecture is MLP else 64
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1))


def whole_groups(ratio: float) -> float:
    """Return a ratio that keeps the four groups of every norm whole."""
    return math.ceil(4 * ratio) / 4


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=["mlp", "cnn"])
@given(ratio=st.floats(0.05, 1.0), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_slicing_and_expanding_without_training_changes_no_bit(
    architecture: Architecture, ratio: float, seed: int
) -> None:
    model = made(architecture, seed)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    Slice(model, ratio if architecture is MLP else whole_groups(ratio)).expand()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_slice_keeps_the_size_of_activations(architecture: Architecture) -> None:
    """RMS of the logits before any training, mean over initialisations: within 10 %."""
    x, ratios = rows(architecture), []
    for seed in range(40):
        model = made(architecture, seed)
        narrow = Slice(model, 0.5).narrow
        with torch.no_grad():
            ratios.append(float(narrow(x).pow(2).mean().sqrt() / model(x).pow(2).mean().sqrt()))
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) == pytest.approx(1, abs=0.1)


def test_what_a_slice_learns_is_written_into_its_place_only() -> None:
    model = made(MLP)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    part = Slice(model, 0.5)
    assert [tuple(p.shape) for p in part.narrow.parameters()] == [
        (8, 12), (8,), (12, 8), (12,), (5, 12), (5,),
    ]  # fmt: skip
    with torch.no_grad():
        for p in part.narrow.parameters():
            p.add_(1.0)
    part.expand()
    for (name, tensor), cut in zip(
        model.state_dict().items(), part.narrow.parameters(), strict=True
    ):
        inside = tuple(slice(n) for n in cut.shape)
        changed = tensor != before[name]
        assert changed[inside].all(), name
        assert int(changed.sum()) == cut.numel(), name
    # What a layer reads was scaled up in the slice, so a smaller step is what it meant.
    assert torch.allclose(model[3].weight[:12, :8], before["3.weight"][:12, :8] + 0.5**0.5)


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_grown_model_computes_the_same(architecture: Architecture, factor: int) -> None:
    model, x = made(architecture), rows(architecture)
    with torch.no_grad():
        for p in model.parameters():  # norms and biases too, which start at ones and zeros
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
        wide = grow(model, factor)
        assert float((wide(x) - model(x)).abs().max()) < 1e-5
    hidden = [m.weight.shape[0] for m in wide if isinstance(m, nn.Linear | nn.Conv2d)]
    assert hidden[0] == factor * model[2 if architecture is CNN else 1].weight.shape[0]
    assert hidden[-1] == 5


def test_what_cannot_be_sliced_is_named() -> None:
    with pytest.raises(ModelError, match=r"only nn\.Sequential"):
        Slice(nn.Linear(2, 2), 0.5)
    with pytest.raises(ModelError, match="'1', LSTM"):
        Slice(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), 0.5)
    with pytest.raises(ModelError, match="in 2 groups"):
        Slice(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), 0.5)
    with pytest.raises(ModelError, match="no whole number of groups of 4"):
        Slice(nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3)), 0.3)
    with pytest.raises(ValueError, match="ratio is 0"):
        Slice(made(MLP), 0)


def test_the_ratio_follows_from_memory() -> None:
    assert ratio_for(100, 100, (1.0, 0.5)) == 1.0
    assert ratio_for(99, 100, (1.0, 0.5, 0.25)) == 0.5
    assert ratio_for(1, 100, (1.0, 0.5, 0.25)) == 0.25

    def at(memory: int) -> float:
        stop = Stop("n", 0, 0, {}, compute=ComputeAdvert(memory_bytes=memory))  # type: ignore[arg-type]
        return NestedMethod().ratio_at(stop, 1000)

    assert [at(0), at(3000), at(1600), at(10)] == [1.0, 1.0, 0.5, 0.25]


def test_the_method_keeps_the_protocol_whatever_the_ratio() -> None:
    check_method(NestedMethod(lr=0.1, ratio=1.0))
    for ratio in (0.5, 0.2):
        check_method(NestedMethod(lr=0.1, ratio=ratio), takes_measures=False)


def test_a_slice_cannot_be_held_near_the_whole_model_and_says_so() -> None:
    for measure in (Measures(proximal=0.1), Measures(ewc=1.0)):
        walk = Walk(header_for(), initial_payload(WALKED, 0))
        walk.visit(NestedMethod(ratio=1.0), NodeData.of(blobs()), measures=measure)
        with pytest.raises(ModelError, match="the method trains a part of"):
            walk.visit(NestedMethod(ratio=0.5), NodeData.of(blobs()), measures=measure)
    walk.visit(NestedMethod(ratio=0.5), NodeData.of(blobs()), measures=Measures(distil=0.5))


@pytest.mark.parametrize(
    "params", [{"ratios": ()}, {"ratio": 1.5}, {"ratios": (0.0,)}, {"average_last": 3}]
)
def test_options_that_make_no_sense_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"ratio|average_last"):
        NestedMethod(**params)  # type: ignore[arg-type]
