"""What is known of a scenario's packet before it runs, for `aats.control.method`."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from statistics import fmean
from typing import Any

from aats.advert import DataAdvert, Role
from aats.compose import Plan, compose, first_payload
from aats.config import Scenario
from aats.config.scenario import PacketConfig
from aats.control.method import Setting, setting_of
from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.blocks import blocks_of, size_of
from aats.learning.method import Stop, method_of
from aats.learning.models import build
from aats.packet import Architecture
from aats.payload import MODEL

CONVEX = ("logistic",)
"""Architectures whose loss is convex in the weights."""


def setting_for(scenario: Scenario, number: int = 0, **known: float | bool) -> Setting:
    """Return what a scenario's data, adverts and a packet's mandate tell of the packet's task.

    Args:
        scenario: The scenario.
        number: Of the packet.
        known: Fields of `Setting` that nothing in a scenario tells; they win.

    Raises:
        DataError: If data are missing or the deal is impossible.
        ModelError: If the model cannot be built.
    """
    packet, plan = scenario.packets[number], compose(scenario)
    adverts = _adverts(packet, plan)
    manifest = first_payload(scenario, number).manifest
    memory = {name: node.core.compute.memory_bytes for name, node in plan.nodes.items()}
    servers = [n for n, node in plan.nodes.items() if Role.COMPUTE in node.core.roles]
    budget, visits = packet.budget.cost, _visits(packet)
    passes = min(visits, budget.hops) / max(1, len(adverts))
    told: dict[str, Any] = {
        "model_bytes": float(sum(t.size for t in manifest.tensors if t.name.startswith(MODEL))),
        "local_steps": _local_steps(packet, plan, adverts),
        "convex": packet.model.name in CONVEX,
        "memory_bytes": min((memory[n] for n in adverts if memory[n]), default=inf),
        "server_bytes": float(max((memory[n] for n in servers), default=0)),
        "slice_share": slice_share(packet.model),
        "budget_bytes": budget.bytes,
        "passes": passes,
    }
    if passes < inf:
        told["rounds"] = max(1.0, passes)
    return setting_of(adverts, **{**told, **known})


def slice_share(architecture: Architecture) -> float:
    """Return the largest part of a model that one visit of a Snake trains; 1 if it has no blocks.

    Raises:
        ModelError: If the model cannot be built.
    """
    model = build(architecture)
    try:
        sizes = [size_of(model, block) for block in blocks_of(model)]
    except ModelError:
        return 1.0
    if len(sizes) < 3:
        return 1.0
    return (sizes[0] + max(sizes[1:-1]) + sizes[-1]) / sum(sizes)


def _adverts(packet: PacketConfig, plan: Plan) -> dict[NodeId, list[DataAdvert]]:
    wanted = {target.skill for target in packet.requirement}
    held = {
        node: [advert for advert in found.core.data if advert.skill in wanted]
        for node, found in plan.nodes.items()
    }
    return {node: adverts for node, adverts in held.items() if adverts}


def _visits(packet: PacketConfig) -> float:
    return method_of(packet.method)[1].visits or inf


def _local_steps(packet: PacketConfig, plan: Plan, nodes: Mapping[NodeId, object]) -> float:
    """Return the mean steps of a visit, as the packet's own method plans them."""
    method = method_of(packet.method)[0]
    wanted = {target.skill for target in packet.requirement}
    planned = []
    for node in nodes:
        held = plan.nodes[node].data.skills
        found = method.plan(Stop(node, 0, 0, {s: d for s, d in held.items() if s in wanted}))
        if found:
            planned.append(float(found.total))
    return fmean(planned) if planned else 0.0
