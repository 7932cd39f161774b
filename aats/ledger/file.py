"""A ledger as a file: JSON lines that a person can read and anyone can verify offline.

The first line says the format's version, every other one is a record, its bytes as hex. Each
line has exactly one spelling, so any change to the file shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from aats.errors import LedgerError, WireError
from aats.ids import NodeId, PacketId
from aats.ledger.record import check_chain, heads
from aats.lineage import Record
from aats.wire import encode_record

FIRST_LINE = '{"aats-ledger": 1}'
_BYTES = ("public_key", "signature")


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """What a verified ledger file holds."""

    records: int
    packets: tuple[PacketId, ...]
    """In order of first appearance."""
    heads: tuple[Record, ...]
    """One a packet; more where its history forks."""


def write_ledger(path: Path, records: Iterable[Record]) -> None:
    """Write records to a file, replacing it."""
    lines = [FIRST_LINE, *map(_line, records)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def read_ledger(path: Path) -> tuple[Record, ...]:
    """Return the records of a file, well formed but not verified.

    Raises:
        LedgerError: Naming file and line, if a line is no record in its one spelling.
        OSError: If the file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise LedgerError(f"{path}: no text at byte {error.start}") from error
    first, *lines = text.split("\n")
    if first != FIRST_LINE:
        raise LedgerError(f"{path}:1: {first[:40]!r}, must be {FIRST_LINE}")
    if not lines or lines.pop():
        raise LedgerError(f"{path}:{len(lines) + 2}: the last line has no end")
    return tuple(_record(path, number, line) for number, line in enumerate(lines, start=2))


def verify_ledger(path: Path) -> LedgerSummary:
    """Check every record of a file and how they hang together, packet by packet.

    Raises:
        LedgerError: Naming file and line, and what does not hold.
        OSError: If the file cannot be read.
    """
    records = read_ledger(path)
    chains: dict[PacketId, list[tuple[int, Record]]] = {}
    for line, record in enumerate(records, start=2):
        chains.setdefault(record.packet, []).append((line, record))
    keys: dict[NodeId, bytes] = {}
    for chain in chains.values():
        places = [f"{path}:{line}: record" for line, _ in chain]
        check_chain([record for _, record in chain], keys, place=places.__getitem__)
        keys |= {record.node: record.public_key for _, record in chain}
    return LedgerSummary(len(records), tuple(chains), heads(records))


def _line(record: Record) -> str:
    fields = asdict(record)
    for name in _BYTES:
        fields[name] = fields[name].hex()
    return json.dumps(fields, allow_nan=False)


def _record(path: Path, number: int, line: str) -> Record:
    try:
        fields: dict[str, Any] = json.loads(line)
        for name in _BYTES:
            fields[name] = bytes.fromhex(fields[name])
        record = msgspec.convert(fields, Record)
        encode_record(record)
        spelled = _line(record)
    except (ValueError, TypeError, KeyError, RecursionError, WireError) as error:
        raise LedgerError(f"{path}:{number}: no ledger record: {error}") from error
    if spelled != line:
        raise LedgerError(f"{path}:{number}: not as this record is written")
    return record
