"""Journeys side by side: what all views of the environment have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aats.routing.view import Stage
from aats_envs.network import Floats, Ints
from aats_envs.simulator import BYTES, JOULES, SECONDS, Outcome, Simulator

Columns = dict[str, npt.NDArray[Any]]

KEYS = 2**63
"""A journey's key is below it: all that is drawn in the journey follows from the key."""
STAGES = np.array(["seek", "verify", "return"], object)
"""By `Stage`."""
COSTS = "hops", "seconds", "bytes", "joules"
"""Columns of `Simulator.spent`."""
VERIFIED, OVER_BUDGET, NOWHERE, ILLEGAL = "verified", "over budget", "nowhere to go", "illegal"
"""How a journey ends: home with all targets verified; home, because the budget just covered the
way; home, for nothing else was in reach; sent home after a choice that was not legal."""


def key_of(generator: np.random.Generator) -> int:
    """Return the key of the next journey of a row that has this generator."""
    return int(generator.integers(KEYS))


class Episodes:
    """The rows of a simulator, with what is told of them besides what they see.

    Args:
        simulator: Nobody else steps it.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.sim = simulator
        self._all = np.arange(simulator.size)
        self.success = np.zeros(simulator.size, np.bool_)
        self.ending = np.full(simulator.size, "", object)
        """[B] how the journey has ended; "" while it lasts, or where it was cut off."""

    def begin(self, rows: Sequence[int] | Ints, keys: Sequence[int]) -> None:
        """Begin new journeys in these rows, which do not look around yet."""
        self.sim.reset([int(row) for row in rows], keys)
        self.success[rows] = False
        self.ending[rows] = ""

    def step(self, actions: npt.ArrayLike) -> Outcome:
        """Step all rows, none of which looks around yet.

        Raises:
            ValueError: If an action is no row of the observation.
        """
        sim, chosen = self.sim, np.asarray(actions, np.int64).reshape(-1)
        if chosen.min() < 0 or chosen.max() >= sim.k or len(chosen) != sim.size:
            raise ValueError(f"actions are {chosen}, must be {sim.size} within 0-{sim.k - 1}")
        legal, stage = sim.seen.mask[self._all, chosen], sim.seen.stage.copy()
        outcome = sim.step(chosen)
        self.success = outcome.success
        for row in np.flatnonzero(outcome.terminated):
            forced = OVER_BUDGET if stage[row] == Stage.RETURN else NOWHERE
            why = forced if legal[row] else ILLEGAL
            self.ending[row] = VERIFIED if outcome.success[row] else why
        return outcome

    def finish(self, rows: Ints, outcome: Outcome) -> None:
        """Look around a last time in rows that have ended.

        Who is home for good asks no more: what the look costs does not count there.
        """
        home = rows[outcome.terminated[rows]]
        spent, probe_bytes = self.sim.spent[home], self.sim.probe_bytes[home]
        self.sim.look(rows)
        self.sim.spent[home], self.sim.probe_bytes[home] = spent, probe_bytes

    def seen(self, rows: Ints | slice = slice(None)) -> Columns:
        """Return what these rows see, as copies: features, globals, mask."""
        seen = self.sim.seen
        return {
            "features": seen.features[rows].copy(),
            "globals": seen.globals[rows].copy(),
            "mask": seen.mask[rows].astype(np.int8),
        }

    def told(self, rows: Ints | None = None) -> Columns:
        """Return what an `info` tells of these rows (all if None), [n, ...] each."""
        rows = self._all if rows is None else rows
        sim, net = self.sim, self.sim.net
        wanted, belief = net.classes[rows] > 0, sim.belief[rows]
        return {
            "action_mask": sim.seen.mask[rows].astype(np.int8),
            "nodes": self.nodes(rows),
            "at": sim.at[rows],
            "stage": STAGES[sim.seen.stage[rows]],
            "accuracy": np.where(wanted, np.where(np.isnan(belief), sim.trusted[rows], belief), 0),
            "target": net.target[rows],
            "verified": sim.met[rows] & wanted,
            **dict(zip(COSTS, sim.spent[rows].T.copy(), strict=True)),
            "probe_bytes": sim.probe_bytes[rows],
            "cost": self.cost(rows),
            "is_success": self.success[rows],
            "ending": self.ending[rows],
            "network": sim.keys[rows].astype(np.int64),
        }

    def nodes(self, rows: Ints) -> Ints:
        """Return [n, K] the node of each row of the observation, -1 for an empty one."""
        net, stops = self.sim.net, self.sim.seen.rows[rows]
        every = np.broadcast_to(np.arange(net.limits.nodes), (len(rows), net.limits.nodes))
        nodes = np.concatenate([every, net.mpvu_at[rows], net.home[rows, None]], axis=1)
        found = np.take_along_axis(nodes, np.maximum(stops, 0), axis=1)
        return np.where(stops < 0, -1, found)

    def cost(self, rows: Ints) -> Floats:
        """Return [n] what has been spent, as rewards weigh it, in usual stops of the network."""
        reward, cost = self.sim.reward, self.sim.spent[rows] / self.sim.unit[rows]
        found: Floats = reward.seconds * cost[:, SECONDS]
        return found + (reward.bytes * cost[:, BYTES] + reward.joules * cost[:, JOULES])


def one(columns: Columns, i: int = 0) -> dict[str, Any]:
    """Return row i of columns: arrays as copies, single figures as plain Python values."""
    return {
        name: values[i].copy() if values.ndim > 1 else values[i : i + 1].tolist()[0]
        for name, values in columns.items()
    }
