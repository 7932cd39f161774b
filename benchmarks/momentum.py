"""Momentum that travels: what 8 or 16 bits cost in accuracy and save in bytes.

The network of `benchmarks/forgetting.py`: five nodes with two classes each, an MLP of 64 units,
momentum 0.9, and a packet that stays for a few steps only, so that most of a step's velocity comes
from other nodes (Tram-FL, Maejima et al., section 2.2, sends it in 8 bits). Rows differ only in
`carry_momentum`; "starts at rest" is 0, the default.

    python benchmarks/momentum.py --root DIR     # Fashion-MNIST (15,000 images), 5 seeds
    python benchmarks/momentum.py --quick        # handwritten digits, 2 seeds
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import Bar, finish, show
from forgetting import Found, Task, run, scenario_of

from aats.compose import compose

PASSES, STEPS = 20, 5
METHOD = {"momentum": 0.9, "lr": 0.01}
CARRIED = {"starts at rest": 0, "32 bits": 32, "16 bits": 16, "8 bits": 8}


def row_of(name: str, found: list[Found], full: list[Found]) -> dict[str, Any]:
    """Return one row; the difference to 32 bits is paired by seed."""
    accuracy = np.array([f.accuracy for f in found])
    apart = accuracy - [f.accuracy for f in full]
    return {
        "momentum": name,
        "accuracy": round(float(accuracy.mean()), 2),
        "sd": round(float(accuracy.std(ddof=1)), 2),
        "minus 32 bits": round(float(apart.mean()), 2),
        "s.e.": round(float(apart.std(ddof=1) / np.sqrt(len(apart))), 2),
        "payload KiB": round(found[0].payload_kib, 2),
        "moved MiB": round(float(np.mean([f.moved_mib for f in found])), 2),
    }


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="", help="folder with fashion-mnist/*.npz")
    parser.add_argument("--quick", action="store_true", help="digits, 2 seeds")
    parser.add_argument("--seeds", type=int, default=0)
    args = parser.parse_args()
    if args.quick or not args.root:
        task = Task({"name": "digits"}, 64)
    else:
        task = Task({"name": "fashion-mnist"}, 784, str(Path(args.root).resolve()))
    seeds = range(args.seeds or (2 if args.quick else 5))
    found: dict[str, list[Found]] = {name: [] for name in CARRIED}
    for seed in seeds:
        plan = compose(scenario_of(task, {}, PASSES, STEPS, seed))
        for name, bits in CARRIED.items():
            method = {**METHOD, "carry_momentum": bits}
            found[name].append(run(scenario_of(task, method, PASSES, STEPS, seed), plan))
    rows = [row_of(name, runs, found["32 bits"]) for name, runs in found.items()]
    show(f"Momentum on the way: {task.source['name']}, {len(seeds)} seeds", rows)
    weights, eight, full = (
        found[name][0].payload_kib for name in ("starts at rest", "8 bits", "32 bits")
    )
    by_name = {row["momentum"]: row for row in rows}
    bars = [
        Bar("T14 8 bits: points off 32 bits", abs(by_name["8 bits"]["minus 32 bits"]), 0.3,
            at_least=False),
        # A byte a weight is 1.25 to the dot; the ranges of four tensors come on top.
        Bar("T14 8 bits: payload over weights", round(eight / weights, 4), 1.255, at_least=False),
        Bar("8 bits: payload over that of 32 bits", round(eight / full, 4), 0.63, at_least=False),
    ]  # fmt: skip
    return finish("momentum", rows, bars)


if __name__ == "__main__":
    sys.exit(main())
