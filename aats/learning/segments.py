"""A model in consecutive segments that lie on different nodes: forward, backward, one step each.

A model can be cut between its blocks (`aats.learning.blocks`) if it is an `nn.Sequential`, or
names blocks that make one up when run in order. Each segment keeps its own input and output until
the error of the output comes back; it then takes its SGD step and gives the error of its input.
The steps together are those of the whole model, so cutting changes nothing but who computes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from aats.errors import ModelError, nearest
from aats.learning.blocks import Block, blocks_of, modules_of, size_of
from aats.learning.models import build
from aats.packet import Architecture
from aats.payload import Array

AUTO = "auto"
COPIES = 4
"""Of a client's part in its memory: weights, gradients, and as much again for what flows."""
ITEM_BYTES = 4


class Segment:
    """A run of a model's blocks, trained by plain SGD.

    Args:
        module: The run.
        lr: Learning rate.
        clip: Largest norm of this segment's gradient; 0 for none.
    """

    def __init__(self, module: nn.Sequential, *, lr: float = 0.0, clip: float = 0.0) -> None:
        self.module = module
        self.lr, self.clip = lr, clip
        self._input: Tensor
        self._output: Tensor

    @property
    def size(self) -> int:
        """Numbers in its parameters."""
        return sum(p.numel() for p in self.module.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for a minibatch, detached; keep what the backward pass needs."""
        self.module.train()
        self._input = x.detach().requires_grad_(x.is_floating_point())
        self._output = self.module(self._input)
        return self._output.detach()

    def backward(self, error: Tensor) -> Tensor:
        """Take a step by the output's error (its gradient); return the input's error.

        Raises:
            ModelError: If the error is not of the output's shape.
        """
        if error.shape != self._output.shape:
            raise ModelError(f"an error {list(error.shape)}, not {list(self._output.shape)}")
        self._output.backward(error)  # type: ignore[no-untyped-call]
        return self._step()

    def finish(self, loss: Tensor) -> Tensor:
        """Take a step by a loss of `output`; return the input's error."""
        loss.backward()  # type: ignore[no-untyped-call]
        return self._step()

    @property
    def output(self) -> Tensor:
        """The last output, with its graph."""
        return self._output

    def _step(self) -> Tensor:
        moved = [p for p in self.module.parameters() if p.grad is not None]
        if self.clip:
            nn.utils.clip_grad_norm_(moved, self.clip)
        with torch.no_grad():
            for p in moved:
                assert p.grad is not None
                p.sub_(p.grad, alpha=self.lr)
        self.module.zero_grad(set_to_none=True)
        error = self._input.grad
        return torch.zeros_like(self._input) if error is None else error


def chain_of(model: nn.Module) -> list[nn.Sequential]:
    """Return a model's blocks as modules, to be run one after the other.

    Raises:
        ModelError: If the model is no sequence of blocks.
    """
    blocks = blocks_of(model)
    if not isinstance(model, nn.Sequential) and not hasattr(model, "blocks"):
        raise ModelError(f"a {type(model).__name__} is no sequence of blocks and cannot be cut")
    return [nn.Sequential(*modules_of(model, block)) for block in blocks]


def joined(chain: list[nn.Sequential], start: int, stop: int) -> nn.Sequential:
    """Return blocks `start` to `stop` (not included) as one module that shares their weights."""
    return nn.Sequential(*(module for block in chain[start:stop] for module in block))


def cut_at(model: nn.Module, cut: str | int, memory_bytes: int) -> int:
    """Return how many blocks lie before the cut.

    Args:
        model: The whole model.
        cut: A number of blocks, the name of the first block after the cut, or "auto": as many
            as fit in the memory of the client that has least.
        memory_bytes: What that client advertises.

    Raises:
        ModelError: If there is no such place.
    """
    blocks = blocks_of(model)
    if len(blocks) < 2:
        raise ModelError("a model of one block cannot be cut")
    names = [block.name for block in blocks]
    if cut == AUTO:
        return _fitting(model, blocks, memory_bytes)
    if isinstance(cut, str):
        if cut not in names[1:]:
            raise ModelError(
                f"cut {cut!r}: no block begins so; allowed are {', '.join(names[1:])}, a number "
                f"1-{len(blocks) - 1}, or {AUTO!r}{nearest(cut, names[1:])}"
            )
        return names.index(cut)
    if not 0 < cut < len(blocks):
        raise ModelError(f"cut {cut}: allowed are 1-{len(blocks) - 1}, a block's name or {AUTO!r}")
    return int(cut)


def _fitting(model: nn.Module, blocks: tuple[Block, ...], memory_bytes: int) -> int:
    """Return the most blocks that fit in memory, at least one and not the last."""
    fit, used = 1, size_of(model, blocks[0])
    for block in blocks[1:-1]:
        used += size_of(model, block)
        if used * ITEM_BYTES * COPIES > memory_bytes:
            break
        fit += 1
    return fit


def piece(architecture: Architecture, start: int, stop: int | None) -> nn.Sequential:
    """Return some blocks of a model that is not here, without values: give them by `put`.

    Only what these blocks need is allocated, and that only with the values.

    Raises:
        ModelError: If the architecture cannot be cut so.
    """
    with torch.device("meta"):
        chain = chain_of(build(architecture))
    end = len(chain) if stop is None else stop
    if not 0 <= start < end <= len(chain):
        raise ModelError(f"blocks {start} to {end} of {len(chain)}")
    return joined(chain, start, end)


def weights_of(module: nn.Module) -> dict[str, Array]:
    """Return a module's tensors by name, as copies."""
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def put(module: nn.Module, arrays: Mapping[str, Array]) -> None:
    """Give a module values.

    Raises:
        ModelError: If a tensor is missing, superfluous, of a wrong shape or dtype, or not finite.
    """
    expected = module.state_dict()
    if expected.keys() != arrays.keys():
        raise ModelError(f"tensors {', '.join(arrays)}; expected are {', '.join(expected)}")
    given = {}
    for name, array in arrays.items():
        want = expected[name]
        if tuple(array.shape) != tuple(want.shape):
            raise ModelError(f"tensor {name!r} {list(array.shape)}, expected {list(want.shape)}")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ModelError(f"tensor {name!r} has NaN or infinite values")
        given[name] = torch.from_numpy(array.copy())
        if given[name].dtype != want.dtype:
            raise ModelError(f"tensor {name!r} is {given[name].dtype}, expected {want.dtype}")
    on_meta = any(tensor.is_meta for tensor in expected.values())
    module.load_state_dict(given, assign=on_meta)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise ModelError("a buffer of this segment does not travel, so it cannot be cut off")
