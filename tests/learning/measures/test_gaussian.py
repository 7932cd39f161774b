"""Moments add up exactly, rows drawn have them, and what must not leave does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.errors import ModelError
from aats.learning.measures.gaussian import Gaussians, combined, noise_scale, private

WIDTH = 4


def rows(seed: int, count: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    return rng.standard_normal((count, WIDTH)) * 3 + y[:, None], y


def assert_same(found: Gaussians, wanted: Gaussians) -> None:
    assert found.classes.tolist() == wanted.classes.tolist()
    np.testing.assert_allclose(found.count, wanted.count)
    np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-9)
    for i in range(len(wanted.classes)):
        np.testing.assert_allclose(found.covariance(i), wanted.covariance(i), atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(1, 60), min_size=2, max_size=4),
    st.sampled_from([0, WIDTH]),
)  # fmt: skip
def test_moments_of_parts_make_those_of_the_whole(seed: int, cuts: list[int], rank: int) -> None:
    x, y = rows(seed, sum(cuts))
    # Twice over, so that a class has the rows its directions need.
    x, y = np.repeat(x, 2 * WIDTH, 0), np.repeat(y, 2 * WIDTH)
    ends = np.cumsum(cuts)[:-1] * 2 * WIDTH
    parts = [
        Gaussians.of(a, b, rank=rank)
        for a, b in zip(np.split(x, ends), np.split(y, ends), strict=True)
    ]
    whole = Gaussians.of(x, y, rank=rank)
    assert_same(combined(parts), whole)
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = one_by_one.merged(part)
    assert_same(one_by_one, whole)
    assert_same(combined([whole, parts[0]], [1.0, -1.0]), combined(parts[1:]))


@pytest.mark.parametrize("rank", [0, WIDTH])
def test_moments_are_those_numpy_computes(rank: int) -> None:
    x, y = rows(0, 300)
    bank = Gaussians.of(x, y, rank=rank)
    for i, label in enumerate(bank.classes):
        own = x[y == label]
        np.testing.assert_allclose(bank.mean[i], own.mean(0))
        wanted = np.cov(own.T)
        np.testing.assert_allclose(
            bank.covariance(i), wanted if rank else np.diag(np.diag(wanted)), atol=1e-9
        )


def test_too_few_directions_keep_the_widest() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, WIDTH)) * [9, 5, 0.1, 0.01]
    bank = Gaussians.of(x, np.zeros(400, np.int64), rank=2)
    values = np.linalg.eigvalsh(np.cov(x.T))
    assert np.linalg.eigvalsh(bank.covariance(0))[-2:] == pytest.approx(values[-2:])
    merged = bank.merged(bank)
    assert merged.rank == 2
    assert merged.count.tolist() == [800]


def test_directions_of_many_features_are_the_widest_too() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 30)) @ rng.standard_normal((30, 200)) * 3
    x += 0.1 * rng.standard_normal(x.shape)
    bank = Gaussians.of(x, np.zeros(300, np.int64), rank=20)
    wanted = np.linalg.eigvalsh(np.cov(x.T))[-20:]
    np.testing.assert_allclose(np.linalg.eigvalsh(bank.covariance(0))[-20:], wanted, rtol=1e-3)


@pytest.mark.parametrize("rank", [0, WIDTH])
def test_rows_drawn_have_the_moments(rank: int) -> None:
    x, y = rows(1, 400)
    bank = Gaussians.of(x, y, rank=rank)
    drawn = bank.sample(np.full(40_000, 2), np.random.default_rng(3))
    np.testing.assert_allclose(drawn.mean(0), bank.mean[2], atol=0.08)
    np.testing.assert_allclose(np.cov(drawn.T), bank.covariance(2), atol=0.35)


def test_a_class_with_few_rows_is_left_out_and_never_spelled_out() -> None:
    x, y = rows(2, 40)
    y = np.where(np.arange(40) < 5, 1, 0)
    bank = Gaussians.of(x, y, rank=WIDTH, minimum=6)
    assert bank.classes.tolist() == [0]
    few = Gaussians.of(x[:5], y[:5], rank=WIDTH)
    assert np.linalg.matrix_rank(few.scatter[0]) == 2


def test_what_travels_comes_back() -> None:
    x, y = rows(3, 90)
    for rank in (0, 3):
        bank = Gaussians.of(x, y, rank=rank)
        found = Gaussians.read(bank.arrays(), "here", width=WIDTH, rank=rank, num_classes=3)
        assert found.classes.tolist() == [0, 1, 2]
        np.testing.assert_allclose(found.scatter, bank.scatter, rtol=1e-5, atol=1e-4)
    assert len(Gaussians.read({}, "here", width=4, rank=0, num_classes=3).classes) == 0


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("classes", np.array([0, 2, 1])),
        ("classes", np.array([0, 1, 7])),
        ("classes", np.array([0.0, 1.0, 2.0])),
        ("count", np.array([1.0, 0.0, 2.0])),
        ("count", np.array([1.0, 2.0])),
        ("mean", np.full((3, WIDTH), np.nan)),
        ("scatter", np.full((3, WIDTH), -1.0)),
        ("scatter", np.zeros((3, 2, WIDTH))),
        ("mean", None),
    ],
)
def test_impossible_moments_are_refused(part: str, value: np.ndarray | None) -> None:
    arrays = Gaussians.of(*rows(4, 90), rank=0).arrays()
    if value is None:
        del arrays[part]
    else:
        arrays[part] = value
    with pytest.raises(ModelError, match="here: "):
        Gaussians.read(arrays, "here", width=WIDTH, rank=0, num_classes=3)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 10), st.floats(1e-9, 0.1))
def test_the_noise_spends_the_budget_exactly(epsilon: float, delta: float) -> None:
    """Against the privacy loss of two normal distributions, integrated."""
    sigma = noise_scale(epsilon, delta, 1.0)
    t = np.linspace(-12 * sigma, 12 * sigma + 1, 40_001)

    def density(mean: float) -> np.ndarray:
        found: np.ndarray = np.exp(-(((t - mean) / sigma) ** 2) / 2)
        return found / (sigma * math.sqrt(2 * math.pi))

    over = np.maximum(density(1.0) - math.exp(epsilon) * density(0.0), 0)
    assert float(over.sum() * (t[1] - t[0])) == pytest.approx(delta, rel=0.02, abs=1e-9)


def test_one_row_changes_a_release_by_no_more_than_the_noise_allows_for() -> None:
    class Still:
        """Randomness without noise: shows what is released before it is added."""

        def standard_normal(self, size: int | None = None) -> np.ndarray | float:
            return 0.0 if size is None else np.zeros(size)

    clip = 2.0

    def released(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        bank = private(
            x, y, num_classes=3, clip=clip, epsilon=1.0, delta=1e-5, minimum=1,
            rng=Still(),  # type: ignore[arg-type]
        )  # fmt: skip
        full = np.zeros((3, 1 + 2 * WIDTH))
        for i, label in enumerate(bank.classes):
            n, mean = bank.count[i], bank.mean[i] / clip
            squares = bank.scatter[i] / clip**2 + n * mean**2
            full[label] = [n, *(n * mean), *squares]
        return full.ravel()

    x, y = rows(5, 30)
    whole = released(x, y)
    for out in range(30):
        less = np.delete(np.arange(30), out)
        assert np.linalg.norm(whole - released(x[less], y[less])) <= math.sqrt(3) + 1e-9


def test_private_moments_are_near_where_rows_are_many_and_absent_where_few() -> None:
    x, y = rows(6, 6000)
    y = np.where(y == 2, 1, y)
    bank = private(
        x, y, num_classes=3, clip=100.0, epsilon=5.0, delta=1e-5, minimum=50,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert bank.classes.tolist() == [0, 1]
    np.testing.assert_allclose(bank.mean[0], x[y == 0].mean(0), atol=0.5)
