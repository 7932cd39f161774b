"""Messages <-> bytes: the only place where a stranger's bytes become typed values.

An encoded value is `version (1 byte) | type code (1 byte) | MessagePack map`. A dataclass is a
map from field name to value; fields that have their default are left out; map keys are sorted;
a member of a union is `[type code, map]`. Equal values therefore have equal bytes, and every
signature and content id is taken over these very bytes.

Decoding goes in this order, so that no claim costs memory before it is checked: size limit of
the kind, version, code, MessagePack with limits on each length, then types, ranges and unknown
fields, by a codec that is compiled once per dataclass from its annotations. Nothing received
is ever looked up by name, imported or run.
"""

from __future__ import annotations

import operator
import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from math import inf, isfinite
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

import msgpack  # type: ignore[import-untyped]  # ships no types
from blake3 import blake3

from aats import advert as ad
from aats import messages as ms
from aats.errors import SignatureError, WireError
from aats.identity import Identity, verify
from aats.ids import NODE_ID, NodeId, PacketId, Version
from aats.lineage import Record
from aats.node import events as ev
from aats.node import tasks as tk
from aats.packet import Cost, Header, Mandate, SkillEstimate
from aats.payload import MAX_TENSORS, Manifest

WIRE_VERSION = 1

MAX_MESSAGE_BYTES = (2 << 20) - (4 << 10)
"""Largest control message: a relay with a probe's tensors. Fits one 2 MiB chunk frame."""
MAX_HEADER_BYTES = 1 << 20
MAX_ADVERT_BYTES = 64 << 10
MAX_EVENT_BYTES = 64 << 20
"""Events come from our own log; a start may carry every row of the store."""
MAX_PAYLOAD_BYTES = 1 << 40
"""What a manifest may claim at all; how much a node takes is up to its admission."""
MAX_STRING_BYTES = 64 << 10
MAX_DEPTH = 8
"""Nesting of free parameters (`Plugin.params`, `Architecture.config`)."""

TYPES: dict[int, type] = {
    1: ms.Flood, 2: ms.Summary, 3: ms.Pull,
    10: ms.Offer, 11: ms.Accept, 12: ms.Refuse, 13: ms.Custody, 14: ms.Moved, 15: ms.Alive,
    16: ms.Ask, 17: ms.Superseded,
    20: ms.Relay, 21: ms.ProbeAsk, 22: ms.ProbeReply, 23: ms.Samples, 24: ms.SamplesAck,
    30: Header, 31: Mandate, 32: Record, 33: ad.Advert, 34: ev.CustodyRow, 35: SkillEstimate,
    40: ev.Started, 41: ev.MessageReceived, 42: ev.LinkUp, 43: ev.LinkDown,
    44: ev.PacketReceived, 45: ev.TransferFailed, 46: ev.PacketSubmitted, 47: ev.TaskFinished,
    48: ev.TaskFailed, 49: ev.DataChanged,
    60: tk.VisitTask, 61: tk.ProbeTask, 62: tk.BatchTask, 63: tk.VerifyTask,
    64: tk.ContributeTask, 65: tk.AdoptTask,
    70: tk.VisitResult, 71: tk.ProbeResult, 72: tk.VerifyResult, 73: tk.ContributeResult,
    74: tk.AdoptResult,
}  # fmt: skip
"""Type codes of wire version 1: only ever added to."""
_CODES = {kind: code for code, kind in TYPES.items()}

_LIMITS: dict[type, int] = {
    ms.Flood: MAX_MESSAGE_BYTES,
    ms.Relay: MAX_MESSAGE_BYTES,
    ms.Offer: MAX_HEADER_BYTES + (8 << 10),
    ev.CustodyRow: MAX_HEADER_BYTES + (16 << 10),
    ad.Advert: MAX_ADVERT_BYTES,
    **dict.fromkeys(get_args(ev.Event), MAX_EVENT_BYTES),
    **dict.fromkeys(get_args(tk.Task), MAX_MESSAGE_BYTES + MAX_HEADER_BYTES),
    **dict.fromkeys(get_args(tk.Result), MAX_MESSAGE_BYTES + MAX_HEADER_BYTES),
}  # fmt: skip
"""Bytes of one encoded value, where it is not `MAX_HEADER_BYTES`."""

