"""What each counter-measure does against forgetting: five nodes, two classes each, real packets.

A packet with an MLP of 64 units goes round five nodes of a simulated network, each of which holds
all rows of two of the ten classes, in random order: once with 100 steps at every visit, or five
times with 20. Then its model is judged on test rows of all classes that no node holds. Nothing
else differs between the rows but the counter-measure in the packet's mandate.

    python benchmarks/forgetting.py --root DIR          # Fashion-MNIST (15,000 images), 5 seeds
    python benchmarks/forgetting.py --quick             # handwritten digits, 2 seeds
    python benchmarks/forgetting.py --root DIR --plot forgetting.svg

The forgetting rate is that of trust-graph learning (TNFL): by how much the error on a node's own
held-out rows has grown at the end, relative to the error right after the visit, over the nodes of
the first half of the route. Errors are summed over nodes and seeds before they are divided,
because right after a visit many nodes have none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import Bar, finish, show

from aats.compose import Plan, compose, measure_on
from aats.config import Scenario
from aats.config.load import build
from aats.ids import NodeId
from aats.lineage import RecordKind
from aats.packet import Header
from aats.payload import REFERENCE, Payload
from aats.simulate import simulate

SKILL = "images"
NODES = ("a", "b", "c", "d", "e")
METHOD = {"name": "sequential", "batch_size": 32, "lr": 0.05, "decay": 1.0}
OPEN = {"rollback_drop": 1.0, "rollback_loss": 1e9}
"""No visit is undone for what it forgot: the guard would hide what is measured."""
ONE_PASS, FIVE_PASSES = (1, 100), (5, 20)
"""(passes over the nodes, steps at a visit): the same work."""
IID = "plain where all have all"
HALF_LIFE = float(np.log(0.5) / np.log(0.99))
"""In steps, of a mean of weights that keeps 0.99 of itself at each."""


def measures(steps: int) -> dict[str, dict[str, Any]]:
    """Return what is compared, for visits of so many steps."""
    mean = {"ema": HALF_LIFE / steps, "ema_steps": True}
    return {
        "plain": {},
        "consolidation 1e3": {"ewc": 1e3},
        "consolidation 1e2": {"ewc": 1e2},
        "consolidation 1e2 in 8 bits": {"ewc": 1e2, "ewc_bits": 8},
        "proximal 0.1": {"proximal": 0.1},
        "distillation 0.5": {"distil": 0.5},
        "distillation 0.8": {"distil": 0.8},
        "mean of weights": mean,
        "interpolation 0.5": {"interpolate": 0.5},
        "interpolation seen": {"interpolate": "seen"},
        "masked softmax": {"masked": True},
        "SAM 0.05": {"sam": 0.05},
        "replay of 20 directions": {"replay": 0.5},
        "replay of diagonals": {"replay": 0.5, "replay_rank": 0},
        "replay of features": {"replay": 0.5, "replay_space": "feature"},
        "replay + distillation": {"replay": 0.5, "distil": 0.5},
        "replay + mean of weights": {"replay": 0.5, **mean},
    }


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one packet."""

    accuracy: float
    """On all test rows, percent."""
    error_after: float
    """Summed over the nodes of the first half: error on a node's held-out rows after its visit."""
    error_final: float
    """The same of the model that came home."""
    payload_kib: float
    """At the end: weights, and what the measure carries."""
    moved_mib: float
    """Over all links."""
    undone: int
    """Visits that ended in weights that are not finite."""


@dataclass(frozen=True, slots=True)
class Task:
    """Which images."""

    source: dict[str, Any]
    features: int
    root: str = ""


