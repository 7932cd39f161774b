"""Walks from neighbour to neighbour: even coverage of the graph by chance alone, and with jumps."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from aats.ids import NodeId
from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import Option, data_options, errand


@dataclass(frozen=True, slots=True)
class MetropolisPolicy:
    """A neighbour, drawn by min(1, degree here / degree there): no hub is visited more for it.

    The walk of Metropolis and Hastings (Hastings 1970) whose share of time is the same at every
    node, without its rests: a packet does not stay, so a refused draw is drawn again. Neighbours
    are the data nodes one link away, or where there is none, the nearest in links. The degree of
    a neighbour is not known here; it counts as the links that the shortest paths from here show,
    one to here and one to each node behind it, which is a lower bound.
    """

    name = "metropolis"
    jump: float = 0.0
    """Share of stops drawn from all data nodes alike, however far: a way out of a corner."""

    def __post_init__(self) -> None:
        if not 0 <= self.jump <= 1:
            raise ValueError(f"jump is {self.jump}, must be within 0-1")

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nothing: chance needs no knowledge."""
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return a neighbour drawn by degree or, now and then, any data node."""
        if settled := errand(observation):
            return settled
        options = data_options(observation)
        if self.jump and rng.random() < self.jump:
            pool, what = options, "jumped to {} among {} data nodes"
            weights = [1.0] * len(options)
        else:
            pool, what = _neighbours(options), "walked to {}, one of {} neighbours"
            degrees = _degrees(observation)
            own = max(1, degrees[observation.here])
            weights = [min(1.0, own / max(1, degrees[_first(o)])) for o in pool]
        pick = rng.choices(pool, weights)[0]
        shares = {o.candidate.node: w / sum(weights) for o, w in zip(pool, weights, strict=True)}
        return Choice(pick.index, what.format(pick.candidate.node, len(pool)), shares)


@dataclass(frozen=True, slots=True)
class JumpPolicy(MetropolisPolicy):
    """The walk of `metropolis`, one stop in ten a jump to any data node.

    After Metropolis-Hastings with Levy jumps (Liu, El Rouayheb and Dwyer, arXiv 2407.20611),
    which lead a walk out of where its weights entrap it; here a jump is to any node alike.
    """

    name = "jump"
    jump: float = 0.1


def _neighbours(options: Sequence[Option]) -> list[Option]:
    """Return the options one link away or here; without any, those of the fewest links."""
    reach = max(1, min(len(o.candidate.path) for o in options))
    return [o for o in options if len(o.candidate.path) <= reach]


def _first(option: Option) -> NodeId:
    path = option.candidate.path
    return path[0] if path else option.candidate.node


def _degrees(observation: Observation) -> Counter[NodeId]:
    """Return links per node, as far as the paths from here show them."""
    paths = [(observation.here, *c.path) for c in observation.candidates]
    links = {frozenset(link) for path in paths for link in pairwise(path)}
    return Counter(node for link in links for node in link)
