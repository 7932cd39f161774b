"""What a packet knows, as arrays, and what follows from it: phase, rows, legal choices, features.

Everything takes any leading dimensions [...]: a node's daemon looks at one packet, a learning
environment at a batch of them, and both by these functions. `aats.routing.observe` fills the
arrays from a header and its topology.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from aats.routing.features import (
    PROBE_COLUMNS,
    Column,
    Columns,
    encode_candidates,
    encode_packet,
    evenness,
    relative_to_median,
)
from aats.routing.policy import BoolArray, FloatArray

IntArray = npt.NDArray[np.int64]

MAX_MPVUS = 4
"""MPVUs kept among the K: the nearest, for the case that one refuses."""
SATURATION = 200.0
"""Clean samples of a skill after which more of them say little new."""
VISITS_BETWEEN_VERDICTS = 3
"""Without an estimate to go by, so many visits come before a verdict; and after one that
disappointed, half of the doubt is gone after so many."""
MAX_AGE_S = 120.0
DAY_S = 86_400.0
NEVER = 128.0
"""Hops since its last visit that a node never visited counts as, among those that get a row."""


class Kind(IntEnum):
    """`StopKind` in arrays; NONE pads."""

    DATA = 0
    MPVU = 1
    HOME = 2
    NONE = -1


class Stage(IntEnum):
    """`Phase` in arrays."""

    SEEK = 0
    VERIFY = 1
    RETURN = 2


@dataclass(slots=True)
class Stops:
    """Candidates [..., N], in the order in which they get their rows. See `Candidate`."""

    kind: IntArray
    links: Column
    """0 for staying; what cannot be reached has an infinite `transfer_s`."""
    transfer_s: Column
    compute_s: Column
    probe_s: Column
    verify_s: Column
    samples: Column
    """[..., N, T]"""
    labels: Column
    """[..., N, T, C]; zeros where withheld and past a skill's number of classes."""
    label_shape: Column
    """[..., N, T, 3] of the histogram (`aats.routing.features.label_shape`)."""
    shown: BoolArray
    """[..., N, T] whether the histogram is shown."""
    quality: Column
    freshness_s: Column
    age_s: Column
    visits: Column
    hops_since: Column
    last_gain: Column
    hurt: BoolArray
    is_last: BoolArray
    """The data visited last."""
    probe_allowed: BoolArray
    trust: Column
    probe: Column
    """[..., N, 5]: 1 if there is one, gain, alignment, loss, gradient norm."""
    past: Column
    """[..., N, 5]: 1 if there is one, gain, alignment, loss, hops since."""

    def rows(self, index: IntArray) -> Stops:
        """Return the candidates `index` [..., K]; -1 gives an empty row of kind NONE."""
        *lead, n = self.kind.shape
        first = n * np.arange(math.prod(lead)).reshape(*lead, 1)
        at, found = first + np.maximum(index, 0), {}
        for field in fields(self):
            values = getattr(self, field.name)
            flat = values.reshape(-1, *values.shape[len(lead) + 1 :])
            found[field.name] = flat.take(at, axis=0)
        found["kind"] = np.where(index < 0, Kind.NONE, found["kind"])
        return Stops(**found)


