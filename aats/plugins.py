"""Plug-ins by name: the entry points of installed distributions, and nothing else.

Groups: `aats.policies`, `aats.agents`, `aats.methods`, `aats.rendezvous`, `aats.merges`,
`aats.models`, `aats.data`. A name that came over the wire is only looked up here; it never
becomes an import path.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from aats.errors import UnknownPluginError


@cache
def _group(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> tuple[str, ...]:
    """Return the names installed in a group, sorted; loads none of them."""
    return tuple(sorted(_group(group)))


def load(group: str, name: str) -> Any:
    """Return the object a plug-in's entry point refers to.

    Raises:
        UnknownPluginError: If the group has no such name; says which there are.
    """
    points = _group(group)
    if name not in points:
        raise UnknownPluginError(group, name, points)
    return points[name].load()
