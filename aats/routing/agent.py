"""What an AI object asks of the node it has arrived at: the `Agent` protocol."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Protocol, runtime_checkable

from aats.advert import Role
from aats.packet import Header


class Action(StrEnum):
    """What happens to a packet at a stop."""

    TRAIN = "train"
    """Its method works on the data here."""
    VERIFY = "verify"
    """The MPVU here measures it."""
    FINISH = "finish"
    """It is home for good."""
    PASS = "pass"
    """Nothing here: it goes on."""


@runtime_checkable
class Agent(Protocol):
    """The behaviour of one kind of packet. State belongs in the packet, not in the object."""

    name: str

    def arrive(
        self, header: Header, roles_here: Collection[Role], has_wanted_data: bool, now: float
    ) -> Action:
        """Return what to do here.

        Args:
            header: The packet as it arrived.
            roles_here: What this node is to this packet; OWNER only at its own owner.
            has_wanted_data: Whether the data to visit here (the node's own, or entrusted to
                it) are in the packet's skills.
            now: Seconds, on the clock of the deadline.
        """
        ...
