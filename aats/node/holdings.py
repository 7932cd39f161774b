"""The copies of packets at one node: taken, found, dropped. Shared by the steps of a journey."""

from __future__ import annotations

from aats.ids import CustodyKey, NodeId, PacketId, trunk_of
from aats.lineage import Record
from aats.messages import Offer
from aats.node.commands import CancelTask, CancelTransfer, DropCustody, SaveCustody
from aats.node.custody import Copy, Doing, Status
from aats.node.desk import Desk
from aats.node.events import CustodyRow
from aats.node.news import News

FORGOTTEN = NodeId("?")
"""Who brought a copy that was dropped before this node started: no longer known."""
SEEN_KEPT = 10_000
"""Keys of dropped copies remembered to answer a repeated offer; oldest fall out."""


def _concerns(packet: PacketId, key: CustodyKey) -> bool:
    return packet in (key.packet, trunk_of(key.packet))


class Incoming:
    """An accepted offer whose tensors are on their way."""

    def __init__(self, sender: NodeId, offer: Offer, at: float) -> None:
        self.sender, self.offer, self.at = sender, offer, at


class Holdings:
    """What one node has of packets, and what it has had."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.copies: dict[CustodyKey, Copy] = {}
        self.incoming: dict[CustodyKey, Incoming] = {}
        self.seen: dict[CustodyKey, NodeId] = {}
        """Keys of copies that are or were here, and who brought them."""

    def take(self, row: CustodyRow, records: tuple[Record, ...]) -> Copy:
        """Take custody of a packet, durably."""
        copy = Copy(row, since=self._desk.now)
        self.copies[row.key] = copy
        self.seen[row.key] = row.sender
        while len(self.seen) > SEEN_KEPT:
            self.seen.pop(next(iter(self.seen)))
        self._desk.news.know(row.key.packet, row.key.epoch)
        self._desk.emit(SaveCustody(row, records))
        self.trim(row.key.packet)
        return copy

    def add(self, row: CustodyRow) -> Copy:
        """Take note of a child of ours whose row has been saved with its trunk's."""
        copy = Copy(row, since=self._desk.now)
        self.copies[row.key] = copy
        self.seen[row.key] = row.sender
        self._desk.news.know(row.key.packet, row.key.epoch)
        return copy

    def trim(self, packet: PacketId) -> None:
        """Drop what is kept for its tensors only: of this packet what is older, and what is many.

        A newer copy has all tensors that can still be asked for, and the room goes to its visit.
        """
        newest = max(key for key in self.copies if key.packet == packet)
        read = {c.met.key for c in self.copies.values() if c.met and c.doing is Doing.WORKING}
        cached = [
            c for c in self.copies.values() if c.status is Status.CACHED and c.key not in read
        ]
        older = [c for c in cached if c.key.packet == packet and c.key != newest]
        many = cached[: max(0, len(cached) - self._desk.config.cached_copies)]
        for copy in {c.key: c for c in older + many}.values():
            self.drop(copy)

    def spare_of(self, key: CustodyKey) -> Copy | None:
        """Return the spare of what the next node has under `key`."""
        for copy in self.copies.values():
            if copy.status is Status.SPARE and copy.next_key == key:
                return copy
        return None

    def sending(self, to: NodeId, key: CustodyKey) -> Copy | None:
        """Return the copy on offer, or on its way, to `to` under `key`."""
        for copy in self.copies.values():
            if (
                copy.doing in (Doing.OFFERING, Doing.SENDING)
                and copy.next_key == key
                and copy.row.chosen[:1] == (to,)
            ):
                return copy
        return None

    def incoming_expired(self, key: CustodyKey) -> None:
        """Forget an accepted offer whose tensors never came; the part file may serve later."""
        if self.incoming.pop(key, None):
            self._desk.emit(CancelTransfer(key))

    def hear(self, speaker: NodeId, packet: PacketId, epoch: int, *, done: bool) -> None:
        """Take in what another node says of a packet and act on it, if its word counts."""
        if self._desk.news.hear(speaker, packet, epoch, done=done):
            self.drop_dead(packet)

    def news_of(self, copy: Copy) -> News:
        """Return what counts for one of our copies."""
        handed_to = copy.row.chosen[:1] if copy.status is Status.SPARE else ()
        unneeded = copy.status in (Status.CACHED, Status.ORIGIN)
        return self._desk.news.of(copy.header, handed_to, anyone=unneeded)

    def drop_dead(self, packet: PacketId) -> None:
        """Drop every copy that is no longer the living one, and every such offer.

        News of a packet is news of its children.
        """
        for copy in [c for c in self.copies.values() if _concerns(packet, c.key)]:
            news = self.news_of(copy)
            if copy.key not in self.copies:
                continue  # gone with its trunk
            is_older = copy.header.epoch < news.epoch and copy.status is not Status.RESTING
            if copy.status is not Status.HOME and (news.done or is_older):
                self.bury(copy, done=news.done)
        for key, coming in list(self.incoming.items()):
            news = self._desk.news.of(coming.offer.header)
            if _concerns(packet, key) and (news.done or key.epoch < news.epoch):
                self.incoming_expired(key)

    def bury(self, copy: Copy, *, done: bool) -> None:
        """Drop a copy that is not the living one; our packet's first one only once it is home."""
        if self.is_origin(copy) and not done:
            self.shelve(copy)
        else:
            self.drop(copy)

    def is_origin(self, copy: Copy) -> bool:
        """Return whether this is the first copy of a packet of ours."""
        owner = copy.header.mandate.owner.node
        return copy.key.hop == 0 and not copy.header.branch and owner == self._desk.node

    def trunk_of(self, copy: Copy) -> Copy | None:
        """Return the trunk here that waits for this child; None if there is none."""
        for other in self.copies.values():
            if other.status is Status.WORKED and copy.key.packet in other.header.awaited:
                return other
        return None

    def children_of(self, trunk: Copy) -> list[Copy]:
        """Return all copies here, whatever their status, of children that a trunk waits for."""
        awaited = set(trunk.header.awaited)
        return [c for c in self.copies.values() if c.key.packet in awaited]

    def sibling_of(self, copy: Copy) -> Copy | None:
        """Return the copy that another child of the same fork left here last."""
        header, found = copy.header, None
        for other in self.copies.values():
            theirs = other.header
            is_sibling = (
                other.status in (Status.SPARE, Status.CACHED)
                and theirs.mandate.id == header.mandate.id
                and theirs.rendezvous == header.rendezvous
                and theirs.branch.rpartition("-")[0] == header.branch.rpartition("-")[0]
                and theirs.branch != header.branch
            )
            if is_sibling and (found is None or other.since >= found.since):
                found = other
        return found

    def shelve(self, copy: Copy) -> None:
        """Keep our packet's first copy, in case nothing is heard of the packet for long."""
        self._stop(copy)
        self._drop_children(copy)
        if copy.status is not Status.ORIGIN:
            self._desk.emit(SaveCustody(copy.change(Status.ORIGIN)))
        self.expect_word(copy)

    def expect_word(self, copy: Copy) -> None:
        """Wait for word of our packet from now on."""
        self._desk.timers.set(("lost", copy.key), self._desk.now + self._desk.config.lost_s)

    def _stop(self, copy: Copy) -> None:
        """End whatever is going on with a copy."""
        desk = self._desk
        if copy.task and copy.doing is Doing.WORKING:
            desk.tasks.pop(copy.task, None)
            desk.emit(CancelTask(copy.task))
        if copy.doing is Doing.SENDING:
            desk.emit(CancelTransfer(copy.next_key))
        for name in ("alive", "follow", "offer", "silence", "retry", "probe", "lost", "gather"):
            desk.timers.cancel((name, copy.key))
        copy.decision, copy.doing = None, Doing.NOTHING

    def _drop_children(self, trunk: Copy) -> None:
        for child in self.children_of(trunk):
            self.drop(child)

    def drop(self, copy: Copy) -> None:
        """Drop a copy and whatever is going on with it; with a waiting trunk, its children."""
        self._drop_children(copy)
        self._stop(copy)
        self._desk.emit(DropCustody(copy.key))
        self.forget(copy)

    def forget(self, copy: Copy) -> None:
        """Take note that a copy's row is deleted."""
        desk = self._desk
        self._stop(copy)
        del self.copies[copy.key]
        if copy.status not in (Status.CACHED, Status.ORIGIN, Status.RESTING):
            desk.trace("packet.dropped", packet=copy.key.packet, hop=copy.key.hop,
                       status=copy.status.value)  # fmt: skip
