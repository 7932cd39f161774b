"""MOVE: the sender's side, from the offer until the next node has custody."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from aats.ids import CustodyKey, NodeId, raised_by
from aats.messages import Accept, Custody, Offer, RefusalReason, Refuse
from aats.node.commands import CancelTransfer, SaveCustody, SendPacket
from aats.node.custody import Copy, Doing, Status
from aats.node.desk import Desk
from aats.node.events import TransferFailed
from aats.node.holdings import Holdings
from aats.node.news import in_reach
from aats.node.steps import Steps
from aats.packet import Cost
from aats.topology.drrt import HEADER_BYTES, RECORD_BYTES
from aats.wire import sign_header


class Departure:
    """Hands packets on; what does not work out is offered again or re-routed."""

    def __init__(self, desk: Desk, held: Holdings, steps: Steps) -> None:
        self._desk, self._held, self._steps = desk, held, steps

    def offer(self, copy: Copy) -> None:
        """Offer the packet to the first node of its chosen path."""
        desk, row = self._desk, copy.row
        to = row.chosen[0]
        if to not in desk.neighbours:
            self._give_up(copy, f"no link to {to}", leave_out=False)
            return
        header = copy.header
        cost = Cost(1, desk.now - copy.since, 0, 0)
        header = replace(header.moved_by(desk.node), spent=header.spent + cost)
        copy.outgoing = sign_header(header, desk.identity)
        copy.tries = 0
        self._send_offer(copy)

    def _send_offer(self, copy: Copy) -> None:
        desk, row = self._desk, copy.row
        assert copy.outgoing is not None
        copy.doing = Doing.OFFERING
        copy.tries += 1
        desk.send(row.chosen[0], Offer(copy.next_key, copy.outgoing, row.chosen[1:], row.data_of))
        size = HEADER_BYTES + RECORD_BYTES * len(copy.outgoing.chain)
        self._wait(copy, row.chosen[0], desk.config.offer_timeout_s * 2 ** (copy.tries - 1), size)

    def timed_out(self, key: CustodyKey) -> None:
        """Repeat an unanswered offer or an unacknowledged transfer, or give the neighbour up."""
        copy = self._held.copies.get(key)
        if copy is None or copy.doing not in (Doing.OFFERING, Doing.SENDING):
            return
        to = copy.row.chosen[0]
        if to not in self._desk.neighbours:
            self._give_up(copy, f"no link to {to}")
        elif copy.tries >= self._desk.config.offer_tries:
            self._give_up(copy, f"no answer from {to}")
        else:
            self._send_offer(copy)

    def accepted(self, sender: NodeId, message: Accept) -> None:
        """Send the tensors the receiver lacks."""
        copy = self._held.sending(sender, message.key)
        if copy is None:
            return
        copy.doing = Doing.SENDING
        copy.uncertain = True
        assert copy.outgoing is not None
        self._desk.emit(
            SendPacket(sender, message.key, copy.key, copy.outgoing.manifest, message.known)
        )
        size = copy.outgoing.manifest.total
        self._wait(copy, sender, self._desk.config.transfer_timeout_s, size)

    def _wait(self, copy: Copy, to: NodeId, timeout_s: float, size_bytes: int) -> None:
        """Wait for an answer: so long, and three times what the link takes for so many bytes."""
        desk = self._desk
        link_s = desk.map.transfer_s(desk.node, (to,), size_bytes)
        wait_s = timeout_s + 3 * (link_s if link_s < inf else 0.0)
        desk.timers.set(("offer", copy.key), desk.now + wait_s)

    def refused(self, sender: NodeId, message: Refuse) -> None:
        """Choose another stop, or drop a copy that is no longer the living one."""
        copy = self._held.sending(sender, message.key)
        if copy is None:
            return
        self._desk.trace("packet.refused", packet=message.key.packet, hop=copy.header.hop,
                         by=sender, reason=message.reason.value,
                         detail=message.detail)  # fmt: skip
        if message.reason is RefusalReason.DONE or self._is_outdated(copy, message):
            # Believed for this copy only, and passed on to nobody: whoever is handed a packet
            # can end it, but not those that come after.
            if in_reach(message.epoch, copy.header):
                copy.outdated_by = max(copy.outdated_by, message.epoch)
            self._held.bury(copy, done=False)
        else:
            # A refusal is a clear answer: the neighbour has not stored this key.
            copy.uncertain = False
            is_crowded = message.reason is RefusalReason.FULL and copy.header.errand is not None
            self._give_up(copy, message.reason.value, leave_out=not is_crowded)

    def _is_outdated(self, copy: Copy, message: Refuse) -> bool:
        """Return whether a refusal names an epoch that one with a say can have raised."""
        header, epoch = copy.header, message.epoch
        if message.reason is not RefusalReason.OLDER_EPOCH or epoch <= header.epoch:
            return False
        could = (header.mandate.owner.node, self._desk.node, *header.trail)
        return in_reach(epoch, header) and (
            self._held.is_origin(copy) or any(raised_by(epoch, node) for node in could)
        )

    def transfer_failed(self, event: TransferFailed) -> None:
        """Offer again: the receiver resumes from what it has."""
        copy = self._held.sending(event.to, event.key)
        if copy is None or copy.doing is not Doing.SENDING:
            return
        self._desk.trace("transfer.failed", packet=event.key.packet, hop=copy.header.hop,
                         to=event.to, reason=event.reason)  # fmt: skip
        copy.doing = Doing.OFFERING
        self._desk.timers.set(("offer", copy.key), self._desk.now + self._desk.config.retry_s)

    def link_down(self, peer: NodeId) -> None:
        """Re-route what was on its way to a neighbour that is gone.

        At once if no byte was sent. Otherwise it may have been stored there, and a daemon that
        crashed is soon back with what had come: it is waited for.
        """
        for copy in list(self._held.copies.values()):
            on_offer = copy.doing in (Doing.OFFERING, Doing.SENDING)
            if not on_offer or copy.row.chosen[:1] != (peer,):
                continue
            if copy.uncertain:
                copy.doing = Doing.OFFERING
                self._desk.timers.set(
                    ("offer", copy.key), self._desk.now + self._desk.config.restart_s
                )
            else:
                self._give_up(copy, f"no link to {peer}", leave_out=False)

    def _give_up(self, copy: Copy, why: str, *, leave_out: bool = True) -> None:
        """Leave the chosen neighbour out for a while and decide anew.

        If bytes had been sent to it, the epoch rises first: it may have stored them. Nothing is
        left out where the map knows of a missing link, nor where a child's own siblings crowd
        its way: there is room again soon.
        """
        desk, row = self._desk, copy.row
        stop, neighbour = row.chosen[-1], row.chosen[0]
        until = desk.now + desk.config.avoid_s
        if leave_out:
            copy.avoid[neighbour] = until
        if leave_out and (copy.header.errand is None or neighbour == stop):
            copy.avoid[row.data_of or stop] = until  # an errand waits for a way to its stop
        desk.timers.cancel(("offer", copy.key))
        desk.emit(CancelTransfer(copy.next_key))
        desk.trace("packet.rerouted", packet=copy.header.id, hop=copy.header.hop,
                   neighbour=neighbour, why=why)  # fmt: skip
        if copy.uncertain:
            copy.uncertain = False
            self._steps.regenerate(copy, neighbour)
        else:
            desk.emit(SaveCustody(copy.change(Status.WORKED, chosen=(), data_of=NodeId(""))))
        self._steps.retry(copy, "another way")

    def custody_taken(self, sender: NodeId, message: Custody) -> None:
        """The next node has it: keep ours as the spare, let the spare behind us go."""
        copy = self._held.sending(sender, message.key)
        if copy is None:
            return
        desk = self._desk
        desk.timers.cancel(("offer", copy.key))
        desk.timers.cancel(("alive", copy.key))
        copy.doing, copy.failures, copy.asked = Doing.NOTHING, 0, 0
        desk.emit(SaveCustody(copy.change(Status.SPARE)))
        self._steps.report(copy.row.sender, copy.key)
        desk.trace("packet.moved", packet=copy.key.packet, hop=copy.next_key.hop, to=sender)
        desk.timers.set(("silence", copy.key), desk.now + desk.config.silence_s)
