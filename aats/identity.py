"""Ed25519 identities: every node has one, and signs headers, adverts, verdicts and records."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from aats.errors import LocalError
from aats.ids import NodeId

KEY_BYTES = 32
SIGNATURE_BYTES = 64
FILE_HEADER = "aats-ed25519-private-key 1"
"""First line of a key file; the second is the raw private key, 64 hex digits."""
_SEED_CONTEXT = "aats 1 node identity from a seed"


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's name and its key pair. Equal if name and public key are."""

    node: NodeId
    public_key: bytes
    _private: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def _of(cls, node: NodeId, secret: bytes) -> Identity:
        private = Ed25519PrivateKey.from_private_bytes(secret)
        return cls(node, private.public_key().public_bytes_raw(), private)

    @classmethod
    def generate(cls, node: NodeId) -> Identity:
        """Return a fresh identity from the system's random source."""
        return cls._of(node, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_seed(cls, node: NodeId, seed: bytes) -> Identity:
        """Return the identity that (node, seed) always has: for simulated worlds and tests."""
        material = len(seed).to_bytes(8, "little") + seed + node.encode()
        return cls._of(node, blake3(material, derive_key_context=_SEED_CONTEXT).digest())

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature over `data`."""
        return self._private.sign(data)

    def save(self, path: Path) -> None:
        """Write the private key to a new file that only its owner can read (mode 0600).

        Raises:
            LocalError: If the file exists (a lost key is a lost identity) or cannot be written.
        """
        text = f"{FILE_HEADER}\n{self._private.private_bytes_raw().hex()}\n"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise LocalError(f"{path}: exists; a key file is never overwritten") from error
        except OSError as error:
            raise LocalError(f"{path}: cannot write the key file: {error.strerror}") from error
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)

    @classmethod
    def load(cls, node: NodeId, path: Path) -> Identity:
        """Return the identity of `node` from its key file.

        Raises:
            LocalError: If the file is missing, readable by others, or no key file.
        """
        try:
            mode = path.stat().st_mode & 0o777
            text = path.read_text(encoding="ascii")
        except OSError as error:
            raise LocalError(f"{path}: cannot read the key file: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise LocalError(f"{path}: no key file (not ASCII)") from error
        if mode & 0o077:
            raise LocalError(f"{path}: mode {mode:04o}, must be 0600 (others can read the key)")
        return cls._of(node, _secret(path, text))


def _secret(path: Path, text: str) -> bytes:
    lines = text.split("\n")
    if lines[0] != FILE_HEADER:
        raise LocalError(f"{path}: no key file; its first line must be {FILE_HEADER!r}")
    try:
        secret = bytes.fromhex(lines[1])
    except (IndexError, ValueError):
        # No cause: it would carry part of the key.
        raise LocalError(f"{path}: line 2 must be {2 * KEY_BYTES} hex digits") from None
    if len(secret) != KEY_BYTES or any(lines[2:]):
        raise LocalError(f"{path}: line 2 must be {2 * KEY_BYTES} hex digits, and the last")
    return secret


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Return whether `signature` is that of `public_key` over `data`; False for malformed ones."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
