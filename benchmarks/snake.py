"""Snake learning against FedAvg and whole-model sequential training, by packets on nine nodes.

A VGG-11 of an eighth of the width (154 074 weights, GroupNorm) learns Fashion-MNIST, 28 x 28
pixels padded to 32, dealt to nine nodes by Dirichlet(2). Everything travels as packets through
the simulated world; accuracies are on rows that no node holds, "final" is the mean of the last
three cycles, "rise" how much that is above the mean of the three before, "at equal bytes" its
ratio to the best that FedAvg had reached for as many. Bytes are what the packet's own account
says, ledger and all; tensors alone are counted besides.

    python benchmarks/snake.py                  # 500 rows a node, 12 cycles, 3 seeds (orders: 5)
    python benchmarks/snake.py --digits         # handwritten digits, a smaller VGG
    python benchmarks/snake.py --quick          # the same, 6 cycles, 1 seed

Needs fashion_mnist_15k.npz in AATS_DATA or ../shared/data/fashion-mnist, digits otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import common
import numpy as np
from common import Bar

from aats.compose import Plan, build_world, compose, measure_on
from aats.config.load import build
from aats.ids import NodeId
from aats.learning.blocks import blocks_of, size_of
from aats.learning.memory import training_bytes, training_memory
from aats.learning.method import Stop
from aats.learning.models import build as build_model
from aats.learning.models import initialise
from aats.learning.sequential import SequentialMethod
from aats.learning.snake import SnakeMethod
from aats.lineage import RecordKind
from aats.node.commands import SaveCustody, SendPacket
from aats.packet import Architecture, Header
from aats.payload import MODEL, Payload
from aats.roles.data import NodeData, SkillData

HUB = "hub"
NODES = 9
SKILL = "task"
FASHION = Path(__file__).resolve().parents[2] / "shared" / "data" / "fashion-mnist"
FILE = "fashion_mnist_15k.npz"
TEST_ROWS = 1000
REFERENCE = 100
"""Rows that travel along: without an estimate of its own a packet asks for verdicts."""
LAST = 3
"""Cycles whose mean is the final accuracy: Snake swings by points from one to the next."""
SNAKE = {"name": "snake", "lr": 0.03, "decay": 0.97}
"""With distillation as it is by default: where the data of two nodes differ."""
FULL = {"name": "sequential", "lr": 0.05, "decay": 0.97, "momentum": 0.9}
LEAVES = [f"n{i}" for i in range(1, NODES + 1)]


@dataclass(frozen=True)
class Data:
    """What is learnt, and by what model."""

    source: Mapping[str, Any]
    root: str
    model: Mapping[str, Any]
    rows: int
    """Of each node; 0: all there are, by share."""
    batch_size: int = 32


def data_of(digits: bool, rows: int) -> Data:
    """Return Fashion-MNIST where the file is, handwritten digits otherwise.

    Of the digits a node has some 140 rows: in batches of 16, that there are steps enough.
    """
    root = os.environ.get("AATS_DATA") or (str(FASHION) if (FASHION / FILE).exists() else "")
    if digits or not root:
        model = {"name": "vgg", "side": 8, "width": 4, "classes": 10}
        return Data({"name": "digits"}, "", model, 0, batch_size=16)
    model = {"name": "vgg", "side": 28, "width": 8, "classes": 10}
    return Data({"name": "fashion-mnist"}, root, model, rows)


# --- one journey --------------------------------------------------------------------------------


@dataclass
class Journey:
    """One packet's journey, by cycles of nine visits (rounds of FedAvg)."""

    accuracy: list[float] = field(default_factory=list)
    wire_bytes: list[float] = field(default_factory=list)
    """By the packet's account, at the end of each cycle."""
    tensor_bytes: list[int] = field(default_factory=list)
    """Of the model alone, in each cycle."""
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    """Of each transfer to the hub and from it."""
    taught: float = 0.0
    """Share of visits in which the received model was a second teacher."""
    rolled_back: int = 0
    cpu_s: float = 0.0

    @property
    def final(self) -> float:
        """The mean accuracy of the last cycles."""
        return mean(self.accuracy[-LAST:])

    @property
    def rise(self) -> float:
        """How far that is above the mean of as many cycles before."""
        return self.final - mean(self.accuracy[-2 * LAST : -LAST])

    def best_within(self, size: float) -> float:
        """Return the best accuracy at the end of a cycle that so many bytes were enough for."""
        reached = zip(self.accuracy, self.wire_bytes, strict=True)
        return max((a for a, b in reached if b <= size), default=0.0)

    def bytes_to(self, accuracy: float) -> float:
        """Return the bytes at the first cycle end that is so good, infinity if none is."""
        return next(
            (b for a, b in zip(self.accuracy, self.wire_bytes, strict=True) if a >= accuracy),
            float("inf"),
        )


