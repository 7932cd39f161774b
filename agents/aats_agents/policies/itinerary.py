"""A route computed beforehand: the packet carries it and goes by it as long as it can."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aats.ids import NodeId
from aats.routing.policy import Choice, Observation, StopKind
from aats_agents.policies.base import errand, least_visited


@dataclass(frozen=True, slots=True)
class ItineraryPolicy:
    """The next stop of a list that is legal; once it is used up, the least visited data node.

    `aats_agents.planner` computes such lists (MTRCE). Where the packet stands in its list follows
    from whom it has visited, so nothing is kept outside it. A stop that is out of reach is left
    out. An MPVU in the list is asked even where the packet does not believe itself ready; one that
    is not in the list is asked when the phase wants it.
    """

    name = "itinerary"
    stops: tuple[str, ...] = ()
    """Nodes in order: data nodes, and MPVUs if it shall be those and then. Home needs no
    mention."""

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nothing: the list is made."""
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the next stop of the list, or what to do instead."""
        ahead = list(enumerate(self.stops))[_reached(self.stops, observation.visited) :]
        legal = {
            c.node: i
            for i in observation.legal()
            if (c := observation.candidates[i]).kind is not StopKind.HOME
        }
        passed: list[str] = []
        for place, stop in ahead:
            if NodeId(stop) in legal:
                left_out = f", {', '.join(passed)} left out" if passed else ""
                reason = f"{stop} is stop {place + 1} of {len(self.stops)}{left_out}"
                return Choice(legal[NodeId(stop)], reason)
            passed.append(stop)
        if settled := errand(observation):
            return settled
        why = f"nothing in reach of {', '.join(passed)}" if passed else "the itinerary is used up"
        return least_visited(observation, f"{why}; ")


def _reached(stops: Sequence[str], visited: Sequence[NodeId]) -> int:
    """Return how many stops lie behind the packet: those it visited, and those it left out."""
    place = 0
    for node in visited:
        if node in stops[place:]:
            place = stops.index(node, place) + 1
    return place
