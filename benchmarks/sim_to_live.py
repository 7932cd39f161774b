"""Does a policy that is cheaper in the environment cost less live? The same journeys, three times.

Each policy takes a packet over the same network with the same seeds in the learning environment
(where models learn by formula, small ones by rows, and the scenario's own), in the simulated world
(the nodes' own code on a virtual clock) and live (a daemon a node, links and tasks paced to their
figures). Where the environment is wrong and the same with the scenario's models is right, it is
learning that does not fit. Live runs go one after the other and take ten
seconds to a minute each; what is finished is kept in the folder `--out`, and a run that was
interrupted goes on from there.

    python benchmarks/sim_to_live.py --out DIR              # 10 seeds, about half an hour
    python benchmarks/sim_to_live.py --quick --out DIR      # 2 seeds of one example, two minutes

Live, a visit takes as long as its node's figures say, and longer where this machine is slower: read
the live figures of a busy machine with care.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from common import Bar, finish, show
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, ScalarFormatter
from scipy.stats import rankdata

from aats.oam.plots import PACKET_COLOURS
from aats.oam.progress import progress
from aats.oam.view import RunView
from aats.run import Watch, run_live
from aats_agents.evaluate.case import Case, Journey, cases_of
from aats_agents.evaluate.command import driven
from aats_agents.evaluate.journeys import drive
from aats_agents.evaluate.real import plugin_of, told, travel
from aats_agents.evaluate.report import charged_s
from aats_agents.evaluate.specs import Spec, maker, spec_of
from aats_envs.from_scenario import from_scenario
from aats_envs.row_learner import RowLearner
from aats_envs.scenario_rows import own_rows
from aats_envs.torch_learner import TorchLearner

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCENARIOS = "healthcare", "digits20"
POLICIES = "rl,minibatch,least-visited,random"
ENV, BY_ROWS, TRAINED = "environment", "environment, rows", "environment, trained"
SIM, LIVE = "simulated", "live"
EXPECTED = ENV, BY_ROWS, TRAINED, SIM
LIMIT_S = 180.0
"""Of a live run."""
CORRELATED, ALIKE = 0.7, 0.8
"""Bars: rank correlation with the live cost, and share of pairs of policies ordered alike."""
Results = dict[tuple[str, str, str, int], Journey]
"""By world, policy, family, seed."""


class Kept:
    """Finished journeys, one a line of a file: what is there is not done again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: Results = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            fields = json.loads(line)
            self._take(fields.pop("world"), Journey(**fields))

    def _take(self, world: str, journey: Journey) -> None:
        self.found[world, journey.policy, journey.family, journey.seed] = journey

    def get(self, world: str, spec: Spec, case: Case, make: Callable[[], Journey]) -> Journey:
        """Return a journey, made if it is not there yet."""
        key = world, spec.name, case.family, case.key
        if key not in self.found:
            self._take(world, make())
            with self._path.open("a") as file:
                file.write(json.dumps({"world": world, **asdict(self.found[key])}) + "\n")
        return self.found[key]


