"""A node's two lanes, opened together and closed together, on the event loop of its daemon."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from aats.advert import LinkAdvert
from aats.ids import CustodyKey, NodeId
from aats.node.spec import CURVE_FILE, PEERS_FILE, DaemonSpec
from aats.payload import Manifest
from aats.store import NodeStore
from aats.transport.base import BulkEvent, ControlEvent, Kind
from aats.transport.bulk import BulkLane
from aats.transport.hub import Hub
from aats.transport.keys import CurveKeys, Directory
from aats.transport.shape import LinkShape, Shaping
from aats.transport.zmq import ControlLane


class Lanes:
    """Both lanes of one node; `async with` binds and closes them.

    Args:
        spec: Addresses, links, security; its directory has keys and peers.
        store: Where payloads are and go.
        on_bulk: Called on the event loop with what happens on the bulk lane.
        hub: Shared with other nodes of this process.

    Raises:
        LocalError: A key or the file of peers is missing or wrong.
    """

    def __init__(
        self, spec: DaemonSpec, store: NodeStore, on_bulk: Callable[[BulkEvent], None], hub: Hub
    ) -> None:
        self._links = {link.peer: link for link in spec.links}
        self._on_bulk, self._hub = on_bulk, hub
        self._loop = asyncio.get_running_loop()
        peers = Directory.load(spec.directory / PEERS_FILE)
        keys = CurveKeys.load(spec.directory / CURVE_FILE) if spec.secure else None
        shaping: Shaping | None = self._shape if spec.shaping else None
        self._control = ControlLane(
            spec.node, spec.control, peers, keys, self._links, hub=hub, shaping=shaping
        )
        self._bulk = BulkLane(
            spec.node, spec.bulk, peers, store, self._from_thread,
            encrypt=spec.secure, hub=hub, shaping=shaping,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        """Bind both lanes.

        Raises:
            LocalError: Naming the address, if one is in use.
        """
        self._bulk.start()
        try:
            await self._control.start()
        except BaseException:
            await self._close_bulk()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._control.close()
        await self._close_bulk()

    async def _close_bulk(self) -> None:
        """Close the bulk lane; return when its thread has let go of the store."""
        self._bulk.close()
        gone = threading.Event()
        self._hub.thread.call(gone.set)
        await asyncio.to_thread(gone.wait)

    def _shape(self, peer: NodeId) -> LinkShape:
        link = self._links[peer]
        return LinkShape(link.bandwidth_bps, link.latency_s)

    def link(self, peer: NodeId) -> LinkAdvert:
        """Return the figures of the link to a neighbour."""
        return self._links[peer]

    def control_events(self) -> AsyncIterator[ControlEvent]:
        """Yield what happens on the control lane."""
        return self._control.events()

    def send(self, to: NodeId, data: bytes, kind: Kind = Kind.MESSAGE) -> None:
        """Put a frame on the control lane; it may be dropped."""
        self._control.send(to, data, kind)

    def expect(
        self, sender: NodeId, key: CustodyKey, manifest: Manifest, overhead_bytes: int
    ) -> None:
        """Make room for an accepted offer and take its tensors."""
        self._bulk.expect(sender, key, manifest, overhead_bytes)

    def take_ticket(self, sender: NodeId, data: bytes) -> None:
        """Hand a ticket from the control lane to the bulk lane."""
        self._bulk.take_ticket(sender, data)

    def send_packet(
        self, to: NodeId, key: CustodyKey, source: CustodyKey, manifest: Manifest
    ) -> None:
        """Send what a neighbour lacks of a payload."""
        self._bulk.send(to, key, source, manifest)

    def cancel(self, key: CustodyKey) -> None:
        """Stop a transfer in either direction."""
        self._bulk.cancel(key)

    def _from_thread(self, event: BulkEvent) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_bulk, event)
