"""Models of unlike architectures that learn from what each other say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aats.advert import ComputeAdvert
from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.exchange import SAID, VOICES, ExchangeMethod
from aats.learning.weights import initial_payload
from aats.roles.data import NodeData, SkillData
from aats.testing import check_method
from aats.testing.methods import CLASSES, MLP, Walk, blobs, header_for

SMALL = {"name": "logistic", "features": 8, "classes": CLASSES}
TINY = ComputeAdvert(memory_bytes=100)


def only(data: SkillData, *labels: int) -> NodeData:
    """Return the rows of some classes, as a node's."""
    train, test = np.isin(data.train_y, labels), np.isin(data.test_y, labels)
    part = replace(
        data, train_x=data.train_x[train], train_y=data.train_y[train],
        test_x=data.test_x[test], test_y=data.test_y[test],
    )  # fmt: skip
    return NodeData.of(part)


def walk() -> tuple[Walk, SkillData]:
    data = blobs(300, seed=3)
    trusted = {data.skill: (data.test_x, data.test_y)}
    return Walk(header_for(MLP), initial_payload(MLP, 0, trusted)), data


def test_the_method_keeps_the_protocol() -> None:
    check_method(ExchangeMethod(lr=0.1))
    check_method(ExchangeMethod(lr=0.1, small=SMALL, forget=1.0))


def test_a_model_learns_classes_from_a_node_that_cannot_hold_it() -> None:
    """Class 2 lies at a small node alone: the packet's model learns it by the small one's word."""
    accuracy = {}
    for share in (0.0, 0.5):
        packet, data = walk()
        method = ExchangeMethod(epochs=8, lr=0.1, share=share, small=SMALL)
        for _ in range(3):
            before = packet.payload.manifest.version("model.")
            packet.visit(method, NodeData.of(data), NodeId("small"), compute=TINY)
            assert packet.payload.manifest.version("model.") == before
            packet.visit(method, only(data, 0, 1), NodeId("large"))
        found = {e.skill: e.value for e in packet.header.skills if e.source == "reference"}
        accuracy[share] = found[data.skill]
    assert accuracy[0.0] < 0.75
    assert accuracy[0.5] > 0.9


def test_what_was_said_is_a_mean_of_probabilities_in_which_older_answers_fade() -> None:
    packet, data = walk()
    method = ExchangeMethod(lr=0.05, forget=0.5)
    for _ in range(3):
        packet.visit(method, NodeData.of(data))
    state = packet.payload.arrays("state.")
    said = state[SAID + data.skill]
    assert said.shape == (len(data.test_y), CLASSES)
    assert np.allclose(said.sum(1), 1, atol=1e-5)
    assert state[VOICES + data.skill][0] == pytest.approx(1 + 0.5 + 0.25)


def test_without_shared_rows_or_with_strange_words_it_refuses() -> None:
    data = blobs(60)
    bare = Walk(header_for(MLP), initial_payload(MLP, 0))
    with pytest.raises(ModelError, match="no reference set"):
        bare.visit(ExchangeMethod(), NodeData.of(data))


@pytest.mark.parametrize(
    "params",
    [
        {"share": 1.5},
        {"temperature": 0},
        {"forget": 0},
        {"shared_rows": 0},
        {"small": {"hidden": 3}},
        {"carry_momentum": 8, "momentum": 0.9},
    ],
)
def test_options_out_of_range_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"share|forget|name|carry_momentum"):
        ExchangeMethod(**params)  # type: ignore[arg-type]
