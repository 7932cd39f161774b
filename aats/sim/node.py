"""The shell of a simulated node: carries out what its core commands, on the virtual clock.

A crash loses everything but the store: the core, its timers, tasks at work or in line. A restart
builds a new core and tells it what the store holds. Training is real or surrogate, as the
`Worker` has it; it runs in line, and its outcome comes back after the virtual seconds it takes
on this node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from aats.errors import AatsError
from aats.ids import CustodyKey, NodeId
from aats.learning.probe import make_probe_payload
from aats.messages import Message, ProbeAsk, Relay
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
)
from aats.node.events import Event, Started, TaskFailed, TaskFinished
from aats.node.pace import FORWARD_SHARE, Pace, effort, trusted_rows
from aats.node.tasks import FollowTask, Spending, Task, VisitTask, others_of
from aats.packet import Header
from aats.payload import Payload
from aats.sim.kernel import Kernel, Timer
from aats.sim.store import MemoryStore
from aats.sim.talk import Conversation, Talk, Work

MAX_WAKES = 10_000
"""Timers in a row without time passing: a core that re-arms itself in the past is broken."""


class Core(Protocol):
    """What a simulated node needs of its core (`aats.node.core.NodeCore`)."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event in; return what is to be done."""
        ...

    def handle_timer(self, now: float) -> list[Command]:
        """Let every timer that is due fall due; return what is to be done."""
        ...

    def next_deadline(self) -> float | None:
        """Return when `handle_timer` is to be called next."""
        ...


class Worker(Protocol):
    """Does a node's tasks. What it remembers between them is lost in a crash."""

    def __call__(self, task: Task, payload: Payload, others: Sequence[Payload] = ()) -> Work:
        """Do a task.

        Args:
            task: What to do.
            payload: Of the packet the task is about; empty if it is about none. Not to be
                changed.
            others: Those of `aats.node.tasks.others_of(task)`. Not to be changed.

        Raises:
            AatsError: If it cannot be done; the node goes on.
        """
        ...


@runtime_checkable
class TalkingWorker(Worker, Protocol):
    """Does tasks that talk with other nodes, too."""

    def talk(self, task: VisitTask | FollowTask, payload: Payload) -> Talk:
        """Return a task that talks with other nodes while it works, not started."""
        ...


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What a simulated node is made of; a restart makes a new core and a new worker."""

    node: NodeId
    make_core: Callable[[], Core]
    make_worker: Callable[[], Worker]
    pace: Pace = Pace()


class Network(Protocol):
    """What a simulated node asks of its world."""

    kernel: Kernel

    def send(self, sender: NodeId, to: NodeId, message: Message) -> None:
        """Put a control message on the link to a neighbour."""
        ...

    def expect(self, receiver: NodeId, command: ExpectPacket) -> None:
        """Note that a receiver is ready for a transfer."""
        ...

    def transfer(self, sender: NodeId, command: SendPacket) -> None:
        """Begin a bulk transfer."""
        ...

    def cancel_transfer(self, node: NodeId, key: CustodyKey) -> None:
        """Stop a transfer in which `node` takes part."""
        ...

    def deliver(self, node: NodeId, header: Header) -> None:
        """Hand a packet to its owner's application."""
        ...

    def trace(self, node: NodeId, event: str, fields: dict[str, object]) -> None:
        """Write one line of the trace."""
        ...

    def before(self, node: SimulatedNode, event: Event | None) -> Event | None:
        """Be told of an event (None: a timer) before the core is; return what to tell the core."""
        ...

    def after(self, node: SimulatedNode, command: Command) -> None:
        """Be told of a command after it was carried out."""
        ...

    def handled(self, node: NodeId, commands: list[Command]) -> None:
        """Be told what the core commanded, before any of it is carried out."""
        ...


