"""Pooled, local, FedAvg and sequential training in one process: what packets are measured against.

Plain PyTorch, nothing of AATS but the data. The first three draw random numbers in the order in
which FLamby's code does (one seed for the model, the same seed again before training, one
`DataLoader` a site whose iterator outlives the rounds), so FLamby's published figures come out to
the digit. FLamby: github.com/owkin/FLamby, commit edacf54d; FedAvg: McMahan et al. 2017.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from aats.learning.datasets import Dataset

Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What a training run took: optimiser steps and whole models sent from node to node."""

    updates: int
    transfers: int


def logistic(features: int, seed: int) -> torch.nn.Module:
    """Return logistic regression with PyTorch's default initialisation from `seed`."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(features, 1), torch.nn.Sigmoid())


def tensors(data: Dataset) -> TensorDataset:
    """Return rows as (x [n, F], y [n, 1]) float32 tensors."""
    return TensorDataset(torch.from_numpy(data.x), torch.from_numpy(data.y).float().unsqueeze(1))


def step(model: torch.nn.Module, optimiser: torch.optim.Optimizer, batch: Batch) -> None:
    """Take one step on the binary cross-entropy of one batch."""
    optimiser.zero_grad()
    loss = torch.nn.functional.binary_cross_entropy(model(batch[0]), batch[1])
    torch.autograd.backward(loss)
    optimiser.step()


def accuracy(model: torch.nn.Module, data: Dataset) -> float:
    """Return the share of rows on the right side of 0.5."""
    with torch.no_grad():
        positive = model(torch.from_numpy(data.x))[:, 0].numpy() > 0.5
    return float((positive == (data.y == 1)).mean())


def train_single(
    data: Dataset, seed: int, *, epochs: int = 50, learning_rate: float = 1e-3, batch: int = 4
) -> tuple[torch.nn.Module, Work]:
    """Train one model on one table with Adam: FLamby's Pooled and Local rows."""
    model = logistic(data.x.shape[1], seed)
    loader = DataLoader(tensors(data), batch_size=batch, shuffle=True)
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for rows in loader:
            step(model, optimiser, rows)
    return model, Work(epochs * len(loader), 0)


def train_fedavg(
    sites: Sequence[Dataset],
    seed: int,
    *,
    rounds: int = 15,
    updates: int = 100,
    learning_rate: float = 1e-3,
    batch: int = 4,
) -> tuple[torch.nn.Module, Work]:
    """Average the sites' SGD updates, weighted by rows, each round.

    Every site takes `updates` steps a round; a round moves each site's model down and up again.
    """
    model = logistic(sites[0].x.shape[1], seed)
    loaders = [DataLoader(tensors(site), batch_size=batch, shuffle=True) for site in sites]
    torch.manual_seed(seed)
    streams = [_endless(loader) for loader in loaders]
    total = float(sum(len(site) for site in sites))
    for _ in range(rounds):
        start = [p.detach().clone() for p in model.parameters()]
        change = [torch.zeros_like(p) for p in start]
        for site, stream in zip(sites, streams, strict=True):
            local = copy.deepcopy(model)
            optimiser = torch.optim.SGD(local.parameters(), lr=learning_rate)
            for _ in range(updates):
                step(local, optimiser, next(stream))
            for held, new, old in zip(change, local.parameters(), start, strict=True):
                held.add_((new.detach() - old) * len(site))
        with torch.no_grad():
            for p, held in zip(model.parameters(), change, strict=True):
                p.add_(held / total)
    return model, Work(rounds * updates * len(sites), rounds * len(sites) * 2)


def train_sequential(
    sites: Sequence[Dataset],
    seed: int,
    *,
    cycles: int = 4,
    epochs: int = 2,
    updates: int = 0,
    learning_rate: float = 0.01,
    decay: float = 0.9,
    average_last: int = 4,
    batch: int = 4,
) -> tuple[torch.nn.Module, Work]:
    """Send one model round the sites with SGD, their order reshuffled each cycle.

    Args:
        sites: One table a site.
        seed: Of the model, of the order of sites and of the batches.
        cycles: Times every site is visited.
        epochs: Passes over the site's own rows at each visit: work in proportion to data.
        updates: If not 0, that many steps at every visit instead: equal work.
        learning_rate: In the first cycle.
        decay: Factor on the learning rate from one cycle to the next.
        average_last: The model returned is the mean of those after the last so many visits.
        batch: Rows a step.
    """
    model = logistic(sites[0].x.shape[1], seed)
    loaders = [DataLoader(tensors(site), batch_size=batch, shuffle=True) for site in sites]
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    kept: list[list[torch.Tensor]] = []
    taken = 0
    for cycle in range(cycles):
        for site in order.permutation(len(sites)):
            optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate * decay**cycle)
            stream = _endless(loaders[site])
            steps = updates or epochs * len(loaders[site])
            for _ in range(steps):
                step(model, optimiser, next(stream))
            taken += steps
            kept.append([p.detach().clone() for p in model.parameters()])
            del kept[:-average_last]
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.stack([weights[i] for weights in kept]).mean(dim=0))
    return model, Work(taken, cycles * len(sites))


def _endless(loader: DataLoader[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader
