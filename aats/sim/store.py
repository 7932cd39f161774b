"""The durable store of a simulated node: what is left after its node has crashed.

It has the semantics of the store on disk. Payloads are never changed once they are saved, so
nodes of one world share them by reference; only their digests decide what a transfer costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aats.errors import DataError
from aats.ids import CustodyKey
from aats.lineage import Record
from aats.node.events import CustodyRow
from aats.node.tasks import Beside
from aats.packet import Header
from aats.payload import Manifest, Payload


class StoreError(AssertionError):
    """A command that the store on disk could not have carried out: a fault of the core."""


@dataclass(slots=True)
class Part:
    """What has arrived of a packet that is not in custody yet."""

    manifest: Manifest
    arrived_bytes: float = 0.0
    payload: Payload | None = None
    """Set once everything is there."""


@dataclass(slots=True)
class MemoryStore:
    """Rows, records, named state and payloads of one node."""

    rows: dict[CustodyKey, CustodyRow] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    """By id."""
    state: dict[str, bytes] = field(default_factory=dict)
    seen: dict[CustodyKey, None] = field(default_factory=dict)
    """An ordered set: a plain set would make a run depend on the hash seed."""
    payloads: dict[CustodyKey, Payload] = field(default_factory=dict)
    parts: dict[CustodyKey, Part] = field(default_factory=dict)
    outcomes: dict[int, Payload] = field(default_factory=dict)
    """New payloads by task: not durable until a row takes them."""
    incarnation: int = 0
    _held: dict[bytes, int] = field(default_factory=dict)

    def begin(self) -> int:
        """Start a new incarnation, forget what was not durable, return the incarnation."""
        self.incarnation += 1
        self.outcomes.clear()
        return self.incarnation

    def submit(self, key: CustodyKey, payload: Payload) -> None:
        """Put in the payload of a packet that the application is about to submit."""
        self._put(key, payload)

    def save_custody(
        self,
        row: CustodyRow,
        records: tuple[Record, ...] = (),
        outcome: int = 0,
        children: tuple[CustodyRow, ...] = (),
        dropped: tuple[CustodyKey, ...] = (),
    ) -> None:
        """Write a row with its records; its payload comes from the part, then the outcome.

        Children share the row's arena; dropped rows go as by `drop_custody`.

        Raises:
            StoreError: If there is no payload for the row, or it is not the one of its header.
        """
        part = self.parts.get(row.key)
        if part and part.payload and row.key not in self.payloads:
            self._put(row.key, part.payload)
            del self.parts[row.key]
        if outcome:
            if outcome not in self.outcomes:
                raise StoreError(f"row {row.key}: task {outcome} left no payload")
            self._put(row.key, self.outcomes.pop(outcome))
        payload = self.payloads.get(row.key)
        if payload is None:
            raise StoreError(f"row {row.key}: no payload")
        if payload.manifest != row.header.manifest:
            raise StoreError(f"row {row.key}: payload is not the one in its header")
        for child in children:
            shared = Payload(child.header.manifest, payload.arena[: child.header.manifest.total])
            self._put(child.key, shared)
            self.rows[child.key] = child
        for key in dropped:
            self.drop_custody(key)
        self.rows[row.key] = row
        self.records.update((record.id, record) for record in records)

    def drop_custody(self, key: CustodyKey) -> None:
        """Delete row, payload and part; remember the key as seen."""
        self.rows.pop(key, None)
        self.parts.pop(key, None)
        self.seen[key] = None
        payload = self.payloads.pop(key, None)
        if payload:
            self._count(payload, -1)

    def expect(self, key: CustodyKey, manifest: Manifest) -> Part:
        """Make room for a packet; a part of the same packet that arrived before stays."""
        part = self.parts.get(key)
        if part is None or part.manifest != manifest:
            part = self.parts[key] = Part(manifest)
        return part

    def payload_of(self, header: Header) -> Payload:
        """Return the payload of the copy here that is this header's.

        A copy whose hop or epoch has risen still lies under the key it came with.

        Raises:
            DataError: If there is none: it was dropped while a task stood in line.
        """
        rows = [
            row
            for row in self.rows.values()
            if row.key.packet == header.id and row.header.manifest == header.manifest
        ]
        if not rows:
            raise DataError(f"no copy of {header.key} here")
        return self.payloads[max(rows, key=lambda row: (row.key.hop == header.hop, row.key)).key]

    def payload_beside(self, other: Beside) -> Payload:
        """Return a payload that a task reads besides its packet's own.

        Raises:
            DataError: If it was dropped while the task stood in line.
        """
        if other.key not in self.payloads:
            raise DataError(f"no copy of {other.key} here")
        return self.payloads[other.key]

    def holds(self, digest: bytes) -> bool:
        """Return whether some payload here has a tensor of that digest."""
        return digest in self._held

    def _put(self, key: CustodyKey, payload: Payload) -> None:
        old = self.payloads.get(key)
        self.payloads[key] = payload
        self._count(payload, +1)
        if old:
            self._count(old, -1)

    def _count(self, payload: Payload, change: int) -> None:
        for tensor in payload.manifest.tensors:
            count = self._held.get(tensor.digest, 0) + change
            if count:
                self._held[tensor.digest] = count
            else:
                del self._held[tensor.digest]
