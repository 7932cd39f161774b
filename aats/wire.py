"""Messages <-> bytes: the only place where a stranger's bytes become typed values.

An encoded value is `version (1 byte) | type code (1 byte) | MessagePack map`. Map keys are
sorted and defaults left out (`aats.codec`), a manifest goes by columns, so equal values have
equal bytes, and every signature and content id is taken over these very bytes.

Decoding goes in this order, so that no claim costs memory before it is checked: version, type
code, size limit of the kind, MessagePack with limits on each length, then types, ranges and
unknown fields. Nothing received is ever looked up by name, imported or run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from math import inf, isfinite, prod
from operator import index
from typing import Any, get_args

import msgpack  # type: ignore[import-untyped]  # ships no types
from blake3 import blake3

from aats import advert as ad
from aats import messages as ms
from aats.codec import COUNT, FINITE, MAX_TEXT, Codec, Fault, Rules
from aats.errors import SignatureError, WireError
from aats.identity import Identity, verify
from aats.ids import BRANCH, trunk_of
from aats.lineage import Record
from aats.node import events as ev
from aats.node import tasks as tk
from aats.packet import Cost, Errand, Header, Mandate, SkillEstimate
from aats.payload import ITEM_SIZE, MAX_RANK, Manifest, TensorSpec

WIRE_VERSION = 1

MAX_MESSAGE_BYTES = (2 << 20) - (4 << 10)
"""Largest control message: a relay with a probe's tensors. Fits one 2 MiB chunk frame."""
MAX_HEADER_BYTES = 1 << 20
MAX_OFFER_BYTES = 3 << 18
"""A header on offer leaves room for what its receiver adds to it."""
MAX_ADVERT_BYTES = 64 << 10
MAX_EVENT_BYTES = 64 << 20
"""Events come from our own log; a start may carry every row of the store."""
MAX_PAYLOAD_BYTES = 64 << 30
"""What a manifest may claim at all; how much a node takes is up to its admission."""

TYPES: dict[int, type] = {
    1: ms.Flood, 2: ms.Summary, 3: ms.Pull,
    10: ms.Offer, 11: ms.Accept, 12: ms.Refuse, 13: ms.Custody, 14: ms.Moved, 15: ms.Alive,
    16: ms.Ask, 17: ms.Superseded,
    20: ms.Relay, 21: ms.ProbeAsk, 22: ms.ProbeReply, 23: ms.Samples, 24: ms.SamplesAck,
    25: ms.Whereabouts, 26: ms.StreamFrame, 27: ms.StreamAck, 28: ms.StreamEnd,
    30: Header, 31: Mandate, 32: Record, 33: ad.Advert, 34: ev.CustodyRow, 35: SkillEstimate,
    40: ev.Started, 41: ev.MessageReceived, 42: ev.LinkUp, 43: ev.LinkDown,
    44: ev.PacketReceived, 45: ev.TransferFailed, 46: ev.PacketSubmitted, 47: ev.TaskFinished,
    48: ev.TaskFailed, 49: ev.DataChanged, 50: ev.TaskSpoke, 51: ev.Leaving,
    60: tk.VisitTask, 61: tk.ProbeTask, 62: tk.BatchTask, 63: tk.VerifyTask,
    64: tk.ContributeTask, 65: tk.AdoptTask, 66: tk.MergeTask, 67: tk.FollowTask,
    70: tk.VisitResult, 71: tk.ProbeResult, 72: tk.VerifyResult, 73: tk.ContributeResult,
    74: tk.AdoptResult, 75: tk.MergeResult, 76: tk.FollowResult,
    80: tk.Spoken, 81: tk.Lost,
}  # fmt: skip
"""Type codes of wire version 1: only ever added to."""

