"""How much memory the training of a model takes: measured on torch's storages, and by formula.

Measured is what is alive between two steps (weights, gradients, moments) and the most that was
alive at any moment (activations, too; not the minibatch itself). A tensor counts if it was made
since the training began, or if it is the model's and the last step read it: the packet's tensors
that no step reads (the float32 masters of what is frozen in 16 or 8 bits) lie in a file that the
node has mapped, and its pages may go.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aats.learning.method import Method, Stop, Work
from aats.roles.data import Features, Labels

BYTES = {"adam": (4, 12), "sgd": (4, 8)}
"""By optimiser: for each weight of the model, and besides for each that is trained (gradient and
moments of float32)."""
MIXED_BYTES = {"adam": (2, 14), "sgd": (2, 10)}
"""Likewise in mixed precision: bfloat16 weights and gradients, float32 masters and moments."""


def training_bytes(weights: int, trained: int, *, optimiser: str, mixed: bool = False) -> int:
    """Return the bytes of weights, gradients and moments: 4 Phi + 12 Phi_slice for Adam.

    Args:
        weights: Of the whole model (Phi).
        trained: Of these, trained (Phi_slice).
        optimiser: "adam" or "sgd" (with momentum).
        mixed: 2 Phi + 14 Phi_slice instead.
    """
    each, more = (MIXED_BYTES if mixed else BYTES)[optimiser]
    return each * weights + more * trained


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one visit's training."""

    rest: int
    """Between two steps, the largest: weights, gradients, moments."""
    peak: int
    """At any moment, activations and all."""


class MemoryMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that torch makes while this is entered, and what is read of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = (*model.parameters(), *model.buffers())
        self._own = {t.untyped_storage()._cdata for t in tensors}
        self._made: dict[int, int] = {}
        self._read: dict[int, int] = {}
        self._rest = self._peak = 0

    @property
    def memory(self) -> Memory:
        """What was measured so far."""
        return Memory(self._rest, self._peak)

    def sample(self) -> None:
        """Take note of what is alive between two steps, after a step."""
        self._rest = max(self._rest, self._alive())
        self._read.clear()

    def prepared(self) -> None:
        """Take note that all is ready for the first step: what was read so far may go."""
        self._read.clear()

    def _alive(self) -> int:
        return sum(self._made.values()) + sum(self._read.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out an operation and follow what it reads and makes."""
        given = [t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        before = {storage._cdata for storage in given}
        for storage in given:
            if storage._cdata in self._own:
                self._read[storage._cdata] = storage.nbytes()
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in before and storage._cdata not in self._made:
                    self._made[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._made.pop, storage._cdata, None)
        self._peak = max(self._peak, self._alive())
        return out


class _Sampled(Work):
    """Minibatches that have the meter look each time one is asked for."""

    def __init__(self, work: Work, meter: MemoryMeter) -> None:
        super().__init__(work.stop, work.plan)
        self._meter = meter

    def __iter__(self) -> Iterator[tuple[str, Features, Labels]]:
        self._meter.prepared()
        for item in super().__iter__():
            yield item
            self._meter.sample()


def training_memory(method: Method, model: nn.Module, stop: Stop) -> Memory:
    """Train a model as a visit would, and return the memory that took.

    Args:
        method: What trains.
        model: Changed in place.
        stop: Has work for the method.
    """
    plan = method.plan(stop)
    assert plan is not None, "no work at this stop"
    torch.manual_seed(stop.seed)
    meter = MemoryMeter(model)
    with meter:
        method.train(model, _Sampled(Work(stop, plan), meter))
    return meter.memory
