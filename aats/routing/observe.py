"""From a packet and its topology to what a policy sees: observation, legal choices, phase."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from aats.ids import NodeId
from aats.lineage import RecordKind
from aats.messages import ProbeScores
from aats.packet import Cost, EstimateSource, Header, Target
from aats.routing.features import (
    FEATURES,
    GLOBALS,
    OBSERVATION_VERSION,
    Column,
    Columns,
    encode_candidates,
    encode_packet,
    label_shape,
    relative_to_median,
)
from aats.routing.policy import BoolArray, Observation, Phase
from aats.topology.stops import Candidate, StopKind, Topology

__all__ = ["FEATURES", "GLOBALS", "OBSERVATION_VERSION", "legal", "observe", "phase"]

MAX_MPVUS = 4
"""MPVUs kept among the K: the nearest, for the case that one refuses."""
SATURATION = 200.0
"""Clean samples of a skill after which more of them say little new."""
VISITS_BETWEEN_VERDICTS = 3
"""After a failed verdict, or without an estimate to go by, so many visits come first."""
MAX_AGE_S = 120.0
DAY_S = 86_400.0
NO_PROBES: Mapping[NodeId, ProbeScores] = {}


def observe(
    header: Header,
    topology: Topology,
    now: float,
    *,
    probes: Mapping[NodeId, ProbeScores] = NO_PROBES,
    k: int = 32,
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
    kept = _preselect(header, topology, k)
    now_phase = _phase_here(header, kept, topology.here, now)
    raw = _describe(header, kept, probes)
    features = np.zeros((k, len(FEATURES)), np.float32)
    features[: len(kept)] = encode_candidates(raw)
    mask = np.zeros(k, np.bool_)
    mask[: len(kept)] = legal(header, kept, now_phase)
    return Observation(
        features=features,
        globals=encode_packet(_describe_packet(header, len(topology.candidates), now_phase)),
        mask=mask,
        candidates=kept,
        phase=now_phase,
        here=topology.here,
        probes={c.node: probes[c.node] for c in kept if c.node in probes},
        labels_used={skill: tuple(used) for skill, used in header.labels_used.items()},
        hop=_visits(header),
        visited=tuple(e.node for e in header.journal if e.action != "verify"),
        seed=header.mandate.seed,
    )


# --- phase ------------------------------------------------------------------------------------


def phase(header: Header, now: float, *, hops_home: int = 0) -> Phase:
    """Return what the packet is after.

    RETURN when every target is met, the deadline has passed, or the budget just covers the way
    home; VERIFY when every target is believed met; else SEEK. After a failed verdict the belief
    must rise by what was lacking, or some visits come first.

    Args:
        header: The packet.
        now: Seconds, on the clock of the deadline.
        hops_home: Links to the owner.
    """
    # One move more than the way home: another stop may lie one link further from it.
    reserve = Cost(bytes=(hops_home + 1) * header.manifest.total)
    if (
        header.requirement_met
        or now >= header.mandate.deadline
        or header.hops_left <= hops_home + 1
        or (header.spent + reserve).exceeds(header.mandate.budget)
    ):
        return Phase.RETURN
    ready = all(_is_ready(header, target) for target in header.mandate.requirement)
    return Phase.VERIFY if ready else Phase.SEEK


def _phase_here(header: Header, kept: Sequence[Candidate], here: NodeId, now: float) -> Phase:
    now_phase = phase(header, now, hops_home=_hops_home(kept))
    work = [c for c in kept if c.kind is not StopKind.HOME and _is_reachable(c)]
    if work and not any(_is_affordable(header, c, _hops_home(kept)) for c in work):
        return Phase.RETURN
    return now_phase


def _is_ready(header: Header, target: Target) -> bool:
    """Whether a target is met, or believed met strongly enough to ask an MPVU."""
    if header.met(target):
        return True
    belief = header.belief(target)
    visits = _visits_since_verdict(header)
    if not _is_estimated(header, target):
        return visits >= VISITS_BETWEEN_VERDICTS
    lacking = 0.0 if visits >= VISITS_BETWEEN_VERDICTS else _shortfall(header, target)
    return belief is not None and belief >= target.value + lacking


def _is_estimated(header: Header, target: Target) -> bool:
    return any(
        s.skill == target.skill and s.metric == target.metric and s.version == header.version
        for s in header.skills
    )


def _shortfall(header: Header, target: Target) -> float:
    """Return by how much the last verdict missed the target, 0 without one."""
    verdicts = (
        s.value
        for s in header.skills
        if s.skill == target.skill and s.metric == target.metric and s.source is EstimateSource.MPVU
    )
    return max(0.0, max((target.value - value for value in verdicts), default=0.0))


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


# --- what is legal ----------------------------------------------------------------------------


def legal(header: Header, candidates: Sequence[Candidate], now_phase: Phase) -> BoolArray:
    """Return which candidates may be chosen now; never none of them.

    SEEK: data nodes, but not the one just visited if there is another; VERIFY: MPVUs, or data
    nodes if none can be reached; RETURN: home. Nothing that cannot be reached, or from which
    the hops left might not lead home. If nothing is left, home, however far.
    """
    hops_home = _hops_home(candidates)
    open_ = [_is_reachable(c) and _is_affordable(header, c, hops_home) for c in candidates]
    last = next((e.node for e in reversed(header.journal) if e.action != "verify"), None)

    def of(kind: StopKind, *, but: NodeId | None = None) -> list[bool]:
        return [
            ok and c.kind is kind and c.node != but for c, ok in zip(candidates, open_, strict=True)
        ]

    choices: list[list[bool]] = []
    if now_phase is Phase.VERIFY:
        choices.append(of(StopKind.MPVU))
    if now_phase is not Phase.RETURN:
        choices += [of(StopKind.DATA, but=last), of(StopKind.DATA)]
    choices.append([c.kind is StopKind.HOME for c in candidates])
    choices.append([True] * len(candidates))
    return np.array(next(choice for choice in choices if any(choice)), np.bool_)


def _is_reachable(candidate: Candidate) -> bool:
    return math.isfinite(candidate.transfer_s)


def _is_affordable(header: Header, candidate: Candidate, hops_home: int) -> bool:
    # Links work both ways, so from the stop home is at most the way back and then home.
    links = len(candidate.path)
    return 2 * links + hops_home <= header.hops_left


def _hops_home(candidates: Sequence[Candidate]) -> int:
    return next((len(c.path) for c in candidates if c.kind is StopKind.HOME), 0)


# --- which candidates get a row ---------------------------------------------------------------


def _preselect(header: Header, topology: Topology, k: int) -> tuple[Candidate, ...]:
    if not topology.candidates:
        raise ValueError("observe: a topology has at least one candidate (home)")
    if k <= MAX_MPVUS + 1:
        raise ValueError(f"observe: k is {k}, must be above {MAX_MPVUS + 1}")
    if len(topology.candidates) <= k and _count(topology, StopKind.MPVU) <= MAX_MPVUS:
        return topology.candidates
    homes = [c for c in topology.candidates if c.kind is StopKind.HOME][:1]
    mpvus = [c for c in topology.candidates if c.kind is StopKind.MPVU]
    mpvus = sorted(mpvus, key=lambda c: (c.transfer_s, c.node))[:MAX_MPVUS]
    data = [c for c in topology.candidates if c.kind is StopKind.DATA]
    data = sorted(data, key=lambda c: (-_promise(header, c), c.node))
    chosen = {id(c) for c in (*homes, *mpvus, *data[: k - len(homes) - len(mpvus)])}
    return tuple(c for c in topology.candidates if id(c) in chosen)


def _count(topology: Topology, kind: StopKind) -> int:
    return sum(c.kind is kind for c in topology.candidates)


def _promise(header: Header, candidate: Candidate) -> float:
    """Cheap score of a data node: log of need x supply over cost, plus how long ago it was."""
    cost_s = candidate.transfer_s + candidate.compute_s
    gain = math.log(_need_supply(header, candidate) + 1e-3)
    since = max(0, candidate.hops_since) if candidate.visits else 128
    return gain - math.log(cost_s + 1e-3) + math.log1p(since) - 10.0 * candidate.hurt


def _gap(header: Header, target: Target) -> float:
    belief = header.belief(target)
    return 1.0 if belief is None else 1.0 - _capped(belief, target.value)


def _capped(value: float, target: float) -> float:
    return min(1.0, max(0.0, value / target)) if target > 0 else 1.0


def _need_supply(header: Header, candidate: Candidate) -> float:
    targets = header.mandate.requirement
    if not targets:
        return 0.0
    gains = []
    for target in targets:
        clean = candidate.samples.get(target.skill, 0) * candidate.quality
        gains.append(_gap(header, target) * (1 - math.exp(-max(0.0, clean) / SATURATION)))
    return math.fsum(gains) / len(targets)


# --- raw columns ------------------------------------------------------------------------------


def _describe(
    header: Header, candidates: Sequence[Candidate], probes: Mapping[NodeId, ProbeScores]
) -> Columns:
    is_data = np.array([c.kind is StopKind.DATA for c in candidates])
    samples = _column(sum(c.samples.values()) for c in candidates)
    transfer = _column(c.transfer_s for c in candidates)
    compute = _column(c.compute_s for c in candidates)
    visits = _column(c.visits for c in candidates)
    labels = _describe_labels(header, candidates)
    found = [probes.get(c.node) if c.kind is StopKind.DATA else None for c in candidates]
    return {
        "is_data": is_data.astype(np.float64),
        "is_mpvu": _column(c.kind is StopKind.MPVU for c in candidates),
        "is_home": _column(c.kind is StopKind.HOME for c in candidates),
        "is_here": _column(not c.path and _is_reachable(c) for c in candidates),
        "need_supply": _column(_need_supply(header, c) for c in candidates),
        "log_samples": samples,
        "samples_ratio": relative_to_median(samples, is_data),
        "quality": _column(c.quality for c in candidates),
        "freshness": _column(1 / (1 + max(0.0, c.freshness_s) / DAY_S) for c in candidates),
        "advert_age": _column(c.age_s / MAX_AGE_S for c in candidates),
        "log_transfer": transfer,
        "log_compute": compute,
        "cost_ratio": relative_to_median(transfer + compute, is_data),
        "visits_share": visits / max(1.0, visits[is_data].sum()),
        "is_new": _column(c.visits == 0 for c in candidates),
        "hops_since": _column(max(0, c.hops_since) for c in candidates),
        "last_gain": _column(c.last_gain for c in candidates),
        "hurt": _column(c.hurt for c in candidates),
        **labels,
        "has_probe": _column(p is not None for p in found),
        "probe_gain": _column(p.gain if p else 0.0 for p in found),
        "probe_alignment": _column(p.alignment if p else 0.0 for p in found),
        "probe_loss": _column(p.loss if p else 0.0 for p in found),
        "probe_gradient_norm": _column(p.gradient_norm if p else 0.0 for p in found),
        "probe_allowed": _column(c.probe_allowed for c in candidates),
        "trust": _column(c.trust for c in candidates),
    }


def _describe_labels(header: Header, candidates: Sequence[Candidate]) -> Columns:
    """Columns on label histograms, averaged over a candidate's skills that show one."""
    names = "labels_known", "label_entropy", "label_hhi", "label_weakest", "label_balance"
    rows = np.zeros((len(candidates), len(names)))
    for row, candidate in zip(rows, candidates, strict=True):
        shapes = [
            _label_row(histogram, header.labels_used.get(skill, ()))
            for skill, histogram in sorted(candidate.labels.items())
        ]
        if shapes:
            row[0] = len(shapes) / max(1, len(candidate.samples))
            row[1:] = np.sort(np.array(shapes), axis=0).mean(axis=0)
    return dict(zip(names, rows.T, strict=True))


