"""Payload files: mapped into memory, recycled, and resumable while they arrive.

A page of fresh memory costs more to touch than to receive, so a file that is no longer needed
keeps its mapping and waits in a small pool for the next payload. A mapping is recycled only
when nobody reads it any more: views handed out in this process are counted, and a private
mapping (`map_private`, also in worker processes) holds a shared lock on the file.

A `Part` is a payload on its way in. What is missing is cut into chunks by `plan`, a pure
function of the missing ranges, so both ends of a transfer agree on the chunks and no table of
them travels. A chunk's bytes are written before its mark, and both live in the page cache: a
process killed at any instruction finds on its return every chunk that it had marked.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from secrets import token_hex

import blake3
import numpy as np
import numpy.typing as npt

from aats.errors import StoreFullError, WireError
from aats.payload import ALIGNMENT, Manifest, TensorSpec, digest

CHUNK_BYTES = 2 << 20
"""Large enough that Python's cost per message is small, small enough for a CPU's cache."""
_ZEROS = memoryview(bytes(CHUNK_BYTES))
POOL_FILES = 2
"""Files kept for reuse; a node rarely receives more packets at the same time."""

Range = tuple[int, int]
"""Start and end (exclusive) in the arena, bytes."""
Chunk = tuple[Range, ...]
"""The ranges whose bytes travel together."""
Bytes = npt.NDArray[np.uint8]


def plan(ranges: Iterable[Range], chunk_bytes: int = CHUNK_BYTES) -> tuple[Chunk, ...]:
    """Cut ascending ranges into chunks of `chunk_bytes` (the last one may be shorter)."""
    chunks: list[Chunk] = []
    open_chunk: list[Range] = []
    room = chunk_bytes
    for start, end in ranges:
        while start < end:
            stop = min(end, start + room)
            open_chunk.append((start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                chunks.append(tuple(open_chunk))
                open_chunk, room = [], chunk_bytes
    if open_chunk:
        chunks.append(tuple(open_chunk))
    return tuple(chunks)


def size_of(chunk: Chunk) -> int:
    """Return a chunk's bytes."""
    return sum(end - start for start, end in chunk)


def merge(tensors: Iterable[TensorSpec]) -> tuple[Range, ...]:
    """Return the ranges that cover tensors given in arena order; padding between is closed."""
    ranges: list[Range] = []
    for t in tensors:
        end = t.offset + t.size
        if t.size == 0:
            continue
        if ranges and t.offset - ranges[-1][1] < ALIGNMENT:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((t.offset, end))
    return tuple(ranges)


