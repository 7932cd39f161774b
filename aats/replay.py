"""A node's event log: what its core was told and when, so that it can be rebuilt and compared.

The file is a sequence of entries: time (float64), length of the event (uint32), the event
(`wire.encode_event`; empty for a timer), and a digest of the commands the core gave (16 bytes;
missing in the last entry if the core failed there). A `Started` event begins a new core.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import blake3

from aats.errors import WireError
from aats.node.commands import Command
from aats.node.events import Event, Started
from aats.wire import decode_event, encode_event

ENTRY = struct.Struct(">dI")
DIGEST_BYTES = 16


class ReplayableCore(Protocol):
    """What replay needs of a core."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event in."""
        ...

    def handle_timer(self, now: float) -> list[Command]:
        """Let timers fall due."""
        ...


C = TypeVar("C", bound=ReplayableCore)


@dataclass(frozen=True, slots=True)
class Entry:
    """One call of a core: an event (None: a timer) at a time, and what it commanded."""

    at: float
    event: Event | None
    commands: bytes
    """`commands_digest` of what it commanded, b"" if it failed."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first entry at which a rebuilt core commanded something else."""

    index: int
    entry: Entry
    commands: list[Command]
    """What the rebuilt core commanded."""


def commands_digest(commands: list[Command]) -> bytes:
    """Return `DIGEST_BYTES` bytes that are equal for equal commands in equal order."""
    return blake3.blake3(repr(commands).encode()).digest(DIGEST_BYTES)


class EventLog:
    """What one node's cores were told, in order, as bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)

    def told(self, at: float, event: Event | None) -> Event | None:
        """Append what the core is about to be told (None: a timer).

        Returns:
            The event as a reader of the log will see it; give the core this one.
        """
        body = encode_event(event) if event is not None else b""
        self._data += ENTRY.pack(at, len(body)) + body
        return decode_event(body) if body else None

    def commanded(self, commands: list[Command]) -> None:
        """Append what the core commanded."""
        self._data += commands_digest(commands)

    def save(self, path: Path) -> None:
        """Write the log to a file."""
        path.write_bytes(self._data)

    @classmethod
    def load(cls, path: Path) -> EventLog:
        """Read a log from a file."""
        return cls(path.read_bytes())

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries.

        Raises:
            WireError: If the log is cut short or damaged.
        """
        data, place = bytes(self._data), 0
        while place < len(data):
            if len(data) - place < ENTRY.size:
                raise WireError(f"event log: cut short at byte {place}")
            at, size = ENTRY.unpack_from(data, place)
            place += ENTRY.size
            if size > len(data) - place:
                raise WireError(f"event log: event of {size} bytes at byte {place} is cut short")
            event = decode_event(data[place : place + size]) if size else None
            place += size
            yield Entry(at, event, data[place : place + DIGEST_BYTES])
            place += DIGEST_BYTES


def replay(log: EventLog, make_core: Callable[[], C]) -> C | Divergence | None:
    """Rebuild a node's last core from its log, and check that it commands the same.

    Returns:
        The core as it stood at the end, the first divergence, or None for an empty log.

    Raises:
        WireError: If the log is cut short or damaged.
    """
    core: C | None = None
    for index, entry in enumerate(log):
        if isinstance(entry.event, Started) or core is None:
            core = make_core()
        if entry.event is None:
            commands = core.handle_timer(entry.at)
        else:
            commands = core.handle(entry.event, entry.at)
        if commands_digest(commands) != entry.commands:
            return Divergence(index, entry, commands)
    return core
