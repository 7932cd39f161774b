"""The test set of a verification unit: order-free, deduplicated, poison left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.sequential import SequentialMethod
from aats.learning.weights import initial_payload
from aats.node.tasks import VerifyTask
from aats.packet import EstimateSource, Target
from aats.payload import MODEL
from aats.roles.data import NodeData, SkillData
from aats.roles.mpvu import TestSet, verify
from aats.roles.samples import held_out_part
from aats.testing.methods import MLP, SKILL, Walk, blobs, header_for

MPVU = NodeId("mpvu")


def share(seed: int, wrong: float = 0.0, rows: int = 20) -> NodeData:
    return NodeData.of(held_out_part(blobs(150, seed, wrong=wrong), rows, 0))


def test_set(shares: dict[str, NodeData]) -> TestSet:
    found = TestSet()
    for giver, data in shares.items():
        assert found.adopt(NodeId(giver), data) == ""
    return found


test_set.__test__ = False  # type: ignore[attr-defined]


def test_the_version_does_not_depend_on_the_order_of_arrival() -> None:
    shares = {f"n{i}": share(i) for i in range(4)}
    one, two = test_set(shares), test_set(dict(reversed(shares.items())))
    assert one.version == two.version
    assert len(one.sets[SKILL][1]) == 80
    two.adopt(NodeId("n0"), share(9))
    assert one.version != two.version


def test_a_row_counts_once() -> None:
    assert len(test_set({"a": share(1), "b": share(1)}).sets[SKILL][1]) == 20


@pytest.mark.parametrize("poisoned", [1, 2])
def test_a_poisoned_contributor_is_left_out_and_named(poisoned: int) -> None:
    shares = {f"n{i}": share(i, 0.9 if i < poisoned else 0.0) for i in range(6)}
    found = test_set(shares)
    assert set(found.excluded) == {NodeId(f"n{i}") for i in range(poisoned)}
    assert "labels agree" in found.excluded[NodeId("n0")]
    assert len(found.sets[SKILL][1]) == 20 * (6 - poisoned)


@pytest.mark.parametrize("seed", range(10))
def test_honest_contributors_stay_however_uneven_their_classes(seed: int) -> None:
    def part(i: int) -> NodeData:
        data = blobs(300, 10 * seed + i)
        keep = np.isin(data.test_y, [i % 3, (i + 1) % 3])
        uneven = replace(data, test_x=data.test_x[keep], test_y=data.test_y[keep])
        return NodeData.of(held_out_part(uneven, 16, 0))

    assert not test_set({f"n{i}": part(i) for i in range(5)}).excluded


def test_two_contributors_cannot_outvote_each_other() -> None:
    assert not test_set({"a": share(1), "b": share(2, 1.0)}).excluded


def test_a_verdict_has_intervals_and_no_samples() -> None:
    packet = Walk(header_for(), initial_payload(MLP, 0))
    packet.visit(SequentialMethod(lr=0.1, epochs=5), NodeData.of(blobs(120)))
    found = test_set({f"n{i}": share(i) for i in range(4)})
    task = VerifyTask(packet.header)
    result = verify(task, packet.payload, found, node=MPVU)
    (estimate,) = result.estimates
    assert estimate.low < estimate.value <= estimate.high
    assert (estimate.n, estimate.by, estimate.source) == (80, MPVU, EstimateSource.MPVU)
    assert estimate.version == packet.payload.manifest.version(MODEL)
    assert estimate.signature == b""
    assert result.test_set == found.version
    assert result == verify(task, packet.payload, found, node=MPVU)


def test_a_verdict_on_the_poison_would_have_been_another() -> None:
    packet = Walk(header_for(), initial_payload(MLP, 0))
    packet.visit(SequentialMethod(lr=0.1, epochs=5), NodeData.of(blobs(120)))
    honest = test_set({f"n{i}": share(i) for i in range(1, 5)})
    poisoned = test_set({f"n{i}": share(i, 0.0 if i else 0.9) for i in range(5)})
    values = [
        verify(VerifyTask(packet.header), packet.payload, s, node=MPVU).estimates[0].value
        for s in (honest, poisoned)
    ]
    assert values[0] == values[1]


def test_a_skill_the_unit_cannot_measure_is_named() -> None:
    packet = Walk(header_for(requirement=[Target("heart", 0.8)]), initial_payload(MLP, 0))
    with pytest.raises(ModelError, match="the test set has blobs, wanted is heart"):
        verify(VerifyTask(packet.header), packet.payload, test_set({"a": share(1)}), node=MPVU)


def test_rows_of_another_shape_are_left_out() -> None:
    odd = NodeData.of(SkillData.of(SKILL, np.ones((40, 3)), np.arange(40) % 3))
    found = test_set({"a": share(1), "b": odd})
    assert found.excluded == {NodeId("b"): "blobs: rows of shape [3] float32"}


def test_a_contribution_without_held_out_rows_says_so() -> None:
    data = blobs(30)
    empty = replace(data, test_x=data.test_x[:0], test_y=data.test_y[:0])
    assert TestSet().adopt(NodeId("a"), NodeData.of(empty)) == "no rows held out"


# --- a contributor that means harm ------------------------------------------------------------


def hostile(**changes: object) -> NodeData:
    (skill,) = share(99).skills.values()
    return NodeData.of(replace(skill, **changes))  # type: ignore[arg-type]


def test_one_odd_contributor_does_not_shut_out_the_others() -> None:
    x = np.zeros((4, 3), np.float32)
    odd = hostile(test_x=x, test_y=np.zeros(4, np.int64))
    tokens = hostile(test_x=share(99).skills[SKILL].test_x.astype(np.int64))
    found = test_set({"a": odd, "b": tokens, "c": share(1), "d": share(2), "e": share(3)})
    assert set(found.excluded) == {NodeId("a"), NodeId("b")}
    assert len(found.sets[SKILL][1]) == 60


def test_no_contributor_makes_up_the_test_set_or_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aats.roles.mpvu.ROWS_KEPT", 10)
    monkeypatch.setattr("aats.roles.mpvu.ROWS_JUDGED", 24)
    found = test_set({f"n{i}": share(i) for i in range(3)})
    assert len(found.sets[SKILL][1]) == 30


def test_labels_of_no_class_cost_nothing_and_are_not_measured_on() -> None:
    many = share(9).skills[SKILL]
    far = hostile(num_classes=1 << 20, test_y=np.full(len(many.test_y), (1 << 20) - 1))
    found = test_set({"a": far, **{f"n{i}": share(i) for i in range(3)}})
    packet = Walk(header_for(), initial_payload(MLP, 0))
    result = verify(VerifyTask(packet.header), packet.payload, found, node=MPVU)
    assert result.estimates[0].n == 60
