"""`aats policy eval`: compare policies on families of networks and on scenarios."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from enum import StrEnum
from functools import partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from aats.errors import ScenarioError
from aats.oam.plots import svg
from aats.options import Exit
from aats_agents.evaluate.case import Case, Journey, cases_of
from aats_agents.evaluate.journeys import drive
from aats_agents.evaluate.real import travel
from aats_agents.evaluate.report import plain, plot, summarise, table
from aats_agents.evaluate.specs import Spec, maker, spec_of

POLICIES = "random,least-visited,minibatch,greedy-prior,rl,itinerary,oracle"
TABLE_WIDTH = 150
"""Columns of a table that goes into a file or a pipe."""
CHUNK = 16
"""Journeys that one process drives side by side."""


class EvalWorld(StrEnum):
    """Where policies are compared."""

    ENV = "env"
    """The learning environment: training by formula, milliseconds a journey."""
    SIM = "sim"
    """The simulated world: the nodes' own code, real training, seconds a journey."""


def eval_command(
    where: Annotated[
        list[str], typer.Argument(help="Families of networks by name, or scenarios by path.")
    ],
    policies: Annotated[
        str, typer.Option(help="Names, name:key=value, or policies' files, separated by commas.")
    ] = POLICIES,
    world: Annotated[EvalWorld, typer.Option(help="Where they are compared.")] = EvalWorld.ENV,
    seeds: Annotated[int, typer.Option(min=1, help="Episodes of each family or scenario.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="The first of the seeds.")] = 10_000,
    data: Annotated[str, typer.Option(help="Folder with the files of the family zoo.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder for eval.json and eval.svg; none are kept if not.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> int:
    """Compare policies on the same networks with the same luck.

    The itinerary and the oracle are computed for each episode: by what nodes advertise, and by
    all that is true, the outcome of every visit included.
    """
    specs = [spec_of(text) for text in policies.split(",") if text]
    if len({spec.name for spec in specs}) < len(specs) or not specs:
        raise ScenarioError("--policies", policies, "at least one is wanted, each once")
    cases = cases_of(
        where, range(seed, seed + seeds), real=world is EvalWorld.SIM, data=data
    )  # fmt: skip
    journeys = compare(specs, cases, world, jobs or cpu_count() or 1, _count)
    summary = summarise(journeys, specs)
    result = {"world": world.value, "seeds": seeds, "seed": seed, "families": summary}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        kept = {**result, "journeys": plain(journeys)}
        (out / "eval.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        (out / "eval.svg").write_text(svg(plot(summary)), encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return Exit.OK
    told = Console(highlight=False, width=None if sys.stdout.isatty() else TABLE_WIDTH)
    for family in summary:
        told.print(table(summary, family, world=world.value))
    if out is not None:
        told.print(f"eval: {out}", soft_wrap=True)
    return Exit.OK


def compare(
    specs: Sequence[Spec],
    cases: Sequence[Case],
    world: EvalWorld,
    workers: int,
    told: Callable[[int, int, Journey], None],
) -> list[Journey]:
    """Return every policy's journey through every case, in that order.

    Args:
        specs: The policies.
        cases: The episodes.
        world: Where.
        workers: Processes; one deterministic thread each, so the result is the same for any.
        told: Called with how many are done, of how many, and the last one.
    """
    size = CHUNK if world is EvalWorld.ENV else 1
    work = driven if world is EvalWorld.ENV else travelled
    jobs = [
        partial(work, spec, cases[i : i + size])
        for spec in specs
        for i in range(0, len(cases), size)
    ]
    if workers == 1:
        return _one_by_one(jobs, len(specs) * len(cases), told)
    context = get_context("forkserver")
    context.set_forkserver_preload(["aats_agents.evaluate.command", "torch"])
    with ProcessPoolExecutor(min(workers, len(jobs)), context) as pool:
        waiting: dict[Future[list[Journey]], int] = {
            pool.submit(job): i for i, job in enumerate(jobs)
        }
        found: list[list[Journey]] = [[] for _ in jobs]
        for future in as_completed(waiting):
            found[waiting[future]] = future.result()
            told(sum(map(len, found)), len(specs) * len(cases), future.result()[-1])
    return [journey for part in found for journey in part]


def _one_by_one(
    jobs: Sequence[Callable[[], list[Journey]]],
    total: int,
    told: Callable[[int, int, Journey], None],
) -> list[Journey]:
    found: list[Journey] = []
    for job in jobs:
        found += job()
        told(len(found), total, found[-1])
    return found


def driven(spec: Spec, cases: Sequence[Case]) -> list[Journey]:
    """Return a policy's journeys in the environment."""
    return drive(spec.name, maker(spec), cases)


def travelled(spec: Spec, cases: Sequence[Case]) -> list[Journey]:
    """Return a policy's journeys in the simulated world."""
    return [travel(spec, case) for case in cases]


def _count(done: int, total: int, last: Journey) -> None:
    line = f"{done}/{total}  {last.policy} on {last.network}: {last.seconds:.1f} s"
    line += "" if last.success else ", not met"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if done == total else ""))
    else:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()
