"""The payload of a packet: raw tensors in one 64-byte-aligned arena, and their manifest.

The manifest travels in the header; the arena is cut into chunks by the transport. A tensor is
known by the BLAKE3 digest of its bytes, so a tensor that the receiver holds is not sent again.
The content hash of a set of tensors (name, dtype, shape, digest of each, in order) is a
version; the version of a model is that of its `model.` tensors.

Name prefixes: `model.` the weights; `ref.<skill>.x|y` the small trusted set the owner sent
along; `state.` what a method carries on; `policy.` a policy's own weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import blake3
import numpy as np
import numpy.typing as npt

from aats.errors import WireError
from aats.ids import Version

ALIGNMENT = 64
"""Bytes; a cache line, and enough for every SIMD load."""
MAX_TENSORS = 16_384
MAX_RANK = 8
MAX_NAME = 256
MODEL = "model."
REFERENCE = "ref."
STATE = "state."
MERGE_STATE = f"{STATE}merge."
"""State of a merge rule: stays with the trunk when its children set out."""

ITEM_SIZE = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1,
    "bool": 1,
}  # fmt: skip
"""Whitelisted dtypes, little-endian, and their size in bytes."""

NUMPY_DTYPE = {
    "f64": "<f8", "f32": "<f4", "f16": "<f2", "i64": "<i8", "i32": "<i4", "i16": "<i2",
    "i8": "|i1", "u8": "|u1", "bool": "|b1",
    "bf16": "<u2",  # NumPy has no bfloat16: raw bits
}  # fmt: skip
_DTYPE = {name: np.dtype(code) for name, code in NUMPY_DTYPE.items()}
_NAME_OF = {np.dtype(v): k for k, v in NUMPY_DTYPE.items() if k != "bf16"}

Array = npt.NDArray[np.generic]


class TensorSpec(NamedTuple):
    """One tensor: name, dtype (a key of `ITEM_SIZE`), shape, place in the arena, digest."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """The tensors of a payload in arena order.

    Raises:
        WireError: From `check`, naming the tensor and what is wrong with it.
    """

    tensors: tuple[TensorSpec, ...] = ()
    total: int = 0
    """Size of the arena in bytes."""

    def check(self, *, limit_bytes: int) -> None:
        """Check everything a stranger may have got wrong, before a byte is allocated.

        Raises:
            WireError: On an unknown dtype, a size that does not fit the shape, offsets that
                overlap, are unaligned or out of range, or a total above `limit_bytes`.
        """
        if self.total > limit_bytes or self.total < 0:
            raise WireError(f"manifest: total {self.total} bytes, allowed are 0-{limit_bytes}")
        if len(self.tensors) > MAX_TENSORS:
            raise WireError(f"manifest: {len(self.tensors)} tensors, allowed are {MAX_TENSORS}")
        end, names = 0, set()
        for t in self.tensors:
            fault = _fault_of(t)
            if not fault and t.name in names:
                fault = _BAD_NAME
            if not fault and (t.offset < end or t.offset + t.size > self.total):
                fault = f"offset {t.offset} {_BAD_PLACE}"
            if fault:
                raise WireError(f"manifest: tensor {t.name[:MAX_NAME]!r}: {fault}")
            end = t.offset + t.size
            names.add(t.name)

    def version(self, prefix: str = "") -> Version:
        """Return the content hash of the tensors whose name starts with `prefix`."""
        parts: list[bytes] = []
        for t in self.tensors:
            if t.name.startswith(prefix):
                shape = ",".join(map(str, t.shape))
                parts += (f"{t.name}\0{t.dtype}\0{shape}\0".encode(), t.digest)
        return Version(blake3.blake3(b"".join(parts)).hexdigest())

    def missing(self, known: Iterable[bytes]) -> tuple[TensorSpec, ...]:
        """Return the tensors whose digest is not among `known`."""
        have = set(known)
        return tuple(t for t in self.tensors if t.digest not in have)


_BAD_NAME = "name too long, repeated or not printable"
_BAD_PLACE = "overlaps, is unaligned or outside"


def _fault_of(t: TensorSpec) -> str:
    """Return what is wrong with one tensor by itself, "" if nothing is."""
    item = ITEM_SIZE.get(t.dtype)
    if item is None:
        return f"dtype {t.dtype!r}, allowed are {', '.join(ITEM_SIZE)}"
    # A name with a NUL could give two sets of tensors one version.
    if len(t.name) > MAX_NAME or not t.name.isprintable():
        return _BAD_NAME
    if len(t.shape) > MAX_RANK or (t.shape and min(t.shape) < 0):
        return f"shape {t.shape}, allowed are up to {MAX_RANK} sizes >= 0"
    if prod(t.shape) * item != t.size:
        return f"{t.size} bytes do not fit {t.dtype}{list(t.shape)}"
    if t.offset % ALIGNMENT:
        return f"offset {t.offset} {_BAD_PLACE}"
    if len(t.digest) != 32:
        return f"digest of {len(t.digest)} bytes, must be 32"
    return ""


def layout(arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> Manifest:
    """Return the manifest (digests empty) for name -> (dtype, shape), in the given order."""
    specs, end = [], 0
    for name, (dtype, shape) in arrays.items():
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        size = prod(shape) * ITEM_SIZE[dtype]
        specs.append(TensorSpec(name, dtype, shape, offset, size, b""))
        end = offset + size
    return Manifest(tuple(specs), end)


def digest(data: memoryview | bytes | Array) -> bytes:
    """Return the 32-byte BLAKE3 digest of a buffer."""
    return blake3.blake3(data.data if isinstance(data, np.ndarray) else data).digest()


@dataclass(frozen=True, slots=True)
class Payload:
    """A manifest and the arena it describes.

    `arena` is any writable or read-only buffer of `manifest.total` bytes (bytearray, mmap,
    uint8 array). It must not change while a transfer reads it.
    """

    manifest: Manifest = Manifest()
    arena: memoryview = field(default_factory=lambda: memoryview(b""))

    def bytes_of(self, spec: TensorSpec) -> memoryview:
        """Return the bytes of one tensor as a view."""
        return self.arena[spec.offset : spec.offset + spec.size]

    def array(self, spec: TensorSpec) -> Array:
        """Return one tensor as a NumPy view (bf16 as raw uint16)."""
        dtype = _DTYPE[spec.dtype]
        flat = np.frombuffer(self.arena, dtype, spec.size // dtype.itemsize, spec.offset)
        return flat.reshape(spec.shape)

    def arrays(self, prefix: str = "") -> dict[str, Array]:
        """Return the tensors whose name starts with `prefix`, as views, prefix kept."""
        return {t.name: self.array(t) for t in self.manifest.tensors if t.name.startswith(prefix)}

    def verify(self) -> None:
        """Check every digest.

        Raises:
            WireError: Naming the first tensor whose bytes do not fit its digest.
        """
        for t in self.manifest.tensors:
            if digest(self.bytes_of(t)) != t.digest:
                raise WireError(f"payload: tensor {t.name!r} does not fit its digest")


def pack(arrays: Mapping[str, Array], *, dtypes: Mapping[str, str] | None = None) -> Payload:
    """Copy arrays into one fresh arena and return it with its manifest.

    Args:
        arrays: Name -> array, in the order they shall have.
        dtypes: Overrides for dtypes NumPy lacks (`{"model.w": "bf16"}` on uint16 bits).

    Raises:
        KeyError: If a dtype is not whitelisted.
        TypeError: If an override names a dtype of another kind than the array's.
    """
    named = dtypes or {}
    plan = {
        name: (named.get(name) or _NAME_OF[np.dtype(a.dtype).newbyteorder("<")], tuple(a.shape))
        for name, a in arrays.items()
    }
    empty = layout(plan)
    arena = memoryview(bytearray(empty.total))
    payload = Payload(empty, arena)
    specs = []
    for spec in empty.tensors:
        np.copyto(payload.array(spec), arrays[spec.name], casting="equiv")
        specs.append(
            TensorSpec(spec.name, spec.dtype, spec.shape, spec.offset, spec.size,
                       digest(payload.bytes_of(spec)))
        )  # fmt: skip
    return Payload(Manifest(tuple(specs), empty.total), arena)
