"""One packet's data, resource and reachability topology (DA-ITN DRRT): a query over the map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from aats.advert import Advert, DataAdvert, Partner, ProbeMode, Role
from aats.ids import NodeId
from aats.packet import Header, VisitEntry
from aats.topology.map import GlobalMap
from aats.topology.stops import Candidate, StopKind, Topology

HEADER_BYTES = 4096
"""What a header adds to a move, roughly."""
RECORD_BYTES = 700
"""What each record of the chain adds to a header, roughly."""
HURT_GAIN = -0.2
"""A visit that changed the mean capped skill by less than this hurt. Less than that is what an
honest but one-sided node costs, and what a small reference set cannot tell from chance."""


def cut(
    map: GlobalMap, header: Header, here: NodeId, now: float, *, max_age_s: float = 120.0
) -> Topology:
    """Return the stops that make sense for a packet, with what is known of each.

    Data nodes count if they hold a wanted skill in the packet's schema (whole samples, not a view
    of them), take a packet of its size, and they or the compute node they trust can be reached
    and can compute. Adverts older than `max_age_s` do not count. Home is always the last
    candidate; out of reach it has `transfer_s` infinity. An empty path with a finite
    `transfer_s` means staying.

    Returns:
        Candidates in order of kind (data, MPVU, home) and then of node id.
    """
    query = _Query(map, header, here, now, max_age_s)
    data: list[Candidate] = []
    mpvus: list[Candidate] = []
    for advert in map.adverts():
        if query.is_fresh(advert.origin) and header.manifest.total <= _limit(advert):
            data.extend(query.data_stop(advert))
            mpvus.extend(query.mpvu_stop(advert))
    return Topology(here, (*data, *mpvus, query.home()))


def partners(
    map: GlobalMap, header: Header, here: NodeId, now: float, *, max_age_s: float = 120.0
) -> tuple[Partner, ...]:
    """Return the nodes that may work with a packet at one moment, in the order of their ids.

    All that hold wanted data in its schema, or a view of them, and can be reached; `here` too,
    with no links.
    """
    query = _Query(map, header, here, now, max_age_s)
    fresh = [advert for advert in map.adverts() if query.is_fresh(advert.origin)]
    return tuple(sorted(
        (partner for advert in fresh for partner in query.partner(advert)), key=lambda p: p.node
    ))  # fmt: skip


def wanted_skills(header: Header) -> tuple[str, ...]:
    """Return the skills of the requirement, each once."""
    return tuple(dict.fromkeys(target.skill for target in header.mandate.requirement))


def data_seq(data: Iterable[DataAdvert], skills: Iterable[str]) -> int:
    """Return a number that grows whenever a node's data for one of these skills change."""
    wanted = set(skills)
    return sum(item.seq for item in data if item.skill in wanted)


def is_data_visit(entry: VisitEntry) -> bool:
    """Return whether a journal line is about a node's data (and not about a verdict)."""
    return entry.action != "verify"


def _limit(advert: Advert) -> int:
    return advert.policy.max_packet_bytes


PROBE_SAMPLES = 165.0
"""Work of a probe in samples trained on: five steps on 16 rows, and a judgement on 64 trusted ones
before and after."""


@dataclass(frozen=True, slots=True)
class _Past:
    """What the journal says of one node."""

    visits: int = 0
    hops_since: int = -1
    last_gain: float = 0.0
    last: VisitEntry | None = None
    trust: float = 1.0


