"""Views of the same samples: put in line by ids, whatever order and gaps they have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.errors import DataError
from aats.ids import NodeId
from aats.node.shard import load_data, save_data
from aats.roles.data import NO_LABEL, NodeData, SkillData
from aats.roles.mpvu import TestSet
from aats.roles.samples import held_out_part, pack_samples, training_part, unpack_samples
from aats.roles.views import ABSENT, flat, joined, rows_of, stacked


def part(view: str, ids: list[int], classes: int = 3, width: int = 2) -> SkillData:
    """Return a view whose features are its samples' ids, and whose label is the id mod 3."""
    at = np.array(ids, np.int64)
    x = np.repeat(at[:, None], width, 1).astype(np.float32)
    y = at % 3 if classes else np.full(len(at), NO_LABEL)
    return SkillData("s", x, y, x, y, classes, "z", view=view, ids=at, test_ids=at)


@given(st.lists(st.integers(-50, 50), unique=True), st.lists(st.integers(-50, 50)))
def test_rows_are_found_by_id(ids: list[int], wanted: list[int]) -> None:
    at = rows_of(np.array(ids, np.int64), np.array(wanted, np.int64))
    assert at.tolist() == [ids.index(i) if i in ids else ABSENT for i in wanted]


@given(st.permutations(range(12)), st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_views_are_joined_by_id_not_by_place(
    left: list[int], right: list[int], missing: set[int]
) -> None:
    there = [i for i in right if i not in missing]
    x, y, ids = joined([part("right", there, classes=0), part("left", left, width=1)])
    assert ids.tolist() == sorted(there)
    assert x.tolist() == [[i, i, i] for i in sorted(there)]
    assert y.tolist() == [i % 3 for i in sorted(there)]


def test_a_sample_on_whose_label_two_disagree_is_left_out() -> None:
    odd = part("b", [0, 1, 2])
    odd = replace(odd, test_y=(odd.test_y + np.array([0, 1, 0])) % 3)
    assert joined([part("a", [0, 1, 2]), odd])[2].tolist() == [0, 2]
    assert not len(joined([part("a", [0, 1], classes=0), part("b", [0, 1], classes=0)])[1])


def test_a_second_giver_of_a_view_fills_gaps_if_its_rows_are_like_the_first_ones() -> None:
    given_parts = [part("a", [0, 1]), part("a", [1, 2]), part("a", [3], width=5), part("b", [2, 3])]
    assert joined(given_parts)[2].tolist() == [2]


def test_views_are_stacked_by_name_and_may_be_empty() -> None:
    x = stacked({"b": np.ones((2, 1, 2), np.float32), "a": np.zeros((2, 1), np.float32),
                 "labels": np.zeros((2, 0), np.float32)})  # fmt: skip
    assert x.tolist() == [[0, 1, 1]] * 2
    assert flat(np.zeros((0, 3, 4), np.float32)).shape == (0, 12)


def test_a_verifier_puts_the_views_it_is_given_together() -> None:
    found = TestSet()
    for giver, data in (("one", part("a", [*range(30)], 0)), ("two", part("b", [*range(10, 40)]))):
        found.adopt(NodeId(giver), NodeData.of(data))
    x, y = found.sets["s"]
    assert x.shape == (20, 4)
    assert y.tolist() == [i % 3 for i in range(10, 30)]


def test_what_nodes_give_of_views_is_of_the_same_samples() -> None:
    left, right = part("a", [*range(40)]), part("b", [*reversed(range(40))], 0)
    given_ids = [held_out_part(p, 10, seed).test_ids for seed, p in enumerate((left, right))]
    assert given_ids[0] is not None
    assert given_ids[0].tolist() == given_ids[1].tolist()  # type: ignore[union-attr]


def test_ids_travel_and_are_stored_with_a_view(tmp_path: Path) -> None:
    empty = replace(part("none", [3, 1]), train_x=np.zeros((2, 0), np.float32))
    for data in (part("a", [4, 2, 9], classes=0), empty):
        manifest, tensors = pack_samples(NodeData.of(data))
        travelled = unpack_samples(manifest, tensors, limit_bytes=1 << 20).skills["s"]
        save_data(tmp_path / "d", NodeData.of(data))
        for copy in (travelled, load_data(tmp_path / "d").skills["s"]):
            assert copy.view == data.view
            assert copy.train_x.shape == data.train_x.shape
            assert copy.row_ids.tolist() == data.row_ids.tolist()
            assert copy.held_out_ids.tolist() == data.held_out_ids.tolist()
    assert training_part(data, 1, 0).samples == 1


def test_only_a_view_may_be_without_labels() -> None:
    x, y = np.zeros((2, 1), np.float32), np.array([NO_LABEL, NO_LABEL])
    bare = SkillData("s", x, y, x, y, 0, "z", view="a")
    assert bare.histogram == ()
    assert NodeData.of(bare).adverts()[0].view == "a"
    with pytest.raises(DataError, match="only a view"):
        replace(bare, view="")
    with pytest.raises(DataError, match="labels 0-1, allowed are -1--1"):
        replace(bare, train_y=np.array([0, 1]))
    with pytest.raises(DataError, match="an id of its own"):
        replace(bare, ids=np.array([7, 7]))
