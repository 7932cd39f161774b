"""What measures carried on several copies of a packet, made one.

Gaussians merge by their moments, rows counted once; rows seen add up; importance and raw
weights are averaged, the copies alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from aats.errors import ModelError
from aats.learning.measures.ema import WEIGHT, Ema
from aats.learning.measures.ewc import IMPORTANCE, LEVELS, PEAK, Ewc
from aats.learning.measures.gaussian import PARTS, Gaussians, combined
from aats.learning.measures.interpolate import Interpolate
from aats.learning.measures.replay import Replay
from aats.learning.modules import deterministic
from aats.payload import STATE, Array

State = Mapping[str, Array]
_MANY = 1 << 31


def merged(measure: str, trunk: State, states: Sequence[State]) -> dict[str, Array]:
    """Return one state of several, of one measure; names with the prefix.

    Args:
        measure: Its name.
        trunk: What every copy set out with.
        states: What each came back with, at least one.

    Raises:
        ModelError: If they do not fit each other.
    """
    place = f"{STATE}{measure}."
    base, *own = (
        {n[len(place) :]: a for n, a in state.items() if n.startswith(place)}
        for state in (trunk, *states)
    )
    own = [state for state in own if state]  # a copy whose visits were all undone has none
    if not own:
        found = base
    elif measure == Replay.name:
        found = _gaussians(base, own)
    elif measure == Interpolate.name:
        found = {name: _sum(name, base, own) for name in own[0]}
    elif measure == Ewc.name:
        found = _importance(own)
    else:
        assert measure == Ema.name
        if any(np.abs(w.astype(np.float64) - 0.5).max() > 0.5 for w in _of(WEIGHT, own)):
            raise ModelError(f"state {WEIGHT!r} of a copy is outside 0-1")
        found = {name: _mean(name, own) for name in own[0]}
    return {place + name: array for name, array in found.items()}


def _of(name: str, states: Sequence[State]) -> list[Array]:
    arrays = [state[name] for state in states if name in state]
    if len(arrays) < len(states) or len({(a.shape, a.dtype) for a in arrays}) > 1:
        raise ModelError(f"state {name!r} of the copies is missing, or of different shapes")
    return arrays


def _mean(name: str, states: Sequence[State]) -> Array:
    arrays = _of(name, states)
    total = np.zeros(arrays[0].shape, np.float64)
    for array in arrays:
        total += array.astype(np.float64)
    mean: Array = (total / len(arrays)).astype(arrays[0].dtype)
    return mean


def _sum(name: str, base: State, states: Sequence[State]) -> Array:
    """Return the trunk's number plus what each copy added to it."""
    arrays = [a.astype(np.float64) for a in _of(name, states)]
    start = base[name].astype(np.float64) if name in base else np.zeros(arrays[0].shape)
    if any(array.shape != start.shape or (array < start).any() for array in arrays):
        raise ModelError(f"state {name!r} of a copy counts less than it set out with")
    total: Array = start + sum(array - start for array in arrays)
    return total


def _importance(states: Sequence[State]) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for name in states[0]:
        if not name.startswith(IMPORTANCE):
            continue
        peak = PEAK + name.removeprefix(IMPORTANCE)
        both = [n for n in (name, peak) if n in states[0]]
        if any((a.astype(np.float64) < 0).any() for n in both for a in _of(n, states)):
            raise ModelError(f"state {name!r} of a copy is below 0")
        if peak not in states[0]:
            out[name] = _mean(name, states)
            continue
        levels, peaks = _of(name, states), _of(peak, states)
        found = np.zeros(levels[0].shape)
        for level, high in zip(levels, peaks, strict=True):
            found += np.square(level.astype(np.float64) / LEVELS) * float(high.reshape(-1)[0])
        found /= len(states)
        top = float(found.max(initial=np.finfo(np.float32).tiny))
        out[peak] = np.array([top], np.float32)
        out[name] = np.rint(LEVELS * np.sqrt(found / top)).astype(np.uint8)
    return out


def _gaussians(base: State, states: Sequence[State]) -> dict[str, Array]:
    skills = sorted({name.partition(".")[2] for state in states for name in state})
    out: dict[str, Array] = {}
    for skill in skills:
        banks = [_read(state, skill) for state in states]
        held = [bank for bank in banks if bank is not None]
        before = _read(base, skill)
        signs = [1.0] * len(held)
        if before is not None:
            held, signs = [*held, before], [*signs, 1.0 - len(held)]
        if len({(b.mean.shape[1], b.scatter.shape[1:]) for b in held}) > 1:
            raise ModelError(f"Gaussians of skill {skill!r} are of different shapes")
        with deterministic(0):
            total = combined(held, signs)
        out |= {f"{part}.{skill}": array for part, array in total.arrays().items()}
    return out


def _read(state: State, skill: str) -> Gaussians | None:
    arrays = {part: state[f"{part}.{skill}"] for part in PARTS if f"{part}.{skill}" in state}
    if not arrays:
        return None
    scatter = arrays.get("scatter", np.zeros(0))
    rank = scatter.shape[1] if scatter.ndim == 3 else 0
    width = scatter.shape[-1] if scatter.ndim else 0
    place = f"Gaussians of skill {skill!r}"
    return Gaussians.read(arrays, place, width=width, rank=rank, num_classes=_MANY)
