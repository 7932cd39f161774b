"""One data set seen by several nodes."""

from __future__ import annotations

import numpy as np
import pytest

from aats.errors import DataError
from aats.learning.datasets import digits
from aats.learning.partition import Part
from aats.learning.views import View, seen, spread_seen
from aats.packet import Plugin
from aats.roles.views import ABSENT, flat, joined, rows_of

VIEWS = {
    "clinic": View("left", Plugin("occlude", {"side": "left"}), labels=False),
    "lab": View("noisy", Plugin("noise", {"sd": 0.5}), labels=False, missing=0.2),
    "home": View("labels", Plugin("nothing")),
}


def test_all_nodes_see_the_same_samples_and_hold_out_the_same_ones() -> None:
    data = digits()
    found = spread_seen("digits", data, VIEWS, seed=1)
    left, noisy, labels = (found.nodes[n] for n in VIEWS)
    assert np.array_equal(left.row_ids, labels.row_ids)
    assert set(noisy.row_ids) < set(left.row_ids)
    assert set(noisy.held_out_ids) < set(left.held_out_ids)
    assert not set(left.row_ids) & set(left.held_out_ids)
    assert 0.1 < 1 - noisy.samples / left.samples < 0.3
    assert np.array_equal(data.y[labels.row_ids], labels.train_y)
    assert (left.num_classes, labels.num_classes) == (0, 10)
    assert (left.train_x.reshape(-1, 8, 8)[:, :, :4] == 0).all()
    assert np.array_equal(left.train_x.reshape(-1, 8, 8)[:, :, 4:],
                          data.x[left.row_ids].reshape(-1, 8, 8)[:, :, 4:])  # fmt: skip
    rows = rows_of(noisy.row_ids, left.row_ids)
    off = noisy.train_x[rows[rows != ABSENT]] - data.x[noisy.row_ids]
    assert np.std(off) == pytest.approx(0.5, abs=0.02)


def test_the_reference_and_the_test_set_are_stacked_like_what_a_verifier_joins() -> None:
    found = spread_seen("digits", digits(), VIEWS, seed=1)
    x, y, ids = joined([*found.nodes.values()])
    assert x.shape[1] == found.reference[0].shape[1] == found.test[0].shape[1] == 128
    assert np.array_equal(y, digits().y[ids])
    left, noisy = found.nodes["clinic"], found.nodes["lab"]
    assert np.array_equal(x[:, :64], flat(left.test_x)[rows_of(left.held_out_ids, ids)])
    assert np.array_equal(x[:, 64:], flat(noisy.test_x)[rows_of(noisy.held_out_ids, ids)])


def test_one_seed_one_deal_and_a_node_can_be_wrong_by_itself() -> None:
    one, two = (spread_seen("digits", digits(), VIEWS, seed=3) for _ in range(2))
    assert np.array_equal(one.nodes["lab"].train_x, two.nodes["lab"].train_x)
    bad = spread_seen("digits", digits(), VIEWS, [Part("home", wrong_labels=0.5)], seed=3)
    assert 0.4 < (bad.nodes["home"].train_y != one.nodes["home"].train_y).mean() < 0.6
    assert np.array_equal(bad.nodes["lab"].train_x, one.nodes["lab"].train_x)


@pytest.mark.parametrize(
    ("transform", "params", "shape"),
    [
        ("identity", {}, (64,)),
        ("crop", {"left": 4}, (32,)),
        ("crop", {"top": 2, "height": 3, "width": 5}, (15,)),
        ("columns", {"first": 10, "last": 19}, (10,)),
        ("nothing", {}, (0,)),
        ("occlude", {"side": "bottom", "share": 0.25}, (64,)),
    ],
)
def test_transforms(transform: str, params: dict[str, object], shape: tuple[int, ...]) -> None:
    x = digits().x[:5]
    assert seen(x, View("v", Plugin(transform, params)), 0).shape == (5, *shape)


def test_images_keep_their_channels() -> None:
    x = np.ones((2, 3, 6, 8), np.float32)
    assert seen(x, View("v", Plugin("crop", {"left": 5})), 0).shape == (2, 3, 6, 3)
    dark = seen(x, View("v", Plugin("occlude", {"side": "right"})), 0)
    assert dark[..., :4].all()
    assert not dark[..., 4:].any()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Plugin("blur"), "transform 'blur'; allowed are identity"),
        (Plugin("noise", {"sdd": 1}), "parameter 'sdd' of 'noise'; allowed are sd"),
        (Plugin("noise", {"sd": -1.0}), "sd -1.0"),
        (Plugin("occlude", {"side": "up"}), "side 'up'"),
        (Plugin("crop", {"left": 8}), "images are 8 x 8"),
        (Plugin("columns", {"last": 64}), "allowed are 0-63"),
    ],
)
def test_a_wrong_view_is_refused_with_what_is_allowed(transform: Plugin, message: str) -> None:
    with pytest.raises(DataError, match=message):
        seen(digits().x[:5], View("v", transform), 0)


def test_contradictions_are_refused() -> None:
    same = {"a": View("v"), "b": View("v")}
    with pytest.raises(DataError, match="two nodes have one view"):
        spread_seen("digits", digits(), same)
    with pytest.raises(DataError, match="has labels"):
        spread_seen("digits", digits(), {"a": View("v", labels=False)})
    with pytest.raises(DataError, match="drop samples"):
        spread_seen("digits", digits(), {"a": View("v")}, [Part("a", samples=3)])
    with pytest.raises(DataError, match="no square images"):
        seen(np.ones((2, 7), np.float32), View("v", Plugin("occlude")), 0)
