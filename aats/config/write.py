"""A resolved scenario as TOML, and the digest by which two runs are known to be of one scenario."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3

from aats.packet import Architecture, Plugin
from aats.topology.network import Edge

if TYPE_CHECKING:
    from aats.config.scenario import Scenario

_DERIVED = ("network", "folder")


def to_toml(scenario: Scenario) -> str:
    """Return the scenario as TOML text that loads to an equal scenario."""
    return _text(_tables(scenario))


def digest(scenario: Scenario) -> str:
    """Return the BLAKE3 of what the scenario says, folders of this machine left out."""
    tables = _tables(scenario)
    tables.get("data", {}).pop("root", None)
    for skill in tables.get("data", {}).get("skills", {}).values():
        skill["source"].pop("root", None)
    for packet in tables.get("packets", ()):
        packet["weights"] = Path(packet["weights"]).name
    return blake3.blake3(json.dumps(tables, sort_keys=True).encode()).hexdigest()


def _tables(scenario: Scenario) -> dict[str, Any]:
    plain: dict[str, Any] = _plain(scenario)
    return {key: value for key, value in plain.items() if key not in _DERIVED}


def _plain(value: Any) -> Any:
    """Return a value as what `tomllib` would have read; what is at None is left out."""
    if isinstance(value, Plugin):
        return {"name": value.name, **_plain(value.params)}
    if isinstance(value, Architecture):
        return {"name": value.name, **_plain(value.config)}
    if isinstance(value, Edge):
        figures = {
            key: getattr(value, key)
            for key in ("bandwidth_mbps", "latency_ms", "loss")
            if getattr(value, key) is not None
        }
        return [value.a, value.b, *([figures] if figures else [])]
    if is_dataclass(value):
        return {
            f.name: _plain(getattr(value, f.name))
            for f in fields(value)
            if f.name not in _DERIVED and not _is_unset(value, f)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _is_unset(value: Any, field: Any) -> bool:
    """Return whether a field says nothing: None, or an empty collection that is its default."""
    held = getattr(value, field.name)
    if held is None:
        return True
    empty = field.default_factory() if field.default_factory is not MISSING else field.default
    return isinstance(held, dict | tuple) and not held and held == empty


def _text(tables: Mapping[str, Any]) -> str:
    lines: list[str] = []
    for key, value in tables.items():
        _table(lines, (key,), value)
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(lines: list[str], path: tuple[str, ...], value: Any) -> None:
    name = ".".join(map(_key, path))
    if isinstance(value, list):
        for entry in value:
            lines += ["", f"[[{name}]]", *(f"{_key(k)} = {_value(v)}" for k, v in entry.items())]
        return
    nested = {k: v for k, v in value.items() if _has_own_header(path, k, v)}
    own = {k: v for k, v in value.items() if k not in nested}
    if own or not nested:
        lines += ["", f"[{name}]", *(f"{_key(k)} = {_value(v)}" for k, v in own.items())]
    for key, inner in nested.items():
        _table(lines, (*path, key), inner)


def _has_own_header(path: tuple[str, ...], key: str, value: Any) -> bool:
    """Return whether a table reads better under its own header than in line."""
    if not isinstance(value, dict) or not value:
        return False
    return path in (("nodes",), ("data",), ("data", "skills")) or (
        path[:1] == ("nodes",) and key == "data"
    ) or path[-1:] == ("data",)  # fmt: skip


def _key(key: str) -> str:
    return (
        key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _string(key)
    )


def _string(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return ("inf" if value > 0 else "-inf") if isinf(value) else repr(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        if any(isinstance(entry, list) for entry in value):  # edges: one a line
            return "[\n" + "".join(f"  {_value(entry)},\n" for entry in value) + "]"
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)