@dataclass(slots=True)
class Journey:
    """Packets [...], each of up to T targets in C classes. See `Header`."""

    target: Column
    """[..., T]; 0 pads."""
    classes: IntArray
    """[..., T]; 0 pads."""
    belief: Column
    """[..., T]; nan where nothing is believed."""
    estimated: BoolArray
    """[..., T] whether this very version was measured, by anyone."""
    met: BoolArray
    """[..., T]"""
    bias: Column
    """[..., T] belief less verdict at the last verdict; 0 before one."""
    used: Column
    """[..., T, C] samples trained on so far."""
    spent: Column
    """[..., 4] hops, seconds, bytes, joules."""
    budget: Column
    """[..., 4]"""
    size_bytes: Column
    visits: Column
    since_verdict: Column
    has_verdict: BoolArray
    late: BoolArray
    """The deadline has passed."""

    @property
    def wanted(self) -> BoolArray:
        """[..., T] which targets are no padding."""
        return self.classes > 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a policy sees, and which candidates its rows are."""

    features: FloatArray
    """[..., K, F]"""
    globals: FloatArray
    """[..., G]"""
    mask: BoolArray
    """[..., K]"""
    stage: IntArray
    """[...]"""
    rows: IntArray
    """[..., K] indices into the candidates, -1 for an empty row."""


@np.errstate(invalid="ignore", over="ignore")  # a stranger's figures may be anything
def look(stops: Stops, journey: Journey, k: int) -> Seen:
    """Return what the packets see in K rows."""
    rows = select(stops, journey, k)
    kept = stops.rows(rows)
    stage = stage_here(kept, journey)
    features = encode_candidates(_describe(kept, journey))
    features[kept.kind == Kind.NONE] = 0.0
    count = (stops.kind != Kind.NONE).sum(axis=-1)
    packet = encode_packet(_describe_packet(journey, count, stage))
    return Seen(features, packet, legal(kept, journey, stage), stage, rows)


# --- phase ------------------------------------------------------------------------------------


def stage_of(journey: Journey, hops_home: Column) -> IntArray:
    """Return what the packets are after, before looking at what can still be afforded.

    RETURN when every target is met, the deadline has passed, or the budget just covers the way
    home; VERIFY when every target is met or believed met; else SEEK.
    """
    # One move more than the way home: another stop may lie one link further from it.
    spent = journey.spent.copy()
    spent[..., 2] += (hops_home + 1) * journey.size_bytes
    over = (spent > journey.budget).any(axis=-1)
    short = journey.budget[..., 0] - journey.spent[..., 0] <= hops_home + 1
    done = (journey.met | ~journey.wanted).all(axis=-1)
    ready = (_ready(journey) | ~journey.wanted).all(axis=-1)
    stage = np.where(ready, Stage.VERIFY, Stage.SEEK)
    stage = np.where(done | journey.late | short | over, Stage.RETURN, stage)
    return stage.astype(np.int64)


def stage_here(stops: Stops, journey: Journey) -> IntArray:
    """Return what the packets are after: RETURN also where no other stop can be afforded."""
    hops_home = _hops_home(stops)
    stage = stage_of(journey, hops_home)
    work = (stops.kind >= 0) & (stops.kind != Kind.HOME) & np.isfinite(stops.transfer_s)
    others = work & ~stops.is_last
    places = np.where(others.any(axis=-1, keepdims=True), others, work)
    stuck = work.any(axis=-1) & ~(places & _affordable(stops, journey, hops_home)).any(axis=-1)
    return np.where(stuck, Stage.RETURN, stage)


def margins(journey: Journey) -> Column:
    """Return [..., T] by how much belief is above what it must be to ask an MPVU; nan unknown.

    The belief must be above the target by as much as the last verdict was below it, an excess
    that halves with every few visits since.
    """
    halved = 0.5 ** (journey.since_verdict / VISITS_BETWEEN_VERDICTS)
    doubt = np.where(journey.met, 0.0, journey.bias * halved[..., None])
    return journey.belief - journey.target - doubt


def _ready(journey: Journey) -> BoolArray:
    waited = journey.since_verdict >= VISITS_BETWEEN_VERDICTS
    believed = np.nan_to_num(margins(journey), nan=-1.0) >= 0
    learned = ~journey.has_verdict | (journey.since_verdict > 0)  # the same verdict again, else
    ready = np.where(journey.estimated, believed, waited[..., None])
    return np.asarray(journey.met | (learned[..., None] & ready), np.bool_)


# --- what is legal ----------------------------------------------------------------------------


def legal(stops: Stops, journey: Journey, stage: IntArray) -> BoolArray:
    """Return which candidates may be chosen now; never none of them.

    SEEK: data nodes, but not the one just visited if there is another; an MPVU, too, once there
    was a visit since the last verdict. VERIFY: MPVUs, or data nodes if none can be reached.
    RETURN: home. Nothing that cannot be reached, or from which the hops left might not lead
    home. If nothing is left, home, however far.
    """
    is_there = stops.kind != Kind.NONE
    open_ = (
        is_there
        & np.isfinite(stops.transfer_s)
        & _affordable(stops, journey, _hops_home(stops))
        & (stage != Stage.RETURN)[..., None]
    )
    data = open_ & (stops.kind == Kind.DATA)
    others = data & ~stops.is_last
    data = np.where(others.any(axis=-1, keepdims=True), others, data)
    mpvu = open_ & (stops.kind == Kind.MPVU)
    seek = data | (mpvu & (journey.since_verdict > 0)[..., None])
    verify = (stage == Stage.VERIFY)[..., None] & mpvu.any(axis=-1, keepdims=True)
    choice = np.where(verify, mpvu, seek)
    for fallback in (is_there & (stops.kind == Kind.HOME), is_there):
        choice = np.where(choice.any(axis=-1, keepdims=True), choice, fallback)
    return np.asarray(choice, np.bool_)


def _affordable(stops: Stops, journey: Journey, hops_home: Column) -> BoolArray:
    # Links work both ways, so from the stop home is at most the way back and then home.
    left = journey.budget[..., 0] - journey.spent[..., 0]
    return np.asarray(2 * stops.links + hops_home[..., None] <= left[..., None], np.bool_)


def _hops_home(stops: Stops) -> Column:
    hops: Column = np.where(stops.kind == Kind.HOME, stops.links, 0.0).max(axis=-1)
    return hops


# --- which candidates get a row ---------------------------------------------------------------


def select(stops: Stops, journey: Journey, k: int) -> IntArray:
    """Return [..., K] the candidates that get a row, in their order; -1 pads.

    Home and the nearest MPVUs always have one; the rest goes to the data nodes that promise
    most for their cost, or that the packet has not seen for long.
    """
    home, mpvu = stops.kind == Kind.HOME, stops.kind == Kind.MPVU
    data = stops.kind == Kind.DATA
    near = mpvu & (_rank(stops.transfer_s, mpvu) < MAX_MPVUS)
    left = k - home.sum(axis=-1) - near.sum(axis=-1)
    if (data.sum(axis=-1) <= left).all():
        kept = home | near | data
    else:
        rank = _rank(-_promise(stops, journey), data)
        kept = home | near | (data & (rank < left[..., None]))
    order = np.argsort(~kept, axis=-1, kind="stable")[..., :k]
    index = np.where(np.take_along_axis(kept, order, axis=-1), order, -1)
    missing = k - index.shape[-1]
    if missing > 0:
        padding = [(0, 0)] * (index.ndim - 1) + [(0, missing)]
        index = np.pad(index, padding, constant_values=-1)
    return index.astype(np.int64)


def _rank(values: Column, members: BoolArray) -> IntArray:
    """Return each member's place by value, the lowest first; of equal ones as they come."""
    order = np.lexsort((values, ~members), axis=-1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(values.shape[-1]) + 0 * order, axis=-1)
    return ranks


