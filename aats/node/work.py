"""WORK and ASSESS: what a stop does for a packet, and the record of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from aats.advert import Partner, Role
from aats.ids import CustodyKey, NodeId, PacketId, Version
from aats.ledger.record import seal, sign_verdict
from aats.lineage import Record, RecordKind
from aats.node.commands import SaveCustody
from aats.node.custody import Copy, Doing, Status
from aats.node.desk import Desk
from aats.node.holdings import Holdings
from aats.node.steps import Steps
from aats.node.streams import StreamCost, Streams
from aats.node.tasks import (
    Beside,
    Result,
    Spending,
    VerifyResult,
    VerifyTask,
    VisitResult,
    VisitTask,
)
from aats.packet import Cost, Errand, EstimateSource, Header, SkillEstimate, VisitEntry
from aats.payload import MODEL
from aats.routing.agent import Action
from aats.routing.observe import phase
from aats.topology.drrt import data_seq, wanted_skills
from aats.wire import can_be_offered

VERDICTS_KEPT = 10_000
"""Packets whose verdicts are counted; those verified longest ago fall out."""


class Work:
    """Starts the work a packet wants here and takes in what comes of it."""

    def __init__(self, desk: Desk, held: Holdings, steps: Steps, streams: Streams) -> None:
        self._desk, self._held, self._steps, self._streams = desk, held, steps, streams
        self._verdicts: dict[PacketId, int] = {}

    def arrive(self, copy: Copy) -> None:
        """See what the packet wants here, and start it; one in transit goes straight on."""
        desk, header, row = self._desk, copy.header, copy.row
        if row.onward:
            desk.emit(SaveCustody(copy.change(Status.WORKED, chosen=row.onward, onward=())))
            self._steps.offer(copy)
            return
        if header.errand is not None:
            if row.data_of and not header.errand.is_over:
                self.visit(copy)
            else:
                self.worked(copy, header)
            return
        agent = desk.agents(header.mandate.kind.value)
        has_data = bool(row.data_of) or self._has_wanted(header)
        match agent.arrive(header, self._roles_for(header), has_data, desk.now):
            case Action.TRAIN if not self._steps.seek(copy, phase(header, desk.now)):
                self.visit(copy)
            case Action.TRAIN:
                pass  # by its rendezvous, not alone
            case Action.VERIFY:
                self.verify(copy)
            case Action.FINISH:
                self._steps.finish(copy)
            case Action.PASS:
                self.worked(copy, header)

    def _roles_for(self, header: Header) -> tuple[Role, ...]:
        """Return what this node is to this packet: an owner only to its own."""
        is_owner = header.mandate.owner.node == self._desk.node
        return tuple(r for r in self._desk.config.roles if r is not Role.OWNER or is_owner)

    def _has_wanted(self, header: Header) -> bool:
        wanted = {t.skill for t in header.mandate.requirement}
        return any(d.skill in wanted and not d.delegate for d in self._desk.config.data)

    def visit(self, copy: Copy, partners: Sequence[Partner] = ()) -> None:
        """Let the packet's method work on the data it came, or stays, for.

        Args:
            copy: Of the packet.
            partners: Who does the visit together with this node, by streams.
        """
        desk = self._desk
        met = self._meet(copy)
        header = copy.header
        copy.doing = Doing.WORKING
        advert = desk.map.advert(desk.node)
        fastest = max((link.bandwidth_bps for link in advert.links), default=0.0) if advert else 0.0
        data_of = copy.row.data_of or desk.node
        others = tuple(p for p in partners if p.node != desk.node)
        task = VisitTask(header, data_of, others, desk.config.compute, fastest, met)
        copy.task = desk.run("journey", copy.key, task)
        shown: dict[str, object] = {"partners": [p.node for p in others]} if others else {}
        shown |= {"met": met.key.packet} if met else {}
        desk.trace("visit.started", packet=header.id, hop=header.hop, **shown)
        if others:
            self._streams.lead(copy.task, header, others)

    def _meet(self, copy: Copy) -> Beside | None:
        """Return the sibling to average with, if the packet wants that and one has been here.

        The packet's hop rises above the sibling's, whose record will be a parent of its own.
        """
        header = copy.header
        copy.met = None
        if header.errand is None or not header.errand.meet:
            return None
        sibling = self._held.sibling_of(copy)
        if sibling is None or header.follows(sibling.header.lineage):
            return None
        copy.met = sibling
        hop = max(header.hop, sibling.header.chain[-1].hop + 1)
        copy.row = replace(copy.row, header=replace(header, hop=hop))
        return Beside(sibling.key, sibling.header.manifest)

    def verify(self, copy: Copy) -> None:
        """Measure the packet's model on our test set, within its query budget."""
        asked = self._verdicts.get(copy.header.id, 0)
        if asked >= self._desk.config.query_budget:
            self._refuse_visit(copy, f"query budget of {asked} verdicts is used up")
            return
        copy.doing = Doing.WORKING
        copy.task = self._desk.run("journey", copy.key, VerifyTask(copy.header))

    def finished(self, key: CustodyKey, task: int, result: Result, spending: Spending) -> None:
        """Take the result of a visit or a verification."""
        copy = self._at_work(key, task)
        match copy, result:
            case Copy(), VisitResult():
                self._visited(copy, task, result, spending)
            case Copy(), VerifyResult():
                self._verified_by_us(copy, task, result, spending)
            case Copy(), _:
                raise AssertionError(f"result {type(result).__name__} for {key}")

    def failed(self, key: CustodyKey, task: int, reason: str) -> None:
        """Take the failure of a visit: it counts as refused, and the node goes on."""
        copy = self._at_work(key, task)
        if copy is not None:
            self._charge(copy, task, reason)
            self._refuse_visit(copy, reason)

    def _at_work(self, key: CustodyKey, task: int) -> Copy | None:
        copy = self._held.copies.get(key)
        return copy if copy and copy.doing is Doing.WORKING and copy.task == task else None

    def _charge(self, copy: Copy, task: int, reason: str = "") -> StreamCost:
        """End a task's stream; the packet pays for its bytes, and avoids who fell out of it."""
        cost = self._streams.ended(task, reason)
        copy.avoid |= dict.fromkeys(cost.lost, self._desk.now + self._desk.config.avoid_s)
        header = copy.header
        spent = header.spent + Cost(bytes=cost.bytes)
        copy.row = replace(copy.row, header=replace(header, spent=spent))
        return cost

    def _visited(self, copy: Copy, task: int, result: VisitResult, spending: Spending) -> None:
        cost = self._charge(copy, task)
        spending = replace(spending, joules=spending.joules + cost.joules)
        desk, old = self._desk, copy.header
        version = result.manifest.version(MODEL)
        changed = result.manifest != old.manifest
        met = copy.met.header if copy.met and changed else None
        kind = RecordKind.ROLLED_BACK if result.action == "rolled-back" else RecordKind.TRAIN
        record = self.record(
            old, kind, version, spending, steps=result.steps, samples=result.samples,
            metrics=metrics_of(result.estimates), note=result.note,
            parents=(old.lineage, met.lineage) if met else (),
        )  # fmt: skip
        entry = VisitEntry(
            copy.row.data_of or desk.node, old.hop, result.action, result.gain, result.samples,
            self._data_seq(copy), spending.seconds,
        )  # fmt: skip
        header = replace(
            old.with_estimates(result.estimates), version=version, manifest=result.manifest,
            labels_used=result.labels_used, trained=result.trained,
            spent=old.spent + Cost(0, 0, 0, spending.joules),
            chain=(*old.joined_chain(met), record), errand=_after_stop(old),
        ).with_visit(entry)  # fmt: skip
        if not can_be_offered(header):
            self._refuse_visit(copy, "the header has grown too large to take another visit")
            return
        desk.trace(
            "visit.finished", packet=old.id, hop=old.hop, action=result.action, note=result.note,
            gain=result.gain, steps=result.steps, samples=result.samples, seconds=spending.seconds,
            loss_before=result.loss_before, loss_after=result.loss_after,
            skills=skills_of(header), version=version, bytes=header.spent.bytes,
            data_of=entry.node,
            **({"stream_bytes": cost.bytes, "stream_links": cost.links} if cost.bytes else {}),
        )  # fmt: skip
        self.worked(copy, header, (record,), task if changed else 0)

    def _data_seq(self, copy: Copy) -> int:
        owner = copy.row.data_of or self._desk.node
        advert = self._desk.map.advert(owner)
        data = self._desk.config.data if owner == self._desk.node else advert.data if advert else ()
        return data_seq(data, wanted_skills(copy.header))

    def _verified_by_us(
        self, copy: Copy, task: int, result: VerifyResult, spending: Spending
    ) -> None:
        desk = self._desk
        old, removals = self._without_harmful(copy.header, result)
        self._verdicts[old.id] = self._verdicts.pop(old.id, 0) + 1
        if len(self._verdicts) > VERDICTS_KEPT:
            del self._verdicts[next(iter(self._verdicts))]
        signed = tuple(sign_verdict(old.id, e, desk.identity) for e in result.estimates)
        record = self.record(
            old, RecordKind.VERIFY, old.version, spending, metrics=metrics_of(signed),
            note=f"test set {result.test_set}",
        )  # fmt: skip
        entry = VisitEntry(desk.node, old.hop, "verify", 0.0, 0, 0, spending.seconds)
        header = replace(
            old.with_estimates(signed), chain=(*old.chain, record),
            spent=old.spent + Cost(0, 0, 0, spending.joules),
        ).with_visit(entry)  # fmt: skip
        if not can_be_offered(header):
            self._refuse_visit(copy, "the header has grown too large to take another verdict")
            return
        removed = {"removed": result.harms} if removals else {}
        desk.trace("verdict", packet=old.id, hop=old.hop, skills=skills_of(header),
                   version=old.version, bytes=header.spent.bytes, **removed)  # fmt: skip
        self.worked(copy, header, (*removals, record), task if removals else 0)

    def _without_harmful(
        self, header: Header, result: VerifyResult
    ) -> tuple[Header, tuple[Record, ...]]:
        """Return the header with what was taken out before the verdict, and the record of it."""
        if result.manifest is None:
            return header, ()
        version = result.manifest.version(MODEL)
        record = self.record(
            header, RecordKind.REMOVE, version, Spending(),
            metrics={f"harm.{name}": value for name, value in result.harms.items()},
            note=f"subtract {' '.join(result.harms)}; test set {result.test_set}",
        )  # fmt: skip
        chain = (*header.chain, record)
        return replace(header, chain=chain, version=version, manifest=result.manifest), (record,)

    def _refuse_visit(self, copy: Copy, reason: str) -> None:
        header = copy.header
        entry = VisitEntry(copy.row.data_of or self._desk.node, header.hop, "refused", 0.0, 0,
                           self._data_seq(copy))  # fmt: skip
        # Else a packet with nowhere else to go would try again at once, and for ever.
        copy.avoid[entry.node] = self._desk.now + self._desk.config.avoid_s
        self._desk.trace("visit.failed", packet=header.id, hop=header.hop, reason=reason)
        self.worked(copy, replace(header.with_visit(entry), errand=_after_stop(header)))

    def record(
        self,
        header: Header,
        kind: RecordKind,
        version: Version,
        spending: Spending,
        *,
        steps: int = 0,
        samples: int = 0,
        metrics: dict[str, float] | None = None,
        note: str = "",
        parents: tuple[str, ...] = (),
    ) -> Record:
        """Return the signed record of one step, which follows the last one, or `parents`."""
        return seal(
            Record(
                packet=header.mandate.id, kind=kind, node=self._desk.node, hop=header.hop,
                epoch=header.epoch,
                parents=parents or (header.lineage,), base=header.version, version=version,
                method=header.mandate.method.name, steps=steps, samples=samples,
                seed=header.mandate.seed, metrics=metrics or {}, note=note,
                branch=header.branch,
                at=self._desk.now, seconds=spending.seconds, wire_bytes=header.spent.bytes,
                joules=spending.joules,
            ),
            self._desk.identity,
        )  # fmt: skip

    def worked(
        self, copy: Copy, header: Header, records: tuple[Record, ...] = (), outcome: int = 0
    ) -> None:
        """Save what the work here came to, durably, and decide where to go."""
        copy.doing = Doing.NOTHING
        row = copy.change(Status.WORKED, header=header, chosen=(), onward=(), data_of=NodeId(""))
        self._desk.emit(SaveCustody(row, records, outcome))
        self._steps.decide(copy)


def _after_stop(header: Header) -> Errand | None:
    return header.errand and header.errand.after_stop()


def metrics_of(estimates: Iterable[SkillEstimate]) -> dict[str, float]:
    """Return estimates as record metrics: `skill.metric.source` -> value, and `.n`."""
    found: dict[str, float] = {}
    for e in estimates:
        name = f"{e.skill}.{e.metric}.{e.source.value}"
        found[name] = e.value
        found[f"{name}.n"] = float(e.n)
    return found


def skills_of(header: Header) -> dict[str, dict[str, object]]:
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
