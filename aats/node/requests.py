"""Requests between nodes that are no neighbours: probes asked and answered, samples given.

They travel as `Relay` messages, forwarded by the map; they may be lost, and whoever asked asks
again or does without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aats.advert import ProbeMode, Role
from aats.errors import SignatureError
from aats.ids import CustodyKey, NodeId
from aats.messages import (
    ProbeAsk,
    ProbeReply,
    Relay,
    RelayBody,
    Samples,
    SamplesAck,
    StreamAck,
    StreamEnd,
    StreamFrame,
    Whereabouts,
)
from aats.node.commands import SendProbe
from aats.node.desk import RELAY_TTL, Desk
from aats.node.tasks import (
    AdoptResult,
    AdoptTask,
    BatchTask,
    ContributeResult,
    ContributeTask,
    ProbeResult,
    ProbeTask,
    Result,
)
from aats.wire import check_relay

RELAY_BYTES = 400
"""Size of a request without tensors, for the packet's account."""
MAX_ANSWERING = 32
"""Requests worked on at a time; further ones are refused, not queued without bound."""
MAX_ADOPTING = 8
"""Samples (each up to a message's size) being taken in; who gave more gives again later."""

ReplyHandler = Callable[[str, NodeId, ProbeReply], None]
SeenHandler = Callable[[CustodyKey, NodeId], None]
StreamHandler = Callable[[Relay, StreamFrame | StreamAck | StreamEnd], None]


