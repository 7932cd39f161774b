"""Plain stream sockets of the bulk lane: addresses, and frames over one connection.

A frame is a head of fixed length (`ticket.pack_head`: version, kind, token, index, size) and
`size` bytes. The reader of a connection is asked where these bytes shall go as soon as the head
is there, so a chunk is received straight into the mapping that it belongs in: no buffer lies
between the socket and the store. A size is believed only up to `MAX_FRAME_BYTES`, and no memory
is taken for a frame before its head has been judged.

All of it runs on the bulk thread and never waits.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections import deque
from pathlib import Path
from typing import Protocol

import numpy as np

from aats.errors import LocalError, WireError
from aats.spool import CHUNK_BYTES, Bytes
from aats.transport.hub import SocketThread
from aats.transport.ticket import HEAD_BYTES, TAG_BYTES, Head, unpack_head

MAX_FRAME_BYTES = CHUNK_BYTES + TAG_BYTES
PIECE_BYTES = 512 << 10
"""Read at a time: still in the CPU's cache when the reader looks at it."""
READS_A_TURN = 8
"""Reads of one connection before others get their turn."""
BACKLOG = 64


class Reader(Protocol):
    """Who takes the frames of a connection; raises WireError to end it."""

    def place(self, connection: Connection, head: Head) -> Bytes:
        """Return a buffer of `head.size` bytes for what follows the head."""

    def grew(self, connection: Connection, head: Head, count: int) -> None:
        """Learn that `count` bytes of a frame are there, and more are to come."""

    def take(self, connection: Connection, head: Head, data: Bytes) -> None:
        """Take a whole frame; `data` is the buffer that `place` returned."""

    def lost(self, connection: Connection, reason: str) -> None:
        """Learn that the connection is over."""


class Connection:
    """Frames in and out over one connected (or connecting) socket."""

    def __init__(self, sock: socket.socket, thread: SocketThread, reader: Reader) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock, self._thread, self._reader = sock, thread, reader
        self._out: deque[memoryview] = deque()
        self._head_buffer = bytearray(HEAD_BYTES)
        self._head: Head | None = None
        self._body: Bytes = np.empty(0, np.uint8)
        self._left = memoryview(self._head_buffer)
        self.is_open = True
        self.heard = time.monotonic()
        """When bytes came last, monotonic seconds."""
        thread.on_readable(sock, self._read)

    def send(self, *parts: bytes | memoryview) -> None:
        """Queue bytes that must not change until they are sent, and send what the peer takes."""
        self._out.extend(memoryview(part).cast("B") for part in parts if len(part))
        self._flush()

    @property
    def waiting_bytes(self) -> int:
        """Bytes queued that the peer has not taken."""
        return sum(map(len, self._out))

    def divert(self) -> None:
        """Have the rest of the frame under way go nowhere: its place is no longer ours."""
        if self._head is not None:
            at = len(self._body) - len(self._left)
            self._body = np.empty(len(self._body), np.uint8)
            self._left = self._body.data[at:]

    def close(self) -> None:
        """Close the socket; the reader is not told."""
        if self.is_open:
            self.is_open = False
            self._thread.on_readable(self._sock, None)
            self._thread.on_writable(self._sock, None)
            self._sock.close()
            self._out.clear()
            self._body = np.empty(0, np.uint8)
            self._left = memoryview(b"")

    def _lose(self, reason: str) -> None:
        if self.is_open:
            self.close()
            self._reader.lost(self, reason)

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._sock.sendmsg(list(self._out)[:16])
                while sent:
                    first = self._out.popleft()
                    if sent < len(first):
                        self._out.appendleft(first[sent:])
                    sent -= min(sent, len(first))
        except BlockingIOError:
            self._thread.on_writable(self._sock, self._flush)
        except OSError as error:
            # Told from the loop: the caller is in the middle of something.
            self._out.clear()
            reason = _reason(error)
            self._thread.call(lambda: self._lose(reason))
        else:
            self._thread.on_writable(self._sock, None)

    def _read(self) -> None:
        try:
            for _ in range(READS_A_TURN):
                count = self._sock.recv_into(self._left, min(len(self._left), PIECE_BYTES))
                if count == 0:
                    self._lose("closed by the other end")
                    return
                self._left = self._left[count:]
                if self._left and self._head is not None:
                    self._reader.grew(self, self._head, len(self._body) - len(self._left))
                elif not self._left and not self._advance():
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(_reason(error))
        except WireError as error:
            self._lose(str(error))

    def _advance(self) -> bool:
        """Go on from a head to its bytes, or from these to the next head; False: turn is over."""
        self.heard = time.monotonic()
        if self._head is None:
            head = unpack_head(self._head_buffer)
            if head.size > MAX_FRAME_BYTES:
                raise WireError(f"bulk frame of {head.size} bytes, allowed are {MAX_FRAME_BYTES}")
            self._body = self._reader.place(self, head)
            self._head, self._left = head, self._body.data
            if head.size:
                return True
        head, data = self._head, self._body
        self._head, self._body = None, np.empty(0, np.uint8)
        self._left = memoryview(self._head_buffer)
        self._reader.take(self, head, data)
        return self.is_open and head.size == 0


def _reason(error: OSError) -> str:
    return error.strerror or errno.errorcode.get(error.errno or 0, "broken")


def listen(address: str) -> tuple[socket.socket, str]:
    """Return a listening socket and its real address.

    Raises:
        LocalError: If the address is malformed, in use or cannot be bound.
    """
    family, where = _parse(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            _remove_stale(str(where))
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise LocalError(f"{address}: {error.strerror or error}") from error
    sock.setblocking(False)
    if family == socket.AF_UNIX:
        return sock, address
    host, port = sock.getsockname()[:2]
    return sock, f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def unlisten(sock: socket.socket, address: str) -> None:
    """Close a listening socket; its file goes, too."""
    sock.close()
    family, where = _parse(address)
    if family == socket.AF_UNIX:
        Path(str(where)).unlink(missing_ok=True)


def dial(address: str, thread: SocketThread, reader: Reader) -> Connection:
    """Begin to connect; whether it works shows later.

    Raises:
        LocalError: If the address is malformed or no socket is to be had.
    """
    family, where = _parse(address)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise LocalError(f"{address}: {error.strerror}") from error
    sock.setblocking(False)
    code = sock.connect_ex(where)
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise LocalError(f"{address}: {errno.errorcode.get(code, code)}")
    return Connection(sock, thread, reader)


def _parse(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    scheme, _, rest = address.partition("://")
    if scheme == "ipc" and rest:
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal() or int(port) > 65_535:
        raise LocalError(f"{address}: must be tcp://HOST:PORT or ipc://PATH")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    return family, (host.strip("[]"), int(port))


def _remove_stale(path: str) -> None:
    """Remove the socket file of a process that is gone: it would keep us from binding."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