class _Query:
    """The parts of a cut; holds what they share."""

    def __init__(
        self, map: GlobalMap, header: Header, here: NodeId, now: float, max_age_s: float
    ) -> None:
        self.map, self.header, self.here = map, header, here
        self.now, self.max_age_s = now, max_age_s
        self.size_bytes = header.manifest.total + HEADER_BYTES
        self.seconds = map.distances(here, self.size_bytes)
        self.answers = map.distances(here, HEADER_BYTES)
        self.verify: dict[NodeId, float] = {}
        for advert in map.adverts():
            if Role.MPVU in advert.roles and self.is_fresh(advert.origin):
                # Links work both ways, so the way there is as long as the way from there.
                for node, seconds in map.distances(advert.origin, self.size_bytes).items():
                    self.verify[node] = min(seconds, self.verify.get(node, math.inf))
        self.skills = wanted_skills(header)
        self.probed = {entry.node: entry for entry in header.probed}
        schemas = header.mandate.architecture.config.get("schemas")
        self.schemas = schemas if isinstance(schemas, dict) else {}

    def is_fresh(self, node: NodeId) -> bool:
        return self.map.age_s(node, self.now) <= self.max_age_s

    def data_stop(self, advert: Advert) -> Iterator[Candidate]:
        wanted = [item for item in advert.data if self._wants(item)]
        if Role.DATA not in advert.roles or not wanted:
            return
        stop = wanted[0].delegate or advert.origin
        wanted = [item for item in wanted if (item.delegate or advert.origin) == stop]
        host = self.map.advert(stop)
        if host is None or stop not in self.seconds or not self.is_fresh(stop):
            return
        speed = host.compute.samples_per_s
        if not speed > 0 or self.header.manifest.total > _limit(host):
            return
        samples = {item.skill: item.samples for item in wanted}
        total = sum(samples.values())
        seq = data_seq(advert.data, self.skills)
        past = self._past(advert.origin, is_data=True)
        probed = self.probed.get(advert.origin)
        if probed is not None and probed.advert_data_seq != seq:
            probed = None
        yield Candidate(
            node=advert.origin,
            kind=StopKind.DATA,
            path=self._path(stop),
            transfer_s=self.seconds[stop],
            compute_s=total / speed * (1 + max(0, host.compute.queue)),
            probe_s=self.seconds[stop] + self.answers[stop] + PROBE_SAMPLES / speed,
            verify_s=self.verify.get(stop, math.inf),
            samples=samples,
            labels={item.skill: item.labels for item in wanted if item.labels},
            quality=sum(item.quality * item.samples for item in wanted) / total,
            freshness_s=min(item.freshness_s for item in wanted),
            age_s=self.map.age_s(advert.origin, self.now),
            visits=past.visits,
            hops_since=past.hops_since,
            last_gain=past.last_gain,
            hurt=_has_hurt(past.last, seq),
            probe_allowed=advert.policy.probe is not ProbeMode.NONE,
            probed=probed,
            hops_since_probe=max(0, self.header.hop - probed.hop) if probed else -1,
            data_seq=seq,
            trust=past.trust,
        )

    def mpvu_stop(self, advert: Advert) -> Iterator[Candidate]:
        if Role.MPVU in advert.roles and advert.origin in self.seconds:
            yield self._plain(advert.origin, StopKind.MPVU, self.seconds[advert.origin])

    def home(self) -> Candidate:
        home = self.header.home
        return self._plain(home, StopKind.HOME, self.seconds.get(home, math.inf))

    def partner(self, advert: Advert) -> Iterator[Partner]:
        data = tuple(item for item in advert.data if self._may_help(item))
        transfer_s = self.seconds.get(advert.origin, math.inf)
        if data and transfer_s < math.inf:
            links = len(self._path(advert.origin))
            yield Partner(advert.origin, data, advert.compute, transfer_s, links)

    def _wants(self, item: DataAdvert) -> bool:
        return not item.view and self._may_help(item)

    def _may_help(self, item: DataAdvert) -> bool:
        if item.skill not in self.skills or not item.samples > 0:
            return False
        return bool(self.schemas.get(item.skill, item.schema) == item.schema)

    def _plain(self, node: NodeId, kind: StopKind, transfer_s: float) -> Candidate:
        past = self._past(node, is_data=False)
        age_s = self.map.age_s(node, self.now)
        return Candidate(
            node=node,
            kind=kind,
            path=self._path(node),
            transfer_s=transfer_s,
            compute_s=0.0,
            verify_s=self.verify.get(node, math.inf),
            age_s=min(age_s, self.max_age_s),
            visits=past.visits,
            hops_since=past.hops_since,
            probe_allowed=False,
            trust=past.trust,
        )

    def _path(self, stop: NodeId) -> tuple[NodeId, ...]:
        return self.map.path(self.here, stop, self.size_bytes)

    def _past(self, node: NodeId, *, is_data: bool) -> _Past:
        entries = [e for e in self.header.journal if e.node == node and is_data_visit(e) is is_data]
        if not entries:
            return _Past()
        last = entries[-1]
        bad = sum(e.action in ("refused", "rolled-back") for e in entries)
        return _Past(
            visits=len(entries),
            hops_since=max(0, self.header.hop - last.hop),
            last_gain=last.gain,
            last=last,
            trust=(1 + len(entries) - bad) / (1 + len(entries)),
        )


def _has_hurt(last: VisitEntry | None, seq: int) -> bool:
    if last is None or last.advert_data_seq != seq:
        return False
    return last.action == "rolled-back" or last.gain < HURT_GAIN
