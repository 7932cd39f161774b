"""A scenario on the virtual clock, from its first packet to its last, faults included."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection

from aats.compose import Plan, build_world
from aats.config import Scenario
from aats.faults import FaultPlan
from aats.ids import NodeId, PacketId
from aats.oam.view import Event
from aats.packet import Header
from aats.payload import Payload
from aats.sim.network import SimulatedWorld

Delivered = dict[PacketId, tuple[Header, Payload]]


def simulate(
    scenario: Scenario,
    plan: Plan,
    told: Callable[[Event], None],
    line: Callable[[str], object] | None = None,
) -> Delivered:
    """Run a scenario until its packets are home or its time is up; return those that are home.

    Args:
        scenario: What to run.
        plan: What `aats.compose.compose` made of it.
        told: Told of every event.
        line: Given every line of the trace, byte for byte the same for one seed.
    """
    breaker: list[FaultPlan] = []

    def sink(text: str) -> None:
        if line:
            line(text)
        event = json.loads(text)
        told(event)
        for faults in breaker:
            faults.event(event)

    world = build_world(scenario, plan, sink)
    breaker.append(FaultPlan(scenario.faults, _Breaker(world)))
    world.start()
    breaker[0].start()
    wanted = len(scenario.packets)
    world.run(
        scenario.scenario.limit_s,
        lambda: len({d.header.id for d in world.deliveries}) >= wanted,
    )
    return {d.header.id: (d.header, d.payload) for d in world.deliveries}


class _Breaker:
    """A simulated world as a fault plan sees it."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        self._world.kernel.after(after_s, act)

    def crash(self, node: NodeId) -> None:
        self._world.crash(node)

    def restart(self, node: NodeId) -> None:
        self._world.restart(node)

    def partition(self, nodes: Collection[NodeId], for_s: float) -> None:
        now = self._world.now
        self._world.partition(nodes, now, now + for_s)

    def lose(self, loss: float, link: tuple[NodeId, NodeId] | None, for_s: float) -> None:
        now, world = self._world.now, self._world
        world.lose(loss, [world.link(*link)] if link else world.links, now, now + for_s)