_FINITE = sys.float_info.max
_POSITIVE = (0.0, _FINITE)
_SHARE = (0.0, 1.0)
_SEED = (0, (1 << 64) - 1)
_COUNT = (0, (1 << 63) - 1)
_RANGES: dict[tuple[type, str], tuple[float, float]] = {
    **dict.fromkeys(
        [(Cost, "hops"), (Cost, "seconds"), (Cost, "bytes"), (Cost, "joules")], (0.0, inf)
    ),
    (Mandate, "deadline"): (-_FINITE, inf),
    **dict.fromkeys([(Mandate, "seed"), (Record, "seed"), (ms.ProbeAsk, "seed")], _SEED),
    **dict.fromkeys([(Record, "seconds"), (Record, "wire_bytes"), (Record, "joules")], _POSITIVE),
    (Header, "probe_bytes"): _POSITIVE,
    (ad.LinkAdvert, "bandwidth_bps"): (1.0, _FINITE),
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

_PACKET_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION = re.compile(r"([0-9a-f]{64})?")
_DESTINATION = re.compile(r"(final)?(dest(ination)?|dst|target(node|host)|next(hop|stop|node))s?")
"""Keys, without '_', '-' and case, that no free dictionary may have: an AI packet has no
destination, and none may be smuggled into its parameters."""

Pack = Callable[[Any], Any]
"""Typed value -> MessagePack builtins, or the reverse."""


class _Fault(Exception):
    """A value that is not allowed; containers put their part of the path in front."""

    def __init__(self, reason: str) -> None:
        self.path, self.reason = "", reason

    def within(self, part: str) -> _Fault:
        self.path = part + self.path
        return self


@dataclass(frozen=True, slots=True)
class _Codec:
    pack: Pack
    unpack: Pack


# --- leaves -----------------------------------------------------------------------------------


def _show(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _number(kind: type[int] | type[float], low: float, high: float) -> _Codec:
    def unpack(value: Any) -> Any:
        if type(value) is not kind:
            raise _Fault(f"{_show(value)} is no {kind.__name__}")
        if not low <= value <= high:
            raise _Fault(f"{_show(value)} is outside {low:.15g}..{high:.15g}")
        return value

    convert: Pack = float if kind is float else operator.index

    def pack(value: Any) -> Any:
        try:
            number = convert(value)
        except (TypeError, ValueError, OverflowError):
            raise _Fault(f"{_show(value)} is no {kind.__name__}") from None
        return unpack(number)

    return _Codec(pack, unpack)


def _exactly(kind: type) -> _Codec:
    def same(value: Any) -> Any:
        if type(value) is not kind:
            raise _Fault(f"{_show(value)} is no {kind.__name__}")
        return value

    return _Codec(same, same)


def _string(pattern: re.Pattern[str] | None = None, what: str = "") -> _Codec:
    def same(value: Any) -> Any:
        if type(value) is not str:
            raise _Fault(f"{_show(value)} is no str")
        if pattern is not None and not pattern.fullmatch(value):
            raise _Fault(f"{_show(value)} is no {what}")
        return value

    return _Codec(same, same)


def _pack_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _Fault(f"{_show(value)} is no bytes")
    return bytes(value)


def _enum(kind: type[Enum]) -> _Codec:
    members = {member.value: member for member in kind}

    def unpack(value: Any) -> Any:
        if type(value) is not str or value not in members:
            raise _Fault(f"{_show(value)} is not one of {', '.join(members)}")
        return members[value]

    return _Codec(lambda value: unpack(str(value)).value, unpack)


def _key(key: Any) -> str:
    if type(key) is not str:
        raise _Fault(f"key {_show(key)} is no str")
    if _DESTINATION.fullmatch(re.sub(r"[_\-. ]", "", key).lower()):
        raise _Fault(f"key {key!r} is refused: a packet has no destination")
    return key


def _json(value: Any, depth: int = 0) -> Any:
    """Check (and copy) free parameters: JSON values, no NaN, no destination."""
    if depth > MAX_DEPTH:
        raise _Fault(f"nested deeper than {MAX_DEPTH}")
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int and -(1 << 63) <= value < 1 << 64:
        return value
    if type(value) is float and isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_json(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_key(k): _json(value[k], depth + 1) for k in sorted(value, key=str)}
    raise _Fault(f"{_show(value)} is no finite JSON value")


# --- containers -------------------------------------------------------------------------------


def _sequence(item: _Codec, build: type[tuple[Any, ...]] | type[list[Any]]) -> _Codec:
    def walk(one: Pack, value: Any, kinds: Any) -> list[Any]:
        if not isinstance(value, kinds):
            raise _Fault(f"{_show(value)} is no list")
        out: list[Any] = []
        try:
            for element in value:
                out.append(one(element))
        except _Fault as fault:
            raise fault.within(f"[{len(out)}]") from None
        return out

    return _Codec(
        lambda value: walk(item.pack, value, (list, tuple)),
        lambda value: build(walk(item.unpack, value, list)),
    )


def _mapping(item: _Codec) -> _Codec:
    def walk(one: Pack, value: Any, order: Callable[[Any], Any]) -> dict[str, Any]:
        if type(value) is not dict:
            raise _Fault(f"{_show(value)} is no map")
        out = {}
        for key in order(value):
            try:
                out[_key(key)] = one(value[key])
            except _Fault as fault:
                raise fault.within(f".{str(key)[:80]}") from None
        return out

    return _Codec(
        lambda value: walk(item.pack, value, lambda keys: sorted(keys, key=str)),
        lambda value: walk(item.unpack, value, iter),
    )


def _optional(item: _Codec) -> _Codec:
    return _Codec(
        lambda value: None if value is None else item.pack(value),
        lambda value: None if value is None else item.unpack(value),
    )


def _union(kinds: Sequence[type]) -> _Codec:
    """Return the codec of a tagged union: `[type code, map]`."""
    codecs = {_CODES[kind]: _dataclass(kind) for kind in kinds}

    def pack(value: Any) -> Any:
        code = _CODES.get(type(value), -1)
        if code not in codecs:
            raise _Fault(f"{_show(value)} is not one of {_names(kinds)}")
        return [code, codecs[code].pack(value)]

    def unpack(value: Any) -> Any:
        if type(value) is not list or len(value) != 2 or type(value[0]) is not int:
            raise _Fault(f"{_show(value)} is no [type code, map]")
        if value[0] not in codecs:
            raise _Fault(f"type code {value[0]} is not one of {_names(kinds)}")
        return codecs[value[0]].unpack(value[1])

    return _Codec(pack, unpack)


def _names(kinds: Sequence[type]) -> str:
    return ", ".join(f"{kind.__name__} ({_CODES[kind]})" for kind in kinds)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def _dataclass(kind: type[Any]) -> _Codec:
    """Compile the codec of a dataclass from its annotations."""
    hints = get_type_hints(kind)
    codecs = {f.name: _codec(hints[f.name], _RANGES.get((kind, f.name))) for f in fields(kind)}
    defaults = {f.name: _default(f) for f in fields(kind)}
    required = {name for name, default in defaults.items() if default is MISSING}
    packers = [(name, codecs[name].pack, defaults[name]) for name in sorted(codecs)]
    unpackers = {name: codec.unpack for name, codec in codecs.items()}
    check = _CHECKS.get(kind)

    def pack(value: Any) -> Any:
        if type(value) is not kind:
            raise _Fault(f"{_show(value)} is no {kind.__name__}")
        if check:
            check(value)
        out = {}
        for name, one, default in packers:
            item = getattr(value, name)
            if item == default:
                continue
            try:
                out[name] = one(item)
            except _Fault as fault:
                raise fault.within(f".{name}") from None
        return out

    def unpack(value: Any) -> Any:
        if type(value) is not dict:
            raise _Fault(f"{_show(value)} is no map of {kind.__name__}")
        arguments = {}
        for name, item in value.items():
            one = unpackers.get(name)
            if one is None:
                raise _Fault(f"{kind.__name__} has no field {_show(name)}")
            try:
                arguments[name] = one(item)
            except _Fault as fault:
                raise fault.within(f".{name}") from None
        if not required <= arguments.keys():
            missing = ", ".join(sorted(required - arguments.keys()))
            raise _Fault(f"{kind.__name__} lacks {missing}")
        built = kind(**arguments)
        if check:
            check(built)
        return built

    return _Codec(pack, unpack)


def _codec(hint: Any, bounds: tuple[float, float] | None = None) -> _Codec:
    """Return the codec of an annotation.

    Raises:
        TypeError: If a contract uses a type that has no place on the wire.
    """
    if hint in _LEAVES and bounds is None:
        return _LEAVES[hint]
    if hint is int:
        return _number(int, *bounds or _COUNT)
    if hint is float:
        return _number(float, *bounds or (-_FINITE, _FINITE))
    if isinstance(hint, NewType):
        return _codec(hint.__supertype__)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint)
    if is_dataclass(hint):
        return _dataclass(hint)  # type: ignore[arg-type]  # a class: it is an annotation
    return _generic(hint)


def _generic(hint: Any) -> _Codec:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [a for a in arguments if a is not type(None)]
        item = _codec(kinds[0]) if len(kinds) == 1 else _union(kinds)
        return item if len(kinds) == len(arguments) else _optional(item)
    if origin is tuple and arguments[1:] == (...,):
        return _sequence(_codec(arguments[0]), tuple)
    if origin is list:
        return _sequence(_codec(arguments[0]), list)
    if origin is dict and arguments[0] is str:
        return _mapping(_codec(arguments[1]))
    raise TypeError(f"{hint!r} has no place on the wire")


_LEAVES: dict[Any, _Codec] = {
    str: _string(),
    bytes: _Codec(_pack_bytes, _exactly(bytes).unpack),
    bool: _exactly(bool),
    NodeId: _string(NODE_ID, "node id"),
    PacketId: _string(_PACKET_ID, "packet id (a UUID in canonical form)"),
    Version: _string(_VERSION, "version (64 hex digits)"),
    Any: _Codec(_json, _json),
}


# --- what a type alone cannot say -----------------------------------------------------------------


def _check_manifest(manifest: Manifest) -> None:
    try:
        manifest.check(limit_bytes=MAX_PAYLOAD_BYTES)
    except WireError as error:
        raise _Fault(str(error)) from error


def _check_tensors(body: ms.ProbeAsk | ms.ProbeReply | ms.Samples) -> None:
    if body.manifest.total != len(body.tensors):
        raise _Fault(
            f"{len(body.tensors)} bytes of tensors, the manifest says {body.manifest.total}"
        )


def _check_signed_advert(signed: ad.SignedAdvert) -> None:
    if len(signed.body) > MAX_ADVERT_BYTES:
        raise _Fault(f"advert of {len(signed.body)} bytes, allowed are {MAX_ADVERT_BYTES}")


def _check_header(header: Header) -> None:
    spent = header.spent
    if not all(map(isfinite, (spent.hops, spent.seconds, spent.bytes, spent.joules))):
        raise _Fault("spent is not finite")


def _check_offer(offer: ms.Offer) -> None:
    if offer.key.packet != offer.header.id:
        raise _Fault(f"key of packet {offer.key.packet}, header of packet {offer.header.id}")


_CHECKS: dict[type, Callable[[Any], None]] = {
    Manifest: _check_manifest,
    ms.ProbeAsk: _check_tensors,
    ms.ProbeReply: _check_tensors,
    ms.Samples: _check_tensors,
    ad.SignedAdvert: _check_signed_advert,
    Header: _check_header,
    ms.Offer: _check_offer,
}


# --- the frame --------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """Return the canonical bytes of any value in `TYPES`: equal values, equal bytes.

    Raises:
        WireError: If a field has a value that no receiver would take, or all of it is too large.
    """
    kind = type(value)
    code = _CODES[kind]
    try:
        body = _dataclass(kind).pack(value)
    except _Fault as fault:
        raise WireError(f"{kind.__name__}{fault.path}: {fault.reason}") from fault
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    data = bytes((WIRE_VERSION, code)) + packed
    _check_size(kind, len(data))
    return data


def _decode(data: bytes | memoryview, kinds: Sequence[type]) -> Any:
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
        raise WireError(f"type code {data[1]} is not one of {_names(kinds)}")
    _check_size(kind, len(data))
    try:
        return _dataclass(kind).unpack(_unpack(data[2:]))
    except _Fault as fault:
        raise WireError(f"{kind.__name__}{fault.path}: {fault.reason}") from fault
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"{kind.__name__}: {str(error)[:200] or 'no MessagePack'}") from error


def _check_size(kind: type, size_bytes: int) -> None:
    limit = _LIMITS.get(kind, MAX_HEADER_BYTES)
    if size_bytes > limit:
        raise WireError(f"{kind.__name__} of {size_bytes} bytes, allowed are {limit}")


def _unpack(data: bytes | memoryview) -> Any:
    # MessagePack allocates a list at its claimed length and each level of nesting may claim
    # anew, so the length is bounded by the data and by the longest list that is legal.
    length = min(len(data), MAX_TENSORS)
    return msgpack.unpackb(
        data,
        raw=False,
        strict_map_key=True,
        object_pairs_hook=_without_repeats,
        max_str_len=MAX_STRING_BYTES,
        max_bin_len=MAX_MESSAGE_BYTES,
        max_array_len=length,
        max_map_len=length,
        max_ext_len=0,
    )


def _without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _Fault("a key is repeated")
    return out


def encode_message(message: ms.Message) -> bytes:
    """Return a control message as bytes."""
    return encode(message)


def decode_message(data: bytes | memoryview) -> ms.Message:
    """Return the control message in `data`, or raise `WireError`."""
    message: ms.Message = _decode(data, get_args(ms.Message))
    return message


def encode_header(header: Header) -> bytes:
    """Return a header as bytes."""
    return encode(header)


def decode_header(data: bytes | memoryview) -> Header:
    """Return the header in `data`, or raise `WireError`."""
    header: Header = _decode(data, (Header,))
    return header


def encode_record(record: Record) -> bytes:
    """Return a ledger record as bytes."""
    return encode(record)


def decode_record(data: bytes | memoryview) -> Record:
    """Return the ledger record in `data`, or raise `WireError`."""
    record: Record = _decode(data, (Record,))
    return record


def encode_row(row: ev.CustodyRow) -> bytes:
    """Return a custody row as bytes."""
    return encode(row)


def decode_row(data: bytes | memoryview) -> ev.CustodyRow:
    """Return the custody row in `data`, or raise `WireError`."""
    row: ev.CustodyRow = _decode(data, (ev.CustodyRow,))
    return row


def encode_advert(advert: ad.Advert) -> bytes:
    """Return an advert as bytes: the body of a `SignedAdvert`."""
    return encode(advert)


def decode_advert(data: bytes | memoryview) -> ad.Advert:
    """Return the advert in `data`, or raise `WireError`."""
    advert: ad.Advert = _decode(data, (ad.Advert,))
    return advert


def encode_event(event: ev.Event) -> bytes:
    """Return an event as bytes, so that a core's event log can be saved."""
    return encode(event)


def decode_event(data: bytes | memoryview) -> ev.Event:
    """Return the event in `data`, or raise `WireError`."""
    event: ev.Event = _decode(data, get_args(ev.Event))
    return event


# --- signatures -------------------------------------------------------------------------------


def sign_mandate(mandate: Mandate, identity: Identity) -> Mandate:
    """Return the mandate signed by its owner.

    Raises:
        ValueError: If `identity` is not the owner's.
    """
    if (mandate.owner.node, mandate.owner.public_key) != (identity.node, identity.public_key):
        raise ValueError(f"mandate of {mandate.owner.node} cannot be signed by {identity.node}")
    return replace(mandate, signature=identity.sign(encode(replace(mandate, signature=b""))))


def check_mandate(mandate: Mandate) -> None:
    """Check the owner's signature.

    Raises:
        SignatureError: If it does not hold.
    """
    body = encode(replace(mandate, signature=b""))
    if not verify(mandate.owner.public_key, body, mandate.signature):
        raise SignatureError(f"packet {mandate.id}: not signed by its owner {mandate.owner.node}")


def _header_digest(header: Header) -> bytes:
    return blake3(encode(replace(header, signature=b""))).digest()


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
