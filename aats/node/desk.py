"""What the parts of a node core share: configuration, knowledge, the commands being gathered."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from aats.advert import Advert, ComputeAdvert, DataAdvert, NodePolicy, Notice, Role
from aats.identity import Identity
from aats.ids import NodeId, PacketId
from aats.messages import Message, Relay, RelayBody
from aats.node.commands import Command, RunTask, SaveState, SendMessage, Trace
from aats.node.news import NewsBook
from aats.node.tasks import BatchTask, ProbeTask, Task
from aats.node.timers import Timers
from aats.packet import Header, Plugin
from aats.routing.agent import Agent
from aats.routing.policy import RoutePolicy
from aats.routing.rendezvous import Rendezvous
from aats.topology.linkstate import LinkState
from aats.topology.map import GlobalMap
from aats.wire import sign_relay

RELAY_TTL = 64
"""Links a request may cross; far above the diameter of any area."""
NOTICES_KEPT = 256
"""Newest notices of our own that our advert repeats; bounds the advert (about 60 bytes each)."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Settings of one node core. Times in seconds."""

    node: NodeId
    roles: tuple[Role, ...] = ()
    data: tuple[DataAdvert, ...] = ()
    compute: ComputeAdvert = ComputeAdvert()
    policy: NodePolicy = NodePolicy()
    known_keys: Mapping[NodeId, bytes] = field(default_factory=dict)
    """Ed25519 keys by node id; an advert or a header under another key is refused."""
    labels: dict[str, str] = field(default_factory=dict)
    settle_s: float = 0.5
    """A packet leaves its owner only when nothing new has come into the map for so long."""
    max_packets: int = 8
    """Packets held at a time; further offers are refused as `full`."""
    cached_copies: int = 4
    """Copies kept only for their tensors, newest first."""
    query_budget: int = 40
    """Verdicts an MPVU gives one packet, lest it trains against the test set."""
    offer_timeout_s: float = 1.0
    """Until an unanswered offer is repeated; doubled each time."""
    offer_tries: int = 4
    transfer_timeout_s: float = 15.0
    """Until a transfer without a custody acknowledgement is offered again."""
    restart_s: float = 3.0
    """Until a neighbour whose link went down in the middle of a transfer is given up."""
    avoid_s: float = 15.0
    """How long a stop that refused or did not answer is left out."""
    retry_s: float = 0.5
    """Until a packet that found no way tries again; doubled up to 8 s."""
    alive_s: float = 2.0
    """Between two signs of life to the holder of the spare."""
    silence_s: float = 10.0
    """Without a sign of life until the custodian is asked."""
    silence_tries: int = 3
    """Unanswered questions, `alive_s` apart, until the spare is taken back."""
    probe_timeout_s: float = 5.0
    probe_max_bytes: int = 1 << 20
    """Model and reference set together; larger models are not sent to be probed."""
    task_timeout_s: float = 300.0
    """Limit of one visit, verification or probe."""
    follow_s: float = 60.0
    """Between two words to the owner of where its packet is, while it stays."""
    lost_s: float = 600.0
    """Without a word of its packet until the owner sends it out again from the start."""
    contribute_s: float = 3.0
    """Until unacknowledged samples are sent again."""


