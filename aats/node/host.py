"""A process of node daemons: usually one; many share a loop, a socket context and a zygote."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from aats.node.daemon import Daemon
from aats.node.executor import Executor, fork_zygote
from aats.node.forkserver import ForkServer
from aats.node.spec import DaemonSpec
from aats.transport.hub import Hub

WORDS_FILE = "process.log"
"""Standard output and error of a node process, in the directory of its first node."""


def child_main(argument: str, fds: list[int]) -> None:
    """Run the nodes of a forked process. `argument` is a JSON list of their directories."""
    del fds
    directories = [Path(d) for d in json.loads(argument)]
    words = os.open(directories[0] / WORDS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(words, 1)
    os.dup2(words, 2)
    run_nodes(directories)


def run_nodes(directories: Sequence[Path]) -> None:
    """Run nodes in this process until SIGTERM or SIGINT.

    SIGUSR1 makes them look for parcels, SIGUSR2 makes them leave: hand on what they hold and end.

    The process must have no thread yet: the worker zygote is forked from it.

    Raises:
        LocalError: If a node cannot start; says why.
    """
    specs = [DaemonSpec.load(d) for d in directories]
    zygote = fork_zygote(directories)
    asyncio.run(_host(specs, zygote))


async def _host(specs: Sequence[DaemonSpec], zygote: ForkServer) -> None:
    loop, executor = asyncio.get_running_loop(), Executor(zygote)
    stop, leave = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR2, leave.set)
    executor.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(executor.close)
        hub = Hub()
        stack.callback(hub.close)
        daemons = [Daemon(spec, executor=executor, hub=hub) for spec in specs]
        loop.add_signal_handler(signal.SIGUSR1, _poke, daemons)
        for daemon in daemons:
            await stack.enter_async_context(daemon)
        ends = [asyncio.create_task(d.wait()) for d in daemons]
        ends.append(asyncio.create_task(_wait(stop)))
        ends.append(asyncio.create_task(_leave(leave, daemons)))
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        for end in done:
            end.result()


def _poke(daemons: Sequence[Daemon]) -> None:
    for daemon in daemons:
        daemon.poke()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _leave(asked: asyncio.Event, daemons: Sequence[Daemon]) -> None:
    await asked.wait()
    await asyncio.gather(*(daemon.leave() for daemon in daemons))
