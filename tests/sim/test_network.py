"""The world's machinery, under cores that only say what they are told to."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from aats.errors import ModelError
from aats.ids import CustodyKey, NodeId, PacketId
from aats.messages import Alive, Message, Samples
from aats.node.commands import (
    CancelTask,
    Command,
    ExpectPacket,
    RunTask,
    SaveState,
    SendMessage,
    SendPacket,
    Trace,
)
from aats.node.events import (
    Event,
    LinkDown,
    LinkUp,
    MessageReceived,
    PacketReceived,
    Started,
    TaskFailed,
    TaskFinished,
    TransferFailed,
)
from aats.node.pace import Pace
from aats.node.tasks import AdoptResult, AdoptTask
from aats.payload import Payload, pack
from aats.sim.link import LinkSpec
from aats.sim.network import SimulatedWorld
from aats.sim.node import NodeParts
from aats.sim.talk import Work

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
PACKET = PacketId("01890a5d-ac96-7000-8000-000000000001")
KEY = CustodyKey(PACKET, 1)
Reply = Callable[[Event | None, float], list[Command]]


@dataclass
class Script:
    """A core that notes what it hears and answers with what `reply` returns."""

    reply: Reply = lambda event, now: []
    deadline: float | None = None
    heard: list[tuple[float, Event | None]] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Command]:
        self.heard.append((now, event))
        return self.reply(event, now)

    def handle_timer(self, now: float) -> list[Command]:
        self.heard.append((now, None))
        self.deadline = None
        return self.reply(None, now)

    def next_deadline(self) -> float | None:
        return self.deadline

    def of(self, kind: type) -> list[float]:
        return [at for at, event in self.heard if isinstance(event, kind)]


def world_of(
    *links: LinkSpec, replies: dict[NodeId, Reply] | None = None, seed: int = 0
) -> tuple[SimulatedWorld, dict[NodeId, list[Script]]]:
    """A world whose nodes' cores, one a start, are gathered in lists."""
    names = dict.fromkeys(end for link in links for end in (link.a, link.b))
    cores: dict[NodeId, list[Script]] = {name: [] for name in names}

    def make(name: NodeId) -> Script:
        cores[name].append(Script((replies or {}).get(name, lambda event, now: [])))
        return cores[name][-1]

    def work(task: object, payload: Payload, others: Sequence[Payload] = ()) -> Work:
        assert isinstance(task, AdoptTask)
        if task.giver == "bad":
            raise ModelError("not finite")
        return Work(AdoptResult(True))

    parts = [NodeParts(n, lambda n=n: make(n), lambda: work, Pace(overhead_s=2.0)) for n in names]
    return SimulatedWorld(parts, links, seed=seed), cores


def tell(world: SimulatedWorld, sender: NodeId, to: NodeId, *messages: Message) -> None:
    for message in messages:
        world.send(sender, to, message)


def test_started_comes_first_then_links_with_their_figures() -> None:
    world, cores = world_of(LinkSpec(A, B, 1e6, 0.25, 0.1))
    world.start()
    world.run(1.0)
    first, second = (event for _, event in cores[A][0].heard)
    assert isinstance(first, Started)
    assert first.incarnation == 1
    assert not first.rows
    assert isinstance(second, LinkUp)
    assert (second.link.peer, second.link.bandwidth_bps, second.link.loss) == (B, 1e6, 0.1)
    assert cores[A][0].of(LinkUp) == cores[B][0].of(LinkUp) == [0.25]


def test_a_message_takes_latency_and_its_size_over_the_bandwidth() -> None:
    world, cores = world_of(LinkSpec(A, B, 8000.0, 0.5))
    world.start()
    world.run(1.0)
    tell(world, A, B, Alive(KEY))
    world.run(10.0)
    size = world.counts["bytes"]
    assert size > 30
    assert cores[B][0].of(MessageReceived) == [1.0 + 0.5 + size / 1000.0]
    message = cores[B][0].heard[-1][1]
    assert message == MessageReceived(A, Alive(KEY))


def keys(script: Script) -> list[int]:
    return [
        e.message.key.hop
        for _, e in script.heard
        if isinstance(e, MessageReceived) and isinstance(e.message, Alive)
    ]


