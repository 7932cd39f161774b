"""What every view of the environment observes and may choose, as Gymnasium spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from aats.routing.features import FEATURES, GLOBALS, SIGNED

LOW_FEATURES, LOW_GLOBALS = (
    np.array([-1.0 if name in SIGNED else 0.0 for name in names], np.float32)
    for names in (FEATURES, GLOBALS)
)


def observation_space(k: int) -> spaces.Space[dict[str, npt.NDArray[Any]]]:
    """Return the space of what is seen in K rows."""
    low = np.repeat(LOW_FEATURES[None], k, axis=0)
    parts: dict[str, spaces.Space[Any]] = {
        "features": spaces.Box(low, np.ones_like(low)),
        "globals": spaces.Box(LOW_GLOBALS, np.ones_like(LOW_GLOBALS)),
        "mask": spaces.MultiBinary(k),
    }
    found: spaces.Space[Any] = spaces.Dict(parts)
    return found


def action_space(k: int) -> spaces.Discrete:
    """Return the space of choices: a row of what is seen."""
    return spaces.Discrete(k)
