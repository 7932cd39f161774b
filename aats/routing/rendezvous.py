"""How a packet works at several nodes at one moment: the `Rendezvous` protocol and its plans.

Wherever the packet is when it seeks to learn, its rendezvous may plan one of these. *Fork*:
children set out, each on an errand of its own, and come back to this node, where they are merged
into one model again. *Assemble*: the packet stays, and its visit here exchanges activations with
partners by streams. *Finish*: it goes home. Without a plan the packet goes on by its policy.

A planner is pure: it gets adverts and a random source, knows nothing of sockets, clocks or
tensors, and keeps no state; what must last belongs to the packet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol, runtime_checkable

from aats.advert import Partner
from aats.errors import UnknownPluginError
from aats.ids import NodeId
from aats.packet import Errand, Header, Plugin

__all__ = [
    "Assemble", "Errand", "Finish", "Fork", "Partner", "Plan", "Rendezvous", "merge_of",
    "no_rendezvous",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fork:
    """Send children out and merge them here.

    Raises:
        ValueError: If there is no errand, or a figure is out of range.
    """

    errands: tuple[Errand, ...]
    """One a child, in the order in which they will be merged."""
    within_s: float = 60.0
    """The children are merged at the latest so long after the fork, with those that are back; a
    round that is repeated has twice the time."""
    quorum: float = 0.0
    """Share of the children without which nothing is merged: the round is repeated."""

    def __post_init__(self) -> None:
        if not self.errands:
            raise ValueError("a fork has at least one errand")
        if not 0 < self.within_s < inf:
            raise ValueError(f"within_s is {self.within_s}, must be positive and finite")
        if not 0 <= self.quorum <= 1:
            raise ValueError(f"quorum is {self.quorum}, must be between 0 and 1")


@dataclass(frozen=True, slots=True)
class Assemble:
    """Stay, and let one visit here be done together with partners.

    Raises:
        ValueError: If there are no partners.
    """

    partners: tuple[NodeId, ...]
    """Of those on offer, in the order in which the method gets them."""

    def __post_init__(self) -> None:
        if not self.partners:
            raise ValueError("an assembly has at least one partner")


@dataclass(frozen=True, slots=True)
class Finish:
    """The work is done: go home, with the requirement met or not."""


Plan = Fork | Assemble | Finish


@runtime_checkable
class Rendezvous(Protocol):
    """Plans what several nodes do at one moment."""

    @property
    def merge(self) -> str | Plugin:
        """The rule that makes one model of several (`aats.merges`), by name or with parameters."""
        ...

    def plan(
        self, header: Header, partners: Sequence[Partner], now: float, rng: random.Random
    ) -> Plan | None:
        """Return what to do here and now; None: go on as a packet without a rendezvous.

        Args:
            header: The packet; its `trained["cycle"]` counts the merges so far.
            partners: Every node that is reachable and holds wanted data, this one included
                (`links` 0), in the order of their names.
            now: Seconds, on the clock of the deadline.
            rng: Seeded from the packet and the hop, so that a plan can be repeated.
        """
        ...


def no_rendezvous(plugin: Plugin) -> Rendezvous:
    """Know no rendezvous.

    Raises:
        UnknownPluginError: Always.
    """
    raise UnknownPluginError("aats.rendezvous", plugin.name, ())


def merge_of(rendezvous: Rendezvous) -> Plugin:
    """Return the rule of a rendezvous as a plug-in."""
    rule = rendezvous.merge
    return rule if isinstance(rule, Plugin) else Plugin(rule)
