"""Cyclic transfer: every data node once per cycle, in a fixed or a shuffled order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aats.ids import NodeId
from aats.routing.policy import Choice, Observation, StopKind
from aats_agents.policies.base import data_options, errand


@dataclass(frozen=True, slots=True)
class CyclePolicy:
    """Each data node once per cycle; one that cannot be reached is skipped.

    Where all that can be reached had their turn, the one visited the longest ago is next.

    Where the cycle stands follows from how many visits were made and to whom, so nothing is
    kept outside the packet.
    """

    name = "cycle"
    sees_all = True
    order: str = "fixed"
    """"fixed": by node id; "shuffled": drawn anew for each cycle from the packet's seed."""

    def __post_init__(self) -> None:
        if self.order not in ("fixed", "shuffled"):
            raise ValueError(f"order is {self.order!r}, allowed are 'fixed' and 'shuffled'")

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nothing: the order is set."""
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the next data node of this cycle's order."""
        if settled := errand(observation):
            return settled
        everyone = sorted(c.node for c in observation.candidates if c.kind is StopKind.DATA)
        cycle, done_count = divmod(observation.hop, len(everyone))
        order = self._order(everyone, cycle, observation.seed)
        done = set(observation.visited[-done_count:]) if done_count else set()
        # The journal is shorter than a long cycle; what it has lost came first in the order.
        done.update(order[: max(0, done_count - len(observation.visited))])
        open_ = {o.candidate.node: o.index for o in data_options(observation)}
        due = [node for node in order if node in open_ and node not in done]
        node = due[0] if due else _longest_ago(open_, observation.visited)
        place = {n: -float(i) for i, n in enumerate(order) if n in open_}
        reason = f"{node} is next in cycle {cycle + 1} ({self.order} order)"
        return Choice(open_[node], reason, place)

    def _order(self, nodes: list[NodeId], cycle: int, seed: int) -> list[NodeId]:
        if self.order == "fixed":
            return nodes
        return random.Random(f"{seed}:{cycle}").sample(nodes, len(nodes))


def _longest_ago(nodes: Iterable[NodeId], visited: Sequence[NodeId]) -> NodeId:
    """Return the node whose last visit is the longest ago."""
    last = {node: place for place, node in enumerate(visited)}
    return min(nodes, key=lambda node: (last.get(node, -1), node))
