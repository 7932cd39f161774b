import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.errors import DataError
from aats.learning.datasets import Dataset, load_dataset
from aats.learning.partition import (
    PARTITIONERS,
    Part,
    deal,
    drifted,
    mislabelled,
    node_skill,
    spread,
    stratified_rows,
)
from aats.packet import Plugin


def parts(n: int) -> list[Part]:
    return [Part(f"n{i}") for i in range(n)]


def grouped() -> Dataset:
    data = load_dataset("synthetic", samples=60, classes=3)
    return Dataset(
        data.name, data.x, data.y, data.features, data.classes, ("north", "south"),
        np.arange(60) // 30,
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    scheme=st.sampled_from(sorted(PARTITIONERS)),
    nodes=st.integers(1, 12),
    samples=st.integers(60, 200),
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**32),
)
def test_every_row_goes_to_one_node_at_most(
    scheme: str, nodes: int, samples: int, classes: int, seed: int
) -> None:
    data = load_dataset("synthetic", samples=samples, classes=classes, seed=seed)
    dealt = deal(data, parts(nodes), scheme=scheme, seed=seed)
    rows = np.concatenate(list(dealt.values()))
    assert len(set(rows.tolist())) == len(rows) <= samples
    assert all(len(mine) for mine in dealt.values())
    again = deal(data, parts(nodes), scheme=scheme, seed=seed)
    assert all(np.array_equal(dealt[node], again[node]) for node in dealt)


def test_another_seed_is_another_deal() -> None:
    data = load_dataset("synthetic")
    a, b = (deal(data, parts(4), seed=seed) for seed in (0, 1))
    assert not np.array_equal(a["n0"], b["n0"])


def test_explicit_sizes_are_kept_and_the_rest_goes_by_share() -> None:
    data = load_dataset("synthetic", samples=100)
    wanted = [Part("a", samples=10), Part("b", share=2.0), Part("c", share=1.0)]
    for scheme in ("iid", "dirichlet"):
        dealt = deal(data, wanted, scheme=scheme, seed=5)
        assert [len(dealt[node]) for node in "abc"] == [10, 60, 30]


def test_a_small_alpha_is_more_uneven_than_a_large_one() -> None:
    data = load_dataset("synthetic", samples=2000, classes=4)

    def unevenness(alpha: float) -> float:
        dealt = deal(data, parts(10), scheme="dirichlet", alpha=alpha, seed=2)
        mixes = [np.bincount(data.y[rows], minlength=4) / len(rows) for rows in dealt.values()]
        return float(np.mean([mix.max() for mix in mixes]))

    assert unevenness(0.1) > 0.6 > 0.35 > unevenness(100.0)


@pytest.mark.parametrize("classes_per_node", [1, 2, 3])
def test_shards_give_each_node_exactly_so_many_classes(classes_per_node: int) -> None:
    data = load_dataset("synthetic", samples=500, classes=5)
    dealt = deal(data, parts(15), scheme="shards", classes_per_node=classes_per_node, seed=1)
    assert all(len(set(data.y[rows].tolist())) == classes_per_node for rows in dealt.values())
    assert sum(map(len, dealt.values())) == 500


@settings(deadline=None, max_examples=60)
@given(
    clients=st.integers(1, 30),
    classes=st.integers(2, 6),
    share=st.data(),
    alpha=st.floats(0.05, 100.0),
    seed=st.integers(0, 2**32),
)
def test_extended_dirichlet_deals_out_every_row_of_the_classes_somebody_has(
    clients: int, classes: int, share: st.DataObject, alpha: float, seed: int
) -> None:
    """ExDir(C, alpha): exactly C classes a client, each class split whole over its owners."""
    wanted = share.draw(st.integers(1, classes))
    data = load_dataset("synthetic", samples=600, classes=classes)
    dealt = deal(
        data, parts(clients), scheme="shards", classes_per_node=wanted, alpha=alpha, seed=seed
    )
    mine = {node: np.unique(data.y[rows]) for node, rows in dealt.items()}
    assert all(len(held) == wanted for held in mine.values())
    owned = np.unique(np.concatenate(list(mine.values())))
    assert len(owned) == min(classes, clients * wanted)
    assert sum(map(len, dealt.values())) == np.isin(data.y, owned).sum()
    owners = np.bincount(np.concatenate(list(mine.values())), minlength=classes)
    assert owners.max() - owners.min() <= 1  # no class has many more owners than another


def test_extended_dirichlet_splits_a_class_evenly_or_not_by_alpha() -> None:
    data = load_dataset("synthetic", samples=4000, classes=2)

    def spread_of(alpha: float) -> float:
        dealt = deal(data, parts(20), scheme="shards", alpha=alpha, seed=3)
        sizes = np.array([len(rows) for rows in dealt.values()])
        return float(sizes.std() / sizes.mean())

    assert spread_of(1000.0) < 0.15 < 0.25 < spread_of(10.0) < 0.5 < 0.7 < spread_of(0.5)


def test_a_part_gets_the_case_mix_it_names() -> None:
    data = load_dataset("synthetic", samples=300, classes=3)
    wanted = [Part("a", samples=50, mix=(3, 1, 1)), *parts(3)]
    dealt = deal(data, wanted, seed=4)
    assert np.bincount(data.y[dealt["a"]]).tolist() == [30, 10, 10]


