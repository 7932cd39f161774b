"""Torch's global state for a script that others take turns with.

Live, each task has a process of its own, and with it torch's random generator and settings. In
the simulated world the two sides of a stream take turns in one process; each shall still draw
from its own generator and compute as it was told to. Between its turns a script holds nothing
open, so one that is dropped in the midst of it leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aats.learning.backend import SURROGATE
from aats.learning.stream import Frame, Script, T
from aats.packet import Architecture


def in_scope(script: Script[T], architecture: Architecture, seed: int) -> Script[T]:
    """Return a script whose turns compute deterministically, seeded, on one thread.

    Args:
        script: Not started.
        architecture: Of its model: the surrogate needs none of this, nor torch.
        seed: Of torch's generator.
    """
    if architecture.name == SURROGATE:
        return (yield from script)
    state = _State.seeded(seed)
    answer: Frame | None = None
    while True:
        with state.installed():
            try:
                step = script.send(answer)
            except StopIteration as end:
                outcome: T = end.value
                return outcome
        answer = yield step


@dataclass(slots=True)
class _State:
    """Torch's generator, threads and determinism."""

    generator: Any
    threads: int
    strict: bool
    warn: bool

    @classmethod
    def seeded(cls, seed: int) -> _State:
        import torch

        return cls(torch.Generator().manual_seed(seed).get_state(), 1, True, False)

    @classmethod
    def now(cls) -> _State:
        import torch

        return cls(
            torch.get_rng_state(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    def install(self) -> None:
        import torch

        torch.set_rng_state(self.generator)
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.strict, warn_only=self.warn)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Compute with this state, keep what becomes of it, put back what was there before."""
        before = _State.now()
        self.install()
        try:
            yield
        finally:
            after = _State.now()
            self.generator, self.threads = after.generator, after.threads
            self.strict, self.warn = after.strict, after.warn
            before.install()
