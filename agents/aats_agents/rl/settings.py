"""What a training is asked for, and the settings of the two algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aats_agents.prior import Prior


class Algorithm(StrEnum):
    """How the network learns."""

    PPO = "ppo"
    """Masked proximal policy optimisation, the usual choice."""
    DQN = "dqn"
    """Masked double DQN, the alternative by values."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training run: with the same environments, the same config gives the same weights."""

    algorithm: Algorithm = Algorithm.PPO
    steps: int = 1_000_000
    """Decisions in all; rounded up to whole rollouts. 0 writes the prior as it is."""
    num_envs: int = 256
    """Packets that learn side by side."""
    seed: int = 0
    prior: Prior | None = Prior()
    """The heuristic that the network starts as; None to start from nothing."""
    hidden: int = 32
    """Width of every hidden layer."""
    attention: bool = False
    """Whether candidates are pooled by attention too: twice the time, and no better so far."""
    episodes: int = 256
    """Held-out journeys of each evaluation."""
    every: int = 12
    """Rollouts from one evaluation and checkpoint to the next."""
    probes: int = 3
    """Nodes asked at each stop at most, as the environments were made with."""
    fallback: str = "minibatch"
    """The policy that decides where this one was not trained."""

    def __post_init__(self) -> None:
        least = {"steps": 0, "num_envs": 1, "hidden": 1, "episodes": 1, "every": 1, "probes": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least {low}")


ROLLOUT = 32
"""Decisions of each packet in one rollout."""

PPO: dict[str, Any] = {
    "n_steps": ROLLOUT,
    "n_epochs": 8,
    "gamma": 0.995,  # lower, and early gains count too much
    "gae_lambda": 0.9,
    "clip_range": 0.2,
    "ent_coef": 5e-4,
    "vf_coef": 0.25,
    "max_grad_norm": 5.0,  # 0.5 kept the residual start from moving at all
}
PPO_BATCH = 2048
PPO_RATE = 3e-3

DQN: dict[str, Any] = {
    "buffer_size": 50_000,
    "learning_starts": 5_000,
    "batch_size": 512,
    "gamma": 0.995,
    "train_freq": 1,
    "gradient_steps": 4,
    "target_update_interval": 5_000,
    "max_grad_norm": 5.0,
}
DQN_RATE = 1e-3
EXPLORATION = 0.3, 0.02, 0.5
"""Share of random choices at the start, at the end, and the share of the run in between."""
VALUE_SHARPNESS = 0.1
"""Of the prior as a start for values: in units of return, not of logits."""