class SimulatedNode:
    """One node of the simulated world."""

    def __init__(self, parts: NodeParts, network: Network) -> None:
        self.parts = parts
        self.node = parts.node
        self.store = MemoryStore()
        self.core: Core | None = None
        """None while the node is down."""
        self.worker: Worker | None = None
        self.died_for_good = False
        self.expecting: dict[CustodyKey, NodeId] = {}
        """Transfers it has made room for, and from whom."""
        self._network = network
        self._kernel = network.kernel
        self._line: deque[RunTask] = deque()
        self._working: tuple[int, Timer | None] | None = None
        self._talks: dict[int, Conversation] = {}
        self._wake: Timer | None = None
        self._wakes = (0.0, 0)

    @property
    def is_up(self) -> bool:
        """Whether the node runs."""
        return self.core is not None

    # --- life ---

    def start(self) -> None:
        """Start the node from what its store holds."""
        self.core, self.worker = self.parts.make_core(), self.parts.make_worker()
        store = self.store
        incarnation = store.begin()
        rows, seen = tuple(store.rows.values()), tuple(store.seen)
        self.feed(Started(incarnation, rows, dict(store.state), seen))

    def crash(self) -> None:
        """Lose everything but the store."""
        self.core = self.worker = None
        self._line.clear()
        self.expecting.clear()
        for timer in (self._wake, self._working[1] if self._working else None):
            if timer:
                timer.cancel()
        self._wake = self._working = None
        for conversation in self._talks.values():
            conversation.stop()
        self._talks.clear()

    # --- events in ---

    def feed(self, event: Event) -> None:
        """Give the core an event and carry out what it commands; nothing if the node is down."""
        if self.core is not None:
            self._tell(event)

    def _tell(self, event: Event | None) -> None:
        told = self._network.before(self, event)
        core, now = self.core, self._kernel.now
        if core is None:
            return
        commands = core.handle_timer(now) if told is None else core.handle(told, now)
        self._network.handled(self.node, commands)
        for command in commands:
            self._do(command)
            self._network.after(self, command)
            if self.core is not core:
                return
        self._arm()

    def _wake_up(self) -> None:
        self._wake = None
        assert self.core is not None, "a crash cancels the timer"
        due = self.core.next_deadline()
        if due is not None and due <= self._kernel.now:
            self._guard()
            self._tell(None)
        else:
            self._arm()

    def _guard(self) -> None:
        now, count = self._kernel.now, self._wakes[1] + 1
        self._wakes = (now, count if now == self._wakes[0] else 0)
        assert count < MAX_WAKES, f"{self.node}: timers do not end at {now} s"

    def _arm(self) -> None:
        due = self.core.next_deadline() if self.core else None
        if due is None or (self._wake and self._wake.at <= due):
            return
        if self._wake:
            self._wake.cancel()
        self._wake = self._kernel.at(due, self._wake_up)

    # --- commands out ---

    def _do(self, command: Command) -> None:
        network, store = self._network, self.store
        match command:
            case SendMessage(to=to, message=message):
                network.send(self.node, to, message)
            case Trace(event=name, fields=fields):
                network.trace(self.node, name, fields)
            case SaveCustody():
                store.save_custody(
                    command.row, command.records, command.outcome, command.children,
                    command.dropped,
                )  # fmt: skip
            case DropCustody(key=key):
                store.drop_custody(key)
            case SaveState(name=name, value=value):
                store.state[name] = value
            case RunTask(task=FollowTask()):
                self._converse(command)  # beside the line: else two leaders could wait for ever
            case RunTask():
                self._line.append(command)
                self._next_task()
            case TellTask(task_id=task_id, told=told):
                if (conversation := self._talks.get(task_id)) is not None:
                    conversation.tell(told)
            case CancelTask(task_id=task_id):
                self._cancel_task(task_id)
            case ExpectPacket():
                network.expect(self.node, command)
            case SendPacket():
                network.transfer(self.node, command)
            case CancelTransfer(key=key):
                network.cancel_transfer(self.node, key)
            case SendProbe(to=to, relay=relay, source=source):
                network.send(self.node, to, fill_probe(relay, store.payloads[source]))
            case DeliverPacket(header=header):
                network.deliver(self.node, header)

    # --- work ---

    def _next_task(self) -> None:
        if self._working or not self._line:
            return
        command = self._line.popleft()
        if isinstance(command.task, VisitTask) and command.task.partners:
            self._working = (command.task_id, None)
            self._converse(command)
            return
        event, seconds = self._work(command)
        if seconds > command.timeout_s:
            event, seconds = TaskFailed(command.task_id, "timeout"), command.timeout_s
        timer = self._kernel.after(seconds, lambda: self._worked(event))
        self._working = (command.task_id, timer)

    def _work(self, command: RunTask) -> tuple[Event, float]:
        assert self.worker is not None, "a crash clears the line"
        header: Header | None = getattr(command.task, "header", None)
        try:
            payload = self.store.payload_of(header) if header else Payload()
            others = tuple(map(self.store.payload_beside, others_of(command.task)))
            work = self.worker(command.task, payload, others)
        except AatsError as error:
            return TaskFailed(command.task_id, str(error)), self.parts.pace.overhead_s
        spending = self.parts.pace.spending(effort(command.task, work.result))
        if work.payload is not None:
            self.store.outcomes[command.task_id] = work.payload
        return TaskFinished(command.task_id, work.result, spending), spending.seconds

    def _converse(self, command: RunTask) -> None:
        """Begin a task that talks with other nodes."""
        assert isinstance(self.worker, TalkingWorker), f"{self.node}: its worker cannot talk"
        task, number, pace = command.task, command.task_id, self.parts.pace
        assert isinstance(task, VisitTask | FollowTask), "no other task talks"
        leads = isinstance(task, VisitTask)
        payload = self.store.payload_of(task.header) if isinstance(task, VisitTask) else Payload()
        rows = trusted_rows(task.header.manifest) if isinstance(task, VisitTask) else 0

        def spending(samples: float) -> Spending:
            return Spending(samples / pace.samples_per_s, samples * pace.joules_per_sample)

        def done(event: Event, payload: Payload | None) -> None:
            del self._talks[number]
            if payload is not None:
                self.store.outcomes[number] = payload
            if leads:
                self._worked(event)
            else:
                self.feed(event)

        conversation = self._talks[number] = Conversation(
            self._kernel, command, self.worker.talk(task, payload), spending,
            2 * FORWARD_SHARE * rows, self.feed, done,
        )  # fmt: skip
        conversation.start()

    def _worked(self, event: Event) -> None:
        self._working = None
        self.feed(event)
        if self.is_up:
            self._next_task()

    def _cancel_task(self, task_id: int) -> None:
        self._line = deque(c for c in self._line if c.task_id != task_id)
        self.store.outcomes.pop(task_id, None)
        if (conversation := self._talks.pop(task_id, None)) is not None:
            conversation.stop()
        if self._working and self._working[0] == task_id:
            if self._working[1]:
                self._working[1].cancel()
            self._working = None
            self._next_task()


def fill_probe(relay: Relay, payload: Payload) -> Relay:
    """Return a relayed probe with the model and reference tensors of a payload in it."""
    assert isinstance(relay.body, ProbeAsk)
    manifest, tensors = make_probe_payload(payload)
    return replace(relay, body=replace(relay.body, manifest=manifest, tensors=tensors))
