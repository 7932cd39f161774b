"""The worker of a simulated node: the same tasks as live, in line, on one deterministic thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from aats.learning.stream import Player, Receive, Send
from aats.node.tasks import (
    FollowTask,
    MergeResult,
    Result,
    Task,
    Told,
    VerifyResult,
    VisitResult,
    VisitTask,
)
from aats.payload import Payload
from aats.roles.mpvu import TestSet
from aats.roles.runner import TaskContext, player_of, run_task
from aats.sim.talk import Work


class TaskWorker:
    """Runs tasks with `aats.roles.runner.run_task`.

    Args:
        context: What the node has to work with; its memory of what others gave is kept here.
    """

    def __init__(self, context: TaskContext) -> None:
        self._context = context

    def __call__(self, task: Task, payload: Payload, others: Sequence[Payload] = ()) -> Work:
        """Run a task; the arena it allocates, if any, becomes the packet's new payload."""
        context, arenas = self._prepared(payload, others)
        return _work(run_task(task, context), arenas)

    def talk(self, task: VisitTask | FollowTask, payload: Payload) -> TaskTalk:
        """Return a task that talks with other nodes, not started."""
        return TaskTalk(task, *self._prepared(payload))

    def _prepared(
        self, payload: Payload, others: Sequence[Payload] = ()
    ) -> tuple[TaskContext, list[memoryview]]:
        arenas: list[memoryview] = []

        def allocate(total: int) -> memoryview:
            arenas.append(memoryview(bytearray(total)))
            return arenas[-1]

        # A writable payload would be trained in place, and this one is the store's.
        kept, *beside = (Payload(p.manifest, p.arena.toreadonly()) for p in (payload, *others))
        context = replace(self._context, payload=kept, others=tuple(beside), allocate=allocate)
        return context, arenas


class TaskTalk:
    """A task's script, step by step: see `aats.sim.talk.Talk`."""

    def __init__(
        self, task: VisitTask | FollowTask, context: TaskContext, arenas: list[memoryview]
    ) -> None:
        self._task, self._context, self._arenas = task, context, arenas
        self._player: Player[Result] | None = None

    @property
    def player(self) -> Player[Result]:
        """The script, once it has begun."""
        assert self._player is not None, "the task has not begun"
        return self._player

    @property
    def waiting(self) -> Receive | None:
        """What it waits for."""
        return self.player.waiting

    @property
    def ended(self) -> bool:
        """Whether it is done."""
        return self.player.ended

    def start(self) -> list[Send]:
        """Run to the first wait."""
        self._player = player_of(self._task, self._context)
        return self._player.start()

    def take(self, told: Told) -> list[Send]:
        """Hand it what came."""
        return self.player.take(told)

    def time_out(self) -> list[Send]:
        """End its wait."""
        return self.player.time_out()

    def close(self) -> None:
        """Stop it, wherever it is."""
        if self._player is not None:
            self._player.close()

    def outcome(self) -> Work:
        """Return its result and the packet's new payload, if it made one."""
        return _work(self.player.outcome(), self._arenas)


def _work(result: Result, arenas: list[memoryview]) -> Work:
    if isinstance(result, VisitResult | MergeResult | VerifyResult) and result.manifest and arenas:
        return Work(result, Payload(result.manifest, arenas[-1]))
    return Work(result)


def worker_factory(context: TaskContext) -> Callable[[], TaskWorker]:
    """Return a maker of workers that start with what `context` has and nothing given by others."""

    def make() -> TaskWorker:
        empty = TestSet(min_contributors=context.test_set.min_contributors)
        return TaskWorker(replace(context, entrusted={}, test_set=empty))

    return make
