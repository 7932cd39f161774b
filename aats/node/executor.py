"""Runs tasks outside the event loop, each in a process of its own with a time and memory limit.

Whatever a method does (raise, hang, exhaust memory, crash the interpreter) comes back as a
`TaskError`, which the node turns into a refused visit.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from aats.errors import LocalError, WireError
from aats.ids import NodeId
from aats.node.events import TaskFailed, TaskFinished, TaskSpoke
from aats.node.forkserver import ForkServer, ForkServerLost
from aats.node.tasks import Lost, Told
from aats.node.worker import LENGTH, Job, child_main, encode_job, preload_data
from aats.wire import decode_event, encode_told

MAX_ANSWER_BYTES = 1 << 28
"""A minibatch of raw samples is the largest answer."""
MAX_TOLD_BYTES = 1 << 28
"""Frames that wait for a task to take them in."""
MAX_TOLD_BY_ONE = MAX_TOLD_BYTES // 4
"""The same of one node; whoever sends more is lost to the task."""
_READ_BYTES = 1 << 18
ASKED = frozenset({"ProbeTask", "BatchTask", "AdoptTask", "ContributeTask"})
"""Kinds of tasks that nodes ask of each other."""


FOLLOWING = "FollowTask"
"""Kind of the tasks that other nodes' visits wait for. Their core bounds them; in line behind a
visit that leads, two nodes could wait for each other for ever."""


class TaskError(LocalError):
    """A task crashed, hung past its limit, ran out of memory or raised."""


@dataclass(slots=True)
class _Child:
    """A process that waits for a job or works on one."""

    name: str
    channel: socket.socket
    code: int | None = None
    """Exit status, once it has ended."""


class Line:
    """What goes between a node and one of its tasks while that runs.

    Args:
        hear: Takes what the task says.
    """

    def __init__(self, hear: Callable[[TaskSpoke], None]) -> None:
        self.hear = hear
        self._told: asyncio.Queue[tuple[NodeId, bytes]] = asyncio.Queue()
        self._waiting_bytes: Counter[NodeId] = Counter()
        self._flooding: set[NodeId] = set()

    def tell(self, told: Told) -> bool:
        """Put something in line for the task, which may not have begun.

        Returns:
            False if too much waits already: it takes in too little of what others send it. Of
            one sender alone that is the sender's fault: it is lost.
        """
        node = told.node
        if node in self._flooding:
            return True
        data = encode_told(told)
        if self._waiting_bytes[node] + len(data) > MAX_TOLD_BY_ONE:
            self._flooding.add(node)
            data = encode_told(Lost(node))
        self._waiting_bytes[node] += len(data)
        self._told.put_nowait((node, data))
        return self._waiting_bytes.total() <= MAX_TOLD_BYTES

    async def write(self, channel: socket.socket) -> None:
        """Write what the task is told until cancelled."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):  # its end is seen by who reads
            while True:
                node, data = await self._told.get()
                await loop.sock_sendall(channel, LENGTH.pack(len(data)) + data)
                self._waiting_bytes[node] -= len(data)


