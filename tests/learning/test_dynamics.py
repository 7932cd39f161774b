"""The law of learning: closed forms, monotone where it must be, one row as in a batch."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aats.learning.dynamics import (
    Dynamics,
    Floats,
    Scores,
    accuracy,
    moved,
    probed,
    scattered,
    shaken,
    stack,
    suspected,
)
from aats.learning.fit import BOUNDS, SHIPPED, load_fit

FITS = [load_fit(path.stem).dynamics for path in sorted(SHIPPED.glob("*.json"))]
PLAIN = Dynamics(maturity=0.0, harm=0.0)
B, N, C = 3, 4, 6

shares = st.floats(0, 1, width=16)
knowledge = arrays(np.float64, (B, N, C), elements=shares)
rows = arrays(np.float64, (B, N, C), elements=st.integers(0, 200).map(float))
seeds = st.integers(0, 2**31)


def drawn(seed: int) -> tuple[Dynamics, Floats, Floats, Floats]:
    """Return constants anywhere in their bounds, knowledge, clean rows, wrong rows."""
    rng = np.random.default_rng(seed)
    law = {name: rng.uniform(low, min(high, low + 20)) for name, (low, high) in BOUNDS.items()}
    known = rng.random((B, N, C)) * rng.integers(0, 2, (B, N, C))
    clean, wrong = rng.integers(0, 60, (2, B, N, C)) * rng.integers(0, 2, (2, B, N, 1))
    return Dynamics(**law), known, clean.astype(float), wrong.astype(float)


def visit(known: Floats, clean: Floats, wrong: float = 0.0, law: Dynamics = PLAIN) -> Floats:
    return moved(np.asarray(known, float), np.asarray(clean, float), wrong, 0.0, law)


def test_one_node_again_and_again_closes_the_gap_geometrically() -> None:
    known = np.full(3, 0.1)
    for _ in range(5):
        known = visit(known, [40.0, 40.0, 40.0], law=replace(PLAIN, forget=1e300, ceiling=0.9))
    assert known == pytest.approx(np.full(3, 0.9 - 0.8 * math.exp(-5 * 40 / PLAIN.tau)))


def test_a_node_that_is_no_longer_new_teaches_a_bounded_amount() -> None:
    law = replace(PLAIN, forget=1e300, novelty=0.5)
    known = np.full(2, 0.1)
    for earlier in range(200):
        known = moved(known, np.full(2, 10.0), 0.0, float(earlier), law)
    whole = 10 / PLAIN.tau / (1 - math.exp(-0.5))
    assert known == pytest.approx(np.full(2, 1 - 0.9 * math.exp(-whole)))


def test_disjoint_classes_push_each_other_out() -> None:
    first = visit([0.1, 0.1], [100.0, 0.0])
    second = visit(first, [0.0, 100.0])
    assert first[0] == pytest.approx(1 - 0.9 * math.exp(-100 / PLAIN.tau))
    lost = math.exp(-PLAIN.hold * first.mean()) * (1 - math.exp(-100 / PLAIN.forget))
    assert second[0] == pytest.approx(first[0] * (1 - lost))


def test_competition_moves_log_odds_by_the_share_of_labels() -> None:
    law = replace(PLAIN, tau=1e300, forget=1e300, sway=0.7, blend=2.0, settle=25.0)
    after = visit([0.5, 0.5], [30.0, 10.0], law=law)
    loose = 0.7 * math.exp(-law.hold * 0.5) * (1 - math.exp(-40 / 25))
    expected = loose * np.log(np.array([32, 12]) * 2 / 44)
    assert np.log(after / (1 - after)) == pytest.approx(expected)


@pytest.mark.parametrize("law", FITS)
@given(known=knowledge)
def test_zero_rows_change_nothing(law: Dynamics, known: Floats) -> None:
    after = moved(known, np.zeros((B, N, C)), np.zeros((B, N)), np.zeros((B, N)), law)
    np.testing.assert_allclose(after, known, rtol=0, atol=1e-15)


@pytest.mark.parametrize("law", FITS)
@given(known=knowledge, wrong=arrays(np.float64, (B, N), elements=st.floats(0, 1000)))
def test_wrong_rows_alone_only_harm(law: Dynamics, known: Floats, wrong: Floats) -> None:
    after = moved(known, np.zeros((B, N, C)), wrong, np.zeros((B, N)), law)
    assert (after <= known + 1e-12).all()


@pytest.mark.parametrize("law", FITS)
@given(known=knowledge, clean=rows, wrong=st.floats(0, 200), more=st.integers(1, 100))
def test_more_clean_rows_of_a_class_teach_it_more(
    law: Dynamics, known: Floats, clean: Floats, wrong: float, more: int
) -> None:
    richer = clean.copy()
    richer[..., 0] += more
    less, greater = (moved(known, s, np.full((B, N), wrong), 0.0, law) for s in (clean, richer))
    assert (greater[..., 0] >= less[..., 0] - 1e-12).all()


@given(seed=seeds, scale=st.floats(0.1, 5))
def test_knowledge_stays_a_probability(seed: int, scale: float) -> None:
    law, known, clean, wrong = drawn(seed)
    after = moved(known, clean, wrong.sum(-1), 1.0, law, scale)
    assert np.isfinite(after).all()
    assert after.min() >= 0
    assert after.max() <= 1


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_a_batch_is_its_rows_bit_for_bit(seed: int) -> None:
    _, known, clean, wrong = drawn(seed)
    laws = [drawn(seed + b)[0] for b in range(B)]
    visits = np.arange(B * N, dtype=float).reshape(B, N)
    weights = np.ones(C)
    many = stack(laws)
    after = moved(known, clean, wrong.sum(-1), visits, many)
    right = accuracy(known, weights, many)
    scores = probed(known, clean, wrong, weights, many)
    doubted = suspected(known, clean + wrong, scores, weights, many)
    draws = np.random.default_rng(0).standard_normal((B, N, C))
    shook = shaken(known, draws, many)
    noised = scattered(scores, draws[..., :4], many)
    for b, law in enumerate(laws):
        for n in range(N):
            here = known[b, n], clean[b, n]
            alone = probed(*here, wrong[b, n], weights, law)
            assert (moved(*here, wrong[b, n].sum(), visits[b, n], law) == after[b, n]).all()
            assert accuracy(known[b, n], weights, law) == right[b, n]
            assert tuple(alone) == tuple(s[b, n] for s in scores)
            labelled = clean[b, n] + wrong[b, n]
            assert suspected(known[b, n], labelled, alone, weights, law) == doubted[b, n]
            assert (shaken(known[b, n], draws[b, n], law) == shook[b, n]).all()
            single = scattered(alone, draws[b, n, :4], law)
            assert tuple(single) == tuple(s[b, n] for s in noised)


@given(seed=seeds)
def test_padding_rounds_nothing(seed: int) -> None:
    law, known, clean, wrong = drawn(seed)

    def padded(values: Floats) -> Floats:
        return np.concatenate([values, np.zeros((B, N, 3))], -1)

    bad, count = wrong.sum(-1), np.full((B, N), C)
    after = moved(padded(known), padded(clean), bad, 0.0, law, classes=count)
    assert (after[..., :C] == moved(known, clean, bad, 0.0, law)).all()
    assert (after[..., C:] == 0).all()
    weights = np.full((B, N, C), 0.5)
    wide = probed(padded(known), padded(clean), padded(wrong), padded(weights), law, classes=count)
    for whole, plain in zip(wide, probed(known, clean, wrong, weights, law), strict=True):
        assert (whole == plain).all()
    assert (accuracy(padded(known), padded(weights), law) == accuracy(known, weights, law)).all()


def test_a_stack_may_have_a_second_dimension() -> None:
    tasks = [[Dynamics(tau=10.0 * (1 + b + t)) for t in range(2)] for b in range(B)]
    law = stack([stack(row) for row in tasks])
    assert all(np.shape(getattr(law, f.name)) == (B, 2) for f in fields(Dynamics))
    known, clean = np.full((B, 2, C), 0.1), np.full((B, 2, C), 9.0)
    after = moved(known, clean, np.zeros((B, 2)), np.zeros((B, 2)), law)
    assert after[1, 1, 0] == visit(known[1, 1], clean[1, 1], law=tasks[1][1])[0]
    with pytest.raises(ValueError, match="no dynamics"):
        stack([])


def test_accuracy_grows_with_knowledge_from_none_to_all() -> None:
    law = Dynamics(link_a=1.4, link_b=1.5)
    known = np.linspace(0, 1, 11)[:, None]
    found = accuracy(known, np.ones(1), law)
    assert found[0] == 0
    assert found[-1] == 1
    assert (np.diff(found) > 0).all()
    assert found[5] == pytest.approx(1 / (1 + math.exp(-1.5)))


@pytest.mark.parametrize("law", FITS)
def test_a_probe_prefers_clean_rows_and_finds_the_wrong_ones(law: Dynamics) -> None:
    known = np.array([0.6, 0.5])
    weights, labelled = np.ones(2), np.array([20.0, 20.0])
    clean = probed(known, labelled, np.zeros(2), weights, law)
    bad = probed(known, 0.2 * labelled, 0.8 * labelled, weights, law)
    assert clean.gain > bad.gain
    assert clean.alignment > bad.alignment
    assert clean.loss < bad.loss
    doubts = [float(suspected(known, labelled, s, weights, law)) for s in (clean, bad)]
    assert doubts[0] < 0.2 < doubts[1]


def test_nothing_held_scores_nothing() -> None:
    scores = probed(np.full(3, 0.4), np.zeros(3), np.zeros(3), np.ones(3), FITS[-1])
    assert [float(s) for s in scores] == [0.0, 0.0, 0.0, 0.0]


def test_scatter_is_as_wide_as_the_constants_say() -> None:
    law = Dynamics(probe_gain_noise=0.2, visit_noise=0.1)
    rng = np.random.default_rng(0)
    many = np.zeros(20_000)
    found = scattered(Scores(many, many, many, many), rng.standard_normal((20_000, 4)), law)
    assert found.gain.std() == pytest.approx(0.2, rel=0.03)
    assert (found.loss == 0).all()
    half = np.full((20_000, 1), 0.5)
    assert shaken(half, rng.standard_normal((20_000, 1)), law).std() == pytest.approx(0.1, rel=0.03)
    assert (shaken(np.array([0.0, 1.0]), np.ones(2), law) == [0.0, 1.0]).all()


def test_it_needs_numpy_alone() -> None:
    code = (
        "import sys; import aats.learning.dynamics, aats.learning.fit;"
        "aats.learning.fit.load_fit('digits');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'sklearn', 'gymnasium')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