class Desk:
    """Shared state of one node core. Its parts write commands here; the core hands them out."""

    def __init__(
        self,
        config: CoreConfig,
        identity: Identity,
        policies: Callable[[Plugin], RoutePolicy],
        agents: Callable[[str], Agent],
        rendezvous: Callable[[Plugin], Rendezvous],
    ) -> None:
        self.config = config
        self.identity = identity
        self.policies = policies
        self.agents = agents
        self.rendezvous = rendezvous
        self.links = LinkState(identity, known_keys=dict(config.known_keys) or None)
        self.map = GlobalMap(config.node)
        self.timers = Timers()
        self.now = 0.0
        self.commands: list[Command] = []
        self.neighbours: dict[NodeId, float] = {}
        """Live neighbours and when each came up."""
        self.news = NewsBook()
        self.own_notices: dict[PacketId, Notice] = {}
        self.tasks: dict[int, tuple[str, object]] = {}
        """Running tasks: who waits for it ("journey" or "requests"), and for what."""
        self.last_task = 0
        self.incarnation = 0
        self.seen_links: set[tuple[NodeId, NodeId]] = set()
        """Links of the map, now or formerly, by both ends; of a node itself the node twice."""
        self.grew_at = 0.0
        """When a node or a link was last seen for the first time."""
        self.is_leaving = False
        """It offers nothing more and takes only what is coming home."""

    @property
    def node(self) -> NodeId:
        """This node."""
        return self.config.node

    def emit(self, command: Command) -> None:
        """Add a command."""
        self.commands.append(command)

    def send(self, to: NodeId, message: Message) -> None:
        """Send a message to a neighbour; to one that is down it is not even tried."""
        if to in self.neighbours:
            self.emit(SendMessage(to, message))

    def say(self, to: NodeId, request: str, body: RelayBody) -> None:
        """Send a signed request or answer to any node."""
        self.route(sign_relay(Relay(self.node, to, request, RELAY_TTL, body), self.identity))

    def route(self, relay: Relay) -> None:
        """Send a request on its way by the map; without a way it is lost."""
        path = self.map.path(self.node, relay.dst, 0)
        if path:
            self.send(path[0], relay)

    def trace(self, event: str, **fields: object) -> None:
        """Add a trace event."""
        self.emit(Trace(event, fields))

    def run(self, waiter: str, about: object, task: Task) -> int:
        """Start a task; the part called `waiter` gets its outcome with `about`.

        A probe gets no longer than whoever asked will wait for it.
        """
        self.last_task += 1
        self.tasks[self.last_task] = (waiter, about)
        is_probe = isinstance(task, ProbeTask | BatchTask)
        limit_s = self.config.probe_timeout_s if is_probe else self.config.task_timeout_s
        self.emit(RunTask(self.last_task, task, limit_s))
        return self.last_task

    def key_of(self, node: NodeId) -> bytes | None:
        """Return a node's Ed25519 key: configured, else from its advert, else None."""
        known = self.config.known_keys.get(node)
        if known is not None:
            return known
        advert = self.map.advert(node)
        return advert.public_key if advert else None

    def decision_rng(self, header: Header, what: str) -> random.Random:
        """Return the random source of one decision: the same in every world."""
        seed = f"{header.mandate.seed}{header.branch}"
        return random.Random(f"{seed}/{header.hop}/{header.epoch}/{what}")

    def notice(self, packet: PacketId, epoch: int, *, done: bool) -> None:
        """Tell the network which epoch of a packet is alive, or that it is home."""
        self.own_notices.pop(packet, None)
        self.own_notices[packet] = Notice(packet, epoch, done)
        while len(self.own_notices) > NOTICES_KEPT:
            self.own_notices.pop(next(iter(self.own_notices)))
        self.emit(SaveState("notices", encode_notices(self.own_notices.values())))
        self.news.know(packet, epoch, done=done)
        self.advertise()

    def advertise(self) -> None:
        """Originate our advert anew if its content changed."""
        config = self.config
        if self.is_leaving:
            config = replace(config, roles=(), data=(), compute=ComputeAdvert())
        self.links.set_own(
            Advert(
                origin=config.node,
                seq=0,
                public_key=self.identity.public_key,
                roles=config.roles,
                data=config.data,
                compute=config.compute,
                policy=config.policy,
                notices=tuple(self.own_notices.values()),
                incarnation=self.incarnation,
                labels=config.labels,
            ),
            self.now,
        )


def encode_notices(notices: object) -> bytes:
    """Return notices as lines "packet epoch done", for the durable state."""
    lines = [f"{n.packet} {n.epoch} {int(n.done)}" for n in notices]  # type: ignore[attr-defined]
    return "\n".join(lines).encode()


def decode_notices(blob: bytes) -> list[Notice]:
    """Return the notices that `encode_notices` wrote."""
    fields = [line.split() for line in blob.decode().splitlines()]
    return [Notice(PacketId(p), int(e), bool(int(d))) for p, e, d in fields]
