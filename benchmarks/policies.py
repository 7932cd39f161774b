"""Routing policies on networks that none of them has seen, with real training.

Networks at least twice as large as those that the shipped policy was trained on, real graphs
among them (Internet Topology Zoo, if its files are there), with skews, shares of wrong labels and
outages beyond what training drew. Each visit trains a model on real rows; time and links are those
of the simulated world. Every policy meets the same networks with the same seeds. The oracle knows
everything beforehand, what each visit will do included; the itinerary is computed beforehand by
what nodes advertise.

    python benchmarks/policies.py --data DIR            # 24 networks, an hour and more
    python benchmarks/policies.py --quick               # 2 small ones

A journey that fails is charged 60 usual stops of its network besides its own time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Bar, finish, show

from aats.oam.plots import svg
from aats_agents.evaluate.case import REAL, Case, Journey, drawn
from aats_agents.evaluate.command import EvalWorld, compare
from aats_agents.evaluate.report import ALL, plain, plot, summarise
from aats_agents.evaluate.specs import spec_of
from aats_envs.family import Family
from aats_envs.presets import HELD_OUT, preset

POLICIES = (
    "random", "least-visited", "cycle", "label-variance", "loss", "bandit", "oort",
    "minibatch", "greedy-prior", "rl", "itinerary", "oracle",
)  # fmt: skip
QUICK = "random", "least-visited", "greedy-prior", "rl", "oracle"
LARGE = 48, 72
"""Nodes: training has 8-24."""
SEED = 90_000
CLOSED, WORSE, POINT = 0.5, 1.02, 0.01
"""Bars: share of the gap to the oracle closed; seconds over the best heuristic's on any family;
success below the best heuristic's."""


def families(data: str) -> dict[str, Family]:
    """Return what networks are drawn from, by name."""
    base = replace(HELD_OUT, tasks=REAL, nodes=LARGE)
    if data:
        base = replace(preset("zoo", data=data), tasks=REAL, nodes=LARGE)
    return {
        "plain": base,
        "noisy": replace(base, bad=(0.5, 0.6)),
        "skewed": replace(base, alpha=(0.1, 0.15)),
        "churn": replace(base, outages=(0.3, 0.5)),
    }


def small() -> dict[str, Family]:
    """Return what the quick run draws from."""
    return {"small": replace(preset("small"), tasks=REAL)}


def bars(summary: dict[str, Any], learned: str) -> list[Bar]:
    """Return the limits for a learned policy."""
    everything = summary.get(ALL) or next(iter(summary.values()))
    mine = everything["policies"][learned]
    best = everything["policies"][everything["best_heuristic"]]
    worst = max(found["policies"][learned]["charged"]["ratio"] for found in summary.values())
    to_random = everything["policies"]["random"]["charged"]["ci95"][0]
    gap = mine.get("gap_closed", {}).get("share")
    closed = [] if gap is None else [Bar("share of the gap to the oracle closed", gap, CLOSED)]
    return [
        *closed,
        Bar("seconds over the best heuristic's, worst family", worst, WORSE, at_least=False),
        Bar("met, less the best heuristic's", mine["success"] - best["success"], -POINT),
        Bar("floor: seconds over the best heuristic's", mine["charged"]["ratio"], 1.0, False),
        Bar("floor: random's seconds over its own, low end", to_random / mine["charged"]["ci95"][1],
            1.0),
    ]  # fmt: skip


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("AATS_DATA", ""), help="with topology-zoo")
    parser.add_argument("--networks", type=int, default=6, help="of each of the four families")
    parser.add_argument("--policies", default="", help="separated by commas")
    parser.add_argument("--learned", default="rl", help="the one that the bars are for")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="folder for policies.json and policies.svg")
    parser.add_argument("--quick", action="store_true", help="2 networks of 16 nodes, 5 policies")
    args = parser.parse_args()
    names = args.policies.split(",") if args.policies else QUICK if args.quick else POLICIES
    specs = [spec_of(name) for name in names]
    learned = spec_of(args.learned).name
    wanted = {learned, "random"}
    if missing := wanted - {spec.name for spec in specs}:
        parser.error(f"the bars need {', '.join(sorted(missing))} among the policies")

    found = small() if args.quick else families(args.data)
    count = 2 if args.quick else args.networks
    cases: list[Case] = []
    for number, (name, family) in enumerate(found.items()):
        seeds = range(SEED + 100 * number, SEED + 100 * number + count)
        cases += drawn(name, family, seeds, real=True)
    journeys = compare(specs, cases, EvalWorld.SIM, args.jobs, _told)
    summary = summarise(journeys, specs)
    rows = [
        {
            "family": family, "policy": name, "best heuristic": part["best_heuristic"],
            "seconds": e["seconds"]["median"], "of the best": e["charged"]["ratio"],
            "low": e["charged"]["ci95"][0], "high": e["charged"]["ci95"][1],
            "where both succeed": e["both_succeed"]["ratio"],
            "gap closed": e.get("gap_closed", {}).get("share"), "met": e["success"],
            "hops": e["hops"]["median"], "bytes": e["bytes"]["median"],
            "bad visits": e["bad_visits"],
        }
        for family, part in summary.items() for name, e in part["policies"].items()
    ]  # fmt: skip
    for family in summary:
        kept = ({k: v for k, v in row.items() if k != "family"} for row in rows
                if row["family"] == family)  # fmt: skip
        show(f"{family}: {summary[family]['episodes']} networks", list(kept))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        kept_runs = {"families": summary, "journeys": plain(journeys)}
        (args.out / "policies.json").write_text(json.dumps(kept_runs, indent=1) + "\n")
        (args.out / "policies.svg").write_text(svg(plot(summary)))
    return finish("policies", rows, bars(summary, learned))


def _told(done: int, total: int, last: Journey) -> None:
    print(
        f"{done}/{total}  {last.policy} on {last.family} {last.network}: {last.seconds:.1f} s, "
        f"{'met' if last.success else 'NOT met'}, took {last.wall_s:.0f} s",
        file=sys.stderr, flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
