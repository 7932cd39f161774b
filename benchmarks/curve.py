"""One packet in the simulated world: how good its model is, against what it has spent so far.

Used by the benchmarks that compare ways of learning. The model is measured on rows that no node
holds whenever the trunk of the packet saves a new one; the measuring costs the packet nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aats.compose import build_world, compose, measure_on
from aats.config.load import build
from aats.ids import Version
from aats.node.events import CustodyRow, TaskFinished
from aats.packet import Header
from aats.payload import Payload

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""What every way of learning may choose from, wherever several are compared."""
TUNING_SEED = 100
"""On which it chooses; never reported."""


@dataclass(frozen=True, slots=True)
class Point:
    """What a packet had spent when its model was this good."""

    accuracy: float
    """On rows that no node holds, mean over the skills."""
    bytes: float
    """Sent for the packet and what it forked into, probes and frames included."""
    seconds: float
    """Virtual, since it left its owner."""
    flops: float
    """Floating-point operations of training and judging, all nodes together."""
    visits: int


@dataclass(slots=True)
class Curve:
    """One packet's journey."""

    points: list[Point] = field(default_factory=list)
    header: Header | None = None
    payload: Payload | None = None
    """As it came home; None if it did not."""

    @property
    def final(self) -> Point:
        """The last point, its accuracy the mean of the last tenth: one visit weighs little."""
        last = self.points[-max(1, len(self.points) // 10) :]
        accuracy = sum(p.accuracy for p in last) / len(last)
        end = self.points[-1]
        return Point(accuracy, end.bytes, end.seconds, end.flops, end.visits)

    def first_at(self, accuracy: float) -> Point | None:
        """Return the first point that is at least so good."""
        return next((p for p in self.points if p.accuracy >= accuracy), None)


def mesh(
    nodes: Mapping[str, Any], skill: Mapping[str, Any], packet: Mapping[str, Any], *, root: str,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Return a scenario of one skill and one packet, its nodes in a full mesh of equal links.

    Args:
        nodes: Their tables by name; a node works along with packets elsewhere if asked.
        skill: Where its data come from; the skill has the name of the packet's target.
        packet: The packet.
        root: Folder with data files.
        seed: Of the scenario.
    """
    return {
        "scenario": {"name": "mesh", "seed": seed, "limit_s": 1e6},
        "topology": {"edges": [[a, b] for i, a in enumerate(nodes) for b in [*nodes][:i]]},
        "links": {"bandwidth_mbps": 100, "latency_ms": 5},
        "node": {"samples_per_s": 2000, "contributes_to": [], "streams": True},
        "nodes": nodes,
        "data": {"root": root, "skills": {packet["requirement"][0]["skill"]: skill}},
        "packets": [packet],
    }


def travel(tables: Mapping[str, Any], name: str) -> Curve:
    """Run a scenario of one packet on the virtual clock and return its curve.

    Args:
        tables: The scenario, as its TOML file would have it.
        name: For messages.
    """
    scenario = build(tables, name=name)
    plan = compose(scenario)
    curve, flops, visits = Curve(), 0.0, 0
    seen: set[Version] = set()
    world = build_world(scenario, plan, lambda _: None)

    def hook(node: Any, what: object) -> None:
        nonlocal flops, visits
        if isinstance(what, TaskFinished):
            flops += getattr(what.result, "flops", 0.0)
            visits += hasattr(what.result, "steps") and what.result.steps > 0
            return
        row: CustodyRow | None = getattr(what, "row", None)
        header = row.header if row else None
        if row is None or header is None or header.branch or header.version in seen:
            return
        payload = node.store.payloads.get(row.key)
        if payload is None or payload.manifest != header.manifest:
            return
        seen.add(header.version)
        found = measure_on(header, payload, plan.test)
        accuracy = sum(f["value"] for f in found.values()) / len(found)
        curve.points.append(Point(accuracy, header.spent.bytes, world.now, flops, visits))

    world.hooks.append(hook)
    world.start()
    world.run(scenario.scenario.limit_s, lambda: bool(world.deliveries))
    for delivery in world.deliveries:
        curve.header, curve.payload = delivery.header, delivery.payload
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{name}: {curve.final.accuracy:.3f} after {visits} visits")
    return curve
