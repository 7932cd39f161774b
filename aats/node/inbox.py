"""Packets on their way from an owner's application into its node, as files in one directory.

The header's file is the commit: the payload's is complete before it appears. Both go once the
packet is in the node's custody, so a node that dies in between finds them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aats.errors import LocalError, WireError
from aats.packet import Header
from aats.payload import Payload
from aats.spool import map_private
from aats.wire import decode_header, encode_header

INBOX = "inbox"
HOME = "home"
_HEADER = ".header"
_PAYLOAD = ".payload"


@dataclass(frozen=True, slots=True)
class Parcel:
    """A header and its tensors as two files."""

    header: Header
    path: Path
    """Without the suffixes."""

    def payload(self) -> Payload:
        """Return the tensors, mapped (a private copy).

        Raises:
            LocalError: If the file is missing or is not of the header's size.
        """
        path, total = self.path.with_suffix(_PAYLOAD), self.header.manifest.total
        found = path.stat().st_size if path.exists() else 0
        if found != total:
            raise LocalError(f"{path}: {found} bytes, its header says {total}")
        data = map_private(path, total)
        return Payload(self.header.manifest, data)

    def remove(self) -> None:
        """Delete both files."""
        self.path.with_suffix(_HEADER).unlink(missing_ok=True)
        self.path.with_suffix(_PAYLOAD).unlink(missing_ok=True)


def put(directory: Path, header: Header, payload: Payload) -> Parcel:
    """Write a parcel into a directory, which is made if missing; replaces one of that packet."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / header.id
    _write(path.with_suffix(_PAYLOAD), payload.arena)
    _write(path.with_suffix(_HEADER), encode_header(header))
    return Parcel(header, path)


def look(directory: Path) -> tuple[list[Parcel], list[tuple[Path, str]]]:
    """Return the parcels in a directory, and the files that are none with the reason."""
    parcels, broken = [], []
    for path in sorted(directory.glob(f"*{_HEADER}")):
        try:
            parcels.append(Parcel(decode_header(path.read_bytes()), path.with_suffix("")))
        except WireError as e:
            broken.append((path, str(e)))
    return parcels, broken


def _write(path: Path, data: bytes | memoryview) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_bytes(data)
    temporary.replace(path)
