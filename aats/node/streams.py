"""Streams: frames between the tasks of nodes that do a visit together.

Theory of operation. The task of a visit *leads*; each partner's task *follows*. A task gives its
core whole frames (`TaskSpoke`) and gets whole frames (`TellTask`); the cores carry them as relays
of their own, signed like all others, in parts. The control lane may lose, double or reorder a
part, so parts are numbered per session and direction, acknowledged (by the next part the other
way, or after `ACK_S`), and sent again until they are. Only the opening travels until the partner
has acknowledged it: a partner that knows nothing of a session was restarted, and says so.

Whoever is in a session gives a sign of life every `alive_s`. One that is silent for `silence_s`
is lost: its task-mates are told, and wait for it no longer. So nothing hangs on a dead node; and
a script that waits for a living one has a time-out of its own.

Each message is counted once, times the links it crossed: by the leader what it sends and what it
gets, by a partner what it gets from other partners. Partners report to the leader as they speak.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

from aats.advert import Partner
from aats.errors import SignatureError, WireError
from aats.ids import NodeId
from aats.messages import Relay, StreamAck, StreamEnd, StreamFrame, StreamOpening
from aats.node.commands import CancelTask, TellTask
from aats.node.desk import RELAY_TTL, Desk
from aats.node.events import TaskSpoke
from aats.node.tasks import FollowTask, Lost, Spoken
from aats.packet import Header
from aats.payload import Manifest
from aats.wire import check_mandate, encode_message, sign_relay

PART_BYTES = 256 << 10
"""Tensors in one message: leaves the lane to others in between."""
WINDOW = 16
"""Parts on their way to one node, not acknowledged."""
ACK_S = 0.05
"""How long an acknowledgement waits for a frame to go with."""
RESEND_S = 0.5
"""Until a part is sent again, besides three times what the way takes; doubled each time."""
MAX_DOUBLINGS = 4
MAX_SESSIONS = 4
"""Followed at a time, half of them of one leader; further ones are refused."""
MAX_NUMBERS = 4096
"""Of one message: they take far more room here than on the wire."""
MAX_PARTNERS = 64
MAX_FRAME_BYTES = 48 << 20
MAX_QUEUED_BYTES = 256 << 20
"""Waiting for one receiver; one that keeps up so badly is lost."""
MAX_REPORTED = 1e15
"""Bytes or joules that a partner's word is taken for."""
JOULES = "joules"

Name = tuple[str, str, str, str]
"""A timer's: ("stream", what, session, node)."""


@dataclass(slots=True)
class StreamCost:
    """What a stream has cost so far."""

    bytes: float = 0.0
    """On the wire, times the links crossed."""
    joules: float = 0.0
    """Spent by partners, as they last reported."""
    links: dict[str, float] = field(default_factory=dict)
    """Those bytes by "sender>receiver"."""
    lost: tuple[NodeId, ...] = ()
    """Partners that did not stay to the end."""


@dataclass(slots=True)
class _Peer:
    """The other end of one direction each way."""

    heard_at: float
    waiting: deque[StreamFrame] = field(default_factory=deque)
    queued_bytes: int = 0
    """Waiting or on their way."""
    flight: dict[int, StreamFrame] = field(default_factory=dict)
    said_at: float = 0.0
    said: int = 0
    """Parts cut so far."""
    tries: int = 0
    is_open: bool = False
    """It has answered: more than the opening may travel."""
    is_active: bool = False
    """Something went or came: signs of life are due."""
    is_over: bool = False
    received: int = 0
    """Parts in order so far."""
    early: dict[int, StreamFrame] = field(default_factory=dict)
    parts: bytearray = field(default_factory=bytearray)
    """Tensors of the frame that is coming in."""
    wire_bytes: int = 0
    """The same on the wire."""
    owed: int = 0
    """Parts not acknowledged yet."""


@dataclass(slots=True)
class _Session:
    id: str
    leader: NodeId
    opening: StreamOpening
    peers: dict[NodeId, _Peer]
    began: float
    task: int = 0
    """0: a follower's that has not begun."""
    is_ending: bool = False
    """The task has ended; what it said last is still on its way."""
    links: Counter[str] = field(default_factory=Counter)
    joules: float = 0.0
    reported: dict[NodeId, dict[str, float]] = field(default_factory=dict)


