"""Text as rows of bytes: from files of one's own and from Python's manual."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.config.load import build
from aats.errors import DataError
from aats.learning.datasets import load_dataset
from aats.learning.partition import Part, spread_rows
from aats.learning.text import text_rows
from aats.learning.views import View, spread_seen
from aats.packet import Plugin


@given(st.binary(min_size=1, max_size=200), st.integers(1, 20))
def test_rows_and_labels_are_the_text_and_no_byte_is_in_two(text: bytes, length: int) -> None:
    if len(text) <= length:
        with pytest.raises(DataError, match=f"has {len(text)} bytes, a row needs {length + 1}"):
            text_rows("t", {"": text}, length)
        return
    data = text_rows("t", {"": text}, length)
    assert data.x.dtype == data.y.dtype == np.int64
    again = np.concatenate([data.x, data.y[:, None]], 1).astype(np.uint8).tobytes()
    assert text.startswith(again)
    assert len(text) - len(again) <= length


def test_a_text_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße, Welt".encode())
    data = load_dataset("text", root=str(tmp_path), file="a.txt", length=5)
    assert bytes(data.x[0].tolist()) == "Grü".encode() + b"\xc3"
    assert bytes(data.y.tolist()) == b"\x9fl"
    assert data.classes[ord("W")] == "'W'"
    assert data.classes[0x9F] == "0x9f"


def test_groups_are_the_sites_of_the_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "aaaa", "group": "a"}\n{"text": "bbbbbb", "group": "b"}\n'
        '{"text": "a", "group": "a"}\n'
    )
    data = load_dataset("text", root=str(tmp_path), file="a.jsonl", length=2)
    assert data.groups == ("a", "b")
    assert [bytes([*x, y]) for x, y in zip(data.x.tolist(), data.y.tolist(), strict=True)] == [
        b"aaa", b"a\na", b"bbb", b"bbb",
    ]  # fmt: skip
    assert data.group_of.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"text": "x"}\nno\n', r"a\.jsonl: line 2: Expecting value"),
        ("a.jsonl", '{"txt": "x"}\n', r"line 1: .*txt.*; wanted is \{\"text\""),
        ("a.jsonl", '{"text": 3}\n', "line 1: .*; wanted is"),
        ("a.jsonl", "[1]\n", "line 1: .*; wanted is"),
        ("a.jsonl", "", "no line"),
        ("a.doc", "x", "a file of type '.doc'; allowed are .txt, .jsonl"),
        ("a.txt", "", "the text has 0 bytes, a row needs 33"),
        ("a.jsonl", '{"text": "x", "group": "g"}', "of group 'g' has 1 bytes"),
    ],
)
def test_a_file_that_is_no_text_is_told(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        load_dataset("text", root=str(tmp_path), file=name)


@pytest.mark.parametrize("length", [0, -1, 1 << 17, True, 2.5, "8"])
def test_a_length_out_of_range_is_told(length: object) -> None:
    with pytest.raises(DataError, match=r"data 'manual': length .*, allowed is 1-65536"):
        load_dataset("manual", length=length)


def test_the_manual_has_chapters() -> None:
    data = load_dataset("manual")
    assert {"class", "import", "formatstrings"} <= {*data.groups}
    assert len(data) > 5000


def test_schema_tells_the_length_and_that_rows_are_tokens() -> None:
    schemas = {load_dataset("manual", length=n).schema for n in (8, 16)}
    floats = load_dataset("synthetic", features=8).schema
    assert len({*schemas, floats}) == 3


def test_nodes_hold_tokens_and_those_do_not_drift() -> None:
    data = load_dataset("manual")
    parts = [Part("n1", group="class"), Part("n2", samples=200)]
    spread = spread_rows("s", data, Plugin("iid"), parts)
    assert spread.nodes["n1"].train_x.dtype == spread.reference[0].dtype == np.int64
    with pytest.raises(DataError, match=r"drift 1\.0: tokens have no unit to drift in"):
        spread_rows("s", data, Plugin("iid"), [Part("n1", drift=1.0)])


def test_there_are_no_views_of_tokens() -> None:
    with pytest.raises(DataError, match="manual: views are of features, not of tokens"):
        spread_seen("s", load_dataset("manual"), {"n": View("v", Plugin("identity"))})


def test_a_scenario_finds_a_text_beside_it(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("a" * 40)
    scenario = build(
        {
            "topology": {"edges": [["a", "b"]]},
            "data": {"skills": {"s": {"source": {"name": "text", "file": "letters.txt"}}}},
            "packets": [
                {
                    "name": "p", "owner": "a", "model": {"name": "language", "length": 32},
                    "requirement": [{"skill": "s", "value": 0.5, "verifier": "any"}],
                }
            ],
        },
        folder=tmp_path,
        name="mine",
    )  # fmt: skip
    source = scenario.data.skills["s"].source
    assert len(load_dataset(source.name, **source.params)) == 1