def test_a_group_goes_whole_to_its_node_and_to_nobody_else() -> None:
    data = grouped()
    dealt = deal(data, [Part("a", group="south"), Part("b"), Part("c")], seed=1)
    assert dealt["a"].tolist() == list(range(30, 60))
    assert {len(dealt["b"]), len(dealt["c"])} == {15}
    assert max(dealt["b"].max(), dealt["c"].max()) < 30


def test_some_of_a_group_may_be_asked_for() -> None:
    dealt = deal(grouped(), [Part("a", group="north", samples=7)])
    assert len(dealt["a"]) == 7


@pytest.mark.parametrize(
    ("wanted", "scheme", "words"),
    [
        ([Part("a", samples=61)], "iid", "60 rows, but the parts want 61: a 61"),
        ([Part("a", samples=60), Part("b")], "iid", "no row for b"),
        (
            [Part("a", samples=30, mix=(1, 0, 0))],
            "iid",
            "a wants 30 rows of 'class 0', 20 are left",
        ),
        ([Part("a", mix=(1, 1))], "iid", "mix of 2 for 3 classes"),
        ([Part("a"), Part("a")], "iid", "two parts"),
        ([Part("a", group="soth")], "iid", "did you mean 'south'"),
        ([Part("a", group="south"), Part("b", group="south")], "iid", "two parts want one group"),
        ([Part("a", group="south", samples=31)], "iid", "wants 31 rows of 'south', 30 are there"),
        ([Part("a", group="south", mix=(1, 1, 1))], "iid", "its own mix"),
        ([Part("a", samples=3)], "shards", "shards sizes its own parts"),
        (parts(70), "shards", "nodes"),
        ([Part("a")], "dirichet", "did you mean 'dirichlet'"),
    ],
)
def test_an_impossible_deal_says_why(wanted: list[Part], scheme: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        deal(grouped(), wanted, scheme=scheme)


def test_parameters_of_a_scheme_are_checked() -> None:
    with pytest.raises(DataError, match="did you mean 'alpha'"):
        deal(grouped(), parts(2), scheme="dirichlet", alhpa=1.0)
    with pytest.raises(DataError, match="alpha 0; must be above 0"):
        deal(grouped(), parts(2), scheme="dirichlet", alpha=0)
    with pytest.raises(DataError, match="classes_per_node 4; allowed are 1-3"):
        deal(grouped(), parts(2), scheme="shards", classes_per_node=4)


@pytest.mark.parametrize(
    "bad",
    [{"samples": -1}, {"wrong_labels": 1.1}, {"quality": -0.1}, {"drift": -1.0}, {"mix": (0, 0)}],
)
def test_a_part_out_of_range_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(DataError, match="a: "):
        Part("a", **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [2, 5])
def test_mislabelling_changes_exactly_the_share_asked_for(classes: int) -> None:
    y = np.arange(90, dtype=np.int64) % classes
    wrong = mislabelled(y, 1 / 3, classes, np.random.default_rng(0))
    assert (wrong != y).sum() == 30
    assert 0 <= wrong.min() <= wrong.max() < classes


def test_drift_moves_all_rows_by_one_offset() -> None:
    x = np.zeros((5, 4), dtype=np.float32)
    moved = drifted(x, 0.5, np.random.default_rng(1))
    assert moved.dtype == np.float32
    assert (moved == moved[0]).all()
    assert np.abs(moved[0]).max() > 0
    np.testing.assert_array_equal(drifted(x, 0.0, np.random.default_rng(1)), x)


def test_a_nodes_corruption_is_its_own() -> None:
    data = load_dataset("synthetic", samples=100)
    bad = Part("b", wrong_labels=0.3, drift=1.0, freshness_s=60.0, quality=0.9)
    rows = np.arange(50)
    a, b = (node_skill("s", data, rows, bad, seed=7) for _ in range(2))
    np.testing.assert_array_equal(a.train_y, b.train_y)
    np.testing.assert_array_equal(a.test_x, b.test_x)
    assert (a.quality, a.freshness_s) == (0.9, 60.0)
    other = node_skill("s", data, rows, Part("c", wrong_labels=0.3), seed=7)
    assert not np.array_equal(a.train_y, other.train_y)


def test_reference_rows_have_the_class_mix_of_the_whole() -> None:
    y = np.array([0] * 90 + [1] * 10)
    assert np.bincount(y[stratified_rows(y, 20, 0)]).tolist() == [18, 2]
    assert len(stratified_rows(y, 0, 0)) == 0
    with pytest.raises(DataError, match="101 rows wanted, 100 are there"):
        stratified_rows(y, 101, 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_spread_keeps_test_reference_and_nodes_apart(seed: int) -> None:
    source = Plugin("synthetic", {"samples": 200, "seed": 9})
    out = spread("s", source, Plugin("iid"), parts(4), reference=20, test=0.25, seed=seed)
    rows = [out.reference[0], out.test[0]]
    for data in out.nodes.values():
        rows += [data.train_x, data.test_x]
    everything = np.concatenate(rows)
    assert len(out.reference[1]) == 20
    assert len(out.test[1]) == 50
    assert len(np.unique(everything, axis=0)) == len(everything) <= 200
    assert {data.schema for data in out.nodes.values()} == {out.schema}


def test_spread_refuses_a_reference_larger_than_the_data() -> None:
    source = Plugin("synthetic", {"samples": 50})
    with pytest.raises(DataError, match="reference 64, but 40 rows are there"):
        spread("s", source, Plugin("iid"), parts(2))
