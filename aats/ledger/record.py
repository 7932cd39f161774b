"""Model version ledger: content ids, signatures, and what makes a chain of records hold.

A record's id is the BLAKE3 of its content fields, its signature covers id and attestation as
well. A chain (or, after a fork or a merge, a DAG) starts at one INIT record, each record names
its parents, so a change anywhere changes every id after it.

A packet that forks leaves a FORK record; what its children do follows from there, and the MERGE
record names the last of each. A child need not carry what was before the fork: in its history
FORK stands right after INIT, and its signer, who has the rest and to whom the child comes back,
vouches for that. The signer could as well have signed a training step of its own, so this gives
nobody a power that he had not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from blake3 import blake3

from aats.errors import LedgerError, SignatureError, WireError
from aats.identity import Identity, verify
from aats.ids import NodeId, PacketId
from aats.lineage import Record, RecordKind
from aats.packet import EstimateSource, SkillEstimate
from aats.wire import encode, encode_record

_VISIT = frozenset({RecordKind.TRAIN, RecordKind.ROLLED_BACK})
"""Two outcomes of one effect."""
_CHANGES = frozenset({RecordKind.TRAIN, RecordKind.MERGE, RecordKind.REMOVE})
"""Only these may leave another version than they found."""
_VERDICT = b"aats verdict 1\0"
"""Keeps a verdict's signature from standing for anything else."""


def content_id(record: Record) -> str:
    """Return the BLAKE3 of the content fields, 64 hex digits; the attestation plays no part."""
    content = replace(
        record,
        at=0.0, seconds=0.0, wire_bytes=0.0, joules=0.0, public_key=b"", id="", signature=b"",
    )  # fmt: skip
    return blake3(encode_record(content)).hexdigest()


def _signed_bytes(record: Record) -> bytes:
    return encode_record(replace(record, signature=b""))


def seal(record: Record, identity: Identity) -> Record:
    """Return the record with public key, id and signature filled in.

    Raises:
        ValueError: If the record is another node's.
    """
    if record.node != identity.node:
        raise ValueError(f"record of {record.node} cannot be sealed by {identity.node}")
    named = replace(record, public_key=identity.public_key, id=content_id(record))
    return replace(named, signature=identity.sign(_signed_bytes(named)))


def check_record(record: Record) -> None:
    """Check the id and the signature of one record.

    Raises:
        LedgerError: If one does not hold.
    """
    _check_seal(record, "record", set())


def check_chain(
    records: Sequence[Record],
    keys: Mapping[NodeId, bytes] | None = None,
    *,
    verified: set[str] | None = None,
    place: Callable[[int], str] = "record {}".format,
) -> None:
    """Check the history of one packet: every seal, and how the records hang together.

    Args:
        records: Parents before children; the first is INIT. May fork and merge; a FORK that
            comes second stands for all before it.
        keys: Public keys known from elsewhere; any other node is held to the first key it used.
        verified: Digests of whole records whose seal held before: these are not checked again,
            those that hold now are added. Opaque to the caller.
        place: What to call the record of an index in an error.

    Raises:
        LedgerError: Naming the record's index, the start of its id, and what does not hold.
    """
    checked = set() if verified is None else verified
    bound = dict(keys or {})
    known: dict[str, Record] = {}
    for index, record in enumerate(records):
        here = place(index)
        if record.packet != records[0].packet:
            _refuse(record, here, f"of packet {record.packet}, not {records[0].packet}")
        if bound.setdefault(record.node, record.public_key) != record.public_key:
            _refuse(record, here, f"{record.node} is known by another public key")
        _check_place(record, here, known)
        _check_seal(record, here, checked)
        known[record.id] = record


def heads(records: Iterable[Record]) -> tuple[Record, ...]:
    """Return the records that no other one follows: one for a chain, more after a fork."""
    every = tuple(records)
    followed = {parent for record in every for parent in record.parents}
    return tuple(record for record in every if record.id not in followed)


def _check_seal(record: Record, place: str, checked: set[str]) -> None:
    # The id alone would not do as the mark of a checked record: it does not cover the attestation.
    try:
        mark = blake3(encode_record(record)).hexdigest()
        if mark in checked:
            return
        if content_id(record) != record.id:
            _refuse(record, place, "the id is not that of the content")
        signed = _signed_bytes(record)
    except WireError as error:
        _refuse(record, place, str(error))
    if not verify(record.public_key, signed, record.signature):
        _refuse(record, place, f"the signature of {record.node} does not hold")
    checked.add(mark)


