"""Fed-Heart-Disease: an AI packet among four real hospitals, beside what FLamby publishes.

Four hospitals, 486 patients to train on and 254 to test on, logistic regression. First FLamby's
own rows are run in one process at FLamby's settings, to show that data, scaling and measure are
the same. Then a packet goes round AATS's own nodes (`--world sim` or `live`): `sequential`, two
passes over the hospital's patients at a visit, batch 4, learning rate 0.01 times 0.9 a cycle,
four cycles in shuffled order, the mean of the weights after the last four visits.

    python benchmarks/fed_heart.py --root DIR             # FLamby's split, 10 seeds
    python benchmarks/fed_heart.py --root DIR --splits 20 # and fresh splits, paired

DIR holds the four `processed.*.data` files of the UCI repository. FLamby's published figures
are the means over its seeds 42-46 (github.com/owkin/FLamby, commit edacf54d).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Bar, finish, show
from reference_federated import Work, accuracy, train_fedavg, train_single

from aats.config.load import build
from aats.learning.datasets import Dataset
from aats.learning.heart import FLAMBY_SPLIT, HOSPITALS, Heart, read_heart
from aats.learning.method import seed_of
from aats.oam.progress import progress
from aats.oam.view import RunView
from aats.packet import Header
from aats.payload import MODEL, Payload
from aats.run import Watch, run_live, run_simulated

SKILL = "heart"
FLAMBY_SEEDS = range(42, 47)
PUBLISHED = {"Pooled": 79.53, "Local cleveland": 78.43, "Local hungarian": 72.68, "FedAvg": 74.80}
"""Accuracy on FLamby's Pooled Test, percent."""
CYCLES, EPOCHS, BATCH, RATE, DECAY, AVERAGE = 4, 2, 4, 0.01, 0.9, 4
EQUAL_STEPS = 100
CAVEATS = """\
Read these figures with care:
- FedAvg's published learning rate (0.001) is too small; tuned to 0.01 it is as accurate as the
  packet. The claim is equal accuracy with 7 times fewer transfers and 6 times fewer updates.
- The packet's settings were chosen on FLamby's split: the fair comparison is --splits, on fresh
  ones. Transfers count every link travelled, the way from the owner and home included.
- "Pooled Test" scales all patients by pooled figures that models trained across hospitals never
  saw; the scores per hospital use each hospital's own.
- The mean of four hospitals and the mean per patient can rank methods in opposite order: equal
  work at every hospital is best by the first and worst by the second. Both are given.
- Switzerland has 16 test patients (one is 6.25 points); Long Beach (va) stays below its majority
  class (77.8) even with all patients pooled.
- FLamby's published "Cyclic" (78.50) hands no weights over: it scores the first hospital's copy."""


@dataclass(frozen=True, slots=True)
class Hospitals:
    """One split of the four hospitals, scaled as FLamby does."""

    train: tuple[Dataset, ...]
    test: tuple[Dataset, ...]
    pooled_train: Dataset
    pooled_test: Dataset

    @classmethod
    def of(cls, heart: Heart) -> Hospitals:
        """Return the tables of a split."""
        own, pooled = heart.by_hospital(), heart.pooled()

        def sites(is_test: bool) -> tuple[Dataset, ...]:
            return tuple(
                own.take((own.group_of == site) & (own.is_test == is_test))
                for site in range(len(HOSPITALS))
            )

        return cls(
            sites(False), sites(True), pooled.take(~pooled.is_test), pooled.take(pooled.is_test)
        )

    def scores(self, model: torch.nn.Module) -> dict[str, float]:
        """Return percent accuracy: each hospital, their mean, per patient, FLamby's Pooled Test."""
        by_site = [100 * accuracy(model, site) for site in self.test]
        sizes = [len(site) for site in self.test]
        return {
            **dict(zip(HOSPITALS, by_site, strict=True)),
            "mean of 4": float(np.mean(by_site)),
            "per patient": float(np.average(by_site, weights=sizes)),
            "Pooled Test": 100 * accuracy(model, self.pooled_test),
        }


