"""From a scenario to its parts, the same for the live and the simulated world.

`compose` deals the data out and says what each node is; `build_packets` makes the packets. Both
depend on nothing but the scenario and its seed: what differs between the worlds is who moves
the bytes and whose clock it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aats.advert import ComputeAdvert, LinkAdvert, NodePolicy
from aats.config import HeldData, Scenario, SkillConfig
from aats.errors import LocalError, ModelError, ScenarioError, WireError
from aats.identity import Identity
from aats.ids import NodeId, new_packet_id
from aats.installed import load_agent, load_policy, load_rendezvous
from aats.learning.backend import backend_of
from aats.learning.evaluate import measure
from aats.learning.merge import merge_rule
from aats.learning.method import method_of, seed_of
from aats.learning.partition import Part, Spread, spread
from aats.learning.views import View, spread_views
from aats.learning.weights import initial_payload
from aats.node.core import NodeCore
from aats.node.desk import CoreConfig
from aats.node.pace import Pace
from aats.node.spec import WorkSettings
from aats.packet import Header, Plugin
from aats.payload import Payload
from aats.roles.data import Batch, NodeData
from aats.roles.mpvu import TestSet
from aats.roles.owner import make_packet
from aats.roles.runner import TaskContext
from aats.routing.rendezvous import merge_of
from aats.sim.link import LinkSpec
from aats.sim.network import SimulatedWorld, Sink
from aats.sim.node import NodeParts
from aats.sim.worker import worker_factory

ID_EPOCH_MS = 1_735_689_600_000
"""Time in the ids of a scenario's packets (2025-01-01): one seed gives the same ids in every
world, so that their ledgers can be compared."""
NOTHING: Batch = (np.zeros((0, 1), np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node: what its core is told, its data, its links, how its tasks work."""

    core: CoreConfig
    data: NodeData
    links: tuple[LinkAdvert, ...]
    work: WorkSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario's nodes, and the data that no node holds."""

    nodes: dict[NodeId, NodePlan]
    reference: dict[str, Batch]
    """Per skill, the small trusted set that packets carry."""
    test: dict[str, Batch]
    """Per skill, rows nobody holds, for an independent measurement."""


def compose(scenario: Scenario) -> Plan:
    """Deal the data out and return what each node is.

    Raises:
        DataError: If data are missing or the deal is impossible.
    """
    dealt = {
        skill: _spread(scenario, skill, config) for skill, config in scenario.data.skills.items()
    }
    nodes = {name: _node(scenario, name, dealt) for name in scenario.nodes}
    return Plan(
        nodes,
        {skill: found.reference for skill, found in dealt.items() if len(found.reference[1])},
        {skill: found.test for skill, found in dealt.items()},
    )


def _spread(scenario: Scenario, skill: str, config: SkillConfig) -> Spread:
    if config.views:
        views: dict[str, View] = {
            view.node: View(name, view.transform, view.labels, view.missing)
            for name, view in config.views.items()
        }
        return spread_views(
            skill, config.source, views, parts_of(scenario, skill), held_out=config.held_out,
            reference=config.reference, test=config.test, root=scenario.data.root,
            seed=scenario.seed,
        )  # fmt: skip
    return spread(
        skill,
        config.source,
        config.partition,
        parts_of(scenario, skill),
        held_out=config.held_out,
        reference=config.reference,
        test=config.test,
        root=scenario.data.root,
        seed=scenario.seed,
    )


def parts_of(scenario: Scenario, skill: str) -> list[Part]:
    """Return what each holder of a skill shall get of its data."""

    def part(node: NodeId) -> Part:
        held = scenario.nodes[node].data.get(skill, HeldData())
        return Part(
            node, samples=held.samples, share=held.share, group=held.group, mix=held.mix,
            wrong_labels=held.wrong_labels, drift=held.drift, freshness_s=held.freshness_s,
            quality=held.quality,
        )  # fmt: skip

    return [part(node) for node in scenario.holders(skill)]


def _node(scenario: Scenario, name: NodeId, dealt: Mapping[str, Spread]) -> NodePlan:
    config = scenario.nodes[name]
    held = () if config.withdrawn else dealt.values()
    skills = [found.nodes[name] for found in held if name in found.nodes]
    data = NodeData.of(*skills, show_labels=config.show_labels)
    core = CoreConfig(
        node=name,
        roles=config.roles,
        data=data.adverts(config.delegate),
        compute=ComputeAdvert(
            config.samples_per_s,
            int(config.memory_mb * 1e6),
            joules_per_sample=config.joules_per_sample,
        ),
        policy=NodePolicy(
            config.probe,
            int(config.max_packet_mb * 1e6),
            contributes_to=config.contributes_to,
            streams=config.streams,
        ),
        labels={"label": config.label} if config.label else {},
        query_budget=scenario.mpvu.query_budget,
        task_timeout_s=scenario.training.timeout_s,
    )
    work = WorkSettings(
        secret=seed_of("node", f"{scenario.seed}/{name}"),
        contribution=scenario.mpvu.contribution,
        min_contributors=scenario.mpvu.min_contributors,
        memory_bytes=int(scenario.training.memory_mb * 1e6),
    )
    links = tuple(
        LinkAdvert(peer, link.bandwidth_bps, link.latency_s, link.loss)
        for peer, link in scenario.network.neighbours(name).items()
    )
    return NodePlan(core, data, links, work)


@dataclass(frozen=True, slots=True)
class PacketPlan:
    """A packet ready to be submitted, and when."""

    header: Header
    payload: Payload
    after_s: float


