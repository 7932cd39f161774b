"""A packet's life at one node: ARRIVE, WORK and ASSESS, DECIDE, MOVE, and HOME (DESIGN 5).

Custody and its durable states are explained in `aats.node.custody`. Whatever fails here is an
ordinary event: the packet is offered again, or another stop is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf

from aats.advert import ProbeMode
from aats.errors import LedgerError, SignatureError, WireError
from aats.ids import CustodyKey, NodeId, PacketId
from aats.ledger.record import check_chain, check_verdict, seal, sign_verdict
from aats.lineage import Record, RecordKind
from aats.messages import (
    Accept, Alive, Ask, Custody, Moved, Offer, ProbeAsk, ProbeReply, ProbeScores, Refuse,
    RefusalReason, Superseded,
)  # fmt: skip
from aats.node.commands import (
    CancelTask, CancelTransfer, DeliverPacket, DropCustody, ExpectPacket, SaveCustody, SendPacket,
)  # fmt: skip
from aats.node.custody import Copy, Doing, Status
from aats.node.desk import Desk, News
from aats.node.events import CustodyRow, PacketReceived, TransferFailed
from aats.node.requests import RELAY_BYTES, Requests
from aats.node.tasks import (
    ProbeResult, ProbeTask, Result, Spending, VerifyResult, VerifyTask, VisitResult, VisitTask,
)  # fmt: skip
from aats.packet import Cost, EstimateSource, Header, SkillEstimate, VisitEntry
from aats.payload import MODEL, REFERENCE
from aats.routing.agent import Action
from aats.routing.observe import observe
from aats.routing.policy import Choice, Observation, Phase, StopKind
from aats.topology.drrt import cut
from aats.wire import check_header, check_mandate, sign_header

SEEN_KEPT = 10_000
"""Keys of dropped copies remembered to answer a repeated offer; oldest fall out."""
VERIFIED_KEPT = 20_000
"""Ledger record ids whose signature has been checked once."""
RETRY_MAX_S = 8.0
"""Cap of the doubling wait of a packet that finds no way."""


class _Incoming:
    """An accepted offer whose tensors are on their way."""

    def __init__(self, sender: NodeId, offer: Offer, at: float) -> None:
        self.sender, self.offer, self.at = sender, offer, at


class _Decision:
    """Probes that a decision waits for."""

    def __init__(self) -> None:
        self.open: set[NodeId] = set()
        self.scores: dict[NodeId, ProbeScores] = {}
        self.bytes = 0.0


class Journey:
    """The copies of packets at one node and what is done with them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._requests: Requests
        self.copies: dict[CustodyKey, Copy] = {}
        self._incoming: dict[CustodyKey, _Incoming] = {}
        self._decisions: dict[CustodyKey, _Decision] = {}
        self._seen: dict[CustodyKey, None] = {}
        self._verified: set[str] = set()
        self._verdicts: dict[PacketId, int] = {}

    def attach(self, requests: Requests) -> None:
        """Set the part through which probes are asked."""
        self._requests = requests

    # --- start ---

    def restore(self, rows: Iterable[CustodyRow], seen: Iterable[CustodyKey]) -> None:
        """Resume what a restarted node holds."""
        self._seen.update(dict.fromkeys(seen))
        for row in rows:
            copy = Copy(row, since=self._desk.now, uncertain=bool(row.chosen))
            self.copies[row.key] = copy
            news = self._desk.news.setdefault(row.key.packet, News())
            news.epoch = max(news.epoch, row.header.epoch)
            self._seen[row.key] = None
            self._resume(copy)

    def _resume(self, copy: Copy) -> None:
        match copy.status:
            case Status.HELD:
                self._watch_behind(copy)
                self._arrive(copy)
            case Status.WORKED:
                self._watch_behind(copy)
                self._retry(copy, "links")
            case Status.SPARE:
                self._desk.timers.set(("silence", copy.key), self._desk.now)
            case Status.HOME:
                self._desk.emit(DeliverPacket(copy.header))

    # --- submission and arrival ---

    def submit(self, header: Header) -> None:
        """Take a packet from the owner's application; its payload is in the store."""
        if header.key in self._seen:
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
        copy = self._take(CustodyRow(header.key, Status.HELD.value, header), (init,))
        desk.trace("packet.submitted", packet=header.id, label=header.mandate.label,
                   kind=header.mandate.kind.value, size=header.manifest.total,
                   hop_budget=header.mandate.budget.hops,
                   requirement={t.skill: t.value for t in header.mandate.requirement})  # fmt: skip
        self._worked(copy, header)

    def offered(self, sender: NodeId, offer: Offer) -> None:
        """Admit or refuse an offer (receiver's side)."""
        key, desk = offer.key, self._desk
        if key in self._incoming and self._incoming[key].sender == sender:
            self._accept(sender, offer)
            return
        if key in self._seen:
            desk.send(sender, Custody(key))
            self._report(sender, key)
            return
        refusal = self._refusal(sender, offer)
        if refusal is None:
            self._incoming[key] = _Incoming(sender, offer, desk.now)
            self._accept(sender, offer)
            return
        reason, detail = refusal
        epoch = desk.news.get(key.packet, News()).epoch
        desk.send(sender, Refuse(key, reason, detail, epoch))
        desk.trace("offer.refused", packet=key.packet, hop=key.hop, sender=sender,
                   reason=reason.value, detail=detail)  # fmt: skip

    def _refusal(self, sender: NodeId, offer: Offer) -> tuple[RefusalReason, str] | None:
        header, key, desk = offer.header, offer.key, self._desk
        news = desk.news.get(key.packet, News())
        if news.done:
            return RefusalReason.DONE, "the packet is home"
        if key.epoch < news.epoch:
            return RefusalReason.OLDER_EPOCH, f"epoch {news.epoch} is alive"
        if header.key != key or header.holder != sender:
            return RefusalReason.BAD_SIGNATURE, "the offer does not fit its header"
        try:
            check_mandate(header.mandate)
            sender_key = desk.key_of(sender)
            if sender_key is None:
                return RefusalReason.NOT_TRUSTED, f"no key known for {sender}"
            check_header(header, sender_key)
            self._check_lineage(header)
        except SignatureError as error:
            return RefusalReason.BAD_SIGNATURE, str(error)
        except LedgerError as error:
            return RefusalReason.BAD_LINEAGE, str(error)
        try:
            header.manifest.check(limit_bytes=desk.config.policy.max_packet_bytes)
        except WireError as error:
            return RefusalReason.TOO_LARGE, str(error)
        held = [c for c in self.copies.values() if c.status in (Status.HELD, Status.WORKED)]
        if len(held) + len(self._incoming) >= desk.config.max_packets:
            return RefusalReason.FULL, f"{len(held)} packets here"
        return None

    def _check_lineage(self, header: Header) -> None:
        if len(self._verified) > VERIFIED_KEPT:
            self._verified.clear()
        check_chain(header.chain, verified=self._verified)
        if not header.chain or header.chain[-1].version != header.version:
            raise LedgerError("the chain does not end at the version on offer")
        if header.manifest.version(MODEL) != header.version:
            raise LedgerError("the manifest is not that of the version on offer")
        if header.chain[0].packet != header.id:
            raise LedgerError("the chain is that of another packet")
        if header.chain[0].public_key != header.mandate.owner.public_key:
            raise LedgerError("the chain does not begin with the owner")
        for estimate in header.skills:
            if estimate.source is EstimateSource.MPVU:
                key = self._desk.key_of(estimate.by)
                if key is not None:
                    check_verdict(header.id, estimate, key)

    def _accept(self, sender: NodeId, offer: Offer) -> None:
        manifest = offer.header.manifest
        held = {t.digest for c in self.copies.values() for t in c.header.manifest.tensors}
        known = tuple(dict.fromkeys(t.digest for t in manifest.tensors if t.digest in held))
        self._desk.emit(ExpectPacket(sender, offer.key, manifest))
        self._desk.send(sender, Accept(offer.key, known))
        at = self._desk.now + 4 * self._desk.config.transfer_timeout_s
        self._desk.timers.set(("incoming", offer.key), at)

    def incoming_expired(self, key: CustodyKey) -> None:
        """Forget an accepted offer whose tensors never came; the part file may serve later."""
        if self._incoming.pop(key, None):
            self._desk.emit(CancelTransfer(key))

    def received(self, event: PacketReceived) -> None:
        """Take custody of a packet whose tensors are all here and verified."""
        coming = self._incoming.pop(event.key, None)
        desk = self._desk
        if coming is None or event.key in self._seen:
            return
        desk.timers.cancel(("incoming", event.key))
        news = desk.news.get(event.key.packet, News())
        if news.done or event.key.epoch < news.epoch:
            desk.emit(CancelTransfer(event.key))
            return
        offer = coming.offer
        cost = Cost(0, desk.now - coming.at, event.wire_bytes, 0)
        header = replace(offer.header, spent=offer.header.spent + cost)
        row = CustodyRow(event.key, Status.HELD.value, header, coming.sender,
                         data_of=offer.data_of, onward=offer.onward)  # fmt: skip
        copy = self._take(row, header.chain)
        desk.send(coming.sender, Custody(event.key))
        desk.trace("packet.received", packet=event.key.packet, hop=event.key.hop,
                   epoch=event.key.epoch, sender=coming.sender,
                   wire_bytes=event.wire_bytes)  # fmt: skip
        self._watch_behind(copy)
        self._arrive(copy)

    def _take(self, row: CustodyRow, records: tuple[Record, ...]) -> Copy:
        copy = Copy(row, since=self._desk.now)
        self.copies[row.key] = copy
        self._seen[row.key] = None
        while len(self._seen) > SEEN_KEPT:
            self._seen.pop(next(iter(self._seen)))
        news = self._desk.news.setdefault(row.key.packet, News())
        news.epoch = max(news.epoch, row.key.epoch)
        self._desk.emit(SaveCustody(row, records))
        return copy

    def _watch_behind(self, copy: Copy) -> None:
        if copy.row.sender:
            self._desk.timers.set(("alive", copy.key), self._desk.now + self._desk.config.alive_s)

    # --- work and assess ---

    def _arrive(self, copy: Copy) -> None:
        desk, header, row = self._desk, copy.header, copy.row
        if row.onward:
            desk.emit(SaveCustody(copy.change(Status.WORKED, chosen=row.onward, onward=())))
            self._offer(copy)
            return
        agent = desk.agents(header.mandate.kind.value)
        has_data = row.data_of == desk.node or self._has_wanted(header) or bool(row.data_of)
        match agent.arrive(header, desk.now, here=desk.node, roles=desk.config.roles,
                           has_data=has_data):  # fmt: skip
            case Action.TRAIN:
                copy.doing = Doing.WORKING
                copy.task = desk.run("journey", copy.key, VisitTask(header, row.data_of or desk.node))
                desk.trace("visit.started", packet=header.id, hop=header.hop)
            case Action.VERIFY:
                self._verify(copy)
            case Action.FINISH:
                self._finish(copy)
            case Action.PASS:
                self._worked(copy, header)

    def _has_wanted(self, header: Header) -> bool:
        wanted = {t.skill for t in header.mandate.requirement}
        return any(d.skill in wanted and not d.delegate for d in self._desk.config.data)

    def _verify(self, copy: Copy) -> None:
        asked = self._verdicts.get(copy.header.id, 0)
        if asked >= self._desk.config.query_budget:
            self._refuse_visit(copy, f"query budget of {asked} verdicts is used up")
            return
        copy.doing = Doing.WORKING
        copy.task = self._desk.run("journey", copy.key, VerifyTask(copy.header))

    def finished(self, about: object, task: int, result: Result, spending: Spending) -> None:
        """Take the result of a task this part started."""
        match about, result:
            case CustodyKey() as key, VisitResult():
                if (copy := self._at_work(key, task)) is not None:
                    self._visited(copy, task, result, spending)
            case CustodyKey() as key, VerifyResult():
                if (copy := self._at_work(key, task)) is not None:
                    self._verified_by_us(copy, result, spending)
            case (CustodyKey() as key, candidate), ProbeResult(reply=reply):
                self._probed(key, candidate, reply)
            case _:
                raise AssertionError(f"result {type(result).__name__} for {about!r}")

    def failed(self, about: object, task: int, reason: str) -> None:
        """Take the failure of a task this part started: a refused visit, not a dead node."""
        match about:
            case CustodyKey() as key:
                if (copy := self._at_work(key, task)) is not None:
                    self._refuse_visit(copy, reason)
            case (CustodyKey() as key, candidate):
                self._probed(key, candidate, ProbeReply(refused=reason))

    def _at_work(self, key: CustodyKey, task: int) -> Copy | None:
        copy = self.copies.get(key)
        return copy if copy and copy.doing is Doing.WORKING and copy.task == task else None

    def _visited(self, copy: Copy, task: int, result: VisitResult, spending: Spending) -> None:
        desk, old = self._desk, copy.header
        version = result.manifest.version(MODEL)
        kind = RecordKind.ROLLED_BACK if result.action == "rolled-back" else RecordKind.TRAIN
        record = self._record(
            old, kind, version, spending, steps=result.steps, samples=result.samples,
            metrics=_metrics(result.estimates), note=result.note, node=desk.node,
        )  # fmt: skip
        entry = VisitEntry(
            copy.row.data_of or desk.node, old.hop, result.action, result.gain, result.samples,
            self._data_seq(copy), spending.seconds,
        )  # fmt: skip
        header = replace(
            old.with_estimates(result.estimates), version=version, manifest=result.manifest,
            labels_used=result.labels_used, trained=result.trained,
            spent=old.spent + Cost(0, 0, 0, spending.joules), chain=(*old.chain, record),
        ).with_visit(entry)  # fmt: skip
        changed = result.manifest != old.manifest
        desk.trace(
            "visit.finished", packet=old.id, hop=old.hop, action=result.action, note=result.note,
            gain=result.gain, steps=result.steps, samples=result.samples, seconds=spending.seconds,
            loss_before=result.loss_before, loss_after=result.loss_after,
            skills=_skills(header), version=version, bytes=header.spent.bytes,
            data_of=entry.node,
        )  # fmt: skip
        self._worked(copy, header, (record,), task if changed else 0)

    def _data_seq(self, copy: Copy) -> int:
        owner = copy.row.data_of or self._desk.node
        advert = self._desk.map.advert(owner)
        data = self._desk.config.data if owner == self._desk.node else advert.data if advert else ()
        return max((d.seq for d in data), default=0)

    def _verified_by_us(self, copy: Copy, result: VerifyResult, spending: Spending) -> None:
        desk, old = self._desk, copy.header
        self._verdicts[old.id] = self._verdicts.get(old.id, 0) + 1
        signed = tuple(sign_verdict(old.id, e, desk.identity) for e in result.estimates)
        record = self._record(
            old, RecordKind.VERIFY, old.version, spending, metrics=_metrics(signed),
            note=f"test set {result.test_set}", node=desk.node,
        )  # fmt: skip
        entry = VisitEntry(desk.node, old.hop, "verify", 0.0, 0, 0, spending.seconds)
        header = replace(
            old.with_estimates(signed), chain=(*old.chain, record),
            spent=old.spent + Cost(0, 0, 0, spending.joules),
        ).with_visit(entry)  # fmt: skip
        desk.trace("verdict", packet=old.id, hop=old.hop, skills=_skills(header),
                   version=old.version, bytes=header.spent.bytes)  # fmt: skip
        self._worked(copy, header, (record,))

    def _refuse_visit(self, copy: Copy, reason: str) -> None:
        header = copy.header
        entry = VisitEntry(copy.row.data_of or self._desk.node, header.hop, "refused", 0.0, 0,
                           self._data_seq(copy))  # fmt: skip
        self._desk.trace("visit.failed", packet=header.id, hop=header.hop, reason=reason)
        self._worked(copy, header.with_visit(entry))

    def _record(
        self, header: Header, kind: RecordKind, version: str, spending: Spending, *, node: NodeId,
        steps: int = 0, samples: int = 0, metrics: dict[str, float] | None = None, note: str = "",
    ) -> Record:  # fmt: skip
        return seal(
            Record(
                packet=header.id, kind=kind, node=node, hop=header.hop, epoch=header.epoch,
                parents=(header.lineage,), base=header.version, version=version,  # type: ignore[arg-type]
                method=header.mandate.method.name, steps=steps, samples=samples,
                seed=header.mandate.seed, metrics=metrics or {}, note=note,
                at=self._desk.now, seconds=spending.seconds, wire_bytes=header.spent.bytes,
                joules=spending.joules,
            ),
            self._desk.identity,
        )  # fmt: skip

    def _worked(
        self, copy: Copy, header: Header, records: tuple[Record, ...] = (), outcome: int = 0
    ) -> None:
        copy.doing = Doing.NOTHING
        row = copy.change(Status.WORKED, header=header, chosen=(), onward=(), data_of=NodeId(""))
        self._desk.emit(SaveCustody(row, records, outcome))
        self._decide(copy)

    # --- decide ---

    def _decide(self, copy: Copy) -> None:
        desk, header = self._desk, copy.header
        if header.hop == 0 and desk.now - desk.quiet_since < desk.config.settle_s:
            self._wait(copy, "the map to settle", desk.config.settle_s)
            return
        observation = self._observe(copy, {})
        policy = desk.policies(header.mandate.policy)
        rng = desk.decision_rng(header.mandate.seed, header.hop, header.epoch, "probe")
        wanted = policy.wants_probes(observation, rng) if observation.phase is Phase.SEEK else []
        decision = _Decision()
        self._decisions[copy.key] = decision
        copy.doing = Doing.PROBING
        for index in wanted:
            self._probe(copy, decision, observation, index)
        if decision.open:
            desk.timers.set(("probe", copy.key), desk.now + desk.config.probe_timeout_s)
        else:
            self._choose(copy)

    def _observe(self, copy: Copy, probes: dict[NodeId, ProbeScores]) -> Observation:
        desk = self._desk
        topology = cut(desk.map, copy.header, desk.node, desk.now)
        copy.avoid = {n: t for n, t in copy.avoid.items() if t > desk.now}
        usable = tuple(
            c for c in topology.candidates
            if c.node not in copy.avoid and not (c.path and c.path[0] in copy.avoid)
        )  # fmt: skip
        return observe(copy.header, replace(topology, candidates=usable), desk.now, probes=probes)

    def _probe(self, copy: Copy, decision: _Decision, seen: Observation, index: int) -> None:
        desk, header = self._desk, copy.header
        candidate = seen.candidates[index]
        tensors = [t for t in header.manifest.tensors if t.name.startswith((MODEL, REFERENCE))]
        size = sum(t.size for t in tensors)
        advert = desk.map.advert(candidate.node)
        if not candidate.probe_allowed or candidate.node == desk.node or advert is None:
            return
        minibatch = advert.policy.probe is ProbeMode.MINIBATCH
        if size > desk.config.probe_max_bytes and not minibatch:
            return
        skills = tuple(t.skill for t in header.mandate.requirement)
        ask = ProbeAsk(header.id, header.version, header.mandate.architecture, skills,
                       header.mandate.seed + header.hop)  # fmt: skip
        request = f"probe/{copy.key}/{candidate.node}"
        sent = self._requests.ask_probe(request, candidate.path[-1], ask, copy.key)
        if sent:
            decision.open.add(candidate.node)
            decision.bytes += sent + (0 if minibatch else size * max(1, len(candidate.path)))

    def probe_replied(self, request: str, sender: NodeId, reply: ProbeReply) -> None:
        """Take a reply to one of our probes; late ones are ignored."""
        for key, decision in list(self._decisions.items()):
            for candidate in tuple(decision.open):
                if request == f"probe/{key}/{candidate}":
                    decision.bytes += RELAY_BYTES + len(reply.tensors)
                    if reply.tensors and reply.scores is None:
                        self._score_batch(key, candidate, reply)
                    else:
                        self._probed(key, candidate, reply)

    def _score_batch(self, key: CustodyKey, candidate: NodeId, reply: ProbeReply) -> None:
        header = self.copies[key].header
        skills = tuple(t.skill for t in header.mandate.requirement)
        ask = ProbeAsk(header.id, header.version, header.mandate.architecture, skills,
                       header.mandate.seed + header.hop)  # fmt: skip
        self._desk.run("journey", (key, candidate), ProbeTask(ask, reply, header))

    def _probed(self, key: CustodyKey, candidate: NodeId, reply: ProbeReply) -> None:
        decision = self._decisions.get(key)
        if decision is None or candidate not in decision.open:
            return
        decision.open.discard(candidate)
        scores = reply.scores
        if scores is not None:
            decision.scores[candidate] = scores
        self._desk.trace(
            "probe.finished", packet=key.packet, hop=key.hop, candidate=candidate,
            refused=reply.refused, gain=scores.gain if scores else None,
            loss=scores.loss if scores else None,
            alignment=scores.alignment if scores else None,
        )  # fmt: skip
        if not decision.open:
            self._choose(self.copies[key])

    def _choose(self, copy: Copy) -> None:
        desk = self._desk
        desk.timers.cancel(("probe", copy.key))
        decision = self._decisions.pop(copy.key)
        if decision.bytes:
            header = copy.header
            spent = header.spent + Cost(bytes=decision.bytes)
            probed = header.probe_bytes + decision.bytes
            header = replace(header, spent=spent, probe_bytes=probed)
            copy.change(Status.WORKED, header=header)
        header = copy.header
        observation = self._observe(copy, decision.scores)
        policy = desk.policies(header.mandate.policy)
        rng = desk.decision_rng(header.mandate.seed, header.hop, header.epoch, "choose")
        choice = policy.choose(observation, rng)
        candidate = observation.candidates[choice.index]
        self._trace_decision(copy, observation, choice)
        copy.doing = Doing.NOTHING
        if not candidate.path:
            self._stay(copy, candidate.kind, candidate.node)
            return
        data_of = candidate.node if candidate.kind is StopKind.DATA else NodeId("")
        row = copy.change(Status.WORKED, chosen=candidate.path, data_of=data_of)
        desk.emit(SaveCustody(row))
        self._offer(copy)

    def _trace_decision(self, copy: Copy, observation: Observation, choice: Choice) -> None:
        candidate = observation.candidates[choice.index]
        self._desk.trace(
            "decision", packet=copy.key.packet, hop=copy.header.hop,
            phase=observation.phase.value, chosen=candidate.node, stop=candidate.kind.value,
            path=list(candidate.path), reason=choice.reason, scores=choice.scores,
            probe_bytes=copy.header.probe_bytes,
        )  # fmt: skip

    def _stay(self, copy: Copy, kind: StopKind, node: NodeId) -> None:
        here = node == self._desk.node
        if here and kind is StopKind.HOME:
            self._finish(copy)
        elif here and kind is StopKind.MPVU and not self._measured_here(copy.header):
            self._verify(copy)
        else:
            self._retry(copy, f"a way to {node}" if not here else "another stop")

    def _measured_here(self, header: Header) -> bool:
        return any(r.kind is RecordKind.VERIFY and r.hop == header.hop for r in header.chain)

    def probe_timed_out(self, key: CustodyKey) -> None:
        """Decide with the probes at hand."""
        if key in self._decisions:
            self._choose(self.copies[key])

    def _wait(self, copy: Copy, for_what: str, seconds: float) -> None:
        copy.doing = Doing.WAITING
        self._desk.trace("packet.waiting", packet=copy.header.id, hop=copy.header.hop, why=for_what)
        self._desk.timers.set(("retry", copy.key), self._desk.now + seconds)

    def _retry(self, copy: Copy, for_what: str) -> None:
        wait_s = min(self._desk.config.retry_s * 2**copy.failures, RETRY_MAX_S)
        copy.failures += 1
        self._wait(copy, for_what, wait_s)

    def retry(self, key: CustodyKey) -> None:
        """Go on with a copy that waited."""
        copy = self.copies.get(key)
        if copy is None or copy.doing is not Doing.WAITING:
            return
        copy.doing = Doing.NOTHING
        if copy.row.chosen:
            self._offer(copy)
        else:
            self._decide(copy)

    # --- move: the sender's side ---

    def _offer(self, copy: Copy) -> None:
        desk, row = self._desk, copy.row
        to = row.chosen[0]
        if to not in desk.neighbours:
            self._give_up(copy, f"no link to {to}")
            return
        header = copy.header
        cost = Cost(1, desk.now - copy.since, 0, 0)
        header = replace(header, hop=header.hop + 1, spent=header.spent + cost)
        copy.outgoing = sign_header(header, desk.identity)
        copy.tries = 0
        self._send_offer(copy)

    def _send_offer(self, copy: Copy) -> None:
        desk, row = self._desk, copy.row
        assert copy.outgoing is not None
        copy.doing = Doing.OFFERING
        copy.tries += 1
        desk.send(row.chosen[0], Offer(copy.next_key, copy.outgoing, row.chosen[1:], row.data_of))
        wait_s = desk.config.offer_timeout_s * 2 ** (copy.tries - 1)
        desk.timers.set(("offer", copy.key), desk.now + wait_s)

    def offer_timed_out(self, key: CustodyKey) -> None:
        """Repeat an unanswered offer or an unacknowledged transfer, or give the neighbour up."""
        copy = self.copies.get(key)
        if copy is None or copy.doing not in (Doing.OFFERING, Doing.SENDING):
            return
        if copy.tries >= self._desk.config.offer_tries:
            self._give_up(copy, f"no answer from {copy.row.chosen[0]}")
        else:
            self._send_offer(copy)

    def accepted(self, sender: NodeId, message: Accept) -> None:
        """Send the tensors the receiver lacks."""
        copy = self._sending(sender, message.key)
        if copy is None:
            return
        copy.doing = Doing.SENDING
        copy.uncertain = True
        assert copy.outgoing is not None
        self._desk.emit(
            SendPacket(sender, message.key, copy.key, copy.outgoing.manifest, message.known)
        )
        size = copy.outgoing.manifest.total
        link_s = self._desk.map.transfer_s(self._desk.node, (sender,), size)
        wait_s = self._desk.config.transfer_timeout_s + 3 * (link_s if link_s < inf else 0.0)
        self._desk.timers.set(("offer", copy.key), self._desk.now + wait_s)

    def _sending(self, to: NodeId, key: CustodyKey) -> Copy | None:
        for copy in self.copies.values():
            if (
                copy.doing in (Doing.OFFERING, Doing.SENDING)
                and copy.next_key == key
                and copy.row.chosen[:1] == (to,)
            ):
                return copy
        return None

    def refused(self, sender: NodeId, message: Refuse) -> None:
        """Choose another stop, or drop a copy that is no longer the living one."""
        if message.reason is RefusalReason.UNKNOWN:
            self._custodian_lost(sender, message.key)
            return
        copy = self._sending(sender, message.key)
        if copy is None:
            return
        self._desk.trace("packet.refused", packet=message.key.packet, hop=copy.header.hop,
                         by=sender, reason=message.reason.value,
                         detail=message.detail)  # fmt: skip
        if message.reason is RefusalReason.DONE:
            self.hear(message.key.packet, message.epoch, done=True)
        elif message.reason is RefusalReason.OLDER_EPOCH:
            self.hear(message.key.packet, message.epoch, done=False)
        else:
            # A refusal is a clear answer: the neighbour has not stored this key.
            copy.uncertain = False
            self._give_up(copy, message.reason.value)

    def transfer_failed(self, event: TransferFailed) -> None:
        """Offer again: the receiver resumes from what it has."""
        copy = self._sending(event.to, event.key)
        if copy is None or copy.doing is not Doing.SENDING:
            return
        self._desk.trace("transfer.failed", packet=event.key.packet, hop=copy.header.hop,
                         to=event.to, reason=event.reason)  # fmt: skip
        copy.doing = Doing.OFFERING
        self._desk.timers.set(("offer", copy.key), self._desk.now + self._desk.config.retry_s)

    def link_down(self, peer: NodeId) -> None:
        """Re-route what was on its way to a neighbour that is gone, after its time-outs."""
        for copy in list(self.copies.values()):
            if copy.doing is Doing.SENDING and copy.row.chosen[:1] == (peer,):
                copy.doing = Doing.OFFERING

    def _give_up(self, copy: Copy, why: str) -> None:
        """Leave the chosen neighbour out for a while and decide anew.

        If bytes had been sent to it, the epoch rises first: it may have stored them.
        """
        desk, row = self._desk, copy.row
        stop, neighbour = row.chosen[-1], row.chosen[0]
        until = desk.now + desk.config.avoid_s
        copy.avoid[neighbour] = until
        copy.avoid[row.data_of or stop] = until
        desk.timers.cancel(("offer", copy.key))
        desk.emit(CancelTransfer(copy.next_key))
        desk.trace("packet.rerouted", packet=copy.header.id, hop=copy.header.hop,
                   neighbour=neighbour, why=why)  # fmt: skip
        header = copy.header
        if copy.uncertain:
            header = self._raise_epoch(copy, neighbour)
        copy.uncertain = False
        row = copy.change(Status.WORKED, header=header, chosen=(), data_of=NodeId(""))
        desk.emit(SaveCustody(row))
        self._retry(copy, "another way")

    def _raise_epoch(self, copy: Copy, custodian: NodeId) -> Header:
        header = replace(copy.header, epoch=copy.header.epoch + 1)
        desk = self._desk
        desk.notice(header.id, header.epoch, done=False)
        desk.send(custodian, Superseded(header.key))
        desk.trace("packet.regenerated", packet=header.id, hop=header.hop, epoch=header.epoch)
        return header

    def custody_taken(self, sender: NodeId, message: Custody) -> None:
        """The next node has it: keep ours as the spare, let the spare behind us go."""
        copy = self._sending(sender, message.key)
        if copy is None:
            return
        desk = self._desk
        desk.timers.cancel(("offer", copy.key))
        desk.timers.cancel(("alive", copy.key))
        copy.doing, copy.failures, copy.asked = Doing.NOTHING, 0, 0
        desk.emit(SaveCustody(copy.change(Status.SPARE)))
        self._report(copy.row.sender, copy.key)
        desk.trace("packet.moved", packet=copy.key.packet, hop=copy.next_key.hop, to=sender)
        desk.timers.set(("silence", copy.key), desk.now + desk.config.silence_s)

    # --- the spare behind ---

    def _report(self, to: NodeId, key: CustodyKey) -> None:
        """Tell the holder of the spare how the copy under `key` stands."""
        if not to:
            return
        copy = self.copies.get(key)
        if copy and copy.status in (Status.HELD, Status.WORKED):
            self._desk.send(to, Alive(key))
        elif copy or key in self._seen:
            self._desk.send(to, Moved(key))
        else:
            self._desk.send(to, Refuse(key, RefusalReason.UNKNOWN))

    def say_alive(self, key: CustodyKey) -> None:
        """Give the spare's holder a sign of life (timer)."""
        copy = self.copies.get(key)
        if copy and copy.status in (Status.HELD, Status.WORKED):
            self._report(copy.row.sender, key)
            self._watch_behind(copy)

    def asked(self, sender: NodeId, message: Ask) -> None:
        """Answer the holder of a spare."""
        if message.key in self._incoming:
            return
        self._report(sender, message.key)

    def _spare_of(self, key: CustodyKey) -> Copy | None:
        for copy in self.copies.values():
            if copy.status is Status.SPARE and copy.next_key == key:
                return copy
        return None

    def moved(self, sender: NodeId, message: Moved) -> None:
        """The custodian has moved the packet on: our spare is no longer needed."""
        copy = self._spare_of(message.key)
        if copy is None or copy.row.chosen[:1] != (sender,):
            return
        self._desk.timers.cancel(("silence", copy.key))
        self._desk.emit(SaveCustody(copy.change(Status.CACHED)))
        cached = [c for c in self.copies.values() if c.status is Status.CACHED]
        same = [c for c in cached if c.key.packet == copy.key.packet and c is not copy]
        extra = cached[: max(0, len(cached) - self._desk.config.cached_copies)]
        for old in {id(c): c for c in same + extra}.values():
            self._drop(old)

    def alive(self, sender: NodeId, message: Alive) -> None:
        """The custodian lives: leave the spare where it is."""
        copy = self._spare_of(message.key)
        if copy is not None and copy.row.chosen[:1] == (sender,):
            copy.asked = 0
            at = self._desk.now + self._desk.config.silence_s
            self._desk.timers.set(("silence", copy.key), at)

    def silent(self, key: CustodyKey) -> None:
        """Ask a custodian that fell silent; take the spare back when it does not answer."""
        copy = self.copies.get(key)
        if copy is None or copy.status is not Status.SPARE:
            return
        custodian = copy.row.chosen[0]
        if copy.asked >= self._desk.config.silence_tries:
            self._custodian_lost(custodian, copy.next_key)
            return
        copy.asked += 1
        self._desk.send(custodian, Ask(copy.next_key))
        self._desk.timers.set(("silence", key), self._desk.now + self._desk.config.alive_s)

    def _custodian_lost(self, custodian: NodeId, key: CustodyKey) -> None:
        copy = self._spare_of(key)
        if copy is None or copy.row.chosen[:1] != (custodian,):
            return
        self._desk.timers.cancel(("silence", copy.key))
        header = self._raise_epoch(copy, custodian)
        copy.since = self._desk.now
        copy.avoid[custodian] = self._desk.now + self._desk.config.avoid_s
        row = copy.change(Status.WORKED, header=header, chosen=(), data_of=NodeId(""))
        self._desk.emit(SaveCustody(row))
        self._watch_behind(copy)
        self._decide(copy)

    # --- news and home ---

    def hear(self, packet: PacketId, epoch: int, *, done: bool) -> None:
        """Take in news of a packet and drop every copy that is no longer the living one."""
        if not self._desk.learn(packet, epoch, done=done):
            return
        news = self._desk.news[packet]
        for copy in [c for c in self.copies.values() if c.key.packet == packet]:
            finished = copy.status is Status.HOME
            if not finished and (news.done or copy.header.epoch < news.epoch):
                self._drop(copy)
        for key in [k for k in self._incoming if k.packet == packet]:
            if news.done or key.epoch < news.epoch:
                self.incoming_expired(key)

    def _drop(self, copy: Copy) -> None:
        desk = self._desk
        if copy.task and copy.doing is Doing.WORKING:
            desk.emit(CancelTask(copy.task))
        if copy.doing is Doing.SENDING:
            desk.emit(CancelTransfer(copy.next_key))
        for name in ("alive", "offer", "silence", "retry", "probe"):
            desk.timers.cancel((name, copy.key))
        self._decisions.pop(copy.key, None)
        del self.copies[copy.key]
        desk.emit(DropCustody(copy.key))
        if copy.status is not Status.CACHED:
            desk.trace("packet.dropped", packet=copy.key.packet, hop=copy.key.hop,
                       status=copy.status.value)  # fmt: skip

    def _finish(self, copy: Copy) -> None:
        desk, old = self._desk, copy.header
        record = self._record(old, RecordKind.HOME, old.version, Spending(), node=desk.node)
        spent = old.spent + Cost(seconds=desk.now - copy.since)
        header = replace(old, chain=(*old.chain, record), spent=spent)
        copy.doing = Doing.NOTHING
        desk.timers.cancel(("alive", copy.key))
        desk.emit(SaveCustody(copy.change(Status.HOME, header=header), (record,)))
        self._report(copy.row.sender, copy.key)
        desk.notice(header.id, header.epoch, done=True)
        for other in [c for c in self.copies.values() if c.key.packet == old.id and c is not copy]:
            self._drop(other)
        desk.trace(
            "packet.home", packet=old.id, hop=old.hop, met=header.requirement_met,
            skills=_skills(header), bytes=header.spent.bytes, probe_bytes=header.probe_bytes,
            seconds=header.spent.seconds, hops=header.spent.hops,
        )  # fmt: skip
        desk.emit(DeliverPacket(header))


def _metrics(estimates: Iterable[SkillEstimate]) -> dict[str, float]:
    """Return estimates as record metrics: `skill.metric.source` -> value, and `.n`."""
    found: dict[str, float] = {}
    for e in estimates:
        name = f"{e.skill}.{e.metric}.{e.source.value}"
        found[name] = e.value
        found[f"{name}.n"] = float(e.n)
    return found


def _skills(header: Header) -> dict[str, dict[str, object]]:
    """Return the skills of a header for the trace: the most trusted current value of each."""
    shown: dict[str, dict[str, object]] = {}
    for target in header.mandate.requirement:
        current = [
            s for s in header.skills
            if s.skill == target.skill and s.metric == target.metric and s.version == header.version
        ]  # fmt: skip
        rank = list(EstimateSource)
        best = max(current, key=lambda s: rank.index(s.source), default=None)
        if best is not None:
            shown[target.skill] = {
                "metric": best.metric, "value": best.value, "low": best.low, "high": best.high,
                "source": best.source.value, "by": best.by, "target": target.value,
                "met": header.met(target),
            }  # fmt: skip
    return shown


