"""Many packets, each on its network, as Stable-Baselines3 and its MaskablePPO take them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from aats_envs.episodes import Episodes, key_of, one
from aats_envs.render import picture
from aats_envs.simulator import Reward
from aats_envs.source import FORMULA, MAX_EPISODE_STEPS, OBSERVED, PROBES, simulator_of, source_of
from aats_envs.spaces import action_space, observation_space

Observed = dict[str, npt.NDArray[Any]]


class KnowledgeVecEnv(VecEnv):
    """`KnowledgeNetworkEnv` many times over, in one simulator.

    Row i of environments seeded s lives through what a single environment does when it is seeded
    s + i, bit for bit and from one journey to the next. The infos of rows that go on are empty;
    that of a row that ends has what `KnowledgeNetworkEnv` tells at the end, `TimeLimit.truncated`,
    `episode` (return, length, wall time) and `terminal_observation`; its next journey has begun.
    A packet that is home does not look around again: there the terminal observation is its last.

    Args:
        num_envs: Rows.
        preset: See `KnowledgeNetworkEnv`, as for the other arguments.
        scenario: See there.
        family: See there.
        pool_size: See there.
        seed: Of row 0, that of row i is higher by i; drawn if None. See also `seed()`.
        k: See there.
        probes: See there.
        fidelity: See there.
        reward: See there.
        max_episode_steps: Decisions after which an episode is truncated.
        render_mode: None or "rgb_array".
    """

    def __init__(
        self,
        num_envs: int,
        *,
        preset: str = "",
        scenario: str | Path | None = None,
        family: Mapping[str, Any] | None = None,
        pool_size: int | None = None,
        seed: int | None = None,
        k: int = OBSERVED,
        probes: int = PROBES,
        fidelity: str = FORMULA,
        reward: Mapping[str, float] | Reward | None = None,
        max_episode_steps: int = MAX_EPISODE_STEPS,
        render_mode: str | None = None,
    ) -> None:
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
        self.render_mode = render_mode
        super().__init__(num_envs, observation_space(k), action_space(k))
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._return = np.zeros(num_envs)
        self._started = time.perf_counter()
        self._actions: npt.NDArray[Any] = np.zeros(num_envs, np.int64)
        if seed is not None:
            self.seed(seed)

    def reset(self) -> Observed:
        """Begin a journey in every row."""
        for row, seed in enumerate(self._seeds):
            if seed is not None:
                self._generators[row] = np.random.default_rng(seed)
        self._reset_seeds()
        self._return[:] = 0.0
        self._begin(np.arange(self.num_envs))
        self._episodes.sim.look()
        return self._episodes.seen()

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Take the rows' choices."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every row."""
        episodes = self._episodes
        outcome = episodes.step(self._actions)
        self._return += outcome.reward
        done = outcome.terminated | outcome.truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(done)
        if len(ended):
            if outcome.truncated.any():
                episodes.finish(np.flatnonzero(outcome.truncated), outcome)
            seen, told = episodes.seen(ended), episodes.told(ended)
            elapsed = round(time.perf_counter() - self._started, 6)
            for i, row in enumerate(ended.tolist()):
                length = int(episodes.sim.steps[row])
                infos[row] = one(told, i) | {
                    "terminal_observation": one(seen, i),
                    "TimeLimit.truncated": bool(outcome.truncated[row]),
                    "episode": {"r": float(self._return[row]), "l": length, "t": elapsed},
                }
            self._return[ended] = 0.0
            self._begin(ended)
        episodes.sim.look()
        return episodes.seen(), outcome.reward.astype(np.float32), done, infos

    def _begin(self, rows: npt.NDArray[np.int64]) -> None:
        self._episodes.begin(rows, [key_of(self._generators[row]) for row in rows])

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return [num_envs, k] which choices are legal."""
        return self._episodes.sim.seen.mask.copy()

    def close(self) -> None:
        """There is nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of these environments, once for each row asked for."""
        return [getattr(self, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all rows: they are one object."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> Any:  # fmt: skip
        """Return what a method of these environments returns for the rows asked for, in order."""
        found = getattr(self, method_name)(*method_args, **method_kwargs)
        return found if indices is None else [found[row] for row in self._rows(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """Return that no row is wrapped."""
        return [False] * len(self._rows(indices))

    def get_images(self) -> Sequence[npt.NDArray[np.uint8]]:
        """Return a picture of each row."""
        return [picture(self._episodes, row) for row in range(self.num_envs)]

    def _rows(self, indices: VecEnvIndices) -> Sequence[int]:
        if indices is None:
            return range(self.num_envs)
        return list(indices) if isinstance(indices, Iterable) else [indices]
