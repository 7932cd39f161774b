"""What one live node is made of: a value, and the file `node.json` in the node's directory.

A node's directory holds all it needs and all it knows: `node.json`, its keys, its data, its
store, its log and its events. `aats node DIRECTORY` runs it, on any host.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from aats.advert import LinkAdvert
from aats.errors import LocalError
from aats.ids import NodeId
from aats.node.desk import CoreConfig
from aats.node.fault import FaultPoint
from aats.node.pace import Pace

FILE_NAME = "node.json"
IDENTITY_FILE = "identity.key"
CURVE_FILE = "curve.key"
PEERS_FILE = "peers.toml"
"""Who is who: a `transport.keys.Directory`."""
EVENTS_FILE = "events.jsonl"
LOG_FILE = "node.log"


@dataclass(frozen=True, slots=True)
class WorkSettings:
    """How a node's tasks work."""

    probe_samples: int = 16
    """Rows of a probe's minibatch."""
    probe_noise: float = 0.0
    """Deviation of the noise on probe scores, as a share of each score's range."""
    secret: int = 0
    """The node's own seed: of its minibatches, its noise, and what it gives away."""
    contribution: int = 32
    """Rows of each skill given to a test set, at most."""
    min_contributors: int = 1
    """Nodes that must have given rows of a skill before an MPVU measures on them."""
    memory_bytes: int = 0
    """What one task may map beyond the process it starts as and its packet; 0 for no limit."""


@dataclass(frozen=True, slots=True)
class DaemonSpec:
    """One live node."""

    directory: Path
    core: CoreConfig
    control: str
    """Address its control lane binds."""
    bulk: str
    """Address its bulk lane binds."""
    links: tuple[LinkAdvert, ...] = ()
    """The neighbours and the figures of the links to them; addresses and keys are in
    `PEERS_FILE`."""
    secure: bool = True
    """CURVE on the control lane, AES-256-GCM on the bulk lane."""
    custody: Literal["process", "host"] = "process"
    """What a packet in custody survives: the death of the process, or of the host (fsync)."""
    work: WorkSettings = WorkSettings()
    leave_s: float = 0.0
    """What a node that is asked to leave has to finish and hand on what is there, seconds."""
    shaping: bool = False
    """Delay and pace links and tasks to their figures, where this machine is faster."""
    deaths: tuple[FaultPoint, ...] = ()
    """Where it is to die, for tests."""

    @property
    def node(self) -> NodeId:
        """The node's name."""
        return self.core.node

    @property
    def pace(self) -> Pace | None:
        """The speed to imitate, if any."""
        return Pace.of(self.core.compute) if self.shaping else None

    def save(self) -> None:
        """Write `node.json` in the node's directory."""
        path = self.directory / FILE_NAME
        temporary = path.with_suffix(".part")
        plain = msgspec.json.encode(self, enc_hook=_encode)
        temporary.write_bytes(msgspec.json.format(plain, indent=1))
        temporary.replace(path)

    @classmethod
    def load(cls, directory: Path) -> DaemonSpec:
        """Return the spec in a node's directory.

        Raises:
            LocalError: If there is none, or it is malformed; names the field.
        """
        path = directory / FILE_NAME
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls, dec_hook=_decode)
        except OSError as e:
            raise LocalError(f"{path}: cannot read it: {e.strerror}") from e
        except msgspec.MsgspecError as e:
            raise LocalError(f"{path}: {e}") from e


def _encode(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no place in {FILE_NAME}")


def _decode(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(f"{kind.__name__} has no place in {FILE_NAME}")
