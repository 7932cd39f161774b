from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from aats import wire
from aats.errors import LedgerError, SignatureError, WireError
from aats.identity import Identity, verify
from aats.ids import NodeId, Version, new_packet_id
from aats.ledger import record as ledger
from aats.ledger.record import (
    check_chain,
    check_record,
    check_verdict,
    content_id,
    heads,
    seal,
    sign_verdict,
    verdict_bytes,
)
from aats.lineage import Record, RecordKind
from aats.packet import EstimateSource, SkillEstimate

PACKET = new_packet_id(1, random.Random(1))
NODES = [Identity.from_seed(NodeId(f"n{i}"), b"ledger") for i in range(5)]
OWNER = NODES[0]


def version(number: int) -> Version:
    return Version(f"{number:064x}")


def start() -> Record:
    return seal(
        Record(PACKET, RecordKind.INIT, OWNER.node, 0, 0, (), version(0), version(0)), OWNER
    )


def after(
    parent: Record,
    identity: Identity,
    number: int,
    kind: RecordKind = RecordKind.TRAIN,
    **change: Any,
) -> Record:
    """Return a sealed record that follows `parent`, one hop on, with fields changed."""
    new = version(number) if kind is RecordKind.TRAIN else parent.version
    record = Record(
        parent.packet, kind, identity.node, parent.hop + 1, parent.epoch, (parent.id,),
        parent.version, new, "sequential", 40, 320, number, {"a.accuracy": 0.5}, at=float(number),
    )  # fmt: skip
    return seal(replace(record, **change), identity)


def chain_of(length: int) -> list[Record]:
    records = [start()]
    for number in range(1, length):
        records.append(after(records[-1], NODES[number % 5], number))
    return records


CHAIN = chain_of(6)


# --- one record -------------------------------------------------------------------------------


def test_sealed_record_holds() -> None:
    check_record(CHAIN[3])
    assert len(CHAIN[3].id) == 64
    assert CHAIN[3].public_key == NODES[3].public_key


def test_record_is_sealed_by_its_own_node() -> None:
    with pytest.raises(ValueError, match="record of n1 cannot be sealed by n2"):
        seal(CHAIN[1], NODES[2])


CONTENT = [f.name for f in fields(Record)][: [f.name for f in fields(Record)].index("at")]
ATTESTED = ["at", "seconds", "wire_bytes", "joules"]


def changed(record: Record, name: str) -> Record:
    value = getattr(record, name)
    other: Any
    match name:
        case "packet":
            other = new_packet_id(2, random.Random(2))
        case "kind":
            other = RecordKind.VERIFY
        case "parents":
            other = ("f" * 64,)
        case "base" | "version":
            other = version(999)
        case "metrics":
            other = {**value, "b": 1.0}
        case "public_key" | "signature":
            other = value[:-1] + bytes([value[-1] ^ 1])
        case "id":
            other = "f" * 64
        case _:
            other = value + ("x" if isinstance(value, str) else 1)
    return replace(record, **{name: other})


@pytest.mark.parametrize("name", CONTENT)
def test_id_covers_the_content(name: str) -> None:
    other = changed(CHAIN[3], name)
    assert content_id(other) != CHAIN[3].id
    with pytest.raises(LedgerError, match="the id is not that of the content"):
        check_record(other)


@pytest.mark.parametrize("name", [*ATTESTED, "public_key", "signature"])
def test_signature_covers_the_attestation_that_the_id_does_not(name: str) -> None:
    other = changed(CHAIN[3], name)
    assert content_id(other) == CHAIN[3].id
    with pytest.raises(LedgerError, match="the signature of n3 does not hold"):
        check_record(other)


def test_every_field_is_content_or_attestation() -> None:
    names = {f.name for f in fields(Record)}
    assert names == {*CONTENT, *ATTESTED, "public_key", "id", "signature"}


def test_error_names_the_record() -> None:
    with pytest.raises(LedgerError, match=rf"^record \({CHAIN[3].id[:12]}\): "):
        check_record(replace(CHAIN[3], at=9.5))
    with pytest.raises(LedgerError, match=rf"^record 3 \({CHAIN[3].id[:12]}\): "):
        check_chain([*CHAIN[:3], replace(CHAIN[3], at=9.5)])