_LIMITS: dict[type, int] = {
    ms.Flood: MAX_MESSAGE_BYTES,
    ms.Relay: MAX_MESSAGE_BYTES,
    ms.Offer: MAX_OFFER_BYTES,
    ev.CustodyRow: MAX_HEADER_BYTES + (16 << 10),
    ad.Advert: MAX_ADVERT_BYTES,
    **dict.fromkeys(get_args(ev.Event), MAX_EVENT_BYTES),
    **dict.fromkeys(get_args(tk.Task), MAX_MESSAGE_BYTES + MAX_HEADER_BYTES),
    **dict.fromkeys(get_args(tk.Result), MAX_MESSAGE_BYTES + MAX_HEADER_BYTES),
    tk.FollowTask: MAX_EVENT_BYTES,
    tk.MergeTask: MAX_EVENT_BYTES,
    tk.Spoken: MAX_EVENT_BYTES,
}  # fmt: skip
"""Bytes of one encoded value, where it is not `MAX_HEADER_BYTES`."""

_POSITIVE = (0.0, FINITE)
_SHARE = (0.0, 1.0)
_SEED = (0, (1 << 64) - 1)
_RANGES: dict[tuple[type, str], tuple[float, float]] = {
    **dict.fromkeys(
        [(Cost, "hops"), (Cost, "seconds"), (Cost, "bytes"), (Cost, "joules")], (0.0, inf)
    ),
    (Mandate, "deadline"): (-FINITE, inf),
    (Errand, "until"): (-FINITE, inf),
    **dict.fromkeys([(Mandate, "seed"), (Record, "seed"), (ms.ProbeAsk, "seed")], _SEED),
    **dict.fromkeys([(Record, "seconds"), (Record, "wire_bytes"), (Record, "joules")], _POSITIVE),
    (Header, "probe_bytes"): _POSITIVE,
    (Header, "quorum"): _SHARE,
    (ad.LinkAdvert, "bandwidth_bps"): (1.0, FINITE),
    (ad.LinkAdvert, "latency_s"): _POSITIVE,
    (ad.LinkAdvert, "loss"): _SHARE,
    (ad.DataAdvert, "quality"): _SHARE,
    (ad.DataAdvert, "freshness_s"): _POSITIVE,
    (ad.ComputeAdvert, "samples_per_s"): _POSITIVE,
    (ad.ComputeAdvert, "joules_per_sample"): _POSITIVE,
    (ad.SignedAdvert, "age_s"): _POSITIVE,
}  # fmt: skip
"""Allowed values where they are not 0..2^63-1 (int) or finite (float): a negative latency would
break every path computation. NaN is in no range."""


# --- what a type alone cannot say -------------------------------------------------------------


def _check_manifest(manifest: Manifest) -> None:
    try:
        manifest.check(limit_bytes=MAX_PAYLOAD_BYTES)
    except WireError as error:
        raise Fault(str(error)) from error


_packed: deque[tuple[Manifest, dict[str, Any]]] = deque(maxlen=8)
"""The last manifests packed or unpacked. A hop signs, offers, checks and stores the same header,
and most of it is tensors; the next hop's tensors differ from them in nothing but the digests."""
_LAYOUT = ("dtypes", "names", "offsets", "shapes", "total")
_COLUMNS = ("digests", *_LAYOUT)


