"""Time for live nodes: Unix seconds that never run backwards."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Whatever tells a node the time."""

    def now(self) -> float:
        """Return Unix seconds; never less than before."""
        ...


class SystemClock:
    """The wall clock as it was at creation, carried on by the monotonic clock.

    A correction of the wall clock while a node runs would fire or starve its timers.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now(self) -> float:
        """Return Unix seconds; never less than before."""
        return time.monotonic() + self._offset_s
