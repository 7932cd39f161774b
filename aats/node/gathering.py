"""FORK and MERGE: children set out from where the packet is, and become one model again there.

The trunk waits, WORKED and durable, with the ids of the children it awaits in its header. A child
is a packet of its own under an id of its own (`Header.branch`), with custody, spares and epochs
like any other. When all are back, or when the time is up and enough are, a task merges them, and
one transaction replaces them by the trunk's new row. A round that brings nothing is repeated
after a wait, with twice the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf

from aats.advert import Partner
from aats.errors import LocalError
from aats.ids import CustodyKey, NodeId, branch_name
from aats.lineage import Record, RecordKind
from aats.node.commands import SaveCustody
from aats.node.custody import Copy, Doing, Status
from aats.node.desk import Desk
from aats.node.events import CustodyRow
from aats.node.holdings import Holdings
from aats.node.joining import MAX_ADDED, joined
from aats.node.steps import Steps
from aats.node.tasks import Beside, MergePart, MergeResult, MergeTask, Spending
from aats.node.work import Work, metrics_of, skills_of
from aats.packet import Cost, Errand, Header, VisitEntry
from aats.payload import MERGE_STATE, MODEL, Manifest
from aats.routing.policy import Phase, StopKind
from aats.routing.rendezvous import Assemble, Fork, Plan, merge_of
from aats.topology.drrt import partners
from aats.topology.stops import Candidate
from aats.wire import can_be_offered

MAX_CHILDREN = 1000
"""Of one fork, whatever a rendezvous plans."""
ROUNDS_IN_VAIN = 6
"""Forks in a row that brought nothing until the packet goes on by its policy."""


@dataclass(frozen=True, slots=True)
class Merging:
    """What a merge task is about: the trunk, and the copies that are its parts, in order."""

    key: CustodyKey
    parts: tuple[CustodyKey, ...]


class Gathering:
    """Lets a packet's rendezvous plan, forks packets, waits for their children, merges them."""

    def __init__(self, desk: Desk, held: Holdings, steps: Steps, work: Work) -> None:
        self._desk, self._held, self._steps, self._work = desk, held, steps, work

    # --- plan ---------------------------------------------------------------------------------

    def seek(self, copy: Copy, phase: Phase) -> bool:
        """Let the packet's rendezvous plan; return whether it took over."""
        desk, header = self._desk, copy.header
        if header.mandate.rendezvous is None or header.branch or phase is Phase.RETURN:
            return False
        if phase is Phase.VERIFY and self._can_be_verified(copy):
            return False
        if copy.failures >= ROUNDS_IN_VAIN:
            return False
        if desk.node in copy.avoid:  # what was done here together a moment ago has failed
            self._steps.retry(copy, "another attempt")
            return True
        there = partners(desk.map, header, desk.node, desk.now)
        plan = self._plan(copy, tuple(p for p in there if p.node not in copy.avoid))
        if isinstance(plan, Assemble):
            return self._assemble(copy, plan, there)
        if plan is None:
            return False
        home = next(c for c in self._steps.look(copy).candidates if c.kind is StopKind.HOME)
        if isinstance(plan, Fork) and self._can_afford(header, plan, home):
            self._fork(copy, plan)
        else:
            self._steps.back(copy, home)
        return True

    def _can_be_verified(self, copy: Copy) -> bool:
        stops = self._steps.look(copy).candidates
        return any(c.kind is StopKind.MPVU and c.transfer_s < inf for c in stops)

    def _plan(self, copy: Copy, there: tuple[Partner, ...]) -> Plan | None:
        """Return what the packet's rendezvous plans; None if it fails."""
        desk, header = self._desk, copy.header
        assert header.mandate.rendezvous is not None, "asked of packets that have one"
        rng = desk.decision_rng(header, "rendezvous")
        try:
            rendezvous = desk.rendezvous(header.mandate.rendezvous)
            plan = rendezvous.plan(header, there, desk.now, rng)
            if isinstance(plan, Fork) and len(plan.errands) > MAX_CHILDREN:
                raise ValueError(f"{len(plan.errands)} children, allowed are {MAX_CHILDREN}")
        except Exception as error:  # noqa: BLE001 - a plug-in, with a stranger's parameters
            desk.trace("rendezvous.failed", packet=header.id, hop=header.hop,
                       reason=f"{type(error).__name__}: {error}"[:300])  # fmt: skip
            return None
        return plan

    def _assemble(self, copy: Copy, plan: Assemble, there: Sequence[Partner]) -> bool:
        known = {p.node: p for p in there if self._takes_part(p.node)}
        chosen = tuple(known[node] for node in plan.partners if node in known)
        if not chosen:
            return False
        copy.change(Status.WORKED, header=copy.header.on_own_hop(), data_of=self._desk.node)
        self._steps.visit(copy, chosen)
        return True

    def _takes_part(self, node: NodeId) -> bool:
        advert = self._desk.map.advert(node)
        return advert is not None and advert.policy.streams and advert.compute.samples_per_s > 0

    def _can_afford(self, header: Header, plan: Fork, home: Candidate) -> bool:
        """Return whether the hops left are enough for every errand, and for the way home."""
        wanted = sum(self._hops_of(header, errand) for errand in plan.errands)
        return wanted + len(home.path) <= header.hops_left

    def _hops_of(self, header: Header, errand: Errand) -> int:
        if not errand.itinerary:
            return errand.visits + 1
        here, size = self._desk.node, header.manifest.total
        way = [here, *errand.itinerary[: errand.visits], here]
        return sum(len(self._desk.map.path(a, b, size)) for a, b in pairwise(way))

    # --- fork ---------------------------------------------------------------------------------

    def _fork(self, copy: Copy, plan: Fork) -> None:
        desk, header = self._desk, copy.header.on_own_hop()
        within_s = plan.within_s * 2.0**copy.failures
        until = min(desk.now + within_s, header.mandate.deadline)
        record = self._work.record(header, RecordKind.FORK, header.version, Spending(),
                                   note=f"{len(plan.errands)} children")  # fmt: skip
        children = [
            self._child(header, record, number, replace(errand, until=until))
            for number, errand in enumerate(plan.errands)
        ]
        trunk = replace(
            header, chain=(*header.chain, record), awaited=tuple(c.id for c in children),
            merge_by=until, quorum=plan.quorum,
        )  # fmt: skip
        row = copy.change(
            Status.WORKED, header=shortened(trunk), chosen=(), data_of=NodeId(""), onward=()
        )
        rows = tuple(CustodyRow(c.key, Status.WORKED.value, c) for c in children)
        desk.emit(SaveCustody(row, (record,), children=rows))
        desk.trace("packet.forked", packet=header.id, hop=header.hop,
                   children=[c.id for c in children], within_s=within_s)  # fmt: skip
        copies = [self._held.add(row) for row in rows]
        self.gather(copy)
        for child in copies:
            if self._held.copies.get(child.key) is child:
                self._steps.decide(child)

    def _child(self, header: Header, fork: Record, number: int, errand: Errand) -> Header:
        """Return the header of one child: with the fork's record for all before it.

        What was seen on the way is for a policy; a child with an itinerary needs none.
        """
        steered = not errand.itinerary
        visits = min(errand.visits, len(errand.itinerary)) if errand.itinerary else errand.visits
        return replace(
            header,
            branch=branch_name(header.hop, header.epoch, number),
            errand=replace(errand, visits=visits),
            rendezvous=self._desk.node,
            chain=(header.chain[0], fork),
            journal=header.journal if steered else (),
            probed=header.probed if steered else (),
            manifest=travelling(header.manifest),
        )

    # --- wait ---------------------------------------------------------------------------------

    def gather(self, copy: Copy) -> None:
        """Wait for the children of a fork, and merge them once all are back."""
        if copy.doing is Doing.WORKING:
            return  # they are being merged
        if copy.doing is not Doing.GATHERING:
            copy.doing = Doing.GATHERING
            at = max(self._desk.now, copy.header.merge_by)
            self._desk.timers.set(("gather", copy.key), at)
            self._steps.tell_owner(copy.key)
        if len(self._back(copy)) == len(copy.header.awaited):
            self._merge(copy)

    def timed_out(self, key: CustodyKey) -> None:
        """Merge those that are back, if they are enough; else repeat the round."""
        copy = self._held.copies.get(key)
        if copy is None or copy.doing is not Doing.GATHERING:
            return
        header = copy.header
        count, needed = len(self._back(copy)), ceil(header.quorum * len(header.awaited))
        if count >= max(1, needed):
            self._merge(copy)
        else:
            self._again(copy, f"{count} of {len(header.awaited)} children are back")

    def _back(self, copy: Copy) -> list[Copy]:
        """Return the children that rest here, in the order of their errands."""
        order = {packet: number for number, packet in enumerate(copy.header.awaited)}
        resting = [c for c in self._held.children_of(copy) if c.status is Status.RESTING]
        return sorted(resting, key=lambda c: order[c.key.packet])

    def _lost(self, copy: Copy) -> Cost:
        """Return what is known to have been spent on children that left and are not back.

        They took their tensors over one link at least; what they did further on nobody tells.
        """
        stayed = Status.HELD, Status.WORKED, Status.RESTING
        here = {c.key.packet for c in self._held.children_of(copy) if c.status in stayed}
        count = len(set(copy.header.awaited) - here)
        return Cost(count, 0.0, count * travelling(copy.header.manifest).total, 0.0)

    # --- merge --------------------------------------------------------------------------------

    def _merge(self, copy: Copy) -> None:
        desk, header = self._desk, copy.header
        assert header.mandate.rendezvous is not None, "it has forked"
        fork = _fork_of(header)
        back = [(c, trained_on(c.header, fork)) for c in going_together(self._back(copy), header)]
        learned = [
            (c, MergePart(Beside(c.key, c.header.manifest), rows_of(visits),
                          tuple(e.node for e in visits)))
            for c, visits in back if visits
        ]  # fmt: skip
        try:
            rule = merge_of(desk.rendezvous(header.mandate.rendezvous))
        except LocalError as error:
            self._again(copy, str(error))
            return
        if not learned:
            self._again(copy, "no child has learned anything")
            return
        desk.timers.cancel(("gather", copy.key))
        task = MergeTask(replace(header, chain=()), rule, tuple(part for _, part in learned))
        copy.doing = Doing.WORKING
        about = Merging(copy.key, tuple(c.key for c, _ in learned))
        copy.task = desk.run("journey", about, task)
        desk.trace("merge.started", packet=header.id, hop=header.hop, children=len(learned))

    def _merging(self, about: Merging, task: int) -> Copy | None:
        copy = self._held.copies.get(about.key)
        return copy if copy and copy.doing is Doing.WORKING and copy.task == task else None

    def failed(self, about: Merging, task: int, reason: str) -> None:
        """Take the failure of a merge: the round is repeated."""
        copy = self._merging(about, task)
        if copy is not None:
            self._again(copy, reason)

    def merged(self, about: Merging, task: int, result: MergeResult, spending: Spending) -> None:
        """Take the result of a merge: the trunk goes on with it."""
        copy = self._merging(about, task)
        if copy is None:
            return
        desk, old = self._desk, copy.header
        parts = [self._held.copies[key].header for key in about.parts]
        used = [part for i, part in enumerate(parts) if i not in result.left_out]
        back = [c.header for c in self._back(copy)]
        header = replace(
            joined(old, back, used, self._lost(copy)), version=result.manifest.version(MODEL),
            manifest=result.manifest,
        ).with_estimates(result.estimates)  # fmt: skip
        version, note = header.version, f"{len(used)} of {len(old.awaited)} children"
        record = self._work.record(
            replace(header, version=old.version), RecordKind.MERGE, version, spending,
            samples=sum(rows_of(trained_on(part, _fork_of(old))) for part in used),
            metrics=metrics_of(result.estimates), note=f"{note}; {result.note}".rstrip("; "),
            parents=(_fork_of(old).id, *(part.lineage for part in used)),
        )  # fmt: skip
        spent = header.spent + Cost(joules=spending.joules)
        header = shortened(replace(header, chain=(*header.chain, record), spent=spent))
        desk.trace(
            "packet.merged", packet=old.id, hop=header.hop, skills=skills_of(header),
            version=version, bytes=header.spent.bytes, seconds=spending.seconds,
            merged=[part.id for part in used],
            missing=[p for p in old.awaited if p not in {part.id for part in used}],
            gain=result.gain, loss_before=result.loss_before, loss_after=result.loss_after,
            note=result.note,
        )  # fmt: skip
        outcome = task if result.manifest != old.manifest else 0
        copy.failures = 0
        self._replace(copy, header, (record,), outcome)
        self._steps.decide(copy)

    def _again(self, copy: Copy, why: str) -> None:
        """Give a round up, with what its children have spent, and fork anew a little later."""
        self._desk.timers.cancel(("gather", copy.key))
        self._desk.trace("merge.failed", packet=copy.key.packet, hop=copy.header.hop, reason=why)
        back = [c.header for c in self._back(copy)]
        header = joined(copy.header, back, (), self._lost(copy))
        self._replace(copy, header)
        self._steps.retry(copy, "another round")

    def _replace(
        self, copy: Copy, header: Header, records: tuple[Record, ...] = (), outcome: int = 0
    ) -> None:
        """Put the trunk's new row in the place of all that is here of its children."""
        desk, awaited = self._desk, copy.header.awaited
        children = self._held.children_of(copy)
        away = set(awaited) - {c.key.packet for c in children if c.status is Status.RESTING}
        copy.doing = Doing.NOTHING
        for child in children:
            self._held.forget(child)
        row = copy.change(Status.WORKED, header=header, chosen=(), data_of=NodeId(""))
        dropped = tuple(c.key for c in children)
        desk.emit(SaveCustody(row, records, outcome, dropped=dropped))
        for packet in awaited:
            if packet in away:
                desk.notice(packet, header.epoch, done=True)
                self._held.drop_dead(packet)
            else:
                desk.news.know(packet, header.epoch, done=True)


