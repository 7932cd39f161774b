"""From a packet and its topology to what a policy sees: observation, legal choices, phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from aats.ids import NodeId
from aats.lineage import RecordKind
from aats.messages import ProbeScores
from aats.packet import EstimateSource, Header, Target
from aats.routing.features import (
    FEATURES,
    GLOBALS,
    OBSERVATION_VERSION,
    Column,
    label_shape,
)
from aats.routing.policy import BoolArray, Observation, Phase
from aats.routing.view import Journey, Kind, Stops, look, stage_of
from aats.topology.stops import Candidate, StopKind, Topology

__all__ = ["FEATURES", "GLOBALS", "OBSERVATION_VERSION", "observe", "phase"]

KINDS = {StopKind.DATA: Kind.DATA, StopKind.MPVU: Kind.MPVU, StopKind.HOME: Kind.HOME}
PHASES = (Phase.SEEK, Phase.VERIFY, Phase.RETURN)
"""By `Stage`."""
ROWS = 32
"""Candidates that a policy sees unless it wants all."""
MAX_CELLS = 1 << 22
"""Numbers in all histograms of an observation, padded to the longest: what would need more counts
as withheld, or no stranger's advert would bound what a node allocates."""
NO_PROBES: Mapping[NodeId, ProbeScores] = {}


def observe(
    header: Header,
    topology: Topology,
    now: float,
    *,
    probes: Mapping[NodeId, ProbeScores] = NO_PROBES,
    k: int = ROWS,
) -> Observation:
    """Return what the packet's policy sees here and now.

    Args:
        header: The packet.
        topology: What `drrt.cut` found for it; its last candidate is home.
        now: Seconds, on the clock of the mandate's deadline.
        probes: Scores at hand, by data node.
        k: Rows. MPVUs (up to 4) and home always have one; the rest goes to the data nodes that
            promise most for their cost, or that the packet has not seen for long.

    Raises:
        ValueError: If the topology has no candidate, or k is too small for those always kept.
    """
    if not topology.candidates:
        raise ValueError("observe: a topology has at least one candidate (home)")
    if k <= 5:
        raise ValueError(f"observe: k is {k}, must be above 5")
    journey = journey_of(header, now, topology.candidates)
    seen = look(stops_of(header, topology.candidates, probes, journey), journey, k)
    kept = tuple(topology.candidates[i] for i in seen.rows.tolist() if i >= 0)
    return Observation(
        features=seen.features,
        globals=seen.globals,
        mask=seen.mask,
        candidates=kept,
        phase=PHASES[int(seen.stage)],
        here=topology.here,
        probes={c.node: probes[c.node] for c in kept if c.node in probes},
        labels_used={skill: tuple(used) for skill, used in header.labels_used.items()},
        hop=_visits(header),
        visited=tuple(e.node for e in header.journal if e.action != "verify"),
        seed=header.mandate.seed,
    )


def phase(header: Header, now: float, *, hops_home: int = 0) -> Phase:
    """Return what the packet is after, whatever its topology (`aats.routing.view.stage_of`).

    Args:
        header: The packet.
        now: Seconds, on the clock of the deadline.
        hops_home: Links to the owner.
    """
    return PHASES[int(stage_of(journey_of(header, now), np.array(float(hops_home))))]


# --- a packet as arrays -----------------------------------------------------------------------


def journey_of(header: Header, now: float, candidates: Sequence[Candidate] = ()) -> Journey:
    """Return what a packet knows of itself, as arrays without leading dimensions.

    Args:
        header: The packet.
        now: Seconds, on the clock of the deadline.
        candidates: Their histograms tell the number of classes.
    """
    targets = header.mandate.requirement
    most = _most_classes(len(targets), len(candidates))
    used = [_short(header.labels_used.get(t.skill, ()), most) for t in targets]
    classes = [
        max([2, len(u), *(len(_short(c.labels.get(t.skill, ()), most)) for c in candidates)])
        for t, u in zip(targets, used, strict=True)
    ]
    budget, spent = header.mandate.budget, header.spent
    beliefs = [header.belief(t) for t in targets]
    bias = [_bias(header, t) for t in targets]
    through, judged = _is_through(header), _is_judged(header)
    if through and not judged:  # it asks, whatever it believes
        beliefs = [t.value + b for t, b in zip(targets, bias, strict=True)]
    return Journey(
        target=_column(t.value for t in targets),
        classes=np.array(classes, np.int64),
        belief=_column(np.nan if b is None else b for b in beliefs),
        estimated=_flags(_is_estimated(header, t) for t in targets),
        met=_flags(header.met(t) for t in targets),
        bias=_column(bias),
        used=_padded(used, max([2, *classes])),
        spent=np.array([spent.hops, spent.seconds, spent.bytes, spent.joules], np.float64),
        budget=np.array([budget.hops, budget.seconds, budget.bytes, budget.joules], np.float64),
        size_bytes=np.array(float(header.manifest.total)),
        visits=np.array(float(_visits(header))),
        since_verdict=np.array(float(_visits_since_verdict(header))),
        has_verdict=np.array(any(e.action == "verify" for e in header.journal)),
        late=np.array(now >= header.mandate.deadline or (through and judged)),
    )


