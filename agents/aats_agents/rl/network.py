"""The policy network in torch, as MaskablePPO trains it and `aats_agents.scorer` runs it.

Actor and critic have encoders of their own: with a shared one the residual start does not move.
Shapes: B observations, K candidates, F features, G globals, H hidden.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import (
    MaskableCategoricalDistribution,
    MaskableDistribution,
)
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from aats_agents.prior import Prior
from aats_agents.scorer import NEVER, Weights, shapes

Observed = dict[str, Tensor]
"""features [B, K, F], globals [B, G], mask [B, K] (0 or 1)."""

PriorWeights = dict[str, float]
"""A `Prior`'s weights; plain, because Stable-Baselines3 stores constructor parameters."""


class Encoder(nn.Module):
    """Each candidate together with the packet's state, by one shared network."""

    def __init__(self, num_features: int, num_globals: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(num_features + num_globals, hidden)
        self.second = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor, packet: Tensor) -> Tensor:
        """Return [B, K, H]."""
        num_features, weight = features.shape[-1], self.first.weight
        # The packet's part is the same for every candidate: worked out once.
        shared = packet @ weight[:, num_features:].T + self.first.bias
        inner = torch.tanh(features @ weight[:, :num_features].T + shared[:, None])
        return torch.tanh(self.second(inner))


def pool(hidden_BKH: Tensor, mask: Tensor, attention: nn.Linear | None = None) -> Tensor:
    """Return [B, C]: mean, maximum and, if learned, attention over the legal candidates."""
    legal = mask[..., None]
    mean = (hidden_BKH * legal).sum(dim=-2) / legal.sum(dim=-2).clip(min=1)
    highest = torch.where(legal, hidden_BKH, -1.0).amax(dim=-2)
    parts = [mean, highest]
    if attention is not None:
        pull = torch.where(mask, attention(hidden_BKH)[..., 0], float(NEVER))
        parts.append((torch.softmax(pull, dim=-1)[..., None] * hidden_BKH).sum(dim=-2))
    return torch.cat(parts, dim=-1)


