"""Training a part: 8-bit copies that leave the masters alone, bfloat16, memory by the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aats.ids import NodeId
from aats.learning.blocks import blocks_of, size_of
from aats.learning.memory import training_bytes, training_memory
from aats.learning.method import Stop
from aats.learning.models import build, initialise
from aats.learning.optimisers import Adam, Sgd
from aats.learning.partial import Partial, Quantised
from aats.learning.sequential import SequentialMethod
from aats.learning.snake import SnakeMethod
from aats.packet import Architecture
from aats.roles.data import SkillData
from aats.testing.methods import blobs

CONFIG = {"features": 8, "hidden": [16] * 5, "classes": 3}
MLP = Architecture("mlp", CONFIG)
VGG = Architecture("vgg", {"side": 8, "classes": 3, "width": 8})
X = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))


def model_of(architecture: Architecture = MLP) -> nn.Module:
    model = build(architecture)
    initialise(model, 0)
    return model


def part_of(model: nn.Module, **how: Any) -> Partial:
    blocks = blocks_of(model)
    return Partial(model, (blocks[0], blocks[2], blocks[-1]), blocks, **how)


@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), scale=st.floats(1e-6, 1e6))
def test_a_quantised_weight_is_within_half_a_step_of_each_row(
    seed: int, rows: int, scale: float
) -> None:
    weight = torch.randn(rows, 5, 3, generator=torch.Generator().manual_seed(seed)) * scale
    copy = Quantised.of(weight)
    step = weight.abs().flatten(1).amax(1).reshape(-1, 1, 1) / 127
    assert copy.values.dtype == torch.int8
    off = (copy.restored(torch.float32) - weight).abs()
    assert (off <= step * 0.5001).all()


def test_a_row_of_zeros_can_be_quantised() -> None:
    assert torch.equal(Quantised.of(torch.zeros(2, 3)).restored(torch.float32), torch.zeros(2, 3))


@pytest.mark.parametrize("how", [{"frozen_bits": 8}, {"mixed": True}, {}], ids=str)
def test_masters_are_put_back_even_after_a_failure(how: dict[str, Any]) -> None:
    model = model_of()
    before = {n: (p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()}

    def fail() -> None:
        with part_of(model, **how):
            model(X).sum().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for name, p in model.named_parameters():
        assert (p.data_ptr(), p.grad) == (before[name][0], None)
        assert torch.equal(p, before[name][1])
    assert not model._forward_hooks


def test_forward_and_backward_use_the_8_bit_copy_and_gradients_are_those_of_it() -> None:
    model, plain = model_of(), model_of()
    part = part_of(plain)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if name not in part.trained and p.ndim > 1:
                p.copy_(Quantised.of(p).restored(torch.float32))
    grads = []
    for m, bits in ((model, 8), (plain, 0)):
        with part_of(m, frozen_bits=bits) as entered:
            out = m(X)
            out.square().sum().backward()
            grads.append([p.grad.clone() for p in entered.trained.values() if p.grad is not None])
    assert len(grads[0]) == 6
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(*grads, strict=True))
    exact = model_of()
    assert not torch.allclose(exact(X), out)


def test_quantising_again_and_again_adds_up_to_no_error() -> None:
    model = model_of()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(20):
        with part_of(model, frozen_bits=8) as part, torch.no_grad():
            model(X)
            frozen = set(before) - set(part.trained)
    assert all(torch.equal(model.get_parameter(n), before[n]) for n in frozen)


def test_the_model_as_received_can_be_asked_while_training() -> None:
    model = model_of()
    with part_of(model) as part:
        received, wanted = part.received(), model(X).detach().clone()
        with torch.no_grad():
            for p in part.trained.values():
                p.add_(0.1)
        assert not torch.allclose(model(X), wanted)
        with part.holding(received) as teacher, torch.no_grad():
            assert not teacher.training
            assert torch.equal(teacher(X), wanted)
        assert not torch.allclose(model(X), wanted)
        assert model.training


def test_steps_are_those_of_torchs_own_optimisers() -> None:
    for ours, make in (
        (Sgd(0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (Sgd(0.0), lambda p: torch.optim.SGD(p, lr=0.1)),
        (Adam(), lambda p: torch.optim.Adam(p, lr=0.1)),
    ):
        mine, theirs = (nn.Parameter(torch.ones(4)) for _ in range(2))
        reference = make([theirs])
        for i in range(5):
            theirs.grad = torch.tensor([1.0, -2.0, 0.1, float(i)])
            reference.step()
            with torch.no_grad():
                ours.step(mine, mine.data, theirs.grad, 0.1)
        assert torch.allclose(mine, theirs, rtol=1e-5)


# --- memory ---


def stop_of(architecture: Architecture, done: int) -> Stop:
    if architecture.name == "vgg":
        rng = np.random.default_rng(0)
        data = SkillData.of("blobs", rng.random((60, 64)), np.arange(60) % 3, num_classes=3)
    else:
        data = blobs(120)
    numbers = {"snake.cycle": 0.0, "snake.done.0": float((1 << done) - 1)}
    return Stop(NodeId("a"), 0, 1, {"blobs": data}, numbers)


@pytest.mark.parametrize("architecture", [MLP, VGG], ids=lambda a: a.name)
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("done", [0, 3])
def test_measured_memory_keeps_to_the_formula(
    architecture: Architecture, optimiser: str, mixed: bool, done: int
) -> None:
    model = model_of(architecture)
    blocks = blocks_of(model)
    sizes = [size_of(model, block) for block in blocks]
    slice_size = sizes[0] + sizes[1 + done] + sizes[-1]
    wanted = training_bytes(sum(sizes), slice_size, optimiser=optimiser, mixed=mixed)
    adams = (2, 14) if mixed else (4, 12)
    assert wanted <= adams[0] * sum(sizes) + adams[1] * slice_size
    method = SnakeMethod(optimiser=optimiser, mixed=mixed, lr=0.001, distil="never")
    memory = training_memory(method, model, stop_of(architecture, done))
    assert wanted <= memory.rest <= 1.1 * wanted
    assert memory.peak > memory.rest


def test_a_frozen_rest_in_8_bits_takes_a_byte_a_weight() -> None:
    model, at = model_of(VGG), stop_of(VGG, 0)
    full = training_memory(SnakeMethod(distil="never"), model, at).rest
    frozen = sum(size_of(model, b) for b in blocks_of(model)[2:-1])
    eight = training_memory(SnakeMethod(distil="never", frozen_bits=8), model_of(VGG), at).rest
    assert full - eight == pytest.approx(3 * frozen, rel=0.05)


def test_training_all_of_it_takes_three_times_the_weights() -> None:
    model = model_of(VGG)
    size = sum(p.numel() for p in model.parameters())
    memory = training_memory(SequentialMethod(momentum=0.9), model, stop_of(VGG, 0))
    assert memory.rest == pytest.approx(12 * size, rel=0.01)
