"""Named timers of a node core: each name has at most one time; no clock in here."""

from __future__ import annotations

import heapq
from collections.abc import Hashable


class Timers:
    """A heap of (time, order, name); setting a name again replaces its time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []
        self._live: dict[Hashable, tuple[float, int]] = {}
        self._count = 0

    def set(self, name: Hashable, at: float) -> None:
        """Let `name` fall due at `at` seconds."""
        self._count += 1
        self._live[name] = (at, self._count)
        heapq.heappush(self._heap, (at, self._count, name))

    def hasten(self, name: Hashable, at: float) -> None:
        """Let `name` fall due at `at` seconds if it is set for later."""
        if name in self._live and at < self._live[name][0]:
            self.set(name, at)

    def cancel(self, name: Hashable) -> None:
        """Forget `name`; nothing happens if it is not set."""
        self._live.pop(name, None)

    def is_set(self, name: Hashable) -> bool:
        """Return whether `name` is waiting to fall due."""
        return name in self._live

    def next_at(self) -> float | None:
        """Return the earliest time, or None."""
        while self._heap:
            at, count, name = self._heap[0]
            if self._live.get(name) == (at, count):
                return at
            heapq.heappop(self._heap)
        return None

    def due(self, now: float) -> list[Hashable]:
        """Remove and return the names due at `now`, earliest first."""
        names = []
        while (at := self.next_at()) is not None and at <= now:
            name = heapq.heappop(self._heap)[2]
            del self._live[name]
            names.append(name)
        return names
