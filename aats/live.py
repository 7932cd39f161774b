"""A whole network of live nodes on this machine: keys, addresses, processes, packets, the end.

    async with LiveWorld(nodes, run_dir) as world:
        header = ...                                    # signed with world.identity(owner)
        world.submit(header, payload)
        async for event in world.events(limit_s=60):    # ends when every packet is home
            print(event)
    world.delivered

Each node gets a directory `run_dir/nodes/<name>` that holds all it needs; its data are written
there and read by its own process alone. When the launcher is killed, every node dies with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from aats.errors import LocalError
from aats.identity import Identity
from aats.ids import NodeId, PacketId
from aats.node import inbox
from aats.node.forkserver import ForkServer
from aats.node.host import WORDS_FILE
from aats.node.layout import Layout, LiveNode
from aats.node.spec import EVENTS_FILE
from aats.node.supervisor import Backoff, Change, ProcessChanged, Supervisor
from aats.packet import Header
from aats.payload import Payload

__all__ = ["Delivered", "Ended", "LiveNode", "LiveOptions", "LiveWorld", "TraceEvent"]

POLL_S = 0.05
"""Between two looks into the nodes' event files."""

TraceEvent = dict[str, Any]
"""One line of `events.jsonl`: `t` (Unix seconds), `node`, `event`, and fields of its own."""


class Ended(StrEnum):
    """Why a run is over."""

    HOME = "home"
    """Every packet is home."""
    LIMIT = "limit"
    """Its time was up."""
    LOST = "lost"
    """The owner of a packet that is still out stays down."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How a live network is run on this machine."""

    host: str = "127.0.0.1"
    """Address that the nodes bind."""
    base_port: int = 0
    """Node i binds control on base_port + 2 i and bulk on the next one; 0: free ports."""
    nodes_per_process: int = 1
    insecure: bool = False
    """No encryption between nodes: for measurements."""
    shaping: bool = False
    """Delay and pace links and tasks to their figures."""
    custody: Literal["process", "host"] = "process"
    backoff: Backoff = Backoff()
    start_s: float = 120.0
    """Until every node must be up."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A packet that came home: its header, and the file with its tensors."""

    header: Header
    path: Path

    def payload(self) -> Payload:
        """Return the tensors, mapped."""
        return inbox.Parcel(self.header, self.path).payload()


