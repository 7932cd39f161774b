"""Channels: what arrives is what was meant, and takes the bits it is said to take."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.errors import ModelError
from aats.learning.inl.channels import CHANNELS, Channel, Dithered, Gaussian, Levels, Rated, channel

WIDTH = 3


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tuned(name: str, seed: int = 0, levels: int = 5) -> Channel:
    """Return a channel whose parameters are anything."""
    made, draw = channel(name, WIDTH, levels), rng(seed)
    with torch.no_grad():
        for what, p in made.named_parameters():
            drawn = (
                draw.standard_normal(p.shape)
                if what == "centre"
                else draw.uniform(0.3, 1.5, p.shape)
            )
            p.copy_(torch.from_numpy(drawn))
        if isinstance(made, Levels):
            made.used.copy_(torch.from_numpy(draw.dirichlet([1.0] * levels, WIDTH).reshape(-1)))
        if isinstance(made, Gaussian):
            made.noise.copy_(torch.from_numpy(draw.uniform(0.1, 1.0, WIDTH)))
    return made


def raw(made: Channel, n: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    drawn = rng(seed).standard_normal((n, made.heads * WIDTH)) * scale
    return torch.from_numpy(drawn.astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CHANNELS), st.integers(0, 99), st.integers(0, 40), st.floats(0.01, 50.0))
def test_a_packed_code_is_delivered_exactly(name: str, seed: int, n: int, scale: float) -> None:
    made = tuned(name, seed)
    code = raw(made, n, seed, scale)
    assert torch.equal(made.unpack(made.pack(code), n), made.deliver(code))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CHANNELS), st.booleans(), st.integers(0, 99), st.integers(0, 40))
def test_a_code_in_training_arrives_as_it_was_sent(
    name: str, coded: bool, seed: int, n: int
) -> None:
    sender, receiver = tuned(name, seed), channel(name, WIDTH, 5)
    sent = sender.send(raw(sender, n, seed), rng(seed), coded)
    assert sent.code.shape == (n, WIDTH)
    arrived = receiver.take(sent.arrays, n, rng(seed))
    assert torch.allclose(arrived, sent.code.detach(), atol=1e-6)


def test_more_rows_than_are_coded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aats.learning.inl.channels.ROWS", 7)
    made = tuned("dithered")
    code = raw(made, 30)
    assert torch.equal(made.unpack(made.pack(code), 30), made.deliver(code))
    sent = made.send(code, rng(), True)
    assert torch.allclose(made.take(sent.arrays, 30, rng()), sent.code.detach(), atol=1e-6)


def test_dither_is_unbiased_and_its_error_does_not_depend_on_the_code() -> None:
    made = tuned("dithered", 3)
    assert isinstance(made, Dithered)
    with torch.no_grad():
        made.spread_root.fill_(2.0)
    n = 40_000
    for value in (0.0, 0.31, -1.2):
        code = torch.full((n, WIDTH), value)
        error = made.send(code, rng(1), False).code.detach() - value
        step = made.step().detach()
        assert (error.mean(0).abs() < 4 * step / math.sqrt(12 * n)).all()
        assert torch.allclose(error.var(0), step**2 / 12, rtol=0.03)
        assert (error.abs() <= step / 2 + 1e-5).all()


def test_the_dithered_rate_is_what_the_coder_takes() -> None:
    made = Dithered(WIDTH)
    with torch.no_grad():
        made.step_root.fill_(0.8)
        made.spread_root.copy_(torch.tensor([0.7, 1.0, 1.6]))
        made.centre.copy_(torch.tensor([0.0, 0.4, -3.0]))
    drawn = rng(5).standard_normal((2000, WIDTH)).astype(np.float32)
    code = torch.from_numpy(drawn) * made.spread().detach() + made.centre.detach()
    sent = made.send(code, rng(6), True)
    real = 8 * sent.arrays["bytes"].nbytes
    ideal = float(sent.nats.detach().sum()) / math.log(2)
    # Four pieces, each with its length in four bytes but the last.
    assert ideal - 8 <= real - 96 <= 1.01 * ideal + 4 * 16


def test_rate_of_gaussians_is_their_divergence() -> None:
    made = tuned("gaussian", 2)
    assert isinstance(made, Rated)
    code = raw(made, 50)
    mean, deviation = code[:, :WIDTH], torch.nn.functional.softplus(code[:, WIDTH:]) + 1e-3
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(
        normal(mean, deviation), normal(made.centre, made.spread())
    ).sum(1)
    assert torch.allclose(made.ideal_nats(code), want, atol=1e-4)


def test_gaussian_noise_is_remembered_as_the_step_at_inference() -> None:
    made = Gaussian(WIDTH)
    code = torch.zeros(8, 2 * WIDTH)
    for _ in range(1000):
        made.send(code, rng(), False)
    assert torch.allclose(made.noise, torch.full((WIDTH,), math.log(2) + 1e-3), atol=1e-3)


def test_levels_of_a_power_of_two_take_their_bits_when_used_alike() -> None:
    made = Levels(4, 4)
    code = torch.from_numpy(rng(1).uniform(-3, 3, (512, 4)).astype(np.float32))
    assert 8 * len(made.pack(code)) == pytest.approx(512 * 4 * 2, abs=16)


def test_levels_learn_and_gradients_go_straight_through() -> None:
    made = Levels(2, 3)
    code = torch.tensor([[0.1, 2.0], [-2.0, 0.5]], requires_grad=True)
    sent = made.send(code, rng(), False)
    sent.code.sum().backward()  # type: ignore[no-untyped-call]
    assert code.grad is not None
    assert torch.allclose(code.grad, 1 - code.detach().tanh() ** 2)
    assert made.points.grad is not None
    assert made.points.grad.sum() == 4


def test_the_price_of_a_nat_rises_above_the_capacity_and_never_falls_under_zero() -> None:
    made = channel("dithered", 2, 4)
    made.learn_price(12.0, 10.0, 0.5)
    assert float(made.multiplier) == 1.0
    made.learn_price(2.0, 10.0, 0.5)
    assert float(made.multiplier) == 0.0


def test_what_is_no_code_is_refused() -> None:
    made = channel("exact", 2, 4)
    with pytest.raises(ModelError, match="3 x 2 numbers"):
        made.take({"code": np.zeros((2, 2), np.float32)}, 3, rng())
    with pytest.raises(ModelError, match="24 bytes"):
        made.unpack(b"abc", 3)
    with pytest.raises(ModelError, match="lacks a finite 'centre'"):
        channel("dithered", 2, 4).know({})