def _label_row(histogram: tuple[int, ...], used: Sequence[float]) -> tuple[float, ...]:
    # Sorted counts: sums of floats depend on their order, and no class is the first.
    own = np.sort(np.asarray(histogram, np.float64))
    entropy, hhi, weakest = label_shape(own)
    both = np.asarray(histogram, np.float64)
    if len(used) == len(histogram):
        both = both + np.asarray(used, np.float64)
    balance, _, _ = label_shape(np.sort(both))
    return float(entropy), float(hhi), float(weakest), float(balance)


def _describe_packet(header: Header, num_candidates: int, now_phase: Phase) -> Columns:
    targets = header.mandate.requirement
    gaps = sorted(_gap(header, target) for target in targets) or [0.0]
    mean_gap = math.fsum(gaps) / len(gaps)
    believed = [(header.belief(t) or 0.0) >= t.value for t in targets] or [True]
    verified = [header.met(t) for t in targets] or [True]
    budget, spent = header.mandate.budget, header.spent
    return {
        name: np.array(float(value))
        for name, value in {
            "belief_mean": 1 - mean_gap,
            "belief_min": 1 - max(gaps),
            "gap": mean_gap,
            "believed_share": sum(believed) / len(believed),
            "verified_share": sum(verified) / len(verified),
            "hops_used": _used(spent.hops, budget.hops),
            "seconds_used": _used(spent.seconds, budget.seconds),
            "bytes_used": _used(spent.bytes, budget.bytes),
            "joules_used": _used(spent.joules, budget.joules),
            "visits": _visits(header),
            "visits_since_verdict": _visits_since_verdict(header),
            "has_verdict": any(e.action == "verify" for e in header.journal),
            "log_candidates": num_candidates,
            "is_seek": now_phase is Phase.SEEK,
            "is_verify": now_phase is Phase.VERIFY,
            "is_return": now_phase is Phase.RETURN,
        }.items()
    }


def _used(spent: float, budget: float) -> float:
    if math.isinf(budget):
        return 0.0
    return spent / budget if budget > 0 else 1.0


def _column(values: Iterable[float]) -> Column:
    return np.fromiter(values, np.float64)