def build_packets(
    scenario: Scenario,
    plan: Plan,
    identity: Callable[[NodeId], Identity],
    created: float,
    id_ms: int = ID_EPOCH_MS,
) -> list[PacketPlan]:
    """Return the scenario's packets, each mandate signed by its owner.

    Args:
        scenario: The scenario.
        plan: What `compose` made of it.
        identity: Returns an owner's key.
        created: Now, in seconds of the world's clock.
        id_ms: The time in the packets' ids, milliseconds.

    Raises:
        ScenarioError: If a model cannot be built; names the packet.
    """
    packets = []
    for number, config in enumerate(scenario.packets):
        owner = identity(config.owner)
        seed = _packet_seed(scenario, number)
        # What is wrong with a packet is told now, not at its first stop.
        place = f"packets[{number}]"
        wanted: list[tuple[str, Plugin, Callable[[Plugin], object]]] = [
            ("policy", config.policy, load_policy),
            ("method", config.method, method_of),
        ]
        if config.rendezvous:
            wanted.append(("rendezvous", config.rendezvous, _check_rendezvous))
        for key, plugin, load in wanted:
            try:
                load(plugin)
            except LocalError as error:
                raise ScenarioError(f"{place}.{key}", plugin.name, str(error)) from error
        try:
            method_of(config.method)[2].check(config.model)
        except ModelError as error:
            raise ScenarioError(f"{place}.model", config.model.name, str(error)) from error
        skills = {t.skill for t in config.requirement}
        try:
            header, payload = make_packet(
                owner,
                config.model,
                config.requirement,
                created=created,
                kind=config.kind,
                method=config.method,
                policy=config.policy,
                rendezvous=config.rendezvous,
                budget=config.budget.cost,
                deadline=created + config.after_s + config.deadline_s,
                reference={s: b for s, b in plan.reference.items() if s in skills},
                weights=Path(config.weights) if config.weights else None,
                seed=seed,
                label=config.name,
                packet=new_packet_id(id_ms, random.Random(seed)),
            )
            measure_on(header, payload, {s: b for s, b in plan.test.items() if s in skills})
        except ModelError as error:
            raise ScenarioError(f"{place}.model", config.model.name, str(error)) from error
        except WireError as error:
            raise ScenarioError(place, config.name, f"it cannot travel: {error}") from error
        packets.append(PacketPlan(header, payload, config.after_s))
    return packets


def _check_rendezvous(plugin: Plugin) -> None:
    merge_rule(merge_of(load_rendezvous(plugin)))


def _packet_seed(scenario: Scenario, number: int) -> int:
    own = scenario.packets[number].seed
    which = f"seed {own}" if own else str(number)
    return seed_of("packet", f"{scenario.seed}/{which}")


def first_payload(scenario: Scenario, number: int) -> Payload:
    """Return the model that a scenario's packet starts with, without its reference set."""
    config = scenario.packets[number]
    weights = Path(config.weights) if config.weights else None
    return initial_payload(config.model, _packet_seed(scenario, number), weights=weights)


def measure_on(
    header: Header, payload: Payload, data: Mapping[str, Batch]
) -> dict[str, dict[str, float | int]]:
    """Return the values of a packet's model on data, by skill of its requirement.

    Raises:
        ModelError: If the model cannot take such rows, or has another number of classes.
    """
    architecture = header.mandate.architecture
    backend = backend_of(architecture)
    found: dict[str, dict[str, float | int]] = {}
    with backend.scope(0):
        model = backend.load(architecture, payload)
        for target in header.mandate.requirement:
            x, y = data.get(target.skill, NOTHING)
            if len(y):
                measured = measure(
                    target.metric, backend.log_probabilities(model, x, target.skill), y
                )
                found[target.skill] = {"value": measured.value, "n": measured.n}
    return found


def simulated_identity(scenario: Scenario, node: NodeId) -> Identity:
    """Return the key a node has in the simulated world: it follows from the seed."""
    return Identity.from_seed(node, f"{scenario.seed}/{node}".encode())


def build_world(
    scenario: Scenario, plan: Plan | None = None, sink: Sink | None = None
) -> SimulatedWorld:
    """Return the simulated world of a scenario, its packets and faults planned, not started.

    Args:
        scenario: The scenario.
        plan: What `compose` made of it, if that was done already.
        sink: Takes the trace, line by line.
    """
    plan = plan or compose(scenario)
    identities = {name: simulated_identity(scenario, name) for name in plan.nodes}
    keys = {name: identity.public_key for name, identity in identities.items()}

    def parts(name: NodeId, node: NodePlan) -> NodeParts:
        core = replace(node.core, known_keys=keys)
        context = TaskContext(
            name, node.data, probe_samples=node.work.probe_samples,
            probe_noise=node.work.probe_noise, secret=node.work.secret,
            contribution=node.work.contribution,
            test_set=TestSet(min_contributors=node.work.min_contributors),
        )  # fmt: skip
        return NodeParts(
            name,
            lambda: NodeCore(core, identities[name], load_policy, load_agent, load_rendezvous),
            worker_factory(context),
            Pace.of(core.compute),
        )

    sim = scenario.sim
    world = SimulatedWorld(
        [parts(name, node) for name, node in plan.nodes.items()],
        [
            LinkSpec(
                link.a, link.b, link.bandwidth_bps, link.latency_s,
                loss=min(0.95, link.loss + sim.loss), duplicate=sim.duplication,
                jitter_s=sim.jitter_ms * 1e-3, reorder=sim.reorder,
            )
            for link in scenario.network.links
        ],
        seed=scenario.seed,
        sink=sink,
    )  # fmt: skip
    for packet in build_packets(scenario, plan, identities.__getitem__, 0.0):
        owner = packet.header.mandate.owner.node
        world.submit(owner, packet.header, packet.payload, packet.after_s)
    return world
