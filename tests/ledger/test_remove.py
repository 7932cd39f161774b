from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.errors import LedgerError
from aats.identity import Identity
from aats.ids import NodeId, Version, new_packet_id
from aats.ledger.file import verify_ledger, write_ledger
from aats.ledger.record import check_chain, heads, seal
from aats.lineage import Record, RecordKind

PACKET = new_packet_id(1, random.Random(1))
NODES = [Identity.from_seed(NodeId(f"n{i}"), b"remove") for i in range(4)]
STEPS = RecordKind.TRAIN, RecordKind.ROLLED_BACK, RecordKind.VERIFY, RecordKind.REMOVE
CHANGES = {RecordKind.TRAIN, RecordKind.REMOVE}


def version(number: int) -> Version:
    return Version(f"{number:064x}")


def follow(chain: list[Record], kind: RecordKind, who: int, **change: Any) -> Record:
    last, owner = chain[-1], NODES[who % 4]
    new = version(len(chain)) if kind in CHANGES else last.version
    record = Record(PACKET, kind, owner.node, last.hop + 1, 0, (last.id,), last.version, new)
    return seal(replace(record, **change), owner)


def chain_of(kinds: list[tuple[RecordKind, int]]) -> list[Record]:
    first = Record(PACKET, RecordKind.INIT, NODES[0].node, 0, 0, (), version(0), version(0))
    chain = [seal(first, NODES[0])]
    for kind, who in kinds:
        chain.append(follow(chain, kind, who))
    return chain


histories = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3)), max_size=8).map(chain_of)


@settings(deadline=None)
@given(histories)
def test_a_history_with_removals_holds_and_has_one_head(chain: list[Record]) -> None:
    check_chain(chain)
    assert heads(chain) == (chain[-1],)


@settings(deadline=None)
@given(histories, st.data())
def test_a_history_without_one_of_its_removals_does_not_hold(
    chain: list[Record], data: st.DataObject
) -> None:
    chain = [*chain, follow(chain, RecordKind.REMOVE, 0)]
    chain.append(follow(chain, RecordKind.VERIFY, 1))
    at = data.draw(st.sampled_from([i for i, r in enumerate(chain) if r.kind is RecordKind.REMOVE]))
    with pytest.raises(LedgerError):
        check_chain(chain[:at] + chain[at + 1 :])


@settings(deadline=None)
@given(histories, st.sampled_from(["note", "version", "node", "steps", "seconds"]))
def test_a_removal_that_was_changed_does_not_hold(chain: list[Record], field: str) -> None:
    removed = follow(chain, RecordKind.REMOVE, 2, note="subtract 3@n1")
    other = {"note": "subtract 4@n2", "version": version(99), "node": NodeId("n3"), "steps": 7,
             "seconds": 1.0}[field]  # fmt: skip
    check_chain([*chain, removed])
    with pytest.raises(LedgerError):
        check_chain([*chain, replace(removed, **{field: other})])


def test_a_removal_must_change_the_model() -> None:
    chain = chain_of([(RecordKind.TRAIN, 1)])
    same = follow(chain, RecordKind.REMOVE, 0, version=chain[-1].version)
    with pytest.raises(LedgerError, match="remove must leave another version than its one parent"):
        check_chain([*chain, same])


def test_a_removal_has_one_parent() -> None:
    chain = chain_of([(RecordKind.TRAIN, 1)])
    left, right = (follow(chain, RecordKind.TRAIN, i, version=version(50 + i)) for i in (2, 3))
    both = follow([*chain, left], RecordKind.REMOVE, 0, parents=(left.id, right.id))
    with pytest.raises(LedgerError, match="remove must leave another version than its one parent"):
        check_chain([*chain, left, right, both])


def test_two_removals_at_one_hop_are_one_too_many() -> None:
    chain = chain_of([(RecordKind.TRAIN, 1), (RecordKind.REMOVE, 0)])
    again = follow(chain, RecordKind.REMOVE, 0, hop=chain[-1].hop)
    with pytest.raises(LedgerError, match="remove takes effect twice at hop"):
        check_chain([*chain, again])


def test_a_file_keeps_it(tmp_path: Path) -> None:
    chain = chain_of([(RecordKind.TRAIN, 1), (RecordKind.HOME, 0), (RecordKind.REMOVE, 0)])
    write_ledger(tmp_path / "a.jsonl", chain)
    found = verify_ledger(tmp_path / "a.jsonl")
    assert [head.version for head in found.heads] == [version(3)]
