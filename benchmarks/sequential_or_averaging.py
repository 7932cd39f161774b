"""When one model that goes from client to client beats the average of many, and when it does not.

Li and Lyu (NeurIPS 2023) compare sequential (SFL) and parallel federated learning (FedAvg) where
every client knows C classes (the extended Dirichlet deal: `shards`) and takes K steps of 20 rows
at a turn. Here both are packets in the simulated world, by the same method `sequential`: with the
rendezvous `daisy-chain` of one walker, which goes through the clients of a round in an order of
chance, and with `fedavg`. Same clients, same visits, same steps.

- *strong*: one class a client, few steps (K = 5), an MLP of 64: sequential is to be ahead (T5).
- *mild*: many steps (K = 50), logistic regression: averaging is to be ahead (T6).

    python benchmarks/sequential_or_averaging.py --data DIR     # some minutes on two cores
    python benchmarks/sequential_or_averaging.py --quick        # digits, seconds, no bars

DIR has fashion_mnist_15k.npz. Scaled to minutes: theirs are 500 clients, 10 of them a round, 1,000
rounds of MNIST, 3 seeds; here all of 50 (20) clients take part in each of 8 (15) rounds, 400 (300)
visits, 5 seeds, the first 15,000 rows of Fashion-MNIST. `--some` adds their proportion, 10 of 50
clients a round. Learning rates are tuned for both alike: five each, half a decade apart, two seeds
of their own, on 2,000 test rows that do not count afterwards, by the in-process loops of
`aats.testing.federated`, which compute what the packets do.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Bar, finish, show

from aats.compose import Plan, compose
from aats.config import Scenario
from aats.config.load import build
from aats.learning.backend import backend_of
from aats.learning.weights import initial_payload
from aats.packet import Architecture
from aats.payload import MODEL, Payload, pack
from aats.roles.data import SkillData
from aats.simulate import simulate
from aats.testing.federated import Settings, Turn, fedavg, sequential, start_of

SKILL = "images"
BATCH = 20
SEEDS, TUNING = 5, (1001, 1002)
RATES = {"sequential": (0.0003, 0.001, 0.003, 0.01, 0.03), "fedavg": (0.01, 0.03, 0.1, 0.3, 1.0)}
TUNED_ON = 2000
"""Test rows that rates are chosen by; the others are what counts."""
GAP = 1.5
"""Points that sequential is to be ahead in the strong world."""


@dataclass(frozen=True, slots=True)
class World:
    """One comparison."""

    name: str
    model: str
    clients: int
    rounds: int
    steps: int
    classes: int = 1
    some: int = 0
    """Clients a round; 0: all."""

    @property
    def visits(self) -> int:
        """Visits to clients over all rounds."""
        return (self.some or self.clients) * self.rounds


STRONG = World("strong", "mlp", clients=50, rounds=8, steps=5)
MILD = World("mild", "logistic", clients=20, rounds=15, steps=50)
SOME = World("strong, 10 of 50 a round", "mlp", clients=50, rounds=40, steps=5, some=10)
QUICK = (
    World("strong", "mlp", clients=20, rounds=5, steps=5),
    World("mild", "logistic", clients=10, rounds=5, steps=50),
)


def scenario(world: World, data: str, method: str, rate: float, seed: int) -> Scenario:
    """Return clients around the packet's owner; the packet works off `world.visits` visits."""
    names = [f"c{i:02d}" for i in range(world.clients)]
    digits = not data
    config: dict[str, Any] = {"name": world.model, "features": 64 if digits else 784, "classes": 10}
    if world.model == "mlp":
        config["hidden"] = [64]
    source = {"name": "digits"} if digits else {"name": "fashion-mnist", "root": data}
    packet: dict[str, Any] = {
        "name": method, "owner": "owner", "model": config,
        "requirement": [{"skill": SKILL, "value": 1.0, "verifier": "any"}],
        "method": {
            "name": "sequential", "equal_steps": world.steps, "batch_size": BATCH, "lr": rate,
            "decay": 1.0, "clip": 0.0, "rollback_drop": 1.0, "rollback_loss": 1e9,
        },
        "budget": {"hops": 10 * world.visits},
    }  # fmt: skip
    plan = {"name": "fedavg"} if method == "fedavg" else {
        "name": "daisy-chain", "walkers": 1, "every": world.some or world.clients,
    }  # fmt: skip
    packet["rendezvous"] = {
        **plan, "rounds": world.rounds, "clients": world.some, "weighting": "equal",
        "within_s": 3600.0,
    }  # fmt: skip
    return build(
        {
            "scenario": {"name": method, "seed": seed},
            "topology": {"edges": [["owner", name] for name in names]},
            "nodes": {"owner": {"roles": ["owner"]}},
            "data": {
                "skills": {
                    SKILL: {
                        "source": source,
                        "partition": {
                            "name": "shards", "classes_per_node": world.classes, "alpha": 10.0,
                        },
                        "held_out": 0.0,
                        "reference": 0,
                    }
                }
            },
            "packets": [packet],
        }
    )  # fmt: skip


def accuracy(architecture: Architecture, payload: Payload, plan: Plan, rows: slice) -> float:
    """Return percent of some of the test rows that the model gets right."""
    x, y = (part[rows] for part in plan.test[SKILL])
    backend = backend_of(architecture)
    with backend.scope(0):
        predicted = backend.log_probabilities(backend.load(architecture, payload), x, SKILL)
    return float(100 * (predicted.argmax(1) == y).mean())