class Requests:
    """Asks, answers and forwards requests for one node."""

    def __init__(
        self, desk: Desk, on_reply: ReplyHandler, on_seen: SeenHandler, on_stream: StreamHandler
    ) -> None:
        self._desk = desk
        self._on_reply, self._on_seen, self._on_stream = on_reply, on_seen, on_stream
        self._given: dict[tuple[str, NodeId], int] = {}
        """(purpose, receiver) -> incarnation that has acknowledged our samples."""
        self._giving: set[tuple[str, NodeId]] = set()
        self._answering = 0
        self._adopting: set[tuple[str, NodeId]] = set()

    # --- asking ---

    def ask_probe(self, request: str, to: NodeId, ask: ProbeAsk, source: CustodyKey | None) -> bool:
        """Send a probe; return whether there is a way.

        Args:
            request: Comes back with the reply.
            to: Who is to answer.
            ask: Without tensors.
            source: Whose model and reference set go along; None where the node hands out a
                minibatch instead.
        """
        path = self._desk.map.path(self._desk.node, to, 0)
        if not path or path[0] not in self._desk.neighbours:
            return False
        relay = Relay(self._desk.node, to, request, RELAY_TTL, ask)
        if source is None:
            self._desk.send(path[0], relay)
        else:
            self._desk.emit(SendProbe(path[0], relay, source))
        return True

    # --- receiving ---

    def receive(self, relay: Relay) -> None:
        """Forward a request, or take it in if it is for us."""
        if relay.dst != self._desk.node:
            self._forward(relay)
            return
        if isinstance(relay.body, ProbeAsk):
            self._answer_probe(relay, relay.body)
            return
        public_key = self._desk.key_of(relay.src)
        if public_key is None:
            raise SignatureError(f"{relay.src} speaks, of whom no key is known")
        check_relay(relay, public_key)
        match relay.body:
            case ProbeReply():
                self._on_reply(relay.request, relay.src, relay.body)
            case Samples():
                self._adopt(relay, relay.body)
            case Whereabouts(key=key):
                self._on_seen(key, relay.src)
            case StreamFrame() | StreamAck() | StreamEnd():
                self._on_stream(relay, relay.body)
            case SamplesAck(purpose=purpose, incarnation=incarnation) if (
                purpose,
                relay.src,
            ) in self._giving:
                self._given[purpose, relay.src] = incarnation
                self._giving.discard((purpose, relay.src))
                self._desk.timers.cancel(("give", purpose, relay.src))

    def _forward(self, relay: Relay) -> None:
        if relay.ttl > 0:
            self._desk.route(replace(relay, ttl=relay.ttl - 1))

    def _reply(self, relay: Relay, body: RelayBody) -> None:
        self._desk.say(relay.src, relay.request, body)

    def _answer_probe(self, relay: Relay, ask: ProbeAsk) -> None:
        mode = self._mode(ask.data_of)
        if mode is ProbeMode.NONE:
            self._reply(relay, ProbeReply(refused="this node answers no probes"))
        elif self._answering >= MAX_ANSWERING:
            self._reply(relay, ProbeReply(refused="busy"))
        else:
            self._answering += 1
            task = BatchTask(ask) if mode is ProbeMode.MINIBATCH else ProbeTask(ask)
            self._desk.run("requests", relay, task)

    def _mode(self, data_of: NodeId) -> ProbeMode:
        """Return how data may be probed here; entrusted ones are never handed out raw."""
        if data_of in ("", self._desk.node):
            return self._desk.config.policy.probe
        advert = self._desk.map.advert(data_of)
        allowed = advert is not None and advert.policy.probe is not ProbeMode.NONE
        return ProbeMode.SCORE if allowed else ProbeMode.NONE

    def _adopt(self, relay: Relay, samples: Samples) -> None:
        what = samples.purpose, relay.src
        is_full = len(self._adopting) >= MAX_ADOPTING or what in self._adopting
        if samples.incarnation != self._desk.incarnation or is_full:
            return
        if not self._is_meant_for_us(*what):
            self._desk.trace("samples.refused", giver=relay.src, note="it advertises no such gift")
            return
        self._adopting.add(what)
        self._desk.run("requests", relay, AdoptTask(relay.src, samples))

    def _is_meant_for_us(self, purpose: str, giver: NodeId) -> bool:
        """Return whether the giver's own advert says that it gives us samples for this."""
        here, advert = self._desk.node, self._desk.map.advert(giver)
        if advert is None:
            return False
        if purpose == "verify":
            return Role.MPVU in self._desk.config.roles and here in advert.policy.contributes_to
        return purpose == "train" and any(data.delegate == here for data in advert.data)

    # --- outcomes of our tasks ---

    def finished(self, about: object, result: Result) -> None:
        """Take the result of a task this part started."""
        match about, result:
            case Relay(body=ProbeAsk()) as relay, ProbeResult(reply=reply):
                self._answering -= 1
                self._reply(relay, reply)
            case Relay(body=Samples()) as relay, AdoptResult():
                body = relay.body
                assert isinstance(body, Samples)
                self._adopting.discard((body.purpose, relay.src))
                if not result.accepted:
                    self._desk.trace("samples.refused", giver=relay.src, note=result.note)
                self._reply(relay, SamplesAck(body.purpose, body.incarnation))
            case (str(purpose), str(receiver)), ContributeResult(samples=samples):
                self._give(purpose, NodeId(receiver), samples)
            case _:
                raise AssertionError(f"result {type(result).__name__} for {about!r}")

    def failed(self, about: object, reason: str) -> None:
        """Take the failure of a task this part started."""
        match about:
            case Relay(body=ProbeAsk()) as relay:
                self._answering -= 1
                self._reply(relay, ProbeReply(refused=f"probe failed: {reason}"))
            case Relay(body=Samples(purpose=purpose)) as relay:
                self._adopting.discard((purpose, relay.src))
            case (str(purpose), str(receiver)):
                self._giving.discard((purpose, NodeId(receiver)))
        self._desk.trace("request.failed", reason=reason)

    # --- giving samples ---

    def give_samples(self) -> None:
        """Start or repeat contributions to MPVUs and trusted compute nodes that lack ours."""
        config = self._desk.config
        wanted = [("verify", m) for m in config.policy.contributes_to]
        wanted += [("train", d) for d in dict.fromkeys(x.delegate for x in config.data) if d]
        for purpose, receiver in wanted:
            incarnation = self._incarnation(receiver)
            if incarnation is None or self._given.get((purpose, receiver)) == incarnation:
                continue
            if (purpose, receiver) not in self._giving:
                self._giving.add((purpose, receiver))
                task = ContributeTask(purpose, receiver, incarnation)
                self._desk.run("requests", (purpose, receiver), task)

    def _incarnation(self, node: NodeId) -> int | None:
        if node == self._desk.node:
            return self._desk.incarnation
        advert = self._desk.map.advert(node)
        reachable = advert and self._desk.map.path(self._desk.node, node, 0)
        return advert.incarnation if advert and reachable else None

    def _give(self, purpose: str, receiver: NodeId, samples: Samples) -> None:
        request = f"samples/{purpose}"
        if receiver == self._desk.node:
            self._given[purpose, receiver] = samples.incarnation
            self._giving.discard((purpose, receiver))
            self._adopt(Relay(receiver, receiver, request, 0, samples), samples)
            return
        self._desk.say(receiver, request, samples)
        at = self._desk.now + self._desk.config.contribute_s
        self._desk.timers.set(("give", purpose, receiver), at)

    def give_again(self, purpose: str, receiver: NodeId) -> None:
        """Repeat a contribution that was not acknowledged (its timer fell due)."""
        self._giving.discard((purpose, receiver))
        self.give_samples()
