"""The simulated world: node cores joined by links that delay, lose, double and partition.

One seed, one trace: every random number comes from a stream of its own for each link direction,
so a node or a link more does not shift what happens to the others.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from aats.ids import CustodyKey, NodeId
from aats.messages import Message, Offer
from aats.node.commands import Command, ExpectPacket, SendPacket
from aats.node.events import (
    Event,
    LinkDown,
    LinkUp,
    MessageReceived,
    PacketReceived,
    PacketSubmitted,
    TransferFailed,
)
from aats.packet import Header
from aats.payload import Payload
from aats.replay import EventLog
from aats.sim.kernel import Kernel
from aats.sim.link import Link, LinkSpec, Transfer
from aats.sim.node import NodeParts, SimulatedNode
from aats.wire import decode_message, encode_message

TRANSFER_BYTES = 64
"""Framing of a bulk transfer besides its tensors and its offer."""

Sink = Callable[[str], None]
"""Takes one line of the trace, without the line end."""

Hook = Callable[[SimulatedNode, Event | Command | None], None]
"""Told of every event (None: a timer) before a core gets it, and of every command after it was
carried out. May crash a node."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How fast a break is noticed. Times in seconds."""

    detect_s: float = 1.0
    """Until the ends of a broken connection are told so."""
    stall_s: float = 2.0
    """Until a transfer that a break has stopped is reported as failed."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A packet that came home."""

    node: NodeId
    at: float
    header: Header
    payload: Payload


def trace_line(at: float, node: NodeId, event: str, fields: dict[str, object]) -> str:
    """Return one line of `events.jsonl`: keys in a fixed order, floats as `repr` has them."""
    return json.dumps({"t": at, "node": node, "event": event, **fields}, separators=(",", ":"))


