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
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from aats.errors import LocalError, WireError
from aats.ids import NodeId
from aats.node.events import TaskFailed, TaskFinished
from aats.node.forkserver import ForkServer, ForkServerLost
from aats.node.worker import Job, child_main, encode_job, preload_data
from aats.wire import decode_event

MAX_ANSWER_BYTES = 1 << 28
"""A minibatch of raw samples is the largest answer."""
_READ_BYTES = 1 << 18


class TaskError(LocalError):
    """A task crashed, hung past its limit, ran out of memory or raised."""


class Executor:
    """Runs jobs in processes forked from a worker zygote.

    Args:
        server: The zygote, from `fork_zygote` or `ForkServer.spawn("worker")`.
        slots: Tasks of one node that run at the same time; others wait.
    """

    def __init__(self, server: ForkServer, *, slots: int = 1) -> None:
        self._server = server
        self._slots: defaultdict[NodeId, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(slots)
        )
        self._cores = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._numbers = itertools.count(1)
        self._ended: dict[str, asyncio.Future[int]] = {}

    def start(self) -> None:
        """Begin to listen to the zygote; tasks wait until it is ready."""
        self._server.attach(self._on_exit)

    async def close(self) -> None:
        """Kill running tasks and the zygote."""
        await self._server.close()

    async def run(
        self, job: Job, timeout_s: float, started: Callable[[], None] = lambda: None
    ) -> TaskFinished:
        """Run one job and return its outcome; cancelling it kills the process.

        Args:
            job: What to do.
            timeout_s: From the start of the process, not from the call.
            started: Called when the process has its job.

        Raises:
            TaskError: Whatever went wrong, in words.
        """
        async with self._slots[job.node], self._cores:
            if self._server.is_lost:
                self._server = ForkServer.spawn("worker")
                self.start()
            try:
                await self._server.ready()
            except ForkServerLost as e:
                raise TaskError(f"{job.kind} could not start: {e}") from e
            return await self._run(job, timeout_s, started)

    async def _run(self, job: Job, timeout_s: float, started: Callable[[], None]) -> TaskFinished:
        name = f"{job.node}.{job.kind}.{next(self._numbers)}"
        ended = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                self._server.start(name, name, [theirs.fileno()])
            self._ended[name] = ended
            async with asyncio.timeout(timeout_s):
                data = await _exchange(ours, job, started)
                code = await ended
        except TimeoutError as e:
            raise TaskError(f"{job.kind} ran longer than {timeout_s:g} s and was stopped") from e
        except ForkServerLost as e:
            raise TaskError(f"{job.kind} could not start: {e}") from e
        finally:
            ours.close()
            if not ended.done():
                self._server.kill(name)
        return self._outcome(job, data, code)

    def _outcome(self, job: Job, data: bytearray, code: int) -> TaskFinished:
        if code or not data:
            raise TaskError(f"{job.kind} crashed: its process {_end_of(code)}")
        try:
            event = decode_event(bytes(data))
        except WireError as e:
            raise TaskError(f"{job.kind} answered what is no result: {e}") from e
        match event:
            case TaskFinished(task=number) if number == job.number:
                return event
            case TaskFailed(reason=reason):
                raise TaskError(f"{job.kind} failed: {reason}")
            case _:
                raise TaskError(f"{job.kind} answered with the result of something else")

    def _on_exit(self, name: str, code: int) -> None:
        ended = self._ended.pop(name, None)
        if ended is not None and not ended.done():
            ended.set_result(code)


def fork_zygote(directories: Iterable[Path]) -> ForkServer:
    """Return a zygote forked from this process, with the data of these nodes in memory.

    Call it before anything in this process starts a thread or opens a socket context.
    """
    for directory in directories:
        preload_data(directory)
    return ForkServer.fork(child_main)


async def _exchange(channel: socket.socket, job: Job, started: Callable[[], None]) -> bytearray:
    """Send a job and return all that comes back; a process that dies just ends the stream."""
    loop, data = asyncio.get_running_loop(), bytearray()
    with contextlib.suppress(ConnectionError):
        await loop.sock_sendall(channel, encode_job(job))
        started()
        while chunk := await loop.sock_recv(channel, _READ_BYTES):
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise TaskError(f"{job.kind} answered more than {MAX_ANSWER_BYTES} bytes")
    return data


def _end_of(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code} and no answer"
