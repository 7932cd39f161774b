"""Routes computed by one who sees the whole network: bounds, and itineraries to carry along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aats_agents.policies.itinerary import ItineraryPolicy
from aats_envs.batch import Networks
from aats_envs.learner import Learner, Surrogate
from aats_envs.network import KnowledgeNetwork
from aats_envs.search import oracle, plan

LearnerOf = Callable[[Networks], Learner]
"""Makes the learner of some networks."""
EARNEST: dict[str, Any] = {"widths": (2, 4, 8), "most_visits": 2000}
"""How a search goes that trains models."""


def planned(network: KnowledgeNetwork) -> ItineraryPolicy:
    """Return an itinerary by what nodes advertise: whose data to visit, in which order.

    When to be verified is left to the packet, which will know how it stands.
    """
    route = plan(network)
    data = [s for s in route.stops if network.has_data[s] and s != network.home]
    return ItineraryPolicy(_names(network, data))


def clairvoyant(
    network: KnowledgeNetwork, key: int, learner: LearnerOf = Surrogate
) -> ItineraryPolicy:
    """Return an itinerary by all that is true, MPVUs included.

    Args:
        network: Where.
        key: Of the episode.
        learner: What visits do: by formula, or in earnest, where each visit that the search tries
            trains a model (some 10 ms) and fewer are tried.
    """
    effort = {} if learner is Surrogate else EARNEST
    route = oracle(network, key, learner=learner, **effort)
    on_the_way = route.stops[:-1] if route.success else route.stops
    return ItineraryPolicy(_names(network, list(on_the_way)))


def _names(network: KnowledgeNetwork, stops: list[int]) -> tuple[str, ...]:
    return tuple(str(network.layout.sites[s].name) for s in stops)