class SimulatedWorld:
    """Nodes and links on one virtual clock."""

    def __init__(
        self,
        nodes: Iterable[NodeParts],
        links: Iterable[LinkSpec],
        *,
        seed: int = 0,
        sink: Sink | None = None,
        settings: Settings = Settings(),
    ) -> None:
        """Join nodes by links; nothing runs before `start`.

        Args:
            nodes: What each is made of.
            links: At most one between two nodes.
            seed: Of all randomness of the links.
            sink: Takes the trace; None gathers it in `lines`.
            settings: How fast a break is noticed.

        Raises:
            ValueError: If a link joins unknown nodes, or two nodes twice.
        """
        self.kernel = Kernel()
        self.settings = settings
        self.lines: list[str] = []
        self.deliveries: list[Delivery] = []
        self.hooks: list[Hook] = []
        self.logs: dict[NodeId, EventLog] = {}
        """Event logs of the nodes that are to be replayed; put an empty one in before `start`."""
        self.counts: Counter[str] = Counter()
        """Messages by type, and `events`, `timers`, `bytes`, `lost`."""
        self.nodes = {parts.node: SimulatedNode(parts, self) for parts in nodes}
        self._seed = seed
        self._sink = sink or self.lines.append
        self._links: dict[tuple[NodeId, NodeId], Link] = {}
        self._of: dict[NodeId, list[Link]] = {node: [] for node in self.nodes}
        self._known_up: set[tuple[NodeId, NodeId]] = set()
        self._offer_bytes: dict[CustodyKey, int] = {}
        self._encoded: tuple[Message | None, bytes] = (None, b"")
        for spec in links:
            self._join(spec)

    def _join(self, spec: LinkSpec) -> None:
        if spec.a not in self.nodes or spec.b not in self.nodes:
            raise ValueError(f"link {spec.a}-{spec.b}: no such node")
        if (spec.a, spec.b) in self._links:
            raise ValueError(f"link {spec.a}-{spec.b}: given twice")
        link = Link(spec, self.kernel, lambda name: random.Random(f"{self._seed}/{name}"))
        for end in (spec.a, spec.b):
            self._links[end, spec.other(end)] = link
            self._of[end].append(link)

    # --- running ---

    def start(self) -> None:
        """Start every node and connect every link."""
        for node in self.nodes.values():
            node.start()
        for link in self.links:
            self._update(link)

    def run(self, until_s: float = inf, stop: Callable[[], bool] = lambda: False) -> bool:
        """Run until a time or a condition; return whether the condition held."""
        return self.kernel.run(until_s, stop)

    def step(self) -> bool:
        """Run the next action; False if nothing is planned."""
        return self.kernel.step()

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.kernel.now

    @property
    def links(self) -> list[Link]:
        """Every link once."""
        return list(dict.fromkeys(self._links.values()))

    def submit(self, node: NodeId, header: Header, payload: Payload, at: float = 0.0) -> None:
        """Let the application at `node` submit a packet at `at`, and again until it is taken."""

        def act() -> None:
            owner = self.nodes[node]
            if owner.is_up:
                owner.store.submit(header.key, payload)
                owner.feed(PacketSubmitted(header))
            if header.key not in owner.store.rows and header.key not in owner.store.seen:
                self.kernel.after(self.settings.detect_s, act)

        self.kernel.at(at, act)

    # --- faults ---

    def crash(self, node: NodeId, at: float | None = None, *, for_good: bool = False) -> None:
        """Crash a node now or at a time; `for_good`: no restart will bring it back."""
        if at is not None:
            self.kernel.at(at, lambda: self.crash(node, for_good=for_good))
            return
        victim = self.nodes[node]
        victim.died_for_good |= for_good
        if victim.is_up:
            victim.crash()
            self.trace(node, "node.crashed", {})
            self._known_up -= {(node, link.spec.other(node)) for link in self._of[node]}
            for link in self._of[node]:
                self._update(link)

    def restart(self, node: NodeId, at: float | None = None) -> None:
        """Restart a crashed node now or at a time, unless it is up or died for good."""
        if at is not None:
            self.kernel.at(at, lambda: self.restart(node))
            return
        sleeper = self.nodes[node]
        if not sleeper.is_up and not sleeper.died_for_good:
            self.trace(node, "node.restarted", {})
            sleeper.start()
            for link in self._of[node]:
                self._update(link)

    def cut(self, a: NodeId, b: NodeId, at: float = 0.0, heal_at: float = inf) -> None:
        """Take the link between two nodes down from `at` to `heal_at`."""
        self._cut([self._links[a, b]], at, heal_at)

    def partition(self, group: Iterable[NodeId], at: float = 0.0, heal_at: float = inf) -> None:
        """Take every link between `group` and the rest down from `at` to `heal_at`."""
        inside = set(group)
        crossing = [x for x in self.links if (x.spec.a in inside) != (x.spec.b in inside)]
        self._cut(crossing, at, heal_at)

    def lose(
        self, loss: float, links: Iterable[Link], at: float = 0.0, until_s: float = inf
    ) -> None:
        """Let links lose `loss` of their control messages from `at` to `until_s`; 1 cuts them."""
        hit = list(links)
        if loss >= 1:
            self._cut(hit, at, until_s)
            return

        def change(by: float) -> None:
            for link in hit:
                for lane in link.control.values():
                    lane.loss += by

        self.kernel.at(at, lambda: change(loss))
        if until_s < inf:
            self.kernel.at(until_s, lambda: change(-loss))

    def link(self, a: NodeId, b: NodeId) -> Link:
        """Return the link between two nodes."""
        return self._links[a, b]

    def _cut(self, links: list[Link], at: float, heal_at: float) -> None:
        def change(by: int) -> None:
            for link in links:
                link.cuts += by
                self._update(link)

        self.kernel.at(at, lambda: change(+1))
        if heal_at < inf:
            self.kernel.at(heal_at, lambda: change(-1))

    # --- connections ---

    def _update(self, link: Link) -> None:
        spec = link.spec
        wanted = not link.cuts and self.nodes[spec.a].is_up and self.nodes[spec.b].is_up
        if wanted == link.connected:
            return
        if wanted:
            link.connect()
        else:
            link.disconnect()
        session = link.session

        def tell() -> None:
            for end in (spec.a, spec.b):
                if link.session == session:
                    self._tell(link, end)

        self.kernel.after(spec.latency_s if wanted else self.settings.detect_s, tell)

    def _tell(self, link: Link, end: NodeId) -> None:
        other = link.spec.other(end)
        if link.connected:
            self._known_up.add((end, other))
            self.nodes[end].feed(LinkUp(link.spec.advert(end)))
        elif (end, other) in self._known_up:
            self._known_up.remove((end, other))
            self.nodes[end].feed(LinkDown(other))

    # --- what nodes ask for ---

    def send(self, sender: NodeId, to: NodeId, message: Message) -> None:
        """Put a control message on the link to a neighbour; it may never arrive."""
        link = self._links[sender, to]
        if message is not self._encoded[0]:
            self._encoded = (message, encode_message(message))
        data, session = self._encoded[1], link.session
        self.counts[type(message).__name__] += 1
        self.counts["bytes"] += len(data)
        times = link.control[sender].arrivals(self.now, len(data)) if link.connected else []
        self.counts["lost"] += not times
        for at in times:
            self.kernel.at(at, lambda: self._arrive(link, session, sender, to, data))

    def _arrive(self, link: Link, session: int, sender: NodeId, to: NodeId, data: bytes) -> None:
        if link.session != session:
            self.counts["lost"] += 1
            return
        message = decode_message(data)
        if isinstance(message, Offer):
            self._offer_bytes[message.key] = len(data)
        self.nodes[to].feed(MessageReceived(sender, message))

    def expect(self, receiver: NodeId, command: ExpectPacket) -> None:
        """Note that a receiver is ready for a transfer; what a former try brought is kept."""
        node = self.nodes[receiver]
        node.store.expect(command.key, command.manifest)
        node.expecting[command.key] = command.sender

    def transfer(self, sender: NodeId, command: SendPacket) -> None:
        """Begin a bulk transfer, or fail it if the other end is not ready for it."""
        link = self._links[sender, command.to]
        lane = link.bulk[sender]
        former = lane.find(command.key)
        if former:
            lane.cancel(former)
        reason = self._obstacle(link, sender, command)
        if reason:
            failed = TransferFailed(command.key, command.to, reason, began=False)
            self._feed_later(sender, 2 * link.spec.latency_s, failed)
            return
        part = self.nodes[command.to].store.parts[command.key]
        missing = sum(t.size for t in command.manifest.missing(command.known))
        lane.send(
            Transfer(
                sender=sender,
                receiver=command.to,
                key=command.key,
                manifest=command.manifest,
                payload=self.nodes[sender].store.payloads[command.source],
                size_bytes=TRANSFER_BYTES + max(0.0, missing - part.arrived_bytes),
                total_bytes=TRANSFER_BYTES + missing,
                done=self._transferred,
                failed=self._broken,
            )
        )

    def _obstacle(self, link: Link, sender: NodeId, command: SendPacket) -> str:
        """Return why a transfer cannot begin, "" if it can."""
        receiver = self.nodes[command.to]
        if not link.connected:
            return "no connection"
        if receiver.expecting.get(command.key) != sender:
            return "not expected"
        if receiver.store.parts[command.key].manifest != command.manifest:
            return "another payload is expected"
        if not all(receiver.store.holds(digest) for digest in command.known):
            return "a tensor named as known is gone"
        return ""

    def _transferred(self, transfer: Transfer) -> None:
        receiver = self.nodes[transfer.receiver]
        part = receiver.store.parts[transfer.key]
        if part.manifest != transfer.manifest:
            self._fail(transfer, "another payload is expected", 0.0)
            return
        del receiver.expecting[transfer.key]
        part.payload = transfer.payload
        loss = self._links[transfer.sender, transfer.receiver].spec.loss
        wire_bytes = round(transfer.total_bytes / (1 - loss))
        self.counts["bulk"] += wire_bytes
        wire_bytes += self._offer_bytes[transfer.key]
        receiver.feed(PacketReceived(transfer.sender, transfer.key, wire_bytes))

    def _broken(self, transfer: Transfer, arrived_bytes: float) -> None:
        part = self.nodes[transfer.receiver].store.parts.get(transfer.key)
        if part and part.manifest == transfer.manifest:
            part.arrived_bytes += max(0.0, arrived_bytes - TRANSFER_BYTES)
        self._fail(transfer, "connection lost", self.settings.stall_s)

    def _fail(self, transfer: Transfer, reason: str, delay_s: float) -> None:
        began = transfer.began_s >= 0
        failed = TransferFailed(transfer.key, transfer.receiver, reason, began)
        self._feed_later(transfer.sender, delay_s, failed)

    def cancel_transfer(self, node: NodeId, key: CustodyKey) -> None:
        """Stop a transfer in which `node` takes part; a receiver frees what has arrived."""
        here = self.nodes[node]
        if here.expecting.pop(key, None):
            here.store.parts.pop(key, None)
        for link in self._of[node]:
            for sender, lane in link.bulk.items():
                transfer = lane.find(key)
                if transfer:
                    lane.cancel(transfer)
                    if sender != node:
                        self._fail(transfer, "cancelled by the receiver", link.spec.latency_s)

    def _feed_later(self, node: NodeId, delay_s: float, event: Event) -> None:
        """Feed an event after a while, unless the node has crashed meanwhile."""
        shell = self.nodes[node]
        core = shell.core
        if core is not None:
            self.kernel.after(delay_s, lambda: shell.feed(event) if shell.core is core else None)

    def deliver(self, node: NodeId, header: Header) -> None:
        """Hand a packet to its owner's application, which knows it if it has it already.

        A node that restarts cannot know whether it had handed the packet over, and does it again.
        """
        if all(known.header != header for known in self.deliveries):
            payload = self.nodes[node].store.payload_of(header)
            self.deliveries.append(Delivery(node, self.now, header, payload))

    # --- observation ---

    def trace(self, node: NodeId, event: str, fields: dict[str, object]) -> None:
        """Write one line of the trace."""
        self._sink(trace_line(self.now, node, event, fields))

    def before(self, node: SimulatedNode, event: Event | None) -> Event | None:
        """Count an event, tell the hooks of it, log it if the node is to be replayed."""
        self.counts["timers" if event is None else "events"] += 1
        for hook in self.hooks:
            hook(node, event)
        log = self.logs.get(node.node)
        return log.told(self.now, event) if log is not None and node.is_up else event

    def after(self, node: SimulatedNode, command: Command) -> None:
        """Tell the hooks of a command that was carried out."""
        for hook in self.hooks:
            hook(node, command)

    def handled(self, node: NodeId, commands: list[Command]) -> None:
        """Log what the core commanded, if the node is to be replayed."""
        log = self.logs.get(node)
        if log is not None:
            log.commanded(commands)