def held_apart(plan: Plan) -> int:
    """Return how many test rows only tuning may see."""
    return min(TUNED_ON, len(plan.test[SKILL][1]) // 3)


def tuned(job: tuple[World, str, str, float, int]) -> float:
    """Return the accuracy that a learning rate gives in one process."""
    world, data, method, rate, seed = job
    torch.set_num_threads(1)
    made = scenario(world, data, method, rate, seed)
    plan = compose(made)
    architecture = made.packets[0].model
    held = {n: p.data.skills[SKILL] for n, p in plan.nodes.items() if p.data.skills}
    start = start_of(initial_payload(architecture, seed))
    settings = Settings(rate, steps=world.steps, batch_size=BATCH, decay=1.0, clip=0.0, seed=seed)
    turns = rounds(world, held, seed)
    if method == "fedavg":
        *_, last = fedavg(architecture, start, held, turns, settings, equal=True)
    else:
        *_, last = sequential(architecture, start, held, turns, settings)
    if not all(np.isfinite(array).all() for array in last.values()):
        return 0.0
    payload = pack({MODEL + name: array for name, array in last.items()})
    return accuracy(architecture, payload, plan, slice(held_apart(plan)))


def rounds(world: World, held: dict[Any, SkillData], seed: int) -> Iterator[list[Turn]]:
    """Yield who has a turn, round by round, in shuffled order."""
    rng = random.Random(seed)
    for number in range(world.rounds):
        order = rng.sample(sorted(held), world.some or len(held))
        yield [Turn(node, number) for node in order]


def travelled(job: tuple[World, str, str, float, int]) -> dict[str, Any]:
    """Send one packet and return how good its model is and what it cost."""
    world, data, method, rate, seed = job
    torch.set_num_threads(1)
    made = scenario(world, data, method, rate, seed)
    plan = compose(made)
    ((header, payload),) = simulate(made, plan, lambda event: None).values()
    return {
        "accuracy": accuracy(
            header.mandate.architecture, payload, plan, slice(held_apart(plan), None)
        ),
        "visits": int(header.trained["visits"]),
        "transfers": int(header.spent.hops),
        "MB": header.spent.bytes / 1e6,
        "seconds": header.spent.seconds,
    }


def compared(
    world: World, data: str, seeds: Sequence[int], tuning: Sequence[int], pool: ProcessPoolExecutor
) -> tuple[list[dict[str, Any]], float]:
    """Tune and run both; return a row each, and sequential less averaging in points."""
    rows = []
    every: dict[str, list[float]] = {}
    for method, rates in RATES.items():
        jobs = [(world, data, method, rate, seed) for rate in rates for seed in tuning]
        found = np.array(list(pool.map(tuned, jobs))).reshape(len(rates), -1).mean(axis=1)
        rate = rates[int(found.argmax())]
        runs = list(pool.map(travelled, [(world, data, method, rate, seed) for seed in seeds]))
        every[method] = [run["accuracy"] for run in runs]
        row = {
            "world": world.name, "method": method, "lr": rate,
            "tuning": " ".join(f"{r:g}:{a:.1f}" for r, a in zip(rates, found, strict=True)),
            "accuracy": float(np.mean(every[method])),
            "sd": float(np.std(every[method], ddof=1)) if len(seeds) > 1 else 0.0,
            "seeds": len(seeds),
        }  # fmt: skip
        costs = ("visits", "transfers", "MB", "seconds")
        rows.append(row | {name: float(np.mean([run[name] for run in runs])) for name in costs})
        print(row, file=sys.stderr, flush=True)
    gaps = np.subtract(every["sequential"], every["fedavg"])
    return rows, float(gaps.mean())


def main() -> int:
    """Run the benchmark; return 0 if every bar holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default=os.environ.get("AATS_DATA", ""), help="with Fashion-MNIST"
    )
    parser.add_argument("--quick", action="store_true", help="digits, one seed, no bars")
    parser.add_argument("--some", action="store_true", help="also 10 of 50 clients a round")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    data = "" if options.quick else str(Path(options.data).resolve()) if options.data else ""
    worlds = QUICK if options.quick else (STRONG, MILD, *((SOME,) if options.some else ()))
    seeds = range(1 if options.quick else options.seeds)
    print(f"data: {'Fashion-MNIST, first 15,000 rows' if data else 'scikit-learn digits'}")
    table: list[dict[str, Any]] = []
    gaps = {}
    with ProcessPoolExecutor(options.jobs) as pool:
        for world in worlds:
            rows, gaps[world.name] = compared(
                world, data, seeds, TUNING[:1] if options.quick else TUNING, pool
            )
            table += rows
    show("accuracy in percent of test rows nobody holds; seconds on the virtual clock", table)
    for name, gap in gaps.items():
        print(f"{name}: sequential less averaging {gap:+.2f} points")
    bars = []
    if not options.quick:
        bars = [
            Bar(
                "T5 strong skew, few steps: sequential less averaging, points", gaps["strong"], GAP
            ),
            Bar("T6 many steps, logistic: averaging less sequential, points", -gaps["mild"], 0.0),
        ]
    return finish("sequential_or_averaging", table, bars)


if __name__ == "__main__":
    sys.exit(main())
