"""Makes a node die at an exact moment of a hop, by a real SIGKILL: for tests of custody."""

from __future__ import annotations

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


class FaultSwitch:
    """Kills this process at the fault points given, each once in the life of the directory."""

    def __init__(self, directory: Path, points: Iterable[FaultPoint]) -> None:
        self._directory, self._points = directory, frozenset(points)

    def reach(self, moment: Moment, hop: int) -> None:
        """Die here, if this is a fault point that has not struck before."""
        if FaultPoint(moment, hop) not in self._points:
            return
        mark = self._directory / f"fault.{moment}.{hop}"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