class Arena:
    """A file of payload bytes, mapped shared; its views keep it from being recycled."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self.size = len(mapping)
        self._map = mapping
        self._views: list[weakref.ref[Bytes]] = []

    @classmethod
    def create(cls, path: Path, size: int) -> Arena:
        """Create a file of zeros whose blocks are really there: a full disk must not kill us later.

        Zeros written in large pieces lie in large pages: a mapping of these costs one page fault
        for each piece, now and whenever the file is used again.

        Raises:
            StoreFullError: If the disk has no room.
        """
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)
            for start in range(0, size, CHUNK_BYTES):
                os.pwrite(handle, _ZEROS[: size - start], start)
            return cls(path, mmap.mmap(handle, size))
        except OSError as error:
            path.unlink()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise StoreFullError(f"{path.parent}: no room for {size} bytes on disk") from error
        finally:
            os.close(handle)

    @classmethod
    def open(cls, path: Path) -> Arena:
        """Map an existing file."""
        handle = os.open(path, os.O_RDWR)
        try:
            return cls(path, mmap.mmap(handle, 0))
        finally:
            os.close(handle)

    def view(self, size: int, *, writable: bool = False) -> memoryview:
        """Return the first `size` bytes; the arena is in use until the view is gone."""
        array: Bytes = np.frombuffer(self._map, np.uint8, count=size)
        array.flags.writeable = writable
        self._views = [view for view in self._views if view() is not None]
        self._views.append(weakref.ref(array))
        return array.data

    def flush(self) -> None:
        """Write the bytes to the disk and wait for it."""
        self._map.flush()

    def rename(self, path: Path) -> None:
        """Give the file another name in the same directory, replacing what has it."""
        self.path.rename(path)
        self.path = path

    def is_idle(self) -> bool:
        """Return whether nobody reads it: no view here, no private mapping anywhere."""
        if any(view() is not None for view in self._views):
            return False
        handle = os.open(self.path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(handle)
        return True


def map_private(path: Path, size: int) -> memoryview:
    """Map a payload file copy-on-write: what is written stays in this process.

    The file is locked (shared) until the view is gone, so its store does not recycle it.
    """
    if size == 0:
        return memoryview(bytearray())
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        private = mmap.mmap(
            handle, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    finally:
        os.close(handle)
    return memoryview(private)


class Pool:
    """Makes arenas, out of files that are no longer needed where it can."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._free: list[Arena] = []

    def take(self, path: Path, size: int) -> Arena:
        """Return an arena of at least `size` bytes (one or more) at `path`.

        Raises:
            StoreFullError: If the disk has no room.
        """
        return self.reuse(path, size) or Arena.create(path, size)

    def reuse(self, path: Path, size: int) -> Arena | None:
        """Return a waiting arena of about `size` bytes, now at `path`; None if there is none."""
        fitting = [a for a in self._free if size <= a.size <= 2 * size + CHUNK_BYTES]
        if size == 0 or not fitting:
            return None
        arena = min(fitting, key=lambda a: a.size)
        self._free.remove(arena)
        arena.rename(path)
        return arena

    def give(self, arena: Arena) -> None:
        """Take an arena back: for reuse, or if it is in use or one too many, to delete it."""
        if not arena.is_idle():
            arena.path.unlink()
            return
        arena.rename(self._directory / f"free.{token_hex(8)}")
        self._free.append(arena)
        if len(self._free) > POOL_FILES:
            self._free.pop(0).path.unlink()

    @property
    def size_bytes(self) -> int:
        """Bytes of files waiting for reuse."""
        return sum(arena.size for arena in self._free)

    def clear(self) -> None:
        """Delete what waits for reuse."""
        while self._free:
            self._free.pop().path.unlink()


# --- progress of a part -----------------------------------------------------------------------

_MAGIC = b"AATSPROG"
_PROGRESS = struct.Struct("<8s32sII")
"""Magic, layout digest, number of ranges, number of chunks; then ranges (u64 pairs), marks."""


def _layout_digest(manifest: Manifest) -> bytes:
    root = blake3.blake3(manifest.version().encode())
    root.update(struct.pack("<Q", manifest.total))
    root.update(b"".join(struct.pack("<Q", t.offset) for t in manifest.tensors))
    return root.digest()


