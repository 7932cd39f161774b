"""Taking a poisoned contribution out of a LoRA chain: what each level costs and leaves behind.

A packet trains an MLP of 64 units at one node with 400 images; the model it brings home is the
frozen base of a second packet, which goes to six nodes. Each adds one contribution of rank 4. The
labels of one of them, the first, the middle or the last on the way, are random. Then `aats ledger
forget` takes that contribution out at each level, and the models are judged on rows that no node
held. Everything goes through packets in the simulated world; the guard is off, so that the poison
gets in.

A second part asks whether the poison is found: at once, by leave-one-out on 200 trusted samples
before the packet is handed on (`reject_harm`); and late, by an MPVU at the end of the way
(`drop_harm`). A third part counts bytes against a packet that carries full weights.

    python benchmarks/lora_removal.py --root DIR      # Fashion-MNIST (15,000 images): 5 + 10 seeds
    python benchmarks/lora_removal.py --quick         # handwritten digits, 2 seeds each
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Bar, finish, show

from aats.compose import compose, measure_on
from aats.config import Scenario
from aats.config.load import build
from aats.ids import NodeId
from aats.ledger.file import write_ledger
from aats.lineage import RecordKind
from aats.oam.rundir import write_model
from aats.packet import Header
from aats.payload import MODEL, Payload
from aats.simulate import simulate
from aats.unlearning.forget import NEVER, Forgotten, Order, forget
from aats.unlearning.level import Level

SKILL, OWNER, SCHOOL, MPVU = "images", "home", "school", "judge"
NODES = tuple(f"n{i}" for i in range(6))
PLACES = {"first": 0, "middle": 2, "last": 5}
POISON = 0.9
"""Share of labels replaced by another class: with ten classes, labels drawn at random."""
OPEN = {"rollback_drop": 1.0, "rollback_loss": 1000.0}
LORA = {"name": "lora", "batch_size": 32, "rank_min": 4, "rank_max": 4}
HARM = 0.03
"""Accuracy on each of two samples that a contribution may cost."""
TRUSTED = 200
REPAIRS = (25, 50, 100)


@dataclass(frozen=True)
class Task:
    """A data set, and how a visit trains on it."""

    source: dict[str, Any]
    features: int
    rows: int
    """Of each node, a fifth of them held out."""
    school: int
    lr: float
    steps: int
    root: str = ""


def tables(task: Task, seed: int, poisoned: int | None) -> dict[str, Any]:
    """Return the network: an owner, a node for the base, six nodes, an MPVU, all joined."""
    held = {SKILL: {"samples": task.rows}}
    bad = {SKILL: {"samples": task.rows, "wrong_labels": POISON}}
    return {
        "scenario": {"seed": seed, "name": "removal"},
        "topology": {
            "generator": {"name": "complete", "nodes": 9}, "names": [OWNER, SCHOOL, *NODES, MPVU],
        },
        "node": {"contributes_to": [MPVU], "probe": "none"},
        "nodes": {
            OWNER: {"roles": ["owner"]},
            MPVU: {"roles": ["mpvu"]},
            SCHOOL: {"data": {SKILL: {"samples": task.school}}},
            **{n: {"data": bad if i == poisoned else held} for i, n in enumerate(NODES)},
        },
        "data": {
            "root": task.root,
            "skills": {
                SKILL: {
                    "source": task.source, "reference": TRUSTED, "nodes": [SCHOOL, *NODES],
                },
            },
        },
        "mpvu": {"contribution": 64},
    }  # fmt: skip


def scenario_of(
    task: Task, seed: int, poisoned: int | None, stops: Sequence[str], **packet: Any
) -> Scenario:
    """Return the scenario of one packet that visits these stops and goes home."""
    method = {**packet.pop("method"), "visits": len([s for s in stops if s != MPVU])}
    wanted = {
        "name": "reader",
        "owner": OWNER,
        "requirement": [{"skill": SKILL, "value": 1.0, "verifier": "any"}],
        "policy": {"name": "itinerary", "stops": [*stops]},
        "budget": {"hops": 200},
        "method": method,
    }
    scenario = build({**tables(task, seed, poisoned), "packets": [{**wanted, **packet}]})
    return _wanting(scenario, value=NEVER)


def _wanting(scenario: Scenario, **change: Any) -> Scenario:
    """Return the scenario with something changed about what its packet wants."""
    packet = scenario.packets[0]
    targets = tuple(replace(t, **change) for t in packet.requirement)
    return replace(scenario, packets=(replace(packet, requirement=targets),))


def mlp(task: Task) -> dict[str, Any]:
    """Return the architecture of the base."""
    return {"name": "mlp", "features": task.features, "hidden": [64], "classes": 10}


def sent(scenario: Scenario) -> tuple[Header, Payload]:
    """Run a scenario of one packet and return it as it came home."""
    delivered = simulate(scenario, compose(scenario), lambda event: None)
    ((header, payload),) = delivered.values()
    return header, payload


def schooled(task: Task, seed: int, folder: Path) -> Path:
    """Return the file of a base, trained by a packet at one node with few images."""
    sequential = {"name": "sequential", "lr": 0.1, "momentum": 0.9, "epochs": 30, **OPEN}
    _, payload = sent(scenario_of(task, seed, None, [SCHOOL], model=mlp(task), method=sequential))
    write_model(folder / "base.safetensors", payload)
    return folder / "base.safetensors"


def chain_scenario(
    task: Task, seed: int, poisoned: int | None, base: Path, stops: Sequence[str] = NODES,
    **method: Any,
) -> Scenario:  # fmt: skip
    """Return the scenario of the packet that gathers contributions."""
    return scenario_of(
        task, seed, poisoned, stops,
        model={"name": "lora", "base": mlp(task)}, weights=str(base),
        method={**LORA, "lr": task.lr, "steps": task.steps, **OPEN, **method},
    )  # fmt: skip


def kept_run(scenario: Scenario, folder: Path) -> tuple[Header, Payload]:
    """Run a scenario and leave in a folder what `forget` needs of a run."""
    header, payload = sent(scenario)
    for name in ("ledger", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "scenario.toml").write_text(_wanting(scenario, value=1.0).to_toml())
    (folder / "result.json").write_text(json.dumps({"world": "sim"}))
    write_ledger(folder / "ledger" / "reader.jsonl", header.chain)
    write_model(folder / "models" / "reader.safetensors", payload)
    return header, payload


def accuracy(scenario: Scenario, header: Header, payload: Payload) -> float:
    """Return percent right of the rows that no node held."""
    return 100 * measure_on(header, payload, compose(scenario).test)[SKILL]["value"]


# --- removal ----------------------------------------------------------------------------------


def orders(place: str) -> dict[str, dict[str, Any]]:
    """Return what is tried, by the name of its row."""
    plain: dict[str, dict[str, Any]] = {
        "subtract": {"level": Level.SUBTRACT},
        "rebuild (retrain oracle)": {"level": Level.REBUILD},
    }
    if place == "last":
        return plain
    for steps in REPAIRS:
        repair: dict[str, Any] = {"level": Level.REPAIR, "steps": steps}
        plain[f"repair, {steps} steps at one node"] = {**repair, "at": NodeId(NODES[4])}
        plain[f"repair, {steps} steps at the later nodes"] = repair
    return plain


def removal(task: Task, seeds: Sequence[int], work: Path) -> list[dict[str, Any]]:
    """Return a row for each place of the poison and each level."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in seeds:
        base = schooled(task, seed, _fresh(work / f"school-{seed}"))
        for place, poisoned in PLACES.items():
            run = work / f"{place}-{seed}"
            scenario = chain_scenario(task, seed, poisoned, base)
            header, payload = kept_run(scenario, run)
            poison = {"accuracy": accuracy(scenario, header, payload), "exact": 0.0}
            trained = [r for r in header.chain if r.kind is RecordKind.TRAIN]
            all_ = {"steps": sum(r.steps for r in trained), "bytes": header.spent.bytes,
                    "seconds": sum(r.seconds for r in trained),
                    "joules": sum(r.joules for r in trained)}  # fmt: skip
            found.setdefault((place, "with the poison"), []).append({**poison, **all_})
            for name, about in orders(place).items():
                copy = Path(shutil.copytree(run, work / "copy"))
                gone = forget(Order(NODES[poisoned], copy, **about), quiet=True)
                shutil.rmtree(copy)
                found.setdefault((place, name), []).append(_figures(gone))
    return [_row(place, name, runs) for (place, name), runs in found.items()]


