"""Typed values <-> MessagePack builtins, by codecs compiled from dataclass annotations.

Strict both ways: a value that a receiver would refuse does not leave. A dataclass is a map from
field name to value, keys sorted, fields that have their default left out; an unknown field is
refused. A member of a union is `[type code, map]`. Versions and packet ids are raw bytes. What
is compiled depends on the `Rules` alone; nothing received is looked up by name.
"""

from __future__ import annotations

import operator
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from dataclasses import field as dataclass_field
from enum import Enum
from functools import lru_cache
from math import isfinite
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from aats.ids import BRANCH, NODE_ID, NodeId, PacketId, Version

MAX_DEPTH = 8
"""Nesting of free parameters (`Plugin.params`, `Architecture.config`)."""
MAX_TEXT = 16 << 10
"""Characters of one string."""
FINITE = sys.float_info.max
COUNT = (0, (1 << 63) - 1)
"""What an int is unless ruled otherwise: fits SQLite, never negative."""
KEPT = 4
"""Packed values remembered of one annotation; they may be large."""
WHOLE = range(-(1 << 63), 1 << 64)
"""What an int among free parameters may be: all that MessagePack can say."""

_DESTINATION = re.compile(r"(final)?(dest(ination)?|dst|target(node|host)|next(hop|stop|node))s?")
"""Keys, without '_', '-' and case, that no free dictionary may have: an AI packet has no
destination, and none may be smuggled into its parameters."""