class Progress:
    """Which chunks of a part have arrived, as a small mapped file beside it."""

    def __init__(self, path: Path, ranges: tuple[Range, ...], marks: mmap.mmap, at: int) -> None:
        self.path, self.ranges = path, ranges
        self._marks, self._at = marks, at

    @classmethod
    def create(cls, path: Path, manifest: Manifest, ranges: tuple[Range, ...]) -> Progress:
        """Write a fresh one, no chunk marked, in one atomic step."""
        count = len(plan(ranges))
        head = _PROGRESS.pack(_MAGIC, _layout_digest(manifest), len(ranges), count)
        body = b"".join(struct.pack("<QQ", *r) for r in ranges)
        fresh = path.with_suffix(".tmp")
        fresh.write_bytes(head + body + bytes(count))
        fresh.replace(path)
        return cls(path, ranges, cls._map(path), len(head) + len(body))

    @classmethod
    def open(cls, path: Path, manifest: Manifest) -> Progress | None:
        """Return what `path` says of this very manifest; None if it says nothing of it."""
        try:
            data = path.read_bytes()
            magic, layout, num_ranges, count = _PROGRESS.unpack_from(data)
            ranges = tuple(
                struct.unpack_from("<QQ", data, _PROGRESS.size + 16 * i) for i in range(num_ranges)
            )
        except (FileNotFoundError, struct.error):
            return None
        at = _PROGRESS.size + 16 * num_ranges
        if magic != _MAGIC or layout != _layout_digest(manifest) or len(data) != at + count:
            return None
        return cls(path, ranges, cls._map(path), at)

    @staticmethod
    def _map(path: Path) -> mmap.mmap:
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), 0)

    def mark(self, index: int) -> None:
        """Note that the bytes of chunk `index` are written."""
        self._marks[self._at + index] = 1

    def missing(self) -> tuple[Range, ...]:
        """Return the ranges of the chunks that are not marked."""
        chunks = plan(self.ranges)
        return tuple(
            part for i, chunk in enumerate(chunks) if not self._marks[self._at + i]
            for part in chunk
        )  # fmt: skip


# --- a part -----------------------------------------------------------------------------------


