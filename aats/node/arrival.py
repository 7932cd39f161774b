"""Admission and custody: the receiver's side of a move."""

from __future__ import annotations

from dataclasses import replace

from aats.errors import LedgerError, LocalError, SignatureError, WireError
from aats.ids import CustodyKey, NodeId
from aats.ledger.record import check_chain, check_verdict
from aats.messages import Accept, Custody, Offer, RefusalReason, Refuse
from aats.node.commands import CancelTransfer, ExpectPacket
from aats.node.custody import Status
from aats.node.desk import Desk
from aats.node.events import CustodyRow, PacketReceived
from aats.node.holdings import FORGOTTEN, Holdings, Incoming
from aats.node.news import MAX_EPOCH
from aats.node.steps import Steps
from aats.packet import TRAIL_LENGTH, Cost, EstimateSource, Header
from aats.payload import MODEL
from aats.wire import check_header, check_mandate

VERIFIED_KEPT = 20_000
"""Ledger record ids whose signature has been checked once."""
MAX_DETAIL = 300
"""Characters of a refusal's reason; part of it is what a stranger wrote."""
MAX_HOPS = 1 << 40
MAX_SPENT = 1e18
MAX_ONWARD = 256
MAX_LINES = 256
"""Targets, skills, numbers of a header: what is looked through at each decision."""


OF_RETURNED = frozenset({Status.HELD, Status.RESTING})
"""Of a child that has come back."""