def _fork_of(header: Header) -> Record:
    assert header.forked is not None, "asked of packets that have forked"
    return header.forked


def trained_on(child: Header, fork: Record) -> list[VisitEntry]:
    """Return the visits since the fork at which a child has learned."""
    return [e for e in child.journal if e.hop >= fork.hop and e.action == "train" and e.samples]


def rows_of(visits: Sequence[VisitEntry]) -> int:
    """Return the rows that visits were made on, as their nodes say, within what can be."""
    return min(sum(entry.samples for entry in visits), int(MAX_ADDED))


def going_together(children: Sequence[Copy], trunk: Header) -> list[Copy]:
    """Return the children whose histories can be merged with the trunk's, and with each other.

    Each holds by itself. But one without a record since the fork, with the last record of a
    sibling, or with a node known by another key would make a merge that no ledger takes.
    """
    tips, keys = {_fork_of(trunk).id}, {r.node: r.public_key for r in trunk.chain}
    found = []
    for child in children:
        header = child.header
        theirs = {r.node: r.public_key for r in header.chain}
        if header.lineage in tips or any(keys.get(n, key) != key for n, key in theirs.items()):
            continue
        tips.add(header.lineage)
        keys |= theirs
        found.append(child)
    return found


def travelling(manifest: Manifest) -> Manifest:
    """Return the tensors that children take along: all but the merge rule's own."""
    kept = tuple(t for t in manifest.tensors if not t.name.startswith(MERGE_STATE))
    if len(kept) == len(manifest.tensors):
        return manifest
    return Manifest(kept, max((t.offset + t.size for t in kept), default=0))


def shortened(header: Header) -> Header:
    """Return a header that can travel: with the last fork for all before it, if it must be."""
    fork = header.forked
    if fork is None or can_be_offered(header):
        return header
    at = header.chain.index(fork)
    return replace(header, chain=(header.chain[0], *header.chain[at:]))
