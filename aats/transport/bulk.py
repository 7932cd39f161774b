"""The bulk lane: a payload's chunks from one store's mapping into another's, over TCP.

    receiver                         sender
    expect: part file, ticket  ----->  take_ticket        (control lane, encrypted)
                               <-----  CHUNK 0..3         (bulk lane: a plain stream)
    CREDIT as each is in place ----->  CHUNK 4, 5, ...
    DONE, all digests hold     ----->  transfer forgotten

Chunks leave the sender's mapping without a copy and are received straight into the part's
mapping, where they are hashed while the rest of them is on its way; encrypted ones into a buffer
and from there decrypted into it. At most `WINDOW_CHUNKS` of a transfer are under way and TCP's own
window bounds what lies between, so memory is bounded at both ends. The receiver knows the plan, so
the last chunk is the end; nothing else says so.

All transfers between two nodes share one connection, their chunks taking turns. A connection
that breaks fails the transfers on it at once.

A transfer that breaks leaves its part file; the next offer's ticket names what is still
missing. A stranger at the bulk port has no token: its connection ends with its first head, or
after `GREETING_S` without one, and only so many are open (`reception.CONNECTIONS_KEPT`).
"""

from __future__ import annotations

import socket
import time

from aats.errors import LocalError
from aats.ids import CustodyKey, NodeId
from aats.payload import Manifest
from aats.store import NodeStore
from aats.transport.base import BulkCallback
from aats.transport.hub import Hub
from aats.transport.keys import Directory
from aats.transport.reception import Receiver
from aats.transport.sending import Sender
from aats.transport.shape import Shaping
from aats.transport.stream import listen, unlisten

SILENCE_S = 30.0
"""A transfer without progress for so long has failed. One chunk takes 17 s at 1 Mbit/s."""


class BulkLane:
    """One node's transfers, in and out.

    Args:
        node: This node.
        bind: Address to listen at, e.g. "tcp://127.0.0.1:0" (port 0: any free one).
        directory: Bulk addresses of the others.
        store: Where payloads are and go.
        on_event: Called with every `BulkEvent`, on the bulk thread; must not block.
        encrypt: AES-256-GCM on every chunk; False for a network where all links are trusted.
        hub: Shared with other nodes of this process; an own one if None.
        shaping: Bandwidth and latency to imitate on outgoing links.
    """

    def __init__(
        self,
        node: NodeId,
        bind: str,
        directory: Directory,
        store: NodeStore,
        on_event: BulkCallback,
        *,
        encrypt: bool = True,
        hub: Hub | None = None,
        shaping: Shaping | None = None,
    ) -> None:
        self.node, self.address = node, bind
        self._store, self._on_event = store, on_event
        self._encrypt = encrypt
        self._hub = hub or Hub()
        self._owns_hub = hub is None
        self._thread = self._hub.thread
        self._listener: socket.socket | None = None
        self._receiver: Receiver | None = None
        self._sender = Sender(
            self._hub, directory, store, on_event, encrypt=encrypt, shaping=shaping
        )

    def start(self) -> None:
        """Bind and begin to serve; `address` is then the real one.

        Raises:
            LocalError: Naming the address, if it is in use or cannot be bound.
        """
        try:
            self._listener, self.address = listen(self.address)
        except LocalError as error:
            raise LocalError(f"bulk lane of {self.node}: {error}") from error
        self._receiver = Receiver(
            self._listener, self._thread, self._store, self._on_event, encrypt=self._encrypt
        )
        self._thread.call(self._serve)

    def expect(
        self, sender: NodeId, key: CustodyKey, manifest: Manifest, overhead_bytes: int = 0
    ) -> None:
        """See `BulkTransport.expect`."""
        assert self._receiver is not None, "start comes first"
        receiver = self._receiver
        self._thread.call(lambda: receiver.expect(sender, key, manifest, overhead_bytes))

    def take_ticket(self, sender: NodeId, data: bytes) -> None:
        """See `BulkTransport.take_ticket`."""
        self._thread.call(lambda: self._sender.take_ticket(sender, data))

    def send(self, to: NodeId, key: CustodyKey, source: CustodyKey, manifest: Manifest) -> None:
        """See `BulkTransport.send`."""
        self._thread.call(lambda: self._sender.send(to, key, source, manifest))

    def cancel(self, key: CustodyKey) -> None:
        """See `BulkTransport.cancel`."""
        self._thread.call(lambda: self._forget(key))

    def close(self) -> None:
        """Close every socket; an own hub's thread ends."""
        self._thread.call_and_wait(self._close)
        if self._owns_hub:
            self._hub.close()

    # --- on the bulk thread -------------------------------------------------------------------

    def _serve(self) -> None:
        if self._listener is not None and self._receiver is not None:
            self._thread.on_readable(self._listener, self._receiver.accept)
            self._sweep()

    def _forget(self, key: CustodyKey) -> None:
        if self._receiver is not None:
            self._receiver.forget(key)
        self._store.abandon(key)
        self._sender.forget(key)

    def _sweep(self) -> None:
        """Give up on what has been silent for too long, from time to time."""
        if self._receiver is not None:
            self._receiver.sweep(SILENCE_S)
            self._sender.sweep(SILENCE_S)
            self._thread.at(time.monotonic() + SILENCE_S / 4, self._sweep)

    def _close(self) -> None:
        self._sender.close()
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None
        if self._listener is not None:
            self._thread.on_readable(self._listener, None)
            unlisten(self._listener, self.address)
            self._listener = None
