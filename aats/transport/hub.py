"""What the nodes of one process share: a ZeroMQ context, its doorkeeper, the bulk thread.

The thread is a small event loop over ZeroMQ and stream sockets (not asyncio's), because a future
per message costs more than the message. It also answers ZAP requests, so that a busy asyncio
loop never keeps a neighbour waiting at the door.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from math import ceil

import structlog
import zmq

from aats.spool import CHUNK_BYTES
from aats.transport.keys import ZapHandler

Callback = Callable[[], None]
Socket = zmq.Socket[bytes] | socket.socket
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
ZAP_ADDRESS = "inproc://zeromq.zap.01"

_log = structlog.get_logger()


class SocketThread(threading.Thread):
    """Polls sockets and runs what is due.

    Only `call`, `call_and_wait` and `stop` are for other threads.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._poller = zmq.Poller()
        self._readers: dict[zmq.Socket[bytes] | int, Callback] = {}
        self._writers: dict[zmq.Socket[bytes] | int, Callback] = {}
        self._calls: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Callback]] = []
        self._numbers = itertools.count()
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._poller.register(self._wake_r, zmq.POLLIN)
        self._is_stopping = False
        self._is_woken = False

    def call(self, callback: Callback) -> None:
        """Run `callback` on the thread, soon."""
        self._calls.append(callback)
        if not self._is_woken and threading.get_ident() != self.ident:
            self._is_woken = True
            self._wake_w.send(b"\0")

    def call_and_wait(self, callback: Callback) -> None:
        """Run `callback` on the thread and wait until it has run."""
        done = threading.Event()
        self.call(callback)
        self.call(done.set)
        done.wait()

    def stop(self) -> None:
        """End the thread after the calls made so far, and wait for it."""
        self.call(self._end)
        self.join()
        self._wake_r.close()
        self._wake_w.close()

    def at(self, when: float, callback: Callback) -> None:
        """Run `callback` once `time.monotonic()` has reached `when`."""
        heapq.heappush(self._timers, (when, next(self._numbers), callback))

    def on_readable(self, sock: Socket, callback: Callback | None) -> None:
        """Call back while `sock` has something to read or is broken; None: no longer."""
        self._set(self._readers, sock, callback)

    def on_writable(self, sock: Socket, callback: Callback | None) -> None:
        """Call back while `sock` takes something; None: no longer."""
        self._set(self._writers, sock, callback)

    def _set(
        self,
        table: dict[zmq.Socket[bytes] | int, Callback],
        sock: Socket,
        callback: Callback | None,
    ) -> None:
        key = sock.fileno() if isinstance(sock, socket.socket) else sock
        if table.get(key) is callback is None:
            return
        if callback is None:
            table.pop(key, None)
        else:
            table[key] = callback
        flags = (zmq.POLLIN if key in self._readers else 0) | (
            zmq.POLLOUT if key in self._writers else 0
        )
        if flags:
            self._poller.register(key, flags)
        elif key in self._poller:
            self._poller.unregister(key)

    def _end(self) -> None:
        self._is_stopping = True

    def run(self) -> None:
        """Serve until stopped."""
        while not self._is_stopping:
            for sock, flags in self._poller.poll(self._timeout_ms()):
                if sock == self._wake_r.fileno():
                    self._wake_r.recv(4096)
                    self._is_woken = False  # before the calls are taken: none is left behind
                    continue
                if flags & zmq.POLLOUT:
                    self._run(self._writers.get(sock))
                if flags & (zmq.POLLIN | zmq.POLLERR):
                    self._run(self._readers.get(sock))
            while self._calls:
                self._run(self._calls.popleft())
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._run(heapq.heappop(self._timers)[2])

    def _timeout_ms(self) -> int | None:
        if self._calls:
            return 0
        if not self._timers:
            return None
        return max(0, ceil((self._timers[0][0] - time.monotonic()) * 1000))

    def _run(self, callback: Callback | None) -> None:
        if callback is None:
            return
        try:
            callback()
        except Exception:  # noqa: BLE001 - the top of a thread: one fault must not stop all lanes
            _log.exception("hub.fault", thread=self.name)


def _keep_freed_memory() -> None:
    """Have glibc keep freed frames for the next ones: page faults cost a tenth of a transfer.

    By default it gives memory above twice the largest frame back to the system.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2 * CHUNK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 16 * CHUNK_BYTES)


class Hub:
    """Sockets' common ground. Closing it while a lane is open is a mistake of the caller."""

    def __init__(self) -> None:
        _keep_freed_memory()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, 16_384)
        self.zap = ZapHandler()
        self.thread = SocketThread("aats-bulk")
        self._door = self.context.socket(zmq.ROUTER)
        self._door.bind(ZAP_ADDRESS)
        self.thread.on_readable(self._door, self._answer)
        self.thread.start()

    def _answer(self) -> None:
        frames = self._door.recv_multipart()
        cut = frames.index(b"") + 1 if b"" in frames else len(frames)
        reply = self.zap.answer(frames[cut:])
        if reply is not None:
            self._door.send_multipart([*frames[:cut], *reply])

    def close(self) -> None:
        """Stop the thread and the context."""
        self.thread.stop()
        self._door.close(linger=0)
        self.context.term()