class Executor:
    """Runs jobs in processes forked from a worker zygote.

    One process is forked ahead and waits for the next job, so that a job need not wait for it.

    Args:
        server: The zygote, from `fork_zygote` or `ForkServer.spawn("worker")`.
        slots: Tasks for packets, and again for other nodes' requests, that run at the same time
            for one node; others wait.
    """

    def __init__(self, server: ForkServer, *, slots: int = 1) -> None:
        self._server = server
        self._slots: defaultdict[tuple[NodeId, bool], asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(slots)
        )
        """By node, and apart for what others ask: their probes must not hold up its packets."""
        self._cores = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._numbers = itertools.count(1)
        self._children: dict[str, _Child] = {}
        self._ended = asyncio.Event()
        self._spare: _Child | None = None

    def start(self) -> None:
        """Begin to listen to the zygote; tasks wait until it is ready."""
        self._server.attach(self._on_exit)
        self._spare = self._fork()

    async def close(self) -> None:
        """Kill running tasks and the zygote."""
        await self._server.close()
        for child in self._children.values():
            child.channel.close()

    async def run(
        self,
        job: Job,
        timeout_s: float,
        started: Callable[[], None] = lambda: None,
        line: Line | None = None,
    ) -> TaskFinished:
        """Run one job and return its outcome; cancelling it kills the process.

        Args:
            job: What to do.
            timeout_s: From the moment the process gets the job, not from the call.
            started: Called when the process has its job.
            line: Between the task and its node; None for a task that says nothing but its answer.

        Raises:
            TaskError: Whatever went wrong, in words.
        """
        slot: AbstractAsyncContextManager[None] = self._slots[job.node, job.kind in ASKED]
        cores: AbstractAsyncContextManager[None] = self._cores
        if job.kind == FOLLOWING:
            slot = cores = contextlib.nullcontext()
        async with slot:
            since = time.monotonic()
            async with cores:
                try:
                    done = await self._run(job, timeout_s, started, line)
                except ForkServerLost as e:
                    raise TaskError(f"{job.kind} could not start: {e}") from e
                finally:
                    with contextlib.suppress(ForkServerLost):
                        self._spare = self._spare or self._fork()
            if job.pace is not None:
                spent_s = time.monotonic() - since
                await asyncio.sleep(min(done.spending.seconds, timeout_s) - spent_s)
                if done.spending.seconds > timeout_s:
                    raise _too_long(job, timeout_s)
            return done

    async def _run(
        self, job: Job, timeout_s: float, started: Callable[[], None], line: Line | None
    ) -> TaskFinished:
        if self._server.is_lost:
            self._server, self._spare = ForkServer.spawn("worker"), None
            self.start()
        await self._server.ready()
        child, self._spare = self._spare or self._fork(), None
        try:
            async with asyncio.timeout(timeout_s):
                data = await _exchange(child.channel, job, started, line)
                while data is None and child.code is None:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError as e:
            raise _too_long(job, timeout_s) from e
        finally:
            child.channel.close()
            self._server.kill(child.name)
        if data is None:
            raise TaskError(f"{job.kind} crashed: its process {_end_of(child.code or 0)}")
        return self._outcome(job, data)

    def _fork(self) -> _Child:
        name = f"task-{next(self._numbers)}"
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        child = _Child(name, ours)
        with theirs:
            self._server.start(name, name, [theirs.fileno()])
        self._children[name] = child
        return child

    def _on_exit(self, name: str, code: int) -> None:
        child = self._children.pop(name)
        child.code = code
        self._ended.set()
        if child is self._spare:
            child.channel.close()
            self._spare = None

    def _outcome(self, job: Job, data: bytes) -> TaskFinished:
        try:
            event = decode_event(data)
        except WireError as e:
            raise TaskError(f"{job.kind} answered what is no result: {e}") from e
        match event:
            case TaskFinished(task=number) if number == job.number:
                return event
            case TaskFailed(reason=reason):
                raise TaskError(f"{job.kind} failed: {reason}")
            case _:
                raise TaskError(f"{job.kind} answered with the result of something else")


def fork_zygote(directories: Iterable[Path]) -> ForkServer:
    """Return a zygote forked from this process, with the data of these nodes in memory.

    Call it before anything in this process starts a thread or opens a socket context.
    """
    for directory in directories:
        preload_data(directory)
    return ForkServer.fork(child_main)


async def _exchange(
    channel: socket.socket, job: Job, started: Callable[[], None], line: Line | None
) -> bytes | None:
    """Send a job and return its answer; None if the process has closed its end before."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        await loop.sock_sendall(channel, encode_job(job))
        started()
        if line is None:
            return await anext(_messages(channel, job), None)
        writer = asyncio.create_task(line.write(channel))
        try:
            async for data in _messages(channel, job):
                event = _spoken(job, data)
                if event is None:
                    return data
                line.hear(event)
        finally:
            writer.cancel()
    return None


async def _messages(channel: socket.socket, job: Job) -> AsyncIterator[bytes]:
    """Yield what a process says, message by message, until it closes its end."""
    loop, data, size = asyncio.get_running_loop(), bytearray(), -1
    while chunk := await loop.sock_recv(channel, _READ_BYTES):
        data += chunk
        while True:
            if size < 0 and len(data) >= LENGTH.size:
                size = LENGTH.unpack_from(data)[0]
                del data[: LENGTH.size]
            if size > MAX_ANSWER_BYTES:
                raise TaskError(f"{job.kind} answered {size} bytes, not {MAX_ANSWER_BYTES}")
            if size < 0 or len(data) < size:
                break
            yield bytes(data[:size])
            del data[:size]
            size = -1


def _spoken(job: Job, data: bytes) -> TaskSpoke | None:
    """Return what a task says for another node; None for its answer, whatever that is."""
    try:
        event = decode_event(data)
    except WireError:
        return None
    return event if isinstance(event, TaskSpoke) and event.task == job.number else None


def _too_long(job: Job, timeout_s: float) -> TaskError:
    return TaskError(f"{job.kind} ran longer than {timeout_s:g} s and was stopped")


def _end_of(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code} and no answer"
