"""How far the data of two nodes are apart, by statistics that travel with a packet. NumPy only.

What travels per skill: the label histogram, and a histogram of all feature values over bins whose
edges are quantiles of the first node that shows its labels. Both are shares, not counts. They
leak what they say; a node that keeps its label histogram keeps these, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from aats.control.divergence import jensen_shannon
from aats.errors import ModelError
from aats.payload import Array
from aats.roles.data import SkillData

BINS = 16
Shares = npt.NDArray[np.float32]
"""[n], sums to 1."""

_LABELS, _FEATURES, _EDGES = "labels.", "features.", "edges."


def statistics(data: Mapping[str, SkillData], edges: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a node says of its data, arrays by name.

    Args:
        data: By skill, at least one row each.
        edges: What the packet carries, names as in the result: bins of feature values that a
            node before this one has set.

    Raises:
        ModelError: If the edges are not finite or too many.
    """
    found: dict[str, Array] = {}
    for skill, held in data.items():
        values = held.train_x.reshape(-1).astype(np.float64)
        bins = edges.get(_EDGES + skill)
        if bins is None:
            bins = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
        if bins.ndim != 1 or len(bins) >= BINS or not np.isfinite(bins).all():
            raise ModelError(f"feature bins of skill {skill!r}: finite, {BINS - 1} at most")
        within = np.bincount(np.searchsorted(bins, values), minlength=len(bins) + 1)
        labels = np.bincount(held.train_y, minlength=held.num_classes)
        found[_EDGES + skill] = bins.astype(np.float32)
        found[_FEATURES + skill] = (within / within.sum()).astype(np.float32)
        found[_LABELS + skill] = (labels / labels.sum()).astype(np.float32)
    return found


def divergence(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> float | None:
    """Return the greatest divergence of any statistic that both have, None if they share none."""
    compared = [
        jensen_shannon(mine, theirs[name])
        for name, mine in ours.items()
        if not is_edges(name) and _are_shares(theirs.get(name), len(mine))
    ]
    return max(compared, default=None)


def is_edges(name: str) -> bool:
    """Return whether an array of `statistics` is the bins' edges, which stay from node to node."""
    return name.startswith(_EDGES)


def _are_shares(values: Array | None, length: int) -> bool:
    if values is None or values.shape != (length,):
        return False
    shares = values.astype(np.float64)
    return bool(np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0)
