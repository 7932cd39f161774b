"""A scenario as environments: the network each of its packets lives on, and its real data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from aats.advert import ProbeMode, Role
from aats.compose import PacketPlan, Plan, build_packets, compose, parts_of, simulated_identity
from aats.config import FaultKind, PacketConfig, Scenario
from aats.errors import ScenarioError
from aats.ids import NodeId
from aats.learning.datasets import load_dataset
from aats.learning.fit import load_fit
from aats.learning.method import method_of
from aats.learning.partition import spread_rows
from aats.messages import Samples
from aats.node.tasks import AdoptTask, ContributeResult, ContributeTask
from aats.payload import MODEL, REFERENCE, Manifest
from aats.roles.mpvu import TestSet
from aats.roles.runner import TRAIN, VERIFY, TaskContext, run_task
from aats.topology.network import Layout
from aats_envs.fits import fit_of_source
from aats_envs.network import KnowledgeNetwork
from aats_envs.ways import Ways, Wires, ways

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RealTask:
    """What it takes to do in earnest, with `aats.roles.runner.run_task`, what a network tells of.

    The contexts are as in the running network: delegates hold the data entrusted to them, MPVUs
    the test rows given to them.
    """

    names: tuple[NodeId, ...]
    """[N] in the network's order."""
    works_at: tuple[int, ...]
    """[N] the node that works on this one's data: itself, or its delegate."""
    contexts: tuple[TaskContext, ...]
    """[N]"""
    packet: PacketPlan
    """As its owner submits it."""
    plan: Plan
    """Of the scenario: whose test rows are nobody's."""


def reseeded(scenario: Scenario, seed: int) -> Scenario:
    """Return the scenario with another seed: on the same links other partitions and models."""
    return replace(scenario, scenario=replace(scenario.scenario, seed=seed))


def from_scenario(
    scenario: Scenario, *, fits: Mapping[str, str] | None = None
) -> list[tuple[KnowledgeNetwork, RealTask]]:
    """Return for each packet of a scenario its network and the same in earnest.

    Links that a fault cuts count as whole; a crash at a time is an outage. A packet's clock
    begins when it is submitted.

    Args:
        scenario: The scenario.
        fits: By skill, the constants of learning: a fit (`aats.learning.fit`). Those of
            the skill's data source where it is absent.

    Raises:
        DataError: If data are missing or cannot be dealt out.
        ScenarioError: If a source has no fit, no MPVU can measure all of a packet's skills, or
            an owner or MPVU has a delegate (it would be in two places at once).
    """
    plan = compose(scenario)
    contexts = _contexts(plan)
    truths = {skill: _truth(scenario, skill) for skill in scenario.data.skills}
    made = {name: simulated_identity(scenario, name) for name in scenario.nodes}
    packets = build_packets(scenario, plan, made.__getitem__, 0.0)
    found = []
    for config, packet in zip(scenario.packets, packets, strict=True):
        names = tuple(scenario.nodes)
        works_at = _works_at(scenario, names)
        task = RealTask(names, works_at, contexts, packet, plan)
        found.append((_network(scenario, config, task, truths, fits or {}), task))
    return found


def _contexts(plan: Plan) -> tuple[TaskContext, ...]:
    """Return what every node works with once all samples have been given."""
    contexts = {
        name: TaskContext(
            name, node.data, probe_samples=node.work.probe_samples,
            probe_noise=node.work.probe_noise, secret=node.work.secret,
            contribution=node.work.contribution,
            test_set=TestSet(min_contributors=node.work.min_contributors),
        )
        for name, node in plan.nodes.items()
    }  # fmt: skip

    def give(giver: NodeId, to: NodeId, purpose: str) -> None:
        result = run_task(ContributeTask(purpose, to, 0), contexts[giver])
        assert isinstance(result, ContributeResult)
        samples: Samples = result.samples
        run_task(AdoptTask(giver, samples), contexts[to])

    for name, node in plan.nodes.items():
        for unit in node.core.policy.contributes_to:
            give(name, unit, VERIFY)
        for delegate in dict.fromkeys(data.delegate for data in node.core.data if data.delegate):
            give(name, delegate, TRAIN)
    return tuple(contexts.values())


