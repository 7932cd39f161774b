"""Momentum that travels with the packet, in few bits (Tram-FL, Maejima et al., section 2.2).

Affine codes of b bits: with the smallest and largest value p and q of a tensor and
s = (2^b - 1) / (q - p), a value v becomes round(s (v - p)) - 2^(b-1); the range travels along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from aats.errors import ModelError
from aats.payload import STATE, Array

PREFIX = f"{STATE}momentum."
RANGE = f"{STATE}momentum-range."
CODES = {8: np.int8, 16: np.int16}
BITS = (0, 8, 16, 32)


def quantised(values: Array, bits: int) -> tuple[Array, Array]:
    """Return codes of `bits` (8 or 16) and the range [2] they are in, in single precision."""
    low, high = np.float64(values.min(initial=np.inf)), np.float64(values.max(initial=-np.inf))
    if not low <= high:
        low = high = np.float64(0)
    steps = 2.0**bits - 1
    scale = steps / (high - low) if high > low else 0.0
    codes = np.rint(scale * (values.astype(np.float64) - low)).clip(0, steps) - 2 ** (bits - 1)
    return codes.astype(CODES[bits]), np.array([low, high], np.float32)


def restored(codes: Array, span: Array) -> Array:
    """Return the values [float32] that codes stand for."""
    bits = 8 * codes.dtype.itemsize
    low, high = span.astype(np.float64)
    step = (high - low) / (2.0**bits - 1)
    values: Array = (low + step * (codes.astype(np.float64) + 2 ** (bits - 1))).astype(np.float32)
    return values


def read_momentum(
    model: nn.Module, state: Mapping[str, Array], bits: int
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Return the momentum that travelled, by parameter; none of a parameter that has none.

    Raises:
        ModelError: If it does not fit the parameter, or is not finite.
    """
    found = {}
    for name, p in model.named_parameters():
        codes = state.get(PREFIX + name)
        if codes is None:
            continue
        span = state.get(RANGE + name, np.zeros(2, np.float32))
        dtype = CODES.get(bits, np.float32)
        fits = codes.shape == tuple(p.shape) and codes.dtype == dtype and span.shape == (2,)
        if not (fits and np.isfinite(span).all()):
            raise ModelError(
                f"tensor {PREFIX + name!r} must be {np.dtype(dtype)} of shape {list(p.shape)}, "
                "with a range of two finite numbers"
            )
        values = codes if bits == 32 else restored(codes, span)
        if not np.isfinite(values).all():
            raise ModelError(f"tensor {PREFIX + name!r} must be finite")
        found[name] = torch.from_numpy(values.copy())
    return found


def mean_momentum(states: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return the mean of what several copies of a packet carry, in the bits it came in."""
    out: dict[str, Array] = {}
    held = [state for state in states if any(name.startswith(PREFIX) for name in state)]
    for name in held[0] if held else ():
        if not name.startswith(PREFIX):
            continue
        span = RANGE + name.removeprefix(PREFIX)
        kinds = {
            tuple((s[n].shape, s[n].dtype) if n in s else None for n in (name, span)) for s in held
        }
        if len(kinds) > 1:
            raise ModelError(f"tensor {name!r} is not of one shape and dtype in the copies")
        values = [
            restored(s[name], s[span]) if span in s else s[name].astype(np.float32) for s in held
        ]
        mean = np.mean(np.asarray(values, np.float64), axis=0).astype(np.float32)
        bits = 8 * held[0][name].dtype.itemsize
        if span in held[0]:
            out[name], out[span] = quantised(mean, bits)
        else:
            out[name] = mean
    return out


def write_momentum(momentum: Mapping[str, torch.Tensor], bits: int) -> dict[str, Array]:
    """Return what travels: tensors under `state.momentum.` and their ranges."""
    state: dict[str, Array] = {}
    for name, tensor in momentum.items():
        values = tensor.numpy()
        if bits == 32:
            state[PREFIX + name] = values
        else:
            state[PREFIX + name], state[RANGE + name] = quantised(values, bits)
    return state
