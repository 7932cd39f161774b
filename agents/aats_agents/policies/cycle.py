"""Cyclic transfer: every data node once per cycle, in a fixed or a shuffled order."""

from __future__ import annotations

import random
from dataclasses import dataclass

from aats.ids import NodeId
from aats.routing.policy import Choice, Observation, StopKind
from aats_agents.policies.base import data_options, errand


@dataclass(frozen=True, slots=True)
class CyclePolicy:
    """Each data node once per cycle; one that cannot be reached is skipped.

    Where the cycle stands follows from how many visits were made and to whom, so nothing is
    kept outside the packet.
    """

    name = "cycle"
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
        done = set(observation.visited[-done_count:]) if done_count else set()
        order = self._order(everyone, cycle, observation.seed)
        open_ = {o.candidate.node: o.index for o in data_options(observation)}
        due = [node for node in order if node in open_ and node not in done]
        node = (due or [node for node in order if node in open_])[0]
        place = {n: -float(i) for i, n in enumerate(order) if n in open_}
        reason = f"{node} is next in cycle {cycle + 1} ({self.order} order)"
        return Choice(open_[node], reason, place)

    def _order(self, nodes: list[NodeId], cycle: int, seed: int) -> list[NodeId]:
        if self.order == "fixed":
            return nodes
        return random.Random(f"{seed}:{cycle}").sample(nodes, len(nodes))
