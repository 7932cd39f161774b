"""A link of the simulated world: delay, loss, duplication, reordering, contention, partition.

Each direction has two lanes, as live: control messages (`ControlLane`, each on its own, may be
lost) and bulk transfers (`BulkLane`, one after the other: who waits in line, waits for the
bandwidth). Nothing in here knows of nodes or packets' contents.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from aats.advert import LinkAdvert
from aats.ids import CustodyKey, NodeId
from aats.payload import Manifest, Payload
from aats.sim.kernel import Kernel, Timer

BITS = 8
HELD_BACK = 4.0
"""A message held back takes up to so many times longer besides."""
MAX_LOSS = 0.95
"""A link that loses more is of no use: retransmission would take for ever."""


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A link between two nodes, the same in both directions.

    Raises:
        ValueError: If a figure is out of range.
    """

    a: NodeId
    b: NodeId
    bandwidth_bps: float = 100e6
    """Bits per second, each direction."""
    latency_s: float = 0.005
    """One way."""
    loss: float = 0.0
    """Share of control messages lost; bulk is sent again and takes longer."""
    duplicate: float = 0.0
    """Share of control messages that arrive twice."""
    jitter_s: float = 0.0
    """Up to so much more latency, drawn for each control message."""
    reorder: float = 0.0
    """Share of control messages held back so that later ones overtake them."""

    def __post_init__(self) -> None:
        if self.a == self.b:
            raise ValueError(f"link {self.a}-{self.b}: joins a node to itself")
        if not (self.bandwidth_bps > 0 and self.latency_s >= 0 and self.jitter_s >= 0):
            raise ValueError(f"link {self.a}-{self.b}: bandwidth must be > 0, delays >= 0")
        if not (0 <= self.loss <= MAX_LOSS and 0 <= self.duplicate <= 1 and 0 <= self.reorder <= 1):
            raise ValueError(f"link {self.a}-{self.b}: loss 0-{MAX_LOSS}, other shares 0-1")

    def other(self, node: NodeId) -> NodeId:
        """Return the end that is not `node`."""
        return self.b if node == self.a else self.a

    def advert(self, node: NodeId) -> LinkAdvert:
        """Return the link as `node` sees it."""
        return LinkAdvert(self.other(node), self.bandwidth_bps, self.latency_s, self.loss)


class ControlLane:
    """When the control messages of one direction arrive."""

    def __init__(self, spec: LinkSpec, rng: random.Random) -> None:
        self.loss = spec.loss
        """Share lost from now on; a fault may raise it for a while."""
        self._spec = spec
        self._rng = rng
        self._last = 0.0

    def arrivals(self, now: float, size_bytes: int) -> list[float]:
        """Return the times at which a message sent now arrives: none if lost, two if doubled.

        Messages keep their order, but for those that are held back.
        """
        spec, rng = self._spec, self._rng
        if self.loss and rng.random() < self.loss:
            return []
        copies = 2 if spec.duplicate and rng.random() < spec.duplicate else 1
        delay = spec.latency_s + size_bytes * BITS / spec.bandwidth_bps
        if spec.jitter_s:
            delay += rng.random() * spec.jitter_s
        if spec.reorder and rng.random() < spec.reorder:
            return [now + delay * (1 + HELD_BACK * rng.random())] * copies
        self._last = max(self._last, now + delay)
        return [self._last] * copies


@dataclass(slots=True, eq=False)
class Transfer:
    """Tensors of one packet on their way over one link."""

    sender: NodeId
    receiver: NodeId
    key: CustodyKey
    """At the receiver."""
    manifest: Manifest
    payload: Payload
    size_bytes: float
    """Left to send: what a former try brought over is not sent again."""
    total_bytes: float
    """Of this and all former tries."""
    done: Callable[[Transfer], None]
    failed: Callable[[Transfer, float], None]
    """Called with the bytes that had arrived."""
    began_s: float = -1.0
    """When its first byte left; negative: it still waits in line."""


class BulkLane:
    """The transfers of one direction: first come, first served, each at full bandwidth."""

    def __init__(self, spec: LinkSpec, kernel: Kernel) -> None:
        self._kernel = kernel
        self._latency_s = spec.latency_s
        self._bytes_per_s = spec.bandwidth_bps * (1 - spec.loss) / BITS
        self._waiting: deque[Transfer] = deque()
        self._sending: Transfer | None = None
        self._timers: dict[Transfer, Timer] = {}

    def send(self, transfer: Transfer) -> None:
        """Put a transfer in line."""
        self._waiting.append(transfer)
        self._next()

    def find(self, key: CustodyKey) -> Transfer | None:
        """Return the transfer under way or waiting under the receiver's `key`, if any."""
        return next((t for t in (*self._timers, *self._waiting) if t.key == key), None)

    def cancel(self, transfer: Transfer) -> None:
        """Forget a transfer; neither of its callbacks will be called."""
        if transfer in self._waiting:
            self._waiting.remove(transfer)
        timer = self._timers.pop(transfer, None)
        if timer:
            timer.cancel()
        if transfer is self._sending:
            self._sending = None
            self._next()

    def fail_all(self) -> None:
        """Break every transfer; each is told how many of its bytes had arrived."""
        broken = [*self._timers, *self._waiting]
        self._waiting.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._sending = None
        for transfer in broken:
            transfer.failed(transfer, self._arrived(transfer))

    def _arrived(self, transfer: Transfer) -> float:
        if transfer.began_s < 0:
            return 0.0
        flown = max(0.0, self._kernel.now - transfer.began_s - self._latency_s)
        return min(transfer.size_bytes, flown * self._bytes_per_s)

    def _next(self) -> None:
        if self._sending or not self._waiting:
            return
        transfer = self._sending = self._waiting.popleft()
        transfer.began_s = self._kernel.now
        delay = transfer.size_bytes / self._bytes_per_s
        self._timers[transfer] = self._kernel.after(delay, lambda: self._left(transfer))

    def _left(self, transfer: Transfer) -> None:
        self._sending = None
        self._timers[transfer] = self._kernel.after(self._latency_s, lambda: self._landed(transfer))
        self._next()

    def _landed(self, transfer: Transfer) -> None:
        del self._timers[transfer]
        transfer.done(transfer)


class Link:
    """Both directions of a link, and whether it is up."""

    def __init__(self, spec: LinkSpec, kernel: Kernel, rng: Callable[[str], random.Random]) -> None:
        """Make a link.

        Args:
            spec: Its figures.
            kernel: The clock.
            rng: Gives a random source by name; one a direction, so links do not disturb
                each other.
        """
        self.spec = spec
        self.session = 0
        """Counts connections; what was sent in a former one never arrives."""
        self.connected = False
        self.cuts = 0
        """Partitions now in force; the link is up at 0."""
        self.control = {
            a: ControlLane(spec, rng(f"link/{a}/{spec.other(a)}")) for a in (spec.a, spec.b)
        }
        self.bulk = {a: BulkLane(spec, kernel) for a in (spec.a, spec.b)}

    def connect(self) -> None:
        """Begin a new connection."""
        self.session += 1
        self.connected = True

    def disconnect(self) -> None:
        """End the connection: messages in flight are lost, transfers fail."""
        self.session += 1
        self.connected = False
        for lane in self.bulk.values():
            lane.fail_all()
