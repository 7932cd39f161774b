"""A small environment with the real one's interface, whose best policy is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from aats.routing.features import FEATURES, GLOBALS
from tests.agents.rl_samples import column

K = 6
LENGTH = 5
"""Choices of one journey."""


class ToyVecEnv(VecEnv):
    """Choose the legal data node with the most of one column, LENGTH times; all else is noise.

    Each choice brings its node's value as reward and one less the value as cost; success is a
    mean value above 0.6. The prior does not know the column.
    """

    wanted = "freshness"

    def __init__(self, num_envs: int, seed: int) -> None:
        self.render_mode = None
        space = spaces.Dict({
            "features": spaces.Box(-1, 1, (K, len(FEATURES))),
            "globals": spaces.Box(-1, 1, (len(GLOBALS),)),
            "mask": spaces.MultiBinary(K),
        })  # fmt: skip
        super().__init__(num_envs, space, spaces.Discrete(K))
        self.seed(seed)
        self._rng = np.random.default_rng(seed)
        self._chosen = np.zeros(num_envs, np.int64)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        found = super().seed(seed)
        self._restart = seed
        return found

    def action_masks(self) -> np.ndarray[Any, Any]:
        return self._mask

    def reset(self) -> dict[str, np.ndarray[Any, Any]]:
        if self._restart is not None:
            self._rng = np.random.default_rng(self._restart)
            self._restart = None
        self._left = np.full(self.num_envs, LENGTH)
        self._won = np.zeros(self.num_envs)
        return self._look()

    def _look(self) -> dict[str, np.ndarray[Any, Any]]:
        n = self.num_envs
        features = self._rng.uniform(0, 1, (n, K, len(FEATURES))).astype(np.float32)
        for name in ("is_data", "is_mpvu", "is_home"):
            column(features, name)[...] = name == "is_data"
        mask = self._rng.random((n, K)) < 0.7
        mask[np.arange(n), self._rng.integers(0, K, n)] = True
        self._mask, self._value = mask, column(features, self.wanted).copy()
        packet = self._rng.uniform(0, 1, (n, len(GLOBALS))).astype(np.float32)
        return {"features": features, "globals": packet, "mask": mask.astype(np.int8)}

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        self._chosen = actions

    def step_wait(self) -> Any:
        rows = np.arange(self.num_envs)
        assert self._mask[rows, self._chosen].all(), "an illegal choice"
        value = self._value[rows, self._chosen].astype(np.float64)
        self._won += value
        self._left -= 1
        done = self._left == 0
        observed = self._look()
        infos: list[dict[str, Any]] = [{} for _ in rows]
        for i in np.flatnonzero(done):
            infos[i] = {
                "is_success": bool(self._won[i] / LENGTH > 0.6),
                "cost": float(LENGTH - self._won[i]),
                "terminal_observation": {name: held[i] for name, held in observed.items()},
            }
            self._won[i], self._left[i] = 0.0, LENGTH
        return observed, value.astype(np.float32), done, infos

    def close(self) -> None:
        pass

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        return getattr(self, method_name)(*args, **kwargs)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs
