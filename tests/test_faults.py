"""Faults happen at their time or at their event."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf

import pytest

from aats.config import FaultConfig, FaultKind
from aats.errors import ScenarioError
from aats.faults import FaultPlan, check_live
from aats.ids import NodeId


class World:
    """Notes what is broken, and lets its clock be moved."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, list[str]()
        self._planned: list[tuple[float, Callable[[], None]]] = []

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        self._planned.append((self.now + after_s, act))

    def run(self, until: float) -> None:
        while due := sorted((p for p in self._planned if p[0] <= until), key=lambda p: p[0]):
            self._planned.remove(due[0])
            self.now = due[0][0]
            due[0][1]()

    def crash(self, node: NodeId) -> None:
        self.done.append(f"{self.now:g} crash {node}")

    def restart(self, node: NodeId) -> None:
        self.done.append(f"{self.now:g} restart {node}")

    def partition(self, nodes: Collection[NodeId], for_s: float) -> None:
        self.done.append(f"{self.now:g} partition {','.join(nodes)} {for_s:g}")

    def lose(self, loss: float, link: tuple[NodeId, NodeId] | None, for_s: float) -> None:
        self.done.append(f"{self.now:g} lose {loss:g} {link} {for_s:g}")


A, B = NodeId("a"), NodeId("b")


def test_a_fault_with_a_time_happens_then_and_ends() -> None:
    world = World()
    plan = FaultPlan(
        [
            FaultConfig(FaultKind.CRASH, after_s=2.0, node=A, for_s=3.0),
            FaultConfig(FaultKind.PARTITION, after_s=1.0, nodes=(A,), for_s=4.0),
            FaultConfig(FaultKind.LOSS, after_s=1.5, loss=0.5, link=(A, B)),
        ],
        world,
    )
    plan.start()
    world.run(inf)
    assert world.done == ["1 partition a 4", "1.5 lose 0.5 ('a', 'b') inf", "2 crash a",
                          "5 restart a"]  # fmt: skip


def test_a_fault_on_an_event_takes_the_node_of_its_nth() -> None:
    world = World()
    plan = FaultPlan([FaultConfig(FaultKind.CRASH, on="visit.started", count=2)], world)
    plan.start()
    for node in (A, B, A):
        plan.event({"event": "visit.started", "node": node})
    world.run(inf)
    assert world.done == ["0 crash b"]


def test_a_fault_on_an_event_of_a_node_waits_for_that_node() -> None:
    world = World()
    plan = FaultPlan([FaultConfig(FaultKind.CRASH, on="verdict", node=B, after_s=1.0)], world)
    plan.event({"event": "verdict", "node": A})
    plan.event({"event": "verdict", "node": B})
    world.run(inf)
    assert world.done == ["1 crash b"]


def test_the_live_world_refuses_what_it_cannot_break() -> None:
    check_live([FaultConfig(FaultKind.CRASH, node=A)])
    with pytest.raises(ScenarioError, match=r"faults\[0\].kind: 'partition'"):
        check_live([FaultConfig(FaultKind.PARTITION, nodes=(A,))])
