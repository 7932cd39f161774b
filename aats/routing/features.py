"""What a policy sees of a stop and of a packet, as numbers: the same for every world.

Raw quantities (seconds, samples, shares) go in, features come out: finite, clipped, relative to
the other candidates or to the packet's own requirement and budget, without node, class or skill
names. Everything works on arrays with any leading dimensions, so that one network's candidates
[K] and a batch of networks [B, K] take the same way.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from aats.routing.policy import FloatArray

OBSERVATION_VERSION = 2
"""Rises when a column changes its meaning: a trained policy names the one it was made for."""

Column = npt.NDArray[np.float64]
Columns = dict[str, Column]

MAX_COST_S = 1e6
MAX_SAMPLES = 1e6
MAX_HOPS = 128.0
MAX_NODES = 1000.0
MAX_TARGETS = 64.0
MAX_BYTES = 1e12
TINY = 1e-300


def _share(x: Column) -> Column:
    return np.clip(x, 0, 1)


def _signed(x: Column) -> Column:
    return np.clip(x, -1, 1)


def _log(ceiling: float) -> Callable[[Column], Column]:
    top = np.log1p(ceiling)
    return lambda x: np.log1p(np.clip(x, 0, ceiling)) / top


def _seconds(x: Column) -> Column:
    return (np.log10(np.clip(x, 1e-3, MAX_COST_S)) + 3) / 9


def _ratio(x: Column) -> Column:
    """-1 for a hundredth of the usual, 0 for the usual, 1 for a hundred times as much."""
    return np.clip(np.log10(np.clip(x, 1e-12, 1e12)) / 2, -1, 1)


def _margin(x: Column) -> Column:
    """-1 for a tenth or more below, 0 for on target, 1 for a tenth or more above."""
    return np.clip(10 * x, -1, 1)


_CANDIDATE: dict[str, Callable[[Column], Column]] = {
    "is_data": _share,
    "is_mpvu": _share,
    "is_home": _share,
    "is_here": _share,
    "need_supply": _share,  # mean over targets of gap x saturating clean volume
    "log_samples": _log(MAX_SAMPLES),
    "samples_ratio": _ratio,  # to the median data node
    "quality": _share,
    "freshness": _share,  # 1 now, 1/2 a day ago
    "advert_age": _share,  # of the maximum age
    "log_transfer": _seconds,
    "log_compute": _seconds,
    "log_probe": _seconds,  # until a probe's answer is there
    "log_verify": _seconds,  # from there to the nearest MPVU
    "links": _log(MAX_HOPS),  # of the path there
    "cost_ratio": _ratio,  # transfer + compute, to the median data node
    "visits_share": _share,
    "is_new": _share,
    "hops_since": _log(MAX_HOPS),  # 0 for never
    "last_gain": _signed,
    "hurt": _share,
    "labels_known": _share,
    "label_entropy": _share,  # of the node's histogram, over that of equal classes
    "label_hhi": _share,  # sum of squared class shares
    "label_weakest": _share,  # share of the weakest class times the number of classes
    "label_balance": _share,  # entropy of what was used so far plus this node's, as above
    "has_probe": _share,
    "probe_gain": _signed,  # nats
    "probe_alignment": _signed,
    "probe_loss": _log(20.0),  # nats
    "probe_gradient_norm": _log(1000.0),
    "probe_allowed": _share,
    "has_past": _share,  # a probe of an earlier stop, on data that have not changed since
    "past_gain": _signed,
    "past_alignment": _signed,
    "past_loss": _log(20.0),
    "past_age": _log(MAX_HOPS),  # hops since that probe
    "trust": _share,
}
FEATURES = tuple(_CANDIDATE)
"""Columns of `Observation.features`, in order; each in 0..1, or -1..1 where signed."""

_PACKET: dict[str, Callable[[Column], Column]] = {
    "belief_mean": _share,  # of belief / target, capped at 1; 0 where nothing is believed
    "belief_min": _share,
    "gap": _share,  # mean shortfall from the target
    "margin": _margin,  # smallest of belief - target; lowest where nothing is believed
    "optimism": _share,  # by how much the last verdict was below the belief, the worst skill's
    "believed_share": _share,  # of the targets
    "verified_share": _share,
    "hops_used": _share,  # of the budget; 0 where there is none
    "seconds_used": _share,
    "bytes_used": _share,
    "joules_used": _share,
    "visits": _log(MAX_HOPS),
    "visits_since_verdict": _log(MAX_HOPS),
    "has_verdict": _share,
    "log_candidates": _log(MAX_NODES),
    "log_targets": _log(MAX_TARGETS),
    "log_size": _log(MAX_BYTES),  # of the packet
    "is_seek": _share,
    "is_verify": _share,
    "is_return": _share,
}
GLOBALS = tuple(_PACKET)
"""Columns of `Observation.globals`, in order; each in 0..1, or -1..1 where signed."""

SIGNED = frozenset({
    "samples_ratio", "cost_ratio", "last_gain", "probe_gain", "probe_alignment", "past_gain",
    "past_alignment", "margin",
})  # fmt: skip
"""Features and globals that range over -1..1; all others over 0..1."""


def encode_candidates(raw: Columns) -> FloatArray:
    """Return features [..., K, F] from one raw column [..., K] per name in `FEATURES`."""
    return _encode(raw, _CANDIDATE)


PROBE_COLUMNS = "has_probe", "probe_gain", "probe_alignment", "probe_loss", "probe_gradient_norm"


def encode_probes(scores: Column) -> FloatArray:
    """Return the columns `PROBE_COLUMNS` [..., 5] of probes: 1, gain, alignment, loss, norm."""
    raw = dict(zip(PROBE_COLUMNS, np.moveaxis(scores, -1, 0), strict=True))
    return _encode(raw, {name: _CANDIDATE[name] for name in PROBE_COLUMNS})


def encode_packet(raw: Columns) -> FloatArray:
    """Return globals [..., G] from one raw column [...] per name in `GLOBALS`."""
    return _encode(raw, _PACKET)


def _encode(raw: Columns, scales: dict[str, Callable[[Column], Column]]) -> FloatArray:
    # What is not finite says nothing: nan becomes 0, infinity the end of the range.
    columns = np.stack([np.asarray(raw[name], np.float64) for name in scales])
    np.nan_to_num(columns, copy=False, posinf=1e12, neginf=-1e12)
    encoded = np.empty((*columns.shape[1:], len(columns)), np.float32)
    for i, scale in enumerate(scales.values()):
        encoded[..., i] = scale(columns[i])
    return encoded


def relative_to_median(values: Column, counted: npt.NDArray[np.bool_]) -> Column:
    """Return values [..., K] over the median of those counted (1 where none or zero)."""
    held = np.sort(np.where(counted & np.isfinite(values), values, np.inf), axis=-1)
    count = np.isfinite(held).sum(axis=-1, keepdims=True)
    low = np.take_along_axis(held, np.maximum(0, (count - 1) // 2), axis=-1)
    high = np.take_along_axis(held, np.minimum(count // 2, held.shape[-1] - 1), axis=-1)
    median = np.where(count > 0, low / 2 + high / 2, 1.0)
    with np.errstate(over="ignore"):  # infinitely many times as much is clipped like any other
        result: Column = values / np.where(median > 0, median, 1.0)
    return result


def label_shape(histogram: Column, classes: npt.NDArray[np.int64]) -> Column:
    """Return [..., 3] evenness, HHI and weakest of histograms [..., C], each in 0..1.

    HHI is the sum of squared shares, weakest the smallest share times the number of `classes`
    [...]. An empty histogram gives (0, 1, 0). Counts past a histogram's classes are 0.
    """
    share, total = _shares(histogram)
    place = np.arange(len(share)).reshape(-1, *(1,) * total.ndim)
    weakest = np.where(place < classes, share, np.inf).min(axis=0)
    shape = (
        evenness(histogram, classes),
        np.where(total > 0, (share * share).sum(axis=0), 1.0),
        np.where(np.isfinite(weakest), weakest, 0.0) * classes,
    )
    return np.stack(shape, axis=-1)


def evenness(histogram: Column, classes: npt.NDArray[np.int64]) -> Column:
    """Return [...] the entropy of histograms [..., C] over that of equal classes, 0..1."""
    share, _ = _shares(histogram)
    entropy = -(share * np.log(np.maximum(share, TINY))).sum(axis=0)
    found: Column = np.maximum(0.0, entropy) / np.maximum(np.log(np.maximum(classes, 1)), TINY)
    return found


def _shares(histogram: Column) -> tuple[Column, Column]:
    # Classes first: sums over the last dimension, a short one, are several times slower.
    counts = np.maximum(np.moveaxis(histogram, -1, 0), 0.0, order="C")
    total = counts.sum(axis=0)
    return counts / np.where(total > 0, total, 1.0), total
