"""Torch modules as a backend: tensors of a payload in, a module that can be judged, tensors out.

A module's tensors are views of the payload's arena where that is writable (the caller's private
mapping) and copies where it is not, so what a peer sent is never changed by training.

A module may have tensors that depend on what the packet carries (adapters added on the way): one
with a method `grow(shapes)` is told the names and shapes that came, and makes room for them. Such
a module may also leave a visit with other tensors than it came with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from aats.errors import ModelError
from aats.learning import weights
from aats.learning.backend import LogProbabilities
from aats.learning.models import build, initialise, predict
from aats.learning.probe import TRIAL_LR, TRIAL_STEPS
from aats.packet import Architecture
from aats.payload import MODEL, Array, Payload, TensorSpec
from aats.roles.data import Batch, Features

_NAMES = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
    torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
FORWARD_ROWS = 4096
"""Rows judged at once; bounds the memory of a forward pass."""


@runtime_checkable
class Growing(Protocol):
    """A module whose tensors depend on what the packet carries."""

    def grow(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for the tensors that came, of exactly these shapes.

        Called once, on a new module, before anything is compared or read. What is not strange
        and not known may be left: a name without a tensor is refused afterwards.

        Args:
            shapes: Names in the state dict and shapes of all that came.

        Raises:
            ModelError: If a name or a shape is strange.
        """
        ...


@dataclass(slots=True)
class Loaded:
    """A module and the state each of its tensors was loaded in."""

    module: nn.Module
    seen: dict[str, tuple[int, int]]
    """By state-dict name: address and torch's count of in-place writes."""


@dataclass(frozen=True, slots=True)
class ModuleTrial:
    """See `aats.learning.backend.Trial`."""

    gain: float
    alignment: float
    loss: float
    gradient_norm: float


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Compute on one thread, by deterministic kernels, seeded; restore all of it at the end."""
    threads = torch.get_num_threads()
    strict, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=warn)


def rows(x: Features) -> torch.Tensor:
    """Return rows as a tensor; a read-only array is copied."""
    return torch.from_numpy(x if x.flags.writeable else x.copy())


class ModuleBackend:
    """See `aats.learning.backend.Backend`."""

    def initial(self, architecture: Architecture, seed: int) -> Mapping[str, Array]:
        """Return a fresh module's tensors."""
        with deterministic(seed):
            module = build(architecture)
            initialise(module, seed)
        return {
            MODEL + name: np.atleast_1d(t.detach().numpy()).reshape(tuple(t.shape))
            for name, t in module.state_dict().items()
        }

    @contextmanager
    def scope(self, seed: int) -> Iterator[None]:
        """Return a scope of deterministic computing on one thread."""
        with deterministic(seed):
            yield

    def load(self, architecture: Architecture, payload: Payload) -> Loaded:
        """Return the module with the payload's tensors.

        The shapes are compared on a module without storage first, so that a stranger's config
        cannot make this process allocate more than the payload's own size.

        Raises:
            ModelError: Naming the first tensor that is missing, superfluous or of a wrong shape
                or dtype, or not finite.
        """
        specs = {
            t.name[len(MODEL) :]: t for t in payload.manifest.tensors if t.name.startswith(MODEL)
        }
        shapes = {name: spec.shape for name, spec in specs.items()}
        module = _skeleton(architecture, shapes)
        expected = module.state_dict()
        _check_shapes(architecture, specs, expected)
        weights.check_finite(weights.kept(payload, MODEL))
        tensors = {n: _read(payload, specs[n]).to(expected[n].dtype) for n in expected}
        tied = len([*module.parameters()]) < len([*module.named_parameters(remove_duplicate=False)])
        if not tied:
            module.load_state_dict(tensors, assign=True)
        if tied or any(t.is_meta for t in (*module.parameters(), *module.buffers())):
            # Assigning would untie weights, and a buffer that does not travel is made by the
            # constructor only: build for real.
            module = _grown(architecture, shapes)
            module.load_state_dict(tensors, assign=not tied)
        now = module.state_dict(keep_vars=True)
        return Loaded(module, {n: (t.data_ptr(), t._version) for n, t in now.items()})

    def subject(self, model: Loaded) -> nn.Module:
        """Return the module."""
        return model.module

    def log_probabilities(self, model: Loaded, x: Features, skill: str) -> LogProbabilities:
        """Return log-softmax of the module's logits, in eval mode.

        Raises:
            ModelError: If the module cannot take rows of this shape.
        """
        model.module.eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(x), FORWARD_ROWS):
                part = x[start : start + FORWARD_ROWS]
                try:
                    logits = predict(model.module, rows(part), skill)
                except (RuntimeError, IndexError) as error:
                    shape = list(part.shape[1:])
                    reason = str(error).strip().splitlines()[0]
                    raise ModelError(
                        f"rows of skill {skill!r}, {part.dtype}{shape}, do not fit the model: "
                        f"{reason}"
                    ) from error
                parts.append(logits.double().log_softmax(1).numpy())
        return np.concatenate(parts)

    def tensors(self, model: Loaded, payload: Payload) -> dict[str, weights.Tensor]:
        """Return the module's tensors in the dtypes they came in.

        Raises:
            ModelError: If training changed the shape or the number of tensors, and the module
                is none that grows.
        """
        specs = {t.name: t for t in payload.manifest.tensors}
        grows = isinstance(model.module, Growing)
        out = {}
        for name, tensor in model.module.state_dict(keep_vars=True).items():
            spec = specs.get(MODEL + name)
            if grows and (spec is None or tuple(tensor.shape) != spec.shape):
                dtype = _NAMES[tensor.dtype]
                out[MODEL + name] = weights.Tensor(_bits(tensor, dtype), dtype)
                continue
            if spec is None or tuple(tensor.shape) != spec.shape:
                raise ModelError(f"tensor {name!r} came out of training with another shape")
            same = not tensor.requires_grad and model.seen.get(name) == (
                tensor.data_ptr(), tensor._version
            )  # fmt: skip
            out[spec.name] = weights.Tensor(
                _bits(tensor, spec.dtype), spec.dtype, spec.digest if same else b""
            )
        return out

    def trial(
        self, model: Loaded, batch: Mapping[str, Batch], reference: Mapping[str, Batch], lr: float
    ) -> ModuleTrial:
        """Take trial steps of plain SGD on the minibatch, BatchNorm in eval mode."""
        module = model.module.eval()
        params = [p for p in module.parameters() if p.requires_grad]
        loss, gradient = _gradient(module, batch, params)
        norm = _norm(gradient)
        if not reference:
            return ModuleTrial(0.0, 0.0, loss, norm)
        before, trusted = _gradient(module, reference, params)
        dot = math.fsum(float((g * t).sum()) for g, t in zip(gradient, trusted, strict=True))
        scale = norm * _norm(trusted)
        for step in range(TRIAL_STEPS):
            if step:
                _, gradient = _gradient(module, batch, params)
            with torch.no_grad():
                for p, g in zip(params, gradient, strict=True):
                    p.sub_(g, alpha=lr or TRIAL_LR)
        with torch.no_grad():
            after = float(_loss(module, reference))
        return ModuleTrial(before - after, dot / scale if scale else 0.0, loss, norm)

    def flops(self, model: Loaded) -> float:
        """Return two operations for each weight: a lower bound for convolutions."""
        return 2.0 * sum(p.numel() for p in model.module.parameters())


