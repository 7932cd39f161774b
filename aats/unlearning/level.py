"""How thoroughly contributions are taken out of a model; imports nothing, for the command line."""

from __future__ import annotations

from enum import StrEnum

STEPS = 50
"""Steps of repair, all later contributions together; measured by `benchmarks/lora_removal.py`."""


class Level(StrEnum):
    """How thoroughly contributions are taken out."""

    SUBTRACT = "subtract"
    """The sum without them; offline."""
    REPAIR = "repair"
    """Then train the later ones a little further."""
    REBUILD = "rebuild"
    """Make the later visits again, from before them."""
