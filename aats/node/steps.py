"""The steps of a packet's journey, as each of them knows the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aats.advert import Partner
from aats.ids import CustodyKey, NodeId
from aats.node.custody import Copy
from aats.routing.policy import Phase
from aats.topology.stops import Candidate, Topology


class Steps(Protocol):
    """What may follow a step. `aats.node.journey.Journey` joins them."""

    def arrive(self, copy: Copy) -> None:
        """ARRIVE: see what the packet wants here, and start it."""

    def visit(self, copy: Copy, partners: Sequence[Partner] = ()) -> None:
        """WORK: let the packet's method work on the data it came, or stays, for."""

    def verify(self, copy: Copy) -> None:
        """Measure the packet's model on our test set."""

    def decide(self, copy: Copy) -> None:
        """DECIDE: choose the next stop."""

    def look(self, copy: Copy) -> Topology:
        """Return the stops there are, those out of reach that failed a moment ago."""

    def go(self, copy: Copy, path: tuple[NodeId, ...], stop: Candidate) -> None:
        """Set out for a stop, durably."""

    def back(self, copy: Copy, home: Candidate) -> None:
        """Go home, or be there."""

    def seek(self, copy: Copy, phase: Phase) -> bool:
        """Let the packet's rendezvous plan; return whether it took over."""

    def gather(self, copy: Copy) -> None:
        """Wait for the children of a fork, and merge those that are back."""

    def errand(self, copy: Copy) -> bool:
        """Go on with a child's errand; return whether its policy has no say."""

    def rest(self, copy: Copy) -> None:
        """A child is back: let it wait to be merged."""

    def retry(self, copy: Copy, for_what: str) -> None:
        """Wait, longer each time, then go on."""

    def offer(self, copy: Copy) -> None:
        """MOVE: offer the packet to the first node of its chosen path."""

    def finish(self, copy: Copy) -> None:
        """HOME: the packet's journey ends here."""

    def watch(self, copy: Copy) -> None:
        """Give signs of life to the holder of the spare from now on."""

    def tell_owner(self, key: CustodyKey) -> None:
        """Tell the owner that its packet is here, now and while it stays."""

    def report(self, to: NodeId, key: CustodyKey) -> None:
        """Tell the holder of the spare how the copy under `key` stands."""

    def regenerate(self, copy: Copy, custodian: NodeId) -> None:
        """Let our copy be the living one, under a higher epoch, whatever `custodian` has."""
