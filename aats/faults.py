"""The faults of a scenario, brought about in either world at their time or at their event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from typing import Any, Protocol

from aats.config import FaultConfig, FaultKind
from aats.errors import ScenarioError
from aats.ids import NodeId


class Breakable(Protocol):
    """A running world that can be broken. Times in its own seconds from now."""

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        """Do something after a while."""

    def crash(self, node: NodeId) -> None:
        """Kill a node; it stays down."""

    def restart(self, node: NodeId) -> None:
        """Start a node that is down."""

    def partition(self, nodes: Collection[NodeId], for_s: float) -> None:
        """Cut every link between `nodes` and the rest."""

    def lose(self, loss: float, link: tuple[NodeId, NodeId] | None, for_s: float) -> None:
        """Let a link, or all, lose a share of their control messages."""


class FaultPlan:
    """Brings about the faults of a scenario in one world."""

    def __init__(self, faults: Iterable[FaultConfig], world: Breakable) -> None:
        self._faults, self._world = tuple(faults), world
        self._seen: Counter[tuple[str, str]] = Counter()

    def start(self) -> None:
        """Plan the faults that have a time; the run begins now."""
        for fault in self._faults:
            if not fault.on:
                self._plan(fault, fault.node)

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in a trace event, and plan the faults that wait for it."""
        name, node = str(event["event"]), str(event["node"])
        self._seen[name, node] += 1
        self._seen[name, ""] += 1
        for fault in self._faults:
            mine = fault.on == name and fault.node in ("", node)
            if mine and self._seen[name, fault.node] == fault.count:
                self._plan(fault, fault.node or NodeId(node))

    def _plan(self, fault: FaultConfig, node: NodeId) -> None:
        self._world.later(fault.after_s, lambda: self._break(fault, node))

    def _break(self, fault: FaultConfig, node: NodeId) -> None:
        world = self._world
        match fault.kind:
            case FaultKind.CRASH:
                world.crash(node)
                if fault.for_s < inf:
                    world.later(fault.for_s, lambda: world.restart(node))
            case FaultKind.RESTART:
                world.restart(node)
            case FaultKind.PARTITION:
                world.partition(fault.nodes, fault.for_s)
            case FaultKind.LOSS:
                world.lose(fault.loss, fault.link, fault.for_s)


def check_live(faults: Iterable[FaultConfig]) -> None:
    """Check that the faults can be brought about with real processes.

    Raises:
        ScenarioError: If one needs a simulated network.
    """
    for number, fault in enumerate(faults):
        if fault.kind not in (FaultKind.CRASH, FaultKind.RESTART):
            raise ScenarioError(
                f"faults[{number}].kind", fault.kind.value,
                "the live world knows crash and restart; run this one with --world sim",
            )  # fmt: skip
