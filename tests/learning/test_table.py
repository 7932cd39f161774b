"""Rows from a file of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aats.config import build
from aats.errors import DataError
from aats.learning.datasets import load_dataset

X = np.array([[0.5, 1.0], [2.0, -3.0], [4.0, 0.25]])
Y = np.array([0, 1, 0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = ["age,outcome,dose", *(f"{a},{y},{b}" for (a, b), y in zip(X, Y, strict=True))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    np.savez(tmp_path / "rows.npz", x=X, y=Y)
    return tmp_path


@pytest.mark.parametrize(
    ("params", "features"),
    [({"file": "rows.csv", "label": "outcome"}, ("age", "dose")), ({"file": "rows.npz"}, ("x",))],
)
def test_rows_come_as_they_stand(
    folder: Path, params: dict[str, str], features: tuple[str, ...]
) -> None:
    data = load_dataset("file", root=str(folder), **params)
    np.testing.assert_array_equal(data.x, X.astype(np.float32))
    np.testing.assert_array_equal(data.y, Y)
    assert data.features == features
    assert len(data.classes) == 2
    assert len(load_dataset("file", root=str(folder), classes=5, **params).classes) == 5


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "age,lable\n1,0\n", "no column 'label'; there are age, lable, did you mean"),
        ("a.csv", "age,label\n1,0\nx,1\n", "line 3: could not convert string to float: 'x'"),
        ("a.csv", "age,label\n1,0\n1\n", "line 3: 1 cells, the header has 2"),
        ("a.csv", "age,label\n1,0.5\n", "label 0.5; allowed are whole numbers from 0"),
        ("a.csv", "age,label\n1,-1\n", "label -1; allowed are whole numbers from 0"),
        ("a.csv", "age,label\n", "wanted are"),
        ("a.csv", "", "there are none"),
        ("a.csv", "age,label\nnan,0\n", "x holds NaN or infinity"),
        ("a.npz", "no archive", "a.npz: "),
        ("a.xls", "", "a file of type '.xls'; allowed are .csv, .npz"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        load_dataset("file", root=str(tmp_path), file=name)


def test_arrays_of_other_names_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, labels=Y)
    with pytest.raises(DataError, match="no array y; it has x, labels"):
        load_dataset("file", root=str(tmp_path), file="a.npz")


def test_more_labels_than_classes_are_told(folder: Path) -> None:
    with pytest.raises(DataError, match="labels 0-1 for 1 classes"):
        load_dataset("file", root=str(folder), file="rows.npz", classes=1)


def test_a_scenario_finds_a_file_beside_it(folder: Path) -> None:
    scenario = build(
        {
            "topology": {"edges": [["a", "b"]]},
            "data": {"skills": {"s": {"source": {"name": "file", "file": "rows.npz"}}}},
            "packets": [
                {
                    "name": "p", "owner": "a", "model": {"name": "mlp"},
                    "requirement": [{"skill": "s", "value": 0.5, "verifier": "any"}],
                }
            ],
        },
        folder=folder,
        name="mine",
    )  # fmt: skip
    source = scenario.data.skills["s"].source
    assert len(load_dataset(source.name, **source.params)) == len(Y)
