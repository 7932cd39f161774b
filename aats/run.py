"""One launch: a scenario in a world, shown while it runs, stored when it is over."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from aats.compose import build_packets, compose, measure_on
from aats.config import Scenario
from aats.config.load import load_scenario
from aats.errors import ScenarioError
from aats.faults import FaultPlan, check_live
from aats.ids import NodeId
from aats.oam.compare import Outcome, plain, summarise, table
from aats.oam.plots import bad_nodes, comparison, svg
from aats.oam.progress import Progress, human_bytes, progress
from aats.oam.rundir import new_run_dir, tidied, write_run
from aats.oam.view import Event, RunView
from aats.options import Exit, Format, LaunchOptions, World
from aats.simulate import Delivered, simulate

if TYPE_CHECKING:
    from aats.live import LiveWorld
    from aats.node.forkserver import ForkServer

EVENTS = "events.jsonl"
TABLE_WIDTH = 130
"""Columns of a comparison that goes into a file or a pipe."""


def execute(options: LaunchOptions) -> Exit:
    """Run what was asked for; return the exit code.

    Raises:
        AatsError: On bad input, an infeasible requirement, a network that does not start.
    """
    return _compare(options) if options.compare else _single(options)


# --- one run ----------------------------------------------------------------------------------


def _single(options: LaunchOptions) -> Exit:
    scenario = load_scenario(options.path, options.overrides())
    if not scenario.packets:
        raise ScenarioError("packets", None, "a run needs at least one packet")
    run_dir = new_run_dir(options.out, scenario.name, options.world.value)
    view = RunView()
    told = print_json if options.format is Format.JSONL else None
    title = f"{scenario.name}: {len(scenario.nodes)} nodes, world {options.world.value}"
    with tidied(run_dir), progress(view, title) as shown:
        watch = Watch(view, shown, told)
        if options.world is World.SIM:
            delivered = run_simulated(scenario, run_dir, watch)
        else:
            delivered = asyncio.run(run_live(scenario, run_dir, watch))
    test = compose(scenario).test
    for packet, (header, payload) in delivered.items():
        view.packets[packet].tested = measure_on(header, payload, test)
    result = _result(scenario, options, view, run_dir)
    write_run(run_dir, scenario, view, delivered, _facts(scenario, options, run_dir), result)
    if options.format is Format.TEXT:
        _tell(view, run_dir)
    else:
        print_json(result, indent=1 if options.format is Format.JSON else None)
    met = all(p.met for p in view.packets.values()) and len(view.packets) == len(scenario.packets)
    return Exit.OK if met else Exit.NOT_MET


class Watch:
    """Takes the trace of a run: into the view, onto the display, and to stdout if asked."""

    def __init__(
        self, view: RunView, shown: Progress, told: Callable[[Event], None] | None = None
    ) -> None:
        self.view, self._shown, self._told = view, shown, told

    def event(self, event: Event) -> None:
        """Take one event."""
        self.view.apply(event)
        self._shown.event(event)
        if self._told:
            self._told(event)

    def say(self, text: str) -> None:
        """Say what is being done or waited for."""
        self._shown.say(text)


def print_json(value: Mapping[str, Any], indent: int | None = None) -> None:
    """Print a JSON document to stdout."""
    sys.stdout.write(json.dumps(value, indent=indent) + "\n")
    sys.stdout.flush()


def _policies(scenario: Scenario) -> str:
    return ",".join(dict.fromkeys(p.policy.name for p in scenario.packets))


def _result(
    scenario: Scenario, options: LaunchOptions, view: RunView, run_dir: Path
) -> dict[str, Any]:
    return {
        "run_id": run_dir.name,
        "world": options.world.value,
        "policy": _policies(scenario),
        "seed": scenario.seed,
        "packets": [view.result(p) for p in view.packets.values()],
        "run_dir": str(run_dir),
    }


def _facts(scenario: Scenario, options: LaunchOptions, run_dir: Path) -> dict[str, Any]:
    security = "off" if scenario.live.insecure else "CURVE and AES-256-GCM"
    live = {"security": security} if options.world is World.LIVE else {}
    return {
        "run": run_dir.name,
        "world": options.world.value,
        "nodes": len(scenario.nodes),
        "policy": _policies(scenario),
        "seed": scenario.seed,
        **live,
    }


def _tell(view: RunView, run_dir: Path) -> None:
    out = Console(highlight=False, markup=False)
    for p in view.packets.values():
        verdict = "requirement met" if p.met else "requirement NOT met"
        out.print(f"{p.name}: {verdict}, {p.status}", style="green" if p.met else "red")
        for skill, target in p.requirement.items():
            found = p.skills.get(skill)
            if found is None:
                out.print(f"  {skill:<14} not measured, target {target:.2f}")
                continue
            by = f"verified by {found['by']}" if found["source"] == "mpvu" else "not verified"
            value = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
            out.print(
                f"  {skill:<14} {found['metric']} {value}, target {target:.2f}, {by}",
                soft_wrap=True,
            )
        out.print(f"  route: {' > '.join(p.route)}", soft_wrap=True)
        out.print(f"  {p.hops:.0f} hops, {human_bytes(p.bytes)} moved "
                  f"({human_bytes(p.probe_bytes)} of it probes), {p.seconds:.2f} s")  # fmt: skip
    out.print(f"run: {run_dir}  (open {run_dir / 'report.html'})", soft_wrap=True)


# --- the simulated world ----------------------------------------------------------------------


def run_simulated(scenario: Scenario, run_dir: Path | None, watch: Watch) -> Delivered:
    """Run a scenario on the virtual clock; return the packets that came home.

    Args:
        scenario: What to run.
        run_dir: Gets the trace as it is written, byte for byte the same for one seed; None: no
            trace is kept.
        watch: Told of every event.
    """
    watch.say("dealing the data out")
    plan = compose(scenario)
    if run_dir is None:
        return simulate(scenario, plan, watch.event)
    with (run_dir / EVENTS).open("w", encoding="utf-8") as lines:
        return simulate(scenario, plan, watch.event, lambda line: lines.write(line + "\n"))


# --- the live world ---------------------------------------------------------------------------


async def run_live(scenario: Scenario, run_dir: Path, watch: Watch) -> Delivered:
    """Run a scenario with real daemons; return the packets that came home."""
    from aats.node.forkserver import ForkServer

    check_live(scenario.faults)
    server = ForkServer.spawn("daemon")  # it loads torch while the data are dealt out here
    try:
        return await _run_live(scenario, run_dir, watch, server)
    finally:
        await server.close()


async def _run_live(
    scenario: Scenario, run_dir: Path, watch: Watch, server: ForkServer
) -> Delivered:
    from aats.live import LiveNode, LiveOptions, LiveWorld

    watch.say("dealing the data out")
    plan = compose(scenario)
    live = scenario.live
    options = LiveOptions(
        host=live.host,
        base_port=live.base_port,
        nodes_per_process=live.nodes_per_process,
        insecure=live.insecure,
        shaping=live.shaping,
        custody=live.custody,
    )
    nodes = [LiveNode(n.core, n.data, n.links, n.work) for n in plan.nodes.values()]
    prepared = LiveWorld(nodes, run_dir, options, server=server)
    packets = build_packets(scenario, plan, prepared.identity, time.time())
    watch.say(f"starting {len(nodes)} daemons")
    async with prepared as world:
        faults = FaultPlan(scenario.faults, _LiveBreaker(world, asyncio.get_running_loop()))
        faults.start()
        for packet in packets:
            world.submit(packet.header, packet.payload, after_s=packet.after_s)
        async for event in world.events(scenario.scenario.limit_s):
            watch.event(event)
            faults.event(event)
            if event["event"] == "node.died":
                watch.say(f"{event['node']} died; waiting for its restart")
    return {i: (d.header, d.payload()) for i, d in world.delivered.items()}


@dataclass(frozen=True, slots=True)
class _LiveBreaker:
    """A live world as a fault plan sees it."""

    world: LiveWorld
    loop: asyncio.AbstractEventLoop

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        self.loop.call_later(after_s, act)

    def crash(self, node: NodeId) -> None:
        self.world.take_down(node)

    def restart(self, node: NodeId) -> None:
        self.world.bring_up(node)

    def partition(self, nodes: Collection[NodeId], for_s: float) -> None:
        raise AssertionError("check_live refuses it")

    def lose(self, loss: float, link: tuple[NodeId, NodeId] | None, for_s: float) -> None:
        raise AssertionError("check_live refuses it")


# --- a comparison -----------------------------------------------------------------------------


def _compare(options: LaunchOptions) -> Exit:
    first = load_scenario(options.path, options.overrides(policy=options.compare[0]))
    seeds = [first.seed + i for i in range(options.seeds)]
    jobs = [(policy, seed) for seed in seeds for policy in options.compare]
    scenarios = {
        job: load_scenario(options.path, options.overrides(policy=job[0], seed=job[1]))
        for job in jobs
    }
    run_dir = new_run_dir(options.out, f"{first.name}-compare", options.world.value)
    with tidied(run_dir):
        is_sim = options.world is World.SIM
        outcomes = _simulate_all(scenarios) if is_sim else _live_all(scenarios, run_dir)
    outcomes.sort(key=lambda o: (options.compare.index(o.policy), o.seed))
    summary = summarise(outcomes)
    result = {"world": options.world.value, "seeds": options.seeds, "policies": summary}
    stored = {**result, "runs": plain(outcomes), "scenario": first.name}
    (run_dir / "compare.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (run_dir / "compare.svg").write_text(svg(comparison(summary)), encoding="utf-8")
    (run_dir / "scenario.toml").write_text(first.to_toml(), encoding="utf-8")
    if options.format is Format.TEXT:
        out = Console(highlight=False, width=None if sys.stdout.isatty() else TABLE_WIDTH)
        out.print(table(summary, world=options.world.value, seeds=options.seeds))
        out.print(f"run: {run_dir}", soft_wrap=True)
    else:
        print_json(result, indent=1 if options.format is Format.JSON else None)
    return Exit.OK


Jobs = Mapping[tuple[str, int], Scenario]


def _simulate_all(scenarios: Jobs) -> list[Outcome]:
    """Simulate every job, on all cores, each on one deterministic thread."""
    outcomes = []
    workers = min(len(scenarios), cpu_count() or 1)
    context = get_context("forkserver")
    context.set_forkserver_preload(["aats.run", "torch"])
    with ProcessPoolExecutor(workers, context) as pool:
        waiting = {pool.submit(_simulate, *job, scenarios[job]): job for job in scenarios}
        for done, future in enumerate(as_completed(waiting), start=1):
            outcomes.append(future.result())
            _count(done, len(waiting), outcomes[-1])
    return outcomes


def _simulate(policy: str, seed: int, scenario: Scenario) -> Outcome:
    view = RunView()
    with progress(view, "", quiet=True) as shown:
        run_simulated(scenario, None, Watch(view, shown))
    return outcome(policy, seed, scenario, view)


def _live_all(scenarios: Jobs, run_dir: Path) -> list[Outcome]:
    """Run every job with real daemons, one after the other: they share the machine's cores."""
    outcomes = []
    for done, ((policy, seed), scenario) in enumerate(scenarios.items(), start=1):
        view = RunView()
        with progress(view, "", quiet=True) as shown:
            name = policy.strip("/").replace("/", "_")  # a trained policy goes by its file
            folder = run_dir / f"{name}-{seed}"
            asyncio.run(run_live(scenario, folder, Watch(view, shown)))
        outcomes.append(outcome(policy, seed, scenario, view))
        _count(done, len(scenarios), outcomes[-1])
    return outcomes


def _count(done: int, total: int, last: Outcome) -> None:
    line = (f"{done}/{total}  {last.policy} seed {last.seed}: {last.seconds:.1f} s, "
            f"{last.hops:.0f} hops, {last.success:.0%} met")  # fmt: skip
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if done == total else ""))
    else:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


def outcome(policy: str, seed: int, scenario: Scenario, view: RunView) -> Outcome:
    """Return a run in figures; a packet that never came home has spent the run's whole time."""
    packets = list(view.packets.values())
    spent_s = min(view.last_t - (view.first_t or 0.0), scenario.scenario.limit_s)
    for p in packets:
        if p.status != "home":
            p.seconds, p.hops = spent_s, p.hop
    bad = bad_nodes(scenario)
    visits = [n for p in packets for _, n, what in p.stops if what in ("train", "rolled-back")]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / max(1, len(values))

    return Outcome(
        policy,
        seed,
        mean([p.seconds for p in packets]),
        mean([p.hops for p in packets]),
        mean([p.bytes for p in packets]),
        mean([float(p.met) for p in packets]),
        mean([float(node in bad) for node in visits]),
    )