def _fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _figures(gone: Forgotten) -> dict[str, float]:
    spent = gone.cost.spent
    return {
        "accuracy": 100 * gone.after[SKILL],
        "exact": float(gone.exact),
        "steps": gone.cost.steps,
        "bytes": spent.bytes,
        "seconds": spent.seconds if gone.cost.visits else 0.0,
        "joules": spent.joules,
    }


def _row(place: str, name: str, runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    def mean(key: str) -> float:
        return float(np.mean([run[key] for run in runs]))

    spread = float(np.std([run["accuracy"] for run in runs], ddof=1)) if len(runs) > 1 else 0.0
    return {
        "poison": place,
        "what": name,
        "accuracy": round(mean("accuracy"), 2),
        "sd": round(spread, 2),
        "exact": "yes" if all(run["exact"] for run in runs) else "no",
        "steps": round(mean("steps")),
        "kB moved": round(mean("bytes") / 1e3, 1),
        "node seconds": round(mean("seconds"), 2),
        "joules": round(mean("joules"), 1),
    }


# --- detection --------------------------------------------------------------------------------


def detection(task: Task, seeds: Sequence[int], work: Path) -> list[dict[str, Any]]:
    """Return how often the poison, and how often a good node, is found out: at once and late."""
    at_once, late = [], []
    for seed in seeds:
        base = schooled(task, seed, _fresh(work / f"detect-{seed}"))
        poisoned = int(np.random.default_rng(seed).integers(len(NODES)))
        scenario = chain_scenario(task, seed, poisoned, base, reject_harm=HARM)
        header, payload = sent(scenario)
        blamed = {r.node for r in header.chain if r.kind is RecordKind.ROLLED_BACK}
        at_once.append((blamed, NODES[poisoned], accuracy(scenario, header, payload)))
        scenario = chain_scenario(task, seed, poisoned, base, [*NODES, MPVU], drop_harm=HARM)
        header, payload = sent(_wanting(scenario, verifier="mpvu"))
        removed = [r for r in header.chain if r.kind is RecordKind.REMOVE]
        blamed = {name.partition("@")[2] for r in removed for name in r.metrics}
        late.append((blamed, NODES[poisoned], accuracy(scenario, header, payload)))
    return [_found("at once, before it is handed on", at_once), _found("late, by an MPVU", late)]


def _found(name: str, runs: Sequence[tuple[set[NodeId], str, float]]) -> dict[str, Any]:
    return {
        "detection": name,
        "seeds": len(runs),
        "poison found": sum(bad in blamed for blamed, bad, _ in runs),
        "seeds with a good node blamed": sum(bool(blamed - {bad}) for blamed, bad, _ in runs),
        "accuracy": round(float(np.mean([value for *_, value in runs])), 2),
    }


# --- bytes ------------------------------------------------------------------------------------


def traffic(task: Task, work: Path) -> list[dict[str, Any]]:
    """Return what a hop moves: to nodes that have not seen the packet, and to those that have."""
    base = schooled(task, 0, _fresh(work / "traffic"))
    stops = [*NODES, *NODES]
    full = scenario_of(
        task, 0, None, stops, model=mlp(task), weights=str(base),
        method={"name": "sequential", "max_steps": task.steps, **OPEN},
    )  # fmt: skip
    rows = []
    for name, scenario in (
        ("full weights", full), ("chain of adapters", chain_scenario(task, 0, None, base, stops))
    ):  # fmt: skip
        header, payload = sent(scenario)
        sizes = [t.size for t in payload.manifest.tensors if t.name.startswith(MODEL)]
        added = [t.size for t in payload.manifest.tensors if t.name.startswith(f"{MODEL}chain.")]
        seen = [r.wire_bytes for r in header.chain if r.kind is RecordKind.TRAIN]
        per_hop = np.diff([0.0, *seen])
        rows.append({
            "packet": name,
            "model kB at the end": round(sum(sizes) / 1e3, 1),
            "a visit changes kB": round(
                (sum(added) / len(stops) if added else sum(sizes)) / 1e3, 1
            ),
            "kB a hop, first round": round(float(per_hop[: len(NODES)].mean()) / 1e3, 1),
            "kB a hop, second round": round(float(per_hop[len(NODES) :].mean()) / 1e3, 1),
        })  # fmt: skip
    return rows


def bars_of(rows: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Return the bars: T19 and T20 of the targets.

    There is none for late detection: where later visits have made up for the poison, taking it out
    does harm itself, and it is rightly left in.
    """
    by = {(row["poison"], row["what"]): row for row in rows}
    oracle = "rebuild (retrain oracle)"
    bars = [Bar("T19 last: removal is exact", float(by["last", "subtract"]["exact"] == "yes"), 1.0)]
    for place in ("first", "middle"):
        for where in ("one node", "the later nodes"):
            repaired = by[place, f"repair, 50 steps at {where}"]["accuracy"]
            lost = by[place, oracle]["accuracy"] - repaired
            bars.append(Bar(f"T19 {place}: repair at {where} behind the oracle, points",
                            round(lost, 2), 2.0, at_least=False))  # fmt: skip
    at_once = found[0]
    share = at_once["poison found"] / at_once["seeds"]
    blamed = at_once["seeds with a good node blamed"] / at_once["seeds"]
    return [
        *bars,
        Bar("T20 at once: poison found", share, 0.9),
        Bar("T20 at once: a good node blamed", blamed, 0.1, at_least=False),
    ]


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="", help="folder with fashion-mnist/*.npz")
    parser.add_argument("--quick", action="store_true", help="digits, 2 seeds each")
    parser.add_argument("--seeds", type=int, default=0)
    args = parser.parse_args()
    if args.quick or not args.root:
        task = Task({"name": "digits"}, 64, rows=160, school=120, lr=0.2, steps=40)
    else:
        root = str(Path(args.root).resolve())
        task = Task({"name": "fashion-mnist"}, 784, 1250, 500, lr=0.1, steps=100, root=root)
    seeds = args.seeds or (2 if args.quick else 5)
    with tempfile.TemporaryDirectory() as folder:
        rows = removal(task, range(seeds), Path(folder))
        found = detection(task, range(2 * seeds), Path(folder))
        moved = traffic(task, Path(folder))
    title = f"{task.source['name']}, {seeds} seeds"
    show(f"Removal of a poisoned contribution: {title}", rows)
    show(f"Detection, harm above {HARM} on both of two samples", found)
    show("Bytes", moved)
    return finish("lora_removal", [*rows, *found, *moved], bars_of(rows, found))


if __name__ == "__main__":
    sys.exit(main())
