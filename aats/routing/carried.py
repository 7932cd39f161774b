"""A policy's file as parameters of a mandate: text that is short enough for the wire, and back."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

MAX_BYTES = 192 << 10
"""Of a carried file: a header has 768 KiB for everything, at every hop."""
PIECE = 12 << 10
"""Characters of one piece: a string of a mandate has 16 KiB at most."""


def pieces(data: bytes) -> tuple[str, ...]:
    """Return bytes as pieces of base64.

    Raises:
        ValueError: If they are too many to be carried.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes cannot travel in a packet's header, {MAX_BYTES} can")
    text = base64.b64encode(data).decode("ascii")
    return tuple(text[i : i + PIECE] for i in range(0, len(text), PIECE))


def joined(parts: Sequence[str]) -> bytes:
    """Return the bytes in pieces of base64.

    Raises:
        ValueError: If they are too many, or no base64.
    """
    most = 4 * (MAX_BYTES // 3)
    if (count := sum(map(len, parts))) > most:
        raise ValueError(f"{count} characters of base64, at most {most} are allowed")
    try:
        return base64.b64decode("".join(parts), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"no base64: {error}") from error