def alive(count: int) -> list[Message]:
    return [Alive(CustodyKey(PACKET, i)) for i in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_messages_are_lost_and_doubled_at_the_given_rate(seed: int) -> None:
    world, cores = world_of(LinkSpec(A, B, loss=0.3, duplicate=0.2), seed=seed)
    world.start()
    world.run(1.0)
    tell(world, A, B, *alive(1000))
    world.run(2.0)
    got = keys(cores[B][0])
    assert 640 < len(set(got)) < 760
    assert 0.14 < len(got) / len(set(got)) - 1 < 0.26
    assert got == sorted(got), "without jitter the order stays"


@pytest.mark.parametrize(("reorder", "in_order"), [(0.0, True), (0.2, False)])
def test_jitter_delays_and_a_share_is_overtaken(reorder: float, in_order: bool) -> None:
    world, cores = world_of(LinkSpec(A, B, jitter_s=1.0, reorder=reorder))
    world.start()
    world.run(1.0)
    tell(world, A, B, *alive(100))
    world.run(9.0)
    got = keys(cores[B][0])
    assert sorted(got) == list(range(100))
    assert (got == sorted(got)) is in_order


def test_a_fault_raises_the_loss_for_a_while() -> None:
    world, cores = world_of(LinkSpec(A, B))
    world.start()
    world.lose(0.5, [world.link(A, B)], 1.0, 2.0)
    world.lose(1.0, [world.link(A, B)], 3.0, 4.0)
    for at in (0.5, 1.5, 2.5, 3.5, 4.5):
        world.run(at)
        tell(world, A, B, *alive(100))
    world.run(9.0)
    got = [e.message for _, e in cores[B][0].heard if isinstance(e, MessageReceived)]
    assert 330 < len(got) < 370
    assert world.counts["lost"] == 500 - len(got)


def test_one_link_more_does_not_shift_the_others() -> None:
    lossy = [LinkSpec(A, B, loss=0.5), LinkSpec(B, C, loss=0.5)]
    got = []
    for links in (lossy[:1], lossy):
        world, cores = world_of(*links, seed=3)
        world.start()
        world.run(1.0)
        if len(links) == 2:
            tell(world, B, C, *alive(10))
        tell(world, A, B, *alive(50))
        world.run(2.0)
        got.append(keys(cores[B][0]))
    assert got[0] == got[1]


def test_a_partition_is_noticed_late_and_healed() -> None:
    world, cores = world_of(LinkSpec(A, B, latency_s=0.1), LinkSpec(B, C, latency_s=0.1))
    world.start()
    world.partition({A}, 5.0, 8.0)
    world.run(5.5)
    tell(world, A, B, Alive(KEY))
    world.run(20.0)
    assert cores[A][0].of(LinkDown) == [6.0]
    assert cores[A][0].of(LinkUp) == [0.1, 8.1]
    assert cores[C][0].of(LinkDown) == []
    assert keys(cores[B][0]) == []


def test_a_message_in_flight_does_not_survive_a_break() -> None:
    world, cores = world_of(LinkSpec(A, B, latency_s=1.0))
    world.start()
    world.run(5.0)
    world.cut(A, B, 5.2, 5.4)
    tell(world, A, B, Alive(KEY))
    world.run(20.0)
    assert keys(cores[B][0]) == []
    assert cores[B][0].of(LinkDown) == [], "a break shorter than its detection is not seen"
    assert cores[B][0].of(LinkUp) == [1.0, 6.4]


def test_a_crash_loses_all_but_the_store() -> None:
    def remember(event: Event | None, now: float) -> list[Command]:
        if not isinstance(event, Started):
            return []
        task = RunTask(1, AdoptTask(A, Samples("train", 1)), 9.0)
        return [SaveState("starts", str(event.incarnation).encode()), task]

    world, cores = world_of(LinkSpec(A, B), replies={A: remember})
    world.start()
    world.crash(A, 1.0)
    world.restart(A, 10.0)
    world.run(30.0)
    old, new = cores[A]
    assert [type(e) for _, e in old.heard] == [Started, LinkUp]
    started = new.heard[0][1]
    assert isinstance(started, Started)
    assert (started.incarnation, started.state) == (2, {"starts": b"1"})
    assert new.of(TaskFinished) == [12.0]
    assert cores[B][0].of(LinkDown) == [2.0]
    assert [json.loads(line)["event"] for line in world.lines] == ["node.crashed", "node.restarted"]


def test_a_node_that_died_for_good_stays_down() -> None:
    world, cores = world_of(LinkSpec(A, B))
    world.start()
    world.crash(A, 1.0, for_good=True)
    world.restart(A, 2.0)
    world.run(5.0)
    assert len(cores[A]) == 1
    assert not world.nodes[A].is_up


def test_tasks_stand_in_line_and_can_be_cancelled() -> None:
    adopt = AdoptTask(B, Samples("train", 1))

    def order(event: Event | None, now: float) -> list[Command]:
        if isinstance(event, LinkUp):
            return [RunTask(i, adopt, 9.0) for i in range(1, 5)]
        if isinstance(event, TaskFinished) and event.task == 1:
            return [CancelTask(3)]
        return []

    world, cores = world_of(LinkSpec(A, B, latency_s=0.0), replies={A: order})
    world.start()
    world.run(60.0)
    done = [(at, e.task) for at, e in cores[A][0].heard if isinstance(e, TaskFinished)]
    assert done == [(2.0, 1), (4.0, 2), (6.0, 4)]


@pytest.mark.parametrize(
    ("giver", "limit", "reason"), [("bad", 9.0, "not finite"), ("b", 1.0, "timeout")]
)
def test_a_task_that_fails_or_takes_too_long_comes_back(
    giver: str, limit: float, reason: str
) -> None:
    task = RunTask(1, AdoptTask(NodeId(giver), Samples("train", 1)), limit)
    world, cores = world_of(
        LinkSpec(A, B), replies={A: lambda e, now: [task] if isinstance(e, Started) else []}
    )
    world.start()
    world.run(60.0)
    assert cores[A][0].heard[-1][1] == TaskFailed(1, reason)


def test_timers_fire_when_due_and_move_with_the_core() -> None:
    world, cores = world_of(LinkSpec(A, B))
    world.start()
    core = cores[A][0]
    core.deadline = 3.0
    world.run(1.0)
    assert core.of(type(None)) == []
    core.deadline = 5.0
    world.run(4.0)
    assert core.of(type(None)) == []
    world.run(9.0)
    assert core.of(type(None)) == [5.0]


PAYLOAD = pack({"model.w": np.zeros(25_000, np.float32), "model.b": np.ones(250, np.float32)})
BIG, SMALL = PAYLOAD.manifest.tensors
SLOW = LinkSpec(A, B, 80_000.0, 0.5)


def transferring(
    *, known: tuple[bytes, ...] = (), link: LinkSpec = SLOW, expected: bool = True
) -> tuple[SimulatedWorld, dict[NodeId, list[Script]]]:
    """A world in which `a` begins to send PAYLOAD to `b` at 10 s."""
    manifest = PAYLOAD.manifest
    world, cores = world_of(link)
    world.start()
    world.run(10.0)
    world._offer_bytes[KEY] = 500
    world.nodes[A].store.submit(CustodyKey(PACKET, 0), PAYLOAD)
    if expected:
        world.expect(B, ExpectPacket(A, KEY, manifest))
    world.transfer(A, SendPacket(B, KEY, CustodyKey(PACKET, 0), manifest, known))
    return world, cores


def test_a_transfer_takes_its_missing_bytes_over_the_bandwidth() -> None:
    world, cores = transferring()
    world.run(60.0)
    (at, event) = cores[B][0].heard[-1]
    assert event == PacketReceived(A, KEY, 101_000 + 64 + 500)
    assert at == pytest.approx(10.0 + 101_064 / 10_000 + 0.5)
    assert world.nodes[B].store.parts[KEY].payload is PAYLOAD


def test_a_tensor_the_receiver_holds_is_not_sent() -> None:
    world, cores = transferring(known=(BIG.digest,))
    world.run(60.0)
    assert cores[A][0].of(TransferFailed), "it does not hold it"
    world.nodes[B].store.submit(CustodyKey(PACKET, 7), PAYLOAD)
    world.transfer(A, SendPacket(B, KEY, CustodyKey(PACKET, 0), PAYLOAD.manifest, (BIG.digest,)))
    world.run(90.0)
    event = cores[B][0].heard[-1][1]
    assert event == PacketReceived(A, KEY, 1000 + 64 + 500)


def test_loss_slows_a_transfer_down() -> None:
    world, cores = transferring(link=LinkSpec(A, B, 80_000.0, 0.5, loss=0.5))
    world.run(60.0)
    at, event = cores[B][0].heard[-1]
    assert event == PacketReceived(A, KEY, 2 * 101_064 + 500)
    assert at == pytest.approx(10.0 + 2 * 101_064 / 10_000 + 0.5)


def test_transfers_share_a_direction_one_after_the_other() -> None:
    world, cores = transferring()
    other = CustodyKey(PacketId(PACKET[:-1] + "2"), 1)
    world._offer_bytes[other] = 0
    for sender, to in ((A, B), (B, A)):
        world.expect(to, ExpectPacket(sender, other, PAYLOAD.manifest))
        world.nodes[sender].store.submit(CustodyKey(other.packet, 0), PAYLOAD)
        source = CustodyKey(other.packet, 0)
        world.transfer(sender, SendPacket(to, other, source, PAYLOAD.manifest, ()))
    world.run(60.0)
    took = 101_064 / 10_000
    assert cores[B][0].of(PacketReceived) == pytest.approx([10.5 + took, 10.5 + 2 * took])
    assert cores[A][0].of(PacketReceived) == pytest.approx([10.5 + took])


def test_a_transfer_nobody_expects_fails_before_it_began() -> None:
    world, cores = transferring(expected=False)
    world.run(60.0)
    assert cores[A][0].heard[-1][1] == TransferFailed(KEY, B, "not expected", began=False)


def test_a_break_stops_a_transfer_and_the_next_try_resumes() -> None:
    world, cores = transferring()
    world.cut(A, B, 15.0, 16.0)
    world.run(30.0)
    (failed,) = (e for _, e in cores[A][0].heard if isinstance(e, TransferFailed))
    assert failed == TransferFailed(KEY, B, "connection lost", began=True)
    assert cores[A][0].of(TransferFailed) == [17.0]
    arrived = world.nodes[B].store.parts[KEY].arrived_bytes
    assert arrived == pytest.approx(45_000 - 64)
    world.transfer(A, SendPacket(B, KEY, CustodyKey(PACKET, 0), PAYLOAD.manifest, ()))
    world.run(60.0)
    left = (101_000 - arrived + 64) / 10_000
    assert cores[B][0].of(PacketReceived) == pytest.approx([30.5 + left])


def test_what_arrived_survives_the_receivers_crash_but_its_expectation_does_not() -> None:
    world, cores = transferring()
    world.crash(B, 15.0)
    world.restart(B, 18.0)
    world.run(30.0)
    source = CustodyKey(PACKET, 0)
    world.transfer(A, SendPacket(B, KEY, source, PAYLOAD.manifest, ()))
    world.run(40.0)
    assert cores[A][0].heard[-1][1] == TransferFailed(KEY, B, "not expected", began=False)
    world.expect(B, ExpectPacket(A, KEY, PAYLOAD.manifest))
    assert world.nodes[B].store.parts[KEY].arrived_bytes > 40_000


def test_either_end_can_cancel_a_transfer() -> None:
    for end, told in ((A, False), (B, True)):
        world, cores = transferring()
        world.run(12.0)
        world.cancel_transfer(end, KEY)
        world.run(60.0)
        assert not cores[B][0].of(PacketReceived)
        assert bool(cores[A][0].of(TransferFailed)) is told


def test_a_hook_may_crash_a_node_between_two_commands() -> None:
    def two(event: Event | None, now: float) -> list[Command]:
        return [SaveState("x", b"1"), SendMessage(B, Alive(KEY))] if event is None else []

    world, cores = world_of(LinkSpec(A, B), replies={A: two})
    world.hooks.append(
        lambda node, what: world.crash(node.node) if isinstance(what, SaveState) else None
    )
    world.start()
    cores[A][0].deadline = 3.0
    world.run(1.0)
    world.nodes[A]._arm()
    world.run(9.0)
    assert world.nodes[A].store.state == {"x": b"1"}
    assert not world.nodes[A].is_up
    assert keys(cores[B][0]) == []


def noisy(seed: int) -> list[str]:
    """The trace of nodes that answer each other over bad links until their timers stop."""

    def chat(event: Event | None, now: float) -> list[Command]:
        match event:
            case LinkUp(link=link):
                return [SendMessage(link.peer, Alive(KEY))]
            case MessageReceived(sender=sender) if now < 60.0:
                said = Trace("heard", {"from": sender, "at": now / 3})
                return [said, SendMessage(sender, Alive(KEY))]
            case _:
                return []

    links = [
        LinkSpec(x, y, loss=0.1, duplicate=0.1, jitter_s=0.5, reorder=0.1)
        for x, y in ((A, B), (B, C), (C, A))
    ]
    world, _ = world_of(*links, replies={A: chat, B: chat, C: chat}, seed=seed)
    world.start()
    world.partition({A}, 5.0, 9.0)
    world.crash(B, 12.0)
    world.restart(B, 14.0)
    world.run(100.0)
    return world.lines


def test_one_seed_gives_one_trace() -> None:
    assert noisy(1) == noisy(1)
    assert noisy(1) != noisy(2)
    assert len(noisy(1)) > 100


def test_a_link_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="itself"):
        LinkSpec(A, A)
    with pytest.raises(ValueError, match="loss"):
        LinkSpec(A, B, loss=1.0)
    with pytest.raises(ValueError, match="bandwidth"):
        LinkSpec(A, B, bandwidth_bps=0.0)
    with pytest.raises(ValueError, match="no such node"):
        SimulatedWorld([], [LinkSpec(A, B)])
    with pytest.raises(ValueError, match="twice"):
        world_of(LinkSpec(A, B), LinkSpec(B, A))
