"""Many packets, each on its network, as a Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from aats.errors import ScenarioError
from aats_envs.episodes import Episodes, key_of, one
from aats_envs.render import RENDER_MODES, picture, text
from aats_envs.simulator import Reward
from aats_envs.source import FORMULA, MAX_EPISODE_STEPS, OBSERVED, PROBES, simulator_of, source_of
from aats_envs.spaces import action_space, observation_space

Observed = dict[str, npt.NDArray[Any]]


class KnowledgeNetworkVectorEnv(VectorEnv[Observed, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """`KnowledgeNetworkEnv` many times over, in one simulator.

    Row i of a batch seeded s lives through what a single environment does when it is seeded
    s + i, bit for bit and from one journey to the next. A row that ends begins anew in the same
    step: its last observation and info are in `info["final_obs"]` and `info["final_info"]`.

    Args:
        num_envs: Rows.
        preset: See `KnowledgeNetworkEnv`, as for the other arguments.
        scenario: See there.
        family: See there.
        pool_size: See there.
        k: See there.
        probes: See there.
        fidelity: See there.
        reward: See there.
        max_episode_steps: Decisions after which an episode is truncated.
        render_mode: See there.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 Gymnasium declares it so
        "render_modes": RENDER_MODES, "render_fps": 4, "autoreset_mode": AutoresetMode.SAME_STEP,
    }  # fmt: skip

    def __init__(
        self,
        num_envs: int = 1,
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
        if render_mode not in (None, *RENDER_MODES):
            allowed = f"known modes are {', '.join(RENDER_MODES)}"
            raise ScenarioError("environment: render_mode", render_mode, allowed)
        source = source_of(
            preset=preset, scenario=scenario, family=family, pool_size=pool_size, fidelity=fidelity
        )
        self._episodes = Episodes(
            simulator_of(
                num_envs,
                source,
                k=k,
                probes=probes,
                reward=reward,
                max_steps=max_episode_steps,
            )
        )
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = observation_space(k)
        self.single_action_space = action_space(k)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [np_random()[0] for _ in range(num_envs)]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observed, dict[str, Any]]:
        """Begin a journey in every row.

        Args:
            seed: Of row 0, that of row i is higher by i; or one for each row. None goes on with
                the random sources as they are.
            options: `network` holds the keys [num_envs] of journeys to begin again.
        """
        seeds = range(seed, seed + self.num_envs) if isinstance(seed, int) else seed
        for i, own in enumerate(seeds or ()):
            if own is not None:
                self._generators[i], _ = np_random(own)
        keys = (options or {}).get("network")
        rows = range(self.num_envs)
        self._episodes.begin(rows, self._keys(rows) if keys is None else list(keys))
        self._episodes.sim.look()
        return self._episodes.seen(), self._told()

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[
        Observed, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_],
        dict[str, Any],
    ]:  # fmt: skip
        """Step every row; see `KnowledgeNetworkEnv.step`."""
        episodes = self._episodes
        outcome = episodes.step(actions)
        truncated = episodes.sim.steps >= episodes.sim.max_steps  # as Gymnasium's TimeLimit has it
        ended = np.flatnonzero(outcome.terminated | truncated)
        final: dict[str, Any] = {}
        if len(ended):
            episodes.finish(ended, outcome)
            seen, told = episodes.seen(ended), episodes.told(ended)
            for i, row in enumerate(ended):
                last = {"final_obs": one(seen, i), "final_info": one(told, i)}
                final = self._add_info(final, last, int(row))
            episodes.begin(ended, self._keys(ended.tolist()))
        episodes.sim.look()
        info = self._told() | final
        return episodes.seen(), outcome.reward, outcome.terminated, truncated, info

    def _keys(self, rows: Sequence[int]) -> list[int]:
        return [key_of(self._generators[row]) for row in rows]

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = dict(self._episodes.told())
        return told | {f"_{name}": np.ones(self.num_envs, np.bool_) for name in told}

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return [num_envs, k] which choices are legal."""
        return self._episodes.sim.seen.mask.copy()

    def render(self) -> tuple[Any, ...] | None:
        """Return for each row what `KnowledgeNetworkEnv.render` does."""
        if self.render_mode is None:
            return None
        draw = picture if self.render_mode == "rgb_array" else text
        return tuple(draw(self._episodes, row) for row in range(self.num_envs))