def _pack_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest by columns."""
    if type(manifest) is not Manifest:
        raise Fault(f"{type(manifest).__name__} is no Manifest")
    for known, columns in tuple(_packed):
        if known is manifest:
            return columns
    like = next((columns for known, columns in tuple(_packed) if _alike(known, manifest)), None)
    columns = _columns(manifest) if like is None else {**like, "digests": _digests(manifest)}
    _packed.append((manifest, columns))
    return columns


def _alike(a: Manifest, b: Manifest) -> bool:
    """Return whether two manifests differ in nothing but the digests, each of the right length."""
    return (
        a.total == b.total
        and len(a.tensors) == len(b.tensors)
        and all(
            s[:-1] == t[:-1] and len(t.digest) == 32
            for s, t in zip(a.tensors, b.tensors, strict=True)
        )
    )


def _columns(manifest: Manifest) -> dict[str, Any]:
    _check_manifest(manifest)
    tensors = manifest.tensors
    try:
        return {
            "digests": _digests(manifest),
            "dtypes": [t.dtype for t in tensors],
            "names": [t.name for t in tensors],
            "offsets": [index(t.offset) for t in tensors],
            "shapes": [list(map(index, t.shape)) for t in tensors],
            "total": index(manifest.total),
        }
    except TypeError as error:
        raise Fault(f"manifest: {error}") from error


def _digests(manifest: Manifest) -> bytes:
    return b"".join([t.digest for t in manifest.tensors])


def _unpack_manifest(value: Any) -> Manifest:
    if type(value) is not dict or tuple(sorted(value)) != _COLUMNS:
        raise Fault(f"manifest: not a map of {', '.join(_COLUMNS)}")
    digests, dtypes, names, offsets, shapes, total = (value[name] for name in _COLUMNS)
    columns = (dtypes, names, offsets, shapes)
    if type(digests) is not bytes or any(type(c) is not list for c in columns):
        raise Fault("manifest: a column of the wrong type")
    if {len(digests), *(32 * len(c) for c in columns)} != {len(digests)}:
        raise Fault("manifest: columns of different lengths")
    if not _all(str, names) or not _all(str, dtypes):
        raise Fault("manifest: a name or a dtype is no str")
    if not _all(int, (total, *offsets)):
        raise Fault("manifest: an offset or the total is no int")
    _check_shapes(shapes)
    each = [digests[at : at + 32] for at in range(0, len(digests), 32)]
    for known, theirs in tuple(_packed):
        if all(theirs[name] == value[name] for name in _LAYOUT):
            like = zip(known.tensors, each, strict=True)
            manifest = Manifest(tuple([TensorSpec(*t[:-1], d) for t, d in like]), total)
            _packed.append((manifest, {**theirs, "digests": digests}))
            return manifest
    sizes = [
        prod(shape) * ITEM_SIZE.get(dtype, 0) for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    specs = map(TensorSpec, names, dtypes, map(tuple, shapes), offsets, sizes, each)
    manifest = Manifest(tuple(specs), total)
    _check_manifest(manifest)
    _packed.append((manifest, {name: value[name] for name in _COLUMNS}))
    return manifest


def _all(kind: type, values: Iterable[Any]) -> bool:
    return set(map(type, values)) <= {kind}


def _check_shapes(shapes: list[Any]) -> None:
    """Check received shapes before anything is computed of them."""
    if not _all(list, shapes) or max(map(len, shapes), default=0) > MAX_RANK:
        raise Fault(f"manifest: a shape is no list of up to {MAX_RANK} sizes")
    sizes = tuple(chain.from_iterable(shapes))
    if not _all(int, sizes) or (sizes and not 0 <= min(sizes) <= max(sizes) <= COUNT[1]):
        raise Fault("manifest: a size that is no int, or out of range")


def _check_tensors(body: ms.ProbeAsk | ms.ProbeReply | ms.Samples) -> None:
    if body.manifest.total != len(body.tensors):
        raise Fault(
            f"{len(body.tensors)} bytes of tensors, the manifest says {body.manifest.total}"
        )


def _check_spoken(frame: tk.Spoken) -> None:
    if frame.manifest.total != len(frame.tensors):
        raise Fault(f"{len(frame.tensors)} bytes, the manifest says {frame.manifest.total}")


def _check_signed_advert(signed: ad.SignedAdvert) -> None:
    if len(signed.body) > MAX_ADVERT_BYTES:
        raise Fault(f"advert of {len(signed.body)} bytes, allowed are {MAX_ADVERT_BYTES}")


def _check_header(header: Header) -> None:
    spent = header.spent
    if not all(map(isfinite, (spent.hops, spent.seconds, spent.bytes, spent.joules))):
        raise Fault("spent is not finite")
    if header.branch and not BRANCH.fullmatch(header.branch):
        raise Fault(f"{header.branch[:80]!r} is no branch of a packet")
    if len({bool(header.branch), bool(header.rendezvous), header.errand is not None}) != 1:
        raise Fault("branch, errand and rendezvous come together")
    if header.awaited and header.branch:
        raise Fault("a child awaits nobody")


def _check_mandate(mandate: Mandate) -> None:
    if trunk_of(mandate.id) != mandate.id:
        raise Fault(f"{mandate.id} is the id of a child; a mandate has its packet's")


def _check_offer(offer: ms.Offer) -> None:
    if offer.key.packet != offer.header.id:
        raise Fault(f"key of packet {offer.key.packet}, header of packet {offer.header.id}")


_CHECKS: dict[type, Callable[[Any], None]] = {
    ms.ProbeAsk: _check_tensors,
    ms.ProbeReply: _check_tensors,
    ms.Samples: _check_tensors,
    tk.Spoken: _check_spoken,
    ad.SignedAdvert: _check_signed_advert,
    Header: _check_header,
    Mandate: _check_mandate,
    ms.Offer: _check_offer,
}

_RULES = Rules(
    {kind: code for code, kind in TYPES.items()},
    _RANGES,
    _CHECKS,
    {Manifest: Codec(_pack_manifest, _unpack_manifest)},
    frozenset({Header, Mandate, tuple[Record, ...]}),
)


# --- the frame --------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """Return the canonical bytes of any value in `TYPES`: equal values, equal bytes.

    Raises:
        WireError: If a field has a value that no receiver would take, or all of it is too large.
    """
    return _framed(type(value), _packed_fields(value))


def _packed_fields(value: Any) -> dict[str, Any]:
    """Return a value as the map that MessagePack writes; not to be changed."""
    kind = type(value)
    try:
        fields: dict[str, Any] = _RULES.codec(kind).pack(value)
    except Fault as fault:
        raise WireError(f"{kind.__name__}{fault.path}: {fault.reason}") from fault
    return fields


def _framed(kind: type, fields: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    data = bytes((WIRE_VERSION, _RULES.codes[kind])) + packed
    _check_size(kind, len(data))
    return data


def decode(data: bytes | memoryview, kinds: Sequence[type]) -> Any:
    """Return the value of one of `kinds` that `data` holds.

    Raises:
        WireError: Whatever is wrong with `data`, naming the field.
    """
    if len(data) < 3:
        raise WireError(f"{len(data)} bytes are no message")
    if data[0] != WIRE_VERSION:
        raise WireError(f"wire version {data[0]}, this node speaks version {WIRE_VERSION}")
    kind = TYPES.get(data[1])
    if kind is None or kind not in kinds:
        raise WireError(f"type code {data[1]} is not one of {_RULES.names(kinds)}")
    _check_size(kind, len(data))
    try:
        return _RULES.codec(kind).unpack(_unpack(data[2:], _limit(kind)))
    except Fault as fault:
        raise WireError(f"{kind.__name__}{fault.path}: {fault.reason}") from fault
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"{kind.__name__}: {str(error)[:200] or 'no MessagePack'}") from error


def _limit(kind: type) -> int:
    return _LIMITS.get(kind, MAX_HEADER_BYTES)


def _check_size(kind: type, size_bytes: int) -> None:
    if size_bytes > _limit(kind):
        raise WireError(f"{kind.__name__} of {size_bytes} bytes, allowed are {_limit(kind)}")


def _unpack(data: bytes | memoryview, limit: int) -> Any:
    # MessagePack allocates a list at its claimed length, and each level of nesting may claim
    # anew. A pass that builds nothing shows first that all that is claimed is there.
    scan = msgpack.Unpacker(read_size=len(data), max_buffer_size=limit)
    scan.feed(data)
    scan.skip()
    return msgpack.unpackb(
        data,
        raw=False,
        strict_map_key=True,
        object_pairs_hook=_without_repeats,
        max_str_len=4 * MAX_TEXT,
        max_bin_len=limit,
        max_array_len=len(data),
        max_map_len=len(data),
        max_ext_len=0,
    )


def _without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise Fault("a key is repeated")
    return out


def encode_message(message: ms.Message) -> bytes:
    """Return a control message as bytes."""
    return encode(message)


def decode_message(data: bytes | memoryview) -> ms.Message:
    """Return the control message in `data`, or raise `WireError`."""
    message: ms.Message = decode(data, get_args(ms.Message))
    return message


def encode_header(header: Header) -> bytes:
    """Return a header as bytes."""
    return encode(header)


def decode_header(data: bytes | memoryview) -> Header:
    """Return the header in `data`, or raise `WireError`."""
    header: Header = decode(data, (Header,))
    return header


def can_be_offered(header: Header) -> bool:
    """Return whether a header is small enough to be handed on, signature and path included."""
    try:
        return len(encode(header)) <= MAX_OFFER_BYTES - (32 << 10)
    except WireError:
        return False


def encode_record(record: Record) -> bytes:
    """Return a ledger record as bytes."""
    return encode(record)


def decode_record(data: bytes | memoryview) -> Record:
    """Return the ledger record in `data`, or raise `WireError`."""
    record: Record = decode(data, (Record,))
    return record


def encode_row(row: ev.CustodyRow) -> bytes:
    """Return a custody row as bytes."""
    return encode(row)


def decode_row(data: bytes | memoryview) -> ev.CustodyRow:
    """Return the custody row in `data`, or raise `WireError`."""
    row: ev.CustodyRow = decode(data, (ev.CustodyRow,))
    return row


def encode_advert(advert: ad.Advert) -> bytes:
    """Return an advert as bytes: the body of a `SignedAdvert`."""
    return encode(advert)


def decode_advert(data: bytes | memoryview) -> ad.Advert:
    """Return the advert in `data`, or raise `WireError`."""
    advert: ad.Advert = decode(data, (ad.Advert,))
    return advert


def encode_event(event: ev.Event) -> bytes:
    """Return an event as bytes, so that a core's event log can be saved."""
    return encode(event)


