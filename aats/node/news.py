"""What is said of packets' copies, and whose word counts.

Any node can say that a packet is home, or that a copy under a higher epoch is alive. Taken at
its word, one node could end every packet of the network. So what is said is kept by who said
it, and counts for a copy only if the speaker has a say in it:

    home            its owner
    higher epoch    its owner, and the nodes that had this copy before us (its trail); a spare
                    also listens to the node it was handed to, and a copy that nobody depends on
                    to anyone, for the epoch may have been raised after it had gone

An epoch tells who raised it (`ids.raised_by`), and nobody can speak for another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Container
from dataclasses import dataclass

from aats.ids import EPOCH_STEP, NodeId, PacketId, raised_by
from aats.packet import Header

PACKETS_KEPT = 10_000
"""Packets of which something is known; the oldest news fall out."""
SPEAKERS_KEPT = 64
"""Nodes whose word on one packet is kept."""
MAX_EPOCH = 1 << 60
"""Far above any epoch there can be; room for raising it stays."""
REACH = 1000 * EPOCH_STEP
"""An epoch this far above a copy's own is not believed: it would use up all there are."""


@dataclass(slots=True)
class News:
    """What is known of a packet's copies anywhere: the epoch alive, and whether it is home."""

    epoch: int = 0
    done: bool = False


class NewsBook:
    """News of packets: what this node knows itself, and what others say."""

    def __init__(self) -> None:
        self._known: OrderedDict[PacketId, News] = OrderedDict()
        self._said: OrderedDict[PacketId, dict[NodeId, News]] = OrderedDict()

    def know(self, packet: PacketId, epoch: int, *, done: bool = False) -> None:
        """Note what this node has seen to itself."""
        news = self._known.setdefault(packet, News())
        news.epoch, news.done = max(news.epoch, epoch), news.done or done
        _keep(self._known, packet)

    def hear(self, speaker: NodeId, packet: PacketId, epoch: int, *, done: bool) -> bool:
        """Note what another node says; return whether it is new."""
        said = self._said.setdefault(packet, {})
        news = said.get(speaker, News(-1))
        if epoch > MAX_EPOCH or (epoch <= news.epoch and (news.done or not done)):
            return False
        said[speaker] = News(max(news.epoch, epoch), news.done or done)
        _keep(self._said, packet)
        if len(said) > SPEAKERS_KEPT:
            del said[next(iter(said))]
        return True

    def of(self, header: Header, also: Collection[NodeId] = (), *, anyone: bool = False) -> News:
        """Return what counts for a copy.

        A child is done, too, once its trunk is home, or goes on from before the fork.

        Args:
            header: Of the copy: its home, its owner and the nodes of its trail have a say.
            also: Who else has one on its epoch.
            anyone: Everybody has one on its epoch.
        """
        owner = header.mandate.owner.node
        heard: Container[NodeId] | None = {owner, header.home, *header.trail, *also}
        heard = None if anyone else heard
        found = self._found(header.id, header.epoch, header.home, heard)
        if header.branch:
            trunk = self._found(header.mandate.id, header.fork_epoch, owner, heard)
            found.done = found.done or trunk.done or trunk.epoch > header.fork_epoch
        return found

    def _found(
        self, packet: PacketId, epoch: int, home: NodeId, heard: Container[NodeId] | None
    ) -> News:
        """Return what counts for a packet whose copy is of `epoch`.

        Args:
            packet: Its id.
            epoch: Of the copy in question.
            home: Only this node says when its journey is over.
            heard: Who has a say on its epoch; None for everybody.
        """
        known = self._known.get(packet, News())
        found = News(known.epoch, known.done)
        for speaker, news in self._said.get(packet, {}).items():
            found.done = found.done or (news.done and speaker == home)
            is_heard = heard is None or speaker in heard
            if is_heard and raised_by(news.epoch, speaker) and _in_reach(news.epoch, epoch):
                found.epoch = max(found.epoch, news.epoch)
        return found

    def snapshot(self) -> dict[str, dict[str, tuple[int, bool]]]:
        """Return everything as plain values."""
        every: dict[str, dict[str, tuple[int, bool]]] = {}
        for packet, known in self._known.items():
            every.setdefault(packet, {})[""] = (known.epoch, known.done)
        for packet, said in self._said.items():
            for speaker, news in said.items():
                every.setdefault(packet, {})[speaker] = (news.epoch, news.done)
        return every


def in_reach(epoch: int, header: Header) -> bool:
    """Return whether an epoch can be that of a copy of this packet."""
    return _in_reach(epoch, header.epoch)


def _in_reach(epoch: int, from_epoch: int) -> bool:
    return epoch <= min(from_epoch + REACH, MAX_EPOCH)


def _keep(table: OrderedDict[PacketId, News] | OrderedDict[PacketId, dict[NodeId, News]],
          packet: PacketId) -> None:  # fmt: skip
    table.move_to_end(packet)
    if len(table) > PACKETS_KEPT:
        table.popitem(last=False)
