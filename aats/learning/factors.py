"""Low-rank adapters in a merge: kept side by side, not averaged. NumPy only.

The mean of products is not the product of means: averaging the factors A and B of several
adapters one by one gives another model than averaging what they do to the weights. So what each
part added is kept, its `b` scaled by the part's share; then W0 + sum of share_i B_i A_i is the very
mean of the parts' weights (concatenated ranks; cf. FedEx-LoRA, Singhal et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, count

import numpy as np

from aats.payload import Array

CHAIN = "chain."
"""Tensors of adapters are `chain.<contribution>.<target>.a` and `.b`."""

Factors = dict[str, Array]


def is_factor(name: str) -> bool:
    """Return whether a tensor's name is that of an adapter's factor."""
    parts = name.split(".")
    return name.startswith(CHAIN) and len(parts) == 4 and parts[3] in ("a", "b")


def side_by_side(
    trunk: Mapping[str, Array], models: Sequence[Mapping[str, Array]], shares: Sequence[float]
) -> Factors:
    """Return the factors that models have and the trunk has not, each `b` times its share.

    A contribution that several models have is taken once, with the sum of their shares. Two
    that only share their name both stay, the later one as a twin: `3@n2`, `3@n2+1`.

    Args:
        trunk: Tensors by name.
        models: The parts' tensors.
        shares: Of the parts; they add up to 1.
    """
    found: dict[str, tuple[Factors, float]] = {}
    for model, share in zip(models, shares, strict=True):
        for contribution, factors in _added(trunk, model).items():
            plain = contribution.partition("+")[0]
            for name in chain((contribution,), (f"{plain}+{twin}" for twin in count(1))):
                known, so_far = found.get(name, (factors, 0.0))
                if _same(known, factors):
                    found[name] = factors, so_far + share
                    break
    return {
        f"{CHAIN}{name}.{place}": _scaled(array, share) if place.endswith(".b") else array
        for name, (factors, share) in found.items()
        for place, array in factors.items()
    }


def _scaled(array: Array, share: float) -> Array:
    scaled: Array = (array.astype(np.float64) * share).astype(array.dtype)
    return scaled


def _added(trunk: Mapping[str, Array], model: Mapping[str, Array]) -> dict[str, Factors]:
    """Return by contribution what is new: `<target>.a|b` -> array."""
    new: dict[str, Factors] = {}
    for name, array in model.items():
        if name not in trunk:
            _, contribution, place = name.split(".", 2)
            new.setdefault(contribution, {})[place] = array
    return new


def _same(a: Factors, b: Factors) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[place], b[place]) for place in a)
