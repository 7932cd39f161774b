"""The range a number of a scenario may have, as an annotation that a reader can check."""

from __future__ import annotations

import sys
from dataclasses import dataclass

FINITE = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Between:
    """`Annotated[float, Between(0, 1)]`: from low to high, both included unless said otherwise.

    Infinity is out of range unless `high` says it.
    """

    low: float
    high: float = FINITE
    open_low: bool = False
    """The lower end itself is not allowed."""

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return low if self.high >= FINITE else f"{low} and at most {self.high:g}"
