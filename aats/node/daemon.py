"""A live node: the shell that carries out what a `NodeCore` commands, on asyncio.

One task feeds the core, one event after the other, and carries out each event's commands in
order: a row is durable before the next command starts. Sockets, timers and worker processes
only turn what happens into events. Usable inside any asyncio program:

    async with Daemon(spec, data=my_data) as node:
        await node.submit(header, payload)
        async for home in node.delivered():
            ...
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from aats.advert import Role
from aats.clock import Clock, SystemClock
from aats.errors import LocalError, SignatureError, WireError
from aats.identity import Identity
from aats.ids import CustodyKey, NodeId
from aats.installed import load_agent, load_policy, load_rendezvous
from aats.messages import Accept, Message, Offer
from aats.node import inbox
from aats.node.commands import (
    CancelTask,
    CancelTransfer,
    Command,
    DeliverPacket,
    DropCustody,
    ExpectPacket,
    RunTask,
    SaveCustody,
    SaveState,
    SendMessage,
    SendPacket,
    SendProbe,
    TellTask,
    Trace,
)  # fmt: skip
from aats.node.core import NodeCore
from aats.node.custody import Status
from aats.node.events import (
    DataChanged,
    Event,
    Leaving,
    LinkDown,
    LinkUp,
    MessageReceived,
    PacketReceived,
    PacketSubmitted,
    Started,
    TaskFailed,
    TaskFinished,
    TaskSpoke,
    TransferFailed,
)  # fmt: skip
from aats.node.executor import Executor, Line, TaskError
from aats.node.fault import FaultSwitch, Moment
from aats.node.forkserver import ForkServer
from aats.node.journal import Journal
from aats.node.lanes import Lanes
from aats.node.shard import FILE_NAME, save_data
from aats.node.spec import IDENTITY_FILE, DaemonSpec
from aats.node.tasks import (
    FollowTask,
    MergeResult,
    MergeTask,
    Result,
    Task,
    VerifyResult,
    VerifyTask,
    VisitResult,
    VisitTask,
    others_of,
)
from aats.node.worker import Job, given_directory
from aats.packet import Header, Plugin
from aats.payload import MODEL, Payload
from aats.roles.data import NodeData
from aats.routing.agent import Agent
from aats.routing.policy import RoutePolicy
from aats.routing.rendezvous import Rendezvous
from aats.sim.node import fill_probe
from aats.store import NodeStore
from aats.transport.base import (
    BulkEvent,
    Incoming,
    Kind,
    LinkChanged,
    Notice,
    ReceptionFailed,
    TicketReady,
    joined,
    parted,
)  # fmt: skip
from aats.transport.hub import Hub
from aats.wire import can_be_offered, check_mandate, decode_message, encode_message, encode_task

MAX_WAITING_FRAMES = 256
"""Frames taken from the control lane and not yet seen by the core; then the lane waits."""
INBOX_POLL_S = 2.0
"""The inbox is looked into at least so often; `poke` does it at once."""
WORKING_ROLES = frozenset({Role.DATA, Role.COMPUTE, Role.MPVU})
"""With one of these a node will have tasks, so its worker zygote starts with it."""
FAREWELL_S = 0.5
"""Between the last thing that a leaving node does and its end: its last words go out."""
SPEED_CHANGE = 2.0
"""The node advertises its speed anew when the measured one is off by this factor."""


@dataclass(frozen=True, slots=True)
class Home:
    """A packet that is home: its header with the whole chain, and its tensors (read-only)."""

    header: Header
    payload: Payload


class Daemon:
    """One live node.

    Args:
        spec: What it is made of; its directory holds keys, store and logs.
        data: The node's own data; None for the data file in its directory.
        executor: Runs its tasks; None starts a worker zygote of its own, which takes seconds
            (tasks wait for it, everything else does not).
        hub: Sockets' common ground, shared with other daemons in this process.
        policies: Returns the routing policy a packet names; default: the installed ones.
        agents: Returns the agent for a packet's kind; default: the installed ones.
        rendezvous: Returns the rendezvous a packet names; default: the installed ones.
        clock: Tells the time.
    """

    def __init__(
        self,
        spec: DaemonSpec,
        *,
        data: NodeData | None = None,
        executor: Executor | None = None,
        hub: Hub | None = None,
        policies: Callable[[Plugin], RoutePolicy] = load_policy,
        agents: Callable[[str], Agent] = load_agent,
        rendezvous: Callable[[Plugin], Rendezvous] = load_rendezvous,
        clock: Clock | None = None,
    ) -> None:
        self.spec = spec
        self._data, self._executor, self._hub = data, executor, hub
        self._policies, self._agents, self._rendezvous = policies, agents, rendezvous
        self._clock = clock or SystemClock()
        self._events: deque[tuple[Event, asyncio.Future[None] | None]] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Semaphore(MAX_WAITING_FRAMES)
        self._poked = asyncio.Event()
        self._clear = asyncio.Event()
        """Nothing is under way that could be finished or handed on; set only while leaving."""
        self._leaves = False
        self._homes: asyncio.Queue[Home | None] = asyncio.Queue()
        self._up = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._running: dict[int, asyncio.Task[None]] = {}
        self._lines: dict[int, Line] = {}
        """To running tasks that work with other nodes."""
        self._offers: dict[CustodyKey, int] = {}
        self._accepts: dict[tuple[NodeId, CustodyKey], bytes] = {}
        """Encoded; each waits for its ticket."""
        self._fault = FaultSwitch(spec.directory, spec.deaths)

    # --- for the application ------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start the node; return when it listens.

        Raises:
            LocalError: A missing key, an address in use, a directory in use; says which.
        """
        self._main = asyncio.create_task(self._run(), name=f"node {self.spec.node}")
        up = asyncio.create_task(self._up.wait())
        await asyncio.wait((self._main, up), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._main.done():
            await self._main
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the node; what it holds stays in its directory for the next start."""
        assert self._main is not None, "left without having been entered"
        self._main.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._main

    async def wait(self) -> None:
        """Wait until the node stops; raise what stopped it."""
        assert self._main is not None, "not started"
        await asyncio.shield(self._main)

    async def submit(self, header: Header, payload: Payload) -> None:
        """Hand in a packet whose mandate this node's identity has signed; durable on return.

        Raises:
            SignatureError: If the mandate is not signed by its owner.
            LocalError: If its owner is another node, its header or its tensors do not hold, its
                policy is not installed here, or this node has stopped.
        """
        self._check(header, payload)
        try:
            await asyncio.to_thread(payload.verify)
        except WireError as e:
            raise LocalError(f"packet {header.id}: {e}") from e
        if not self._store.has_had(header.key):  # an inbox may be read twice after a crash
            self._store.submit(header.key, payload)
        await self._feed_and_wait(PacketSubmitted(header))

    def _check(self, header: Header, payload: Payload) -> None:
        check_mandate(header.mandate)
        owner = header.mandate.owner.node
        if owner != self.spec.node:
            raise LocalError(f"packet {header.id}: its owner is {owner}, not {self.spec.node}")
        if header.manifest != payload.manifest or header.version != payload.manifest.version(MODEL):
            raise LocalError(f"packet {header.id}: its header is not that of its tensors")
        if not can_be_offered(header):
            raise LocalError(f"packet {header.id}: its header is larger than any node takes")
        self._policies(header.mandate.policy)
        if header.mandate.rendezvous:
            self._rendezvous(header.mandate.rendezvous)
        self._agents(header.mandate.kind.value)

    async def delivered(self) -> AsyncIterator[Home]:
        """Yield this node's packets as they come home, until the node stops."""
        while (home := await self._homes.get()) is not None:
            yield home

    async def change_data(self, data: NodeData) -> None:
        """Replace the node's data; give each changed skill a higher `seq`. Advertised at once."""
        await asyncio.to_thread(save_data, self.spec.directory / FILE_NAME, data)
        old = self._core.config
        delegate = old.data[0].delegate if old.data else self.spec.node
        self._put(DataChanged(data.adverts(delegate), old.compute))

    def poke(self) -> None:
        """Look into the inbox now."""
        self._poked.set()

    async def leave(self) -> None:
        """Take nothing more, finish and hand on what is here; return when nothing is left to do.

        Gives up after the spec's `leave_s`. What is here then, a packet that no other node can
        take, say, stays in the node's directory for its next start.
        """
        self._leaves = True
        self._put(Leaving())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.spec.leave_s):
                while True:
                    await self._clear.wait()
                    await asyncio.sleep(FAREWELL_S)
                    if self._clear.is_set():
                        return

    # --- life ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        spec = self.spec
        spec.directory.mkdir(parents=True, exist_ok=True)
        if self._data is not None:
            save_data(spec.directory / FILE_NAME, self._data)
        async with contextlib.AsyncExitStack() as stack:
            self._journal = stack.enter_context(Journal(spec.directory, spec.node, self._clock))
            stack.callback(self._homes.put_nowait, None)
            identity = Identity.load(spec.node, spec.directory / IDENTITY_FILE)
            self._store = NodeStore(spec.directory, level=spec.custody)
            stack.callback(self._store.close)
            self._core = NodeCore(
                spec.core, identity, self._policies, self._agents, self._rendezvous
            )
            if self._hub is None:
                self._hub = Hub()
                stack.callback(self._hub.close)
            self._lanes = Lanes(spec, self._store, self._bulk_event, self._hub)
            await stack.enter_async_context(self._lanes)
            self._stack = stack
            if WORKING_ROLES.intersection(spec.core.roles):
                self._workers()
            try:
                await self._serve()
            except ExceptionGroup as group:
                self._journal.fault(group)
                raise group.exceptions[0] from group

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._engine())
            group.create_task(self._listen())
            group.create_task(self._watch_inbox())
            self._up.set()

    async def _engine(self) -> None:
        store = self._store
        state = store.state()
        shutil.rmtree(given_directory(self.spec.directory), ignore_errors=True)
        self._incarnation = int(state.get("incarnation", b"0")) + 1
        store.save_state("incarnation", str(self._incarnation).encode())
        self._journal.trace("node.up", {"incarnation": self._incarnation})
        for key in store.lost:
            self._journal.trace("custody.lost", {"packet": key.packet, "hop": key.hop})
        self._put(Started(self._incarnation, store.rows(), state, store.seen()))
        while True:
            await self._wait_for_work()
            while self._events:
                event, done = self._events.popleft()
                await self._carry_out(self._handle(event))
                if isinstance(event, MessageReceived):
                    self._room.release()
                    if isinstance(event.message, Offer):
                        self._offers.pop(event.message.key, None)
                if done is not None and not done.done():
                    done.set_result(None)
            due = self._core.next_deadline()
            now = self._clock.now()
            if due is not None and due <= now:
                await self._carry_out(self._core.handle_timer(now))
            if self._leaves:
                (self._clear.set if self._core.is_clear else self._clear.clear)()

    async def _wait_for_work(self) -> None:
        if self._events:
            return
        self._wake.clear()
        due = self._core.next_deadline()
        wait_s = None if due is None else max(0.0, due - self._clock.now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    def _put(self, event: Event, done: asyncio.Future[None] | None = None) -> None:
        self._events.append((event, done))
        self._wake.set()

    async def _feed_and_wait(self, event: Event) -> None:
        assert self._main is not None, "not started"
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(event, done)
        await asyncio.wait((done, self._main), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise LocalError(f"node {self.spec.node} has stopped")

    # --- events in ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for event in self._lanes.control_events():
            match event:
                case Incoming(kind=Kind.TICKET, sender=sender, data=data):
                    self._lanes.take_ticket(sender, data)
                case Incoming(kind=Kind.BOTH, sender=sender, data=data):
                    ticket, message = parted(data)
                    self._lanes.take_ticket(sender, ticket)
                    await self._room.acquire()
                    self._message(sender, message)
                case Incoming(sender=sender, data=data):
                    await self._room.acquire()
                    self._message(sender, data)
                case LinkChanged(peer=peer, up=True):
                    self._put(LinkUp(self._lanes.link(peer)))
                case LinkChanged(peer=peer):
                    self._put(LinkDown(peer))
                case Notice(name=name, fields=fields):
                    self._journal.log.warning(name, **fields)

    def _message(self, sender: NodeId, data: bytes) -> None:
        try:
            message = decode_message(data)
        except WireError as e:
            self._room.release()
            self._journal.trace("message.rejected", {"sender": sender, "reason": str(e)})
            return
        if isinstance(message, Offer):
            self._offers[message.key] = len(data)
        self._put(MessageReceived(sender, message))

    def _bulk_event(self, event: BulkEvent) -> None:
        match event:
            case TicketReady(to=to, key=key, data=data):
                accept = self._accepts.pop((to, key), None)
                if accept is None:
                    self._lanes.send(to, data, Kind.TICKET)
                else:
                    self._lanes.send(to, joined(data, accept), Kind.BOTH)
                self._fault.reach(Moment.RECEIVING, key.hop)
            case PacketReceived() | TransferFailed():
                self._put(event)
            case ReceptionFailed(sender=sender, key=key, reason=reason):
                self._accepts.pop((sender, key), None)
                self._journal.log.warning(
                    "reception.failed", sender=sender, key=str(key), reason=reason
                )
            case Notice(name=name, fields=fields):
                self._journal.log.warning(name, **fields)

    async def _watch_inbox(self) -> None:
        directory = self.spec.directory / inbox.INBOX
        while not self._leaves:
            parcels, broken = inbox.look(directory)
            for parcel in parcels:
                try:
                    await self.submit(parcel.header, parcel.payload())
                    parcel.remove()
                except (LocalError, SignatureError, OSError) as e:
                    broken.append((parcel.path.with_suffix(".header"), str(e)))
            for path, reason in broken:
                self._journal.log.error("inbox.broken", path=str(path), reason=reason)
                path.rename(path.with_suffix(".broken"))
            self._poked.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INBOX_POLL_S):
                    await self._poked.wait()

    # --- commands out -------------------------------------------------------------------------

    def _handle(self, event: Event) -> list[Command]:
        return self._core.handle(event, self._clock.now())

    async def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            await self._do(command)

    async def _do(self, command: Command) -> None:
        store, lanes = self._store, self._lanes
        match command:
            case SendMessage(to=to, message=message):
                self._send(to, message)
                if isinstance(message, Offer):
                    self._fault.reach(Moment.OFFERED, message.key.hop - 1)
            case Trace(event=name, fields=fields):
                self._journal.trace(name, fields)
            case SaveCustody():
                await self._save(command)
            case DropCustody(key=key):
                store.drop(key)
            case SaveState(name=name, value=value):
                store.save_state(name, value)
            case RunTask(task_id=number, task=task):
                if isinstance(task, FollowTask):
                    self._lines[number] = self._line(task.about)
                elif isinstance(task, VisitTask) and task.partners:
                    self._lines[number] = self._line(task.header)
                running = self._group.create_task(self._run_task(command))
                running.add_done_callback(lambda _: self._lines.pop(number, None))
                self._running[number] = running
            case TellTask(task_id=number, told=told):
                if (line := self._lines.get(number)) is not None and not line.tell(told):
                    self._running[number].cancel()
                    self._put(TaskFailed(number, "more frames wait for it than it may leave"))
            case CancelTask(task_id=number):
                self._lines.pop(number, None)
                if (cancelled := self._running.pop(number, None)) is not None:
                    cancelled.cancel()
            case ExpectPacket(sender=sender, key=key, manifest=manifest):
                lanes.expect(sender, key, manifest, self._offers.pop(key, 0))
            case SendPacket(to=to, key=key, source=source, manifest=manifest):
                lanes.send_packet(to, key, source, manifest)
                self._fault.reach(Moment.SENDING, source.hop)
            case CancelTransfer(key=key):
                lanes.cancel(key)
            case SendProbe(to=to, relay=relay, source=source):
                self._send(to, fill_probe(relay, store.payload(source)))
            case DeliverPacket(header=header):
                self._deliver(header)

    def _send(self, to: NodeId, message: Message) -> None:
        """Put a message on the control lane; one that no receiver would take is lost."""
        try:
            data = encode_message(message)
        except WireError as e:
            self._journal.trace("message.unsendable", {"to": to, "reason": str(e)})
            return
        if isinstance(message, Accept):
            self._accepts[to, message.key] = data  # the core has just said to expect the packet
        else:
            self._lanes.send(to, data)

    async def _save(self, command: SaveCustody) -> None:
        row = command.row

        def save() -> None:
            self._store.save(
                row, command.records, outcome=command.outcome, children=command.children,
                dropped=command.dropped,
            )  # fmt: skip

        if self._store.level == "host":
            await asyncio.to_thread(save)
        else:
            save()
        if command.children:
            self._fault.reach(Moment.FORKED, row.key.hop)
        match row.status:
            case Status.HELD if row.sender:
                self._fault.reach(Moment.STORED, row.key.hop)
            case Status.WORKED if not row.chosen:
                self._fault.reach(Moment.WORKED, row.key.hop)
            case Status.SPARE:
                self._fault.reach(Moment.RELEASED, row.key.hop)

    def _deliver(self, header: Header) -> None:
        key = self._key_of(header)
        assert key is not None, "a packet that is home has a row"
        payload = self._store.payload(key)
        inbox.put(self.spec.directory / inbox.HOME, header, payload)
        self._homes.put_nowait(Home(header, payload))

    def _key_of(self, header: Header) -> CustodyKey | None:
        """Return where the store has a header's tensors, None if they are gone.

        The header's epoch may have risen since they came.
        """
        rows = [
            row
            for row in self._store.rows()
            if row.key.packet == header.id and row.header.manifest == header.manifest
        ]
        found = max(rows, key=lambda row: (row.key.hop == header.hop, row.key), default=None)
        return found.key if found else None

    # --- tasks --------------------------------------------------------------------------------

    def _workers(self) -> Executor:
        if self._executor is None:
            self._executor = Executor(ForkServer.spawn("worker"))
            self._executor.start()
            self._stack.push_async_callback(self._executor.close)
        return self._executor

    def _line(self, header: Header) -> Line:
        """Return the line to a task that works with other nodes on this packet."""

        def hear(event: TaskSpoke) -> None:
            self._fault.reach(Moment.SPEAKING, header.hop)
            self._put(event)

        return Line(hear)

    async def _run_task(self, command: RunTask) -> None:
        number, task = command.task_id, command.task
        compute = self._core.config.compute
        header: Header | None = getattr(task, "header", None)
        key = self._key_of(header) if header else None
        beside = [other.key for other in others_of(task)]
        held = {row.key for row in self._store.rows()} if beside else set()
        if (header and key is None) or not held.issuperset(beside):
            # dropped between the command and now
            self._running.pop(number, None)
            self._put(TaskFailed(number, "the packet is gone"))
            return
        payload, *others = (
            str(self._store.payload_path(k) or "") if k else "" for k in (key, *beside)
        )
        changes = isinstance(task, VisitTask | MergeTask)
        visited = header.manifest.total if header and changes else 0
        job = Job(
            number=number,
            node=self.spec.node,
            directory=str(self.spec.directory),
            incarnation=self._incarnation,
            kind=type(task).__name__,
            task=encode_task(task),
            payload=payload,
            others=tuple(others),
            outcome=str(self._store.outcome_path(number, visited)),
            settings=self.spec.work,
            watts=compute.joules_per_sample * compute.samples_per_s,
            pace=self.spec.pace,
        )

        def started() -> None:
            if isinstance(task, VisitTask):
                self._fault.reach(Moment.WORKING, task.header.hop)
            elif isinstance(task, MergeTask):
                self._fault.reach(Moment.MERGING, task.header.hop)

        event: TaskFinished | TaskFailed | None = None
        try:
            event = await self._workers().run(
                job, command.timeout_s, started, self._lines.get(number)
            )
        except TaskError as e:
            self._journal.log.warning("task.failed", task=number, reason=str(e))
            event = TaskFailed(number, str(e))
        finally:
            self._running.pop(number, None)
            if not isinstance(event, TaskFinished) or not _changed(task, event.result):
                self._store.discard_outcome(number)
        self._put(event)
        if self.spec.shaping:
            return  # its speed is that of its figures
        is_own = isinstance(task, VisitTask) and not task.partners
        if is_own and isinstance(event, TaskFinished) and isinstance(event.result, VisitResult):
            self._measure(event.result.samples, event.spending.seconds)

    def _measure(self, samples: int, seconds: float) -> None:
        """Advertise the speed that a visit has shown, where it is far from what we say."""
        config = self._core.config
        speed = samples / seconds if samples and seconds else config.compute.samples_per_s
        said = config.compute.samples_per_s
        if said and not said / SPEED_CHANGE <= speed <= said * SPEED_CHANGE:
            self._put(DataChanged(config.data, replace(config.compute, samples_per_s=speed)))


def _changed(task: Task, result: Result) -> bool:
    """Return whether a task has left tensors."""
    return (
        isinstance(task, VisitTask | MergeTask | VerifyTask)
        and isinstance(result, VisitResult | MergeResult | VerifyResult)
        and result.manifest not in (None, task.header.manifest)
    )
