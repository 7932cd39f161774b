"""The worker of a simulated node: the same tasks as live, in line, on one deterministic thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aats.node.tasks import Task, VisitResult
from aats.payload import Payload
from aats.roles.mpvu import TestSet
from aats.roles.runner import TaskContext, run_task
from aats.sim.node import Work


class TaskWorker:
    """Runs tasks with `aats.roles.runner.run_task`.

    Args:
        context: What the node has to work with; its memory of what others gave is kept here.
    """

    def __init__(self, context: TaskContext) -> None:
        self._context = context

    def __call__(self, task: Task, payload: Payload) -> Work:
        """Run a task; the arena it allocates, if any, becomes the packet's new payload."""
        arenas: list[memoryview] = []

        def allocate(total: int) -> memoryview:
            arenas.append(memoryview(bytearray(total)))
            return arenas[-1]

        # A writable payload would be trained in place, and this one is the store's.
        kept = Payload(payload.manifest, payload.arena.toreadonly())
        result = run_task(task, replace(self._context, payload=kept, allocate=allocate))
        if isinstance(result, VisitResult) and arenas:
            return Work(result, Payload(result.manifest, arenas[-1]))
        return Work(result)


def worker_factory(context: TaskContext) -> Callable[[], TaskWorker]:
    """Return a maker of workers that start with what `context` has and nothing given by others."""

    def make() -> TaskWorker:
        empty = TestSet(min_contributors=context.test_set.min_contributors)
        return TaskWorker(replace(context, entrusted={}, test_set=empty))

    return make
