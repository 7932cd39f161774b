"""One signed step in a model's history. Hashing, signing and checking: `aats.ledger.record`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from aats.ids import NodeId, PacketId, Version


class RecordKind(StrEnum):
    """What happened."""

    INIT = "init"
    """The owner sent the packet out."""
    TRAIN = "train"
    """A visit changed the model."""
    ROLLED_BACK = "rolled-back"
    """A visit was undone (NaN, or far worse on trusted data); the version stays."""
    FORK = "fork"
    """Children set out from here; each carries this record in place of all before it."""
    MERGE = "merge"
    """Children were made one model again: follows the fork and the last record of each."""
    REMOVE = "remove"
    """Contributions were taken out of the model; the note names them and how."""
    VERIFY = "verify"
    """An MPVU measured the version."""
    HOME = "home"
    """The owner has it back."""


@dataclass(frozen=True, slots=True)
class Record:
    """A ledger record. `id` is the BLAKE3 of the content, the signature covers all.

    The content is the same in the live and the simulated world; what the world adds (time,
    seconds, bytes on the wire, joules) stands in the attestation, which the signature covers and
    the id does not.
    """

    # content
    packet: PacketId
    kind: RecordKind
    node: NodeId
    hop: int
    epoch: int
    parents: tuple[str, ...]
    """Ids of the records this one follows; none for INIT, more than one for a merge."""
    base: Version
    """The version before."""
    version: Version
    """The version after."""
    method: str = ""
    steps: int = 0
    samples: int = 0
    seed: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """E.g. {"oncology.accuracy": 0.94, "oncology.accuracy.n": 90}."""
    note: str = ""
    branch: str = ""
    """Of the child that did it (`Header.branch`); "" for the trunk."""
    # attestation
    at: float = 0.0
    """Unix seconds (virtual in the simulated world)."""
    seconds: float = 0.0
    wire_bytes: float = 0.0
    joules: float = 0.0
    public_key: bytes = b""
    id: str = ""
    signature: bytes = b""