def _works_at(scenario: Scenario, names: Sequence[NodeId]) -> tuple[int, ...]:
    at = {name: i for i, name in enumerate(names)}
    owners = {packet.owner for packet in scenario.packets}
    for name, node in scenario.nodes.items():
        if node.delegate and (Role.MPVU in node.roles or name in owners):
            allowed = "in an environment, no owner or MPVU has a delegate"
            raise ScenarioError(f"nodes.{name}.delegate", node.delegate, allowed)
    return tuple(at[scenario.nodes[name].delegate or name] for name in names)


def _truth(scenario: Scenario, skill: str) -> dict[NodeId, tuple[Floats, Floats]]:
    """Return each holder's training rows by class: labelled right, and wrong (as labelled)."""
    config = scenario.data.skills[skill]
    data = load_dataset(config.source.name, **{"root": scenario.data.root, **config.source.params})
    # The same deal of rows that show their true class.
    classes = data.y.reshape(-1, *[1] * (data.x.ndim - 1))
    shown = replace(data, x=np.broadcast_to(classes, data.x.shape).astype(np.float32))
    dealt = spread_rows(
        skill, shown, config.partition,
        [replace(part, drift=0.0) for part in parts_of(scenario, skill)],
        held_out=config.held_out, reference=config.reference, test=config.test,
        seed=scenario.seed,
    )  # fmt: skip
    found = {}
    for name, held in dealt.nodes.items():
        true = np.rint(held.train_x.reshape(held.samples, -1)[:, :1]).astype(np.int64)[:, 0]
        right = true == held.train_y
        clean, wrong = (
            np.bincount(held.train_y[rows], minlength=held.num_classes).astype(np.float64)
            for rows in (right, ~right)
        )
        found[NodeId(name)] = clean, wrong
    return found