def decode_event(data: bytes | memoryview) -> ev.Event:
    """Return the event in `data`, or raise `WireError`."""
    event: ev.Event = decode(data, get_args(ev.Event))
    return event


def encode_told(told: tk.Told) -> bytes:
    """Return what a running task is told as bytes, for its process."""
    return encode(told)


def decode_told(data: bytes | memoryview) -> tk.Told:
    """Return what a running task is told, or raise `WireError`."""
    told: tk.Told = decode(data, get_args(tk.Told))
    return told


def encode_task(task: tk.Task) -> bytes:
    """Return a task as bytes, for the process that runs it."""
    return encode(task)


def decode_task(data: bytes | memoryview) -> tk.Task:
    """Return the task in `data`, or raise `WireError`."""
    task: tk.Task = decode(data, get_args(tk.Task))
    return task


# --- signatures -------------------------------------------------------------------------------

CHECKED_KEPT = 10_000
_checked: set[bytes] = set()
"""Digests of mandates, key and signature included, that held: a packet comes by more than once."""


def _unsigned(value: Header | Mandate) -> bytes:
    """Return the canonical bytes of a value without its signature: what is signed."""
    fields = _packed_fields(value)
    return _framed(type(value), {name: fields[name] for name in fields if name != "signature"})


def sign_mandate(mandate: Mandate, identity: Identity) -> Mandate:
    """Return the mandate signed by its owner.

    Raises:
        ValueError: If `identity` is not the owner's.
    """
    if (mandate.owner.node, mandate.owner.public_key) != (identity.node, identity.public_key):
        raise ValueError(f"mandate of {mandate.owner.node} cannot be signed by {identity.node}")
    return replace(mandate, signature=identity.sign(_unsigned(mandate)))


