"""The spare behind: one more copy until the packet has moved on once more."""

from __future__ import annotations

from dataclasses import replace

from aats.ids import CustodyKey, NodeId, next_epoch
from aats.messages import (
    Alive,
    Ask,
    Moved,
    RefusalReason,
    Refuse,
    Superseded,
    Whereabouts,
)
from aats.node.commands import SaveCustody
from aats.node.custody import Copy, Status
from aats.node.desk import Desk
from aats.node.holdings import Holdings
from aats.node.steps import Steps


class Spares:
    """Keeps spares until they may go, and takes them back when a custodian is lost."""

    def __init__(self, desk: Desk, held: Holdings, steps: Steps) -> None:
        self._desk, self._held, self._steps = desk, held, steps

    def report(self, to: NodeId, key: CustodyKey) -> None:
        """Tell the holder of the spare how the copy under `key` stands."""
        if not to:
            return
        copy = self._held.copies.get(key)
        if copy and copy.status in (Status.HELD, Status.WORKED):
            self._desk.send(to, Alive(key))
        elif copy or key in self._held.seen:
            self._desk.send(to, Moved(key))
        else:
            self._desk.send(to, Refuse(key, RefusalReason.UNKNOWN))

    def say_alive(self, key: CustodyKey) -> None:
        """Give the spare's holder a sign of life (timer)."""
        copy = self._held.copies.get(key)
        if copy and copy.status in (Status.HELD, Status.WORKED):
            self.report(copy.row.sender, key)
            self.watch(copy)

    def asked(self, sender: NodeId, message: Ask) -> None:
        """Answer the holder of a spare."""
        if message.key in self._held.incoming:
            return
        self.report(sender, message.key)

    def moved(self, sender: NodeId, message: Moved) -> None:
        """The custodian has moved the packet on: our spare is no longer needed."""
        copy = self._held.spare_of(message.key)
        if copy is None or copy.row.chosen[:1] != (sender,):
            return
        self._desk.timers.cancel(("silence", copy.key))
        if self._held.is_origin(copy):
            self._held.shelve(copy)
            return
        self._desk.emit(SaveCustody(copy.change(Status.CACHED)))
        self._held.trim(copy.key.packet)

    def alive(self, sender: NodeId, message: Alive) -> None:
        """The custodian lives: leave the spare where it is."""
        copy = self._held.spare_of(message.key)
        if copy is not None and copy.row.chosen[:1] == (sender,):
            copy.asked = 0
            at = self._desk.now + self._desk.config.silence_s
            self._desk.timers.set(("silence", copy.key), at)

    def silent(self, key: CustodyKey) -> None:
        """Ask a custodian that fell silent; take the spare back when it does not answer."""
        copy = self._held.copies.get(key)
        if copy is None or copy.status is not Status.SPARE:
            return
        custodian = copy.row.chosen[0]
        if copy.asked >= self._desk.config.silence_tries:
            self.lost(custodian, copy.next_key)
            return
        copy.asked += 1
        self._desk.send(custodian, Ask(copy.next_key))
        self._desk.timers.set(("silence", key), self._desk.now + self._desk.config.alive_s)

    def lost(self, custodian: NodeId, key: CustodyKey) -> None:
        """Take our spare back: the custodian has lost the packet, or is lost itself."""
        copy = self._held.spare_of(key)
        if copy is None or copy.row.chosen[:1] != (custodian,):
            return
        self._desk.timers.cancel(("silence", copy.key))
        self.regenerate(copy, custodian)
        copy.since = self._desk.now
        copy.avoid[custodian] = self._desk.now + self._desk.config.avoid_s
        self.watch(copy)
        self._steps.decide(copy)

    def watch(self, copy: Copy) -> None:
        """Give signs of life to the holder of the spare from now on."""
        if copy.row.sender:
            self._desk.timers.set(("alive", copy.key), self._desk.now + self._desk.config.alive_s)

    def tell_owner(self, key: CustodyKey) -> None:
        """Tell the owner that its packet is here, now and while it stays; of a child its home."""
        copy, desk = self._held.copies.get(key), self._desk
        if copy is None or copy.status not in (Status.HELD, Status.WORKED):
            return
        desk.say(copy.header.home, f"follow/{key}", Whereabouts(copy.header.key))
        desk.timers.set(("follow", key), desk.now + desk.config.follow_s)

    def seen(self, key: CustodyKey, node: NodeId) -> None:
        """Take word of our own packet: it is not lost."""
        self._desk.trace("packet.seen", packet=key.packet, hop=key.hop, epoch=key.epoch, at=node)
        for copy in self._held.copies.values():
            if copy.key.packet == key.packet and copy.status is Status.ORIGIN:
                self._held.expect_word(copy)

    def origin_lost(self, key: CustodyKey) -> None:
        """Send our packet out again: nothing was heard of it for long (timer)."""
        copy = self._held.copies.get(key)
        if copy is not None and copy.status is Status.ORIGIN:
            self.regenerate(copy, NodeId(""))
            copy.since = self._desk.now
            self._steps.decide(copy)

    def regenerate(self, copy: Copy, custodian: NodeId) -> None:
        """Let our copy be the living one, under a higher epoch, whatever `custodian` has.

        Durable before anybody hears of it: an epoch that is told must have a copy.
        """
        desk = self._desk
        said = desk.news.of(copy.header, anyone=True).epoch
        epoch = max(copy.header.epoch, said, copy.outdated_by)
        header = replace(copy.header, epoch=next_epoch(epoch, desk.node), awaited=())
        row = copy.change(Status.WORKED, header=header, chosen=(), data_of=NodeId(""))
        desk.emit(SaveCustody(row))
        desk.trace("packet.regenerated", packet=header.id, hop=header.hop, epoch=header.epoch)
        desk.notice(header.id, header.epoch, done=False)
        self._held.drop_dead(header.id)
        desk.send(custodian, Superseded(header.key))
