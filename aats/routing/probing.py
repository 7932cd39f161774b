"""Whom to probe before a choice, by what is seen: a rule for packets that carry no other."""

from __future__ import annotations

import numpy as np

from aats.routing.features import FEATURES, GLOBALS, MAX_COST_S, MAX_HOPS, Column
from aats.routing.policy import BoolArray, FloatArray

MIN_MEMORY = 4.0
"""Hops that a probe holds at least. It holds until the packet is twice as old as it was then:
what a young model gains says little of what an older one will."""
MOST_COST = 0.5
"""What a probe may cost, in visits to the same node: where it costs more, a visit tells as much."""
SUSPECT_MEMORY = 4.0
"""A node whose probe found no gain is left alone that many times longer."""


def worth(features: FloatArray, globals: FloatArray, mask: BoolArray, count: int) -> BoolArray:
    """Return [..., K] whom to probe: at most `count`, the most promising that nobody knows yet.

    Left out is who refuses, hurt, was probed not long ago, or answers no sooner than a visit
    would be over; and everybody, while the model knows nothing, since it gains anywhere.

    Args:
        features: [..., K, F]
        globals: [..., G]
        mask: [..., K] who is legal.
        count: Probes of one decision.
    """

    def column(name: str) -> Column:
        return features[..., FEATURES.index(name)].astype(np.float64)

    age, visits = _hops(column("past_age")), _hops(globals[..., GLOBALS.index("visits")])
    suspect = (column("past_gain") <= 0) | (column("past_alignment") <= 0)
    holds = np.maximum(MIN_MEMORY, visits[..., None] - age) * np.where(suspect, SUSPECT_MEMORY, 1)
    remembered = (column("has_past") > 0) & (age <= holds)
    cost_s = _seconds(column("log_transfer")) + _seconds(column("log_compute"))
    asked = (
        mask
        & (column("is_data") > 0)
        & (column("probe_allowed") > 0)
        & (column("has_probe") == 0)
        & (column("hurt") == 0)
        & ~remembered
        & (_seconds(column("log_probe")) < MOST_COST * cost_s)
        & (visits > 0)[..., None]
    )
    fresh = 1 + np.where(column("is_new") > 0, MAX_HOPS, _hops(column("hops_since")))
    promise = (column("need_supply") + 1e-3) * (1 + column("label_balance")) * np.log1p(fresh)
    order = np.lexsort((-promise / cost_s, ~asked), axis=-1)
    best = np.zeros_like(asked)
    np.put_along_axis(best, order[..., :count], True, axis=-1)
    return np.asarray(asked & best, np.bool_)


def _hops(encoded: Column | FloatArray) -> Column:
    hops: Column = np.rint(np.expm1(encoded.astype(np.float64) * np.log1p(MAX_HOPS)))
    return hops


def _seconds(encoded: Column) -> Column:
    seconds: Column = 10.0 ** (encoded * (np.log10(MAX_COST_S) + 3) - 3)
    return seconds
