"""A packet's tensors at a visit: what came, and what leaves. NumPy only.

A tensor whose bytes did not change keeps its digest; only what changed is hashed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aats.errors import ModelError
from aats.learning.backend import backend_of
from aats.packet import Architecture
from aats.payload import (
    MODEL,
    NUMPY_DTYPE,
    REFERENCE,
    STATE,
    Array,
    Manifest,
    Payload,
    TensorSpec,
    digest,
    layout,
    pack,
)
from aats.roles.data import Batch, as_features

Allocate = Callable[[int], memoryview]
"""Returns a writable, zeroed buffer of so many bytes for the payload that leaves."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to be written: its bits, its dtype by name, its digest if known."""

    data: Array
    """NumPy has no bfloat16: its raw bits as uint16."""
    dtype: str
    digest: bytes = b""
    """Of the bytes, if they are known to be unchanged; b"" has them hashed."""


def tensor_of(array: Array) -> Tensor:
    """Return an array as a tensor of its own dtype.

    Raises:
        ModelError: If the dtype cannot travel.
    """
    for name, dtype in NUMPY_DTYPE.items():
        if name != "bf16" and np.dtype(dtype) == array.dtype:
            return Tensor(array, name)
    allowed = ", ".join(sorted(set(NUMPY_DTYPE) - {"bf16"}))
    raise ModelError(f"dtype {array.dtype} cannot travel; allowed are {allowed}")


def kept(payload: Payload, prefix: str) -> dict[str, Tensor]:
    """Return the payload's tensors under a prefix as they are, digests kept."""
    return {
        t.name: Tensor(payload.array(t), t.dtype, t.digest)
        for t in payload.manifest.tensors
        if t.name.startswith(prefix)
    }


def write(
    payload: Payload,
    model: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    allocate: Allocate,
) -> Manifest:
    """Write the payload that leaves into a new arena and return its manifest.

    Args:
        payload: As it came: whatever is neither model nor state goes on unchanged.
        model: The tensors under `model.`, all of them.
        state: The tensors under `state.`, all of them.
        allocate: Makes the arena.
    """
    others = {
        t.name: Tensor(payload.array(t), t.dtype, t.digest)
        for t in payload.manifest.tensors
        if not t.name.startswith((MODEL, STATE))
    }
    tensors = {**model, **others, **state}
    empty = layout({name: (t.dtype, t.data.shape) for name, t in tensors.items()})
    arena = allocate(empty.total)
    new = Payload(empty, arena)

    def written(spec: TensorSpec) -> TensorSpec:
        tensor = tensors[spec.name]
        np.copyto(new.array(spec), tensor.data)
        return spec._replace(digest=tensor.digest or digest(new.bytes_of(spec)))

    return Manifest(tuple(written(spec) for spec in empty.tensors), empty.total)


def initial_payload(
    architecture: Architecture,
    seed: int,
    reference: Mapping[str, Batch] | None = None,
    weights: Path | None = None,
) -> Payload:
    """Return the payload a packet leaves its owner with: a model and trusted samples.

    Args:
        architecture: What to build; its initial weights follow from `seed`.
        seed: Of the initialisation.
        reference: Per skill the owner's small trusted set (x, y), sent along to judge visits.
        weights: A `.safetensors` file to start from instead.

    Raises:
        ModelError: If the architecture is unknown, its config wrong, or the file of another.
    """
    dtypes: dict[str, str] = {}
    arrays: dict[str, Array]
    if weights is None:
        arrays = dict(backend_of(architecture).initial(architecture, seed))
    else:
        from aats.learning.stored import read_model

        stored = read_model(weights, architecture)
        arrays = stored.arrays()
        dtypes = {t.name: t.dtype for t in stored.manifest.tensors}
    for skill, (x, y) in (reference or {}).items():
        arrays[f"{REFERENCE}{skill}.x"] = as_features(x)
        arrays[f"{REFERENCE}{skill}.y"] = np.ascontiguousarray(y, np.int64)
    return pack(arrays, dtypes=dtypes)


def reference_of(payload: Payload) -> dict[str, Batch]:
    """Return the trusted samples a payload carries, by skill, as read-only views.

    Raises:
        ModelError: If features and labels do not fit each other or are not finite.
    """
    arrays = payload.arrays(REFERENCE)
    sets: dict[str, Batch] = {}
    for name, x in arrays.items():
        skill, _, part = name[len(REFERENCE) :].rpartition(".")
        if part != "x":
            continue
        y = arrays.get(f"{REFERENCE}{skill}.y")
        if y is None or y.ndim != 1 or y.dtype != np.int64 or len(x) != len(y):
            raise ModelError(f"reference set of skill {skill!r}: features and labels do not fit")
        labels, features = y.astype(np.int64), as_features(x)
        if labels.min(initial=0) < 0:
            raise ModelError(f"reference set of skill {skill!r}: a label is below 0")
        if not np.isfinite(features).all():
            raise ModelError(f"reference set of skill {skill!r}: a feature is NaN or infinite")
        if len(y):
            sets[skill] = (features, labels)
    return sets


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        ModelError: Naming the first tensor that has such a value.
    """
    for name, tensor in tensors.items():
        bits = tensor.data
        if tensor.dtype == "bf16":
            bits = (bits.astype(np.uint32) << 16).view(np.float32)
        if np.issubdtype(bits.dtype, np.floating) and not np.isfinite(bits).all():
            raise ModelError(f"tensor {name!r} has NaN or infinite values")
