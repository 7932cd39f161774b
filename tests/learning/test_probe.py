"""Probes: what leaves is scalars that tell a clean node from a mislabelled one."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from aats.errors import ModelError
from aats.learning.evaluate import accuracy, auc, balanced_accuracy, measure, wilson
from aats.learning.probe import MAX_LOSS, make_probe_payload, probe
from aats.learning.sequential import SequentialMethod
from aats.learning.weights import initial_payload
from aats.messages import ProbeScores
from aats.payload import MODEL, Payload
from aats.roles.data import Batch, NodeData
from aats.testing.methods import MLP, SKILL, Walk, blobs, header_for, reference_for


def trained() -> Payload:
    packet = Walk(header_for(), initial_payload(MLP, 0, reference_for(blobs(60, 9))))
    packet.visit(SequentialMethod(lr=0.05, epochs=20), NodeData.of(blobs(60)))
    return packet.payload


def batch(wrong: float, seed: int = 3) -> dict[str, Batch]:
    return {SKILL: blobs(200, seed, wrong=wrong).minibatch(32, 0)}


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_node_scores_above_a_mislabelled_one(seed: int) -> None:
    payload = trained()
    clean = probe(MLP, payload, batch(0.0, seed))
    bad = probe(MLP, payload, batch(0.9, seed))
    assert clean.gain > bad.gain
    assert bad.gain < 0
    assert clean.alignment > bad.alignment


def test_the_same_request_gets_the_same_scores_and_the_model_stays() -> None:
    payload = trained()
    assert probe(MLP, payload, batch(0)) == probe(MLP, payload, batch(0))
    payload.verify()


def test_without_a_reference_only_loss_and_norm_are_told() -> None:
    scores = probe(MLP, initial_payload(MLP, 0), batch(0.0))
    assert (scores.gain, scores.alignment) == (0.0, 0.0)
    assert scores.loss > 0
    assert scores.gradient_norm > 0
    assert scores.samples == 32


def test_scores_are_clipped_even_where_the_model_blows_up() -> None:
    x, y = batch(0)[SKILL]
    scores = probe(MLP, trained(), {SKILL: (x * np.float32(1e20), y)}, lr=1e6)
    assert scores.loss == MAX_LOSS
    assert scores.gain == -5.0
    assert all(math.isfinite(v) for v in asdict(scores).values())


def test_noise_hides_the_scores_and_cannot_be_taken_off_by_the_asker() -> None:
    payload = trained()

    def scores(noise: float, secret: int) -> ProbeScores:
        return probe(MLP, payload, batch(0), seed=1, noise=noise, noise_seed=secret)

    assert scores(0.1, 1) != scores(0.0, 1)
    assert scores(0.1, 1) != scores(0.1, 2)
    assert scores(0.1, 1) == scores(0.1, 1)
    assert -1 <= scores(5.0, 3).alignment <= 1


def test_a_probe_carries_model_and_reference_only() -> None:
    packet = Walk(header_for(), initial_payload(MLP, 0, reference_for(blobs(60, 9))))
    packet.visit(SequentialMethod(average_last=2), NodeData.of(blobs(60)))
    manifest, tensors = make_probe_payload(packet.payload)
    manifest.check(limit_bytes=1 << 20)
    sent = Payload(manifest, memoryview(tensors))
    sent.verify()
    assert not sent.arrays("state.")
    assert manifest.version(MODEL) == packet.header.version
    assert probe(MLP, sent, batch(0)) == probe(MLP, packet.payload, batch(0))


def test_labels_beyond_the_model_are_refused() -> None:
    x, _ = batch(0)[SKILL]
    with pytest.raises(ModelError, match="label 7, the model has 3 classes"):
        probe(MLP, trained(), {SKILL: (x, np.full(len(x), 7, np.int64))})


# --- metrics ----------------------------------------------------------------------------------


def test_wilson_interval_is_the_published_one() -> None:
    low, high = wilson(0.9, 90)
    assert (round(low, 4), round(high, 4)) == (0.8208, 0.9465)
    assert wilson(1.0, 10)[1] == 1.0
    assert wilson(0.0, 10)[0] == 0.0


def test_metrics_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    y = rng.choice(3, 200, p=[0.7, 0.2, 0.1])
    logits = rng.standard_normal((200, 3)) + np.eye(3)[y]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert accuracy(log_p, y).value == pytest.approx((logits.argmax(1) == y).mean())
    assert balanced_accuracy(log_p, y).value == pytest.approx(
        metrics.balanced_accuracy_score(y, logits.argmax(1))
    )
    assert auc(log_p, y).value == pytest.approx(
        metrics.roc_auc_score(y, np.exp(log_p), multi_class="ovr")
    )
    two = log_p[:, :2]
    keep = y < 2
    assert auc(two[keep], y[keep]).value == pytest.approx(
        metrics.roc_auc_score(y[keep], two[keep, 1])
    )


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ModelError, match="'f1' is unknown; known: accuracy"):
        measure("f1", np.zeros((2, 2)), np.zeros(2, np.int64))


def test_judges_on_few_trusted_rows_and_on_the_same_for_every_candidate_of_a_hop() -> None:
    packet = Walk(header_for(), initial_payload(MLP, 0, reference_for(blobs(400, 9))))
    packet.visit(SequentialMethod(lr=0.05, epochs=2), NodeData.of(blobs(60)))
    same = [probe(MLP, packet.payload, batch(0.0), seed=1).gain for _ in range(2)]
    assert same[0] == same[1] != probe(MLP, packet.payload, batch(0.0), seed=2).gain
