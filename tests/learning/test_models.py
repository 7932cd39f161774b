"""Architectures: built from a checked config, deterministic, one way to predict."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aats.errors import ModelError
from aats.learning.backend import backend_of
from aats.learning.models import build, predict
from aats.learning.weights import initial_payload, reference_of
from aats.packet import Architecture
from aats.payload import pack
from aats.roles.data import Features

DEPARTMENTS = {"features": {"heart.a": 13, "keys": 5}, "classes": {"heart.a": 2, "keys": 4}}
SHIPPED: list[tuple[str, dict[str, Any], str, Features, int]] = [
    ("logistic", {"features": 6}, "s", np.ones((3, 6), np.float32), 2),
    ("logistic", {"features": 6, "classes": 4}, "s", np.ones((3, 6), np.float32), 4),
    ("mlp", {"features": 6, "hidden": 8, "classes": 3}, "s", np.ones((3, 2, 3), np.float32), 3),
    ("cnn", {"side": 8, "widths": [4, 6], "classes": 3}, "s", np.ones((3, 1, 8, 8), np.float32), 3),
    ("cnn", {"side": 8, "classes": 3}, "s", np.ones((3, 64), np.float32), 3),
    ("departments", DEPARTMENTS, "heart.a", np.ones((3, 13), np.float32), 2),
    ("departments", DEPARTMENTS, "keys", np.ones((3, 5), np.float32), 4),
    (
        "transformer",
        {"vocabulary": 20, "length": 7, "width": 8, "heads": 2, "classes": 3},
        "s",
        np.ones((3, 7), np.int64),
        3,
    ),
]


@pytest.mark.parametrize(("name", "config", "skill", "x", "classes"), SHIPPED)
def test_shipped_models_are_seeded_and_predict(
    name: str, config: dict[str, Any], skill: str, x: Features, classes: int
) -> None:
    architecture = Architecture(name, config)
    payload = initial_payload(architecture, 1)
    payload.verify()
    assert payload.manifest == initial_payload(architecture, 1).manifest
    same = payload.manifest == initial_payload(architecture, 2).manifest
    assert same == (name == "logistic")  # a linear model starts at zero
    backend = backend_of(architecture)
    log_p = backend.log_probabilities(backend.load(architecture, payload), x, skill)
    assert log_p.shape == (3, classes)
    assert np.exp(log_p).sum(1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("mpl", {}, "unknown architecture 'mpl'.*did you mean 'mlp'"),
        ("mlp", {"features": 3, "classes": 2, "hiden": 3}, "did you mean 'hidden'"),
        ("mlp", {"features": 0, "classes": 2}, "'features' is 0, allowed is a whole number 1-"),
        ("mlp", {"features": 3}, "'classes' is None"),
        ("mlp", {"features": 3, "classes": 2, "hidden": [9] * 999}, "up to 256"),
        ("cnn", {"side": 4, "widths": [2, 2, 2], "classes": 2}, "halved 3 times"),
        ("departments", {"features": {"a": 1}, "classes": {"b": 2}}, "same departments"),
        ("transformer", {"vocabulary": 9, "length": 4, "width": 6, "classes": 2}, "multiple"),
        ("cnn", {"side": 1 << 20, "widths": [1 << 20], "classes": 1 << 20}, "matrix of"),
    ],
)
def test_a_wrong_config_is_named(name: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build(Architecture(name, config))


def test_a_config_cannot_make_a_node_allocate_more_than_came() -> None:
    huge = Architecture("mlp", {"features": 1 << 20, "hidden": [1 << 20], "classes": 2})
    small = initial_payload(Architecture("mlp", {"features": 2, "classes": 2}), 0)
    with pytest.raises(ModelError, match="expected is"):
        backend_of(huge).load(huge, small)


@pytest.mark.parametrize(
    "huge",
    [
        Architecture("mlp", {"features": 1 << 20, "hidden": [1 << 20] * 256, "classes": 1 << 20}),
        Architecture("cnn", {"side": 1 << 10, "widths": [1 << 17, 1 << 17], "classes": 2}),
        Architecture("departments", {"features": {"a": 1 << 20}, "classes": {"a": 1 << 20},
                                     "width": 1 << 20, "depth": 256}),
        Architecture("transformer", {"vocabulary": 1 << 20, "length": 1 << 20, "width": 1 << 20,
                                     "heads": 1, "depth": 3, "classes": 1 << 20}),
    ],
    ids=lambda a: a.name,
)  # fmt: skip
def test_no_config_makes_a_node_build_a_giant(huge: Architecture) -> None:
    small = initial_payload(Architecture("mlp", {"features": 2, "classes": 2}), 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError):
        backend_of(huge).load(huge, small)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_missing_department_is_named() -> None:
    with pytest.raises(ModelError, match=r"no skill 'x'; it has heart\.a, keys"):
        build(Architecture("departments", DEPARTMENTS))(torch.ones(1, 13), skill="x")


def test_log_odds_become_two_classes() -> None:
    class Odds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0]

    logits = predict(Odds(), torch.tensor([[2.0], [-1.0]]), "s")
    assert logits.tolist() == [[0.0, 2.0], [0.0, -1.0]]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones((3, 2), np.float32), np.zeros(2, np.int64)),
        (np.ones((2, 2), np.float32), np.array([0, -1])),
        (np.full((2, 2), np.inf, np.float32), np.zeros(2, np.int64)),
    ],
)
def test_a_broken_reference_set_is_refused(x: Features, y: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ModelError, match="reference set of skill 'a'"):
        reference_of(pack({"ref.a.x": x, "ref.a.y": y}))


def test_reference_of_a_skill_with_dots() -> None:
    x, y = np.ones((2, 2), np.float32), np.zeros(2, np.int64)
    assert list(reference_of(pack({"ref.a.b.x": x, "ref.a.b.y": y}))) == ["a.b"]