def _promise(stops: Stops, journey: Journey) -> Column:
    """Cheap score of a data node: log of need x supply over cost, plus how long ago it was."""
    since = np.where(stops.visits > 0, np.maximum(0.0, stops.hops_since), NEVER)
    gain = np.log(_need_supply(stops, journey) + 1e-3)
    cost = np.log(stops.transfer_s + stops.compute_s + 1e-3)
    promise: Column = gain - cost + np.log1p(since) - 10.0 * stops.hurt
    return promise


def _gaps(journey: Journey) -> Column:
    """[..., T] share of a target that is lacking, 1 where nothing is believed, 0 for padding."""
    target = np.where(journey.target > 0, journey.target, 1.0)
    share = np.where(journey.target > 0, np.clip(journey.belief / target, 0, 1), 1.0)
    return np.where(journey.wanted, np.where(np.isnan(journey.belief), 1.0, 1 - share), 0.0)


def _need_supply(stops: Stops, journey: Journey) -> Column:
    clean = np.maximum(0.0, stops.samples * stops.quality[..., None])
    gain = _gaps(journey)[..., None, :] * (1 - np.exp(-clean / SATURATION))
    count = np.maximum(1, journey.wanted.sum(axis=-1))[..., None]
    mean: Column = np.sort(gain, axis=-1).sum(axis=-1) / count
    return mean


# --- raw columns ------------------------------------------------------------------------------


