"""Link state: everybody's signed adverts, kept alike on every node by flooding and anti-entropy.

Theory of operation (as OSPF, without its designated routers). A node originates one advert about
itself under a growing sequence number, floods it to its neighbours, and each passes on what is
new to it to all neighbours but the sender: a link carries an advert at most once in each
direction. Nothing is acknowledged. What a lost message leaves open is closed by summaries of
(origin, seq), asked for on contact (an empty `Pull`) and sent from time to time: whoever is
behind pulls, whoever is ahead pushes. That heals partitions too.

Adverts age, on the way and while stored, and vanish at the maximum age unless their origin
refreshes them. A vanished advert is remembered for as long again, so that a slower neighbour
cannot bring it back, and so that an origin that restarts below its old number is shown that
number and jumps above it.

The object is pure: the caller brings messages and the time, and takes messages away.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from aats.advert import Advert, LinkAdvert, SignedAdvert
from aats.errors import SignatureError, WireError
from aats.identity import Identity
from aats.ids import NodeId
from aats.messages import Flood, Message, Pull, Summary, SummaryEntry
from aats.wire import check_advert, sign_advert

MAX_ORIGINS = 20_000
"""Nodes known at once: a stranger who invents names cannot fill the memory."""
MAX_NOTICES = 64
"""Notices in our own advert; the newest stay."""
FLOOD_BATCH = 16
"""Adverts in one message, so that a message stays near a megabyte at worst."""
SUMMARY_BATCH = 512
"""Entries in one summary; the periodic one sends one batch after the other, round robin."""


@dataclass(frozen=True, slots=True)
class Known:
    """An advert and when it was made, on the clock of whoever asks."""

    advert: Advert
    born: float
    """Seconds; may lie before the clock's start."""

    def age_s(self, now: float) -> float:
        """Return the advert's age in seconds."""
        return max(0.0, now - self.born)


@dataclass(frozen=True, slots=True)
class Rejection:
    """An advert that was refused: it is neither stored nor passed on."""

    sender: NodeId
    origin: NodeId
    reason: str
    """"malformed", "signature" (or the name, number or key it covers) or "unknown-key"."""


@dataclass(frozen=True, slots=True)
class _Entry:
    signed: SignedAdvert
    known: Known
    gone: bool = False
    """Past its maximum age: remembered, but no longer told."""

    @property
    def rank(self) -> tuple[int, bytes]:
        # The body breaks ties: a node that restarted may use a number twice, and everybody
        # must still end up with the same one of the two.
        return self.signed.seq, self.signed.body


@lru_cache(maxsize=4096)
def _checked(signed: SignedAdvert, public_key: bytes | None) -> Advert:
    """As `check_advert`; remembered, so that an advert is decoded and verified once."""
    return check_advert(signed, public_key)


