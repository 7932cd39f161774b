"""Against torch, whose models these stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from aats.learning.models import build, predict
from aats.packet import Architecture
from aats_envs.perceptrons import NEVER, Perceptrons, Rows
from aats_envs.rows import WIDTH


def rows(kind: Perceptrons, n: int, m: int, seed: int, classes: int) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, m, WIDTH)).astype(np.float32)
    x[..., -1] = 1
    weight = rng.random((n, m)).astype(np.float32)
    weight[:, -1] = 0
    unused = np.where(np.arange(kind.classes) < classes, np.float32(0), NEVER)
    return Rows(
        rng.integers(kind.skills, size=n), x, rng.integers(classes, size=(n, m)),
        weight / weight.sum(axis=1, keepdims=True), np.broadcast_to(unused, (n, 1, kind.classes)),
    )  # fmt: skip


def twin(kind: Perceptrons, flat: np.ndarray) -> torch.nn.Module:
    """Return the torch model of the same weights."""
    first, trunk, heads = (layer[0] for layer in kind.layers(flat[None]))
    features = WIDTH - 1
    if kind.skills == 1:
        config = {"features": features, "hidden": [kind.width], "classes": kind.classes}
        model = build(Architecture("mlp", config))
    else:
        names = [f"s{i}" for i in range(kind.skills)]
        model = build(Architecture("departments", {
            "features": dict.fromkeys(names, features), "width": kind.width,
            "classes": dict.fromkeys(names, kind.classes),
        }))  # fmt: skip
    values = [(w[:-1].T, w[-1]) for w in first]
    if kind.skills > 1:
        values.append((trunk[:-1].T, trunk[-1]))
    values += [(w[:-1].T, w[-1]) for w in heads]
    flat_values = [torch.from_numpy(part.copy()) for pair in values for part in pair]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), flat_values, strict=True):
            parameter.copy_(value)
    return model


@pytest.mark.parametrize(("skills", "classes", "used"), [(1, 10, 10), (1, 10, 4), (2, 3, 2)])
def test_losses_and_gradients_are_those_of_torch(skills: int, classes: int, used: int) -> None:
    kind = Perceptrons(skills, classes)
    flat = np.stack([kind.untrained(seed) for seed in range(5)])
    flat += np.float32(0.01)  # biases too
    given = rows(kind, 5, 7, 0, used)
    losses, slopes = kind.gradient(flat, given)
    for i in range(5):
        model = twin(kind, flat[i])
        logits = predict(model, torch.from_numpy(given.x[i, :, :-1]), f"s{given.skill[i]}")
        each = cross_entropy(logits[:, :used], torch.from_numpy(given.y[i]), reduction="none")
        loss = (each * torch.from_numpy(given.weight[i])).sum()
        loss.backward()
        assert losses[i] == pytest.approx(loss.item(), rel=1e-4)
        found = twin(kind, slopes[i])
        for (name, mine), theirs in zip(found.named_parameters(), model.parameters(), strict=True):
            wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
            assert torch.allclose(mine, wanted, atol=1e-5), name
        assert np.allclose(
            kind.logits(flat, given)[i, :, :used], logits[:, :used].detach(), atol=1e-4
        )


def test_what_comes_of_many_is_bit_for_bit_what_comes_of_each() -> None:
    kind = Perceptrons(2, 4)
    flat = np.stack([kind.untrained(seed) for seed in range(6)])
    given = rows(kind, 6, 8, 1, 4)
    losses, slopes = kind.gradient(flat, given)
    for i in (0, 5):
        one = Rows(*(part[i : i + 1] for part in given))
        loss, slope = kind.gradient(flat[i : i + 1], one)
        assert loss[0] == losses[i]
        assert np.array_equal(slope[0], slopes[i])


def test_untrained_weights_follow_from_the_seed() -> None:
    kind = Perceptrons(1, 10)
    assert np.array_equal(kind.untrained(1), kind.untrained(1))
    assert not np.array_equal(kind.untrained(1), kind.untrained(2))
    assert kind.untrained(1).shape == (kind.size,)