@dataclass(frozen=True, slots=True)
class Travelled:
    """A packet that came home."""

    model: torch.nn.Module
    weights: tuple[torch.Tensor, torch.Tensor]
    """Weight [1, 13] and bias [1]."""
    header: Header
    start: tuple[torch.Tensor, torch.Tensor]
    """The weights it left with."""
    work: Work

    @property
    def visits(self) -> list[tuple[int, str]]:
        """(hop, hospital) of each visit."""
        return [(entry.hop, str(entry.node)) for entry in self.header.journal]


def scenario_tables(root: Path, seed: int, split: int, equal_steps: int) -> dict[str, Any]:
    """Return the scenario: four hospitals in a full mesh, and the university that sends the packet.

    The target cannot be met, so the packet uses its budget: 16 visits, and the way home.
    """
    pairs = [[a, b] for i, a in enumerate(HOSPITALS) for b in HOSPITALS[:i]]
    pairs += [["university", hospital] for hospital in HOSPITALS]
    visits = CYCLES * len(HOSPITALS)
    return {
        "scenario": {"name": "fed-heart", "seed": seed},
        "topology": {"edges": pairs},
        "nodes": {
            "university": {"roles": ["owner"]},
            **{name: {"data": {SKILL: {"group": name}}} for name in HOSPITALS},
        },
        "data": {
            "root": str(root.resolve()),
            "skills": {
                SKILL: {
                    "source": {"name": "heart", "split": split},
                    "held_out": 0.0,
                    "reference": 0,
                }
            },
        },
        "packets": [
            {
                "name": "cardiologist",
                "owner": "university",
                "requirement": [{"skill": SKILL, "value": 1.0, "verifier": "any"}],
                "model": {"name": "logistic", "features": 13},
                "method": {
                    "name": "sequential", "epochs": EPOCHS, "batch_size": BATCH, "lr": RATE,
                    "decay": DECAY, "average_last": AVERAGE, "clip": 0.0,
                    "equal_steps": equal_steps,
                },
                "policy": {"name": "cycle", "order": "shuffled"},
                # A packet keeps two hops in hand: home, and one way that turns out closed.
                "budget": {"hops": visits + 2},
            }
        ],
    }  # fmt: skip


def run_packet(
    root: Path, seed: int, *, split: int = FLAMBY_SPLIT, world: str = "sim", equal_steps: int = 0
) -> Travelled:
    """Send one packet round the hospitals and return it as it came home.

    Args:
        root: Folder with the data files.
        seed: Of the scenario: initial weights, order of hospitals, minibatches.
        split: Random state of the split into training and test patients.
        world: "sim" for the virtual clock, "live" for daemons over ZeroMQ.
        equal_steps: Steps at every visit instead of passes over the data; 0: passes.
    """
    scenario = build(scenario_tables(root, seed, split, equal_steps), name="fed-heart")
    view = RunView()
    with progress(view, "", quiet=True) as shown, tempfile.TemporaryDirectory() as folder:
        watch = Watch(view, shown)
        if world == "live":
            home = asyncio.run(run_live(scenario, Path(folder), watch))
        else:
            home = run_simulated(scenario, None, watch)
    ((header, payload),) = home.values()
    weights = _weights(payload)
    model = torch.nn.Sequential(torch.nn.Linear(13, 1), torch.nn.Sigmoid())
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    steps = sum(record.steps for record in header.chain)
    return Travelled(model, weights, header, _start(header), Work(steps, int(header.spent.hops)))


def _weights(payload: Payload) -> tuple[torch.Tensor, torch.Tensor]:
    arrays = payload.arrays(MODEL)
    weight, bias = (torch.from_numpy(np.array(array)) for array in arrays.values())
    return weight, bias


def _start(header: Header) -> tuple[torch.Tensor, torch.Tensor]:
    from aats.learning.weights import initial_payload

    return _weights(initial_payload(header.mandate.architecture, header.mandate.seed))