class LinkState:
    """The link-state database of one node (part of DA-ITN's G-KRRM).

    Args:
        identity: Names the node and signs its adverts.
        refresh_s: Originate anew after this time, changed or not.
        max_age_s: Forget an advert that was not refreshed for this long; several `refresh_s`.
        min_interval_s: Originate at most once in this time (damping).
        summary_s: Time between summaries to every neighbour.
        known_keys: Node id -> Ed25519 public key of everybody who may take part; None: the
            first key seen for a name is the one that counts from then on.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        refresh_s: float = 30.0,
        max_age_s: float = 120.0,
        min_interval_s: float = 0.1,
        summary_s: float = 5.0,
        known_keys: Mapping[NodeId, bytes] | None = None,
    ) -> None:
        self.node = identity.node
        self.rejected: Counter[str] = Counter()
        """Adverts refused so far, by reason."""
        self._identity = identity
        self._refresh_s, self._max_age_s = refresh_s, max_age_s
        self._min_interval_s, self._summary_s = min_interval_s, summary_s
        self._known_keys = known_keys
        self._pinned: dict[NodeId, bytes] = {}
        self._entries: dict[NodeId, _Entry] = {}
        self._links: dict[NodeId, LinkAdvert] = {}
        self._own: Advert | None = None
        self._own_since = 0.0
        self._seq = 0
        self._originated_at = -math.inf
        self._is_stale = False
        """Whether our advert says something else than what we last told."""
        self._summary_at = math.inf
        self._summary_from = 0
        self._purge_at = math.inf
        self._outbox: list[tuple[NodeId, Message]] = []
        self._changes: dict[NodeId, Known | None] = {}
        self._rejections: list[Rejection] = []

    # --- what the node says of itself ---------------------------------------------------------

    @property
    def own_seq(self) -> int:
        """The sequence number last used; keep it durably, `restore` it after a restart."""
        return self._seq

    def restore(self, seq: int) -> None:
        """Continue above `seq`. Without it the neighbours tell us where we were."""
        self._seq = max(self._seq, seq)

    def set_own(self, advert: Advert, now: float) -> None:
        """Say this of ourselves from now on.

        Origin, key and sequence number are filled in, and the links are those that are up:
        whatever `advert` says of them does not count.
        """
        self._renew(advert, now)

    def link_up(self, link: LinkAdvert, now: float) -> None:
        """Take a neighbour in (or note new figures of its link) and bring both up to date."""
        is_new, told = link.peer not in self._links, self._seq
        self._links[link.peer] = link
        if self._own is not None:
            self._renew(self._own, now)
        if not is_new:
            return
        if self._summary_at == math.inf:
            self._summary_at = now + self._summary_s
        if self.node in self._entries and self._seq == told:
            self._send_adverts(link.peer, [self._entries[self.node]], now)
        # Both ways: the end that saw the link first could not be answered by the other.
        self._send(link.peer, Pull(()))
        self._send_summaries(link.peer)

    def link_down(self, peer: NodeId, now: float) -> None:
        """Drop a neighbour. Its advert stays until it ages out: it may be reached elsewhere."""
        if self._links.pop(peer, None) is None:
            return
        if not self._links:
            self._summary_at = math.inf
        if self._own is not None:
            self._renew(self._own, now)

    # --- what the network says ----------------------------------------------------------------

    def receive(self, sender: NodeId, message: Flood | Summary | Pull, now: float) -> None:
        """Take a link-state message from a neighbour."""
        match message:
            case Flood(adverts=adverts):
                self._receive_flood(sender, adverts, now)
            case Summary(entries=entries):
                self._receive_summary(sender, entries, now)
            case Pull(origins=()):
                self._send_summaries(sender)
            case Pull(origins=origins):
                wanted = (self._entries.get(origin) for origin in dict.fromkeys(origins))
                self._send_adverts(sender, [e for e in wanted if e and not e.gone], now)

    def tick(self, now: float) -> None:
        """Do what is due: purge, refresh, tell a damped change, send summaries."""
        if now >= self._purge_at:
            self._purge(now)
        self._originate_if_due(now)
        if now >= self._summary_at:
            self._summary_at = now + self._summary_s
            live = self._live()
            if self._summary_from >= len(live):
                self._summary_from = 0
            batch = live[self._summary_from : self._summary_from + SUMMARY_BATCH]
            self._summary_from += SUMMARY_BATCH
            for peer in self._links:
                self._send_summary(peer, batch)

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do next, in seconds."""
        due = min(self._summary_at, self._purge_at, self._originate_at())
        return None if due == math.inf else due

    # --- what the caller takes away -----------------------------------------------------------

    def take(self) -> list[tuple[NodeId, Message]]:
        """Return the messages to send, (neighbour, message) in order, and forget them."""
        taken, self._outbox = self._outbox, []
        return taken

    def take_changes(self) -> dict[NodeId, Known | None]:
        """Return what was learnt (None: forgotten) since last asked; feeds a `GlobalMap`.

        Our own changes are in it at once, before damping lets others know.
        """
        taken, self._changes = self._changes, {}
        return taken

    def take_rejections(self) -> list[Rejection]:
        """Return the adverts refused since last asked."""
        taken, self._rejections = self._rejections, []
        return taken

    def adverts(self, now: float) -> Mapping[NodeId, tuple[Advert, float]]:
        """Return every advert that counts, our own included, and its age in seconds."""
        found = {
            origin: (entry.known.advert, entry.known.age_s(now))
            for origin, entry in self._entries.items()
            if not entry.gone
        }
        if self._own is not None:
            found[self.node] = (self._own, max(0.0, now - self._own_since))
        return found

    # --- originating --------------------------------------------------------------------------

    def _renew(self, advert: Advert, now: float) -> None:
        own = replace(
            advert,
            origin=self.node,
            seq=self._seq,
            public_key=self._identity.public_key,
            links=tuple(self._links[peer] for peer in sorted(self._links)),
            notices=advert.notices[-MAX_NOTICES:],
        )
        if self._own is not None and replace(self._own, seq=self._seq) == own:
            return
        self._own, self._own_since = own, now
        self._changes[self.node] = Known(own, now)
        self._is_stale = True
        self._originate_if_due(now)

    def _originate_at(self) -> float:
        if self._own is None:
            return math.inf
        wait_s = self._min_interval_s if self._is_stale else self._refresh_s
        return self._originated_at + wait_s

    def _originate_if_due(self, now: float) -> None:
        if self._own is None or now < self._originate_at():
            return
        self._seq += 1
        self._originated_at, self._own_since, self._is_stale = now, now, False
        self._own = replace(self._own, seq=self._seq)
        signed = sign_advert(self._own, self._identity)
        entry = _Entry(signed, Known(self._own, now))
        self._entries[self.node] = entry
        self._changes[self.node] = entry.known
        for peer in self._links:
            self._send_adverts(peer, [entry], now)

    # --- receiving ----------------------------------------------------------------------------

    def _receive_flood(self, sender: NodeId, adverts: Iterable[SignedAdvert], now: float) -> None:
        link = self._links.get(sender)
        latency_s = link.latency_s if link else 0.0
        fresh, newer_here = [], []
        for signed in adverts:
            held, rank = self._entries.get(signed.origin), (signed.seq, signed.body)
            is_own = signed.origin == self.node
            if held and held.rank == rank:
                continue
            if held and held.rank > rank and not (is_own and held.signed.seq == signed.seq):
                newer_here.append(held)
                continue
            advert = self._accepted(sender, signed)
            if advert is None:
                continue
            age_s = max(0.0, signed.age_s) + latency_s
            if is_own:
                self._jump_above(signed.seq, now)
            elif age_s < self._max_age_s:
                known = Known(advert, now - age_s)
                fresh.append(_Entry(replace(signed, age_s=0.0), known))
                self._keep(fresh[-1])
        if newer_here:
            self._send_adverts(sender, newer_here, now)
        if fresh:
            for peer in self._links:
                if peer != sender:
                    self._send_adverts(peer, fresh, now)

    def _jump_above(self, seq: int, now: float) -> None:
        """Outrun an advert of ours from before a restart."""
        self._seq = max(self._seq, seq)
        self._is_stale = True
        self._originate_if_due(now)

    def _keep(self, entry: _Entry) -> None:
        origin = entry.signed.origin
        self._entries[origin] = entry
        self._changes[origin] = entry.known
        self._purge_at = min(self._purge_at, entry.known.born + self._max_age_s)

    def _accepted(self, sender: NodeId, signed: SignedAdvert) -> Advert | None:
        """Return the advert if it holds; else count it and return None."""
        try:
            return self._open(signed)
        except WireError:
            reason = "malformed"
        except SignatureError:
            reason = "signature"
        except LookupError:
            reason = "unknown-key"
        self.rejected[reason] += 1
        self._rejections.append(Rejection(sender, signed.origin, reason))
        return None

    def _open(self, signed: SignedAdvert) -> Advert:
        """Return the advert in `signed`.

        Raises:
            WireError: If the body is no advert.
            SignatureError: If key, name, number or signature do not fit.
            LookupError: If nobody may have this name, or one name more would be too many.
        """
        origin = signed.origin
        key: bytes | None = None
        if origin == self.node:
            key = self._identity.public_key
        elif self._known_keys is not None:
            key = self._known_keys[origin]
        elif origin in self._pinned:
            key = self._pinned[origin]
        elif len(self._pinned) >= MAX_ORIGINS:
            raise LookupError(origin)
        advert = _checked(replace(signed, age_s=0.0), key)
        if self._known_keys is None:
            self._pinned[origin] = advert.public_key
        return advert

    def _receive_summary(self, sender: NodeId, entries: Iterable[SummaryEntry], now: float) -> None:
        behind: list[NodeId] = []
        ahead: list[_Entry] = []
        for line in entries:
            held = self._entries.get(line.origin)
            if held is None or held.signed.seq < line.seq:
                behind.append(line.origin)
            elif held.signed.seq > line.seq:
                ahead.append(held)
        for start in range(0, len(behind), SUMMARY_BATCH):
            self._send(sender, Pull(tuple(behind[start : start + SUMMARY_BATCH])))
        self._send_adverts(sender, ahead, now)

    # --- ageing -------------------------------------------------------------------------------

    def _purge(self, now: float) -> None:
        self._purge_at = math.inf
        for origin, entry in list(self._entries.items()):
            if origin == self.node:
                continue
            expiry = entry.known.born + self._max_age_s * (2 if entry.gone else 1)
            if now >= expiry and entry.gone:
                del self._entries[origin]
                continue
            if now >= expiry:
                self._entries[origin] = replace(entry, gone=True)
                self._changes[origin] = None
                expiry += self._max_age_s
            self._purge_at = min(self._purge_at, expiry)

    # --- sending ------------------------------------------------------------------------------

    def _live(self) -> list[NodeId]:
        return sorted(origin for origin, entry in self._entries.items() if not entry.gone)

    def _send_summaries(self, peer: NodeId) -> None:
        live = self._live()
        for start in range(0, len(live), SUMMARY_BATCH):
            self._send_summary(peer, live[start : start + SUMMARY_BATCH])

    def _send_summary(self, peer: NodeId, origins: Iterable[NodeId]) -> None:
        lines = tuple(SummaryEntry(o, self._entries[o].signed.seq) for o in origins)
        self._send(peer, Summary(lines))

    def _send_adverts(self, peer: NodeId, entries: list[_Entry], now: float) -> None:
        for batch in _batches(entries):
            adverts = (replace(e.signed, age_s=e.known.age_s(now)) for e in batch)
            self._send(peer, Flood(tuple(adverts)))

    def _send(self, peer: NodeId, message: Message) -> None:
        self._outbox.append((peer, message))


def _batches(entries: list[_Entry]) -> Iterator[list[_Entry]]:
    for start in range(0, len(entries), FLOOD_BATCH):
        yield entries[start : start + FLOOD_BATCH]
