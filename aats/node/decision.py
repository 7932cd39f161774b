"""DECIDE: what the packet knows, what it asks, and the stop its policy picks."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

from aats.advert import ProbeMode
from aats.ids import CustodyKey, NodeId
from aats.lineage import RecordKind
from aats.messages import ProbeAsk, ProbeReply, ProbeScores
from aats.node.commands import SaveCustody
from aats.node.custody import Copy, Doing, Probing, Status
from aats.node.desk import Desk
from aats.node.holdings import Holdings
from aats.node.requests import RELAY_BYTES, Requests
from aats.node.steps import Steps
from aats.node.tasks import ProbeTask
from aats.packet import Cost, Header, ProbeEntry
from aats.payload import MODEL, REFERENCE
from aats.routing.observe import ROWS, observe
from aats.routing.policy import Choice, Observation, Phase, StopKind
from aats.topology.drrt import cut
from aats.topology.stops import Candidate, Topology

RETRY_MAX_S = 8.0
"""Cap of the doubling wait of a packet that finds no way."""
PATIENCE = 3
"""Waits for another stop before the packet visits the same data once more."""
MAX_PROBES = 32
"""Probes of one decision, whatever the policy wants."""
HOME_PATIENCE = 10
"""Waits at home for any stop to come into reach (about a minute) before the journey ends."""
PROBE_GRACE_S = 0.25
"""Least time for the slower half of the probes once the faster half is in."""
VISITS = RecordKind.TRAIN, RecordKind.ROLLED_BACK
"""Records of a visit to data."""


class Decision:
    """Chooses next stops by each packet's own policy."""

    def __init__(self, desk: Desk, held: Holdings, steps: Steps) -> None:
        self._desk, self._held, self._steps = desk, held, steps
        self._requests: Requests

    def attach(self, requests: Requests) -> None:
        """Set the part through which probes are asked."""
        self._requests = requests

    def decide(self, copy: Copy) -> None:
        """Look around, probe what the policy wants probed, then choose."""
        desk, header = self._desk, copy.header
        if header.awaited:
            self._steps.gather(copy)
            return
        if header.errand is not None and self._steps.errand(copy):
            return
        settled_at = desk.grew_at + desk.config.settle_s
        if header.hop == 0 and desk.now < settled_at:
            self._wait(copy, "the map to settle", settled_at - desk.now)
            return
        observation = self._observe(copy, {})
        if self._steps.seek(copy, observation.phase):
            return
        wanted = self._wanted_probes(copy, observation)
        decision = copy.decision = Probing(since=desk.now)
        copy.doing = Doing.PROBING
        for index in wanted:
            self._probe(copy, decision, observation, index)
        if decision.open:
            desk.timers.set(("probe", copy.key), desk.now + desk.config.probe_timeout_s)
        else:
            self._choose(copy)

    def look(self, copy: Copy) -> Topology:
        """Return the stops there are, those out of reach that failed a moment ago."""
        desk = self._desk
        topology = cut(desk.map, copy.header, desk.node, desk.now)
        copy.avoid = {n: t for n, t in copy.avoid.items() if t > desk.now}
        seen = tuple(
            self._out_of_reach(copy, c)
            for c in topology.candidates
            if c.kind is not StopKind.MPVU or not copy.header.branch
        )
        return replace(topology, candidates=seen)

    def _observe(self, copy: Copy, probes: dict[NodeId, ProbeScores]) -> Observation:
        topology = self.look(copy)
        count = len(topology.candidates)
        rows = count if count > ROWS and self._sees_all(copy.header) else ROWS
        seen = observe(copy.header, topology, self._desk.now, probes=probes, k=rows)
        if copy.header.branch and seen.phase is Phase.VERIFY:
            return replace(seen, phase=Phase.SEEK)  # the trunk asks, once it is merged
        return seen

    def _out_of_reach(self, copy: Copy, candidate: Candidate) -> Candidate:
        """Return the candidate, out of reach if it, or the way to it, failed a moment ago."""
        is_home = candidate.kind is StopKind.HOME and candidate.node == self._desk.node
        first = candidate.path[0] if candidate.path else candidate.node
        if not is_home and (candidate.node in copy.avoid or first in copy.avoid):
            return replace(candidate, path=(), transfer_s=inf)
        return candidate

    def _probe(self, copy: Copy, decision: Probing, seen: Observation, index: int) -> None:
        desk, header = self._desk, copy.header
        candidate = seen.candidates[index]
        tensors = [t for t in header.manifest.tensors if t.name.startswith((MODEL, REFERENCE))]
        size = sum(t.size for t in tensors)
        advert = desk.map.advert(candidate.node)
        if not candidate.probe_allowed or candidate.transfer_s == inf or advert is None:
            return
        ask = _ask(header, candidate.node)
        if not candidate.path:
            decision.open[candidate.node] = desk.node
            desk.run("journey", (copy.key, candidate.node), ProbeTask(ask, header=header))
            return
        stop = candidate.path[-1]
        minibatch = advert.policy.probe is ProbeMode.MINIBATCH and stop == candidate.node
        if size > desk.config.probe_max_bytes and not minibatch:
            return
        request = f"probe/{copy.key}/{candidate.node}"
        if self._requests.ask_probe(request, stop, ask, None if minibatch else copy.key):
            decision.open[candidate.node] = stop
            sent = RELAY_BYTES + (0 if minibatch else size)
            decision.bytes += sent * len(candidate.path)

    def probe_replied(self, request: str, sender: NodeId, reply: ProbeReply) -> None:
        """Take a reply to one of our probes; late ones are ignored."""
        for copy in list(self._held.copies.values()):
            for candidate, stop in copy.decision.open.items() if copy.decision else ():
                if request == f"probe/{copy.key}/{candidate}" and sender == stop:
                    assert copy.decision is not None
                    copy.decision.bytes += RELAY_BYTES + len(reply.tensors)
                    if reply.tensors and reply.scores is None:
                        self._score_batch(copy, candidate, reply)
                    else:
                        self.probed(copy.key, candidate, reply)
                    return

    def _score_batch(self, copy: Copy, candidate: NodeId, reply: ProbeReply) -> None:
        assert copy.decision is not None
        copy.decision.open[candidate] = self._desk.node  # one answer is enough
        task = ProbeTask(_ask(copy.header, candidate), reply, copy.header)
        self._desk.run("journey", (copy.key, candidate), task)

    def probed(self, key: CustodyKey, candidate: NodeId, reply: ProbeReply) -> None:
        """Take the scores of a candidate, or its refusal; the last one leads to the choice."""
        copy = self._held.copies.get(key)
        decision = copy.decision if copy else None
        if copy is None or decision is None or candidate not in decision.open:
            return
        del decision.open[candidate]
        decision.answered += 1
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
            self._choose(copy)
        elif decision.answered >= len(decision.open):
            self._hurry(copy, decision)

    def _hurry(self, copy: Copy, decision: Probing) -> None:
        """Give the slower half of the probes as long again as the faster took, no longer."""
        desk = self._desk
        taken_s = desk.now - decision.since
        at = min(
            desk.now + max(PROBE_GRACE_S, taken_s), decision.since + desk.config.probe_timeout_s
        )
        desk.timers.set(("probe", copy.key), at)

    def _choose(self, copy: Copy) -> None:
        desk = self._desk
        desk.timers.cancel(("probe", copy.key))
        decision = copy.decision or Probing()
        copy.decision = None
        observation = self._observe(copy, decision.scores)
        if decision.bytes or decision.scores:
            copy.change(Status.WORKED, header=_remembering(copy.header, decision, observation))
        choice = self._choice(copy, observation)
        candidate = observation.candidates[choice.index]
        self._trace_decision(copy, observation, choice)
        copy.doing = Doing.NOTHING
        if candidate.path:
            self.go(copy, candidate.path, candidate)
        else:
            self._stay(copy, candidate, observation)

    def _rng(self, header: Header, what: str) -> random.Random:
        return self._desk.decision_rng(header, what)

    def _sees_all(self, header: Header) -> bool:
        try:
            return bool(getattr(self._desk.policies(header.mandate.policy), "sees_all", False))
        except Exception:  # noqa: BLE001 - a plug-in; what it raises is told when it is to choose
            return False

    def _wanted_probes(self, copy: Copy, seen: Observation) -> list[int]:
        """Return the legal candidates that a policy wants probed; none if it fails."""
        if seen.phase is not Phase.SEEK:
            return []
        try:
            policy = self._desk.policies(copy.header.mandate.policy)
            wanted = policy.wants_probes(seen, self._rng(copy.header, "probe"))
        except Exception as error:  # noqa: BLE001 - a plug-in, with a stranger's parameters
            self._failed(copy, error)
            return []
        legal = set(seen.legal())
        return [i for i in dict.fromkeys(wanted) if i in legal][:MAX_PROBES]

    def _choice(self, copy: Copy, seen: Observation) -> Choice:
        """Return a policy's choice; if it fails or chooses what is not legal, the way home."""
        legal = seen.legal()
        try:
            policy = self._desk.policies(copy.header.mandate.policy)
            choice = policy.choose(seen, self._rng(copy.header, "choose"))
            if choice.index in legal:
                return choice
            self._failed(copy, f"candidate {choice.index} is not one of {legal}")
        except Exception as error:  # noqa: BLE001 - a plug-in, with a stranger's parameters
            self._failed(copy, error)
        kinds = [c.kind for c in seen.candidates]
        return Choice(kinds.index(StopKind.HOME), "the policy failed: home")

    def _failed(self, copy: Copy, reason: object) -> None:
        self._desk.trace("policy.failed", packet=copy.key.packet, hop=copy.header.hop,
                         policy=copy.header.mandate.policy.name,
                         reason=f"{type(reason).__name__}: {reason}"[:300])  # fmt: skip

    def go(self, copy: Copy, path: tuple[NodeId, ...], stop: Candidate) -> None:
        """Set out for a stop, durably."""
        data_of = stop.node if stop.kind is StopKind.DATA else NodeId("")
        self._desk.emit(SaveCustody(copy.change(Status.WORKED, chosen=path, data_of=data_of)))
        self._steps.offer(copy)

    def back(self, copy: Copy, home: Candidate) -> None:
        """Go home, or be there; a child's home is where it is merged."""
        if home.path:
            self.go(copy, home.path, home)
        elif home.node != self._desk.node:
            self.wait(copy, f"a way to {home.node}")
        elif copy.header.branch:
            self._steps.rest(copy)
        else:
            self._steps.finish(copy)

    def _trace_decision(self, copy: Copy, observation: Observation, choice: Choice) -> None:
        candidate = observation.candidates[choice.index]
        self._desk.trace(
            "decision", packet=copy.key.packet, hop=copy.header.hop,
            phase=observation.phase.value, chosen=candidate.node, stop=candidate.kind.value,
            path=list(candidate.path), reason=choice.reason, scores=choice.scores,
            probe_bytes=copy.header.probe_bytes,
        )  # fmt: skip

    def _stay(self, copy: Copy, stop: Candidate, seen: Observation) -> None:
        """Do here what the packet chose to stay for; once a hop, so that effects stay unique."""
        header = copy.header
        if stop.transfer_s == inf:
            self.wait(copy, f"a way to {stop.node}")
        elif stop.kind is StopKind.HOME and (
            seen.phase is Phase.RETURN or copy.failures >= HOME_PATIENCE
        ):
            self.back(copy, stop)
        elif stop.kind is StopKind.MPVU and not _done_here(header, RecordKind.VERIFY):
            self._steps.verify(copy)
        elif stop.kind is StopKind.DATA and not _done_here(header, *VISITS):
            copy.change(Status.WORKED, data_of=stop.node)
            self._steps.visit(copy)
        elif stop.kind is StopKind.DATA:
            self._come_back(copy, stop, seen)
        else:
            self.wait(copy, "another stop")

    def _come_back(self, copy: Copy, stop: Candidate, seen: Observation) -> None:
        """Make one more visit here a hop of its own: by a neighbour and back.

        Where the last visit was to the same data, nothing else is in reach: that may change, so
        it waits a little first. It goes home while it can.
        """
        desk, header = self._desk, copy.header
        home = next(c for c in seen.candidates if c.kind is StopKind.HOME)
        around = [n for n in desk.neighbours if n not in copy.avoid]
        size = header.manifest.total
        again = next((e.node for e in reversed(header.journal) if e.action != "verify"), "")
        if not around or (again == stop.node and copy.failures < PATIENCE):
            self.wait(copy, "another stop")
        elif header.hops_left >= len(home.path) + 2:
            by = min(around, key=lambda n: (desk.map.transfer_s(desk.node, (n,), size), n))
            self.go(copy, (by, desk.node), stop)
        elif home.path:
            self.go(copy, home.path, home)
        else:
            self.wait(copy, f"a way to {home.node}")

    def timed_out(self, key: CustodyKey) -> None:
        """Decide with the probes at hand."""
        copy = self._held.copies.get(key)
        if copy is not None and copy.decision is not None:
            self._choose(copy)

    def _wait(self, copy: Copy, for_what: str, seconds: float) -> None:
        copy.doing = Doing.WAITING
        self._desk.trace("packet.waiting", packet=copy.header.id, hop=copy.header.hop, why=for_what)
        self._desk.timers.set(("retry", copy.key), self._desk.now + seconds)

    def wait(self, copy: Copy, for_what: str) -> None:
        """Try again later, each time after a longer while."""
        wait_s = min(self._desk.config.retry_s * 2.0 ** min(copy.failures, 10), RETRY_MAX_S)
        copy.failures += 1
        self._wait(copy, for_what, wait_s)

    def wake(self, peer: NodeId) -> None:
        """Look again soon: a link to this neighbour has come up, so there may be a way now."""
        at = self._desk.now + self._desk.config.retry_s
        for copy in self._held.copies.values():
            copy.avoid.pop(peer, None)
            if copy.doing is Doing.WAITING:
                self._desk.timers.hasten(("retry", copy.key), at)

    def retry(self, key: CustodyKey) -> None:
        """Go on with a copy that waited."""
        copy = self._held.copies.get(key)
        if copy is None or copy.doing is not Doing.WAITING:
            return
        copy.doing = Doing.NOTHING
        if copy.row.chosen:
            self._steps.offer(copy)
        else:
            self.decide(copy)


def _done_here(header: Header, *kinds: RecordKind) -> bool:
    return any(r.kind in kinds and r.hop == header.hop for r in header.chain)


def _remembering(header: Header, decision: Probing, seen: Observation) -> Header:
    """Return the header with what its probes found and cost."""
    found = tuple(
        ProbeEntry(c.node, header.hop, p.gain, p.alignment, p.loss, c.data_seq)
        for c in seen.candidates
        if (p := seen.probes.get(c.node)) is not None
    )
    spent = header.spent + Cost(bytes=decision.bytes)
    probe_bytes = header.probe_bytes + decision.bytes
    return replace(header.with_probes(found), spent=spent, probe_bytes=probe_bytes)


def _ask(header: Header, data_of: NodeId) -> ProbeAsk:
    mandate = header.mandate
    return ProbeAsk(
        header.mandate.id,
        header.version,
        mandate.architecture,
        tuple(t.skill for t in mandate.requirement),
        mandate.seed + header.hop,
        data_of=data_of,
    )
