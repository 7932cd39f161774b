"""Plain TOML values into dataclasses: types, ranges and unknown keys, each error with its place."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from math import inf, isfinite, isinf
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from aats.bounds import Between
from aats.codec import WHOLE
from aats.errors import ScenarioError, nearest
from aats.ids import NodeId, node_id
from aats.packet import Architecture, Plugin
from aats.topology.network import Edge, LinkDefaults

T = TypeVar("T")


def read(kind: type[T], value: Any, place: str) -> T:
    """Return `value` as an instance of a dataclass.

    Args:
        kind: The dataclass; `Annotated[..., Between(...)]` gives a field's range.
        value: What `tomllib` returned.
        place: Where it stands, as `file: table`.

    Raises:
        ScenarioError: Naming the place, what stands there and what is allowed.
    """
    result: T = _convert(kind, value, place)
    return result


def child(place: str, key: str) -> str:
    """Return the place of a key in the table at `place`."""
    return f"{place}{key}" if place.endswith(" ") else f"{place}.{key}"


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in fields(kind)}


def _dataclass(kind: Any, value: Any, place: str) -> Any:
    table = _table(value, place)
    hints = _hints(kind)
    for key in table:
        if key not in hints:
            known = ", ".join(hints)
            raise ScenarioError(place.strip(), key, f"known keys are {known}", nearest(key, hints))
    for f in fields(kind):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in table:
            raise ScenarioError(child(place, f.name), None, "the key must be given")
    return kind(**{k: _convert(hints[k], v, child(place, k)) for k, v in table.items()})


def _convert(kind: Any, value: Any, place: str) -> Any:
    """Return `value` as `kind` wants it; one branch a shape of type."""
    if kind is Any:
        return value
    if special := _SPECIAL.get(kind):
        return special(value, place)
    if is_dataclass(kind):
        return _dataclass(kind, value, place)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_range(_convert(args[0], value, place), args[1], place)
    if origin is Literal:
        return _one_of(value, args, place)
    if origin in (Union, types.UnionType):
        return _convert(next(a for a in args if a is not type(None)), value, place)
    if origin is tuple:
        return _tuple(args, value, place)
    if origin is dict:
        table = _table(value, place)
        return {
            _convert(args[0], k, place): _convert(args[1], v, child(place, k))
            for k, v in table.items()
        }
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(_one_of(value, tuple(m.value for m in kind), place))
    return _scalar(kind, value, place)


def _table(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ScenarioError(place.strip(), value, "a table is wanted")
    return value


def _in_range(value: Any, allowed: Between, place: str) -> Any:
    if value not in allowed:
        is_finite = allowed.high < inf
        words = "a finite number is wanted" if is_finite and isinf(value) else f"must be {allowed}"
        raise ScenarioError(place, value, words)
    return value


def _one_of(value: Any, allowed: tuple[Any, ...], place: str) -> Any:
    if value not in allowed:
        words = ", ".join(map(repr, allowed))
        hint = nearest(value, map(str, allowed)) if isinstance(value, str) else ""
        raise ScenarioError(place, value, f"must be one of {words}", hint)
    return value


def _tuple(args: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ScenarioError(place, value, "a list is wanted")
    kinds = [args[0]] * len(value) if args[1:] == (...,) else list(args)
    if len(kinds) != len(value):
        raise ScenarioError(place, value, f"a list of {len(kinds)} is wanted")
    return tuple(
        _convert(k, v, f"{place}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
    )


_WORDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _scalar(kind: type, value: Any, place: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind or value != value:  # NaN is no number anywhere here
        raise ScenarioError(place, value, f"{_WORDS[kind]} is wanted")
    if kind is int and value not in WHOLE:
        raise ScenarioError(place, value, "a whole number of at most 64 bits is wanted")
    return value


def _node_id(value: Any, place: str) -> NodeId:
    if value == "":
        return NodeId("")  # the default of fields that may name a node
    try:
        return node_id(_scalar(str, value, place))
    except ValueError as wrong:
        raise ScenarioError(place, value, str(wrong)) from wrong


def _named(kind: Callable[[str, dict[str, Any]], T]) -> Callable[[Any, str], T]:
    def convert(value: Any, place: str) -> T:
        """A plug-in is its name, or a table with its name and its parameters."""
        table = dict(_table({"name": value} if isinstance(value, str) else value, place))
        if "name" not in table:
            raise ScenarioError(child(place, "name"), None, "the key must be given")
        name = _scalar(str, table.pop("name"), child(place, "name"))
        return kind(name, {k: _parameter(v, child(place, k)) for k, v in table.items()})

    return convert


def _parameter(value: Any, place: str) -> Any:
    """Return a free parameter, which must be one that a packet can carry."""
    match value:
        case dict():
            return {k: _parameter(v, child(place, k)) for k, v in value.items()}
        case list():
            return [_parameter(v, f"{place}[{i}]") for i, v in enumerate(value)]
        case float() if not isfinite(value):
            raise ScenarioError(place, value, "a finite number is wanted")
        case int() if value not in WHOLE:
            raise ScenarioError(place, value, "a whole number of at most 64 bits is wanted")
        case str() | int() | float():
            return value
    raise ScenarioError(place, str(value), "a string, number, boolean, list or table is wanted")


def _edge(value: Any, place: str) -> Edge:
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise ScenarioError(place, value, "a pair of nodes is wanted, or a pair and a table")
    figures = _table(value[2], place) if len(value) == 3 else {}
    ends = (_node_id(value[0], f"{place}[0]"), _node_id(value[1], f"{place}[1]"))
    if ends[0] == ends[1]:
        raise ScenarioError(place, value, "a link joins two different nodes")
    known = ("bandwidth_mbps", "latency_ms", "loss")
    hints = _hints(LinkDefaults)
    for key in figures:
        if key not in known:
            allowed = f"known keys are {', '.join(known)}"
            raise ScenarioError(place, key, allowed, nearest(key, known))
    return Edge(*ends, **{k: _convert(hints[k], v, child(place, k)) for k, v in figures.items()})


_SPECIAL: dict[Any, Callable[[Any, str], Any]] = {
    NodeId: _node_id,
    Plugin: _named(Plugin),
    Architecture: _named(Architecture),
    Edge: _edge,
}
