"""A heuristic score of each candidate, from named columns alone: where a trained policy starts.

The same formula runs on NumPy arrays in a packet and on torch tensors in training. Its weights
are few, so that they can be found by search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from aats.routing.features import FEATURES, GLOBALS, MAX_HOPS

LEAST = 1e-3
"""Need x supply of a node that promises nothing: low, but its logarithm is finite."""
TINY = 1e-6
MAX_WEIGHT = 1e6
"""Of a prior or a network: far above any that was trained, and no sum of such overflows."""
FAR = 1e9
"""Further down than any score."""


@dataclass(frozen=True, slots=True)
class Prior:
    """Weights of the heuristic score, in natural logarithms of "gain per second".

    A data node's score is log merit + need log(need x supply) + balance x label balance +
    log staleness - again log(1 + visits) + last x last gain + trust log(trust) - hurt - cost
    log(seconds). Merit is what a probe, of now or remembered, found, as a share of the best. An
    MPVU stands above or below the best data node by the margin of belief over target; home is
    last until the packet returns.
    """

    cost: float = 1.55
    """For seconds of transfer and work: 1 is gain per second, 0 gain alone."""
    need: float = 1.5
    """For what is lacking times what the node has of it."""
    balance: float = 0.1
    """For how even the classes used would be after a visit, where the labels are known."""
    last: float = 14.0
    """For what the last visit there changed of the skill."""
    again: float = 4.0
    """Against a node visited before: for the logarithm of one plus its visits."""
    patience: float = 18.0
    """Hops after which a visited node counts half of a new one; 0 or more."""
    memory: float = 45.0
    """Hops after which a remembered probe counts half; above 0."""
    unprobed: float = 0.1
    """Share of the best gain that a node not asked is expected to bring; above 0."""
    floor: float = 0.5
    """Merit of a node whose probe did not help; above 0."""
    trust: float = 1.3
    """For the share of visits that went well."""
    hurt: float = 0.5
    """Against a node whose last visit lowered the skill."""
    gate: float = 3.0
    """For the margin of belief over target (10 points are 1), for an MPVU."""
    verify: float = 0.6
    """For an MPVU where every target is believed met, against one where not."""
    home: float = 5.0
    """For home when the packet returns, against it before."""
    sharpness: float = 5.0
    """Logits per unit of score: how much likelier the better of two is."""

    def __post_init__(self) -> None:
        for name in PRIOR_WEIGHTS:
            value = getattr(self, name)
            if not abs(value) <= MAX_WEIGHT:
                raise ValueError(f"prior: {name} is {value}, must be within +-{MAX_WEIGHT:g}")
        if self.patience < 0 or min(self.memory, self.unprobed, self.floor, self.sharpness) <= 0:
            raise ValueError(
                "prior: patience must be >= 0; memory, unprobed, floor, sharpness above 0"
            )

    def logits(self, features: Any, globals_: Any, mask: Any, xp: Any = np) -> Any:
        """Return [..., K] scores, the best legal candidate's 0.

        Args:
            features: [..., K, F], columns as `FEATURES` names them.
            globals_: [..., G], as `GLOBALS` names them.
            mask: [..., K] bool, True where legal.
            xp: `numpy` or `torch`, whichever the arrays are of.
        """
        stop = {name: features[..., FEATURES.index(name)] for name in _USED}
        packet = {name: globals_[..., GLOBALS.index(name), None] for name in _USED_OF_PACKET}

        def best(values: Any, among: Any) -> Any:
            low = xp.amax(xp.where(among, values, -FAR), axis=-1, keepdims=True)
            return xp.where(low > -FAR, low, 0.0)

        is_data, is_mpvu = stop["is_data"] > 0.5, stop["is_mpvu"] > 0.5
        cost = self.cost * xp.log(_seconds(stop["log_transfer"]) + _seconds(stop["log_compute"]))
        visits = _hops(packet["visits"], xp)
        data = self._data(stop, visits, mask & is_data, best, xp) - cost
        top = best(data, mask & is_data)
        cheapest = -best(-cost, mask & is_mpvu)
        due = packet["is_verify"] - packet["is_seek"]
        mpvu = top + self.gate * packet["margin"] + self.verify * due - (cost - cheapest)
        home = top + self.home * (2 * packet["is_return"] - 1)
        score = xp.where(is_data, data, xp.where(is_mpvu, mpvu, home + 0 * cost))
        return self.sharpness * (score - best(score, mask))

    def _data(self, stop: dict[str, Any], visits: Any, legal: Any, best: Any, xp: Any) -> Any:
        since = _hops(stop["hops_since"], xp) + 1
        staleness = xp.where(stop["is_new"] > 0.5, 1.0, since / (since + self.patience))
        return (
            xp.log(self.floor + self._merit(stop, legal, best, xp))
            + self.need * xp.log(stop["need_supply"] + LEAST)
            + self.balance * stop["label_balance"] * stop["labels_known"]
            + xp.log(staleness)
            - self.again * xp.log(1 + stop["visits_share"] * visits)
            + self.last * stop["last_gain"]
            + self.trust * xp.log(stop["trust"] + LEAST)
            - self.hurt * stop["hurt"]
        )

    def _merit(self, stop: dict[str, Any], legal: Any, best: Any, xp: Any) -> Any:
        """Return 0-1 what probes found, 1 the best; if none helped, the least bad is the best."""
        age = self.memory / (self.memory + _hops(stop["past_age"], xp))
        fresh = _gain(stop["probe_gain"], stop["probe_alignment"], xp)
        past = age * _gain(stop["past_gain"], stop["past_alignment"], xp)
        is_fresh = (stop["has_probe"] > 0.5) & (_abs(fresh, stop["probe_alignment"]) > 0)
        is_past = (stop["has_past"] > 0.5) & (_abs(past, stop["past_alignment"]) > 0)
        gain = xp.where(is_fresh, fresh, past)
        known = is_fresh | is_past
        most, least = best(gain, legal & known), -best(-gain, legal & known)
        helped = gain.clip(min=0.0) / most.clip(min=TINY)
        spared = 1 + gain / (-least).clip(min=TINY)
        share = xp.where(most > 0, helped, spared).clip(0.0, 1.0)
        return xp.where(known, share, self.unprobed)


_USED = (
    "is_data", "is_mpvu", "log_transfer", "log_compute", "need_supply", "label_balance",
    "labels_known", "is_new", "visits_share", "hops_since", "last_gain", "trust", "hurt",
    "has_probe", "probe_gain", "probe_alignment", "has_past", "past_gain", "past_alignment",
    "past_age",
)  # fmt: skip
_USED_OF_PACKET = ("margin", "visits", "is_seek", "is_verify", "is_return")

PRIOR_WEIGHTS = tuple(f.name for f in fields(Prior))
"""Names of the weights, for a search."""


def _seconds(column: Any) -> Any:
    """Undo the scale of `log_transfer` and its like."""
    return 10.0 ** (9 * column - 3)


def _hops(column: Any, xp: Any) -> Any:
    """Undo the scale of `hops_since` and its like."""
    return xp.expm1(column * math.log1p(MAX_HOPS))


def _gain(gain: Any, alignment: Any, xp: Any) -> Any:
    # A gain against the trusted gradient is luck.
    return xp.where(gain > 0, gain * alignment.clip(min=0.0), gain)


def _abs(gain: Any, alignment: Any) -> Any:
    # Both are exactly 0 where the packet has no trusted data to judge by.
    return abs(gain) + abs(alignment)
