from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from aats.errors import LedgerError
from aats.identity import Identity
from aats.ids import NodeId, PacketId, Version, new_packet_id
from aats.ledger.file import FIRST_LINE, read_ledger, verify_ledger, write_ledger
from aats.ledger.record import seal
from aats.lineage import Record, RecordKind

OWNER = Identity.from_seed(NodeId("owner"), b"file")
CLINIC = Identity.from_seed(NodeId("clinic"), b"file")
V0, V1, V2 = (Version(f"{n:064x}") for n in range(3))


def history(packet: PacketId) -> list[Record]:
    init = seal(Record(packet, RecordKind.INIT, OWNER.node, 0, 0, (), V0, V0, at=1.5), OWNER)
    trained = seal(
        Record(
            packet, RecordKind.TRAIN, CLINIC.node, 1, 0, (init.id,), V0, V1, "sequential", 4, 32,
            7, {"a.accuracy": 0.25}, "Zürich \u2028", "", 2.5, 0.125, 1e6,
        ),
        CLINIC,
    )  # fmt: skip
    return [init, trained]


ONE, TWO = (new_packet_id(n, random.Random(n)) for n in (1, 2))
RECORDS = [record for pair in zip(history(ONE), history(TWO), strict=True) for record in pair]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "ledger.jsonl"
    write_ledger(file, RECORDS)
    return file


def test_records_come_back(path: Path) -> None:
    assert read_ledger(path) == tuple(RECORDS)
    summary = verify_ledger(path)
    assert summary.records == 4
    assert summary.packets == (ONE, TWO)
    assert summary.heads == (RECORDS[2], RECORDS[3])


def test_file_is_json_lines_that_a_person_can_read(path: Path) -> None:
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    assert first == FIRST_LINE
    shown = json.loads(lines[2])
    assert shown["kind"] == "train"
    assert shown["node"] == "clinic"
    assert shown["public_key"] == CLINIC.public_key.hex()


def test_empty_ledger_is_a_ledger(tmp_path: Path) -> None:
    write_ledger(tmp_path / "none", [])
    assert verify_ledger(tmp_path / "none").records == 0


def test_fork_shows_as_two_heads(path: Path) -> None:
    init = RECORDS[0]
    fork = seal(Record(ONE, RecordKind.TRAIN, OWNER.node, 1, 0, (init.id,), V0, V2), OWNER)
    write_ledger(path, [*RECORDS, fork])
    assert [head.packet for head in verify_ledger(path).heads] == [ONE, TWO, ONE]


def test_error_names_file_and_line(path: Path) -> None:
    write_ledger(path, [*RECORDS[:3], replace(RECORDS[3], at=9.0)])
    with pytest.raises(LedgerError, match=rf"{path}:5: record \([0-9a-f]{{12}}\): the signature"):
        verify_ledger(path)


def test_one_node_has_one_key_over_all_packets(path: Path) -> None:
    stranger = Identity.from_seed(CLINIC.node, b"stranger")
    forged = seal(RECORDS[3], stranger)
    write_ledger(path, [*RECORDS[:3], forged])
    with pytest.raises(LedgerError, match=r":5: .*clinic is known by another public key"):
        verify_ledger(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: "", r":1: '', must be"),
        (lambda text: text.replace('{"aats-ledger": 1}', '{"aats-ledger": 2}'), ":1: .*must be"),
        (lambda text: text.rstrip("\n"), ":5: the last line has no end"),
        (lambda text: FIRST_LINE, ":2: the last line has no end"),
        (lambda text: text + "\n", ":6: no ledger record"),
        (lambda text: text + "{}\n", ":6: no ledger record"),
        (lambda text: text + "[]\n", ":6: no ledger record"),
        (lambda text: text + "[" * 100_000 + "\n", ":6: no ledger record"),
        (lambda text: text.replace('"hop": 1', '"hop": "1"', 1), ":4: no ledger record"),
        (lambda text: text.replace('"hop": 1', '"hop": -1', 1), ":4: no ledger record"),
        (lambda text: text.replace('"at": 1.5', '"at": NaN', 1), ":2: no ledger record"),
        (lambda text: text.replace('"at": 1.5', '"at": 1.50', 1), ":2: not as this record is"),
        (lambda text: text.replace('"hop": 0', '"hop": 0, "dest": "x"', 1), ":2: not as this"),
        (lambda text: text.replace('"hop": 0', '"hop": 9, "hop": 0', 1), ":2: not as this"),
        (lambda text: text.replace(", ", ",", 1), ":2: not as this record is written"),
    ],
)  # fmt: skip
def test_what_is_no_ledger_is_named(path: Path, edit, message: str) -> None:  # type: ignore[no-untyped-def]
    path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(LedgerError, match=message) as caught:
        verify_ledger(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("seed", range(3))
def test_random_bit_flips_in_the_file_are_found(path: Path, seed: int) -> None:
    data = path.read_bytes()
    rng = random.Random(seed)
    for _ in range(60):
        raw = bytearray(data)
        raw[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        with pytest.raises(LedgerError):
            verify_ledger(path)
