"""Every way of learning on the same nodes, data and links, in one account.

    python benchmarks/methods.py --quick                      # scikit-learn's digits, one seed
    python benchmarks/methods.py --data DIR --out plots       # Fashion-MNIST, three seeds

Nine nodes in a full mesh hold one data set by Dirichlet(0.5); a packet leaves its owner, who holds
none. Each way may do the same local work: so many passes of every node over its own rows. Two views
of the same samples (left half dark; noise) are a world of their own, for the ways that join views.
All of it runs in the simulated world with the cores, custody and ledger of the live one.

Accuracy is on rows that nobody holds, the mean of the last tenth of the models of the packet's
trunk.
Bytes are all that was sent for the packet: headers, probes and frames too. FLOPs are those of
training and judging, seconds are virtual (100 Mbit/s, 5 ms, 2000 rows a second), memory is the most
that torch held in one visit's training at the first node (without streams: those hold parts).
The learning rate is the one thing that is tuned, on seed 100, which is not reported (`--tune` does
it again): for Fashion-MNIST each way's is the best of the same seven. Ways of joining views keep
theirs of the digits, and ways with `calibrated` that of the way without it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import matplotlib
import numpy as np
from common import Bar, finish, show
from curve import RATES, TUNING_SEED, Curve, Point, mesh, travel

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NODES = tuple(f"n{i}" for i in range(9))
SKILL = "images"
BATCH = 32
TRAINED = 3
"""Weights, gradients and momentum: what training holds, in models."""


@dataclass(frozen=True, slots=True)
class Data:
    """What is learned, and how much of it."""

    source: Mapping[str, Any] | str
    features: int
    passes: int
    """Of every node over its own rows: rounds of averaging, cycles of a chain."""
    root: str = ""
    hidden: tuple[int, ...] = (64, 64, 64)
    column: int = 0
    """Of `TUNED`."""

    @property
    def weights(self) -> int:
        """Of the perceptron all ways but two train."""
        widths = (self.features, *self.hidden, 10)
        return sum((a + 1) * b for a, b in pairwise(widths))


DIGITS = Data("digits", 64, 10)


@dataclass(frozen=True, slots=True)
class Way:
    """One row: a method, and what else its mandate names."""

    method: Mapping[str, Any]
    scale: float = 1.0
    """Factor on `RATES`."""
    rendezvous: Mapping[str, Any] | None = None
    model: str = "mlp"
    views: bool = False
    memory: bool = True
    """Whether one visit's training can be measured by itself."""
    shared: int = 0
    """Rows of a reference set that travel along, for a way that needs some."""
    small: bool = False
    """Whether every other node has too little memory to train the whole model."""


def _stream(name: str, **more: Any) -> Way:
    return Way({"name": name, **more}, rendezvous={"name": "assemble"}, memory=False)


SEQUENTIAL = {"name": "sequential", "decay": 0.95}
FEDERATED = {"name": "sequential", "decay": 0.98}

WAYS: dict[str, Way] = {
    "sequential": Way(SEQUENTIAL),
    "  + replay": Way({**SEQUENTIAL, "replay": 0.5}),
    "  + distil": Way({**SEQUENTIAL, "distil": 0.3}),
    "  + ema": Way({**SEQUENTIAL, "ema": 4.0}),
    "  + calibrated": Way({**SEQUENTIAL, "calibrated": True}),
    "FedAvg": Way(FEDERATED, rendezvous={"name": "fedavg"}),
    "FedAvg + calibrated": Way({**FEDERATED, "calibrated": True}, rendezvous={"name": "fedavg"}),
    "FedProx": Way({**FEDERATED, "proximal": 0.01}, rendezvous={"name": "fedavg"}),
    "FedAdam": Way(FEDERATED, rendezvous={"name": "fedopt", "optimiser": "adam", "lr": 0.01}),
    "daisy-chain": Way(FEDERATED, rendezvous={"name": "daisy-chain", "every": 2}),
    "gossip": Way(FEDERATED, rendezvous={"name": "gossip", "walkers": 3, "visits": 9}),
    "snake": Way({"name": "snake", "epochs": 1}),
    "snake + calibrated": Way({"name": "snake", "epochs": 1, "calibrated": True}),
    "lora": Way({"name": "lora", "epochs": 1, "rank_max": 8}, model="lora"),
    "nested": Way({**SEQUENTIAL, "name": "nested"}, small=True),
    "exchange": Way({**SEQUENTIAL, "name": "exchange", "share": 0.3}, shared=200, small=True),
    "generative": Way({"name": "generative"}),
    "bottleneck": Way({"name": "bottleneck"}, model="bottleneck"),
    "split": _stream("split", cut=1),
    "splitfed": _stream("splitfed", cut=1),
    "rws": _stream("rws"),
}
VIEWS: dict[str, Way] = {
    name: Way({"name": name, "epochs": 1, **more}, scale=0.01,
              rendezvous={"name": "assemble", "at_data": True}, memory=False)
    for name, more in {"vfl": {}, "inl": {"capacity": 16.0}}.items()
}  # fmt: skip
"""Two nodes see each sample differently, a third has the labels. A code of 8 numbers of 2 bits."""
CENTRALISED = "centralised"
TUNED = {
    CENTRALISED: (0.3, 0.3),
    "sequential": (1.0, 0.1),
    "  + replay": (0.6, 0.3),
    "  + distil": (0.6, 0.1),
    "  + ema": (1.0, 0.3),
    "  + calibrated": (1.0, 0.1),
    "FedAvg": (1.0, 0.3),
    "FedAvg + calibrated": (1.0, 0.3),
    "FedProx": (2.0, 0.3),
    "FedAdam": (0.6, 0.3),
    "daisy-chain": (1.0, 0.3),
    "gossip": (1.0, 0.3),
    "snake": (0.2, 0.01),
    "snake + calibrated": (0.2, 0.01),
    "lora": (0.3, 0.3),
    "nested": (0.6, 0.3),
    "exchange": (1.0, 0.3),
    "generative": (0.1, 0.1),
    "bottleneck": (0.3, 0.1),
    "split": (1.0, 0.003),
    "splitfed": (1.0, 0.1),
    "rws": (0.6, 0.3),
    "vfl": (0.003, 0.003),
    "inl": (0.003, 0.003),
}
"""The rates on the digits, and on Fashion-MNIST."""


