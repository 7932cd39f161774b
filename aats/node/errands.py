"""A child's way: from stop to stop of its errand, back to its rendezvous, and rest there.

A child never blocks its siblings: a stop that is dead, refuses or is not on the map is left out,
and when its time is up it goes back with what it has.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from aats.ids import NodeId
from aats.node.commands import SaveCustody
from aats.node.custody import Copy, Doing, Status
from aats.node.desk import Desk
from aats.node.holdings import Holdings
from aats.node.steps import Steps
from aats.topology.stops import Candidate, StopKind

PATIENCE = 3
"""Waits for a stop that is not on the map, each twice as long as the one before."""
MAX_AHEAD = 1 << 20
"""Hops that an errand can take."""


class Errands:
    """Takes children through their errands."""

    def __init__(self, desk: Desk, held: Holdings, steps: Steps) -> None:
        self._desk, self._held, self._steps = desk, held, steps

    def errand(self, copy: Copy) -> bool:
        """Go on with a child's errand; return whether its policy has no say."""
        stops = self._steps.look(copy).candidates
        home = next(c for c in stops if c.kind is StopKind.HOME)
        while (errand := copy.header.errand) is not None:
            if errand.is_over or self._is_late(copy, home):
                self._steps.back(copy, home)
                return True
            if not errand.itinerary:
                return False
            stop = next((c for c in stops if _is(c, errand.itinerary[0])), None)
            if stop is not None and stop.transfer_s < inf:
                self._visit(copy, stop)
                return True
            if self._may_come(copy, errand.itinerary[0]):
                self._steps.retry(copy, f"a way to {errand.itinerary[0]}")
                return True
            copy.failures = 0
            self._desk.trace("stop.left-out", packet=copy.key.packet, hop=copy.header.hop,
                             stop=errand.itinerary[0])  # fmt: skip
            copy.change(Status.WORKED, header=replace(copy.header, errand=errand.after_stop()))
        raise AssertionError(f"{copy.key} has no errand")

    def _is_late(self, copy: Copy, home: Candidate) -> bool:
        """Return whether it is time to go back, or the budget just covers the way."""
        header = copy.header
        assert header.errand is not None, "asked of children only"
        way_s = home.transfer_s if home.transfer_s < inf else 0.0
        late = self._desk.now + way_s >= min(header.errand.until, header.mandate.deadline)
        return late or header.hops_left <= len(home.path) + 1

    def _may_come(self, copy: Copy, stop: NodeId) -> bool:
        """Return whether a stop out of reach is worth waiting for.

        One that failed a moment ago is not. Where the way to it did, there is one again soon; one
        that is not known, or without a way, is waited for a little: after a restart the map is
        empty.
        """
        if stop in copy.avoid:
            return False
        path = self._desk.map.path(self._desk.node, stop, copy.header.manifest.total)
        return path[:1] in {(node,) for node in copy.avoid} or copy.failures < PATIENCE

    def _visit(self, copy: Copy, stop: Candidate) -> None:
        if stop.path:
            self._steps.go(copy, stop.path, stop)
        else:
            copy.change(Status.WORKED, header=copy.header.on_own_hop(), data_of=stop.node)
            self._steps.visit(copy)

    def rest(self, copy: Copy) -> None:
        """Let a child that is back wait to be merged; one that nobody waits for is dropped."""
        desk, key, sender = self._desk, copy.key, copy.row.sender
        trunk = self._held.trunk_of(copy)
        if trunk is None or not self._is_wanted(copy, trunk):
            desk.trace("packet.unwanted", packet=key.packet, hop=copy.header.hop)
            self._held.drop(copy)
            self._steps.report(sender, key)
            return
        copy.doing = Doing.NOTHING
        for name in ("alive", "follow", "retry"):
            desk.timers.cancel((name, key))
        desk.emit(SaveCustody(copy.change(Status.RESTING)))
        desk.trace("packet.back", packet=key.packet, hop=copy.header.hop)
        self._steps.report(sender, key)
        self._steps.gather(trunk)

    def _is_wanted(self, copy: Copy, trunk: Copy) -> bool:
        """Return whether a child follows the trunk's fork, and no other copy of it is back."""
        fork = trunk.header.forked
        if copy.header.hop > trunk.header.hop + MAX_AHEAD:
            return False  # the trunk would have to go on from there
        return fork is not None and copy.header.follows(fork.id) and not any(
            twin.status is Status.RESTING and twin.key.packet == copy.key.packet
            for twin in self._held.children_of(trunk)
        )  # fmt: skip


def _is(candidate: Candidate, node: str) -> bool:
    return candidate.kind is StopKind.DATA and candidate.node == node