def _describe(stops: Stops, journey: Journey) -> Columns:
    is_data = stops.kind == Kind.DATA
    samples = np.where(is_data, stops.samples.sum(axis=-1), 0.0)
    visits_to_data = np.where(is_data, stops.visits, 0.0).sum(axis=-1, keepdims=True)
    past = stops.past
    return {
        "is_data": is_data,
        "is_mpvu": stops.kind == Kind.MPVU,
        "is_home": stops.kind == Kind.HOME,
        "is_here": (stops.links == 0) & np.isfinite(stops.transfer_s),
        "need_supply": _need_supply(stops, journey),
        "log_samples": samples,
        "samples_ratio": relative_to_median(samples, is_data),
        "quality": stops.quality,
        "freshness": 1 / (1 + np.maximum(0.0, stops.freshness_s) / DAY_S),
        "advert_age": stops.age_s / MAX_AGE_S,
        "log_transfer": stops.transfer_s,
        "log_compute": stops.compute_s,
        "log_probe": stops.probe_s,
        "log_verify": stops.verify_s,
        "links": stops.links,
        "cost_ratio": relative_to_median(stops.transfer_s + stops.compute_s, is_data),
        "visits_share": stops.visits / np.maximum(1.0, visits_to_data),
        "is_new": stops.visits == 0,
        "hops_since": np.maximum(0.0, stops.hops_since),
        "last_gain": stops.last_gain,
        "hurt": stops.hurt,
        **_describe_labels(stops, journey),
        **dict(zip(PROBE_COLUMNS, np.moveaxis(stops.probe, -1, 0), strict=True)),
        "probe_allowed": stops.probe_allowed,
        "has_past": past[..., 0],
        "past_gain": past[..., 1],
        "past_alignment": past[..., 2],
        "past_loss": past[..., 3],
        "past_age": past[..., 4],
        "trust": stops.trust,
    }


def _describe_labels(stops: Stops, journey: Journey) -> Columns:
    """Columns on label histograms, averaged over a candidate's skills that show one."""
    both = stops.labels + journey.used[..., None, :, :]
    balance = evenness(both, journey.classes[..., None, :])
    shown = stops.shown.sum(axis=-1)
    held = np.maximum(1, (stops.samples > 0).sum(axis=-1))

    def mean(values: Column) -> Column:
        # Sorted, because sums of floats depend on their order, and no skill is the first.
        total = np.sort(np.where(stops.shown, values, 0.0), axis=-1).sum(axis=-1)
        found: Column = total / np.maximum(1, shown)
        return found

    return {
        "labels_known": shown / held,
        "label_entropy": mean(stops.label_shape[..., 0]),
        "label_hhi": mean(stops.label_shape[..., 1]),
        "label_weakest": mean(stops.label_shape[..., 2]),
        "label_balance": mean(balance),
    }


def _describe_packet(journey: Journey, num_stops: IntArray, stage: IntArray) -> Columns:
    wanted = journey.wanted
    count = np.maximum(1, wanted.sum(axis=-1))
    gaps = _gaps(journey)
    gap = np.sort(gaps, axis=-1).sum(axis=-1) / count
    margin = np.where(wanted, np.nan_to_num(margins(journey), nan=-1.0), np.inf)
    believed = wanted & (np.nan_to_num(journey.belief, nan=0.0) >= journey.target)
    used = journey.spent / np.where(journey.budget > 0, journey.budget, 1.0)
    used = np.where(journey.budget > 0, used, 1.0)
    used = np.where(np.isinf(journey.budget), 0.0, used)
    return {
        "belief_mean": 1 - gap,
        "belief_min": 1 - gaps.max(axis=-1, initial=0.0),
        "gap": gap,
        "margin": margin.min(axis=-1, initial=np.inf),
        "optimism": np.where(wanted, journey.bias, 0.0).max(axis=-1, initial=0.0),
        "believed_share": believed.sum(axis=-1) / count,
        "verified_share": (wanted & journey.met).sum(axis=-1) / count,
        "hops_used": used[..., 0],
        "seconds_used": used[..., 1],
        "bytes_used": used[..., 2],
        "joules_used": used[..., 3],
        "visits": journey.visits,
        "visits_since_verdict": journey.since_verdict,
        "has_verdict": journey.has_verdict,
        "log_candidates": num_stops,
        "log_targets": wanted.sum(axis=-1),
        "log_size": journey.size_bytes,
        "is_seek": stage == Stage.SEEK,
        "is_verify": stage == Stage.VERIFY,
        "is_return": stage == Stage.RETURN,
    }