def tables(way: Way, data: Data, seed: int, rate: float) -> dict[str, Any]:
    """Return the scenario of one run."""
    if way in VIEWS.values():
        return _views(way, data, seed, rate)
    nodes: dict[str, Any] = {n: {"data": {SKILL: {}}} for n in NODES}
    if way.small:
        for node in NODES[1::2]:
            nodes[node]["memory_mb"] = 0.6 * TRAINED * data.weights * 4 / 1e6
    nodes["owner"] = {"roles": ["owner", "compute"]}
    method = {"batch_size": BATCH, "lr": rate, **way.method}
    if method["name"] == "exchange":
        small = {"name": "mlp", "features": data.features, "hidden": [16], "classes": 10}
        method["small"] = small
    rounds = data.passes
    rendezvous: dict[str, Any] = dict(way.rendezvous or {})
    match rendezvous:
        case {"name": "fedavg" | "fedopt"}:
            rendezvous["rounds"] = rounds
        case {"name": "daisy-chain", "every": every}:
            rendezvous["rounds"] = max(1, rounds // every)
        case {"name": "gossip", "walkers": walkers, "visits": visits}:
            rendezvous["rounds"] = max(1, rounds * len(NODES) // (walkers * visits))
        case {"name": "assemble"}:
            method["visits"] = rounds
        case _:
            method["visits"] = rounds * len(NODES)
    packet = {
        "name": "packet", "owner": "owner", "method": method, "policy": {"name": "cycle"},
        "requirement": [{"skill": SKILL, "value": 1.0, "verifier": "any"}],
        "model": _model(way, data), "budget": {"hops": 100_000},
    }  # fmt: skip
    if rendezvous:
        packet["rendezvous"] = rendezvous
    skill = {
        "source": data.source, "partition": {"name": "dirichlet", "alpha": 0.5},
        "held_out": 0.0, "reference": way.shared, "test": 0.2,
    }  # fmt: skip
    return mesh(nodes, skill, packet, root=data.root, seed=seed)


def _views(way: Way, data: Data, seed: int, rate: float) -> dict[str, Any]:
    nodes: dict[str, Any] = {n: {} for n in ("dark", "noisy")}
    nodes["owner"] = {"roles": ["owner", "data", "compute"]}
    square = {"shape": [data.features], "hidden": [64]}
    skill = {
        "source": data.source, "held_out": 0.0, "reference": 0, "test": 0.2,
        "views": {
            "dark": {"node": "dark", "transform": {"name": "occlude"}, "labels": False},
            "noisy": {"node": "noisy", "transform": {"name": "noise", "sd": 0.5}, "labels": False},
            "labels": {"node": "owner", "transform": "nothing"},
        },
    }  # fmt: skip
    packet = {
        "name": "packet", "owner": "owner", "rendezvous": way.rendezvous,
        "method": {"batch_size": BATCH, "lr": rate, "visits": data.passes, **way.method},
        "policy": {"name": "cycle"}, "budget": {"hops": 100_000},
        "requirement": [{"skill": SKILL, "value": 1.0, "verifier": "any"}],
        "model": {
            "name": "inl", "classes": 10, "code": 8, "channel": "levels", "levels": 4,
            "decoder": [64], "views": {"dark": square, "noisy": square},
        },
    }  # fmt: skip
    return mesh(nodes, skill, packet, root=data.root, seed=seed)


def _model(way: Way, data: Data) -> dict[str, Any]:
    mlp = {
        "name": "mlp", "features": data.features, "hidden": list(data.hidden), "classes": 10,
    }  # fmt: skip
    match way.model:
        case "lora":
            return {"name": "lora", "base": mlp}
        case "bottleneck":
            return {"name": "bottleneck", "features": data.features, "classes": 10}
        case _:
            return mlp


def rate_of(name: str, data: Data) -> float:
    """Return the learning rate of a way on some data."""
    return TUNED[name][data.column]


def run(job: tuple[str, int, float, Data]) -> tuple[str, int, float, Curve]:
    """Run one way on one seed at one rate."""
    name, seed, rate, data = job
    way = {**WAYS, **VIEWS}[name]
    curve = travel(tables(way, data, seed, rate), name.strip())
    curve.payload = None  # it is large, and no other process can be given it
    return name, seed, rate, curve


def run_all(
    jobs: list[tuple[str, int, float, Data]], at_once: int
) -> Iterable[tuple[str, int, float, Curve]]:
    """Run jobs, so many at once and each on one thread; say how far it is."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["aats.run", "torch"])
    with ProcessPoolExecutor(min(len(jobs), at_once), context) as pool:
        for done, found in enumerate(pool.map(run, jobs), start=1):
            print(f"{done}/{len(jobs)}  {found[0].strip()} seed {found[1]} rate {found[2]:g}: "
                  f"{found[3].final.accuracy:.3f}", file=sys.stderr)  # fmt: skip
            yield found


def tune(names: Iterable[str], data: Data, at_once: int) -> None:
    """Print what each way reaches at each rate on the tuning seed, and the best rate."""
    tried: dict[str, dict[float, float]] = {
        CENTRALISED: {rate: centralised(data, TUNING_SEED, rate) for rate in RATES}
    }
    ways = {**WAYS, **VIEWS}
    jobs = [(name, TUNING_SEED, rate * ways[name].scale, data) for name in names for rate in RATES]
    for name, _, rate, curve in run_all(jobs, at_once):
        tried.setdefault(name, {})[rate] = curve.final.accuracy
    rows = [
        {"way": name, "best": max(found, key=lambda rate: found[rate])}
        | {f"{nth}": 100 * accuracy for nth, accuracy in zip(RATES, found.values(), strict=True)}
        for name, found in tried.items()
    ]
    show("Accuracy in percent at each rate (of vfl and inl a hundredth of it)", rows)


def centralised(data: Data, seed: int, rate: float) -> float:
    """Return the accuracy of the same model on all nodes' rows in one place, the same passes."""
    import torch

    from aats.compose import compose
    from aats.config.load import build
    from aats.learning import models

    plan = compose(build(tables(WAYS["sequential"], data, seed, 0.1), name="pooled"))
    held = [plan.nodes[n].data.skills[SKILL] for n in plan.nodes if n in NODES]
    x = torch.from_numpy(np.concatenate([h.train_x for h in held]))
    y = torch.from_numpy(np.concatenate([h.train_y for h in held]))
    config = {"features": data.features, "hidden": list(data.hidden), "classes": 10}
    model = models.build_mlp(config)
    models.initialise(model, seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    rng = np.random.default_rng(seed)
    for _ in range(data.passes):
        for rows in np.array_split(rng.permutation(len(y)), -(-len(y) // BATCH)):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    test_x, test_y = plan.test[SKILL]
    with torch.no_grad():
        right = model(torch.from_numpy(test_x)).argmax(1).numpy() == test_y
    return float(right.mean())


def memory(way: Way, data: Data) -> float:
    """Return the most bytes that torch held in one visit's training at the first node."""
    from aats.compose import build_packets, compose, simulated_identity
    from aats.config.load import build
    from aats.learning.backend import backend_of
    from aats.learning.memory import training_memory
    from aats.learning.method import method_of
    from aats.learning.visit import stop_of

    scenario = build(tables(way, data, 0, 0.1), name="memory")
    plan = compose(scenario)
    (packet,) = build_packets(scenario, plan, lambda n: simulated_identity(scenario, n), 0.0)
    architecture = packet.header.mandate.architecture
    node = scenario.holders(SKILL)[0]
    backend = backend_of(architecture)
    method = method_of(packet.header.mandate.method)[0]
    with backend.scope(0):
        model = backend.subject(backend.load(architecture, packet.payload))
        stop = stop_of(packet.header, node, plan.nodes[node].data, packet.payload)
        return float(training_memory(method, model, stop).peak)


def rows_of(curves: Mapping[str, list[Curve]], bound: float, data: Data) -> list[dict[str, Any]]:
    """Return the table's rows, in the ways' order."""
    rows = []
    for name, found in curves.items():
        ends = [curve.final for curve in found]
        near = [curve.first_at(0.9 * bound) for curve in found] if bound else []
        way = {**WAYS, **VIEWS}[name]
        rows.append(
            {
                "way": name,
                "accuracy": mean(e.accuracy for e in ends),
                "sd": pstdev(e.accuracy for e in ends),
                "MB": mean(e.bytes for e in ends) / 1e6,
                "MB to 90 %": _mean_if_all(near, "bytes", 1e6) if near else "",
                "GFLOP": mean(e.flops for e in ends) / 1e9,
                "seconds": mean(e.seconds for e in ends),
                "visits": mean(e.visits for e in ends),
                "memory MB": memory(way, data) / 1e6 if way.memory else "",
                "home": sum(curve.header is not None for curve in found),
            }
        )
    return rows


def _mean_if_all(points: list[Point | None], name: str, unit: float) -> float | str:
    """Return a mean; what share of the seeds got there if not all did."""
    there = [p for p in points if p is not None]
    if len(there) < len(points):
        return f"{len(there)} of {len(points)} seeds"
    return mean(float(getattr(p, name)) for p in there) / unit


def plot(curves: Mapping[str, list[Curve]], bound: float, path: Path, title: str) -> None:
    """Draw accuracy over bytes, the first seed of each way, smoothed over a twelfth of it."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for index, (name, found) in enumerate(curves.items()):
        points = [p for p in found[0].points if p.bytes > 0]
        accuracy = [p.accuracy for p in points]
        width = max(1, len(accuracy) // 12)
        smooth = [mean(accuracy[max(0, i - width + 1) : i + 1]) for i in range(len(accuracy))]
        axes.plot(
            [p.bytes / 1e6 for p in points], smooth, color=colours[index % 20],
            linestyle="-" if index % 2 else "--", linewidth=1.6, label=name.strip(),
        )  # fmt: skip
    if bound:
        axes.axhline(bound, color="black", linewidth=0.8)
        axes.text(0.01, bound, " all data in one place", va="bottom",
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set(xscale="log", xlabel="MB sent for the packet", ylabel="accuracy", title=title)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("--quick", action="store_true", help="digits, one seed, fewer passes")
    parser.add_argument("--data", default="", help="folder with fashion-mnist/")
    parser.add_argument("--out", type=Path, help="folder for the plots")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", help="only these, by name, with commas between")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    parser.add_argument("--tune", action="store_true", help="find the rates again")
    options = parser.parse_args()
    data = DIGITS
    if options.data:
        data = Data({"name": "fashion-mnist"}, 784, 5, options.data, column=1)
    seeds = options.seeds
    if options.quick:
        data, seeds = Data("digits", 64, 4, hidden=(32, 32, 32)), 1
    wanted = [w.strip() for w in options.ways.split(",")] if options.ways else None
    names = [n for n in (*WAYS, *VIEWS) if wanted is None or n.strip().removeprefix("+ ") in wanted]
    if options.tune:
        tune(names, data, options.jobs)
        return 0
    pooled = rate_of(CENTRALISED, data)
    bound = mean(centralised(data, seed, pooled) for seed in range(seeds))
    curves: dict[str, list[Curve]] = {}
    for name, _, _, curve in run_all(
        [(name, seed, rate_of(name, data), data) for seed in range(seeds) for name in names],
        options.jobs,
    ):
        curves.setdefault(name, []).append(curve)
    title = f"{data.source if isinstance(data.source, str) else data.source['name']}, {seeds} seeds"
    parts = {
        f"Ways of learning: {title}; all data in one place: {bound:.3f}": (WAYS, bound, "methods"),
        f"Views of the same samples: {title}": (VIEWS, 0.0, "views"),
    }
    rows: list[dict[str, Any]] = []
    for words, (ways, best, file) in parts.items():
        found = {name: curves[name] for name in ways if name in curves}
        if found:
            rows += (part := rows_of(found, best, data))
            show(words, part)
            if options.out:
                plot(found, best, options.out / f"{file}.png", words.split(";")[0])
    return finish("methods", [*rows, {"way": CENTRALISED, "accuracy": bound}], bars(rows))


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Return what must hold: everything comes home, a Snake keeps up with averaging."""
    at = {row["way"]: row for row in rows}
    out = [Bar("packets that came home / sent", mean(bool(row["home"]) for row in rows), 1.0)]
    if {"snake", "FedAvg"} <= at.keys():
        ratio = at["snake"]["accuracy"] / at["FedAvg"]["accuracy"]
        out.append(Bar("snake / FedAvg, accuracy", ratio, 0.95))
    return out


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Prints the module's text as it stands."""


if __name__ == "__main__":
    sys.exit(main())
