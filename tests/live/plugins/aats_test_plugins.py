"""Plug-ins that only tests have: installed for node processes by being on their path."""

from __future__ import annotations

import ctypes
import signal
from dataclasses import dataclass
from typing import Any, ClassVar

from aats.learning.method import Carry, Plan, Stop, Work, passes


@dataclass(frozen=True)
class Hostile:
    """A method that does at one node what a method must not do, and learns nothing elsewhere."""

    how: str = ""
    at: str = ""
    name: ClassVar[str] = "hostile"

    def plan(self, stop: Stop) -> Plan | None:
        if stop.node == self.at and self.how == "segfault":
            ctypes.string_at(0)
        if stop.node == self.at and self.how == "memory":
            _ = [bytearray(1 << 24) for _ in range(64)]
        while stop.node == self.at and self.how == "hang":
            signal.pause()
        return passes(stop, 1, 32)

    def train(self, model: Any, work: Work) -> Carry | None:
        work.take_all()
        return None
