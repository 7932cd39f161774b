"""The policy network in NumPy: what a packet needs to decide, without torch.

Each candidate is encoded with the packet's own state by one shared network, what all legal
candidates have in common is pooled, and a second shared network scores each candidate against
that. So it takes any number of candidates, and their order does not matter.

Shapes: B any leading dimensions, K candidates, F features, G globals, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aats.routing.features import FEATURES, GLOBALS
from aats.routing.policy import BoolArray, FloatArray
from aats_agents.prior import Prior

Weights = Mapping[str, npt.NDArray[np.float32]]

NEVER = np.float32(-1e8)
"""Logit of what is not legal."""
MAX_HIDDEN = 512


def shapes(hidden: int, *, attention: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a network, as torch stores them.

    Args:
        hidden: Width of every hidden layer.
        attention: Whether a learned attention pools candidates too, beside mean and maximum.
    """
    pools = 3 if attention else 2
    found: dict[str, tuple[int, ...]] = {
        "encode.0.weight": (hidden, len(FEATURES) + len(GLOBALS)),
        "encode.0.bias": (hidden,),
        "encode.1.weight": (hidden, hidden),
        "encode.1.bias": (hidden,),
        "score.0.weight": (hidden, (1 + pools) * hidden),
        "score.0.bias": (hidden,),
        "score.1.weight": (1, hidden),
        "score.1.bias": (1,),
    }
    if attention:
        found["attention.weight"] = (1, hidden)
    return found


def zeros(hidden: int = 1) -> dict[str, npt.NDArray[np.float32]]:
    """Return weights that add nothing to the prior."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes(hidden).items()}


@dataclass(frozen=True, slots=True)
class Scorer:
    """Logits of every candidate: what was learned, on top of the prior's."""

    weights: Weights
    """As `shapes` names them."""
    prior: Prior | None = None

    def logits(self, features: FloatArray, globals_: FloatArray, mask: BoolArray) -> FloatArray:
        """Return [B, K] logits, `NEVER` where the mask is False.

        Args:
            features: [B, K, F]
            globals_: [B, G]
            mask: [B, K]
        """
        found: Any = self.learned(features, globals_, mask)
        if self.prior is not None:
            found = found + self.prior.logits(features, globals_, mask)
        return np.where(mask, found, NEVER).astype(np.float32)

    def learned(self, features: FloatArray, globals_: FloatArray, mask: BoolArray) -> FloatArray:
        """Return [B, K] what the network adds to the prior."""
        w = self.weights
        hidden_BKH = encode(w, features, globals_)
        context_BC = pool(hidden_BKH, mask, w.get("attention.weight"))
        first, width = w["score.0.weight"], hidden_BKH.shape[-1]
        shared = context_BC @ first[:, width:].T + w["score.0.bias"]
        inner = np.tanh(hidden_BKH @ first[:, :width].T + shared[..., None, :])
        found: FloatArray = (inner @ w["score.1.weight"].T)[..., 0] + w["score.1.bias"]
        return found

    def choose(
        self, features: FloatArray, globals_: FloatArray, mask: BoolArray
    ) -> npt.NDArray[np.int64]:
        """Return [B] the index of the highest legal logit; of equal ones the lowest."""
        chosen: npt.NDArray[np.int64] = self.logits(features, globals_, mask).argmax(axis=-1)
        return chosen


def encode(w: Weights, features: FloatArray, globals_: FloatArray) -> FloatArray:
    """Return [B, K, H]: each candidate together with the packet's state."""
    first, num_features = w["encode.0.weight"], features.shape[-1]
    # The packet's part is the same for every candidate: worked out once.
    shared = globals_ @ first[:, num_features:].T + w["encode.0.bias"]
    inner = np.tanh(features @ first[:, :num_features].T + shared[..., None, :])
    found: FloatArray = np.tanh(inner @ w["encode.1.weight"].T + w["encode.1.bias"])
    return found


def pool(
    hidden_BKH: FloatArray, mask: BoolArray, attention: npt.NDArray[np.float32] | None
) -> FloatArray:
    """Return [B, C]: mean, maximum and, if learned, attention over the legal candidates."""
    legal = mask[..., None]
    count = np.maximum(1, mask.sum(axis=-1))[..., None].astype(np.float32)
    mean = np.where(legal, hidden_BKH, 0).sum(axis=-2) / count
    highest = np.where(legal, hidden_BKH, -1).max(axis=-2)  # tanh is never below -1
    parts = [mean, highest]
    if attention is not None:
        pull = np.where(mask, (hidden_BKH @ attention.T)[..., 0], NEVER)
        share = np.exp(pull - pull.max(axis=-1, keepdims=True)) * mask
        share = share / np.maximum(share.sum(axis=-1, keepdims=True), 1e-9)
        parts.append((share[..., None] * hidden_BKH).sum(axis=-2))
    return np.concatenate(parts, axis=-1).astype(np.float32)