def _network(
    scenario: Scenario,
    config: PacketConfig,
    task: RealTask,
    truths: Mapping[str, Mapping[NodeId, tuple[Floats, Floats]]],
    fits: Mapping[str, str],
) -> KnowledgeNetwork:
    plan, names, packet = task.plan, task.names, task.packet
    requirement = config.requirement
    skills = tuple(target.skill for target in requirement)
    shape = len(names), len(skills), max(_classes(plan, skill) for skill in skills)
    told = {
        (name, item.skill): item
        for name, node in plan.nodes.items() for item in node.core.data
    }  # fmt: skip
    size, probe = _sizes(packet.payload.manifest, config)
    clean, wrong, shown = (np.zeros(shape) for _ in range(3))
    samples, quality = np.zeros(shape[:2]), np.ones(shape[:2])
    age = np.full(shape[:2], math.inf)
    for i, name in enumerate(names):
        for t, skill in enumerate(skills):
            item = told.get((name, skill))
            if item is None or not item.samples:
                continue
            right, false = truths[skill][name]
            clean[i, t, : len(right)], wrong[i, t, : len(false)] = right, false
            shown[i, t, : len(item.labels)] = item.labels
            samples[i, t], quality[i, t], age[i, t] = item.samples, item.quality, item.freshness_s
    at = np.array(task.works_at)
    held = samples.sum(1)
    speed = np.array([plan.nodes[name].core.compute.samples_per_s for name in names])[at]
    limit = np.array([plan.nodes[name].core.policy.max_packet_bytes for name in names])
    has_data = (held > 0) & (speed > 0) & (np.minimum(limit, limit[at]) >= size)
    is_mpvu = np.array([
        Role.MPVU in scenario.nodes[name].roles
        and all(skill in context.test_set.sets for skill in skills)
        for name, context in zip(names, task.contexts, strict=True)
    ])  # fmt: skip
    if not is_mpvu.any():
        allowed = "an MPVU with test rows of all its skills is wanted"
        raise ScenarioError(f"packet {config.name!r}", ", ".join(skills), allowed)
    wires = Wires.of(scenario.network)
    found = _moved(ways(wires, size, probe), at)
    measuring = [c for c, is_unit in zip(task.contexts, is_mpvu, strict=True) if is_unit]
    method = method_of(config.method)[0]
    budget = config.budget
    sources = {skill: config.source.name for skill, config in scenario.data.skills.items()}
    learnt = [load_fit(fits.get(skill) or fit_of_source(sources[skill])) for skill in skills]
    return KnowledgeNetwork(
        name=f"{scenario.name}/{config.name}",
        position=np.array([site.position for site in scenario.network.sites]),
        neighbours=wires.joined,
        transfer_s=found.transfer_s,
        shown_transfer_s=found.shown_s,
        probe_s=found.probe_s,
        links=found.links,
        has_data=has_data,
        is_mpvu=is_mpvu,
        home=names.index(config.owner),
        clean=clean,
        wrong=wrong,
        shown=shown,
        shown_samples=samples,
        shows_labels=shown.sum(2) > 0,
        quality=(quality * samples).sum(1) / np.maximum(held, 1) + (held == 0),
        freshness_s=np.where(held > 0, age.min(1), 0.0),
        probe_allowed=np.array([
            plan.nodes[name].core.policy.probe is not ProbeMode.NONE
            and probe <= plan.nodes[name].core.probe_max_bytes
            for name in names
        ]),
        samples_per_s=np.where(speed > 0, speed, 1.0),
        shown_per_s=np.where(speed > 0, speed, 1.0),
        joules_per_sample=np.array(
            [plan.nodes[name].core.compute.joules_per_sample for name in names]
        )[at],
        queue=np.zeros(len(names)),
        down=_outages(scenario, names) - config.after_s,
        classes=np.array([_classes(plan, skill) for skill in skills]),
        target=np.array([target.value for target in requirement]),
        reference=np.array([len(plan.reference.get(s, ((), ()))[1]) for s in skills]),
        test=np.array([min(len(c.test_set.sets[s][1]) for c in measuring) for s in skills]),
        epochs=float(getattr(method, "epochs", 1.0)),
        budget=np.array([
            budget.hops, min(budget.seconds, config.deadline_s), budget.bytes, budget.joules
        ]),
        size_bytes=size,
        probe_bytes=probe,
        dynamics=tuple(
            replace(f.dynamics, start=1 / _classes(plan, skill))
            for f, skill in zip(learnt, skills, strict=True)
        ),
        layout=Layout(scenario.network.sites, scenario.topology.edges),
        skills=skills,
        fit_epochs=learnt[0].epochs,
    )  # fmt: skip


def _classes(plan: Plan, skill: str) -> int:
    return max(node.data.skills[skill].num_classes for node in plan.nodes.values()
               if skill in node.data.skills)  # fmt: skip


def _sizes(manifest: Manifest, config: PacketConfig) -> tuple[float, float]:
    """Return the bytes of a packet on its way, and of a probe's tensors."""
    model = sum(t.size for t in manifest.tensors if t.name.startswith(MODEL))
    trusted = sum(t.size for t in manifest.tensors if t.name.startswith(REFERENCE))
    # The weights of the last visits travel along once there were any.
    past = int(config.method.params.get("average_last", 0))
    return manifest.total + (past * model if past > 1 else 0), float(model + trusted)


def _moved(found: Ways, at: Ints) -> Ways:
    """Return the ways between nodes whose data are worked on at `at`."""
    grid = np.ix_(at, at)
    return Ways(found.transfer_s[grid], found.shown_s[grid], found.probe_s[grid], found.links[grid])


def _outages(scenario: Scenario, names: Sequence[NodeId]) -> Floats:
    down = np.full((len(names), 2), np.inf)
    for fault in scenario.faults:
        if fault.kind is FaultKind.CRASH and not fault.on:
            down[names.index(fault.node)] = fault.after_s, fault.after_s + fault.for_s
    return down
