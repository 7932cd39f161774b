from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.routing.features import FEATURES, GLOBALS
from aats_agents.prior import MAX_WEIGHT, PRIOR_WEIGHTS, Prior
from aats_agents.scorer import NEVER, Scorer, shapes, zeros
from tests.agents.rl_samples import column, random_batch, random_weights

PRIORS = [None, Prior()]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("attention", [False, True])
@given(seed=st.integers(0, 1000), k=st.integers(1, 40))
def test_order_and_number_of_candidates_do_not_matter(
    prior: Prior | None, attention: bool, seed: int, k: int
) -> None:
    scorer = Scorer(random_weights(1, attention=attention), prior)
    features, packet, mask = random_batch(seed, k=k)
    logits = scorer.logits(features, packet, mask)
    shuffled = np.random.default_rng(seed).permutation(k)
    again = scorer.logits(features[shuffled], packet, mask[shuffled])
    np.testing.assert_allclose(again, logits[shuffled], rtol=1e-5, atol=2e-4)
    padded = scorer.logits(
        np.concatenate([features, np.zeros((5, len(FEATURES)), np.float32)]),
        packet,
        np.concatenate([mask, np.zeros(5, np.bool_)]),
    )
    np.testing.assert_allclose(padded[:k], logits, rtol=1e-5, atol=2e-4)
    assert (padded[k:] == NEVER).all()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("attention", [False, True])
def test_a_batch_scores_as_its_members_do(prior: Prior | None, attention: bool) -> None:
    scorer = Scorer(random_weights(2, attention=attention), prior)
    features, packet, mask = random_batch(3, 4, 5)
    batch = scorer.logits(features, packet, mask)
    assert batch.shape == mask.shape
    assert batch.dtype == np.float32
    for i, k in np.ndindex(4, 5):
        one = scorer.logits(features[i, k], packet[i, k], mask[i, k])
        np.testing.assert_allclose(one, batch[i, k], rtol=1e-5, atol=2e-4)


@given(seed=st.integers(0, 1000))
def test_what_is_chosen_is_legal_and_a_stop_out_of_reach_changes_nothing(seed: int) -> None:
    scorer = Scorer(random_weights(4, attention=True), Prior())
    features, packet, mask = random_batch(seed, 8)
    chosen = scorer.choose(features, packet, mask)
    assert np.take_along_axis(mask, chosen[:, None], 1).all()
    other = features.copy()
    other[~mask] = random_batch(seed + 1, 8)[0][~mask]
    np.testing.assert_array_equal(
        scorer.logits(other, packet, mask), scorer.logits(features, packet, mask)
    )


def test_one_legal_stop_is_scored_without_others_to_compare_with() -> None:
    features, packet, _ = random_batch(5)
    mask = np.zeros(len(features), np.bool_)
    mask[3] = True
    scorer = Scorer(random_weights(5, attention=True), Prior())
    assert np.isfinite(scorer.logits(features, packet, mask)).all()
    assert scorer.choose(features, packet, mask) == 3


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_weights_that_are_taken_do_not_overflow(sign: int) -> None:
    features, packet, mask = random_batch(6)
    weights = {n: np.full(s, sign * MAX_WEIGHT, np.float32) for n, s in shapes(64).items()}
    prior = Prior(**dict.fromkeys(PRIOR_WEIGHTS, MAX_WEIGHT))
    assert np.isfinite(Scorer(weights, prior).logits(features, packet, mask)).all()


def test_without_weights_the_prior_decides() -> None:
    features, packet, mask = random_batch(6, 50)
    prior = Prior().logits(features, packet, mask)
    found = Scorer(zeros(), Prior()).logits(features, packet, mask)
    np.testing.assert_allclose(found[mask], prior[mask])
    assert (np.where(mask, prior, -1).max(axis=-1) == 0).all()


# --- the prior --------------------------------------------------------------------------------


def two_nodes(**changes: float) -> bool:
    """Return whether the prior prefers the second of two equal data nodes with changes."""
    features = np.zeros((2, len(FEATURES)), np.float32)
    usual = {"is_data": 1, "need_supply": 0.5, "log_transfer": 0.4, "log_compute": 0.4,
             "trust": 1, "is_new": 1}  # fmt: skip
    for name, value in usual.items():
        column(features, name)[:] = value
    for name, value in changes.items():
        column(features, name)[1] = value
    packet = np.zeros(len(GLOBALS), np.float32)
    column(packet, "is_seek")[...] = 1
    logits = Prior().logits(features, packet, np.ones(2, np.bool_))
    return bool(logits[1] > logits[0])


@pytest.mark.parametrize(
    "better",
    [
        {"need_supply": 0.9},
        {"log_transfer": 0.3, "log_compute": 0.3},
        {"label_balance": 0.9, "labels_known": 1},
        {"has_probe": 1, "probe_gain": 0.3, "probe_alignment": 0.9},
        {"has_past": 1, "past_gain": 0.3, "past_alignment": 0.9},
    ],
)
def test_the_prior_likes_what_a_packet_needs(better: dict[str, float]) -> None:
    assert two_nodes(**better)


@pytest.mark.parametrize(
    "worse",
    [
        {"need_supply": 0.1},
        {"log_transfer": 0.6},
        {"hurt": 1},
        {"trust": 0.3},
        {"is_new": 0, "hops_since": 0.2},
        {"last_gain": -0.1},
    ],
)
def test_the_prior_avoids_what_costs_or_harms(worse: dict[str, float]) -> None:
    assert not two_nodes(**worse)


def test_of_two_probes_that_hurt_the_prior_takes_the_less_bad() -> None:
    features = np.zeros((2, len(FEATURES)), np.float32)
    for name in ("is_data", "trust", "is_new", "has_probe"):
        column(features, name)[:] = 1
    column(features, "probe_gain")[:] = -0.9, -0.1
    column(features, "probe_alignment")[:] = -1
    packet = np.zeros(len(GLOBALS), np.float32)
    assert Prior().logits(features, packet, np.ones(2, np.bool_)).argmax() == 1


def errands(stage: str, margin: float) -> str:
    features = np.zeros((3, len(FEATURES)), np.float32)
    for i, name in enumerate(("is_data", "is_mpvu", "is_home")):
        column(features, name)[i] = 1
    column(features, "trust")[:] = 1
    packet = np.zeros(len(GLOBALS), np.float32)
    column(packet, stage)[...] = 1
    column(packet, "margin")[...] = margin
    chosen = Prior().logits(features, packet, np.ones(3, np.bool_)).argmax()
    return ("data", "mpvu", "home")[int(chosen)]


def test_the_prior_trains_until_a_verdict_is_worth_asking_for_and_then_goes_home() -> None:
    assert errands("is_seek", -0.5) == "data"
    assert errands("is_verify", 0.1) == "mpvu"
    assert errands("is_return", 0.1) == "home"


@pytest.mark.parametrize("wrong", [{"floor": 0.0}, {"memory": -1.0}, {"cost": float("nan")}])
def test_a_prior_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="prior"):
        Prior(**wrong)


def test_deciding_needs_no_torch() -> None:
    script = (
        "import sys, aats_agents.scorer, aats_agents.policy_file;"
        "print(*{'torch', 'gymnasium', 'stable_baselines3'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