def check_mandate(mandate: Mandate) -> None:
    """Check the owner's signature; one that held before is not computed again.

    Raises:
        SignatureError: If it does not hold.
    """
    body = _unsigned(mandate)
    mark = blake3(body + mandate.signature).digest()
    if mark in _checked:
        return
    if not verify(mandate.owner.public_key, body, mandate.signature):
        raise SignatureError(f"packet {mandate.id}: not signed by its owner {mandate.owner.node}")
    if len(_checked) >= CHECKED_KEPT:
        _checked.clear()
    _checked.add(mark)


def _header_digest(header: Header) -> bytes:
    return blake3(_unsigned(header)).digest()


def sign_header(header: Header, identity: Identity) -> Header:
    """Return the header with this node as its holder, signed by it."""
    held = replace(header, holder=identity.node)
    return replace(held, signature=identity.sign(_header_digest(held)))


def check_header(header: Header, public_key: bytes) -> None:
    """Check the holder's signature over the whole header.

    Raises:
        SignatureError: If it does not hold.
    """
    if not verify(public_key, _header_digest(header), header.signature):
        holder = header.holder or "anyone"
        raise SignatureError(f"packet {header.id}: header not signed by {holder}")


_RELAY = b"aats relay 1\0"
"""Keeps a relay's signature from standing for anything else."""