def replay(travelled: Travelled, sites: Sequence[Dataset]) -> tuple[torch.Tensor, torch.Tensor]:
    """Train along a packet's route in one process, without a network, and return the weights.

    A second implementation of `sequential`: it shares with the packet's only the seeds, which
    follow from the mandate, the hop and the hospital.
    """
    weight, bias = (t.clone().requires_grad_() for t in travelled.start)
    past: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, (hop, hospital) in enumerate(travelled.visits):
        site = sites[HOSPITALS.index(hospital)]
        x, y = torch.from_numpy(site.x), torch.from_numpy(site.y)
        rng = np.random.default_rng(seed_of("visit", travelled.header.mandate.seed, hop, hospital))
        steps = -(-EPOCHS * len(site) // BATCH)
        rng.permutation(steps)  # the turn of each step's skill; there is but one
        batches: list[np.ndarray[Any, Any]] = []
        while len(batches) < steps:
            order = rng.permutation(len(site))
            batches += np.array_split(order, -(-len(site) // BATCH))
        for rows in batches[:steps]:
            odds = torch.nn.functional.linear(x[rows], weight, bias)
            logits = torch.cat([torch.zeros_like(odds), odds], 1)
            loss = torch.nn.functional.cross_entropy(logits, y[rows])
            slopes = torch.autograd.grad(loss, (weight, bias))
            with torch.no_grad():
                for parameter, slope in zip((weight, bias), slopes, strict=True):
                    parameter.sub_(slope, alpha=RATE * DECAY ** (number // len(HOSPITALS)))
        past.append((weight.detach().clone(), bias.detach().clone()))
    last = past[: -AVERAGE - 1 : -1]

    def mean(which: int) -> torch.Tensor:
        stacked = np.stack([pair[which].numpy() for pair in last])
        return torch.from_numpy(stacked.mean(axis=0, dtype=np.float64).astype(np.float32))

    return mean(0), mean(1)


def difference(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the largest absolute difference of two sets of weights."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def summary(name: str, scores: Sequence[dict[str, float]], work: Work) -> dict[str, Any]:
    """Return one row: mean of each score, the sample deviation of the three overall ones."""
    row: dict[str, Any] = {"method": name, "transfers": work.transfers, "updates": work.updates}
    for column in scores[0]:
        values = [score[column] for score in scores]
        row[column] = round(float(np.mean(values)), 2)
        if column not in HOSPITALS and len(values) > 1:
            row[f"sd {column}"] = round(float(np.std(values, ddof=1)), 2)
    return row


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row for people: each deviation beside its mean."""
    out: dict[str, Any] = {}
    last = ""
    for column, value in row.items():
        if column.startswith(("sd ", "s.e.")):
            out[last] = f"{out[last]} +- {value:.2f}"
        else:
            last = column
            out[column] = f"{value:.2f}" if isinstance(value, float) else value
    return out


Trainer = Callable[[int], tuple[torch.nn.Module, Work]]


def flamby_rows(data: Hospitals) -> list[dict[str, Any]]:
    """Run FLamby's rows at its settings and seeds, and FedAvg with its learning rate tuned."""
    trainers: dict[str, Trainer] = {
        "Pooled": partial(train_single, data.pooled_train),
        **{
            f"Local {name}": partial(train_single, site)
            for name, site in zip(HOSPITALS, data.train, strict=True)
        },
        "FedAvg": partial(train_fedavg, data.train),
        "FedAvg, lr 0.01": partial(train_fedavg, data.train, learning_rate=0.01),
    }
    rows = []
    for name, train in trainers.items():
        runs = [train(seed) for seed in FLAMBY_SEEDS]
        rows.append(summary(name, [data.scores(model) for model, _ in runs], runs[0][1]))
    return rows


def exactness(data: Hospitals, root: Path, seeds: int, world: str) -> tuple[list[Any], list[Bar]]:
    """Measure FLamby's rows and the packet on FLamby's split; return rows and bars."""
    rows = flamby_rows(data)
    found = {row["method"]: row["Pooled Test"] for row in rows}
    bars = [
        Bar(f"T1 {name}: off the published mean", abs(found[name] - value), limit, at_least=False)
        for name, value in PUBLISHED.items()
        for limit in (1.0 if name.startswith("Local") else 0.5,)
    ]
    packets = [run_packet(root, 42 + i, world=world) for i in range(seeds)]
    apart = max(difference(p.weights, replay(p, data.train)) for p in packets)
    scores = [data.scores(p.model) for p in packets]
    row = summary(f"AI packet ({world}), {seeds} seeds", scores, packets[0].work)
    bars += [
        Bar("packet: Pooled Test", row["Pooled Test"], 79.0),
        Bar("T2 packet against one process: largest difference", apart, 0.0, at_least=False),
        Bar("packet: visits", float(min(len(p.visits) for p in packets)), CYCLES * 4.0),
    ]
    return [*rows, row], bars


def fresh_splits(root: Path, splits: int) -> tuple[list[Any], list[Bar]]:
    """Compare on fresh splits, paired by split; the simulated world carries the packets."""
    names = (
        "Pooled", "FedAvg, lr 0.01", "FedAvg, lr 0.01, 2 rounds", "FedAvg",
        "AI packet", "AI packet, equal work",
    )  # fmt: skip
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    work: dict[str, Work] = {}
    for split in range(splits):
        data = Hospitals.of(read_heart(str(root), split=split))
        packet = run_packet(root, split, split=split)
        equal = run_packet(root, split, split=split, equal_steps=EQUAL_STEPS)
        runs = (
            train_single(data.pooled_train, split),
            train_fedavg(data.train, split, learning_rate=0.01),
            train_fedavg(data.train, split, learning_rate=0.01, rounds=2),
            train_fedavg(data.train, split),
            (packet.model, packet.work),
            (equal.model, equal.work),
        )
        for name, (model, spent) in zip(names, runs, strict=True):
            scores[name].append(data.scores(model))
            work[name] = spent
        print(f"split {split + 1} of {splits}", file=sys.stderr, flush=True)
    rows = []
    for name in names:
        gap = _per_patient(scores[name]) - _per_patient(scores["FedAvg, lr 0.01"])
        rows.append(
            summary(name, scores[name], work[name])
            | {"to FedAvg lr 0.01": round(float(gap.mean()), 2),
               "s.e.": round(float(gap.std(ddof=1) / np.sqrt(len(gap))), 2)}
        )  # fmt: skip
    return rows, _split_bars(scores, work)


def _per_patient(scores: Sequence[dict[str, float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([score["per patient"] for score in scores])


def _split_bars(scores: dict[str, list[dict[str, float]]], work: dict[str, Work]) -> list[Bar]:
    mean = {name: float(_per_patient(found).mean()) for name, found in scores.items()}
    packet, tuned = work["AI packet"], work["FedAvg, lr 0.01"]
    return [
        Bar("T3 packet to tuned FedAvg, points", abs(mean["AI packet"] - mean["FedAvg, lr 0.01"]),
            0.6, at_least=False),
        Bar("T3 transfers, times fewer", tuned.transfers / packet.transfers, 7.0),
        Bar("T3 updates, times fewer", tuned.updates / packet.updates, 6.0),
        Bar("T3 packet over FedAvg cut to 16 transfers, points",
            mean["AI packet"] - mean["FedAvg, lr 0.01, 2 rounds"], 1.0),
        Bar("T4 work in proportion over equal work, points",
            mean["AI packet"] - mean["AI packet, equal work"], 3.0),
    ]  # fmt: skip


def main() -> int:
    """Run the benchmark; return 0 if every bar holds."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--root", type=Path, required=True, help="folder with the UCI files")
    options.add_argument("--seeds", type=int, default=10, help="packets on FLamby's split")
    options.add_argument("--splits", type=int, default=0, help="fresh splits to compare on")
    options.add_argument("--world", choices=("sim", "live"), default="sim")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    heart = read_heart(str(chosen.root))
    print(f"data digest {heart.by_hospital().digest}, schema {heart.by_hospital().schema}")
    rows, bars = exactness(Hospitals.of(heart), chosen.root, chosen.seeds, chosen.world)
    title = "FLamby's split, percent accuracy (published Pooled Test: Pooled 79.53, FedAvg 74.80)"
    show(title, [readable(row) for row in rows])
    if chosen.splits:
        more, more_bars = fresh_splits(chosen.root, chosen.splits)
        title = f"{chosen.splits} fresh splits, and the paired difference per patient"
        show(title, [readable(row) for row in more])
        rows, bars = rows + more, bars + more_bars
    print(CAVEATS)
    return finish("fed_heart", rows, bars)


if __name__ == "__main__":
    sys.exit(main())
