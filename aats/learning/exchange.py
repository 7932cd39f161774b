"""Learning between unlike architectures: what travels on is what models say, not their weights.

The packet carries, beside its model, what the models at its stops have said on the rows of its
reference set (the labels of which play no part): a running mean of probabilities. A node that is
too small for the packet's model trains a small one of another architecture, which stays there;
its answers go into the mean. A node that can hold the packet's model trains that, drawn towards
the mean on the same rows (FedMD, Li and Wang 2019, as a chain).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from aats.errors import ModelError
from aats.learning.method import Carry, Stop, Work
from aats.learning.models import build, initialise, predict
from aats.learning.modules import rows
from aats.learning.nested import COPIES
from aats.learning.sequential import SequentialMethod
from aats.learning.sgd import sgd
from aats.packet import Architecture
from aats.payload import STATE, Array
from aats.roles.data import Features

SAID = f"{STATE}said."
"""`state.said.<skill>`: [rows, classes] probabilities, float32."""
VOICES = f"{STATE}voices."
"""`state.voices.<skill>`: [1] how many answers are in the mean, older ones for less."""


Heard = tuple[Features, torch.Tensor | None, float]
"""Shared rows, what was said on them [rows, classes] if anything was, and by how many."""


@dataclass(frozen=True, slots=True)
class ExchangeMethod(SequentialMethod):
    """SGD on the node's rows and towards what other models have said on shared ones.

    Raises:
        ValueError: On a number out of range, or options that need the same weights at every stop.
    """

    small: Mapping[str, Any] = field(default_factory=dict)
    """Architecture of nodes too small for the packet's: `name` and its config. None: they train
    nothing."""
    share: float = 0.5
    """Of the loss that looks at what was said, 0-1."""
    temperature: float = 2.0
    forget: float = 0.8
    """Weight of older answers at each new one, in 0-1 (not 0): 1 is the plain mean."""
    shared_rows: int = 32
    """Shared rows of a step."""

    def __post_init__(self) -> None:
        SequentialMethod.__post_init__(self)
        if not 0 <= self.share <= 1 or self.temperature <= 0 or not 0 < self.forget <= 1:
            raise ValueError("share must be in 0-1, temperature above 0, forget in 0-1 (not 0)")
        if self.shared_rows < 1:
            raise ValueError("shared_rows must be at least 1")
        if self.ships_mean or self.carry_momentum:
            raise ValueError("average_last and carry_momentum need the same weights at every stop")
        if self.small and "name" not in self.small:
            raise ValueError("small: an architecture needs a name")

    def fits(self, stop: Stop, model: nn.Module) -> bool:
        """Return whether a node can train the packet's model; one that names no memory can."""
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        memory = stop.compute.memory_bytes
        return not memory or size * COPIES <= memory

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        """Train the packet's model or a small one, and add what it says to the mean.

        Raises:
            ModelError: If the packet has no reference set, or what was said does not fit it.
        """
        stop = work.stop
        heard = {skill: _heard(stop, skill) for skill in stop.shared}
        if not heard:
            raise ModelError("exchange: the packet carries no reference set, whose rows are shared")
        fits = self.fits(stop, model)
        if not fits and not self.small:
            return None
        learner = model if fits else self._small(stop)
        sgd(
            learner, work, lr=self.lr * self.decay**stop.cycle * stop.caution,
            momentum=self.momentum, clip=self.clip, loss=self._loss(work, heard),
        )  # fmt: skip
        carried: dict[str, Array] = {}
        for skill, (x, said, voices) in heard.items():
            answer = _answer(learner, x, skill)
            old = self.forget * voices
            mean = answer if said is None else (old * said.numpy() + answer) / (old + 1)
            carried[SAID + skill] = mean.astype(np.float32)
            carried[VOICES + skill] = np.array([old + 1], np.float32)
        return Carry({**_others(stop.state), **carried}, {"whole": float(fits)})

    def _small(self, stop: Stop) -> nn.Module:
        config = {key: value for key, value in self.small.items() if key != "name"}
        model = build(Architecture(str(self.small["name"]), config))
        initialise(model, stop.seed)
        return model

    def _loss(self, work: Work, heard: Mapping[str, Heard]) -> Any:
        """Return the local loss joined with the divergence from what was said on shared rows."""
        rng = np.random.default_rng(work.stop.seed + 1)

        def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, skill: str) -> torch.Tensor:
            local: torch.Tensor = work.criterion(predict(model, x, skill), x, y, skill)
            shared, said, _ = heard.get(skill, (None, None, 0.0))
            if said is None or shared is None or not self.share:
                return local
            drawn = rng.integers(len(shared), size=self.shared_rows)
            logits = predict(model, rows(shared[drawn]), skill) / self.temperature
            softer = (said[drawn].clamp_min(1e-6).log() / self.temperature).softmax(1)
            drawn_to = nn.functional.kl_div(logits.log_softmax(1), softer, reduction="batchmean")
            return (1 - self.share) * local + self.share * self.temperature**2 * drawn_to

        return work.composed(loss)


def _heard(stop: Stop, skill: str) -> Heard:
    x = stop.shared[skill]
    said = stop.state.get(SAID + skill)
    if said is None:
        return x, None, 0.0
    voices = stop.state.get(VOICES + skill)
    if said.ndim != 2 or len(said) != len(x) or voices is None or voices.shape != (1,):
        raise ModelError(f"exchange: what was said on {skill!r} does not fit its {len(x)} rows")
    mean = torch.from_numpy(np.array(said, np.float32))
    if not bool((mean >= 0).all()) or not 0 < float(voices[0]) < 1e9:
        raise ModelError(f"exchange: what was said on {skill!r} are no probabilities")
    return x, mean, float(voices[0])


def _answer(model: nn.Module, x: Features, skill: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    model.eval()
    with torch.no_grad():
        return predict(model, rows(x), skill).softmax(1).numpy()


def _others(state: Mapping[str, Array]) -> dict[str, Array]:
    return {name: a for name, a in state.items() if not name.startswith((SAID, VOICES))}