def scenario_of(
    task: Task, measure: dict[str, Any], passes: int, steps: int, seed: int, scheme: str = "shards"
) -> Scenario:
    """Return five nodes in a full mesh, an owner, and a packet that goes round them.

    Its target cannot be met, and asks for a verdict: a packet that took a node's word for it
    would be done after the first, which knows two classes only.
    """
    rng = np.random.default_rng(seed)
    route: list[str] = []
    while len(route) < passes * len(NODES):
        order = [str(node) for node in rng.permutation(NODES)]
        if not route or order[0] != route[-1]:
            route += order
    names = (*NODES, "owner", "judge")
    pairs = [[a, b] for i, a in enumerate(names) for b in names[:i]]
    classes = {"classes_per_node": 2} if scheme == "shards" else {}
    return build({
        "scenario": {"name": "forgetting", "seed": seed, "limit_s": 1e6},
        "topology": {"edges": pairs},
        "nodes": {
            "owner": {"roles": ["owner"]}, "judge": {"roles": ["mpvu"]},
            **{name: {"data": {SKILL: {}}, "contributes_to": ["judge"]} for name in NODES},
        },
        "data": {"root": task.root, "skills": {SKILL: {
            "source": task.source, "reference": 200, "held_out": 0.2,
            "partition": {"name": scheme, **classes},
        }}},
        "packets": [{
            "name": "learner",
            "owner": "owner",
            "requirement": [{"skill": SKILL, "value": 1.0}],
            "model": {"name": "mlp", "features": task.features, "hidden": [64], "classes": 10},
            "method": {**METHOD, **OPEN, **measure, "equal_steps": steps},
            "policy": {"name": "itinerary", "stops": route},
            # A packet keeps two hops in hand: home, and one way that turns out closed.
            "budget": {"hops": len(route) + 2},
        }],
    }, name="forgetting")  # fmt: skip


