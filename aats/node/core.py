"""The core of a node: events in, commands out. It owns no socket, clock, file, thread or tensor.

Whoever drives it (the live daemon, the simulated node, a test) gives it events with the time in
seconds, carries out the commands it returns in order, and calls `handle_timer` at
`next_deadline`. Randomness comes from each packet's own seed. So a core fed with the same events
at the same times gives the same commands: a log of events is a replay.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

from aats.advert import Advert
from aats.errors import RemoteError
from aats.identity import Identity
from aats.ids import CustodyKey, NodeId
from aats.messages import (
    Accept,
    Alive,
    Ask,
    Custody,
    Flood,
    Message,
    Moved,
    Offer,
    Pull,
    RefusalReason,
    Refuse,
    Relay,
    Summary,
    Superseded,
)  # fmt: skip
from aats.node.commands import Command, SaveState, SendMessage
from aats.node.custody import Status
from aats.node.desk import CoreConfig, Desk, decode_notices
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
from aats.node.journey import Journey
from aats.node.requests import Requests
from aats.packet import Plugin
from aats.routing.agent import Agent
from aats.routing.policy import RoutePolicy
from aats.routing.rendezvous import Rendezvous, no_rendezvous

SEQ_SLACK = 1000
"""Adverts between two durable notes of our sequence number; a restart skips that far."""
MOST_LINKS = 100_000
"""Ends of links remembered; beyond, what is new to the map holds up no packet."""


class NodeCore:
    """One node's brain.

    Args:
        config: What the node is and its time-outs.
        identity: Its Ed25519 key.
        policies: Returns the routing policy a packet names.
        agents: Returns the agent for a packet's kind.
        rendezvous: Returns the rendezvous a packet names; without it none is known.
    """

    def __init__(
        self,
        config: CoreConfig,
        identity: Identity,
        policies: Callable[[Plugin], RoutePolicy],
        agents: Callable[[str], Agent],
        rendezvous: Callable[[Plugin], Rendezvous] = no_rendezvous,
    ) -> None:
        self._desk = Desk(config, identity, policies, agents, rendezvous)
        self._journey = Journey(self._desk)
        self._requests = Requests(
            self._desk,
            self._journey.decision.probe_replied,
            self._journey.spares.seen,
            self._journey.streams.receive,
        )
        self._journey.decision.attach(self._requests)
        self._seq_saved = 0

    @property
    def config(self) -> CoreConfig:
        """The settings, as last changed by `DataChanged`."""
        return self._desk.config

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event at `now` (seconds) and return what is to be done, in order."""
        desk = self._desk
        desk.now = now
        match event:
            case MessageReceived(sender=sender, message=message):
                try:
                    self._message(sender, message)
                except RemoteError as error:
                    desk.trace("message.rejected", sender=sender, reason=str(error))
            case LinkUp(link=link):
                desk.neighbours.setdefault(link.peer, now)
                desk.links.link_up(link, now)
                desk.trace("link.up", peer=link.peer)
                self._journey.decision.wake(link.peer)
            case LinkDown(peer=peer):
                if desk.neighbours.pop(peer, None) is not None:
                    desk.links.link_down(peer, now)
                    desk.trace("link.down", peer=peer)
                    self._journey.departure.link_down(peer)
            case PacketReceived():
                self._journey.arrival.received(event)
            case TransferFailed():
                self._journey.departure.transfer_failed(event)
            case PacketSubmitted(header=header):
                self._journey.submit(header)
            case TaskFinished(task=task, result=result, spending=spending):
                waiter, about = desk.tasks.pop(task, ("", None))
                if waiter == "journey":
                    self._journey.finished(about, task, result, spending)
                elif waiter == "requests":
                    self._requests.finished(about, result)
                elif waiter == "streams":
                    self._journey.streams.ended(task)
            case TaskFailed(task=task, reason=reason):
                waiter, about = desk.tasks.pop(task, ("", None))
                if waiter == "journey":
                    self._journey.failed(about, task, reason)
                elif waiter == "requests":
                    self._requests.failed(about, reason)
                elif waiter == "streams":
                    self._journey.streams.ended(task, reason)
            case TaskSpoke():
                self._journey.streams.spoke(event)
            case DataChanged(data=data, compute=compute):
                desk.config = replace(desk.config, data=data, compute=compute)
                desk.advertise()
            case Leaving():
                desk.is_leaving = True
                desk.trace("node.leaving")
                desk.advertise()
            case Started():
                self._start(event)
        return self._commands()

    def handle_timer(self, now: float) -> list[Command]:
        """Do what is due at `now` (seconds) and return what is to be done."""
        self._desk.now = now
        self._desk.links.tick(now)
        for name in self._desk.timers.due(now):
            self._timer(name)
        return self._commands()

    def next_deadline(self) -> float | None:
        """Return when `handle_timer` is wanted next, in seconds; None: not at all."""
        times = (self._desk.links.next_deadline(), self._desk.timers.next_at())
        return min((t for t in times if t is not None), default=None)

    @property
    def is_clear(self) -> bool:
        """Whether nothing is under way here that could be finished or handed on."""
        held = self._journey.held
        staying = any(
            copy.status in (Status.HELD, Status.WORKED) and not copy.header.awaited
            for copy in held.copies.values()
        )
        return not (staying or held.incoming or self._desk.tasks)

    def snapshot(self) -> dict[str, object]:
        """Return the state as plain values: equal cores give equal snapshots."""
        return {
            "neighbours": dict(self._desk.neighbours),
            "news": self._desk.news.snapshot(),
            "own_seq": self._desk.links.own_seq,
            "adverts": {o: a.seq for o, (a, _) in self._desk.links.adverts(self._desk.now).items()},
            "copies": {
                str(k): (c.row, c.doing.value, c.tries, c.failures, c.uncertain)
                for k, c in self._journey.held.copies.items()
            },
            "tasks": dict(self._desk.tasks),
            "deadline": self.next_deadline(),
        }

    def _start(self, event: Started) -> None:
        desk = self._desk
        desk.incarnation = event.incarnation
        desk.grew_at = desk.now
        state = event.state or {}
        self._seq_saved = int(state.get("seq", b"0"))
        desk.links.restore(self._seq_saved)
        for notice in decode_notices(state.get("notices", b"")):
            desk.own_notices[notice.packet] = notice
            desk.news.know(notice.packet, notice.epoch, done=notice.done)
        desk.advertise()
        self._journey.restore(event.rows, event.seen)
        self._requests.give_samples()

    def _message(self, sender: NodeId, message: Message) -> None:
        journey = self._journey
        match message:
            case Flood() | Summary() | Pull():
                self._desk.links.receive(sender, message, self._desk.now)
            case Offer():
                journey.arrival.offered(sender, message)
            case Accept():
                journey.departure.accepted(sender, message)
            case Refuse(reason=RefusalReason.UNKNOWN, key=key):
                journey.spares.lost(sender, key)
            case Refuse():
                journey.departure.refused(sender, message)
            case Custody():
                journey.departure.custody_taken(sender, message)
            case Moved():
                journey.spares.moved(sender, message)
            case Alive():
                journey.spares.alive(sender, message)
            case Ask():
                journey.spares.asked(sender, message)
            case Superseded(key=key):
                journey.held.hear(sender, key.packet, key.epoch, done=False)
            case Relay():
                self._requests.receive(message)

    def _timer(self, name: Hashable) -> None:
        journey = self._journey
        match name:
            case ("offer", CustodyKey() as key):
                journey.departure.timed_out(key)
            case ("alive", CustodyKey() as key):
                journey.spares.say_alive(key)
            case ("silence", CustodyKey() as key):
                journey.spares.silent(key)
            case ("follow", CustodyKey() as key):
                journey.spares.tell_owner(key)
            case ("lost", CustodyKey() as key):
                journey.spares.origin_lost(key)
            case ("gather", CustodyKey() as key):
                journey.gathering.timed_out(key)
            case ("retry", CustodyKey() as key):
                journey.decision.retry(key)
            case ("probe", CustodyKey() as key):
                journey.decision.timed_out(key)
            case ("incoming", CustodyKey() as key):
                journey.held.incoming_expired(key)
            case ("stream", str(what), str(session), str(node)):
                journey.streams.timer(what, session, NodeId(node))
            case ("give", str(purpose), str(receiver)):
                self._requests.give_again(purpose, NodeId(receiver))
            case _:
                raise AssertionError(f"no timer is called {name!r}")

    def _learn(self) -> None:
        """Bring the map up to date with the link state; act on the news in the adverts."""
        desk = self._desk
        while changes := desk.links.take_changes():
            desk.map.apply(changes)
            for origin, known in changes.items():
                if known is None:
                    continue
                ends = {(origin, link.peer) for link in known.advert.links} | {(origin, origin)}
                if len(desk.seen_links) < MOST_LINKS and not ends <= desk.seen_links:
                    desk.seen_links |= ends
                    desk.grew_at = desk.now
                self._hear(known.advert)
            self._requests.give_samples()
        for rejection in desk.links.take_rejections():
            desk.trace("advert.rejected", origin=rejection.origin, sender=rejection.sender,
                       reason=rejection.reason)  # fmt: skip

    def _hear(self, advert: Advert) -> None:
        for notice in advert.notices:
            self._journey.held.hear(advert.origin, notice.packet, notice.epoch, done=notice.done)

    def _commands(self) -> list[Command]:
        desk = self._desk
        self._learn()
        if desk.links.own_seq > self._seq_saved:
            self._seq_saved = desk.links.own_seq + SEQ_SLACK
            desk.emit(SaveState("seq", str(self._seq_saved).encode()))
        for peer, message in desk.links.take():
            if peer in desk.neighbours:
                desk.emit(SendMessage(peer, message))
        commands, desk.commands = desk.commands, []
        return commands