def _skeleton(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Return the module without storage; with it where its constructor cannot do without."""
    try:
        with torch.device("meta"):
            return _grown(architecture, shapes)
    except (NotImplementedError, RuntimeError):
        return _grown(architecture, shapes)


def _grown(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Return a new module with room for what came. What it grows is of shapes that came."""
    module = build(architecture)
    if isinstance(module, Growing):
        module.grow(shapes)
    return module


def _check_shapes(
    architecture: Architecture,
    specs: Mapping[str, TensorSpec],
    expected: Mapping[str, torch.Tensor],
) -> None:
    place = f"architecture {architecture.name!r}"
    for name, want in expected.items():
        spec = specs.get(name)
        if spec is None:
            raise ModelError(f"{place}: tensor {name!r} {list(want.shape)} is missing")
        if spec.shape != tuple(want.shape):
            raise ModelError(
                f"{place}: tensor {name!r} has shape {list(spec.shape)}, expected is "
                f"{list(want.shape)}"
            )
        got = _DTYPES[spec.dtype]
        if got != want.dtype and not (got.is_floating_point and want.is_floating_point()):
            raise ModelError(
                f"{place}: tensor {name!r} is {spec.dtype}, expected is {_NAMES[want.dtype]}"
            )
    for name in specs:
        if name not in expected:
            raise ModelError(f"{place}: tensor {name!r} {list(specs[name].shape)} is not expected")


def _read(payload: Payload, spec: TensorSpec) -> torch.Tensor:
    array = payload.array(spec)
    array = array if array.flags.writeable else array.copy()
    if spec.dtype == "bf16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _bits(tensor: torch.Tensor, dtype: str) -> Array:
    there = tensor.detach().to(_DTYPES[dtype]).contiguous()
    if dtype == "bf16":
        return there.view(torch.int16).numpy().view(np.uint16)
    array: Array = there.numpy()
    return array


def _loss(module: nn.Module, sets: Mapping[str, Batch]) -> torch.Tensor:
    """Return the mean over skills of the mean cross-entropy."""
    losses = [
        nn.functional.cross_entropy(predict(module, rows(x), skill), torch.tensor(y))
        for skill, (x, y) in sets.items()
    ]
    return torch.stack(losses).mean()


def _gradient(
    module: nn.Module, sets: Mapping[str, Batch], params: list[nn.Parameter]
) -> tuple[float, list[torch.Tensor]]:
    loss = _loss(module, sets)
    found = torch.autograd.grad(loss, params, allow_unused=True)
    gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]
    return float(loss.detach()), gradient


def _norm(gradient: list[torch.Tensor]) -> float:
    return math.sqrt(math.fsum(float(g.double().square().sum()) for g in gradient))
