"""Plug-ins that only tests have: installed for node processes by being on their path."""

from __future__ import annotations

import ctypes
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from aats.learning.method import Plan, Stop
from aats.learning.surrogate import SurrogateMethod

POLL_S = 0.01


@dataclass(frozen=True)
class Hostile(SurrogateMethod):
    """The surrogate, but at one node it does what a method must not do."""

    how: str = ""
    at: str = ""
    until: str = ""
    """File that ends a wait."""

    def plan(self, stop: Stop) -> Plan | None:
        if stop.node == self.at and self.how == "segfault":
            ctypes.string_at(0)
        if stop.node == self.at and self.how == "memory":
            _ = [bytearray(1 << 24) for _ in range(64)]
        while stop.node == self.at and self.how == "hang":
            signal.pause()
        while stop.node == self.at and self.how == "wait" and not Path(self.until).exists():
            time.sleep(POLL_S)
        return super().plan(stop)