class Part:
    """A payload on its way in: where its chunks go, which have come, whether they are right.

    Digests are computed as the bytes come by, while they are in the CPU's cache; tensors whose
    bytes came out of order or in an earlier life are hashed by `complete`.
    """

    def __init__(
        self,
        arena: Arena | None,
        manifest: Manifest,
        missing: tuple[Range, ...],
        progress: Callable[[], Progress] | None,
        trusted: Iterable[str] = (),
    ) -> None:
        self.manifest = manifest
        self.missing = missing
        self.chunks = plan(missing)
        self.arena = arena
        self.is_complete = False
        self._progress: Progress | None = None
        self._make_progress = progress
        self._view: Bytes | None = None
        if arena is not None:
            self._view = np.frombuffer(arena.view(manifest.total, writable=True), np.uint8)
        self._waiting = set(range(len(self.chunks)))
        self._right = set(trusted)
        self._tensors = [t for t in manifest.tensors if t.size]
        self._starts = [t.offset for t in self._tensors]
        self._hashing: dict[str, tuple[blake3.blake3, int]] = {}
        self._grown: dict[int, int] = {}
        """Chunk index -> bytes of it that are in place and hashed."""

    @property
    def is_resumable(self) -> bool:
        """Whether the disk tells which chunks have come."""
        return self._progress is not None or self._make_progress is not None

    def prepare(self) -> None:
        """Make the file that tells of the chunks; the first of them does it otherwise."""
        if self._make_progress is not None:
            self._progress = self._make_progress()
            self._make_progress = None

    @property
    def num_waiting(self) -> int:
        """Chunks that have not come."""
        return len(self._waiting)

    def wants(self, index: int) -> bool:
        """Return whether chunk `index` has not come yet."""
        return index in self._waiting

    def write(self, index: int, data: Bytes) -> None:
        """Put a chunk's bytes in place, hash them, mark them.

        Raises:
            WireError: If a tensor that is now whole does not fit its digest.
        """
        assert self._view is not None, "an empty payload has no chunks"
        at = 0
        for start, end in self.chunks[index]:
            np.copyto(self._view[start:end], data[at : at + end - start])
            at += end - start
        self.wrote(index)

    def slot(self, index: int) -> Bytes | None:
        """Return where a chunk goes if that is one range, to be written there directly."""
        chunk = self.chunks[index]
        if len(chunk) != 1 or self._view is None:
            return None
        return self._view[chunk[0][0] : chunk[0][1]]

    def begin(self, index: int) -> Bytes | None:
        """Return the `slot` of a chunk that is about to be written there, perhaps once more."""
        if self._grown.pop(index, 0):
            low, high = self.chunks[index][0]
            for t in self._tensors:  # what was hashed is going to be overwritten
                if t.offset < high and low < t.offset + t.size:
                    self._right.discard(t.name)
                    self._hashing.pop(t.name, None)
        return self.slot(index)

    def grew(self, index: int, count: int) -> None:
        """Hash what is in place of a chunk, its first `count` bytes, if it has a `slot`.

        Raises:
            WireError: If a tensor that is now whole does not fit its digest.
        """
        if self.slot(index) is None:
            return
        start = self.chunks[index][0][0]
        self._hash(start + self._grown.get(index, 0), start + count)
        self._grown[index] = count

    def wrote(self, index: int) -> None:
        """Hash and mark a chunk whose bytes are in place.

        Raises:
            WireError: If a tensor that is now whole does not fit its digest.
        """
        grown = self._grown.pop(index, 0)
        for start, end in self.chunks[index]:
            self._hash(start + grown, end)
        self.prepare()
        if self._progress is not None:
            self._progress.mark(index)
        self._waiting.discard(index)

    def _hash(self, start: int, end: int) -> None:
        assert self._view is not None, "an empty payload has no chunks"
        first = max(0, bisect_right(self._starts, start) - 1)
        for t in islice(self._tensors, first, None):
            if t.offset >= end:
                break
            low, high = max(start, t.offset), min(end, t.offset + t.size)
            if low >= high or t.name in self._right:
                continue
            if low == t.offset and high == t.offset + t.size:
                self._check(t, digest(self._view[low:high]))
                continue
            hasher, upto = self._hashing.get(t.name) or (blake3.blake3(), t.offset)
            if low != upto:
                continue
            hasher.update(self._view[low:high].data)
            self._hashing[t.name] = (hasher, high)
            if high == t.offset + t.size:
                self._check(t, hasher.digest())

    def _check(self, tensor: TensorSpec, found: bytes) -> None:
        self._hashing.pop(tensor.name, None)
        if found != tensor.digest:
            raise WireError(f"payload: tensor {tensor.name!r} does not fit its digest")
        self._right.add(tensor.name)

    def complete(self) -> None:
        """Check what is not checked yet, and clear the padding between tensors.

        Raises:
            WireError: If a chunk is missing or a tensor does not fit its digest.
        """
        if self._waiting:
            raise WireError(f"payload: {len(self._waiting)} of {len(self.chunks)} chunks missing")
        for t in self.manifest.tensors:
            if t.name not in self._right:
                data = self._view[t.offset : t.offset + t.size] if self._view is not None else b""
                self._check(t, digest(data))
        if self._view is not None:
            clear_padding(self._view, self.manifest)
        self.is_complete = True

    def close(self) -> None:
        """Let go of the arena; nothing more can be written."""
        self._view = None
        self._progress = self._make_progress = None


def clear_padding(arena: Bytes, manifest: Manifest) -> None:
    """Zero what lies between tensors: a recycled file has another packet's bytes there."""
    end = 0
    for t in manifest.tensors:
        if t.offset > end:
            arena[end : t.offset] = 0
        end = t.offset + t.size


def copy_known(
    target: Arena, manifest: Manifest, held: Mapping[bytes, memoryview]
) -> tuple[set[str], tuple[TensorSpec, ...]]:
    """Copy the tensors held (by digest) into `target`; return their names, and what is missing."""
    if not held:
        return set(), manifest.tensors
    view = np.frombuffer(target.view(manifest.total, writable=True), np.uint8)
    known, missing = set(), []
    for t in manifest.tensors:
        data = held.get(t.digest)
        if data is None or len(data) != t.size:
            missing.append(t)
            continue
        np.copyto(view[t.offset : t.offset + t.size], np.frombuffer(data, np.uint8))
        known.add(t.name)
    return known, tuple(missing)


__all__ = [
    "CHUNK_BYTES", "Arena", "Chunk", "Part", "Pool", "Progress", "Range", "clear_padding",
    "copy_known", "map_private", "merge", "plan", "size_of",
]  # fmt: skip
