"""Packets come home whatever crashes, drops, doubles or parts: random schedules, small worlds."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import networkx as nx
import pytest

from aats.advert import Role
from aats.ids import NodeId
from aats.ledger.record import check_chain
from aats.lineage import Record, RecordKind
from aats.messages import Accept, Custody, Message, Offer
from aats.node.commands import Command, RunTask, SaveCustody, SendMessage, SendPacket
from aats.node.events import Event
from aats.node.tasks import MergeTask, VisitTask
from aats.packet import Header
from aats.replay import Divergence, EventLog, replay
from aats.routing.agent import Action, Agent
from aats.routing.policy import Choice, Observation
from aats.sim.link import LinkSpec
from aats.sim.node import SimulatedNode
from aats.testing.worlds import SHAPES, SmallWorld, small_world, tally_packet

QUICK, FULL = 60, 500
LIMIT_S = 4000.0
AFTER_S = 40.0
"""How long a world runs on after the packet is home, for a second delivery to show."""


class Wanderer:
    """Picks any legal stop."""

    name = "random"

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        return observation.legal()[:1] if rng.random() < 0.2 else []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        return Choice(rng.choice(observation.legal()), "any")


class Plain:
    """Trains where there is data, verifies where that is done, ends at its owner."""

    name = "train"

    def arrive(
        self, header: Header, roles_here: Collection[Role], has_wanted_data: bool, now: float
    ) -> Action:
        if Role.OWNER in roles_here:
            return Action.FINISH if header.requirement_met or header.hops_left < 2 else Action.PASS
        if Role.MPVU in roles_here:
            return Action.VERIFY
        return Action.TRAIN if has_wanted_data else Action.PASS


class Idle(Plain):
    """Works at every fourth hop only: so many nodes have all that they are offered."""

    def arrive(
        self, header: Header, roles_here: Collection[Role], has_wanted_data: bool, now: float
    ) -> Action:
        action = super().arrive(header, roles_here, has_wanted_data, now)
        return Action.PASS if action is Action.TRAIN and header.hop % 4 else action


def make(
    pairs: list[tuple[int, int]],
    seed: int,
    link: LinkSpec,
    agent: Callable[[], Agent] = Plain,
    **more: object,
) -> SmallWorld:
    return small_world(
        pairs,
        policies=lambda plugin: Wanderer(),
        agents=lambda kind: agent(),
        seed=seed,
        link=link,
        **more,  # type: ignore[arg-type]
    )


A, B = NodeId("a"), NodeId("b")


def crash_at(moment: str, count: int, back_s: float, victims: set[NodeId], small: SmallWorld):
    """A hook that crashes a node the `count`-th time a moment comes, and restarts it later."""
    left = [count]

    def is_it(what: Event | Command | None) -> bool:
        match moment, what:
            case "offered", SendMessage(message=Offer()):
                return True
            case "sending", SendPacket():
                return True
            case "stored", SaveCustody(row=row):
                return row.status == "held"
            case "working", RunTask():
                return True
            case "worked", SaveCustody(row=row):
                return row.status == "worked" and bool(row.chosen)
            case "acknowledged", SendMessage(message=Custody()):
                return True
            case "released", SaveCustody(row=row):
                return row.status == "spare"
            case "regenerated", SaveCustody(row=row):
                return row.header.epoch > row.key.epoch
            case "home", SaveCustody(row=row):
                return row.status == "home"
            case "forked", SaveCustody(children=children):
                return bool(children)
            case "resting", SaveCustody(row=row):
                return row.status == "resting"
            case "merging", RunTask(task=task):
                return isinstance(task, MergeTask)
            case "merged", SaveCustody(dropped=dropped):
                return bool(dropped)
            case "any", _:
                return True
            case _:
                return False

    def hook(node: SimulatedNode, what: Event | Command | None) -> None:
        if left[0] and node.is_up and node.node in victims and is_it(what):
            left[0] -= 1
            if not left[0]:
                small.world.crash(node.node)
                small.world.restart(node.node, small.world.now + back_s)

    return hook


MOMENTS = ("offered", "sending", "stored", "working", "worked", "acknowledged", "released",
           "regenerated", "home")  # fmt: skip


def schedule(seed: int, moments: Sequence[str] = MOMENTS, **more: object) -> SmallWorld:
    """A small world with everything that goes wrong in it.

    A node (never the owner) may die for good, and any number may be away for a while: no packet
    is lost, even if a node dies for good just when it has taken back a spare from one that was
    away. Then its owner sends it out again.
    """
    rng = random.Random(f"schedule/{seed}")
    shape = rng.choice(sorted(SHAPES))
    count = rng.randint(4, 8)
    pairs = SHAPES[shape](count)
    link = LinkSpec(
        A, B, rng.choice([1e5, 1e6, 1e7]), rng.choice([0.001, 0.02, 0.2]),
        loss=rng.choice([0.0, 0.05, 0.2]), duplicate=rng.choice([0.0, 0.1]),
        jitter_s=rng.choice([0.0, 0.1]), reorder=rng.choice([0.0, 0.1]),
    )  # fmt: skip
    transit = [2] if rng.random() < 0.3 and count > 5 else []
    small = make(pairs, seed, link, transit=transit, **more)
    world, nodes = small.world, small.nodes
    graph = nx.Graph(pairs)
    mortal = [i for i in range(1, count) if i not in set(nx.articulation_points(graph))]
    dies = bool(mortal) and rng.random() < 0.4
    if dies:
        world.crash(nodes[rng.choice(mortal)], rng.uniform(0.0, 60.0), for_good=True)
        if rng.random() < 0.5:
            return small
    for _ in range(rng.randint(0, 3)):
        at = rng.uniform(0.0, 60.0)
        node = rng.choice(nodes)
        world.crash(node, at)
        world.restart(node, at + rng.uniform(0.2, 40.0))
    for _ in range(rng.randint(0, 2)):
        moment, nth = rng.choice(moments), rng.randint(1, 6)
        world.hooks.append(crash_at(moment, nth, rng.uniform(0.2, 40.0), set(nodes), small))
    if rng.random() < 0.5:
        nth = rng.randint(1, 3000)
        world.hooks.append(crash_at("any", nth, rng.uniform(0.2, 40.0), set(nodes), small))
    for _ in range(rng.randint(0, 2)):
        at = rng.uniform(0.0, 60.0)
        group = rng.sample(nodes, rng.randint(1, count - 1))
        world.partition(group, at, at + rng.uniform(0.5, 40.0))
    return small


def run_home(small: SmallWorld, seed: int) -> None:
    """Run a packet until it is home and a while longer; check what must hold then."""
    world = small.world
    header, payload = tally_packet(small, seed=seed, budget=BUDGET)
    world.submit(small.owner, header, payload, at=1.0)
    world.start()
    assert world.run(LIMIT_S, lambda: bool(world.deliveries)), "the packet did not come home"
    world.run(world.now + AFTER_S)
    assert len(world.deliveries) == 1
    check_effects(small)
    for delivery in world.deliveries:
        check_lineage(small, delivery.header)


BUDGET = tally_packet.__kwdefaults__["budget"]


def check_lineage(small: SmallWorld, home: Header) -> None:
    keys = {node: identity.public_key for node, identity in small.identities.items()}
    check_chain(home.chain, keys)
    assert home.chain[0].kind is RecordKind.INIT
    assert home.chain[-1].kind is RecordKind.HOME
    effects = [r for r in home.chain if r.kind in (RecordKind.TRAIN, RecordKind.ROLLED_BACK)]
    assert len({r.hop for r in effects}) == len(effects), "a hop took effect twice"


def check_effects(small: SmallWorld) -> None:
    everywhere: dict[str, Record] = {}
    for node in small.world.nodes.values():
        everywhere.update(node.store.records)
    trained = [r for r in everywhere.values() if r.kind is RecordKind.TRAIN]
    counts = Counter((r.packet, r.branch, r.hop, r.epoch) for r in trained)
    assert max(counts.values(), default=0) <= 1, "a (packet, hop, epoch) took effect twice"


def test_a_packet_on_a_quiet_network_comes_home_with_its_requirement_met() -> None:
    small = make(SHAPES["ring"](6), 0, LinkSpec(A, B, 1e7, 0.02))
    run_home(small, 0)
    (delivery,) = small.world.deliveries
    assert delivery.header.requirement_met
    assert delivery.at < 60.0


def test_a_node_with_a_newer_copy_keeps_none_for_its_tensors() -> None:
    small = make(SHAPES["ring"](4), 3, LinkSpec(A, B, 1e7, 0.02))
    kept: list[tuple[NodeId, list[str]]] = []

    def hook(node: SimulatedNode, what: Event | Command | None) -> None:
        if isinstance(what, RunTask) and isinstance(what.task, VisitTask):
            kept.append((node.node, [row.status for row in node.store.rows.values()]))

    small.world.hooks.append(hook)
    run_home(small, 3)
    assert max(Counter(node for node, _ in kept).values()) > 1, "no node was visited twice"
    assert not any("cached" in statuses for _, statuses in kept)


@pytest.mark.parametrize("seed", range(QUICK))
def test_a_packet_comes_home_under_any_schedule(seed: int) -> None:
    small = schedule(seed)
    run_home(small, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(QUICK, FULL))
def test_a_packet_comes_home_under_many_more_schedules(seed: int) -> None:
    small = schedule(seed)
    run_home(small, seed)


def deafen(small: SmallWorld, seed: int, until_s: float = 300.0) -> None:
    """Let now one, now another node's accepts and custodies come to nobody for a while."""
    rng, world = random.Random(f"deaf/{seed}"), small.world
    send, spells = world.send, dict[tuple[NodeId, NodeId], float]()

    def lossy(sender: NodeId, to: NodeId, message: Message) -> None:
        if isinstance(message, Accept | Custody) and world.now < until_s:
            if rng.random() < 0.1:
                spells[sender, to] = world.now + 60.0
            if spells.get((sender, to), 0.0) > world.now:
                return
        send(sender, to, message)

    world.send = lossy  # type: ignore[method-assign]