def _check_place(record: Record, place: str, known: Mapping[str, Record]) -> None:
    """Check where a record stands, given all that come before it."""
    if (record.kind is RecordKind.INIT) != (not known):
        _refuse(record, place, f"a chain begins with one init record, this is {record.kind}")
    if (not record.parents) != (not known):
        _refuse(record, place, f"{len(record.parents)} parents; only the first record has none")
    if record.id in known:
        _refuse(record, place, "repeated")
    lost = [parent for parent in record.parents if parent not in known]
    if lost and record.kind is RecordKind.FORK and len(known) == len(record.parents) == 1:
        if record.version != record.base:
            _refuse(record, place, "fork must leave the version as it is")
        return
    if lost:
        _refuse(record, place, f"parent {lost[0][:12]} is not among the records before")
    if known:
        _check_step(record, place, known)


def _check_step(record: Record, place: str, known: Mapping[str, Record]) -> None:
    """Check a record against its parents, which are all known."""
    parents = [known[parent] for parent in record.parents]
    if record.base not in {parent.version for parent in parents}:
        _refuse(record, place, f"base {record.base[:12]} is no parent's version")
    if record.kind not in _CHANGES and record.version != record.base:
        _refuse(record, place, f"{record.kind} must leave the version as it is")
    if len(parents) > 1 and record.kind not in _CHANGES:
        _refuse(record, place, f"{record.kind} has {len(parents)} parents, allowed is one")
    # Epochs rise apart on the branches of a fork; a record goes on with its first parent's.
    epoch = parents[0].epoch
    late = max(parents, key=lambda parent: parent.hop)
    if late.hop > record.hop or epoch > record.epoch:
        _refuse(
            record, place,
            f"hop {record.hop} epoch {record.epoch} after hop {late.hop} epoch {epoch}",
        )  # fmt: skip
    if record.kind is RecordKind.MERGE:
        _check_merge(record, place, parents, known)
    if record.kind is RecordKind.REMOVE and (record.version == record.base or len(parents) > 1):
        _refuse(record, place, "remove must leave another version than its one parent's")
    _check_once(record, place, parents, known)


def _check_merge(
    record: Record, place: str, parents: Sequence[Record], known: Mapping[str, Record]
) -> None:
    """Check that a merge joins branches of one fork and begins a hop of its own.

    A tip may be an ancestor of another: siblings that met.
    """
    fork, *tips = parents
    if fork.kind is not RecordKind.FORK or not tips or record.base != fork.version:
        _refuse(record, place, "merge must follow a fork, begin with its version, and join tips")
    if max(tip.hop for tip in parents) >= record.hop:
        _refuse(record, place, f"merge must be of a later hop than {record.hop}")
    for tip in tips:
        if not _follows(tip, fork, known):
            _refuse(record, place, f"parent {tip.id[:12]} does not follow its fork")
    if len(set(record.parents)) != len(parents):
        _refuse(record, place, "a parent is named twice")


def _follows(tip: Record, fork: Record, known: Mapping[str, Record]) -> bool:
    """Return whether `fork` is among the ancestors of `tip`."""
    found: set[str] = set()
    left = list(tip.parents)
    while left:
        name = left.pop()
        if name == fork.id:
            return True
        if name not in found and name in known:
            found.add(name)
            left += known[name].parents
    return False


def _check_once(
    record: Record, place: str, parents: Iterable[Record], known: Mapping[str, Record]
) -> None:
    """Check that no ancestor had the same effect at the same hop; siblings of a fork may."""
    effect = _VISIT if record.kind in _VISIT else {record.kind}
    same_hop = [parent for parent in parents if parent.hop == record.hop]
    while same_hop:
        ancestor = same_hop.pop()
        if ancestor.kind in effect:
            _refuse(record, place, f"{record.kind} takes effect twice at hop {record.hop}")
        before = (known[parent] for parent in ancestor.parents if parent in known)
        same_hop += [parent for parent in before if parent.hop == record.hop]


def _refuse(record: Record, place: str, reason: str) -> NoReturn:
    raise LedgerError(f"{place} ({record.id[:12] or 'no id'}): {reason}")


# --- verdicts ---------------------------------------------------------------------------------


def verdict_bytes(packet: PacketId, estimate: SkillEstimate) -> bytes:
    """Return what an MPVU signs: this packet, this version, this skill, this value."""
    return _VERDICT + packet.encode() + b"\0" + encode(replace(estimate, signature=b""))


def sign_verdict(packet: PacketId, estimate: SkillEstimate, identity: Identity) -> SkillEstimate:
    """Return the estimate as this MPVU's signed verdict."""
    named = replace(estimate, by=identity.node, source=EstimateSource.MPVU)
    return replace(named, signature=identity.sign(verdict_bytes(packet, named)))


def check_verdict(packet: PacketId, estimate: SkillEstimate, public_key: bytes) -> None:
    """Check a verdict's signature.

    Raises:
        SignatureError: If it does not hold for this packet and this key.
    """
    if not verify(public_key, verdict_bytes(packet, estimate), estimate.signature):
        raise SignatureError(
            f"packet {packet}: verdict on {estimate.skill!r} not signed by {estimate.by}"
        )