def live(spec: Spec, case: Case) -> Journey:
    """Return the journey of a packet among real daemons."""
    assert case.scenario is not None
    (packet,) = case.scenario.packets
    scenario = replace(
        case.scenario,
        packets=(replace(packet, policy=plugin_of(spec, case)),),
        scenario=replace(case.scenario.scenario, limit_s=LIMIT_S),
    )
    view = RunView()
    folder = Path(tempfile.mkdtemp(prefix="aats-live-"))
    since = time.perf_counter()
    try:
        with progress(view, "", quiet=True) as shown:
            asyncio.run(run_live(scenario, folder, Watch(view, shown)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return told(spec.name, case, view, case.unit_s, LIMIT_S, time.perf_counter() - since)


def trained(spec: Spec, case: Case) -> Journey:
    """Return the journey in the environment, each visit training in earnest."""
    assert case.scenario is not None
    ((_, task),) = from_scenario(case.scenario)
    learner = TorchLearner.of(task)
    return drive(spec.name, maker(spec, learner), [case], learner=learner)[0]


def by_rows(spec: Spec, case: Case) -> Journey:
    """Return the journey in the environment, a small model learning by the nodes' rows."""
    assert case.scenario is not None
    found = from_scenario(case.scenario)
    (deal,) = own_rows(found)
    case = replace(case, network=replace(found[0][0], rows=deal))
    return drive(spec.name, maker(spec), [case], learner=RowLearner)[0]


WORLDS: Mapping[str, Callable[[Spec, Case], Journey]] = {
    ENV: lambda spec, case: driven(spec, [case])[0],
    BY_ROWS: by_rows,
    TRAINED: trained,
    SIM: travel,
    LIVE: live,
}


def logs(results: Results, world: str, keys: Sequence[tuple[str, str, int]]) -> np.ndarray:
    """Return the logarithms of charged seconds, less their scenario's mean."""
    values = np.log([charged_s(results[(world, *key)]) for key in keys])
    families = np.array([family for _, family, _ in keys])
    for family in set(families):
        values[families == family] -= values[families == family].mean()
    return values


def agreement(
    results: Results, world: str, names: Sequence[str], families: Mapping[str, Sequence[int]]
) -> float:
    """Return the share of pairs of policies whose median cost a world orders as live does."""
    alike = []
    for family, seeds in families.items():
        median = {
            (w, name): float(np.median([charged_s(results[w, name, family, s]) for s in seeds]))
            for w in (world, LIVE) for name in names
        }  # fmt: skip
        alike += [
            (median[world, a] < median[world, b]) == (median[LIVE, a] < median[LIVE, b])
            for a, b in combinations(names, 2)
        ]
    return float(np.mean(alike))


def scatter(
    results: Results, names: Sequence[str], families: Mapping[str, Sequence[int]]
) -> Figure:
    """Draw live seconds over those of the other worlds; filled where both succeeded."""
    figure = Figure(figsize=(14, 4.4))
    all_s = [j.seconds for j in results.values() if j.policy in names and j.family in families]
    ends = [0.8 * min(all_s), 1.25 * max(all_s)]
    panels = figure.subplots(1, len(EXPECTED), sharex=True, sharey=True)
    for axes, world in zip(panels, EXPECTED, strict=True):
        for colour, name in zip(PACKET_COLOURS, names, strict=False):
            for marker, (family, seeds) in zip("osD^", families.items(), strict=False):
                for s in seeds:
                    a, b = results[world, name, family, s], results[LIVE, name, family, s]
                    style = "full" if a.success and b.success else "none"
                    axes.plot(a.seconds, b.seconds, marker, color=colour, markersize=5,
                              fillstyle=style)  # fmt: skip
        axes.plot(ends, ends, color="#adb5bd", linewidth=0.9, zorder=0)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=f"seconds, {world}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25, which="both")
    panels[0].set_ylabel("seconds, live")
    proxies = [Line2D([], [], marker="o", linestyle="", color=colour, label=name)
               for colour, name in zip(PACKET_COLOURS, names, strict=False)]  # fmt: skip
    proxies += [Line2D([], [], marker=marker, linestyle="", color="#495057", label=family)
                for marker, family in zip("osD^", families, strict=False)]  # fmt: skip
    proxies.append(Line2D([], [], marker="o", linestyle="", color="#495057", fillstyle="none",
                          label="not met"))  # fmt: skip
    figure.legend(handles=proxies, fontsize=8, frameon=False, loc="lower center", ncols=8)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--policies", default=POLICIES, help="separated by commas")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=100, help="the first of the seeds")
    parser.add_argument("--quick", action="store_true", help="2 seeds of digits20, 3 policies")
    args = parser.parse_args()
    names = ["minibatch", "least-visited", "random"] if args.quick else args.policies.split(",")
    scenarios = SCENARIOS[1:] if args.quick else SCENARIOS
    seeds = range(args.seed, args.seed + (2 if args.quick else args.seeds))
    specs = [spec_of(name) for name in names]
    args.out.mkdir(parents=True, exist_ok=True)
    kept = Kept(args.out / "journeys.jsonl")

    families: dict[str, list[int]] = {}
    cases: list[Case] = []
    for scenario in scenarios:
        found = cases_of([str(EXAMPLES / scenario)], seeds)
        first = [case for case in found if case.family == found[0].family]  # its first packet
        families[first[0].family] = [case.key for case in first]
        cases += first
    total, done = len(WORLDS) * len(cases) * len(specs), 0
    for world, run in WORLDS.items():
        for case in cases:
            for spec in specs:
                journey = kept.get(world, spec, case, lambda w=run, s=spec, c=case: w(s, c))
                done += 1
                print(
                    f"{done}/{total}  {world}: {spec.name} on {case.family} seed {case.key}: "
                    f"{journey.seconds:.1f} s{'' if journey.success else ', NOT met'}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    results, names = kept.found, [spec.name for spec in specs]
    keys = [(name, family, s) for name in names for family, some in families.items() for s in some]
    rows, bars = [], []
    actual = logs(results, LIVE, keys)
    for world in EXPECTED:
        expected = logs(results, world, keys)
        ranks = rankdata(expected), rankdata(actual)
        rows.append({
            "world": world, "journeys": len(keys),
            "Pearson": float(np.corrcoef(expected, actual)[0, 1]),
            "Spearman": float(np.corrcoef(*ranks)[0, 1]),
            "pairs of policies ordered as live": agreement(results, world, names, families),
        })  # fmt: skip
        bars.append(Bar(f"rank correlation, {world} and live", rows[-1]["Spearman"], CORRELATED))
        bars.append(
            Bar(
                f"policies ordered as live, {world}",
                rows[-1]["pairs of policies ordered as live"],
                ALIKE,
            )
        )
    for family, some in families.items():
        for name in names:
            mine = {w: [results[w, name, family, s] for s in some] for w in WORLDS}
            rows.append({
                "scenario": family, "policy": name,
                **{f"{w}, s": float(np.median([j.seconds for j in mine[w]])) for w in WORLDS},
                **{f"{w}, met": float(np.mean([j.success for j in mine[w]])) for w in WORLDS},
            })  # fmt: skip
    show(
        "What live costs have in common with those of other worlds, by logarithms",
        rows[: len(EXPECTED)],
    )
    show("Medians", rows[len(EXPECTED) :])
    scatter(results, names, families).savefig(args.out / "sim_to_live.png", dpi=130)
    print(f"plot: {args.out / 'sim_to_live.png'}")
    return finish("sim_to_live", rows, bars)


if __name__ == "__main__":
    sys.exit(main())
