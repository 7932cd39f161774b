"""Keeps node processes running: one that dies is started again, after a growing wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from signal import SIGKILL, SIGTERM, Signals

from aats.node.forkserver import ForkServer, ForkServerLost

KILLED_S = 5.0
"""Until a process that was killed is gone, at most, whatever the load."""


class Change(StrEnum):
    """What happened to a supervised process."""

    STARTED = "node.started"
    DIED = "node.died"
    GIVEN_UP = "node.given-up"
    """It died too often in a row and stays down."""


@dataclass(frozen=True, slots=True)
class ProcessChanged:
    """News of one supervised process."""

    name: str
    change: Change
    code: int = 0
    """Exit status of a process that died, negative for a signal."""
    restart_in_s: float = 0.0
    """When it is started again; 0 if it is not."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a restart: doubled with each death in a row."""

    first_s: float = 0.2
    longest_s: float = 5.0
    tries: int = 8
    """Deaths in a row after which it stays down."""
    healthy_s: float = 10.0
    """A process that ran so long starts a new row."""

    def wait_s(self, deaths: int) -> float | None:
        """Return the wait after so many deaths in a row; None: give up."""
        if deaths > self.tries:
            return None
        return min(self.first_s * 2.0 ** (deaths - 1), self.longest_s)


@dataclass(slots=True)
class _Process:
    argument: str
    started_at: float = 0.0
    deaths: int = 0
    is_wanted: bool = True
    is_up: bool = False
    restart: asyncio.TimerHandle | None = None
    down: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Starts processes through a fork server and restarts those that die.

    Args:
        server: A ready fork server that nobody else uses.
        tell: Called on the event loop with every change.
        backoff: When to restart and when to give up.
    """

    def __init__(
        self,
        server: ForkServer,
        tell: Callable[[ProcessChanged], None],
        backoff: Backoff = Backoff(),
    ) -> None:
        self._server, self._tell, self._backoff = server, tell, backoff
        self._processes: dict[str, _Process] = {}
        self._loop = asyncio.get_running_loop()
        server.attach(self._on_exit)

    def start(self, name: str, argument: str) -> None:
        """Start a process and keep it running."""
        self._processes[name] = _Process(argument)
        self._start(name)

    def signal(self, name: str, number: Signals) -> None:
        """Send a signal to a process; if it dies of it, it is started again."""
        self._server.kill(name, number)

    def down(self, name: str) -> None:
        """Kill a process at once and leave it down until `up`."""
        process = self._processes[name]
        process.is_wanted = False
        if process.restart is not None:
            process.restart.cancel()
        self._server.kill(name, SIGKILL)

    def up(self, name: str) -> None:
        """Start a process again that `down` stopped, once it is gone."""
        process = self._processes[name]
        process.is_wanted = True
        if not process.is_up:
            self._start(name)

    async def stop(
        self,
        names: Iterable[str] | None = None,
        *,
        patience_s: float = 5.0,
        ask: Signals = SIGTERM,
    ) -> None:
        """End processes (all of them, if none are named): ask by a signal first, then kill."""
        chosen = [self._processes[n] for n in (names or self._processes)]
        for name, process in self._processes.items():
            if process in chosen:
                process.is_wanted = False
                if process.restart is not None:
                    process.restart.cancel()
                self._server.kill(name, ask)
        running = [asyncio.ensure_future(p.down.wait()) for p in chosen if p.is_up]
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=patience_s)
        if late:
            for name, process in self._processes.items():
                if process in chosen and process.is_up:
                    self._server.kill(name, SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*late), KILLED_S)

    def _start(self, name: str) -> None:
        process = self._processes[name]
        process.restart = None
        try:
            self._server.start(name, process.argument)
        except ForkServerLost:
            self._tell(ProcessChanged(name, Change.GIVEN_UP))
            return
        process.started_at, process.is_up = self._loop.time(), True
        process.down.clear()
        self._tell(ProcessChanged(name, Change.STARTED))

    def _on_exit(self, name: str, code: int) -> None:
        process = self._processes[name]
        process.is_up = False
        process.down.set()
        if not process.is_wanted:
            return
        lived_s = self._loop.time() - process.started_at
        process.deaths = 1 if lived_s >= self._backoff.healthy_s else process.deaths + 1
        wait_s = self._backoff.wait_s(process.deaths)
        self._tell(ProcessChanged(name, Change.DIED, code, wait_s or 0.0))
        if wait_s is None:
            self._tell(ProcessChanged(name, Change.GIVEN_UP, code))
        else:
            process.restart = self._loop.call_later(wait_s, self._start, name)