def _relay_bytes(relay: ms.Relay) -> bytes:
    return _RELAY + blake3(encode(replace(relay, ttl=0, signature=b""))).digest()


def sign_relay(relay: ms.Relay, identity: Identity) -> ms.Relay:
    """Return the request or answer signed by its source.

    Raises:
        ValueError: If `identity` is not the source's.
    """
    if relay.src != identity.node:
        raise ValueError(f"relay of {relay.src} cannot be signed by {identity.node}")
    return replace(relay, signature=identity.sign(_relay_bytes(relay)))


def check_relay(relay: ms.Relay, public_key: bytes) -> None:
    """Check the source's signature.

    Raises:
        SignatureError: If it does not hold.
    """
    if not verify(public_key, _relay_bytes(relay), relay.signature):
        kind = type(relay.body).__name__
        raise SignatureError(f"{kind} {relay.request[:80]!r}: not signed by {relay.src}")


def sign_advert(advert: ad.Advert, identity: Identity, age_s: float = 0.0) -> ad.SignedAdvert:
    """Return the advert encoded and signed by its origin.

    Raises:
        ValueError: If `identity` is not the origin's.
    """
    if (advert.origin, advert.public_key) != (identity.node, identity.public_key):
        raise ValueError(f"advert of {advert.origin} cannot be signed by {identity.node}")
    body = encode_advert(advert)
    return ad.SignedAdvert(advert.origin, advert.seq, age_s, body, identity.sign(body))


def check_advert(signed: ad.SignedAdvert, public_key: bytes | None) -> ad.Advert:
    """Return the advert inside, if all of it holds.

    Args:
        signed: As received.
        public_key: The origin's, where it is known; None trusts the key inside, and whether a
            first sight is enough is up to the caller.

    Raises:
        WireError: If the body is no advert.
        SignatureError: If the signature, the key or the envelope does not fit the body.
    """
    advert = decode_advert(signed.body)
    key = advert.public_key if public_key is None else public_key
    if advert.public_key != key:
        raise SignatureError(f"advert of {signed.origin}: another key than the one known")
    if (advert.origin, advert.seq) != (signed.origin, signed.seq):
        raise SignatureError(
            f"advert of {signed.origin} seq {signed.seq}: signed as "
            f"{advert.origin} seq {advert.seq}"
        )
    if not verify(key, signed.body, signed.signature):
        raise SignatureError(f"advert of {signed.origin}: signature does not hold")
    return advert