def tables(
    data: Data, shape: str, method: Mapping[str, Any], seed: int, alpha: float,
    rendezvous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return a scenario: nine data nodes in a ring or a star, the owner at the hub."""
    star = [[HUB, leaf] for leaf in LEAVES]
    ring = [[HUB, LEAVES[0]], *([LEAVES[i - 1], LEAVES[i]] for i in range(NODES))]
    pair = [[HUB, LEAVES[0]], [LEAVES[0], LEAVES[1]]]
    held = {leaf: {"data": {SKILL: {"samples": data.rows}}} for leaf in LEAVES}
    nodes = LEAVES[:2] if shape == "pair" else LEAVES
    return {
        "scenario": {"name": "snake", "seed": seed, "limit_s": 1e9},
        "topology": {"edges": {"star": star, "ring": ring, "pair": pair}[shape]},
        "nodes": {HUB: {"roles": ["owner"]}, **{leaf: held[leaf] for leaf in nodes}},
        "data": {
            "root": data.root,
            "skills": {
                SKILL: {
                    "source": data.source,
                    "partition": {"name": "dirichlet", "alpha": alpha},
                    "held_out": 0.0,
                    "reference": REFERENCE,
                }
            },
        },
        "training": {"timeout_s": 1e6},
        "packets": [
            {
                "name": "learner",
                "owner": HUB,
                "requirement": [{"skill": SKILL, "value": 1.0, "verifier": "any"}],
                "model": dict(data.model),
                "method": dict(method),
                "policy": "cycle",
                "budget": {"hops": 1e6},
                **({"rendezvous": dict(rendezvous)} if rendezvous else {}),
            }
        ],
    }


def travel(
    scenario_tables: Mapping[str, Any], cycles: int, *, caches: bool = True, judged: bool = True
) -> Journey:
    """Let a packet go nine visits a cycle, or one merge a cycle, and follow it."""
    scenario = build(dict(scenario_tables))
    plan = without_caches(compose(scenario)) if not caches else compose(scenario)
    x, y = plan.test[SKILL]
    test = {SKILL: (x[:TEST_ROWS], y[:TEST_ROWS])}
    journey, began = Journey(), time.process_time()
    seen: set[str] = set()
    visits, sent = 0, 0
    merges = scenario.packets[0].rendezvous is not None

    def hook(node: Any, what: object) -> None:
        nonlocal visits, sent
        if isinstance(what, SendPacket):
            missing = what.manifest.missing(what.known)
            size = sum(t.size for t in missing if t.name.startswith(MODEL))
            sent += size
            if what.to == HUB:
                journey.up.append(size)
            if node.node == HUB:
                journey.down.append(size)
        if not isinstance(what, SaveCustody):
            return
        for record in what.records:
            if record.id in seen:
                continue
            seen.add(record.id)
            journey.rolled_back += record.kind is RecordKind.ROLLED_BACK
            is_visit = record.kind in (RecordKind.TRAIN, RecordKind.ROLLED_BACK)
            visits += is_visit
            header = what.row.header
            journey.taught += is_visit * header.trained.get("snake.taught", 0.0)
            is_merge = record.kind is RecordKind.MERGE
            is_end = is_merge if merges else is_visit and visits % NODES == 0
            if is_end and record.id == header.lineage:
                journey.wire_bytes.append(header.spent.bytes)
                journey.tensor_bytes.append(sent)
                sent = 0
                journey.accuracy.append(
                    judge(header, node.store.payloads[what.row.key], test) if judged else 0.0
                )

    world = build_world(scenario, plan, lambda _: None)
    world.hooks.append(hook)
    world.start()
    world.run(1e9, lambda: len(journey.accuracy) >= cycles)
    journey.taught /= max(1, visits)
    journey.cpu_s = time.process_time() - began
    return journey


def without_caches(plan: Plan) -> Plan:
    """Let nodes other than the hub keep no copy for its tensors."""
    nodes = {
        name: node if name == HUB else replace(node, core=replace(node.core, cached_copies=0))
        for name, node in plan.nodes.items()
    }
    return replace(plan, nodes=nodes)


def judge(header: Header, payload: Payload, test: Mapping[str, Any]) -> float:
    """Return a model's accuracy on rows that no node holds."""
    return float(measure_on(header, payload, test)[SKILL]["value"])


# --- what is compared ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way of learning, and on how many seeds it is measured."""

    name: str
    shape: str
    method: Mapping[str, Any]
    alpha: float = 2.0
    seeds: int = 3
    rendezvous: Mapping[str, Any] | None = None
    against: str = "fedavg"
    """The way whose accuracy this one's is divided by."""


def ways(seeds: int, order_seeds: int, skew: float) -> list[Way]:
    """Return what is compared."""
    steady, fair = {**FULL, "decay": 1.0}, {"calibrated": True}
    never = {"distil": "never"}

    def ring(name: str, method: Mapping[str, Any], **how: Any) -> Way:
        return Way(name, "ring", method, **{"seeds": seeds, **how})

    def star(name: str, method: Mapping[str, Any], **how: Any) -> Way:
        merges = {"name": "fedavg", "within_s": 1e6, "quorum": 1.0}
        return Way(name, "star", method, seeds=seeds, rendezvous=merges, against=name, **how)

    bent = f"skew {skew}: "
    plain = {"alpha": skew, "against": f"{bent}fedavg"}
    even = {"alpha": skew, "against": f"{bent}fedavg, calibrated"}
    return [
        ring("snake", SNAKE, seeds=order_seeds),
        star("fedavg", steady),
        ring("sequential", FULL),
        ring("snake, deep to shallow", {**SNAKE, "order": "deep-to-shallow"}, seeds=order_seeds),
        ring("snake, random order", {**SNAKE, "order": "random"}, seeds=order_seeds),
        ring("snake, no distillation", {**SNAKE, **never}),
        ring("snake, frozen in 8 bits", {**SNAKE, "frozen_bits": 8}),
        star("fedavg, calibrated", {**steady, **fair}),
        ring("snake, calibrated", {**SNAKE, **fair}, against="fedavg, calibrated"),
        star(f"{bent}fedavg", steady, alpha=skew),
        ring(f"{bent}snake", SNAKE, **plain),
        ring(f"{bent}sequential", FULL, **plain),
        ring(f"{bent}snake, no distillation", {**SNAKE, **never}, **plain),
        star(f"{bent}fedavg, calibrated", {**steady, **fair}, alpha=skew),
        ring(f"{bent}snake, calibrated", {**SNAKE, **fair}, **even),
        ring(f"{bent}snake, calibrated, no distillation", {**SNAKE, **fair, **never}, **even),
        ring(f"{bent}snake, replay", {**SNAKE, "replay": 0.5}, **even),
    ]


def one(data: Data, way: Way, seed: int, cycles: int) -> Journey:
    """Measure one way on one seed."""
    method = {"batch_size": data.batch_size, **way.method}
    return travel(tables(data, way.shape, method, seed, way.alpha, way.rendezvous), cycles)


def all_ways(
    data: Data, chosen: Sequence[Way], cycles: int, workers: int
) -> dict[str, list[Journey]]:
    """Measure every way on its seeds, several at a time; print each as it comes out."""
    jobs = [(way, 1 + i) for i in range(max(w.seeds for w in chosen)) for way in chosen
            if i < way.seeds]  # fmt: skip
    found: dict[str, dict[int, Journey]] = {way.name: {} for way in chosen}
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = {pool.submit(one, data, way, seed, cycles): (way, seed) for way, seed in jobs}
        for done, future in enumerate(as_completed(waiting), start=1):
            (way, seed), journey = waiting[future], future.result()
            found[way.name][seed] = journey
            print(
                f"{done}/{len(jobs)}  {way.name}, seed {seed}: final {journey.final:.3f}, "
                f"{journey.wire_bytes[-1] / 1e6:.2f} MB, {journey.cpu_s:.0f} CPU s "
                f"({' '.join(f'{a:.2f}' for a in journey.accuracy)})",
                flush=True,
            )
    return {name: [by_seed[seed] for seed in sorted(by_seed)] for name, by_seed in found.items()}


# --- bytes and memory ---------------------------------------------------------------------------


def architecture_of(model: Mapping[str, Any]) -> Architecture:
    """Return a scenario's `model` table as an architecture."""
    return Architecture(str(model["name"]), {k: v for k, v in model.items() if k != "name"})


def bytes_of(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return tensor bytes per cycle, measured, beside those of a round of FedAvg.

    The nodes take one step of two rows each: what moves does not depend on it.
    """
    data = Data({"name": "digits"}, "", {**model, "side": 8}, 0)
    step = {**SNAKE, "max_steps": 1, "batch_size": 2, "initial": "any", "distil": "never"}
    whole = {**FULL, "max_steps": 1, "batch_size": 2}
    built = build_model(architecture_of(data.model))
    size = 4 * sum(p.numel() for p in built.parameters())
    rows = []

    def row(name: str, cycle_bytes: float) -> None:
        share = cycle_bytes / (2 * NODES * size)
        rows.append({"way": name, "MB a cycle": cycle_bytes / 1e6, "of FedAvg": share,
                     "times fewer": 1 / share})  # fmt: skip

    def steady(shape: str, method: Mapping[str, Any], **how: Any) -> Journey:
        return travel(tables(data, shape, method, 1, 1e6), 2, judged=False, **how)

    row("FedAvg, 9 nodes, full model down and up", 2 * NODES * size)
    row("sequential, ring: full model on", steady("ring", whole).tensor_bytes[-1])
    bare = steady("star", step, caches=False)
    row("snake by a coordinator, clients hold nothing: full down, slice up",
        sum(bare.down[:NODES]) + sum(bare.up[:NODES]))  # fmt: skip
    kept = steady("star", step)
    row("snake by a coordinator, clients keep their last copy",
        sum(kept.down[NODES : 2 * NODES]) + sum(kept.up[NODES : 2 * NODES]))  # fmt: skip
    row("snake, ring of 9, nodes keep their last copy", steady("ring", step).tensor_bytes[-1])
    row("snake where the next node holds the rest (two nodes in turn)",
        steady("pair", step).tensor_bytes[-1])  # fmt: skip
    return rows


def memory_of(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return measured and reckoned bytes of one visit's training, the largest and a mean slice."""
    rng = np.random.default_rng(0)
    side = int(model["side"])
    images = rng.random((64, 1, side, side), np.float32)
    data = NodeData.of(SkillData.of(SKILL, images, np.arange(64) % 10, num_classes=10))
    architecture = architecture_of(model)

    def fresh() -> Any:
        made = build_model(architecture)
        initialise(made, 0)
        return made

    blocks, sizes = blocks_of(fresh()), [size_of(fresh(), b) for b in blocks_of(fresh())]
    total, rows = sum(sizes), []

    def stop(done: int) -> Stop:
        numbers = {"snake.cycle": 0.0, "snake.done.0": float((1 << done) - 1)}
        return Stop(NodeId("a"), 0, 1, dict(data.skills), numbers)

    def row(name: str, measured: Sequence[Any], reckoned: Sequence[int]) -> None:
        rest = [m.rest for m in measured]
        rows.append({"training": name, "mean kB": mean(rest) / 1e3, "largest kB": max(rest) / 1e3,
                     "measured / formula": max(r / f for r, f in zip(rest, reckoned, strict=True)),
                     "peak kB, activations too": max(m.peak for m in measured) / 1e3})  # fmt: skip

    whole = training_memory(SequentialMethod(momentum=0.9), fresh(), stop(0))
    row("whole model, SGD with momentum", [whole], [12 * total])
    slices = [sizes[0] + middle + sizes[-1] for middle in sizes[1:-1]]
    for name, how in (
        ("snake, SGD with momentum", {"optimiser": "sgd"}),
        ("snake, Adam: 4 Phi + 12 slice", {"optimiser": "adam"}),
        ("snake, Adam, mixed: 2 Phi + 14 slice", {"optimiser": "adam", "mixed": True}),
        ("snake, SGD, frozen in 8 bits", {"optimiser": "sgd", "frozen_bits": 8}),
    ):
        method = SnakeMethod(distil="never", lr=0.001, **how)  # type: ignore[arg-type]
        measured = [training_memory(method, fresh(), stop(i)) for i in range(len(blocks) - 2)]
        reckoned = [
            training_bytes(total, s, optimiser=str(how["optimiser"]), mixed=bool(how.get("mixed")))
            for s in slices
        ]
        row(name, measured, reckoned)
    return rows


# --- the whole ----------------------------------------------------------------------------------


def summary(
    chosen: Sequence[Way], found: Mapping[str, list[Journey]], marks: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Yield a row a way: means over its seeds."""
    for way in chosen:
        journeys, rivals = found[way.name], found[way.against]
        pairs = [*zip(journeys, rivals, strict=False)]
        finals = [j.final for j in journeys]
        row: dict[str, Any] = {
            "way": way.name,
            "seeds": len(finals),
            "final": mean(finals),
            "sd": stdev(finals) if len(finals) > 1 else 0.0,
            "rise": mean(j.rise for j in journeys),
            "of FedAvg": mean(j.final for j, _ in pairs) / mean(r.final for _, r in pairs),
            "at equal bytes": mean(j.final for j, _ in pairs)
            / mean(r.best_within(j.wire_bytes[-1]) for j, r in pairs),
            "MB in all": mean(j.wire_bytes[-1] for j in journeys) / 1e6,
        }
        for mark in marks:
            got = [j.bytes_to(mark) / 1e6 for j in journeys]
            row[f"MB to {mark:.0%}"] = mean(got) if max(got) < float("inf") else "-"
        row |= {"taught": mean(j.taught for j in journeys),
                "undone": sum(j.rolled_back for j in journeys)}  # fmt: skip
        yield row


def parsed() -> argparse.Namespace:
    """Return the command line's arguments."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="digits, 6 cycles, 1 seed")
    parser.add_argument("--digits", action="store_true", help="handwritten digits, small VGG")
    parser.add_argument("--rows", type=int, default=500, help="of each node (500)")
    parser.add_argument("--cycles", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--order-seeds", type=int, default=5, help="of the order ablation (5)")
    parser.add_argument("--skew", type=float, default=0.3, help="Dirichlet's alpha (0.3)")
    parser.add_argument("--width", type=int, default=0, help="of the VGG whose bytes are counted")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if args.cycles < 2 * LAST:
        parser.error(f"--cycles is {args.cycles}, at least {2 * LAST} are needed")
    return args


def main() -> int:
    """Run it."""
    args = parsed()
    if args.quick:
        args.cycles, args.seeds, args.order_seeds = 6, 1, 1
    is_small = args.quick or args.digits
    data = data_of(is_small, args.rows)
    width = args.width or data.model["width"]
    tell: Callable[[str, Sequence[dict[str, Any]]], None] = common.show
    moved = bytes_of({"name": "vgg", "width": width, "classes": 10})
    tell(f"Tensors moved by a cycle of nine visits, VGG-11 of width {width}", moved)
    memory = memory_of(data.model)
    tell(f"Memory of a visit's training, VGG-11 of width {data.model['width']}", memory)
    chosen = ways(args.seeds, args.order_seeds, args.skew)
    found = all_ways(data, chosen, args.cycles, args.workers)
    fedavg = mean(j.final for j in found["fedavg"])
    marks = [round(share * fedavg, 2) for share in (0.8, 0.9, 0.95)]
    rows = list(summary(chosen, found, marks))
    name = data.source["name"]
    tell(f"{name}, {NODES} nodes, Dirichlet(2), {args.cycles} cycles", rows)
    ratio = mean(j.final for j in found["snake"][: args.seeds]) / fedavg
    by_way = {row["way"].split(":")[0]: row for row in moved}
    bare = by_way["snake by a coordinator, clients hold nothing"]["of FedAvg"]
    held = by_way["snake where the next node holds the rest (two nodes in turn)"]["times fewer"]
    worst = max(row["measured / formula"] for row in memory)
    bars = [
        Bar("bytes by a coordinator, of FedAvg's", bare, 0.57, at_least=False),
        Bar("times fewer bytes where the rest is held", held, 16.0),
        Bar("memory, measured / formula", worst, 1.10, at_least=False),
    ]
    if not args.quick:
        even = mean(j.final for j in found["snake, calibrated"])
        even /= mean(j.final for j in found["fedavg, calibrated"])
        bars.append(Bar("final accuracy, of FedAvg's", ratio, 0.95))
        bars.append(Bar("the same, both calibrated", even, 0.95))
    return common.finish("snake", [*moved, *memory, *rows], bars)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
