from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from aats.node.forkserver import ForkServer, ForkServerLost


class Exits:
    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.changed = asyncio.Event()

    def __call__(self, name: str, code: int) -> None:
        self.codes[name] = code
        self.changed.set()

    async def of(self, name: str) -> int:
        while name not in self.codes:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 10)
        return self.codes[name]


def _child(argument: str, fds: list[int]) -> None:
    if argument == "write":
        os.write(fds[0], f"{os.getpid()} {os.getpgid(0)}".encode())
    elif argument == "raise":
        sys.stderr.close()
        raise RuntimeError("a fault of this child only")
    elif argument == "status":
        sys.exit(7)
    else:
        os.write(fds[0], str(os.getpid()).encode())
        signal.pause()


async def _server() -> tuple[ForkServer, Exits]:
    server, exits = ForkServer.fork(_child), Exits()
    server.attach(exits)
    await server.ready()
    return server, exits


async def _read(fd: int) -> bytes:
    return await asyncio.to_thread(os.read, fd, 100)


def _gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


async def test_a_child_gets_its_argument_and_descriptors_and_leads_its_own_group() -> None:
    server, exits = await _server()
    r, w = os.pipe()
    server.start("a", "write", [w])
    os.close(w)
    pid, group = (await _read(r)).split()
    assert pid == group
    assert await exits.of("a") == 0
    assert server.pids == {}
    os.close(r)
    await server.close()


@pytest.mark.parametrize(("argument", "code"), [("raise", 70), ("status", 7)])
async def test_a_child_that_fails_tells_how_and_the_server_goes_on(
    argument: str, code: int
) -> None:
    server, exits = await _server()
    for name in ("a", "b"):
        server.start(name, argument)
        assert await exits.of(name) == code
    await server.close()


async def test_a_child_can_be_killed_by_name() -> None:
    server, exits = await _server()
    r, w = os.pipe()
    server.start("a", "wait", [w])
    await _read(r)
    server.kill("nobody")
    server.kill("a", signal.SIGKILL)
    assert await exits.of("a") == -signal.SIGKILL
    os.close(r)
    os.close(w)
    await server.close()


async def test_no_child_outlives_a_closed_server() -> None:
    server, _ = await _server()
    r, w = os.pipe()
    server.start("a", "wait", [w])
    pid = int(await _read(r))
    await server.close()
    assert _gone(pid)
    with pytest.raises(ForkServerLost, match="is gone"):
        server.start("b", "write")
    os.close(r)
    os.close(w)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux only")
async def test_children_of_a_killed_server_end_and_are_reported() -> None:
    server, exits = await _server()
    r, w = os.pipe()
    server.start("a", "wait", [w])
    os.close(w)
    await _read(r)
    os.kill(server._pid, signal.SIGKILL)
    assert await exits.of("a") == -signal.SIGKILL
    assert await _read(r) == b""
    assert server.is_lost
    os.close(r)
    await server.close()
