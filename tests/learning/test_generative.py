"""Statistics that add up, and the last layer that follows from them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from aats.errors import ModelError, ScenarioError
from aats.ids import NodeId
from aats.learning.generative import PREFIX, GenerativeMethod, Moments
from aats.learning.method import Guard, method_of
from aats.learning.weights import initial_payload
from aats.packet import Architecture, EstimateSource, Plugin
from aats.payload import MODEL, STATE
from aats.roles.data import NodeData, SkillData
from aats.testing import check_method
from aats.testing.methods import (
    CLASSES,
    FEATURES,
    MLP,
    SKILL,
    Walk,
    blobs,
    header_for,
    reference_for,
)

OPEN = Guard(1.0, float("inf"))
LINEAR = Architecture("logistic", {"features": FEATURES, "classes": CLASSES})


def of_class(label: int) -> NodeData:
    whole = blobs(300)
    train, test = whole.train_y == label, whole.test_y == label
    return NodeData.of(SkillData(
        SKILL, whole.train_x[train], whole.train_y[train], whole.test_x[test],
        whole.test_y[test], CLASSES, whole.schema,
    ))  # fmt: skip


def walk(architecture: Architecture = MLP) -> Walk:
    reference = reference_for(blobs(90, 9))
    return Walk(header_for(architecture), initial_payload(architecture, 0, reference))


def trusted(packet: Walk) -> float:
    assert packet.result is not None
    found = [e for e in packet.result.estimates if e.source is EstimateSource.REFERENCE]
    return found[0].value


@pytest.mark.parametrize(
    "method",
    [
        GenerativeMethod(), GenerativeMethod(head="trained"), GenerativeMethod(encoder_visits=1),
        GenerativeMethod(head="trained", encoder_visits=2, share=0.0),
    ],
)  # fmt: skip
def test_it_conforms(method: GenerativeMethod) -> None:
    check_method(method, takes_measures=False)


def test_the_head_is_fishers_discriminant() -> None:
    data = blobs(300)
    moments = Moments.of(data.train_x, data.train_y, CLASSES, 2)
    weight, bias = moments.head(1e-12)
    fisher = LinearDiscriminantAnalysis(solver="lsqr").fit(
        data.train_x.astype(np.float64), data.train_y
    )
    logits = data.test_x @ weight.T + bias
    wanted = fisher.predict_log_proba(data.test_x)
    found = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    # It divides by n, not by n - classes.
    np.testing.assert_allclose(found.argmax(1), wanted.argmax(1))
    np.testing.assert_allclose(found, wanted, rtol=0.1, atol=0.5)


def test_one_class_a_node_in_any_order_is_as_good_as_all_at_once() -> None:
    """What plain training forgets: see `test_measures`."""
    heads = []
    for order in ((0, 1, 2), (2, 0, 1)):
        packet = walk(LINEAR)
        for label in order:
            packet.visit(GenerativeMethod(), of_class(label), NodeId(f"n{label}"), OPEN)
        heads.append(np.array(packet.payload.arrays(MODEL)[f"{MODEL}1.weight"]))
        assert trusted(packet) > 0.9
    whole = walk(LINEAR)
    whole.visit(GenerativeMethod(), NodeData.of(blobs(300)), NodeId("all"), OPEN)
    for head in heads:
        np.testing.assert_allclose(
            head, whole.payload.arrays(MODEL)[f"{MODEL}1.weight"], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("visits", [0, 1])
def test_a_trained_head_remembers_earlier_classes(visits: int) -> None:
    packet = walk()
    method = GenerativeMethod(head="trained", epochs=10, lr=0.1, encoder_visits=visits)
    for label in range(3):
        packet.visit(method, of_class(label), NodeId(f"n{label}"), OPEN)
    assert trusted(packet) > 0.85


def test_a_class_nobody_had_is_hardly_said() -> None:
    data = blobs(300)
    kept = data.train_y > 0
    moments = Moments.of(data.train_x[kept], data.train_y[kept], CLASSES, 2)
    weight, bias = moments.head(0.1)
    said = (data.train_x[kept] @ weight.T + bias).argmax(1)
    assert (said == 0).mean() < 0.05
    assert (said == data.train_y[kept]).mean() > 0.9


def test_a_rare_class_does_not_leave() -> None:
    rare = walk()
    before = np.array(rare.payload.arrays(MODEL)[f"{MODEL}3.weight"])
    rare.visit(GenerativeMethod(minimum=1000), of_class(1), NodeId("a"), OPEN)
    for part in ("count", "total", "outer"):
        assert not rare.payload.arrays(STATE)[f"{PREFIX}{part}.{SKILL}"].any()
    np.testing.assert_array_equal(rare.payload.arrays(MODEL)[f"{MODEL}3.weight"], before)


def test_two_classes_with_one_output_get_log_odds() -> None:
    data = NodeData.of(blobs(200, classes=2))
    architecture = Architecture("logistic", {"features": FEATURES, "classes": 2})
    packet = Walk(
        header_for(architecture),
        initial_payload(architecture, 0, reference_for(blobs(60, 9, classes=2))),
    )
    packet.visit(GenerativeMethod(), data, NodeId("a"), OPEN)
    assert trusted(packet) > 0.9
    check_method(GenerativeMethod(), architecture, data, takes_measures=False)


def test_copies_add_up_and_rows_before_the_fork_count_once() -> None:
    method = GenerativeMethod()
    trunk = walk()
    trunk.visit(method, of_class(0), NodeId("a"), OPEN)
    states = []
    for label in (1, 2):
        copy = Walk(trunk.header, trunk.payload)
        copy.visit(method, of_class(label), NodeId(f"n{label}"), OPEN)
        states.append(copy.payload.arrays(STATE))
    merged = method.merge_state(trunk.payload.arrays(STATE), states)
    chain = Walk(trunk.header, trunk.payload)
    for label in (1, 2):
        chain.visit(method, of_class(label), NodeId(f"n{label}"), OPEN)
    wanted = chain.payload.arrays(STATE)
    assert set(merged) == set(wanted)
    for name, array in merged.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("count", np.array([1.0, -1, 1])),
        ("total", np.zeros((2, 2))),
        ("outer", np.full((16, 16), np.inf)),
    ],
)
def test_statistics_that_do_not_fit_are_refused(part: str, value: np.ndarray) -> None:
    state = Moments(np.ones(3), np.ones((3, 16)), np.eye(16)).arrays(SKILL)
    assert Moments.read(state, SKILL, 3, 16).count.tolist() == [1, 1, 1]
    with pytest.raises(ModelError, match=part):
        Moments.read({**state, f"{PREFIX}{part}.{SKILL}": value}, SKILL, 3, 16)


@pytest.mark.parametrize(
    "params", [{"head": "open"}, {"ridge": 0}, {"minimum": 1}, {"share": 1.0}, {"lr": -1}]
)
def test_nonsense_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(ScenarioError, match="generative"):
        method_of(Plugin("generative", params))
