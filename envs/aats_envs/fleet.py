"""Several packets on one knowledge network, as a PettingZoo environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from pettingzoo import ParallelEnv  # type: ignore[import-untyped]

from aats.errors import ScenarioError
from aats_envs.episodes import KEYS, Episodes, key_of, one
from aats_envs.network import Bools, Floats, Ints, KnowledgeNetwork
from aats_envs.render import text
from aats_envs.simulator import Reward
from aats_envs.source import (
    FORMULA,
    MAX_EPISODE_STEPS,
    OBSERVED,
    PROBES,
    TaughtSource,
    simulator_of,
    source_of,
)
from aats_envs.spaces import action_space, observation_space

Observed = dict[str, npt.NDArray[Any]]
Link = tuple[int, int]


class KnowledgeFleet(ParallelEnv[str, Observed, np.int64]):  # type: ignore[misc]
    """`KnowledgeNetworkEnv` for several packets of one owner at once: aats/KnowledgeFleet-v0.

    All live on the same network and want the same, each with a model and with luck of its own.
    They choose at the same time and get into each other's way: who trains at a node waits until
    the others who came with it are through, and packets that cross a link in the same direction
    share it. Each sees, as a longer queue, who else is at a node now. A packet leaves when it is
    home.

    An observation has `features`, `globals` and `action_mask`; infos, rewards and choices are
    those of `KnowledgeNetworkEnv`.

    Args:
        packets: How many.
        preset: See `KnowledgeNetworkEnv`, as for the other arguments.
        scenario: See there.
        family: See there.
        pool_size: See there.
        k: See there.
        probes: See there.
        reward: See there.
        max_episode_steps: Decisions after which everyone left is cut off.
        render_mode: None or "ansi".
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 PettingZoo declares it so
        "name": "aats/KnowledgeFleet-v0", "render_modes": ["ansi"], "is_parallelizable": True,
    }  # fmt: skip

    def __init__(
        self,
        packets: int = 4,
        *,
        preset: str = "",
        scenario: str | Path | None = None,
        family: Mapping[str, Any] | None = None,
        pool_size: int | None = None,
        k: int = OBSERVED,
        probes: int = PROBES,
        fidelity: str = FORMULA,
        reward: Mapping[str, float] | Reward | None = None,
        max_episode_steps: int = MAX_EPISODE_STEPS,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise ScenarioError("environment: render_mode", render_mode, "the known mode is ansi")
        if packets < 1:
            raise ScenarioError("environment: packets", packets, "at least 1 is wanted")
        source = source_of(
            preset=preset, scenario=scenario, family=family, pool_size=pool_size, fidelity=fidelity
        )
        self._shared = _Shared(source)
        self._episodes = Episodes(
            simulator_of(
                packets, self._shared, k=k, probes=probes, reward=reward,
                max_steps=max_episode_steps,
            )
        )  # fmt: skip
        self.render_mode = render_mode
        self.possible_agents = [f"packet_{i}" for i in range(packets)]
        self.agents: list[str] = []
        self._row = {agent: i for i, agent in enumerate(self.possible_agents)}
        self.action_spaces = {agent: action_space(k) for agent in self.possible_agents}
        self.observation_spaces = {agent: _observation_space(k) for agent in self.possible_agents}
        self._rng, _ = np_random()
        self._key = 0
        self._queue: Floats = np.zeros(0)

    def observation_space(self, agent: str) -> spaces.Space[Observed]:
        """Return what an agent observes."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[np.int64]:
        """Return what an agent may choose."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observed], dict[str, dict[str, Any]]]:
        """Begin everybody's journey.

        Args:
            seed: Of the environment's random source.
            options: `network` is the key of journeys to begin again.
        """
        if seed is not None:
            self._rng, _ = np_random(seed)
        key = (options or {}).get("network")
        if key is not None and not 0 <= key < KEYS:
            raise ScenarioError("environment: options['network']", key, "0 to 2^63 - 1 is wanted")
        self._key = key_of(self._rng) if key is None else key
        rng = np.random.default_rng(self._key)
        self._shared.renew(rng)
        self.agents = list(self.possible_agents)
        rows = self._rows()
        self._episodes.begin(rows, [key_of(rng) for _ in rows])
        self._queue = self._episodes.sim.net.queue[0].copy()
        self._crowd(self._episodes.sim.at, self._present())
        self._episodes.sim.look(rows)
        return self._seen(), self._told()

    def step(
        self, actions: dict[str, np.int64]
    ) -> tuple[
        dict[str, Observed], dict[str, float], dict[str, bool], dict[str, bool],
        dict[str, dict[str, Any]],
    ]:  # fmt: skip
        """Move everybody; see `KnowledgeNetworkEnv.step`.

        Args:
            actions: A row of its observation for each agent still there.
        """
        episodes, sim, present = self._episodes, self._episodes.sim, self._present()
        chosen = np.zeros(sim.size, np.int64)
        for agent in self.agents:
            chosen[self._row[agent]] = actions[agent]
        sim.seen.mask[~present] = False  # who is home for good stays there
        start, kept = sim.at, sim.net.transfer_s.copy()
        node = self._bound_for(chosen)
        self._crowd(node, present)
        self._jam(start, node, present)
        outcome = episodes.step(chosen)
        sim.net.transfer_s[:] = kept

        ended = present & (outcome.terminated | outcome.truncated)
        self._crowd(sim.at, present & ~ended)
        if ended.any():
            episodes.finish(np.flatnonzero(ended), outcome)
        if (present & ~ended).any():
            sim.look(np.flatnonzero(present & ~ended))
        seen, told = self._seen(), self._told()

        def each(values: npt.NDArray[Any]) -> dict[str, Any]:
            return {agent: values[self._row[agent]].item() for agent in self.agents}

        found = each(outcome.reward), each(outcome.terminated), each(outcome.truncated)
        self.agents = [agent for agent in self.agents if not ended[self._row[agent]]]
        return seen, *found, told

    def _bound_for(self, chosen: Ints) -> Ints:
        """Return [M] the nodes that the choices lead to."""
        sim = self._episodes.sim
        rows = np.arange(sim.size)
        legal = sim.seen.mask[rows, chosen]
        return np.where(legal, self._episodes.nodes(rows)[rows, chosen], sim.net.home)

    def _crowd(self, at: Ints, present: Bools) -> None:
        """Lengthen everyone's queues by the others who are at a node."""
        sim = self._episodes.sim
        others = np.bincount(at[present], minlength=len(self._queue)).astype(np.float64)
        sim.net.queue[:] = self._queue + others
        rows = np.flatnonzero(present)
        sim.net.queue[rows, at[rows]] -= 1

    def _jam(self, start: Ints, end: Ints, present: Bools) -> None:
        """Slow the ways from `start` to `end` down by the others on their links."""
        sim = self._episodes.sim
        network = self._shared.network
        ways = {
            row: way(network, int(start[row]), int(end[row]))
            for row in np.flatnonzero(present & (start != end)).tolist()
        }
        load = Counter(link for links in ways.values() for link in links)
        for row, links in ways.items():
            more = sum(network.transfer_s[link] * (load[link] - 1) for link in links)
            sim.net.transfer_s[row, start[row], end[row]] += more

    def _present(self) -> Bools:
        present = np.zeros(len(self.possible_agents), np.bool_)
        present[self._rows()] = True
        return present

    def _rows(self) -> Ints:
        return np.array([self._row[agent] for agent in self.agents], np.int64)

    def _seen(self) -> dict[str, Observed]:
        seen = self._episodes.seen()
        seen["action_mask"] = seen.pop("mask")
        return {agent: one(seen, self._row[agent]) for agent in self.agents}

    def _told(self) -> dict[str, dict[str, Any]]:
        told = self._episodes.told()
        told["network"][:] = self._key
        return {agent: one(told, self._row[agent]) for agent in self.agents}

    def render(self) -> str | None:
        """Return a text of everybody's journey if `render_mode` is "ansi"."""
        if self.render_mode is None:
            return None
        return "\n".join(text(self._episodes, row) for row in range(len(self.possible_agents)))

    def close(self) -> None:
        """There is nothing to close."""


parallel_env = KnowledgeFleet
"""As PettingZoo's own environments name it."""


class _Shared:
    """Gives every row the one network drawn last."""

    def __init__(self, source: TaughtSource) -> None:
        self._source, self.limits, self.learner = source, source.limits, source.learner
        self.network: KnowledgeNetwork

    def renew(self, rng: np.random.Generator) -> None:
        self.network = self._source.draw(rng)

    def draw(self, rng: np.random.Generator) -> KnowledgeNetwork:
        return self.network


def _observation_space(k: int) -> spaces.Space[Observed]:
    parts: Any = observation_space(k)
    found: spaces.Space[Any] = spaces.Dict(
        {("action_mask" if name == "mask" else name): part for name, part in parts.items()}
    )
    return found


def way(network: KnowledgeNetwork, start: int, end: int) -> list[Link]:
    """Return the links of the cheapest way, each from its earlier to its later node.

    Where the way cannot be followed link by link, as to data that another node works on for their
    holder, all of it counts as one link.
    """
    seconds, count = network.transfer_s, network.links
    links: list[Link] = []
    here = end
    while here != start:
        before = np.flatnonzero(
            (count[start] + 1 == count[start, here])
            & (count[:, here] == 1)
            & np.isclose(seconds[start] + seconds[:, here], seconds[start, here], rtol=1e-9)
        )
        if not len(before):
            return [(start, end)]
        links.append((int(before[0]), here))
        here = int(before[0])
    return links[::-1]
