"""The method `lora`: a visit adds one contribution to a frozen base (see `aats.learning.lora`).

What a node added can be told from all else, and be taken out again: at once if it harmed (the
guard's `reject_harm`), or later by `aats ledger forget`. A node chooses the rank of what it adds
by the number of its rows. When the chain's ranks use up a budget, the oldest contributions are
folded into the base: the model stays as it is, but these can no longer be taken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.lora import Contribution, LoraModel
from aats.learning.method import Carry, Plan, Stop, Work, passes
from aats.learning.sgd import sgd


@dataclass(frozen=True, slots=True)
class LoraMethod:
    """SGD on the matrices of one new contribution; base and earlier contributions are frozen.

    Raises:
        ValueError: On a number out of range.
    """

    epochs: float = 2.0
    """Passes over the node's rows at a visit."""
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    clip: float = 1.0
    """Largest gradient norm; 0 for none."""
    max_steps: int = 0
    """Most steps at a visit; 0 for no bound."""
    steps: int = 0
    """This many steps at a visit instead of `epochs`; 0: off."""
    rank_min: int = 4
    rank_max: int = 4
    """Bounds of a contribution's rank."""
    rows_per_rank: int = 64
    """A node with n training rows takes rank n / this, within the bounds."""
    rank_budget: int = 0
    """Most ranks of all contributions together; 0 for no bound. Older ones are folded into the
    base to make room."""
    repair: tuple[str, ...] = ()
    """Contributions to train further instead of adding one."""
    repair_own: bool = True
    """At a node that made some of those, train its own only; all of them elsewhere."""
    since: int = 0
    """Added to the hop in a contribution's name: of a packet that goes on with an earlier chain."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1 or self.lr <= 0 or self.rows_per_rank < 1:
            raise ValueError(
                "epochs and lr must be above 0, batch_size and rows_per_rank at least 1"
            )
        if not 0 <= self.momentum < 1 or min(self.clip, self.max_steps, self.steps) < 0:
            raise ValueError("momentum must be in 0-1 (not 1), clip, max_steps, steps at least 0")
        if not 1 <= self.rank_min <= self.rank_max:
            raise ValueError("ranks must be 1 <= rank_min <= rank_max")
        if self.rank_budget and self.rank_budget < self.rank_max:
            raise ValueError("rank_budget must be 0 or at least rank_max")
        if not 0 <= self.since < 10**8:
            raise ValueError("since must be in 0-99999999")

    def plan(self, stop: Stop) -> Plan | None:
        """Return `epochs` passes, or `steps` steps, over every wanted skill the node has."""
        if self.steps and stop.data:
            share, more = divmod(self.steps, len(stop.data))
            steps = {skill: share + (i < more) for i, skill in enumerate(stop.data)}
            return Plan(steps, self.batch_size)
        return passes(stop, self.epochs, self.batch_size, max_steps=self.max_steps)

    def rank_at(self, stop: Stop) -> int:
        """Return the rank a node gives its contribution."""
        rows = sum(data.samples for data in stop.data.values())
        return min(self.rank_max, max(self.rank_min, rows // self.rows_per_rank))

    def train(self, model: Any, work: Work) -> Carry:
        """Add a contribution and train it, or train on what is to be repaired.

        Raises:
            ModelError: If the model is no chain, or has not the contributions to repair.
        """
        if not isinstance(model, LoraModel):
            raise ModelError(
                "method 'lora' adds to a chain of adapters: wrap the architecture as "
                "{ name = 'lora', base = { name = ..., ... } }"
            )
        model.requires_grad_(False)
        if self.repair:
            mine = self._to_repair(work.stop.node)
            note = f"repaired {_listed(mine)}"
            for contribution in mine:
                model.part(contribution).requires_grad_(True)
        else:
            note = self._add(model, work.stop)
        sgd(
            model, work, lr=self.lr * work.stop.caution, momentum=self.momentum, clip=self.clip
        )  # fmt: skip
        model.requires_grad_(False)
        return Carry(note=note)

    def _add(self, model: LoraModel, stop: Stop) -> str:
        rank = self.rank_at(stop)
        folded = []
        while self.rank_budget and model.contributions and (
            rank + sum(map(model.rank, model.contributions)) > self.rank_budget
        ):  # fmt: skip
            folded.append(model.contributions[0])
            model.fold(folded[-1])
        added = Contribution(self.since + stop.hop, stop.node)
        model.add(added, rank, stop.seed).requires_grad_(True)
        gone = f", folded {_listed(folded)} into the base" if folded else ""
        return f"added {added} of rank {rank}{gone}"

    def _to_repair(self, node: NodeId) -> list[Contribution]:
        listed = [Contribution.of(name) for name in self.repair]
        own = [c for c in listed if c.node == node] if self.repair_own else []
        return own or listed


def _listed(contributions: list[Contribution]) -> str:
    return " ".join(map(str, contributions))
