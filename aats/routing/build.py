"""Make a policy from the parameters a packet carries: checked, because they came over the wire."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from aats.errors import LocalError, nearest

Built = TypeVar("Built")


def build(cls: type[Built], params: Mapping[str, Any]) -> Built:
    """Return `cls(**params)` for a dataclass whose fields all have plain defaults.

    A field whose default is a tuple takes a list of strings.

    Raises:
        LocalError: If a parameter is unknown (names the known ones), of another type than its
            default, or refused by the class.
    """
    known = {f.name: f.default for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name, value in params.items():
        place = f"{cls.__name__}: parameter {name!r}"
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise LocalError(f"{place} is unknown; known: {listed}{nearest(name, known)}")
        if not _fits(value, known[name]):
            wanted = type(known[name]).__name__
            wanted = "a list of str" if wanted == "tuple" else wanted
            raise LocalError(f"{place} is {value!r}, must be {wanted}")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}
    try:
        return cls(**given)
    except ValueError as error:
        raise LocalError(f"{cls.__name__}: {error}") from error


def _fits(value: object, default: object) -> bool:
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
    return isinstance(value, int | float if isinstance(default, float) else type(default))
