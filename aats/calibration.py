"""From a scenario to the constants by which its skills are learnt: pilot hops on its own data."""

from __future__ import annotations

from collections.abc import Callable

from aats.compose import parts_of
from aats.config import Scenario
from aats.errors import ScenarioError
from aats.learning.calibrate import calibrate
from aats.learning.fit import Fit
from aats.learning.pilot import SkillPlan, Task
from aats.packet import PacketKind


def calibrate_scenario(
    scenario: Scenario,
    seed: int,
    hops: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Fit]:
    """Return a fit for each skill that a packet of a scenario trains.

    A skill is fitted on the model and method of the first packet that wants it, on deals like
    the scenario's of its own data. What the scenario says of wrong labels is not used: the
    deals have some of their own, so that the constants hold whoever is at fault.

    Args:
        scenario: The scenario.
        seed: Of everything.
        hops: Visits to make for each model, about.
        progress: Told the visits made and wanted, over all models.

    Raises:
        ScenarioError: If no packet trains.
        DataError: If data are missing or the deal is impossible.
    """
    tasks = tasks_of(scenario)
    fits: dict[str, Fit] = {}
    for number, task in enumerate(tasks):

        def told(made: int, _: int, before: int = number * hops) -> None:
            if progress is not None:
                progress(before + made, hops * len(tasks))

        found = calibrate(task, seed=seed, hops=hops, progress=told)
        fits = {**found, **fits}
    return fits


def tasks_of(scenario: Scenario) -> list[Task]:
    """Return what has to be calibrated: a task for each packet that wants a skill first.

    Raises:
        ScenarioError: If no packet trains.
    """
    tasks: list[Task] = []
    known: set[str] = set()
    for packet in scenario.packets:
        wanted = [target.skill for target in packet.requirement]
        if packet.kind is PacketKind.TRAIN and not known.issuperset(wanted):
            known.update(wanted)
            skills = {skill: _plan(scenario, skill) for skill in wanted}
            tasks.append(Task(scenario.name, packet.model, packet.method, skills))
    if not tasks:
        allowed = "a packet of kind 'train' is wanted, to calibrate its model and method"
        raise ScenarioError("packets", [packet.name for packet in scenario.packets], allowed)
    return tasks


def _plan(scenario: Scenario, skill: str) -> SkillPlan:
    config = scenario.data.skills[skill]
    return SkillPlan(
        config.source, config.partition, tuple(parts_of(scenario, skill)),
        held_out=config.held_out, reference=config.reference, test=config.test,
        root=scenario.data.root,
    )  # fmt: skip