def _is_through(header: Header) -> bool:
    """Return whether the packet has made all visits that its mandate allows (`Guard.visits`)."""
    most = header.mandate.method.params.get("visits", 0)
    made = header.trained.get("visits", 0.0)
    return isinstance(most, int | float) and 0 < most <= made


def _is_judged(header: Header) -> bool:
    """Return whether nobody else need measure this version: an MPVU did, or none must."""
    return all(t.verifier == "any" for t in header.mandate.requirement) or any(
        e.action == "verify" for e in header.journal[-1:]
    )


def _is_estimated(header: Header, target: Target) -> bool:
    return any(
        s.skill == target.skill and s.metric == target.metric and s.version == header.version
        for s in header.skills
    )


def _bias(header: Header, target: Target) -> float:
    """Return by how much the belief was above the last verdict, on the version it judged.

    Where the chain does not tell, the packet believed at least the target when it asked.
    """
    verdict = next(
        (
            s
            for s in header.skills
            if s.skill == target.skill
            and s.metric == target.metric
            and s.source is EstimateSource.MPVU
        ),
        None,
    )
    if verdict is None:
        return 0.0
    believed = f"{target.skill}.{target.metric}.{EstimateSource.REFERENCE}"
    for record in reversed(header.chain):
        if record.version == verdict.version and believed in record.metrics:
            return record.metrics[believed] - verdict.value
    return max(0.0, target.value - verdict.value)


def _visits(header: Header) -> int:
    in_chain = sum(
        record.kind in (RecordKind.TRAIN, RecordKind.ROLLED_BACK) for record in header.chain
    )
    return max(in_chain, sum(entry.action != "verify" for entry in header.journal))


def _visits_since_verdict(header: Header) -> int:
    count = 0
    for entry in reversed(header.journal):
        if entry.action == "verify":
            break
        count += entry.action != "refused"
    return count


# --- candidates as arrays ---------------------------------------------------------------------


def stops_of(
    header: Header,
    candidates: Sequence[Candidate],
    probes: Mapping[NodeId, ProbeScores],
    journey: Journey,
) -> Stops:
    """Return the candidates as arrays [N]."""
    skills = [t.skill for t in header.mandate.requirement]
    last = next((e.node for e in reversed(header.journal) if e.action != "verify"), None)
    shape = len(candidates), len(skills)
    most, width = _most_classes(len(skills), len(candidates)), journey.used.shape[-1]
    labels = _padded([_short(c.labels.get(s, ()), most) for c in candidates for s in skills], width)
    labels = labels.reshape(*shape, width)
    return Stops(
        kind=np.array([KINDS[c.kind] for c in candidates], np.int64),
        links=_column(len(c.path) for c in candidates),
        transfer_s=_column(c.transfer_s for c in candidates),
        compute_s=_column(c.compute_s for c in candidates),
        probe_s=_column(c.probe_s for c in candidates),
        verify_s=_column(c.verify_s for c in candidates),
        samples=_column(c.samples.get(s, 0) for c in candidates for s in skills).reshape(shape),
        labels=labels,
        label_shape=label_shape(labels, journey.classes),
        shown=_flags(
            s in c.labels and len(c.labels[s]) <= most for c in candidates for s in skills
        ).reshape(shape),
        quality=_column(c.quality for c in candidates),
        freshness_s=_column(c.freshness_s for c in candidates),
        age_s=_column(c.age_s for c in candidates),
        visits=_column(c.visits for c in candidates),
        hops_since=_column(c.hops_since for c in candidates),
        last_gain=_column(c.last_gain for c in candidates),
        hurt=_flags(c.hurt for c in candidates),
        is_last=_flags(c.kind is StopKind.DATA and c.node == last for c in candidates),
        probe_allowed=_flags(c.probe_allowed for c in candidates),
        trust=_column(c.trust for c in candidates),
        probe=np.array([_scores(c, probes) for c in candidates], np.float64),
        past=np.array([_memory(c) for c in candidates], np.float64),
    )


def _scores(candidate: Candidate, probes: Mapping[NodeId, ProbeScores]) -> tuple[float, ...]:
    p = probes.get(candidate.node) if candidate.kind is StopKind.DATA else None
    return (1.0, p.gain, p.alignment, p.loss, p.gradient_norm) if p else (0.0,) * 5


def _memory(candidate: Candidate) -> tuple[float, ...]:
    p = candidate.probed
    age = float(candidate.hops_since_probe)
    return (1.0, p.gain, p.alignment, p.loss, age) if p else (0.0,) * 5


def _most_classes(num_targets: int, num_candidates: int) -> int:
    return max(2, MAX_CELLS // max(1, num_targets * num_candidates))


def _short(counts: Sequence[float], most: int) -> Sequence[float]:
    return counts if len(counts) <= most else ()


def _padded(counts: Sequence[Sequence[float]], width: int) -> Column:
    found = np.zeros((len(counts), width))
    for row, values in zip(found, counts, strict=True):
        row[: len(values)] = values
    return found


def _column(values: Iterable[float]) -> Column:
    return np.fromiter(values, np.float64)


def _flags(values: Iterable[bool]) -> BoolArray:
    return np.fromiter(values, np.bool_)
