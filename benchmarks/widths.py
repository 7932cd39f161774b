"""Does a visit of a slice cost the whole model more than a visit of all of it?

    python benchmarks/widths.py                          # scikit-learn's digits, ten seeds
    python benchmarks/widths.py --data DIR --seeds 5     # Fashion-MNIST: 10,000 rows to judge on

Eight nodes in a full mesh hold a data set evenly. Every other one is too small for the packet's
perceptron and trains half of its channels; beside it, with the same seed, rows and route, the same
nodes train all of it. After each visit the whole model is judged on rows that nobody holds. Pairs
are by seed: what is compared are the same visits, of slices and of whole models.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
from common import finish, show
from curve import mesh, travel

SKILL = "images"
NODES = tuple(f"n{i}" for i in range(8))
SMALL = NODES[1::2]
HIDDEN = (64, 64, 64)
CYCLES = 8
RATIO = 0.5
OPEN = {"rollback_drop": 1.0, "rollback_loss": 1e9}
"""No visit is undone for what it cost: that would hide what is measured."""


def tables(
    source: str, features: int, root: str, seed: int, rate: float, *, sliced: bool
) -> dict[str, Any]:
    """Return the scenario of one run."""
    nodes: dict[str, Any] = {name: {"data": {SKILL: {}}} for name in NODES}
    ratios = [1.0, RATIO] if sliced else [1.0]
    if sliced:
        widths = (features, *HIDDEN, 10)
        weights = sum((a + 1) * b for a, b in itertools.pairwise(widths))
        for name in SMALL:
            nodes[name]["memory_mb"] = (RATIO + 0.05) * 3 * 4 * weights / 1e6
    nodes["owner"] = {"roles": ["owner", "compute"]}
    packet = {
        "name": "packet", "owner": "owner", "policy": {"name": "cycle"},
        "method": {"name": "nested", "lr": rate, "decay": 0.95, "ratios": ratios,
                   "visits": CYCLES * len(NODES), **OPEN},
        "requirement": [{"skill": SKILL, "value": 1.0, "verifier": "any"}],
        "model": {"name": "mlp", "features": features, "hidden": list(HIDDEN), "classes": 10},
        "budget": {"hops": 100_000},
    }  # fmt: skip
    skill = {
        "source": source, "partition": {"name": "iid"}, "held_out": 0.0, "reference": 0,
        "test": 0.2,
    }  # fmt: skip
    return mesh(nodes, skill, packet, root=root, seed=seed)


def changes(run: dict[str, Any]) -> tuple[list[float], float]:
    """Return what each visit to the small nodes changed, in points, and the last accuracy."""
    curve = travel(run, "widths")
    assert curve.header is not None
    visited = [r.node for r in curve.header.chain if r.kind == "train"]
    accuracy = [100 * p.accuracy for p in curve.points]
    if len(accuracy) != len(visited) + 1:
        raise RuntimeError(f"{len(visited)} visits, {len(accuracy)} versions of the model")
    steps = zip(visited, np.diff(accuracy), strict=True)
    return [float(step) for node, step in steps if node in SMALL], 100 * curve.final.accuracy


def row_of(name: str, found: Sequence[tuple[list[float], float]]) -> dict[str, Any]:
    """Return one row: of all seeds' visits, and the mean and deviation over seeds."""
    every = [step for steps, _ in found for step in steps]
    shares = [100 * mean(step < -1 for step in steps) for steps, _ in found]
    return {
        "nodes train": name,
        "visits": len(every),
        "mean change": mean(every),
        "worst": min(every),
        "cost > 1 point, % of visits": mean(shares),
        "sd over seeds": stdev(shares),
        "final": mean(final for _, final in found),
        "sd": stdev(final for _, final in found),
    }


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over seeds."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(differences, (10_000, len(differences))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="", help="folder with fashion-mnist/")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.1)
    options = parser.parse_args()
    source, features = ("fashion-mnist", 784) if options.data else ("digits", 64)
    pairs = []
    for seed in range(options.seeds):
        both = [
            changes(tables(source, features, options.data, seed, options.rate, sliced=sliced))
            for sliced in (True, False)
        ]
        pairs.append(both)
        print(f"seed {seed}: worst {min(both[0][0]):.1f}, {min(both[1][0]):.1f}", file=sys.stderr)
    slices, wholes = zip(*pairs, strict=True)
    rows = [row_of("a slice", slices), row_of("the whole", wholes)]
    show(f"Visits to small nodes: {source}, {options.seeds} seeds, rate {options.rate:g}", rows)
    paired = {
        "mean change": [mean(a) - mean(b) for (a, _), (b, _) in pairs],
        "cost > 1 point, % of visits": [
            100 * (mean(x < -1 for x in a) - mean(x < -1 for x in b)) for (a, _), (b, _) in pairs
        ],
        "worst": [min(a) - min(b) for (a, _), (b, _) in pairs],
        "final": [a - b for (_, a), (_, b) in pairs],
    }
    differences = []
    for name, values in paired.items():
        low, high = interval(values)
        differences.append({"slice - whole": name, "mean": mean(values), "low": low, "high": high})
    show("Paired by seed, 95 % interval", differences)
    return finish("widths", [*rows, *differences], [])


if __name__ == "__main__":
    sys.exit(main())