class Streams:
    """Carries the frames of one node's tasks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._sessions: dict[str, _Session] = {}
        self._of_task: dict[int, str] = {}

    # --- tasks ---

    def lead(self, task: int, header: Header, partners: Sequence[Partner]) -> None:
        """Open a session for a visit that has just been started."""
        desk = self._desk
        about = replace(
            header, chain=(), journal=(), probed=(), skills=(), labels_used={},
            manifest=Manifest(), itinerary=(), signature=b"",
        )  # fmt: skip
        nodes = tuple(p.node for p in partners if p.node != desk.node)
        session = _Session(
            f"{desk.node}/{desk.incarnation}/{task}", desk.node, StreamOpening(about, nodes),
            {node: _Peer(desk.now) for node in nodes}, desk.now, task,
        )  # fmt: skip
        self._add(session)

    def _add(self, session: _Session) -> None:
        self._sessions[session.id] = session
        if session.task:
            self._of_task[session.task] = session.id
        self._set("pulse", session, "", self._desk.config.alive_s)

    def spoke(self, event: TaskSpoke) -> None:
        """Send what a task says on its way; to a node that is lost, or takes no part, nothing."""
        session = self._sessions.get(self._of_task.get(event.task, ""))
        if session is None:
            return
        said = event.frame
        session.joules = said.joules
        peer = session.peers.get(said.node)
        if peer is None or peer.is_over:
            return
        if not peer.is_active:
            peer.is_active, peer.heard_at = True, self._desk.now
        # Only a leader opens: whoever speaks to another partner finds it open, or is heard later.
        peer.is_open |= session.leader != self._desk.node
        cuts = range(0, max(1, len(said.tensors)), PART_BYTES)
        for start in cuts:
            last = start == cuts[-1]
            peer.waiting.append(
                StreamFrame(
                    peer.said, 0, said.kind,
                    said.manifest if last else Manifest(),
                    said.tensors[start : start + PART_BYTES],
                    said.numbers if last else {}, not last,
                    session.opening if peer.said == 0 and self._leads(session) else None,
                )
            )  # fmt: skip
            peer.said += 1
        peer.queued_bytes += len(said.tensors)
        if peer.queued_bytes > MAX_QUEUED_BYTES:
            self._lose(session, said.node, "it does not keep up")
        else:
            self._pump(session, said.node)

    def ended(self, task: int, reason: str = "") -> StreamCost:
        """Take note that a task has ended; return what its stream has cost.

        Args:
            task: Any task.
            reason: Why it failed; what it said last then goes no further.
        """
        session = self._sessions.get(self._of_task.pop(task, ""))
        if session is None:
            return StreamCost()
        session.is_ending = True
        lost = tuple(node for node, peer in session.peers.items() if peer.is_over)
        for node, peer in list(session.peers.items()):
            if reason:
                self._close(session, node, reason)
            elif not peer.flight and not peer.waiting:
                self._close(session, node, "")
        self._sweep(session)
        return self._cost(session, lost)

    def _leads(self, session: _Session) -> bool:
        return session.leader == self._desk.node

    def _cost(self, session: _Session, lost: tuple[NodeId, ...]) -> StreamCost:
        cost = StreamCost(links=dict(session.links), lost=lost)
        for account in session.reported.values():
            cost.joules += account.get(JOULES, 0.0)
            for link, size in account.items():
                if link != JOULES:
                    cost.links[link] = cost.links.get(link, 0.0) + size
        cost.bytes = sum(cost.links.values())
        return cost

    # --- sending ---

    def _pump(self, session: _Session, node: NodeId) -> None:
        peer = session.peers[node]
        window = WINDOW if peer.is_open else 1
        while peer.waiting and len(peer.flight) < window:
            part = peer.waiting.popleft()
            peer.flight[part.seq] = part
            self._send(session, node, part)
        self._await_ack(session, node)

    def _await_ack(self, session: _Session, node: NodeId) -> None:
        peer = session.peers[node]
        if not peer.flight:
            self._cancel("resend", session, node)
            return
        here, chart = self._desk.node, self._desk.map
        size = sum(len(part.tensors) for part in peer.flight.values())
        way_s = chart.transfer_s(here, chart.path(here, node, size), size)
        wait_s = RESEND_S * 2.0 ** min(peer.tries, MAX_DOUBLINGS)
        self._set("resend", session, node, wait_s + (3 * way_s if isfinite(way_s) else 0.0))

    def _send(self, session: _Session, node: NodeId, part: StreamFrame) -> None:
        peer = session.peers[node]
        body = replace(part, ack=peer.received, account=self._account(session, node))
        self._say(session, node, body)

    def _say(self, session: _Session, node: NodeId, body: StreamFrame | StreamAck) -> None:
        desk, peer = self._desk, session.peers[node]
        peer.said_at, peer.owed = desk.now, 0
        self._cancel("ack", session, node)
        relay = sign_relay(Relay(desk.node, node, session.id, RELAY_TTL, body), desk.identity)
        if self._leads(session):
            links = len(desk.map.path(desk.node, node, 0))
            session.links[f"{desk.node}>{node}"] += links * len(encode_message(relay))
        desk.route(relay)

    def _acknowledge(self, session: _Session, node: NodeId) -> None:
        ack = StreamAck(session.peers[node].received, self._account(session, node))
        self._say(session, node, ack)

    def _account(self, session: _Session, node: NodeId) -> dict[str, float]:
        """Return what a partner tells the leader, and nobody else."""
        if self._leads(session) or node != session.leader:
            return {}
        return {**session.links, **({JOULES: session.joules} if session.joules else {})}

    # --- receiving ---

    def receive(self, relay: Relay, body: StreamFrame | StreamAck | StreamEnd) -> None:
        """Take in what another node says of a session; its signature holds.

        Raises:
            SignatureError: If a mandate's does not.
            WireError: If there is more in it than a partner would say.
        """
        if isinstance(body, StreamFrame | StreamAck) and _numbers_of(body) > MAX_NUMBERS:
            raise WireError(f"{relay.src}: {_numbers_of(body)} numbers, allowed are {MAX_NUMBERS}")
        session = self._sessions.get(relay.request)
        if session is None and isinstance(body, StreamFrame) and body.opening is not None:
            session = self._open(relay, body.opening)
        elif session is None and not isinstance(body, StreamEnd) and self._is_known_to(relay):
            self._desk.say(relay.src, relay.request, StreamEnd("no such session"))
        if session is None or (peer := session.peers.get(relay.src)) is None or peer.is_over:
            return
        if not session.task and relay.src != session.leader:
            return  # the leader's first frame starts the task; others send theirs again
        peer.heard_at, peer.is_active = self._desk.now, True
        size = len(encode_message(relay))
        if self._leads(session) or relay.src != session.leader:
            links = max(1, RELAY_TTL - relay.ttl + 1)
            session.links[f"{relay.src}>{self._desk.node}"] += links * size
        match body:
            case StreamEnd(reason=reason):
                self._lose(session, relay.src, reason)
            case StreamAck():
                self._report(session, relay.src, body.account)
                self._acked(session, relay.src, body.ack)
            case StreamFrame():
                self._report(session, relay.src, body.account)
                self._acked(session, relay.src, body.ack)
                self._arrived(session, relay.src, body, size)

    def _is_known_to(self, relay: Relay) -> bool:
        """Return whether a session's leader is on either side: other partners may be early."""
        return relay.request.startswith((f"{relay.src}/", f"{self._desk.node}/"))

    def _report(self, session: _Session, node: NodeId, account: dict[str, float]) -> None:
        """Believe a partner as to its own links and joules, within bounds."""
        if account and self._leads(session):
            names = {JOULES} | {f"{other}>{node}" for other in session.peers}
            session.reported[node] = {
                name: min(value, MAX_REPORTED)
                for name, value in account.items()
                if name in names and value >= 0
            }

    def _acked(self, session: _Session, node: NodeId, ack: int) -> None:
        peer = session.peers[node]
        done = [seq for seq in peer.flight if seq < ack]
        for seq in done:
            peer.queued_bytes -= len(peer.flight.pop(seq).tensors)
        if done:
            peer.tries, peer.is_open = 0, True
            self._pump(session, node)
        if session.is_ending and not peer.flight and not peer.waiting:
            self._close(session, node, "")
            self._sweep(session)

    def _arrived(self, session: _Session, node: NodeId, part: StreamFrame, size: int) -> None:
        peer = session.peers[node]
        in_order = part.seq == peer.received
        if peer.received <= part.seq < peer.received + 2 * WINDOW:
            peer.early[part.seq] = part
            peer.wire_bytes += size
        while (ready := peer.early.pop(peer.received, None)) is not None:
            peer.received += 1
            peer.owed += 1
            self._take(session, node, ready)
            if peer.is_over:
                return
        if not in_order or part.seq == 0 or peer.owed >= WINDOW // 2:
            self._acknowledge(session, node)
        elif peer.owed and not self._desk.timers.is_set(_name("ack", session, node)):
            self._set("ack", session, node, ACK_S)

    def _take(self, session: _Session, node: NodeId, part: StreamFrame) -> None:
        peer = session.peers[node]
        peer.parts += part.tensors
        if len(peer.parts) > MAX_FRAME_BYTES:
            self._close(session, node, f"a frame of more than {MAX_FRAME_BYTES} bytes")
        elif not part.more and part.manifest.total != len(peer.parts):
            self._close(session, node, "a frame that does not fit its manifest")
        elif not part.more:
            tensors, wire_bytes = bytes(peer.parts), peer.wire_bytes
            peer.parts.clear()
            peer.wire_bytes = 0
            frame = Spoken(node, part.kind, part.manifest, tensors, part.numbers, wire_bytes)
            self._deliver(session, frame)

    def _deliver(self, session: _Session, frame: Spoken) -> None:
        desk = self._desk
        if session.task:
            desk.emit(TellTask(session.task, frame))
        else:
            opening = session.opening
            task = FollowTask(opening.header, session.leader, opening.partners, frame)
            session.task = desk.run("streams", session.id, task)
            self._of_task[session.task] = session.id

    def _open(self, relay: Relay, opening: StreamOpening) -> _Session | None:
        """Take part in a session, or say why not."""
        desk, header, leader = self._desk, opening.header, relay.src
        refusal = self._refusal(relay, opening)
        if refusal:
            desk.say(leader, relay.request, StreamEnd(refusal))
            desk.trace("stream.refused", packet=header.id, leader=leader, reason=refusal)
            return None
        for former in list(self._sessions.values()):
            if former.leader == leader and former.opening.header.id == header.id:
                self._abandon(former)  # its leader has begun anew
        others = dict.fromkeys((leader, *(n for n in opening.partners if n != desk.node)))
        session = _Session(
            relay.request, leader, opening, {node: _Peer(desk.now) for node in others}, desk.now
        )
        self._add(session)
        desk.trace("stream.joined", packet=header.id, hop=header.hop, leader=leader)
        return session

    def _refusal(self, relay: Relay, opening: StreamOpening) -> str:
        desk, header = self._desk, opening.header
        owner, news = header.mandate.owner, desk.news.of(header)
        if not relay.request.startswith(f"{relay.src}/"):
            return "only a leader opens a session"
        if desk.is_leaving:
            return "the node is leaving"
        if not desk.config.policy.streams:
            return "privacy: this node works with packets that come to it only"
        if len(opening.partners) > MAX_PARTNERS or desk.node not in opening.partners:
            return f"a session of {len(opening.partners)} partners"
        if desk.key_of(owner.node) not in (owner.public_key, None):
            return f"{owner.node} is known by another key"
        if news.done or header.epoch < news.epoch:
            return "the packet is home" if news.done else f"epoch {news.epoch} is alive"
        following = [
            s for s in self._sessions.values()
            if not self._leads(s) and (s.leader, s.opening.header.id) != (relay.src, header.id)
        ]  # fmt: skip
        of_leader = [s for s in following if s.leader == relay.src]
        if len(following) >= MAX_SESSIONS or len(of_leader) >= MAX_SESSIONS // 2:
            return f"busy: it takes part in {len(following)} sessions"
        try:
            check_mandate(header.mandate)
        except SignatureError as error:
            return str(error)
        return ""

    # --- the end of things ---

    def _lose(self, session: _Session, node: NodeId, reason: str) -> None:
        """Tell the task that a node will say no more."""
        self._forget(session, node)
        header = session.opening.header
        if reason and not session.is_ending:
            self._desk.trace(
                "stream.lost", packet=header.id, hop=header.hop, partner=node, reason=reason[:300]
            )
        if session.task and not session.is_ending:
            self._desk.emit(TellTask(session.task, Lost(node)))
        elif node == session.leader:
            self._abandon(session)
        self._sweep(session)

    def _close(self, session: _Session, node: NodeId, reason: str) -> None:
        """Tell a node that we say no more to it, and listen no more."""
        peer = session.peers[node]
        if not peer.is_over and peer.is_active:
            self._desk.say(node, session.id, StreamEnd(reason[:300]))
        if not session.is_ending:
            self._lose(session, node, reason)
        else:
            self._forget(session, node)

    def _forget(self, session: _Session, node: NodeId) -> None:
        peer = session.peers[node]
        peer.is_over = True
        peer.waiting.clear()
        peer.flight.clear()
        peer.early.clear()
        peer.parts.clear()
        self._cancel("resend", session, node)
        self._cancel("ack", session, node)

    def _abandon(self, session: _Session) -> None:
        """Drop a session whose task is of no use any more."""
        if session.task and not session.is_ending:
            self._of_task.pop(session.task, None)
            self._desk.tasks.pop(session.task, None)
            self._desk.emit(CancelTask(session.task))
        session.is_ending = True
        for node in session.peers:
            self._close(session, node, "the session is over")
        self._sweep(session)

    def _sweep(self, session: _Session) -> None:
        if session.is_ending and all(peer.is_over for peer in session.peers.values()):
            self._cancel("pulse", session, "")
            self._sessions.pop(session.id, None)

    # --- time ---

    def timer(self, what: str, session_id: str, node: NodeId) -> None:
        """Do what is due: send again, acknowledge, or give a sign of life."""
        session = self._sessions.get(session_id)
        if session is None:
            return
        if what == "pulse":
            self._pulse(session)
        elif what == "ack":
            self._acknowledge(session, node)
        else:
            peer = session.peers[node]
            peer.tries += 1
            for part in list(peer.flight.values()):
                self._send(session, node, part)
            self._await_ack(session, node)

    def _pulse(self, session: _Session) -> None:
        config, now = self._desk.config, self._desk.now
        if session.task and not session.is_ending and session.task not in self._desk.tasks:
            self._of_task.pop(session.task, None)
            self._abandon(session)  # the core has dropped the visit
            return
        if not session.task and now - session.began > config.task_timeout_s:
            self._abandon(session)  # its leader says that it lives, and never what to do
            return
        for node, peer in list(session.peers.items()):
            if peer.is_over or not peer.is_active:
                continue
            if now - peer.heard_at > config.silence_s:
                self._lose(session, node, "silent")
            elif now - peer.said_at >= config.alive_s and (peer.is_open or peer.received):
                self._acknowledge(session, node)
        if session.id in self._sessions:
            self._set("pulse", session, "", config.alive_s)

    def _set(self, what: str, session: _Session, node: str, wait_s: float) -> None:
        self._desk.timers.set(_name(what, session, node), self._desk.now + wait_s)

    def _cancel(self, what: str, session: _Session, node: str) -> None:
        self._desk.timers.cancel(_name(what, session, node))


def _numbers_of(body: StreamFrame | StreamAck) -> int:
    """Return how many numbers a message has, its account's with them."""
    return len(body.account) + (len(body.numbers) if isinstance(body, StreamFrame) else 0)


def _name(what: str, session: _Session, node: str) -> Name:
    return ("stream", what, session.id, node)