MAX_BRANCH = 41
"""Bytes of a child's branch behind the 16 of its packet's id."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Convert = Callable[[Any], Any]


class Fault(Exception):
    """A value that is not allowed; each container puts its part of the path in front."""

    def __init__(self, reason: str) -> None:
        self.path, self.reason = "", reason

    def within(self, part: str) -> Fault:
        """Return the fault, seen from one container further out."""
        self.path = part + self.path
        return self


@dataclass(frozen=True, slots=True)
class Codec:
    """Both directions for one annotation; each raises `Fault`."""

    pack: Convert
    unpack: Convert


# --- leaves -----------------------------------------------------------------------------------


def _show(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _number(kind: type[int] | type[float], low: float, high: float) -> Codec:
    def unpack(value: Any) -> Any:
        if type(value) is not kind:
            raise Fault(f"{_show(value)} is no {kind.__name__}")
        if not low <= value <= high:  # so NaN is refused everywhere
            raise Fault(f"{_show(value)} is outside {low:.15g}..{high:.15g}")
        return value

    convert: Convert = float if kind is float else operator.index

    def pack(value: Any) -> Any:
        try:
            number = convert(value)
        except (TypeError, ValueError, OverflowError):
            raise Fault(f"{_show(value)} is no {kind.__name__}") from None
        return unpack(number)

    return Codec(pack, unpack)


def _exactly(kind: type) -> Convert:
    def same(value: Any) -> Any:
        if type(value) is not kind:
            raise Fault(f"{_show(value)} is no {kind.__name__}")
        return value

    return same


def text(value: Any) -> str:
    """Return a string that is short and that UTF-8 can say."""
    if type(value) is not str or len(value) > MAX_TEXT:
        raise Fault(f"{_show(value)} is no str of at most {MAX_TEXT} characters")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise Fault(f"{_show(value)} has a lone surrogate, which UTF-8 cannot say")
    return value


def _pack_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise Fault(f"{_show(value)} is no bytes")
    return bytes(value)


def _node_id(value: Any) -> NodeId:
    if type(value) is not str or not NODE_ID.fullmatch(value):
        raise Fault(f"{_show(value)} is no node id")
    return NodeId(value)


def _pack_hex(value: Any, sizes: tuple[int, ...], what: str) -> bytes:
    try:
        raw = bytes.fromhex(value)
    except (TypeError, ValueError):
        raise Fault(f"{_show(value)} is no {what}") from None
    if len(raw) not in sizes or raw.hex() != value:
        raise Fault(f"{_show(value)} is no {what}")
    return raw


def _raw(value: Any, sizes: Sequence[int], what: str) -> bytes:
    if type(value) is not bytes or len(value) not in sizes:
        raise Fault(f"{_show(value)} is no {what}")
    return value


def _pack_packet_id(value: Any) -> bytes:
    uuid = value[:36] if type(value) is str else ""
    if not _UUID.fullmatch(uuid) or not _is_branch(value[36:]):
        raise Fault(f"{_show(value)} is no packet id (a UUID in canonical form, and its branch)")
    branch: str = value[36:]
    return bytes.fromhex(uuid.replace("-", "")) + branch.encode()


def _unpack_packet_id(value: Any) -> str:
    raw = _raw(value, range(16, 16 + MAX_BRANCH + 1), "packet id")
    branch = raw[16:].decode("ascii", "replace")
    if not _is_branch(branch):
        raise Fault(f"{_show(branch)} is no branch of a packet")
    digits = raw[:16].hex()
    uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return uuid + branch


def _is_branch(text: str) -> bool:
    return not text or bool(BRANCH.fullmatch(text))


def _enum(kind: type[Enum]) -> Codec:
    members = {member.value: member for member in kind}

    def unpack(value: Any) -> Any:
        if type(value) is not str or value not in members:
            raise Fault(f"{_show(value)} is not one of {', '.join(members)}")
        return members[value]

    return Codec(lambda value: unpack(str(value)).value, unpack)


def _key(key: Any) -> str:
    name = text(key)
    if names_destination(name):
        raise Fault(f"key {name!r} is refused: a packet has no destination")
    return name


@lru_cache(maxsize=1024)  # a header has the same few keys at every hop
def names_destination(name: str) -> bool:
    """Return whether a key would name a destination, which no packet may have."""
    return bool(_DESTINATION.fullmatch(re.sub(r"[_\-. ]", "", name).lower()))


def _json(value: Any, depth: int = 0) -> Any:
    """Check and copy free parameters: JSON values, no NaN, no destination."""
    if depth > MAX_DEPTH:
        raise Fault(f"nested deeper than {MAX_DEPTH}")
    if value is None or type(value) is bool:
        return value
    if type(value) is str:
        return text(value)
    if type(value) is int and value in WHOLE:
        return value
    if type(value) is float and isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_json(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_key(k): _json(value[k], depth + 1) for k in sorted(value, key=str)}
    raise Fault(f"{_show(value)} is no finite JSON value")


_HASH = "version (BLAKE3, 64 hex digits)"
_LEAVES: dict[Any, Codec] = {
    str: Codec(text, text),
    bytes: Codec(_pack_bytes, _exactly(bytes)),
    bool: Codec(_exactly(bool), _exactly(bool)),
    NodeId: Codec(_node_id, _node_id),
    PacketId: Codec(_pack_packet_id, _unpack_packet_id),
    Version: Codec(
        lambda value: _pack_hex(value, (0, 32), _HASH),
        lambda value: _raw(value, (0, 32), _HASH).hex(),
    ),
    Any: Codec(_json, _json),
}


# --- containers -------------------------------------------------------------------------------


def _sequence(item: Codec, build: type[tuple[Any, ...]] | type[list[Any]]) -> Codec:
    def walk(one: Convert, value: Any, kinds: Any) -> list[Any]:
        if not isinstance(value, kinds):
            raise Fault(f"{_show(value)} is no list")
        out: list[Any] = []
        try:
            for element in value:
                out.append(one(element))
        except Fault as fault:
            raise fault.within(f"[{len(out)}]") from None
        return out

    return Codec(
        lambda value: walk(item.pack, value, (list, tuple)),
        lambda value: build(walk(item.unpack, value, list)),
    )


def _mapping(item: Codec) -> Codec:
    def walk(one: Convert, value: Any, order: Convert) -> dict[str, Any]:
        if type(value) is not dict:
            raise Fault(f"{_show(value)} is no map")
        out = {}
        for key in order(value):
            name = _key(key)
            try:
                out[name] = one(value[key])
            except Fault as fault:
                raise fault.within(f".{name[:80]}") from None
        return out

    return Codec(
        lambda value: walk(item.pack, value, lambda keys: sorted(keys, key=str)),
        lambda value: walk(item.unpack, value, iter),
    )


def _optional(item: Codec) -> Codec:
    return Codec(
        lambda value: None if value is None else item.pack(value),
        lambda value: None if value is None else item.unpack(value),
    )


# --- dataclasses and unions -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """What the annotations do not say, and the codecs compiled so far."""

    codes: Mapping[type, int]
    """Type code of each member of a union."""
    ranges: Mapping[tuple[type, str], tuple[float, float]]
    """Per field what is allowed, where it is not `COUNT` (int) or finite (float)."""
    checks: Mapping[type, Callable[[Any], None]]
    """Per dataclass a check of the whole value, both ways; raises `Fault`."""
    own: Mapping[type, Codec] = dataclass_field(default_factory=dict)
    """Dataclasses with a form of their own instead of a map of their fields."""
    kept: frozenset[Any] = frozenset()
    """Annotations whose values are packed more than once and never change: what the last few
    came to is remembered."""
    _compiled: dict[type, Codec] = dataclass_field(default_factory=dict)

    def codec(self, kind: type) -> Codec:
        """Return the codec of a dataclass.

        Raises:
            TypeError: If a field's annotation has no place on the wire.
        """
        if kind not in self._compiled:
            self._compiled[kind] = self.own.get(kind) or self._compile(kind)
        return self._compiled[kind]

    def names(self, kinds: Sequence[type]) -> str:
        """Return "Name (code), ..." for an error."""
        return ", ".join(f"{kind.__name__} ({self.codes[kind]})" for kind in kinds)

    def _compile(self, kind: type) -> Codec:
        hints = get_type_hints(kind)
        codecs = {
            f.name: self._codec(hints[f.name], self.ranges.get((kind, f.name)))
            for f in fields(kind)
        }
        defaults = {f.name: _default(f) for f in fields(kind)}
        check = self.checks.get(kind, lambda value: None)
        pack = _packer(kind, codecs, defaults, check)
        return self._remembered(kind, Codec(pack, _unpacker(kind, codecs, defaults, check)))

    def _remembered(self, hint: Any, codec: Codec) -> Codec:
        return Codec(_remembering(codec.pack), codec.unpack) if hint in self.kept else codec

    def _codec(self, hint: Any, bounds: tuple[float, float] | None = None) -> Codec:
        if hint in _LEAVES:
            return _LEAVES[hint]
        if hint is int:
            return _number(int, *bounds or COUNT)
        if hint is float:
            return _number(float, *bounds or (-FINITE, FINITE))
        if isinstance(hint, NewType):
            return self._codec(hint.__supertype__)
        if isinstance(hint, type) and issubclass(hint, Enum):
            return _enum(hint)
        if isinstance(hint, type) and is_dataclass(hint):
            return self.codec(hint)
        return self._remembered(hint, self._generic(hint))

    def _generic(self, hint: Any) -> Codec:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            kinds = [a for a in arguments if a is not type(None)]
            item = self._codec(kinds[0]) if len(kinds) == 1 else self._union(kinds)
            return item if len(kinds) == len(arguments) else _optional(item)
        if origin is tuple and arguments[1:] == (...,):
            return _sequence(self._codec(arguments[0]), tuple)
        if origin is list:
            return _sequence(self._codec(arguments[0]), list)
        if origin is dict and arguments[0] is str:
            return _mapping(self._codec(arguments[1]))
        raise TypeError(f"{hint!r} has no place on the wire")

    def _union(self, kinds: Sequence[type]) -> Codec:
        codecs = {self.codes[kind]: self.codec(kind) for kind in kinds}

        def pack(value: Any) -> Any:
            code = self.codes.get(type(value), -1)
            if code not in codecs:
                raise Fault(f"{_show(value)} is not one of {self.names(kinds)}")
            return [code, codecs[code].pack(value)]

        def unpack(value: Any) -> Any:
            if type(value) is not list or len(value) != 2 or type(value[0]) is not int:
                raise Fault(f"{_show(value)} is no [type code, map]")
            if value[0] not in codecs:
                raise Fault(f"type code {value[0]} is not one of {self.names(kinds)}")
            return codecs[value[0]].unpack(value[1])

        return Codec(pack, unpack)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _packer(
    kind: type, codecs: Mapping[str, Codec], defaults: Mapping[str, Any], check: Convert
) -> Convert:
    packers = [(name, codecs[name].pack, defaults[name]) for name in sorted(codecs)]

    def pack(value: Any) -> dict[str, Any]:
        if type(value) is not kind:
            raise Fault(f"{_show(value)} is no {kind.__name__}")
        check(value)
        out = {}
        for name, one, default in packers:
            item = getattr(value, name)
            if item == default:
                continue
            try:
                out[name] = one(item)
            except Fault as fault:
                raise fault.within(f".{name}") from None
        return out

    return pack


def _remembering(pack: Convert) -> Convert:
    """Return `pack` that packs the same object once; what it returns is not to be changed."""
    last: deque[tuple[Any, Any]] = deque(maxlen=KEPT)

    def known(value: Any) -> Any:
        for one, packed in tuple(last):  # of one moment: other threads pack, too
            if one is value:
                return packed
        packed = pack(value)
        last.append((value, packed))
        return packed

    return known


def _unpacker(
    kind: type, codecs: Mapping[str, Codec], defaults: Mapping[str, Any], check: Convert
) -> Convert:
    unpackers = {name: codec.unpack for name, codec in codecs.items()}
    required = {name for name, default in defaults.items() if default is MISSING}

    def unpack(value: Any) -> Any:
        if type(value) is not dict:
            raise Fault(f"{_show(value)} is no map of {kind.__name__}")
        arguments = {}
        for name, item in value.items():
            one = unpackers.get(name)
            if one is None:
                raise Fault(f"{kind.__name__} has no field {_show(name)}")
            try:
                arguments[name] = one(item)
            except Fault as fault:
                raise fault.within(f".{name}") from None
        if not required <= arguments.keys():
            missing = ", ".join(sorted(required - arguments.keys()))
            raise Fault(f"{kind.__name__} lacks {missing}")
        built = kind(**arguments)
        check(built)
        return built

    return unpack
