"""A scenario's own rows, for models that learn by them many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from aats.errors import ScenarioError
from aats.roles.data import Features
from aats_envs.from_scenario import RealTask
from aats_envs.network import Ints, KnowledgeNetwork
from aats_envs.rows import MOST_TEST, MOST_TRUSTED, WIDTH, Deal, Table

NONE: Ints = np.zeros(0, np.int64)
NO_TABLE: Table = np.zeros((0, WIDTH), np.float32)
EMPTY = np.zeros((0, WIDTH - 1), np.float32), NONE


def own_rows(found: Sequence[tuple[KnowledgeNetwork, RealTask]]) -> list[Deal]:
    """Return the deal of each network: what the nodes, the packet and the MPVUs really hold.

    Args:
        found: As `from_scenario` returns them. All deals are of one table.

    Raises:
        ScenarioError: If a row has more features than a table has columns.
    """
    table = _Growing()
    deals = [_deal(network, task, table) for network, task in found]
    whole = table.whole()
    return [replace(deal, table=whole) for deal in deals]


def _deal(network: KnowledgeNetwork, task: RealTask, table: _Growing) -> Deal:
    """Return the deal of a network, its table still to come."""
    mandate = task.packet.header.mandate
    rng = np.random.default_rng(mandate.seed)
    at, label = [NONE], [NONE]
    shape = network.num_nodes, len(network.skills)
    first, held = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for (i, name), (t, skill) in product(enumerate(task.names), enumerate(network.skills)):
        data = task.plan.nodes[name].data.skills.get(skill)
        if data is not None and network.has_data[i]:
            order = rng.permutation(data.samples)
            first[i, t], held[i, t] = sum(map(len, at)), data.samples
            at.append(table.add(skill, data.train_x)[order])
            label.append(data.train_y[order])
    unit = next(c for c in task.contexts if set(network.skills) <= set(c.test_set.sets))
    sets = [
        tuple((table.add(skill, x, most), y[:most]) for skill, (x, y) in pairs)
        for pairs, most in (
            ([(s, task.plan.reference.get(s, EMPTY)) for s in network.skills], MOST_TRUSTED),
            ([(s, unit.test_set.sets[s]) for s in network.skills], MOST_TEST),
        )
    ]
    return Deal(
        table=NO_TABLE, at=np.concatenate(at), label=np.concatenate(label), first=first, held=held,
        trusted=sets[0], test=sets[1], start=mandate.seed % 2**31,
        average_last=int(mandate.method.params.get("average_last", 0)),
    )  # fmt: skip


class _Growing:
    """Rows that are put one below the other."""

    def __init__(self) -> None:
        self._parts: list[Table] = []
        self._count = 0

    def add(self, skill: str, x: Features, most: int | None = None) -> Ints:
        """Return where the rows (the first so many) will be."""
        flat = x[:most].reshape(len(x[:most]), -1)
        if flat.shape[1] >= WIDTH or x.dtype != np.float32:
            allowed = f"rows of at most {WIDTH - 1} numbers (float32); for others, fidelity torch"
            found = f"{flat.shape[1]} of {x.dtype}"
            raise ScenarioError(f"skill {skill!r}: fidelity rows", found, allowed)
        part = np.zeros((len(flat), WIDTH), np.float32)
        part[:, : flat.shape[1]], part[:, -1] = flat, 1.0
        self._parts.append(part)
        self._count += len(part)
        return np.arange(self._count - len(part), self._count)

    def whole(self) -> Table:
        """Return the table."""
        return np.concatenate(self._parts)
