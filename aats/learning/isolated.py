"""Torch's global state for one of several scripts that take turns in a process.

Live, each task has a process of its own, and with it torch's random generator and settings. In
the simulated world the two sides of a stream take turns in one process; each shall still draw
from its own generator and compute as it was told to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TorchState:
    """The generator, the threads and the determinism of one script; nothing without torch."""

    def __init__(self) -> None:
        self._own: tuple[Any, int, bool, bool] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Compute with this state; put back what was there before."""
        before = _state()
        if self._own is not None:
            _install(self._own)
        try:
            yield
        finally:
            self._own = _state()
            if before is not None:
                _install(before)


def _state() -> tuple[Any, int, bool, bool] | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return (
        torch.get_rng_state(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _install(state: tuple[Any, int, bool, bool]) -> None:
    import torch

    generator, threads, strict, warn = state
    torch.set_rng_state(generator)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict, warn_only=warn)