class Actor(nn.Module):
    """A logit for each candidate: what is learned, which starts at zero, on top of the prior."""

    def __init__(
        self, num_features: int, num_globals: int, hidden: int, prior: Prior | None,
        attention: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.prior = prior
        self.encoder = Encoder(num_features, num_globals, hidden)
        self.attention = nn.Linear(hidden, 1, bias=False) if attention else None
        self.first = nn.Linear((4 if attention else 3) * hidden, hidden)
        self.last = nn.Linear(hidden, 1)
        orthogonal(self)
        nn.init.zeros_(self.last.weight)

    def forward(self, observed: Observed) -> Tensor:
        """Return [B, K] logits; those of illegal candidates mean nothing."""
        features, packet, mask = observed["features"], observed["globals"], legal(observed)
        hidden_BKH = self.encoder(features, packet)
        width, weight = hidden_BKH.shape[-1], self.first.weight
        context_BC = pool(hidden_BKH, mask, self.attention)
        shared = context_BC @ weight[:, width:].T + self.first.bias
        inner = torch.tanh(hidden_BKH @ weight[:, :width].T + shared[:, None])
        logits: Tensor = self.last(inner)[..., 0]
        if self.prior is not None:
            with torch.no_grad():
                start = self.prior.logits(features, packet, mask, torch)
            logits = logits + start
        return logits

    def export(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the weights as `aats_agents.scorer` names them."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self._named().items()}

    def restore(self, weights: Weights) -> None:
        """Take weights from a policy's file.

        Raises:
            ValueError: If they are not those of such a network.
        """
        named = self._named()
        wanted = {name: tuple(p.shape) for name, p in named.items()}
        found = {name: w.shape for name, w in weights.items()}
        if wanted != found:
            raise ValueError(f"weights of shapes {found} do not fit a network of {wanted}")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(torch.as_tensor(weights[name]))

    def _named(self) -> dict[str, nn.Parameter]:
        layers: dict[str, nn.Linear | None] = {
            "encode.0": self.encoder.first, "encode.1": self.encoder.second,
            "score.0": self.first, "score.1": self.last, "attention": self.attention,
        }  # fmt: skip
        parameters = {
            f"{name}.{kind}": parameter
            for name, layer in layers.items()
            if layer is not None
            for kind, parameter in layer.named_parameters()
        }
        return {name: parameters[name] for name in self._shapes()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes(self.last.in_features, attention=self.attention is not None)


class Critic(nn.Module):
    """The value of an observation, from its pooled candidates and the packet's state."""

    def __init__(self, num_features: int, num_globals: int, hidden: int) -> None:
        super().__init__()
        self.encoder = Encoder(num_features, num_globals, hidden)
        self.first = nn.Linear(2 * hidden + num_globals, hidden)
        self.last = nn.Linear(hidden, 1)
        orthogonal(self)

    def forward(self, observed: Observed) -> Tensor:
        """Return [B, 1]."""
        packet = observed["globals"]
        hidden_BKH = self.encoder(observed["features"], packet)
        context = torch.cat([pool(hidden_BKH, legal(observed)), packet], dim=-1)
        value: Tensor = self.last(torch.tanh(self.first(context)))
        return value


def legal(observed: Observed) -> Tensor:
    """Return the mask [B, K] as booleans, whatever the buffer made of it."""
    return observed["mask"] > 0.5


def orthogonal(module: nn.Module) -> None:
    """Initialise every linear layer as PPO likes it."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=float(np.sqrt(2)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class AsObserved(BaseFeaturesExtractor):
    """Hands the observation on as it is: actor and critic encode it themselves."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        super().__init__(observation_space, features_dim=1)

    def forward(self, observed: Observed) -> Observed:
        """Return what came in."""
        return observed


class ActorAndCritic(nn.Module):
    """What Stable-Baselines3 calls the MLP extractor: its latents are the logits and the value."""

    def __init__(self, actor: Actor, critic: Critic) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic

    def forward(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """Return logits [B, K] and value [B, 1]."""
        return self.actor(observed), self.critic(observed)

    def forward_actor(self, observed: Observed) -> Tensor:
        """Return logits [B, K]."""
        logits: Tensor = self.actor(observed)
        return logits

    def forward_critic(self, observed: Observed) -> Tensor:
        """Return value [B, 1]."""
        value: Tensor = self.critic(observed)
        return value


def sizes(space: spaces.Space[Any]) -> tuple[int, int]:
    """Return the number of features and of globals in an environment's observations."""
    if not isinstance(space, spaces.Dict):
        raise ValueError(f"observations are {space}, must be a Dict of features, globals, mask")
    features, packet = space["features"].shape, space["globals"].shape
    if features is None or packet is None:
        raise ValueError(f"observations {space} have no shape")
    return features[-1], packet[-1]


class CandidatePolicy(MaskableActorCriticPolicy):
    """MaskablePPO's policy for observations of candidates: any number, in any order.

    Args:
        observation_space: Dict of features [K, F], globals [G], mask [K].
        action_space: Discrete(K).
        lr_schedule: Learning rate.
        hidden: Width of every hidden layer.
        prior: Weights of the heuristic to start from; none to start from nothing.
        attention: Whether the actor pools candidates by attention too.
        **options: As `MaskableActorCriticPolicy` takes them.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        hidden: int = 32,
        prior: PriorWeights | None = None,
        attention: bool = False,
        **options: Any,
    ) -> None:
        self.hidden, self.prior, self.attention = hidden, prior, attention
        options["features_extractor_class"] = AsObserved
        super().__init__(observation_space, action_space, lr_schedule, **options)

    @property
    def actor(self) -> Actor:
        """The part that a packet carries."""
        actor: Actor = self.mlp_extractor.actor
        return actor

    def _build_mlp_extractor(self) -> None:
        num_features, num_globals = sizes(self.observation_space)
        prior = None if self.prior is None else Prior(**self.prior)
        actor = Actor(num_features, num_globals, self.hidden, prior, self.attention)
        critic = Critic(num_features, num_globals, self.hidden)
        self.mlp_extractor: Any = ActorAndCritic(actor, critic)

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        self.action_net: Any = nn.Identity()
        self.value_net: Any = nn.Identity()
        optimizer: Any = self.optimizer_class
        self.optimizer = optimizer(self.parameters(), lr=lr_schedule(1.0), **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> MaskableDistribution:
        # One made for another number of candidates would silently fold the logits.
        distribution: Any = MaskableCategoricalDistribution(latent_pi.shape[-1])
        found: MaskableDistribution = distribution.proba_distribution(latent_pi)
        return found

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        del data["features_extractor_class"]
        return data | {
            "hidden": self.hidden, "prior": self.prior, "attention": self.attention
        }  # fmt: skip


def prior_weights(prior: Prior | None) -> PriorWeights | None:
    """Return a prior as a constructor parameter."""
    return None if prior is None else asdict(prior)