def run_idle(seed: int) -> tuple[int, int]:
    """Run a packet that changes rarely and whose senders are deaf; count what changes hands.

    Returns:
        Transfers begun, and those of them whose receiver lacked nothing.
    """
    small = schedule(seed, agent=Idle)
    deafen(small, seed)
    lacking: list[int] = []

    def count(node: SimulatedNode, what: Event | Command | None) -> None:
        if isinstance(what, SendPacket):
            lacking.append(len(what.manifest.missing(what.known)))

    small.world.hooks.append(count)
    run_home(small, seed)
    return len(lacking), lacking.count(0)


@pytest.mark.parametrize("seed", range(QUICK // 6))
def test_a_packet_whose_receivers_lack_nothing_comes_home(seed: int) -> None:
    run_idle(seed)


def test_receivers_that_lack_nothing_are_common_where_a_packet_changes_rarely() -> None:
    begun, whole = run_idle(0)
    assert whole > begun / 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(QUICK // 6, FULL))
def test_a_packet_whose_receivers_lack_nothing_comes_home_under_many_more(seed: int) -> None:
    run_idle(seed)


@pytest.mark.parametrize("seed", range(3))
def test_one_seed_gives_one_trace(seed: int) -> None:
    traces = []
    for _ in range(2):
        small = schedule(seed)
        run_home(small, seed)
        traces.append("\n".join(small.world.lines))
    assert traces[0] == traces[1]


@pytest.mark.parametrize("seed", range(3))
def test_a_core_is_rebuilt_from_its_event_log(seed: int, tmp_path) -> None:
    small = schedule(seed)
    small.world.logs.update((node, EventLog()) for node in small.nodes)
    run_home(small, seed)
    for name, node in small.world.nodes.items():
        path = tmp_path / name
        small.world.logs[name].save(path)
        core = replay(EventLog.load(path), node.parts.make_core)
        assert not isinstance(core, Divergence), core
        if node.core is not None:
            assert core.snapshot() == node.core.snapshot()