class Arrival:
    """Admits or refuses offers, and takes custody of what arrived."""

    def __init__(self, desk: Desk, held: Holdings, steps: Steps) -> None:
        self._desk, self._held, self._steps = desk, held, steps
        self._verified: set[str] = set()

    def offered(self, sender: NodeId, offer: Offer) -> None:
        """Admit or refuse an offer (receiver's side)."""
        key, desk = offer.key, self._desk
        if sender not in desk.neighbours:
            return  # it could neither be answered nor send; it offers again when the link is up
        coming = self._held.incoming.get(key)
        if coming is not None and coming.sender == sender and coming.offer == offer:
            self._accept(sender, offer)
            return
        if self._held.seen.get(key) in (sender, FORGOTTEN):
            desk.send(sender, Custody(key))
            self._steps.report(sender, key)
            return
        refusal = self._refusal(sender, offer)
        if refusal is None:
            self._held.incoming[key] = Incoming(sender, offer, desk.now)
            self._accept(sender, offer)
            return
        if coming is not None and coming.sender == sender:
            self._held.incoming_expired(key)  # after a refusal the sender may go elsewhere
        reason, detail = refusal
        detail, epoch = detail[:MAX_DETAIL], desk.news.of(offer.header).epoch
        desk.send(sender, Refuse(key, reason, detail, epoch))
        desk.trace("offer.refused", packet=key.packet, hop=key.hop, sender=sender,
                   reason=reason.value, detail=detail)  # fmt: skip

    def _refusal(self, sender: NodeId, offer: Offer) -> tuple[RefusalReason, str] | None:
        header, key, desk = offer.header, offer.key, self._desk
        news = desk.news.of(header)
        if news.done:
            return RefusalReason.DONE, "the packet is home"
        if key.epoch < news.epoch:
            return RefusalReason.OLDER_EPOCH, f"epoch {news.epoch} is alive"
        if header.key != key or header.holder != sender:
            return RefusalReason.BAD_SIGNATURE, "the offer does not fit its header"
        if key in self._held.seen:
            return RefusalReason.FAILED, "another node has brought a packet by this key"
        if desk.is_leaving and (offer.onward or header.home != desk.node):
            return RefusalReason.FAILED, "the node is leaving"
        if fault := self._fault_of(sender, offer):
            return RefusalReason.FAILED, fault
        if full := self._is_full(sender, key):
            return RefusalReason.FULL, full
        try:
            owner = header.mandate.owner
            if desk.key_of(owner.node) not in (owner.public_key, None):
                return RefusalReason.NOT_TRUSTED, f"{owner.node} is known by another key"
            check_mandate(header.mandate)
            sender_key = desk.key_of(sender)
            if sender_key is None:
                return RefusalReason.NOT_TRUSTED, f"no key known for {sender}"
            check_header(header, sender_key)
            self._check_lineage(header)
        except SignatureError as error:
            return RefusalReason.BAD_SIGNATURE, str(error)
        except LedgerError as error:
            return RefusalReason.BAD_LINEAGE, str(error)
        try:
            header.manifest.check(limit_bytes=desk.config.policy.max_packet_bytes)
        except WireError as error:
            return RefusalReason.TOO_LARGE, str(error)
        try:
            desk.policies(header.mandate.policy)
            if header.mandate.rendezvous and not header.branch:
                desk.rendezvous(header.mandate.rendezvous)
            desk.agents(header.mandate.kind.value)
        except LocalError as error:
            return RefusalReason.FAILED, str(error)
        return None

    def _fault_of(self, sender: NodeId, offer: Offer) -> str:
        """Return what no honest node would offer, "" if there is nothing.

        These bounds leave room for what this node and those after it add to a header.
        """
        header, coming = offer.header, self._held.incoming.get(offer.key)
        spent = header.spent
        if coming is not None and coming.sender != sender:
            return f"{coming.sender} is sending a packet by this key"
        if not 0 < header.hop <= MAX_HOPS or header.epoch > MAX_EPOCH:
            return f"hop {header.hop}, epoch {header.epoch}: out of range"
        if max(spent.hops, spent.seconds, spent.bytes, spent.joules) > MAX_SPENT:
            return f"more spent than {MAX_SPENT:g}"
        if len(offer.onward) > MAX_ONWARD or len(header.trail) > TRAIL_LENGTH:
            return f"a path of {len(offer.onward)}, a trail of {len(header.trail)} nodes"
        if header.awaited:
            return "a packet that waits for its children does not travel"
        lines = len(header.mandate.requirement), len(header.labels_used), len(header.trained)
        if (
            max(*lines, len(header.skills) // 4, len(header.probed), len(header.journal))
            > MAX_LINES
        ):
            return f"a table of more than {MAX_LINES} lines"
        return ""

    def _is_full(self, sender: NodeId, key: CustodyKey) -> str:
        """Return why there is no room for one more packet, "" if there is.

        One neighbour that offers and never sends cannot take all the room there is. Children
        of a trunk that waits here take none, once each: they must be able to come back to it.
        """
        awaited = {p for c in self._held.copies.values() for p in c.header.awaited}
        others = {k.packet for k in self._held.incoming if k != key}
        others |= {k.packet for k, c in self._held.copies.items() if c.status in OF_RETURNED}
        if key.packet in awaited - others:
            return ""
        held = [
            c for c in self._held.copies.values()
            if c.status in (Status.HELD, Status.WORKED) and c.key.packet not in awaited
        ]  # fmt: skip
        coming = [c for k, c in self._held.incoming.items() if k != key]
        room = self._desk.config.max_packets
        if len(held) + len(coming) >= room:
            return f"{len(held)} packets here"
        if sum(c.sender == sender for c in coming) >= max(1, room // 2):
            return f"{room // 2} packets of {sender} are on their way"
        return ""

    def _check_lineage(self, header: Header) -> None:
        if len(self._verified) > VERIFIED_KEPT:
            self._verified.clear()
        nodes = {record.node: record.public_key for record in header.chain}
        known = {node: self._desk.key_of(node) for node in nodes}
        keys = nodes | {node: key for node, key in known.items() if key is not None}
        check_chain(header.chain, keys, verified=self._verified)
        if not header.chain or header.chain[-1].version != header.version:
            raise LedgerError("the chain does not end at the version on offer")
        last = header.chain[-1]
        if last.hop >= header.hop or last.epoch > header.epoch:
            raise LedgerError(f"the chain is at hop {last.hop} epoch {last.epoch} already")
        if header.manifest.version(MODEL) != header.version:
            raise LedgerError("the manifest is not that of the version on offer")
        if header.chain[0].packet != header.mandate.id:
            raise LedgerError("the chain is that of another packet")
        if header.chain[0].public_key != header.mandate.owner.public_key:
            raise LedgerError("the chain does not begin with the owner")
        for estimate in header.skills:
            if estimate.source is EstimateSource.MPVU:
                key = self._desk.key_of(estimate.by) or nodes.get(estimate.by)
                if key is None:
                    raise LedgerError(f"a verdict by {estimate.by}, of whom no key is known")
                check_verdict(header.mandate.id, estimate, key)

    def _accept(self, sender: NodeId, offer: Offer) -> None:
        manifest = offer.header.manifest
        held = {t.digest for c in self._held.copies.values() for t in c.header.manifest.tensors}
        known = tuple(dict.fromkeys(t.digest for t in manifest.tensors if t.digest in held))
        self._desk.emit(ExpectPacket(sender, offer.key, manifest))
        self._desk.send(sender, Accept(offer.key, known))
        at = self._desk.now + 4 * self._desk.config.transfer_timeout_s
        self._desk.timers.set(("incoming", offer.key), at)

    def received(self, event: PacketReceived) -> None:
        """Take custody of a packet whose tensors are all here and verified."""
        coming = self._held.incoming.pop(event.key, None)
        desk = self._desk
        if coming is None or event.key in self._held.seen:
            return
        desk.timers.cancel(("incoming", event.key))
        offer = coming.offer
        news = desk.news.of(offer.header)
        if news.done or event.key.epoch < news.epoch:
            desk.emit(CancelTransfer(event.key))
            return
        cost = Cost(0, desk.now - coming.at, event.wire_bytes, 0)
        header = replace(offer.header, spent=offer.header.spent + cost)
        row = CustodyRow(event.key, Status.HELD.value, header, coming.sender,
                         data_of=offer.data_of, onward=offer.onward)  # fmt: skip
        copy = self._held.take(row, header.chain)
        desk.send(coming.sender, Custody(event.key))
        desk.trace("packet.received", packet=event.key.packet, hop=event.key.hop,
                   epoch=event.key.epoch, sender=coming.sender,
                   wire_bytes=event.wire_bytes)  # fmt: skip
        self._steps.watch(copy)
        self._steps.tell_owner(copy.key)
        self._steps.arrive(copy)