def test_record_that_no_wire_carries_does_not_hold() -> None:
    with pytest.raises(LedgerError, match=r"Record\.hop: -1 is outside"):
        check_record(replace(CHAIN[3], hop=-1))


# --- chains -----------------------------------------------------------------------------------


def test_chain_holds_and_has_one_head() -> None:
    check_chain(CHAIN)
    check_chain(CHAIN, {identity.node: identity.public_key for identity in NODES})
    assert heads(CHAIN) == (CHAIN[-1],)
    check_chain([])
    assert heads([]) == ()


def test_a_stop_may_train_verify_and_be_home() -> None:
    one = after(start(), NODES[1], 1)
    verdict = after(one, NODES[2], 0, RecordKind.VERIFY)
    home = after(verdict, OWNER, 0, RecordKind.HOME, hop=verdict.hop)
    check_chain([start(), one, verdict, home])


def test_a_packet_may_revisit_a_node_and_rise_in_epoch() -> None:
    one = after(start(), NODES[1], 1)
    two = after(one, NODES[2], 2, epoch=1)
    check_chain([start(), one, two, after(two, NODES[1], 3)])


FIRST = start()
ONE = after(FIRST, NODES[1], 1)
STRANGER = Identity.from_seed(NODES[1].node, b"another key")
BROKEN: dict[str, tuple[Callable[[], Sequence[Record]], str]] = {
    "no init": (lambda: CHAIN[1:], r"record 0 .*a chain begins with one init record, this is tr"),
    "second init": (
        lambda: [FIRST, after(FIRST, OWNER, 0, RecordKind.INIT)],
        "record 1 .*one init record",
    ),
    "init with a parent": (
        lambda: [seal(replace(FIRST, parents=("a" * 64,)), OWNER)],
        "record 0 .*1 parents; only the first",
    ),
    "orphan": (lambda: [FIRST, after(FIRST, NODES[1], 1, parents=())], "0 parents; only the first"),
    "gap": (lambda: [*CHAIN[:2], *CHAIN[3:]], r"record 2 .*parent [0-9a-f]{12} is not among"),
    "order": (lambda: [FIRST, CHAIN[2], CHAIN[1]], r"record 1 .*is not among the records before"),
    "repeated": (lambda: [*CHAIN, CHAIN[-1]], "record 6 .*repeated"),
    "wrong base": (
        lambda: [FIRST, after(FIRST, NODES[1], 1, base=version(9))],
        "record 1 .*base 000000000000 is no parent's version",
    ),
    "verify that trains": (
        lambda: [FIRST, after(FIRST, NODES[1], 1, RecordKind.VERIFY, version=version(1))],
        "verify must leave the version as it is",
    ),
    "hop falls": (
        lambda: [FIRST, ONE, after(ONE, NODES[2], 2, hop=0)],
        "record 2 .*hop 0 epoch 0 after hop 1 epoch 0",
    ),
    "epoch falls": (
        lambda: [FIRST, ep := after(FIRST, NODES[1], 1, epoch=2), after(ep, NODES[2], 2, epoch=1)],
        "hop 2 epoch 1 after hop 1 epoch 2",
    ),
    "effect twice": (
        lambda: [FIRST, ONE, after(ONE, NODES[2], 2, hop=1)],
        "record 2 .*train takes effect twice at hop 1",
    ),
    "trained and rolled back at one hop": (
        lambda: [FIRST, ONE, after(ONE, NODES[2], 2, RecordKind.ROLLED_BACK, hop=1)],
        "record 2 .*rolled-back takes effect twice at hop 1",
    ),
    "effect twice, another between": (
        lambda: [
            FIRST, ONE, v := after(ONE, NODES[2], 0, RecordKind.VERIFY, hop=1),
            after(v, NODES[1], 2, hop=1),
        ],
        "record 3 .*train takes effect twice at hop 1",
    ),
    "another packet": (
        lambda: [FIRST, after(FIRST, NODES[1], 1, packet=new_packet_id(2, random.Random(2)))],
        "record 1 .*of packet .*, not ",
    ),
    "another key of a node": (
        lambda: [FIRST, ONE, after(ONE, STRANGER, 2)],
        "record 2 .*n1 is known by another public key",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_hold_is_named(case: str) -> None:
    build, message = BROKEN[case]
    with pytest.raises(LedgerError, match=message):
        check_chain(build())


def test_keys_known_from_elsewhere_bind() -> None:
    keys = {NODES[1].node: STRANGER.public_key}
    with pytest.raises(LedgerError, match=r"record 1 .*n1 is known by another public key"):
        check_chain(CHAIN, keys)
    assert keys == {NODES[1].node: STRANGER.public_key}


def test_seals_once_verified_are_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = verify

    def counting(public_key: bytes, data: bytes, signature: bytes) -> bool:
        nonlocal calls
        calls += 1
        return real(public_key, data, signature)

    monkeypatch.setattr(ledger, "verify", counting)
    verified: set[str] = set()
    check_chain(CHAIN[:4], verified=verified)
    check_chain(CHAIN, verified=verified)
    assert calls == len(CHAIN)
    with pytest.raises(LedgerError, match=r"record 2 .*signature"):
        check_chain([*CHAIN[:2], replace(CHAIN[2], at=99.0), *CHAIN[3:]], verified=verified)


def test_fork_has_two_heads_and_a_merge_one() -> None:
    left, right = after(FIRST, NODES[1], 1), after(FIRST, NODES[2], 2)
    forked = [FIRST, left, right]
    check_chain(forked)
    assert heads(forked) == (left, right)
    merged = after(left, NODES[3], 3, parents=(left.id, right.id))
    check_chain([*forked, merged])
    assert heads([*forked, merged]) == (merged,)
    assert len(heads([*CHAIN, after(CHAIN[2], NODES[4], 77)])) == 2


def forked(hop: int = 2) -> tuple[list[Record], Record, Record, Record]:
    """Return a chain up to a fork, the fork, and one step of each of two children."""
    trunk = [FIRST, after(FIRST, NODES[1], 1)]
    fork = after(trunk[-1], OWNER, 0, RecordKind.FORK, hop=hop)
    left, right = (after(fork, NODES[i], 10 + i, hop=hop + i) for i in (2, 3))
    return trunk, fork, left, right


def merge(fork: Record, *tips: Record, **change: Any) -> Record:
    hop = max(tip.hop for tip in (fork, *tips)) + 1
    parents = (fork.id, *(tip.id for tip in tips))
    return after(fork, OWNER, 99, RecordKind.MERGE,
                 **{"parents": parents, "hop": hop, "version": version(99)} | change)  # fmt: skip


def test_children_are_merged_with_the_forks_version_as_base() -> None:
    trunk, fork, left, right = forked()
    joined = merge(fork, left, right)
    history = [*trunk, fork, left, right, joined]
    check_chain(history)
    assert heads(history[:-1]) == (left, right)
    assert heads(history) == (joined,)
    check_chain([*history, after(joined, NODES[4], 100)])


def test_a_child_may_go_by_the_fork_instead_of_what_was_before() -> None:
    trunk, fork, left, right = forked()
    check_chain([FIRST, fork, left])
    check_chain([FIRST, fork, left, right, merge(fork, left, right)])
    for broken in ([FIRST, left], [fork, left], [FIRST, trunk[1], left, fork]):
        with pytest.raises(LedgerError):
            check_chain(broken)
    other = after(fork, OWNER, 0, RecordKind.FORK, parents=("a" * 64,), hop=9)
    with pytest.raises(LedgerError, match=r"parent a+ is not among the records before"):
        check_chain([FIRST, fork, left, other])


def test_siblings_that_met_are_merged_too() -> None:
    trunk, fork, left, right = forked()
    met = after(left, NODES[4], 20, parents=(left.id, right.id), hop=7)
    check_chain([*trunk, fork, left, right, met, merge(fork, met, right)])


MERGES: dict[str, tuple[Callable[[Record, Record, Record], Record], str]] = {
    "of nothing": (lambda f, a, b: merge(f, parents=(f.id,)), "must follow a fork"),
    "without a fork": (
        lambda f, a, b: merge(f, a, b, parents=(a.id, b.id), base=a.version),
        "must follow a fork",
    ),
    "another base": (lambda f, a, b: merge(f, a, b, base=a.version), "must follow a fork"),
    "an old hop": (lambda f, a, b: merge(f, a, b, hop=b.hop), "must be of a later hop"),
    "one twice": (lambda f, a, b: merge(f, a, a), "a parent is named twice"),
    "the fork twice": (lambda f, a, b: merge(f, f), "does not follow its fork"),
    "two parents": (
        lambda f, a, b: after(f, OWNER, 0, RecordKind.VERIFY, parents=(f.id, a.id), hop=9),
        "verify has 2 parents, allowed is one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGES)
def test_a_merge_that_does_not_hold_is_named(case: str) -> None:
    trunk, fork, left, right = forked()
    build, message = MERGES[case]
    with pytest.raises(LedgerError, match=message):
        check_chain([*trunk, fork, left, right, build(fork, left, right)])


# --- integrity --------------------------------------------------------------------------------


def survives(data: bytes) -> bool:
    """Return whether an encoded record decodes and holds."""
    try:
        check_record(wire.decode_record(data))
    except (WireError, LedgerError):
        return False
    return True


def flipped(data: bytes, bit: int) -> bytes:
    raw = bytearray(data)
    raw[bit // 8] ^= 1 << bit % 8
    return bytes(raw)


def test_every_single_bit_of_a_record_counts() -> None:
    data = wire.encode_record(CHAIN[3])
    assert survives(data)
    assert not [bit for bit in range(len(data) * 8) if survives(flipped(data, bit))]


@pytest.mark.parametrize("seed", [0, 1])
def test_random_bit_flips_in_a_ledger_of_1000_records_are_found(seed: int) -> None:
    rng = random.Random(seed)
    records = chain_of(1000)
    encoded = [wire.encode_record(record) for record in records]
    verified: set[str] = set()
    check_chain([wire.decode_record(data) for data in encoded], verified=verified)
    assert heads(records) == (records[-1],)
    for _ in range(1000):
        at = rng.randrange(len(encoded))
        assert not survives(flipped(encoded[at], rng.randrange(len(encoded[at]) * 8)))
    for _ in range(5):
        at = rng.randrange(len(records))
        damaged = [*records[:at], replace(records[at], note="x"), *records[at + 1 :]]
        with pytest.raises(LedgerError, match=f"record {at} "):
            check_chain(damaged, verified=verified)
    fork = after(records[500], NODES[2], 5000)
    check_chain([*records, fork], verified=verified)
    assert heads([*records, fork]) == (records[-1], fork)


# --- verdicts ---------------------------------------------------------------------------------

ESTIMATE = SkillEstimate(
    "oncology", "accuracy", 0.9, 0.8, 0.95, 90, NodeId("n1"), EstimateSource.LOCAL, version(1)
)


def test_verdict_holds_for_its_packet_version_and_value() -> None:
    verdict = sign_verdict(PACKET, ESTIMATE, NODES[4])
    assert (verdict.by, verdict.source) == (NODES[4].node, EstimateSource.MPVU)
    check_verdict(PACKET, verdict, NODES[4].public_key)
    other_packet = new_packet_id(2, random.Random(2))
    for packet, claim, key in (
        (other_packet, verdict, NODES[4]),
        (PACKET, verdict, NODES[3]),
        (PACKET, replace(verdict, value=0.99), NODES[4]),
        (PACKET, replace(verdict, version=version(2)), NODES[4]),
        (PACKET, replace(verdict, by=NODES[3].node), NODES[4]),
        (PACKET, ESTIMATE, NODES[4]),
    ):
        with pytest.raises(SignatureError, match="verdict on 'oncology' not signed by"):
            check_verdict(packet, claim, key.public_key)


def test_verdict_bytes_leave_the_signature_out() -> None:
    signed = replace(ESTIMATE, signature=b"s")
    assert verdict_bytes(PACKET, signed) == verdict_bytes(PACKET, ESTIMATE)
