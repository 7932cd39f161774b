"""Makes a node die at an exact moment of a hop, by a real SIGKILL: for tests of custody."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Moment(StrEnum):
    """Moments of a hop at which a node can be made to die."""

    OFFERED = "offered"
    """The sender has put its offer on the wire."""
    SENDING = "sending"
    """The sender has begun to send tensors."""
    RECEIVING = "receiving"
    """The receiver has room for the tensors and has asked for them."""
    STORED = "stored"
    """The receiver has the packet durably and has not said so."""
    WORKING = "working"
    """The task of the visit runs."""
    SPEAKING = "speaking"
    """The task of a visit, or of a partner in one, has said something to another node."""
    FORKED = "forked"
    """A packet's children are durable beside it, nothing is offered yet."""
    MERGING = "merging"
    """The task that merges them runs."""
    WORKED = "worked"
    """What leaves is durable, nothing is offered yet."""
    RELEASED = "released"
    """The sender has noted that the receiver has it."""


@dataclass(frozen=True, slots=True)
class FaultPoint:
    """Makes a node kill itself once, at a moment of one of the hops of a packet it handles."""

    moment: Moment
    hop: int
    """Of the packet at the node that dies."""
    after_s: float = 0.0
    """Seconds after the moment."""


class FaultSwitch:
    """Kills this process at the fault points given, each once in the life of the directory."""

    def __init__(self, directory: Path, points: Iterable[FaultPoint]) -> None:
        self._directory = directory
        self._points = {(p.moment, p.hop): p for p in points}

    def reach(self, moment: Moment, hop: int) -> None:
        """Die here (or a little later), if this is a fault point that has not struck before."""
        point = self._points.get((moment, hop))
        mark = self._directory / f"fault.{moment}.{hop}"
        if point is None or mark.exists():
            return
        if point.after_s:
            asyncio.get_running_loop().call_later(point.after_s, self._die, mark)
        else:
            self._die(mark)

    @staticmethod
    def _die(mark: Path) -> None:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
