import os
from pathlib import Path

import numpy as np
import pytest

from aats.errors import DataError, UnknownPluginError
from aats.learning.datasets import SOURCES, Dataset, load_dataset

WITHOUT_FILES = sorted(set(SOURCES) - {"fashion-mnist", "file", "heart", "manual", "text"})
BUNDLED_ROWS = {"breast-cancer": 569, "diabetes": 442, "digits": 1797, "wine": 178}


def data_root() -> Path:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    root = Path(os.environ.get("AATS_DATA", beside))
    if not root.is_dir():
        pytest.skip("no data files: set AATS_DATA to the folder that holds fashion-mnist")
    return root


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_a_source_gives_finite_float32_rows_and_every_class(name: str) -> None:
    data = load_dataset(name)
    assert data.x.dtype == np.float32
    assert data.y.dtype == np.int64
    assert np.isfinite(data.x).all()
    assert sorted(set(data.y.tolist())) == list(range(len(data.classes)))
    assert data.x.shape[1] == len(data.features)
    assert np.abs(data.x).max() < 20


@pytest.mark.parametrize(("name", "rows"), sorted(BUNDLED_ROWS.items()))
def test_a_bundled_table_has_its_published_size(name: str, rows: int) -> None:
    assert len(load_dataset(name)) == rows


def test_schema_names_features_and_digest_names_rows() -> None:
    a, b = load_dataset("synthetic", seed=1), load_dataset("synthetic", seed=2)
    assert a.schema == b.schema
    assert a.digest != b.digest
    assert len({load_dataset(name).schema for name in WITHOUT_FILES}) == len(WITHOUT_FILES)


def test_diabetes_is_cut_at_the_median() -> None:
    assert load_dataset("diabetes").y.mean() == pytest.approx(0.5, abs=0.01)


def test_malignant_is_the_positive_class() -> None:
    assert np.bincount(load_dataset("breast-cancer").y).tolist() == [357, 212]


def test_the_same_seed_gives_the_same_mixture() -> None:
    a, b = load_dataset("synthetic", seed=3), load_dataset("synthetic", seed=3)
    np.testing.assert_array_equal(a.x, b.x)
    assert set(np.bincount(load_dataset("synthetic", samples=90, classes=3).y)) == {30}


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(UnknownPluginError, match="did you mean 'breast-cancer'"):
        load_dataset("breast-canser")


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'samples'"):
        load_dataset("synthetic", sample=3)


def test_a_source_without_files_is_not_told_the_root() -> None:
    assert len(load_dataset("wine", root="nowhere")) == 178


@pytest.mark.parametrize("samples", [-1, 1])
def test_an_impossible_mixture_is_refused(samples: int) -> None:
    with pytest.raises(DataError, match="samples >= classes"):
        load_dataset("synthetic", samples=samples)


def test_missing_files_say_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="zalandoresearch"):
        load_dataset("fashion-mnist", root=str(tmp_path))
    monkeypatch.delenv("AATS_DATA", raising=False)
    with pytest.raises(DataError, match="set root, or AATS_DATA"):
        load_dataset("fashion-mnist")


def test_a_file_that_is_no_npz_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "fashion_mnist_15k.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="zalandoresearch"):
        load_dataset("fashion-mnist", root=str(tmp_path))


def test_fashion_mnist_has_its_official_test_set() -> None:
    data = load_dataset("fashion-mnist", root=str(data_root()))
    assert data.x.shape == (25_000, 1, 28, 28)
    assert data.x.min() == 0
    assert data.x.max() == 1
    assert np.bincount(data.y[data.is_test]).tolist() == [1000] * 10


def test_rows_that_do_not_fit_are_refused() -> None:
    x = np.zeros((2, 1), dtype=np.float32)
    with pytest.raises(DataError, match="labels 0-2 for 2 classes"):
        Dataset("t", x, np.array([0, 2]), ("a",), ("no", "yes"))
    with pytest.raises(DataError, match="NaN"):
        Dataset("t", x * np.nan, np.array([0, 1]), ("a",), ("no", "yes"))
    with pytest.raises(DataError, match="equal length"):
        Dataset("t", x, np.array([0]), ("a",), ("no", "yes"))


def test_take_keeps_groups_and_test_rows_in_step() -> None:
    data = Dataset(
        "t", np.arange(3, dtype=np.float32)[:, None], np.array([0, 1, 0]), ("a",), ("no", "yes"),
        ("north", "south"), np.array([0, 1, 1]), np.array([False, True, False]),
    )  # fmt: skip
    some = data.take([2, 1])
    assert some.x[:, 0].tolist() == [2, 1]
    assert some.group_of.tolist() == [1, 1]
    assert some.is_test.tolist() == [False, True]
