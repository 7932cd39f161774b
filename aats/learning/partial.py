"""Training a part of a model: what is frozen holds neither gradients nor moments.

Inside `Partial` the trained blocks require gradients and the frozen ones do not, though gradients
flow through them; the frozen ones are in eval mode, so that dropout is off and running statistics
stay as they are (a frozen BatchNorm in training mode would still follow the last node). On the
way out everything is as it was but for the trained weights.

Both savings act on copies, and the tensors that travel (the masters) are put back:

- `frozen_bits = 8`: the frozen weight matrices pass forward and backward as 8-bit integers with
  one scale a row. The copy is made of the master at each visit, so errors do not add up.
- `mixed`: weights and gradients are bfloat16, the trained blocks have float32 masters besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from aats.learning.blocks import Block, modules_of, parameters_of

INT8_MAX = 127
HALF = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Quantised:
    """A weight matrix as 8-bit integers, symmetric, one scale for each row of dimension 0."""

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Quantised:
        """Return the nearest 8-bit copy of a weight [n, ...]."""
        largest = weight.abs().flatten(1).amax(1).float().clamp(min=torch.finfo(torch.float32).tiny)
        scale = (largest / INT8_MAX).reshape(-1, *[1] * (weight.ndim - 1))
        return cls((weight / scale).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale)

    def restored(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that these integers stand for."""
        return (self.values * self.scale).to(dtype)


class Partial:
    """A model of which some blocks are trained; to be entered.

    Args:
        model: The whole model, in float32.
        trained: The blocks to train; every other parameter is frozen.
        blocks: All of them.
        frozen_bits: 8 for frozen matrices in 8 bits, 0 for as they are.
        mixed: Whether to compute in bfloat16.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Sequence[Block],
        blocks: Sequence[Block],
        *,
        frozen_bits: int = 0,
        mixed: bool = False,
    ) -> None:
        self.model = model
        self.trained = {n: p for b in trained for n, p in parameters_of(model, b).items()}
        """The parameters that are trained, by name."""
        rest = [block for block in blocks if block not in trained]
        self._frozen = {n: p for b in rest for n, p in parameters_of(model, b).items()}
        self._modules = [module for block in rest for module in modules_of(model, block)]
        self._bits, self._mixed = frozen_bits, mixed
        self._own: dict[nn.Parameter, Tensor] = {}
        self._required: dict[nn.Parameter, bool] = {}
        self._masters: dict[nn.Parameter, Tensor] = {}
        self._quantised: dict[nn.Parameter, Quantised] = {}
        self._restored: dict[int, nn.Parameter] = {}
        self._open: list[list[nn.Parameter]] = []
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        self._own = {p: p.data for p in self.model.parameters()}
        self._required = {p: p.requires_grad for p in self._own}
        self._exit.callback(self._put_back)
        for p in self._frozen.values():
            p.requires_grad_(False)
        for p in self.trained.values():
            p.requires_grad_(True)
        if self._bits:
            self._quantise()
        if self._mixed:
            self._halve()
        self.train()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def train(self) -> None:
        """Put the model in training mode, and what is frozen in eval mode."""
        self.model.train()
        for module in self._modules:
            module.eval()

    @contextmanager
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """Give trained parameters other values for a while: the model as it was, in eval mode.

        Args:
            values: By name; of the shapes of the parameters.
        """
        own = {name: self.trained[name].data for name in values}
        for name, value in values.items():
            self.trained[name].data = value
        self.model.eval()
        try:
            yield self.model
        finally:
            for name, value in own.items():
                self.trained[name].data = value
            self.train()

    def received(self) -> dict[str, Tensor]:
        """Return copies of the trained parameters as they are now."""
        return {name: p.detach().clone() for name, p in self.trained.items()}

    def master(self, p: nn.Parameter) -> Tensor:
        """Return the float32 weight of a trained parameter, which steps are to be made on."""
        return self._masters.get(p, p.data)

    def stepped(self, p: nn.Parameter) -> None:
        """Take note that a step was made on a trained parameter's master."""
        if p in self._masters:
            p.data.copy_(self._masters[p])

    # --- copies ---

    def _halve(self) -> None:
        for p in self._own:
            if p.requires_grad:
                self._masters[p] = p.data.clone()
            if p not in self._quantised:
                p.data = p.data.to(HALF)
        self._exit.callback(self.model.register_forward_pre_hook(_to_half).remove)
        self._exit.callback(self.model.register_forward_hook(_to_float).remove)

    def _quantise(self) -> None:
        """Let frozen matrices be integers but for the moment of their module's forward pass.

        What autograd keeps of them for the backward pass is the integers, too.
        """
        self._quantised = {p: Quantised.of(p.data) for p in self._frozen.values() if p.ndim > 1}
        inner = {module for outer in self._modules for module in outer.modules()}
        for module in inner:
            held = [p for p in module.parameters() if p in self._quantised]
            if held:
                pre = module.register_forward_pre_hook(self._unpacking(held))
                post = module.register_forward_hook(self._packing, always_call=True)
                self._exit.callback(pre.remove)
                self._exit.callback(post.remove)
        self._exit.enter_context(
            torch.autograd.graph.saved_tensors_hooks(self._kept, self._given_back)
        )

    def _unpacking(self, held: Sequence[nn.Parameter]) -> Callable[[nn.Module, Any], None]:
        def unpack(module: nn.Module, args: Any) -> None:
            # A module within one that was unpacked as a whole has nothing left to do.
            packed = [p for p in held if not any(p is q for opened in self._open for q in opened)]
            for p in packed:
                p.data = self._quantised[p].restored(HALF if self._mixed else torch.float32)
                self._restored[p.data_ptr()] = p
            self._open.append(packed)

        return unpack

    def _packing(self, module: nn.Module, args: Any, out: Any) -> None:
        for p in self._open.pop():
            del self._restored[p.data_ptr()]
            p.data = self._own[p]

    def _kept(self, tensor: Tensor) -> Any:
        p = self._restored.get(tensor.data_ptr())
        if p is None:
            return tensor
        return p, tensor.dtype, tensor.size(), tensor.stride()

    def _given_back(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        p, dtype, size, stride = kept
        return self._quantised[p].restored(dtype).as_strided(size, stride)

    def _put_back(self) -> None:
        for p, own in self._own.items():
            p.data = own
            p.grad = None
            p.requires_grad_(self._required[p])
        with torch.no_grad():
            for p, master in self._masters.items():
                p.copy_(master)


def _to_half(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.to(HALF) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def _to_float(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out.float()
