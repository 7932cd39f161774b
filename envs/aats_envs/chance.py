"""Random numbers by counter: what row b draws at its step t does not depend on its neighbours."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
STEP, STREAM = np.uint64(1 << 32), np.uint64(1 << 24)


class Stream(IntEnum):
    """What a number is drawn for; each has 2^24 numbers at each step."""

    EPISODE = 0
    """What holds for a whole episode: the luck of the trusted rows and of the test set."""
    VISIT = 1
    ESTIMATE = 2
    PROBE = 3


def uniforms(keys: Keys, steps: Ints, stream: Stream, count: int, places: Ints | int = 0) -> Floats:
    """Return [n, count] numbers within 0-1 (never 0), by SplitMix64 (Steele, Lea, Flood 2014).

    Args:
        keys: [n] of the rows' episodes.
        steps: [n] of the rows.
        stream: What for.
        count: Numbers of each row.
        places: [n] of the first number in its stream.
    """
    first = np.broadcast_to(np.asarray(places, np.int64), steps.shape).astype(np.uint64)
    at = steps.astype(np.uint64) * STEP + np.uint64(stream) * STREAM + first
    counter = at[:, None] + np.arange(1, count + 1, dtype=np.uint64)
    z: Keys = (counter * GOLDEN).astype(np.uint64) + keys[:, None]
    z = (z ^ (z >> SHIFTS[0])) * MIX[0]
    z = (z ^ (z >> SHIFTS[1])) * MIX[1]
    z ^= z >> SHIFTS[2]
    found: Floats = ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return found


def normals(keys: Keys, steps: Ints, stream: Stream, count: int, places: Ints | int = 0) -> Floats:
    """Return [n, count] standard normal numbers (Box and Muller 1958); see `uniforms`."""
    half = (count + 1) // 2
    u = uniforms(keys, steps, stream, 2 * half, places)
    radius, angle = np.sqrt(-2 * np.log(u[:, :half])), 2 * np.pi * u[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]
