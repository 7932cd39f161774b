"""How far two distributions are apart. NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def jensen_shannon(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """Return the Jensen-Shannon divergence of two distributions in bits: 0 same, 1 disjoint.

    Args:
        p: [n] shares or counts, at least 0, not all 0.
        q: [n], likewise.
    """
    a, b = (np.asarray(v, np.float64) / np.sum(v, dtype=np.float64) for v in (p, q))
    middle = (a + b) / 2
    return max(0.0, (_relative_entropy(a, middle) + _relative_entropy(b, middle)) / 2)


def _relative_entropy(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / q[some])).sum())
