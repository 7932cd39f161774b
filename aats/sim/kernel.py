"""The clock of the simulated world: a heap of (time, sequence, action).

The sequence number makes actions at equal times run in the order they were planned, so a run
depends on nothing but its inputs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import isfinite

Action = Callable[[], None]


class Timer:
    """A planned action; `cancel` makes it a no-op."""

    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Action) -> None:
        self.at = at
        self.action: Action | None = action

    def cancel(self) -> None:
        """Forget the action; its place in the heap is passed over."""
        self.action = None


class Kernel:
    """Virtual seconds, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        """Virtual seconds since the start of the world."""
        self.steps = 0
        """Actions run so far."""
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = 0

    def at(self, time_s: float, action: Action) -> Timer:
        """Plan `action` at `time_s`, or now if that has passed.

        Raises:
            ValueError: If the time is not finite.
        """
        if not isfinite(time_s):
            raise ValueError(f"time {time_s} is not finite")
        timer = Timer(max(time_s, self.now), action)
        self._sequence += 1
        heapq.heappush(self._heap, (timer.at, self._sequence, timer))
        return timer

    def after(self, delay_s: float, action: Action) -> Timer:
        """Plan `action` in `delay_s` seconds."""
        return self.at(self.now + delay_s, action)

    def next_at(self) -> float | None:
        """Return when the next action is due; None if nothing is planned."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def step(self) -> bool:
        """Run the next action; False if nothing is planned."""
        if self.next_at() is None:
            return False
        self.now, _, timer = heapq.heappop(self._heap)
        action = timer.action
        timer.action = None
        if action is not None:
            self.steps += 1
            action()
        return True

    def run(self, until_s: float, stop: Callable[[], bool] = lambda: False) -> bool:
        """Run until `until_s`, until `stop()` holds after an action, or until nothing is planned.

        Returns:
            Whether `stop()` held. If it did not, the clock stands at `until_s` (if finite).
        """
        while not stop():
            due = self.next_at()
            if due is None or due > until_s:
                if isfinite(until_s):
                    self.now = max(self.now, until_s)
                return False
            self.step()
        return True
