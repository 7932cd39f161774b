"""A packet's life at one node: ARRIVE, WORK and ASSESS, DECIDE, MOVE, and HOME (DESIGN 5).

Custody and its durable states are explained in `aats.node.custody`. Whatever fails here is an
ordinary event: the packet is offered again, or another stop is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from aats.ids import CustodyKey, NodeId, trunk_of
from aats.ledger.record import seal
from aats.lineage import Record, RecordKind
from aats.messages import ProbeReply
from aats.node.arrival import Arrival
from aats.node.commands import DeliverPacket, SaveCustody
from aats.node.custody import Copy, Doing, Status
from aats.node.decision import Decision
from aats.node.departure import Departure
from aats.node.desk import Desk
from aats.node.errands import Errands
from aats.node.events import CustodyRow
from aats.node.gathering import Gathering, Merging
from aats.node.holdings import FORGOTTEN, Holdings
from aats.node.spares import Spares
from aats.node.streams import Streams
from aats.node.tasks import MergeResult, ProbeResult, Result, Spending
from aats.node.work import Work, skills_of
from aats.packet import Cost, Header
from aats.wire import check_mandate


class Journey:
    """Joins the steps of a journey: it is the `Steps` that each of them sees."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.held = Holdings(desk)
        self.arrival = Arrival(desk, self.held, self)
        self.streams = Streams(desk)
        self.work = Work(desk, self.held, self, self.streams)
        self.decision = Decision(desk, self.held, self)
        self.gathering = Gathering(desk, self.held, self, self.work)
        self.errands = Errands(desk, self.held, self)
        self.departure = Departure(desk, self.held, self)
        self.spares = Spares(desk, self.held, self)
        self.arrive, self.visit, self.verify = self.work.arrive, self.work.visit, self.work.verify
        self.decide, self.retry = self.decision.decide, self.decision.wait
        self.look, self.go, self.back = self.decision.look, self.decision.go, self.decision.back
        self.seek, self.gather = self.gathering.seek, self.gathering.gather
        self.rest, self.errand = self.errands.rest, self.errands.errand
        self.offer = self.departure.offer
        self.watch, self.report = self.spares.watch, self.spares.report
        self.regenerate, self.tell_owner = self.spares.regenerate, self.spares.tell_owner

    def restore(self, rows: Iterable[CustodyRow], seen: Iterable[CustodyKey]) -> None:
        """Resume what a restarted node holds."""
        self.held.seen.update(dict.fromkeys(seen, FORGOTTEN))
        rows = tuple(rows)
        for row in rows:
            copy = Copy(row, since=self._desk.now, uncertain=bool(row.chosen))
            self.held.copies[row.key] = copy
            self.held.seen[row.key] = row.sender
            self._desk.news.know(row.key.packet, row.header.epoch)
        for packet in dict.fromkeys(row.key.packet for row in rows):
            self.held.drop_dead(packet)
        for copy in list(self.held.copies.values()):
            if copy.key in self.held.copies:  # not dropped with another
                self._announce(copy)
                self._resume(copy)

    def _announce(self, copy: Copy) -> None:
        """Tell the network what we had saved but may not have told before the crash."""
        is_home, epoch = copy.status is Status.HOME, copy.header.epoch
        if is_home or epoch > copy.key.epoch:
            self._desk.notice(copy.key.packet, epoch, done=is_home)

    def _resume(self, copy: Copy) -> None:
        match copy.status:
            case Status.HELD:
                self.watch(copy)
                self.arrive(copy)
            case Status.WORKED:
                self.watch(copy)
                self.retry(copy, "links")
            case Status.SPARE:
                self._desk.timers.set(("silence", copy.key), self._desk.now)
            case Status.RESTING if self.held.trunk_of(copy) is None:
                self.held.drop(copy)
            case Status.ORIGIN:
                self.held.expect_word(copy)
            case Status.HOME:
                self._desk.emit(DeliverPacket(copy.header))

    def submit(self, header: Header) -> None:
        """Take a packet from the owner's application; its payload is in the store."""
        if header.key in self.held.seen:
            return
        desk = self._desk
        check_mandate(header.mandate)
        init = seal(
            Record(
                packet=header.id, kind=RecordKind.INIT, node=desk.node, hop=0, epoch=0, parents=(),
                base=header.version, version=header.version, method=header.mandate.method.name,
                seed=header.mandate.seed, at=desk.now,
            ),
            desk.identity,
        )  # fmt: skip
        header = replace(header, chain=(init,), base=header.version, holder=desk.node)
        copy = self.held.take(CustodyRow(header.key, Status.HELD.value, header), (init,))
        desk.trace("packet.submitted", packet=header.id, label=header.mandate.label,
                   kind=header.mandate.kind.value, size=header.manifest.total,
                   hop_budget=header.mandate.budget.hops,
                   requirement={t.skill: t.value for t in header.mandate.requirement})  # fmt: skip
        self.work.worked(copy, header)

    def finished(self, about: object, task: int, result: Result, spending: Spending) -> None:
        """Take the result of a task that a step started."""
        match about, result:
            case (CustodyKey() as key, str(candidate)), ProbeResult(reply=reply):
                self.decision.probed(key, NodeId(candidate), reply)
            case Merging(), MergeResult():
                self.gathering.merged(about, task, result, spending)
            case CustodyKey() as key, _:
                self.work.finished(key, task, result, spending)

    def failed(self, about: object, task: int, reason: str) -> None:
        """Take the failure of a task that a step started."""
        match about:
            case (CustodyKey() as key, str(candidate)):
                self.decision.probed(key, NodeId(candidate), ProbeReply(refused=reason))
            case Merging():
                self.gathering.failed(about, task, reason)
            case CustodyKey() as key:
                self.work.failed(key, task, reason)

    def finish(self, copy: Copy) -> None:
        """HOME: the owner has it; tell the network, hand it to the application."""
        desk, old = self._desk, copy.header
        record = self.work.record(old, RecordKind.HOME, old.version, Spending())
        spent = old.spent + Cost(seconds=desk.now - copy.since)
        header = replace(old, chain=(*old.chain, record), spent=spent)
        copy.doing = Doing.NOTHING
        desk.timers.cancel(("alive", copy.key))
        desk.emit(SaveCustody(copy.change(Status.HOME, header=header), (record,)))
        self.spares.report(copy.row.sender, copy.key)
        desk.notice(header.id, header.epoch, done=True)
        for other in list(self.held.copies.values()):
            if trunk_of(other.key.packet) == old.id and other is not copy:
                self.held.drop(other)
        desk.trace(
            "packet.home", packet=old.id, hop=old.hop, met=header.requirement_met,
            skills=skills_of(header), bytes=header.spent.bytes, probe_bytes=header.probe_bytes,
            seconds=header.spent.seconds, hops=header.spent.hops,
        )  # fmt: skip
        desk.emit(DeliverPacket(header))