def run(scenario: Scenario, plan: Plan) -> Found:
    """Send the packet round and judge what comes home."""
    ((header, payload),) = simulate(scenario, plan, lambda event: None).values()
    kinds = RecordKind.TRAIN, RecordKind.ROLLED_BACK
    visits = [(record.node, record) for record in header.chain if record.kind in kinds]
    stops = scenario.packets[0].policy.params["stops"]
    undone = sum(record.kind is RecordKind.ROLLED_BACK for _, record in visits)
    if not undone and [node for node, _ in visits] != stops:
        raise RuntimeError(f"{header.mandate.method.params}: off its route {stops}")
    half = dict.fromkeys(stops[-len(NODES) :][: len(NODES) // 2])
    last = {node: record for node, record in visits if node in half}
    after = {node: 1 - record.metrics[f"{SKILL}.accuracy.local"] for node, record in last.items()}
    final = {node: 1 - _accuracy(header, payload, plan, node) for node in half}
    carried = (t for t in payload.manifest.tensors if not t.name.startswith(REFERENCE))
    return Found(
        100 * measure_on(header, payload, plan.test)[SKILL]["value"],
        sum(after.values()),
        sum(final.values()),
        sum(t.size for t in carried) / 1024,
        header.spent.bytes / 2**20,
        undone,
    )


def _accuracy(header: Header, payload: Payload, plan: Plan, node: str) -> float:
    held = plan.nodes[NodeId(node)].data.skills[SKILL]
    return measure_on(header, payload, {SKILL: (held.test_x, held.test_y)})[SKILL]["value"]


def row_of(name: str, regime: str, found: Sequence[Found]) -> dict[str, Any]:
    """Return one row: means, the sample deviation of the accuracy, the pooled forgetting rate."""
    accuracy = [f.accuracy for f in found]
    after = sum(f.error_after for f in found)
    grown = sum(f.error_final for f in found) - after
    return {
        "measure": name,
        "visits": regime,
        "accuracy": round(float(np.mean(accuracy)), 2),
        "sd": round(float(np.std(accuracy, ddof=1)), 2),
        "lost points": round(100 * grown / (len(found) * (len(NODES) // 2)), 2),
        "forgetting rate": round(grown / after, 2) if after else None,
        "payload KiB": round(found[0].payload_kib, 1),
        "moved MiB": round(float(np.mean([f.moved_mib for f in found])), 2),
        "undone": sum(f.undone for f in found),
    }


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the accuracies, one bar a measure for each regime."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["measure"] for row in rows))
    regimes = list(dict.fromkeys(row["visits"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(names) + 1.2), layout="constrained")
    for i, regime in enumerate(regimes):
        own = {row["measure"]: row for row in rows if row["visits"] == regime}
        place = np.arange(len(names)) + (i - (len(regimes) - 1) / 2) * 0.4
        axes.barh(
            place, [own[n]["accuracy"] for n in names], 0.36, label=regime,
            xerr=[own[n]["sd"] for n in names],
        )  # fmt: skip
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on all classes, percent (mean and deviation over seeds)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    figure.savefig(path)
    pyplot.close(figure)


def bars_of(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """Return the bars: the order of the measures, and the targets set on MNIST."""
    once = {row["measure"]: row for row in rows if row["visits"] == _regime(*ONE_PASS)}
    many = {row["measure"]: row for row in rows if row["visits"] == _regime(*FIVE_PASSES)}
    replay, plain = once["replay of 20 directions"], once["plain"]
    distilled = once["distillation 0.5"]
    return [
        Bar("one pass: plain", plain["accuracy"], 30.0, at_least=False),
        Bar("one pass: distillation above plain", distilled["accuracy"] - plain["accuracy"], 15.0),
        Bar("one pass: replay above distillation",
            replay["accuracy"] - distilled["accuracy"], 10.0),
        Bar("T15 one pass: distillation 0.5", distilled["accuracy"], 50.0),
        Bar("T15 one pass: replay (bar set on MNIST)", replay["accuracy"], 87.0),
        Bar("T15 one pass: forgetting rate of replay", replay["forgetting rate"] or 0.0, 0.1,
            at_least=False),
        Bar("T16 five passes: mean of weights (bar set on MNIST)",
            many["mean of weights"]["accuracy"], 80.0),
        Bar("five passes: mean of weights above plain",
            many["mean of weights"]["accuracy"] - many["plain"]["accuracy"], 15.0),
    ]  # fmt: skip


def _regime(passes: int, steps: int) -> str:
    return f"{passes} x {steps} steps"


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="", help="folder with fashion-mnist/*.npz")
    parser.add_argument("--quick", action="store_true", help="digits, 2 seeds")
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--only", default="", help="names of measures, comma-separated")
    parser.add_argument("--plot", type=Path, default=None)
    args = parser.parse_args()
    if args.quick or not args.root:
        task = Task({"name": "digits"}, 64)
    else:
        task = Task({"name": "fashion-mnist"}, 784, str(Path(args.root).resolve()))
    seeds = range(args.seeds or (2 if args.quick else 5))
    rows = []
    for passes, steps in (ONE_PASS, FIVE_PASSES):
        wanted = [name.strip() for name in args.only.split(",") if name.strip()]
        chosen = {n: m for n, m in measures(steps).items() if not wanted or n in wanted}
        found: dict[str, list[Found]] = {name: [] for name in (*chosen, IID)}
        for seed in seeds:
            plan = compose(scenario_of(task, {}, passes, steps, seed))
            for name, measure in chosen.items():
                found[name].append(run(scenario_of(task, measure, passes, steps, seed), plan))
                told = (
                    f"seed {seed}, {_regime(passes, steps)}: {name} {found[name][-1].accuracy:.1f}"
                )
                print(told, file=sys.stderr, flush=True)
            even = scenario_of(task, {}, passes, steps, seed, "iid")
            found[IID].append(run(even, compose(even)))
        rows += [row_of(name, _regime(passes, steps), runs) for name, runs in found.items()]
    show(f"Forgetting: {task.source['name']}, {len(seeds)} seeds", rows)
    if args.plot:
        plot(rows, args.plot)
    return finish("forgetting", rows, [] if args.only else bars_of(rows))


if __name__ == "__main__":
    sys.exit(main())