class LiveWorld:
    """Live nodes, from their keys to their end.

    Args:
        nodes: What each is made of.
        run_dir: Gets `nodes/<name>/` and, at the end, `events.jsonl`.
        options: How to run them.
        server: A fork server of nodes to use and to leave running; None for one of its own.
    """

    def __init__(
        self,
        nodes: Iterable[LiveNode],
        run_dir: Path,
        options: LiveOptions = LiveOptions(),
        *,
        server: ForkServer | None = None,
    ) -> None:
        self.options, self.run_dir = options, run_dir
        self._layout = Layout(
            nodes,
            run_dir / "nodes",
            host=options.host,
            base_port=options.base_port,
            insecure=options.insecure,
            shaping=options.shaping,
            custody=options.custody,
        )
        self.nodes = self._layout.nodes
        self.delivered: dict[PacketId, Delivered] = {}
        self.waiting_for = ""
        """What is waited for now, in words."""
        self.ended: Ended | None = None
        self._shared = server
        self._owners: dict[PacketId, NodeId] = {}
        self._groups = _groups(list(self.nodes), options.nodes_per_process)
        self._process_of = {n: p for p, names in self._groups.items() for n in names}
        self._tails = {name: Tail(self.directory(name) / EVENTS_FILE) for name in self.nodes}
        self._news: list[TraceEvent] = []
        self._processes: list[TraceEvent] = []
        """What became of the nodes' processes; no node can write that itself."""
        self._up: set[NodeId] = set()
        self._given_up: set[NodeId] = set()
        self._planned: list[asyncio.TimerHandle] = []

    def identity(self, node: NodeId) -> Identity:
        """Return a node's identity, with which an owner signs its mandates."""
        return self._layout.identities[node]

    def directory(self, node: NodeId) -> Path:
        """Return a node's directory."""
        return self._layout.directory(node)

    # --- start and stop -----------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start every node; return when all are up.

        Raises:
            LocalError: A configured port is in use, or a node does not come up; says which.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._server = self._shared or ForkServer.spawn("daemon")
        try:
            self._supervisor = Supervisor(self._server, self._process_changed, self.options.backoff)
            self._layout.write()
            self.waiting_for = "the fork server to load torch"
            await self._server.ready()
            for process, names in self._groups.items():
                directories = [str(self.directory(n).resolve()) for n in names]
                self._supervisor.start(process, json.dumps(directories))
            await self._all_up()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.waiting_for = "the nodes to stop"
        await self._stop()

    async def _stop(self) -> None:
        for planned in self._planned:
            planned.cancel()
        await self._supervisor.stop()
        if self._shared is None:
            await self._server.close()
        else:
            self._server.detach()
        self._layout.close()
        self._look_home()
        self._merge()

    async def _all_up(self) -> None:
        deadline = time.monotonic() + self.options.start_s
        while missing := [n for n in self.nodes if n not in self._up]:
            self.waiting_for = f"{_some(missing)} to come up"
            self._news += self._read()
            if down := [n for n in missing if n in self._given_up]:
                raise LocalError(f"{_some(down)} cannot start: {self._last_words(down[0])}")
            if time.monotonic() > deadline:
                raise LocalError(
                    f"{_some(missing)} not up after {self.options.start_s:g} s; "
                    f"see {self.directory(missing[0])}"
                )
            await asyncio.sleep(POLL_S)
        self.waiting_for = ""

    def _last_words(self, node: NodeId) -> str:
        first = self._groups[self._process_of[node]][0]
        path = self.directory(first) / WORDS_FILE
        lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
        return lines[-1] if lines else f"see {path}"

    # --- packets ------------------------------------------------------------------------------

    def submit(self, header: Header, payload: Payload, after_s: float = 0.0) -> None:
        """Hand a packet to its owner's node, now or later. The mandate is signed by that node."""
        self._owners[header.id] = header.mandate.owner.node
        if after_s:
            self._later(after_s, self._hand_in, header, payload)
        else:
            self._hand_in(header, payload)

    def _hand_in(self, header: Header, payload: Payload) -> None:
        owner = header.mandate.owner.node
        inbox.put(self.directory(owner) / inbox.INBOX, header, payload)
        self._supervisor.signal(self._process_of[owner], signal.SIGUSR1)

    async def events(self, limit_s: float = 3600.0) -> AsyncIterator[TraceEvent]:
        """Yield what happens at the nodes, as it happens; end when every packet is home.

        Also ends when the time is up or a packet cannot come home any more; `ended` says which.
        """
        deadline = time.monotonic() + limit_s
        self.ended = None
        while self.ended is None:
            news, self._news = self._news + self._read(), []
            for event in sorted(news, key=lambda e: float(e["t"])):
                yield event
            self._look_home()
            out = [p for p in self._owners if p not in self.delivered]
            self.waiting_for = f"{_some(out)} to come home" if out else ""
            if not out:
                self.ended = Ended.HOME
            elif any(self._owners[p] in self._given_up for p in out):
                self.ended = Ended.LOST
            elif time.monotonic() > deadline:
                self.ended = Ended.LIMIT
            else:
                await asyncio.sleep(POLL_S)
        for event in self._read():
            yield event

    def kill(self, node: NodeId) -> None:
        """Kill -9 the process of a node; it is started again."""
        self._supervisor.signal(self._process_of[node], signal.SIGKILL)

    def take_down(self, node: NodeId) -> None:
        """Kill -9 the process of a node; it stays down until `bring_up`."""
        self._supervisor.down(self._process_of[node])

    def bring_up(self, node: NodeId) -> None:
        """Start a node again that was taken down."""
        self._supervisor.up(self._process_of[node])

    def _later(self, delay_s: float, action: Callable[..., None], *arguments: object) -> None:
        loop = asyncio.get_running_loop()
        self._planned.append(loop.call_later(delay_s, action, *arguments))

    def _look_home(self) -> None:
        for owner in set(self._owners.values()):
            for parcel in inbox.look(self.directory(owner) / inbox.HOME)[0]:
                self.delivered[parcel.header.id] = Delivered(parcel.header, parcel.path)

    # --- what the nodes tell ------------------------------------------------------------------

    def _process_changed(self, change: ProcessChanged) -> None:
        names = self._groups[change.name]
        if change.change is Change.GIVEN_UP:
            self._given_up.update(names)
        news = [
            {
                "t": time.time(),
                "node": name,
                "event": change.change.value,
                "code": change.code,
                "restart_in_s": change.restart_in_s,
            }
            for name in names
        ]
        self._news += news
        self._processes += news

    def _read(self) -> list[TraceEvent]:
        found = [event for tail in self._tails.values() for event in tail.read()]
        self._up.update(e["node"] for e in found if e["event"] == "node.up")
        return found

    def _merge(self) -> None:
        """Write every node's events into one file, by time."""
        events = [e for name in self.nodes for e in Tail(self._tails[name].path).read()]
        events += self._processes
        events.sort(key=lambda e: float(e["t"]))
        with (self.run_dir / EVENTS_FILE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(e, separators=(",", ":")) + "\n" for e in events)


@dataclass(slots=True)
class Tail:
    """Reads a growing file of JSON lines; a line that is not whole yet is left for later."""

    path: Path
    _place: int = field(default=0)

    def skip(self) -> None:
        """Leave out what is there already."""
        self._place = self.path.stat().st_size if self.path.exists() else 0

    def read(self) -> list[TraceEvent]:
        """Return what was added since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._place)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._place += len(whole)
        events = []
        for line in whole.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut short by a kill -9
                events.append(json.loads(line))
        return events


def _groups(names: Sequence[NodeId], size: int) -> Mapping[str, list[NodeId]]:
    """Return the nodes of each process, by the name of the first."""
    parts = [list(names[i : i + size]) for i in range(0, len(names), size)]
    return {part[0]: part for part in parts}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
