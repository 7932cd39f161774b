"""The control lane over ZeroMQ: a ROUTER that only receives, a DEALER a neighbour that only sends.

With keys, every connection is CURVE-encrypted and the sender of a message is whoever the key
belongs to (`ZapHandler` writes it on the connection); a routing id that claims to be another
node is dropped. Without keys the routing id is believed: for tests and closed machines.

Sockets are read from the event loop by their file descriptor: its edge says that something
may have happened, so a reader always drains until there is nothing left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import zmq
from zmq.utils.monitor import parse_monitor_message

from aats.errors import LocalError
from aats.ids import NODE_ID, NodeId
from aats.transport.base import ControlEvent, Incoming, Kind, LinkChanged, Notice
from aats.transport.hub import Hub
from aats.transport.keys import CurveKeys, Directory
from aats.transport.shape import Pacer, Shaping
from aats.wire import MAX_MESSAGE_BYTES

QUEUE_MESSAGES = 128
"""Messages waiting per neighbour in either direction; more are dropped (out) or left with the
sender (in)."""
EVENTS_WAITING = 1024
"""Events the daemon has not taken; then the sockets are left alone until it has."""
QUIET_S = 10.0
"""The same notice about the same peer is given once in so many seconds."""
NOTICES_KEPT = 1024
RETRY_S = 0.1
"""Until a neighbour that refused us is tried again; doubled up to `RETRY_MAX_S`."""
RETRY_MAX_S = 10.0
_TURN = 64
"""Messages read before the event loop serves others."""
_LINK_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_KINDS = frozenset(Kind)
_DOOR_EVENTS = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL

Socket = zmq.Socket[bytes]


@dataclass(slots=True)
class _Link:
    socket: Socket
    monitor: Socket
    is_up: bool = False
    refusals: int = 0
    """Handshakes that failed in a row."""
    pacer: Pacer | None = None
    delayed: deque[bytes] = field(default_factory=deque)


class ControlLane:
    """One node's end of the control lane.

    Args:
        node: This node.
        bind: Address to listen at, e.g. "tcp://127.0.0.1:0" (port 0: any free one).
        directory: Addresses and keys of the others; whoever is in it may connect.
        keys: This node's CURVE keys; None for a network without encryption.
        neighbours: Whom to connect to at the start; more with `connect`.
        hub: Shared with other nodes of this process; an own one if None.
        shaping: Bandwidth and latency to imitate on outgoing links.
    """

    def __init__(
        self,
        node: NodeId,
        bind: str,
        directory: Directory,
        keys: CurveKeys | None,
        neighbours: Iterable[NodeId] = (),
        *,
        hub: Hub | None = None,
        shaping: Shaping | None = None,
    ) -> None:
        self.node, self.address = node, bind
        self._directory, self._keys, self._shaping = directory, keys, shaping
        self._neighbours = tuple(neighbours)
        self._hub, self._owns_hub = hub, hub is None
        self._router: Socket | None = None
        self._door: Socket | None = None
        self._links: dict[NodeId, _Link] = {}
        self._events: deque[ControlEvent] = deque()
        self._arrived = asyncio.Event()
        self._is_paused = False
        self._is_closed = False
        self._told: dict[tuple[str, str], float] = {}

    async def start(self) -> None:
        """Bind and connect to the neighbours; `address` is then the real one.

        Raises:
            LocalError: Naming the address, if it is in use or cannot be bound; naming the
                neighbour, if the directory lacks it.
        """
        self._loop = asyncio.get_running_loop()
        self._hub = self._hub or Hub()
        router = self._socket(zmq.ROUTER)
        if self._keys is not None:
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
            router.setsockopt_string(zmq.ZAP_DOMAIN, self.node)
            self._hub.zap.guard(self.node, self._gate)
        else:
            router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router = router
        self._door = router.get_monitor_socket(_DOOR_EVENTS)
        try:
            router.bind(self.address)
        except zmq.ZMQError as error:
            address = self.address
            await self.close()
            raise LocalError(f"control lane of {self.node}: {address}: {error}") from error
        self.address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._watch(router, self._read)
        self._watch(self._door, self._read_door)
        for peer in self._neighbours:
            self.connect(peer)

    def connect(self, peer: NodeId) -> None:
        """Connect to a neighbour, and again whenever the connection breaks. Once is enough.

        Raises:
            LocalError: If the directory has no address or key for it.
        """
        if peer not in self._links:
            self._dial(peer)

    def _dial(self, peer: NodeId, refusals: int = 0) -> None:
        endpoint = self._directory.get(peer)
        dealer = self._socket(zmq.DEALER)
        if self._keys is None:
            dealer.setsockopt_string(zmq.ROUTING_ID, self.node)
        elif endpoint.curve_key:
            dealer.setsockopt(zmq.CURVE_SERVERKEY, endpoint.curve_key)
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
            dealer.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        else:
            dealer.close()
            raise LocalError(f"directory: {peer} has no CURVE key, but this network is encrypted")
        pacer = None if self._shaping is None else Pacer(self._shaping(peer))
        monitor = dealer.get_monitor_socket(_LINK_EVENTS)
        link = _Link(dealer, monitor, refusals=refusals, pacer=pacer)
        self._links[peer] = link
        self._watch(link.monitor, lambda: self._read_monitor(peer))
        try:
            dealer.connect(endpoint.control)
        except zmq.ZMQError as error:
            self.disconnect(peer)
            raise LocalError(f"control address of {peer}: {endpoint.control!r}: {error}") from error

    def disconnect(self, peer: NodeId) -> None:
        """Close the connection to a neighbour; unknown ones, too."""
        link = self._links.pop(peer, None)
        if link is None:
            return
        self._close_both(link.socket, link.monitor)
        if link.is_up:
            self._emit(LinkChanged(peer, up=False))

    def send(self, peer: NodeId, data: bytes, kind: Kind = Kind.MESSAGE) -> bool:
        """Queue one frame; never waits. False: dropped (no link, too long, the queue is full)."""
        link = self._links.get(peer)
        if link is None or not link.is_up or len(data) > MAX_MESSAGE_BYTES:
            return False
        frame = bytes((kind,)) + data
        if link.pacer is None:
            return self._push(link, frame)
        if len(link.delayed) >= QUEUE_MESSAGES:
            return False
        link.delayed.append(frame)
        due = link.pacer.arrival(len(frame), self._loop.time())
        self._loop.call_at(due, self._push_delayed, peer, link)
        return True

    async def events(self) -> AsyncIterator[ControlEvent]:
        """Yield what happens on this lane, in order, until `close`."""
        while not self._is_closed:
            while self._events:
                yield self._events.popleft()
                if self._is_paused and len(self._events) < EVENTS_WAITING // 2:
                    self._is_paused = False
                    self._read()
            self._arrived.clear()
            if not self._events and not self._is_closed:
                await self._arrived.wait()

    async def close(self) -> None:
        """Close every socket; what is queued is dropped."""
        if self._is_closed:
            return
        self._is_closed = True
        for peer in tuple(self._links):
            self.disconnect(peer)
        if self._hub is not None:
            self._hub.zap.guard(self.node, None)
        if self._router is not None and self._door is not None:
            self._forget(self._router)
            self._close_both(self._router, self._door)
        self._router = None
        self._arrived.set()
        if self._owns_hub and self._hub is not None:
            self._hub.close()

    # --- sockets ------------------------------------------------------------------------------

    def _socket(self, kind: int) -> Socket:
        assert self._hub is not None, "start comes first"
        sock = self._hub.context.socket(kind)
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES + 1)
        sock.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
        sock.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.IMMEDIATE, 1)
        sock.setsockopt(zmq.RECONNECT_IVL, 20)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        sock.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        return sock

    def _watch(self, sock: Socket, reader: Callable[[], None]) -> None:
        self._loop.add_reader(int(sock.FD), reader)
        self._loop.call_soon(reader)

    def _forget(self, sock: Socket) -> None:
        if not sock.closed:
            self._loop.remove_reader(int(sock.FD))

    def _close_both(self, sock: Socket, monitor: Socket) -> None:
        self._forget(monitor)
        sock.disable_monitor()
        monitor.close(linger=0)
        sock.close(linger=0)

    def _push(self, link: _Link, frame: bytes) -> bool:
        try:
            link.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _push_delayed(self, peer: NodeId, link: _Link) -> None:
        frame = link.delayed.popleft()
        if self._links.get(peer) is link and not self._push(link, frame):
            self._notice("control.dropped", peer, peer=peer, bytes=len(frame))

    # --- reading ------------------------------------------------------------------------------

    def _read(self) -> None:
        for _ in range(_TURN):
            if self._router is None or self._is_paused:
                return
            if len(self._events) >= EVENTS_WAITING:
                self._is_paused = True
                return
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._take(frames)
        self._loop.call_soon(self._read)

    def _take(self, frames: list[zmq.Frame]) -> None:
        sender = self._sender(frames)
        if sender is None:
            return
        data = frames[-1].bytes
        if len(frames) != 2 or not data or data[0] not in _KINDS:
            self._notice("control.malformed", sender, peer=sender, frames=len(frames))
            return
        self._emit(Incoming(sender, Kind(data[0]), data[1:]))

    def _sender(self, frames: list[zmq.Frame]) -> NodeId | None:
        """Return who sent a message; None, with a notice, if it claims to be another."""
        claimed = frames[0].bytes
        if self._keys is None:
            name = claimed.decode("ascii", "replace")
            if NODE_ID.fullmatch(name) and NodeId(name) in self._directory:
                return NodeId(name)
            self._notice("control.stranger", name[:64], claimed=name[:64])
            return None
        owner = NodeId(str(frames[-1].get("User-Id")))
        if claimed[:1] == b"\0" or claimed == owner.encode():
            return owner
        self._notice(
            "control.spoofed", owner, peer=owner, claimed=claimed.decode("ascii", "replace")[:64]
        )
        return None

    def _gate(self, key: bytes, address: str) -> NodeId | None:
        """Decide on a key, on the hub's thread."""
        owner = self._directory.node_of(key)
        if owner is None:
            name = key.decode("ascii")
            self._loop.call_soon_threadsafe(self._stranger, name, address)
        return owner

    def _stranger(self, key: str, address: str) -> None:
        self._notice("control.stranger", key, key=key, address=address)

    def _read_door(self) -> None:
        """Note who fails to even speak our protocol."""
        while self._door is not None and not self._door.closed:
            try:
                event = parse_monitor_message(self._door.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            reason = f"handshake failed ({zmq.Event(event['event']).name})"
            self._notice("control.stranger", "", reason=reason)

    def _read_monitor(self, peer: NodeId) -> None:
        while peer in self._links:
            link = self._links[peer]
            try:
                event = parse_monitor_message(link.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            self._take_link_event(peer, link, zmq.Event(event["event"]))

    def _take_link_event(self, peer: NodeId, link: _Link, event: zmq.Event) -> None:
        if event in (zmq.Event.HANDSHAKE_SUCCEEDED, zmq.Event.DISCONNECTED):
            is_up = event is zmq.Event.HANDSHAKE_SUCCEEDED
            if is_up != link.is_up:
                link.is_up, link.refusals = is_up, 0
                self._emit(LinkChanged(peer, up=is_up))
        else:
            self._notice("control.denied", peer, peer=peer, reason=str(event.name))
            # libzmq never tries again after a failed handshake; the peer may learn of us yet.
            delay_s = min(RETRY_S * 2**link.refusals, RETRY_MAX_S)
            self._loop.call_later(delay_s, self._redial, peer, link)

    def _redial(self, peer: NodeId, link: _Link) -> None:
        if self._links.get(peer) is link and not link.is_up:
            self.disconnect(peer)
            self._dial(peer, link.refusals + 1)

    # --- telling ------------------------------------------------------------------------------

    def _emit(self, event: ControlEvent) -> None:
        self._events.append(event)
        self._arrived.set()

    def _notice(self, name: str, about: str, **fields: str | int | float) -> None:
        """Tell of something, but not over and over: whoever knocks, knocks often."""
        now = self._loop.time()
        if now - self._told.get((name, about), -QUIET_S) < QUIET_S:
            return
        if len(self._told) >= NOTICES_KEPT:
            self._told.clear()
        self._told[name, about] = now
        self._emit(Notice(name, fields))
