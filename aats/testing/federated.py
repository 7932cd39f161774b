"""Federated averaging and sequential training in one process: what packets are compared with.

A plain second implementation, a loop over clients and a mean, without a network, a header or a
plug-in. It shares with the packets how a model is built and in what order a client's minibatches
come (`Work`, by a seed that follows from the packet, the hop and the node), so that a run of the
network and this one can be compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from aats.ids import NodeId
from aats.learning.method import Plan, Stop, Work, passes, seed_of
from aats.learning.models import build, predict
from aats.learning.modules import deterministic
from aats.lineage import RecordKind
from aats.packet import Architecture, Header
from aats.payload import MODEL, Array, Payload
from aats.roles.data import SkillData

Weights = Mapping[str, Array]
"""A state dict, names without `model.`."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One visit: whose data, and on which hop of which branch; the seed follows from that."""

    node: NodeId
    hop: int = 0
    branch: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client does: plain SGD, the learning rate decayed by the round."""

    lr: float
    epochs: float = 1.0
    steps: int = 0
    """This many at every client instead of `epochs`; 0: off."""
    batch_size: int = 32
    decay: float = 0.9
    clip: float = 1.0
    """Largest gradient norm; 0 for none."""
    seed: int = 0
    """The mandate's."""


def start_of(payload: Payload) -> dict[str, Array]:
    """Return the weights a payload holds, copied."""
    return {name[len(MODEL) :]: array.copy() for name, array in payload.arrays(MODEL).items()}


def rounds_of(header: Header) -> list[list[Turn]]:
    """Return who trained in each merged round, in the order in which they were merged.

    Read from the packet's signed history; of children with one visit each.
    """
    known = {record.id: record for record in header.chain}
    rounds = []
    for merge in (r for r in header.chain if r.kind is RecordKind.MERGE):
        parts = [known[parent] for parent in merge.parents if parent in known]
        rounds.append([Turn(r.node, r.hop, r.branch) for r in parts if r.kind is RecordKind.TRAIN])
    return rounds


def fedavg(
    architecture: Architecture,
    start: Weights,
    data: Mapping[NodeId, SkillData],
    rounds: Iterable[Sequence[Turn]],
    settings: Settings,
    *,
    equal: bool = False,
) -> Iterator[dict[str, Array]]:
    """Yield the weights after each round of federated averaging (McMahan et al. 2017).

    Args:
        architecture: Of the model.
        start: The weights to begin with.
        data: By client.
        rounds: Who takes part, round by round.
        settings: What each does.
        equal: Weigh all clients alike, not by the rows they drew.
    """
    weights = dict(start)
    for number, turns in enumerate(rounds):
        models, sizes = [], []
        for turn in turns:
            trained, rows = _train(architecture, weights, data[turn.node], turn, settings, number)
            models.append(trained)
            sizes.append(1.0 if equal else float(rows))
        weights = {name: _mean([model[name] for model in models], sizes) for name in weights}
        yield weights


def sequential(
    architecture: Architecture,
    start: Weights,
    data: Mapping[NodeId, SkillData],
    rounds: Iterable[Sequence[Turn]],
    settings: Settings,
) -> Iterator[dict[str, Array]]:
    """Yield the weights after each round in which one model went from client to client."""
    weights = dict(start)
    for number, turns in enumerate(rounds):
        for turn in turns:
            weights, _ = _train(architecture, weights, data[turn.node], turn, settings, number)
        yield weights


def _train(
    architecture: Architecture,
    start: Weights,
    data: SkillData,
    turn: Turn,
    settings: Settings,
    number: int,
) -> tuple[dict[str, Array], int]:
    """Return one client's weights and the rows it drew."""
    seed = seed_of("visit", f"{settings.seed}{turn.branch}", turn.hop, turn.node)
    stop = Stop(turn.node, turn.hop, seed, {data.skill: data})
    plan = Plan({data.skill: settings.steps}, settings.batch_size)
    work = Work(
        stop,
        plan if settings.steps else passes(stop, settings.epochs, settings.batch_size) or plan,
    )
    lr = settings.lr * settings.decay**number
    with deterministic(seed):
        model = build(architecture)
        model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in start.items()})
        model.train()
        weights = list(model.parameters())
        for skill, x, y in work:
            logits = predict(model, torch.from_numpy(x), skill)
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(y))
            slopes = list(torch.autograd.grad(loss, weights))
            if settings.clip:
                norm = torch.stack([slope.norm() for slope in slopes]).norm()
                factor = (settings.clip / (norm + 1e-6)).clamp(max=1.0)
                slopes = [slope * factor for slope in slopes]
            with torch.no_grad():
                for weight, slope in zip(weights, slopes, strict=True):
                    weight.sub_(slope, alpha=lr)
        return {name: t.numpy().copy() for name, t in model.state_dict().items()}, work.samples


def _mean(arrays: Sequence[Array], sizes: Sequence[float]) -> Array:
    """Return the weighted mean, summed in float64; of whole numbers the first."""
    if not np.issubdtype(arrays[0].dtype, np.floating):
        return arrays[0]
    total = np.zeros(arrays[0].shape)
    for array, size in zip(arrays, sizes, strict=True):
        total += size * array.astype(np.float64)
    mean: Array = (total / sum(sizes)).astype(arrays[0].dtype)
    return mean
