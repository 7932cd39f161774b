from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from aats.node.forkserver import ForkServer
from aats.node.supervisor import Backoff, Change, ProcessChanged, Supervisor

QUICK = Backoff(first_s=0.001, longest_s=0.004, tries=3)


def _child(argument: str, fds: list[int]) -> None:
    mode, _, path = argument.partition(":")
    count = Path(path)
    if path:
        with count.open("a") as file:
            file.write("x")
    if mode == "die" or (mode == "die-twice" and len(count.read_text()) <= 2):
        sys.exit(3)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        count.with_suffix(".ready").write_text("ready")
    while True:
        signal.pause()


class News:
    def __init__(self) -> None:
        self.all: list[ProcessChanged] = []
        self._grown = asyncio.Event()

    def __call__(self, news: ProcessChanged) -> None:
        self.all.append(news)
        self._grown.set()

    async def wait(self, change: Change, count: int = 1) -> ProcessChanged:
        while True:
            found = [n for n in self.all if n.change is change]
            if len(found) >= count:
                return found[count - 1]
            self._grown.clear()
            await asyncio.wait_for(self._grown.wait(), 10)


async def _supervisor(backoff: Backoff = QUICK) -> tuple[ForkServer, Supervisor, News]:
    server, news = ForkServer.fork(_child), News()
    supervisor = Supervisor(server, news, backoff)
    await server.ready()
    return server, supervisor, news


def test_waits_double_up_to_a_cap_and_end() -> None:
    waits = [Backoff(0.2, 5.0, tries=7).wait_s(n) for n in range(1, 9)]
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, None]


async def test_a_killed_process_is_started_again() -> None:
    server, supervisor, news = await _supervisor()
    supervisor.start("a", "wait")
    await news.wait(Change.STARTED)
    supervisor.signal("a", signal.SIGKILL)
    died = await news.wait(Change.DIED)
    assert died.code == -signal.SIGKILL
    await news.wait(Change.STARTED, 2)
    await supervisor.stop()
    await server.close()


async def test_one_that_always_dies_is_given_up(tmp_path: Path) -> None:
    server, supervisor, news = await _supervisor()
    supervisor.start("a", f"die:{tmp_path / 'a'}")
    given_up = await news.wait(Change.GIVEN_UP)
    assert given_up.code == 3
    assert len((tmp_path / "a").read_text()) == 1 + QUICK.tries
    await server.close()


async def test_one_that_recovers_stays_up(tmp_path: Path) -> None:
    server, supervisor, news = await _supervisor()
    supervisor.start("a", f"die-twice:{tmp_path / 'a'}")
    await news.wait(Change.STARTED, 3)
    await supervisor.stop()
    assert [n.change for n in news.all].count(Change.DIED) == 2
    await server.close()


async def test_a_process_taken_down_stays_down_until_it_is_wanted_again() -> None:
    server, supervisor, news = await _supervisor()
    supervisor.start("a", "wait")
    supervisor.start("b", "wait")
    await news.wait(Change.STARTED, 2)
    supervisor.down("a")
    await asyncio.wait_for(supervisor._processes["a"].down.wait(), 10)
    supervisor.up("a")
    await news.wait(Change.STARTED, 3)
    assert not [n for n in news.all if n.change is Change.DIED]
    await supervisor.stop()
    await server.close()


async def test_one_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    server, supervisor, _ = await _supervisor()
    ready = tmp_path / "a.ready"
    os.mkfifo(ready)
    supervisor.start("a", f"stubborn:{tmp_path / 'a'}")
    assert await asyncio.to_thread(ready.read_text) == "ready"
    await supervisor.stop(patience_s=0.05)
    assert not supervisor._processes["a"].is_up
    await server.close()
