"""Node data: splits, draws, adverts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.errors import DataError
from aats.ids import NodeId
from aats.roles.data import NodeData, SkillData, schema_digest, split


def digits(rows: int = 50, classes: int = 5) -> SkillData:
    y = np.arange(rows) % classes
    return SkillData.of("digits", np.arange(rows * 3.0).reshape(rows, 3), y, seed=1)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 9))
def test_split_keeps_every_row_once_and_every_class_in_training(
    labels: list[int], share: float, seed: int
) -> None:
    y = np.array(labels, np.int64)
    train, test = split(y, share, seed)
    assert sorted([*train, *test]) == list(range(len(y)))
    assert set(y[train]) == set(labels)


def test_split_is_the_same_for_one_seed() -> None:
    y = np.arange(40) % 4
    assert np.array_equal(split(y, 0.25, 3)[1], split(y, 0.25, 3)[1])
    assert not np.array_equal(split(y, 0.25, 3)[1], split(y, 0.25, 4)[1])


def test_adverts_show_what_the_policy_allows() -> None:
    (advert,) = NodeData.of(digits()).adverts(NodeId("c1"))
    assert (advert.samples, advert.labels, advert.delegate) == (40, (8,) * 5, "c1")
    assert NodeData.of(digits(), show_labels=False).adverts()[0].labels == ()


def test_minibatch_is_drawn_by_seed_from_the_training_part() -> None:
    data = digits()
    x, y = data.minibatch(8, seed=5)
    assert x.shape == (8, 3)
    assert y.shape == (8,)
    assert np.array_equal(x, data.minibatch(8, seed=5)[0])
    assert {r.tobytes() for r in x} <= {r.tobytes() for r in data.train_x}


def test_held_out_draw_is_even_over_the_classes() -> None:
    _, y = digits().held_out(5, seed=0)
    assert sorted(y.tolist()) == [0, 1, 2, 3, 4]


def test_tokens_stay_integers_and_features_become_float32() -> None:
    assert SkillData.of("t", np.ones((4, 2), np.int32), [0, 1, 0, 1]).train_x.dtype == np.int64
    assert SkillData.of("f", np.ones((4, 2)), [0, 1, 0, 1]).train_x.dtype == np.float32


def test_what_does_not_fit_is_refused_with_its_place() -> None:
    with pytest.raises(DataError, match=r"skill 'a', train part: labels 0-3, allowed are 0-1"):
        SkillData.of("a", np.ones((8, 2)), np.arange(8) % 4, num_classes=2)
    with pytest.raises(DataError, match="NaN"):
        SkillData.of("a", np.full((4, 2), np.nan), [0, 1, 0, 1])


def test_schema_tells_names_and_types_apart() -> None:
    assert schema_digest(["age:f32", "sex:f32"]) != schema_digest(["sex:f32", "age:f32"])


def test_data_need_no_torch() -> None:
    code = "import sys, aats.roles.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
