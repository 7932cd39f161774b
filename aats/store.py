"""A node's durable store: custody rows and ledger records in SQLite, payloads as mapped files.

Layout of a node's directory: `lock`, `store.db` (WAL), and `spool/` with

    <key>.part, <key>.progress      a payload on its way in, and which chunks have come
    <key>.pkt, <key>.<hex>.pkt      the payload of a custody row, which names the file
    <task>.out                      new tensors that a task is writing
    free.<hex>                      waits for reuse

The commit of a row is the one custody point. What it needs comes before (a part or an outcome
gets its final name), what it makes superfluous goes after (the old payload, the progress), so a
process killed at any instruction leaves the old state or the new one, and files that no row
names: those are put back (a complete part) or deleted when the store is opened.

Level "process" survives kill -9: the page cache is enough. Level "host" survives a power
failure: bytes and rows are on the disk before `save` returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Literal

import numpy as np

from aats import wire
from aats.errors import LocalError, StoreFullError, WireError
from aats.ids import CustodyKey, PacketId
from aats.lineage import Record
from aats.node.custody import Status
from aats.node.events import CustodyRow
from aats.payload import Manifest, Payload, TensorSpec
from aats.spool import (
    Arena,
    Part,
    Pool,
    Progress,
    clear_padding,
    copy_known,
    map_private,
    merge,
    plan,
)

PARTS_KEPT = 4
"""Parts kept of transfers that broke off; a neighbour that always does so gets no more disk."""
SEEN_KEPT = 10_000
"""Keys of dropped copies remembered; the oldest fall out."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS custody (
    packet TEXT, hop INTEGER, epoch INTEGER, status TEXT, row BLOB, file TEXT,
    PRIMARY KEY (packet, hop, epoch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (
    number INTEGER PRIMARY KEY, packet TEXT, hop INTEGER, epoch INTEGER,
    UNIQUE (packet, hop, epoch));
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, packet TEXT, record BLOB);
CREATE INDEX IF NOT EXISTS records_of ON records (packet);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
"""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT = "store.boot"
"""Name of our own value in the state table: the boot in which the store was last open."""

Level = Literal["process", "host"]
Checkpoint = Callable[[str], None]
"""Called with the name of each step of a `save` or `drop`: tests end the process there."""


@dataclass(slots=True)
class _Held:
    """A payload whose row is durable, or is about to be saved."""

    arena: Arena | None
    manifest: Manifest
    is_flushed: bool = False
    by_digest: dict[bytes, TensorSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_digest = {t.digest: t for t in self.manifest.tensors}

    def payload(self) -> Payload:
        if self.arena is None:
            return Payload(self.manifest)
        return Payload(self.manifest, self.arena.view(self.manifest.total))


class NodeStore:
    """Custody, records and state of one node. Thread-safe; one process per directory.

    Args:
        root: The node's directory; made if missing.
        level: What a saved row survives: "process" (kill -9) or "host" (power failure).
        quota_bytes: Bound on the bytes of all payloads; None for as much as the disk has.
        checkpoint: Called at the named steps of a change; for tests of crashes.

    Raises:
        LocalError: If another process has the directory open.
    """

    def __init__(
        self,
        root: Path,
        *,
        level: Level = "process",
        quota_bytes: int | None = None,
        checkpoint: Checkpoint = lambda step: None,
    ) -> None:
        self.root, self.level, self.quota_bytes = root, level, quota_bytes
        self.spool = root / "spool"
        self.lost: tuple[CustodyKey, ...] = ()
        """Rows whose payload was missing or wrong when the store was opened; dropped."""
        self._checkpoint = checkpoint
        self._guard = threading.RLock()
        self.spool.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(root / "lock")
        self._db = sqlite3.connect(
            root / "store.db", check_same_thread=False, isolation_level=None, timeout=5
        )
        self._pool = Pool(self.spool)
        self._held: dict[CustodyKey, _Held] = {}
        self._rows: dict[CustodyKey, CustodyRow] = {}
        self._parts: dict[CustodyKey, Part] = {}
        self._left: OrderedDict[CustodyKey, None] = OrderedDict()
        """Parts that were given up and could be resumed, the latest last."""
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if level == 'host' else 'NORMAL'}")
            self._db.executescript(_SCHEMA)
            self._load()
        except sqlite3.Error as error:
            self._db.close()
            os.close(self._lock)
            raise LocalError(f"{root / 'store.db'}: {error}") from error

    # --- reading ------------------------------------------------------------------------------

    def rows(self) -> tuple[CustodyRow, ...]:
        """Return every durable row."""
        with self._guard:
            return tuple(self._rows.values())

    def has_had(self, key: CustodyKey) -> bool:
        """Return whether a row of this key is here, or was here and was dropped."""
        with self._guard:
            found = self._db.execute(
                "SELECT 1 FROM seen WHERE packet = ? AND hop = ? AND epoch = ?", _columns(key)
            )
            return key in self._rows or found.fetchone() is not None

    def seen(self) -> tuple[CustodyKey, ...]:
        """Return the keys of copies that were here and were dropped, oldest first."""
        with self._guard:
            found = self._db.execute("SELECT packet, hop, epoch FROM seen ORDER BY number")
            return tuple(CustodyKey(*row) for row in found)

    def state(self) -> dict[str, bytes]:
        """Return the values saved with `save_state`."""
        with self._guard:
            found = self._db.execute("SELECT name, value FROM state WHERE name != ?", (_BOOT,))
            return dict(found)

    def records(self, packet: PacketId | None = None) -> tuple[Record, ...]:
        """Return ledger records in the order they were saved, of one packet or of all."""
        with self._guard:
            found = self._db.execute(
                "SELECT record FROM records WHERE ? IS NULL OR packet = ? ORDER BY number",
                (packet, packet),
            )
            return tuple(wire.decode_record(blob) for (blob,) in found)

    def payload(self, key: CustodyKey) -> Payload:
        """Return a held payload, read-only, as long as it is referred to.

        Raises:
            KeyError: If no payload is held under `key`.
        """
        with self._guard:
            return self._held[key].payload()

    def private_payload(self, key: CustodyKey) -> Payload:
        """Return a writable copy-on-write view of a held payload; the file never changes.

        Raises:
            KeyError: If no payload is held under `key`.
        """
        with self._guard:
            held = self._held[key]
            path = self.payload_path(key)
            return Payload(
                held.manifest,
                memoryview(b"") if path is None else map_private(path, held.manifest.total),
            )

    def payload_path(self, key: CustodyKey) -> Path | None:
        """Return the file of a held payload, for `spool.map_private`; None if it is empty.

        Raises:
            KeyError: If no payload is held under `key`.
        """
        with self._guard:
            arena = self._held[key].arena
            return None if arena is None else arena.path

    def known_digests(self, manifest: Manifest) -> tuple[bytes, ...]:
        """Return which of a manifest's tensor digests are held, under any key."""
        with self._guard:
            held = self._shared(manifest)
            return tuple(t.digest for t in manifest.tensors if t.digest in held)

    # --- writing ------------------------------------------------------------------------------

    def save(
        self,
        row: CustodyRow,
        records: Iterable[Record] = (),
        *,
        outcome: int = 0,
        children: Iterable[CustodyRow] = (),
        dropped: Iterable[CustodyKey] = (),
    ) -> None:
        """Write a row, and ledger records with it, in one durable transaction.

        The first row of a received packet takes its complete part as its payload; `outcome`
        names the task whose file becomes the payload instead of the one there.

        Args:
            row: To be written.
            records: Written with it; one that is there already is left as it is.
            outcome: Number of the task; 0 for none.
            children: First rows of children, which share the file of `row`.
            dropped: Rows that go, as by `drop`.

        Raises:
            LocalError: If there is no payload for the row, or the outcome does not fit it.
        """
        with self._guard:
            old = self._held.get(row.key)
            held = self._payload_for(row, outcome)
        if self.level == "host":
            self._flush(held)
        self._checkpoint("named")
        born = [(c, _Held(held.arena, c.header.manifest, held.is_flushed)) for c in children]
        gone = tuple(dropped)
        with self._guard:
            self._commit([(row, held), *born], records, gone)
            self._checkpoint("committed")
            for one, its in ((row, held), *born):
                self._rows[one.key], self._held[one.key] = one, its
            self._forget_part(row.key)
            self._release(old)
            for key in gone:
                self._rows.pop(key, None)
                self._release(self._held.pop(key, None))
            self._checkpoint("cleaned")

    def drop(self, key: CustodyKey) -> None:
        """Delete a row and its payload, and remember the key as seen. Unknown keys, too."""
        with self._guard, self._transaction():
            self._delete(key)
        self._checkpoint("dropped")
        with self._guard:
            self._rows.pop(key, None)
            self._release(self._held.pop(key, None))

    def save_state(self, name: str, value: bytes) -> None:
        """Write one named value."""
        with self._guard, self._transaction():
            self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))

    def submit(self, key: CustodyKey, payload: Payload) -> None:
        """Copy the owner's own payload in; `save` of its row makes it durable.

        Raises:
            StoreFullError: If there is no room.
        """
        with self._guard:
            arena = self._take(self.spool / f"{key}.pkt", payload.manifest.total)
            if arena is not None:
                target = np.frombuffer(arena.view(payload.manifest.total, writable=True), np.uint8)
                np.copyto(target, np.frombuffer(payload.arena, np.uint8))
            self._held[key] = _Held(arena, payload.manifest)

    def outcome_path(self, task_id: int, size_hint: int = 0) -> Path:
        """Return the file into which a task writes the payload that leaves.

        If a file of about `size_hint` bytes waits for reuse it is there already, to be written
        over: that spares the task most of the page faults.
        """
        path = self.spool / f"{task_id}.out"
        with self._guard:
            self._pool.reuse(path, size_hint)
        return path

    def discard_outcome(self, task_id: int) -> None:
        """Delete a task's outcome, if there is one."""
        self.outcome_path(task_id).unlink(missing_ok=True)

    # --- receiving ----------------------------------------------------------------------------

    def incoming(self, key: CustodyKey, manifest: Manifest) -> Part:
        """Open or resume the part of a packet on its way in; its `missing` says what lacks.

        Tensors that any held payload has are copied from there.

        Raises:
            StoreFullError: Before anything is allocated, if there is no room.
        """
        with self._guard:
            part = self._parts.get(key)
            if part is not None and part.is_complete and part.manifest == manifest:
                return part
            if part is not None:
                part.close()
            found = None
            if part is not None or key in self._left:
                found = self._resumed(key, manifest, part)
                if found is None:
                    self.discard(key)
                    (self.spool / f"{key}.part").unlink(missing_ok=True)
            self._parts[key] = found or self._fresh(key, manifest)
            return self._parts[key]

    def abandon(self, key: CustodyKey) -> None:
        """Close a part; its file stays for the next offer if it can be resumed."""
        with self._guard:
            part = self._parts.pop(key, None)
            if part is None:
                return
            part.close()
            if part.arena is not None and not self._progress_path(key).exists():
                self._pool.give(part.arena)
            elif part.arena is not None:
                self._leave(key)

    def _leave(self, key: CustodyKey) -> None:
        """Keep a part for the next offer; of many the latest, lest they fill the disk."""
        self._left[key] = None
        self._left.move_to_end(key)
        while len(self._left) > PARTS_KEPT:
            old, _ = self._left.popitem(last=False)
            if old not in self._parts:
                self._progress_path(old).unlink(missing_ok=True)
                (self.spool / f"{old}.part").unlink(missing_ok=True)

    def discard(self, key: CustodyKey) -> None:
        """Close a part and forget what has come of it (its bytes were wrong)."""
        with self._guard:
            self._progress_path(key).unlink(missing_ok=True)
            self.abandon(key)

    def close(self) -> None:
        """Close the database and give up the directory. Views handed out stay valid."""
        with self._guard:
            self._pool.clear()
            for key in tuple(self._parts):
                self.abandon(key)
            self._db.close()
            os.close(self._lock)

    # --- inside -------------------------------------------------------------------------------

    def _payload_for(self, row: CustodyRow, outcome: int) -> _Held:
        """Return what shall be the payload of `row`, under its final name."""
        key, manifest = row.key, row.header.manifest
        if outcome:
            return _Held(self._adopt(key, outcome, manifest), manifest)
        part = self._parts.get(key)
        if key not in self._held and part is not None and part.is_complete:
            if part.arena is not None:
                part.arena.rename(self.spool / f"{key}.pkt")
            return _Held(part.arena, manifest)
        held = self._held.get(key)
        if held is None and manifest.total == 0:
            return _Held(None, manifest)
        if held is None:
            raise LocalError(f"{self.root}: no payload for {key}; it must arrive or be submitted")
        return held if held.manifest == manifest else _Held(held.arena, manifest, held.is_flushed)

    def _flush(self, held: _Held) -> None:
        """Bring a payload and its name to the disk, once."""
        if held.arena is not None and not held.is_flushed:
            held.arena.flush()
            _sync_directory(self.spool)
        held.is_flushed = True

    def _adopt(self, key: CustodyKey, task_id: int, manifest: Manifest) -> Arena | None:
        path = self.outcome_path(task_id)
        if manifest.total == 0:
            path.unlink(missing_ok=True)
            return None
        try:
            arena = Arena.open(path)
        except (FileNotFoundError, ValueError) as error:
            raise LocalError(f"{path}: the task has left no tensors") from error
        if arena.size < manifest.total:
            raise LocalError(f"{path}: {arena.size} bytes, its manifest says {manifest.total}")
        view = arena.view(manifest.total, writable=True)
        clear_padding(np.frombuffer(view, np.uint8), manifest)
        arena.rename(self.spool / f"{key}.{token_hex(4)}.pkt")
        return arena

    def _release(self, held: _Held | None) -> None:
        """Give a payload's file back, unless another row shares it."""
        if held is None or held.arena is None:
            return
        if not any(other.arena is held.arena for other in self._held.values()):
            self._pool.give(held.arena)

    def _delete(self, key: CustodyKey) -> None:
        self._db.execute(
            "DELETE FROM custody WHERE packet = ? AND hop = ? AND epoch = ?", _columns(key)
        )
        self._remember(key)

    def _commit(
        self,
        rows: Iterable[tuple[CustodyRow, _Held]],
        records: Iterable[Record],
        dropped: Iterable[CustodyKey],
    ) -> None:
        values = [
            (*_columns(row.key), row.status, wire.encode_row(row),
             "" if held.arena is None else held.arena.path.name)
            for row, held in rows
        ]  # fmt: skip
        with self._transaction():
            for key in dropped:
                self._delete(key)
            self._db.executemany("INSERT OR REPLACE INTO custody VALUES (?, ?, ?, ?, ?, ?)", values)
            self._db.executemany(
                "INSERT OR IGNORE INTO records (id, packet, record) VALUES (?, ?, ?)",
                [(r.id, r.packet, wire.encode_record(r)) for r in records],
            )

    def _remember(self, key: CustodyKey) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO seen (packet, hop, epoch) VALUES (?, ?, ?)", _columns(key)
        )
        self._db.execute(
            "DELETE FROM seen WHERE number <= (SELECT MAX(number) FROM seen) - ?", (SEEN_KEPT,)
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.Error as error:
            raise LocalError(f"{self.root / 'store.db'}: {error}") from error

    def _shared(self, manifest: Manifest) -> dict[bytes, memoryview]:
        """Return the bytes of those of a manifest's tensors that are held, by digest."""
        wanted = {t.digest for t in manifest.tensors}
        found: dict[bytes, memoryview] = {}
        for held in self._held.values():
            common = wanted.intersection(held.by_digest)
            if common:
                payload = held.payload()
                found |= {digest: payload.bytes_of(held.by_digest[digest]) for digest in common}
        return found

    def _take(self, path: Path, size: int) -> Arena | None:
        """Return an arena within the quota; None for an empty payload."""
        if size == 0:
            return None
        if self.quota_bytes is not None:
            held = {id(h.arena): h.manifest.total for h in self._held.values() if h.arena}
            used = sum(held.values())
            used += sum(p.manifest.total for p in self._parts.values())
            if used + size > self.quota_bytes:
                raise StoreFullError(
                    f"{self.root}: {size} bytes do not fit; "
                    f"{used} of {self.quota_bytes} bytes are in use"
                )
            if used + size + self._pool.size_bytes > self.quota_bytes:
                self._pool.clear()
        return self._pool.take(path, size)

    def _progress_path(self, key: CustodyKey) -> Path:
        return self.spool / f"{key}.progress"

    def _resumed(self, key: CustodyKey, manifest: Manifest, part: Part | None) -> Part | None:
        path = self.spool / f"{key}.part"
        progress = Progress.open(self._progress_path(key), manifest)
        if progress is None or not path.exists():
            return None
        arena = part.arena if part is not None else Arena.open(path)
        if arena is None or arena.size < manifest.total:
            return None
        missing = progress.missing()
        return Part(
            arena, manifest, missing, partial(Progress.create, progress.path, manifest, missing)
        )

    def _fresh(self, key: CustodyKey, manifest: Manifest) -> Part:
        arena = self._take(self.spool / f"{key}.part", manifest.total)
        if arena is None:
            return Part(None, manifest, (), None)
        known, lacking = copy_known(arena, manifest, self._shared(manifest))
        missing = merge(lacking)
        progress = None
        if len(plan(missing)) > 1:
            progress = partial(Progress.create, self._progress_path(key), manifest, missing)
        return Part(arena, manifest, missing, progress, known)

    def _forget_part(self, key: CustodyKey) -> None:
        part = self._parts.pop(key, None)
        if part is not None:
            if part.is_resumable:
                self._progress_path(key).unlink(missing_ok=True)
            part.close()

    # --- opening ------------------------------------------------------------------------------

    def _load(self) -> None:
        rebooted = self._has_rebooted()
        lost, named = [], set()
        opened: dict[str, _Held] = {}
        every = "SELECT packet, hop, epoch, row, file FROM custody"
        for packet, hop, epoch, blob, name in self._db.execute(every).fetchall():
            row = _row(blob)
            path = self.spool / name if name else None
            held = _hold(path, row.header.manifest, rebooted, opened.get(name)) if row else None
            if row is None or held is None:
                lost.append(CustodyKey(packet, hop, epoch))
                continue
            named.add(name)
            opened[name] = held
            self._rows[row.key], self._held[row.key] = row, held
        self._reconcile(named)
        self.lost = tuple(lost)
        for key in lost:
            self._db.execute(
                "DELETE FROM custody WHERE packet = ? AND hop = ? AND epoch = ?", _columns(key)
            )

    def _has_rebooted(self) -> bool:
        """Return whether the host went down since: then files may lag behind their rows."""
        boot = _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b""
        before = self._db.execute("SELECT value FROM state WHERE name = ?", (_BOOT,)).fetchone()
        self.save_state(_BOOT, boot)
        return before is not None and before[0] != boot

    def _reconcile(self, named: set[str]) -> None:
        """Put back parts that were complete, delete what nobody names."""
        for path in self.spool.glob("*.pkt"):
            if path.name not in named and path.with_suffix(".progress").exists():
                path.rename(path.with_suffix(".part"))
        for path in self.spool.iterdir():
            is_part = path.suffix in (".part", ".progress") and all(
                path.with_suffix(s).exists() for s in (".part", ".progress")
            )
            if path.name not in named and not is_part:
                path.unlink()
        for path in sorted(self.spool.glob("*.part"), key=lambda p: p.stat().st_mtime):
            packet, hop, epoch = path.stem.split(".")
            self._leave(CustodyKey(PacketId(packet), int(hop), int(epoch)))


def _row(blob: bytes) -> CustodyRow | None:
    """Return a row as it lies in the database; None if it is damaged."""
    try:
        row = wire.decode_row(blob)
        Status(row.status)
    except (WireError, ValueError):
        return None
    return row


def _hold(
    path: Path | None, manifest: Manifest, verify: bool, shared: _Held | None
) -> _Held | None:
    """Return a payload as it lies on the disk; None if it is missing, short or wrong.

    Args:
        path: Its file; None if it is empty.
        manifest: What it must have.
        verify: Whether to check every digest.
        shared: Another row's payload in the same file, if there is one.
    """
    if path is None:
        return _Held(None, manifest)
    try:
        held = _Held(shared.arena if shared else Arena.open(path), manifest)
    except (FileNotFoundError, ValueError):
        return None
    if held.arena is None or held.arena.size < manifest.total:
        return None
    if verify:
        try:
            held.payload().verify()
        except WireError:
            return None
    return held


def _columns(key: CustodyKey) -> tuple[str, int, int]:
    return key.packet, key.hop, key.epoch


def _lock(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise LocalError(f"{path.parent}: another process has this node's store open") from error
    return handle


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
