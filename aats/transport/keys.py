"""Who is who on the network: addresses and keys by node id, and who may connect.

A node id is bound to a CURVE key (the control lane) and an Ed25519 key (headers, adverts,
records) by a directory that every node gets with its configuration. A peer is whoever its
CURVE key says; what it calls itself does not count.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from aats.errors import LocalError
from aats.ids import NODE_ID, NodeId, node_id

Z85_KEY_BYTES = 40
"""A CURVE key as ZeroMQ writes it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a node is reached and by which keys it is known. Addresses as ZeroMQ writes them."""

    node: NodeId
    control: str = ""
    """E.g. "tcp://127.0.0.1:5001"."""
    bulk: str = ""
    curve_key: bytes = b""
    """Public CURVE key, Z85 (40 bytes); empty on an insecure network."""
    public_key: bytes = b""
    """Ed25519, 32 bytes."""


class Directory:
    """Endpoints by node id. One CURVE key belongs to one node."""

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self._endpoints: dict[NodeId, Endpoint] = {}
        self._by_key: dict[bytes, NodeId] = {}
        for endpoint in endpoints:
            self.add(endpoint)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(tuple(self._endpoints.values()))

    def __contains__(self, node: NodeId) -> bool:
        return node in self._endpoints

    def add(self, endpoint: Endpoint) -> None:
        """Add a node, or replace what is known of it.

        Raises:
            LocalError: If its CURVE key is malformed or is another node's.
        """
        node, key = endpoint.node, endpoint.curve_key
        if key and len(key) != Z85_KEY_BYTES:
            raise LocalError(
                f"directory: node {node}: CURVE key of {len(key)} bytes, must be {Z85_KEY_BYTES}"
            )
        if key and self._by_key.get(key, node) != node:
            raise LocalError(f"directory: {node} and {self._by_key[key]} have the same CURVE key")
        old = self._endpoints.get(node)
        if old is not None and old.curve_key:
            del self._by_key[old.curve_key]
        self._endpoints[node] = endpoint
        if key:
            self._by_key[key] = node

    def get(self, node: NodeId) -> Endpoint:
        """Return a node's endpoint.

        Raises:
            LocalError: If the directory does not know the node.
        """
        if node not in self._endpoints:
            raise LocalError(f"directory: no node {node!r}; it has {len(self._endpoints)} nodes")
        return self._endpoints[node]

    def node_of(self, curve_key: bytes) -> NodeId | None:
        """Return whose CURVE key this is; None for a stranger's."""
        return self._by_key.get(curve_key)

    def save(self, path: Path) -> None:
        """Write the directory as TOML, one table a node. It holds no secrets."""
        lines = []
        for endpoint in self:
            values = asdict(endpoint)
            lines.append(f"[{json.dumps(values.pop('node'))}]")
            values["curve_key"] = endpoint.curve_key.decode("ascii")
            values["public_key"] = endpoint.public_key.hex()
            lines += [f"{name} = {json.dumps(value)}" for name, value in values.items() if value]
            lines.append("")
        path.write_text("\n".join(lines), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Directory:
        """Return the directory written by `save`.

        Raises:
            LocalError: If the file is missing or is no directory; says where.
        """
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise LocalError(f"{path}: not a directory of nodes: {error}") from error
        return cls(_endpoint(path, name, table) for name, table in tables.items())


def _endpoint(path: Path, name: str, table: object) -> Endpoint:
    allowed = {"control", "bulk", "curve_key", "public_key"}
    if not isinstance(table, dict) or not NODE_ID.fullmatch(name):
        raise LocalError(f"{path}: {name!r} is no table of a node")
    for key, value in table.items():
        if key not in allowed or not isinstance(value, str):
            raise LocalError(
                f"{path}: {name}.{key}: {value!r} is not allowed; "
                f"allowed are the texts {', '.join(sorted(allowed))}"
            )
    try:
        return Endpoint(
            node_id(name),
            table.get("control", ""),
            table.get("bulk", ""),
            table.get("curve_key", "").encode("ascii"),
            bytes.fromhex(table.get("public_key", "")),
        )
    except ValueError as error:
        raise LocalError(f"{path}: {name}: {error}") from error


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A node's CURVE key pair, Z85."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"CurveKeys(public={self.public!r})"

    @classmethod
    def generate(cls) -> CurveKeys:
        """Return a fresh pair."""
        return cls(*zmq.curve_keypair())

    def save(self, path: Path) -> None:
        """Write the secret key to a new file that only its owner can read (mode 0600).

        Raises:
            LocalError: If the file exists or cannot be written.
        """
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise LocalError(f"{path}: cannot write the key file: {error.strerror}") from error
        with os.fdopen(handle, "wb") as file:
            file.write(self.secret + b"\n")

    @classmethod
    def load(cls, path: Path) -> CurveKeys:
        """Return the pair whose secret key is in `path`.

        Raises:
            LocalError: If the file is missing, readable by others, or no key file.
        """
        try:
            mode = path.stat().st_mode & 0o777
            secret = path.read_bytes().strip()
        except OSError as error:
            raise LocalError(f"{path}: cannot read the key file: {error.strerror}") from error
        if mode & 0o077:
            raise LocalError(f"{path}: mode {mode:o} lets others read the key; must be 600")
        if len(secret) != Z85_KEY_BYTES:
            raise LocalError(f"{path}: not a CURVE key file ({len(secret)} bytes)")
        return cls(zmq.curve_public(secret), secret)


Gate = Callable[[bytes, str], NodeId | None]
"""Says who a CURVE key belongs to (None: nobody we know), given the peer's address for the log."""


class ZapHandler:
    """Answers libzmq's question whether a peer may connect (ZeroMQ RFC 27), one per context.

    Each node asks in a domain of its own. The node id that a key is bound to becomes the
    "User-Id" of every message on the connection.
    """

    def __init__(self) -> None:
        self._gates: dict[bytes, Gate] = {}

    def guard(self, domain: str, gate: Gate | None) -> None:
        """Let `gate` decide for `domain`; None takes it away (nobody gets in)."""
        if gate is None:
            self._gates.pop(domain.encode(), None)
        else:
            self._gates[domain.encode()] = gate

    def answer(self, request: list[bytes]) -> list[bytes] | None:
        """Return the reply to a request's frames (after the envelope); None if it is none."""
        if len(request) < 6 or request[0] != b"1.0":
            return None
        _, number, domain, address, _, mechanism = request[:6]
        node = None
        gate = self._gates.get(domain)
        is_curve = mechanism == b"CURVE" and len(request) == 7 and len(request[6]) == 32
        if gate is not None and is_curve:
            node = gate(z85.encode(request[6]), address.decode("ascii", "replace"))
        if node is None:
            return [b"1.0", number, b"400", b"not in the directory", b"", b""]
        return [b"1.0", number, b"200", b"OK", node.encode(), b""]
