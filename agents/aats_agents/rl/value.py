"""The alternative by values: a double DQN over candidates, with illegal ones left out.

Stable-Baselines3's DQN knows no masks. Here the network itself puts what the observation's mask
forbids out of reach, so the greedy choice and the bootstrap are legal; exploration draws among
what is legal, for each environment on its own. Double DQN: van Hasselt et al. 2016.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor
from torch.nn import functional

from aats_agents.prior import Prior
from aats_agents.rl.network import Actor, AsObserved, PriorWeights, legal, sizes
from aats_agents.scorer import NEVER

Obs = dict[str, npt.NDArray[Any]]


class CandidateValues(QNetwork):
    """Expected return of each candidate, `NEVER` for what is not legal."""

    def __init__(
        self, *args: Any, hidden: int, prior: PriorWeights | None, attention: bool, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        num_features, num_globals = sizes(self.observation_space)
        start = None if prior is None else Prior(**prior)
        self.actor = Actor(num_features, num_globals, hidden, start, attention)
        del self.q_net  # Stable-Baselines3's, for a fixed number of actions

    def forward(self, obs: PyTorchObs) -> Tensor:
        """Return [B, K]."""
        observed: Any = self.extract_features(obs, self.features_extractor)
        return torch.where(legal(observed), self.actor(observed), float(NEVER))


class CandidateValuePolicy(DQNPolicy):
    """DQN's policy over candidates.

    Args:
        *args: As `DQNPolicy` takes them.
        hidden: Width of every hidden layer.
        prior: Weights of the heuristic to start from, its sharpness in units of return.
        attention: Whether candidates are pooled by attention too.
        **options: As `DQNPolicy` takes them.
    """

    def __init__(
        self,
        *args: Any,
        hidden: int = 32,
        prior: PriorWeights | None = None,
        attention: bool = False,
        **options: Any,
    ) -> None:
        self.shape: dict[str, Any] = {"hidden": hidden, "prior": prior, "attention": attention}
        options["features_extractor_class"] = AsObserved
        super().__init__(*args, **options)

    @property
    def actor(self) -> Actor:
        """The part that a packet carries."""
        actor: Actor = self.q_net.actor  # type: ignore[assignment]  # a module of our own
        return actor

    def make_q_net(self) -> CandidateValues:
        """Return a network of values."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return CandidateValues(**arguments, **self.shape).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        del data["features_extractor_class"]
        return data | self.shape


class MaskedDQN(DQN):
    """Double DQN whose every choice is legal."""

    def predict(
        self,
        observation: Any,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Return legal choices, unless deterministic a share of them drawn at random."""
        chosen, state = self.policy.predict(observation, state, episode_start, True)
        if not deterministic:
            drawn = _drawn(observation["mask"])
            explores = np.random.rand(*drawn.shape) < self.exploration_rate
            chosen = np.where(explores, drawn, chosen)
        return chosen, state

    def _sample_action(
        self,
        learning_starts: int,
        action_noise: ActionNoise | None = None,
        n_envs: int = 1,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        observed: Any = self._last_obs
        if self.num_timesteps < learning_starts:
            chosen = _drawn(observed["mask"])
        else:
            chosen, _ = self.predict(observed)
        return chosen, chosen

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Fit values to one step of reward and the target network's value of the best next."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        replay: Any = self.replay_buffer
        losses = []
        for _ in range(gradient_steps):
            batch = replay.sample(batch_size)
            with torch.no_grad():
                best = self.q_net(batch.next_observations).argmax(dim=1, keepdim=True)
                ahead = self.q_net_target(batch.next_observations).gather(1, best)
                # A last observation may have nothing legal: what it is worth does not count.
                ahead = torch.where(batch.dones > 0.5, 0.0, ahead)
                wanted = batch.rewards + self.gamma * ahead
            held = self.q_net(batch.observations).gather(1, batch.actions.long())
            loss = functional.smooth_l1_loss(held, wanted)
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            losses.append(loss.item())
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", float(np.mean(losses)))


def _drawn(mask: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return [B] one legal candidate each, all as likely."""
    found: npt.NDArray[np.int64] = np.where(mask > 0.5, np.random.rand(*mask.shape), -1).argmax(-1)
    return found
