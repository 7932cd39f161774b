"""Observations and weights to try a learned policy on, without a network behind them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aats.routing.features import FEATURES, GLOBALS, SIGNED
from aats.routing.policy import BoolArray, FloatArray
from aats_agents.scorer import shapes


def random_batch(seed: int, *lead: int, k: int = 12) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return features [..., K, F], globals [..., G], mask [..., K] in their ranges."""
    rng = np.random.default_rng(seed)
    features = rng.uniform(0, 1, (*lead, k, len(FEATURES)))
    packet = rng.uniform(0, 1, (*lead, len(GLOBALS)))
    for names, values in ((FEATURES, features), (GLOBALS, packet)):
        for i in (names.index(name) for name in SIGNED & set(names)):
            values[..., i] = 2 * values[..., i] - 1
    kind = rng.choice(3, (*lead, k), p=[0.8, 0.15, 0.05])
    for i, name in enumerate(("is_data", "is_mpvu", "is_home")):
        features[..., FEATURES.index(name)] = kind == i
    for name in ("is_new", "has_probe", "has_past", "hurt"):
        column = FEATURES.index(name)
        features[..., column] = features[..., column] > 0.5
    mask = rng.random((*lead, k)) < 0.7
    mask[..., 0] |= ~mask.any(axis=-1)
    return features.astype(np.float32), packet.astype(np.float32), mask


def random_weights(
    seed: int, hidden: int = 16, *, attention: bool = False
) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, 0.4, shape).astype(np.float32)
        for name, shape in shapes(hidden, attention=attention).items()
    }


def column(values: FloatArray, name: str) -> FloatArray:
    """Return a view of the named column of features or globals."""
    names = FEATURES if values.shape[-1] == len(FEATURES) else GLOBALS
    return values[..., names.index(name)]
