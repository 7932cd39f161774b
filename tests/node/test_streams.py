"""What a node does about strangers' streams: who may open one, how many, what is taken."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest

from aats.advert import ComputeAdvert, LinkAdvert, NodePolicy, Partner, Role
from aats.identity import Identity
from aats.ids import NodeId, PacketId
from aats.messages import Relay, StreamAck, StreamEnd, StreamFrame, StreamOpening
from aats.node import streams
from aats.node.commands import CancelTask, Command, RunTask, SendMessage, TellTask, Trace
from aats.node.core import NodeCore
from aats.node.desk import RELAY_TTL, CoreConfig
from aats.node.events import LinkUp, MessageReceived, Started, TaskFailed, TaskFinished, TaskSpoke
from aats.node.tasks import FollowResult, FollowTask, Lost, Spoken
from aats.packet import UNLIMITED, Architecture, Header, Mandate, Owner, PacketKind, Plugin, Target
from aats.payload import pack
from aats.wire import check_relay, sign_mandate, sign_relay

ME, LEAD, OTHER = NodeId("me"), NodeId("lead"), NodeId("other")
KEYS = {name: Identity.from_seed(name, b"streams") for name in (ME, LEAD, OTHER)}
PAYLOAD = pack({"w": np.arange(6, dtype=np.float32)})
MANDATE = sign_mandate(
    Mandate(
        id=PacketId("00000000-0000-7000-8000-000000000001"), kind=PacketKind.TRAIN,
        owner=Owner(LEAD, KEYS[LEAD].public_key), created=0.0, deadline=inf,
        requirement=(Target("s", 0.9),), budget=UNLIMITED, architecture=Architecture("mlp"),
        method=Plugin("split"), policy=Plugin("random"), seed=3,
    ),
    KEYS[LEAD],
)  # fmt: skip
OPEN = NodePolicy(streams=True)
OPENING = StreamOpening(Header(MANDATE), (ME, OTHER))


class Node:
    """A core with two neighbours, and what it commands."""

    def __init__(self, policy: NodePolicy = OPEN) -> None:
        config = CoreConfig(
            ME, (Role.DATA,), (), ComputeAdvert(100.0), policy,
            {name: key.public_key for name, key in KEYS.items()},
        )  # fmt: skip

        def nothing(plugin: object) -> Any:
            raise AssertionError(f"{plugin} is not wanted here")

        self.core = NodeCore(config, KEYS[ME], nothing, nothing, nothing)
        self.now = 0.0
        self.commands: list[Command] = []
        self.tell(Started(1))
        for peer in (LEAD, OTHER):
            self.tell(LinkUp(LinkAdvert(peer, 1e9, 0.001)))

    def tell(self, event: Any) -> list[Command]:
        got = self.core.handle(event, self.now)
        self.commands += got
        return got

    def hear(self, body: Any, sender: NodeId = LEAD, session: str = "lead/1/1") -> list[Command]:
        relay = sign_relay(Relay(sender, ME, session, RELAY_TTL, body), KEYS[sender])
        return self.tell(MessageReceived(sender, relay))

    def wait(self, seconds: float) -> list[Command]:
        """Let timers fall due for a while; return what came of it."""
        until, got = self.now + seconds, list[Command]()
        while (due := self.core.next_deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            got += self.core.handle_timer(self.now)
        self.now = until
        self.commands += got
        return got


def said(commands: list[Command], kind: type) -> list[Any]:
    return [
        c.message.body
        for c in commands
        if isinstance(c, SendMessage)
        and isinstance(c.message, Relay)
        and isinstance(c.message.body, kind)
    ]


def of(commands: list[Command], kind: type) -> list[Any]:
    return [c for c in commands if isinstance(c, kind)]


def frame(seq: int = 0, opening: StreamOpening | None = None, **more: Any) -> StreamFrame:
    about = {"manifest": PAYLOAD.manifest, "tensors": bytes(PAYLOAD.arena), **more}
    return StreamFrame(seq, 0, "go", opening=opening, **about)


def joined(node: Node, session: str = "lead/1/1", opening: StreamOpening = OPENING) -> int:
    """Have a node join a session; return the number of its task."""
    (task,) = of(node.hear(frame(opening=opening), session=session), RunTask)
    assert isinstance(task.task, FollowTask)
    return task.task_id


def test_the_first_frame_starts_a_task_and_is_acknowledged_at_once() -> None:
    node = Node()
    got = node.hear(frame(opening=OPENING))
    (task,) = of(got, RunTask)
    assert task.task.leader == LEAD
    assert task.task.opening.tensors == bytes(PAYLOAD.arena)
    assert [ack.ack for ack in said(got, StreamAck)] == [1]
    relay = next(c.message for c in got if isinstance(c, SendMessage))
    check_relay(relay, KEYS[ME].public_key)


def test_a_frame_that_comes_twice_is_delivered_once_and_acknowledged_twice() -> None:
    node = Node()
    joined(node)
    first, again = node.hear(frame(1)), node.hear(frame(1))
    assert len(of(first, TellTask)) == 1
    assert not of(again, TellTask)
    assert [ack.ack for ack in said(again, StreamAck)] == [2]


def test_frames_that_overtake_others_wait_for_them() -> None:
    node = Node()
    joined(node)
    assert not of(node.hear(frame(2)), TellTask)
    assert len(of(node.hear(frame(1)), TellTask)) == 2


def test_parts_are_put_together() -> None:
    node = Node()
    joined(node)
    whole = bytes(PAYLOAD.arena)
    half = frame(1, tensors=whole[:10], more=True, manifest=type(PAYLOAD.manifest)())
    assert not of(node.hear(half), TellTask)
    (told,) = of(node.hear(frame(2, tensors=whole[10:])), TellTask)
    assert told.told.tensors == whole


@pytest.mark.parametrize(
    ("opening", "policy", "sender", "why"),
    [
        (OPENING, NodePolicy(), LEAD, "privacy"),
        (replace(OPENING, partners=(OTHER,)), OPEN, LEAD, "partners"),
        (OPENING, OPEN, OTHER, "only a leader"),
        (
            replace(OPENING, header=Header(replace(MANDATE, seed=4))),
            OPEN, LEAD, "not signed by its owner",
        ),
        (
            replace(OPENING, header=Header(replace(MANDATE, owner=Owner(OTHER, b"\1" * 32)))),
            OPEN, LEAD, "another key",
        ),
    ],
)  # fmt: skip
def test_who_may_not_open_a_session_is_told_why(
    opening: StreamOpening, policy: NodePolicy, sender: NodeId, why: str
) -> None:
    node = Node(policy)
    got = node.hear(frame(opening=opening), sender)
    assert not of(got, RunTask)
    assert why in said(got, StreamEnd)[0].reason
    assert [t.event for t in of(got, Trace)] == ["stream.refused"]


def test_a_frame_in_anothers_name_is_rejected() -> None:
    node = Node()
    forged = sign_relay(
        Relay(OTHER, ME, "lead/1/1", RELAY_TTL, frame(opening=OPENING)), KEYS[OTHER]
    )
    got = node.tell(MessageReceived(OTHER, replace(forged, src=LEAD)))
    assert not of(got, RunTask)
    assert [t.event for t in of(got, Trace)] == ["message.rejected"]


def test_only_so_many_sessions_are_followed() -> None:
    node = Node()
    for number in range(streams.MAX_SESSIONS):
        leader = (LEAD, OTHER)[number % 2]
        opening = replace(OPENING, header=Header(another(number)), partners=(ME,))
        got = node.hear(frame(opening=opening), leader, f"{leader}/1/{number}")
        assert of(got, RunTask)
    got = node.hear(frame(opening=OPENING), session="lead/1/9")
    assert "busy" in said(got, StreamEnd)[0].reason


def another(number: int) -> Mandate:
    mandate = replace(MANDATE, id=PacketId(f"00000000-0000-7000-8000-00000000001{number}"))
    return sign_mandate(replace(mandate, signature=b""), KEYS[LEAD])


def test_one_leader_takes_half_the_sessions_at_most_and_may_begin_any_of_them_anew() -> None:
    node = Node()
    for number in range(streams.MAX_SESSIONS // 2):
        joined(node, f"lead/1/{number}", replace(OPENING, header=Header(another(number))))
    got = node.hear(frame(opening=OPENING), session="lead/1/9")
    assert "busy" in said(got, StreamEnd)[0].reason
    joined(node, "lead/2/0", replace(OPENING, header=Header(another(0))))
    opening = replace(OPENING, header=Header(another(8)), partners=(ME,))
    assert of(node.hear(frame(opening=opening), OTHER, "other/1/1"), RunTask)


def test_a_session_whose_first_frame_never_ends_is_given_up() -> None:
    node = Node()
    part = frame(opening=OPENING, more=True, manifest=pack({}).manifest, tensors=b"x")
    assert not of(node.hear(part), RunTask)
    got = list[Command]()
    for _ in range(400):
        got += node.hear(StreamAck(0))
        got += node.wait(1.0)
    assert [end.reason for end in said(got, StreamEnd)][:1] == ["the session is over"]
    assert of(node.hear(frame(opening=OPENING), session="lead/1/2"), RunTask)


def test_a_message_of_more_numbers_than_anyone_would_say_is_rejected() -> None:
    node = Node()
    many = {f"n{i}": 0.0 for i in range(streams.MAX_NUMBERS + 1)}
    for body in (frame(opening=OPENING, numbers=many), StreamAck(0, many)):
        got = node.hear(body)
        assert [t.event for t in of(got, Trace)] == ["message.rejected"]
        assert not of(got, RunTask)


def test_a_leader_that_begins_anew_ends_what_it_began_before() -> None:
    node = Node()
    first = joined(node)
    got = node.hear(frame(opening=OPENING), session="lead/2/1")
    assert [c.task_id for c in of(got, CancelTask)] == [first]
    assert len(of(got, RunTask)) == 1


def test_a_node_that_knows_nothing_of_a_session_says_so_to_its_leader_only() -> None:
    node = Node()
    assert said(node.hear(frame(3)), StreamEnd)[0].reason == "no such session"
    assert not said(node.hear(frame(3), OTHER), StreamEnd)
    assert not said(node.hear(StreamEnd("over")), StreamEnd)


def test_a_frame_that_does_not_fit_its_manifest_ends_the_session() -> None:
    node = Node()
    task = joined(node)
    got = node.hear(frame(1, tensors=b"short"))
    assert "manifest" in said(got, StreamEnd)[0].reason
    assert [c.told for c in of(got, TellTask) if c.task_id == task] == [Lost(LEAD)]


def test_a_frame_larger_than_is_allowed_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_FRAME_BYTES", 30)
    node = Node()
    joined(node)
    node.hear(frame(1, tensors=b"x" * 20, more=True))
    got = node.hear(frame(2, tensors=b"x" * 20, more=True))
    assert "more than 30 bytes" in said(got, StreamEnd)[0].reason


def test_what_is_not_acknowledged_is_sent_again_until_the_other_is_silent_for_long() -> None:
    node = Node()
    task = joined(node)
    node.tell(TaskSpoke(task, Spoken(LEAD, "a", PAYLOAD.manifest, bytes(PAYLOAD.arena))))
    sent = said(node.wait(30.0), StreamFrame)
    assert {f.seq for f in sent} == {0}
    assert 3 < len(sent) < 12
    assert Lost(LEAD) in [c.told for c in of(node.commands, TellTask)]
    assert not said(node.wait(30.0), StreamFrame)


def test_an_acknowledgement_ends_the_sending() -> None:
    node = Node()
    task = joined(node)
    node.tell(TaskSpoke(task, Spoken(LEAD, "a")))
    node.hear(StreamAck(1))
    assert not said(node.wait(1.5), StreamFrame)


def test_only_so_many_parts_are_under_way_at_a_time() -> None:
    node = Node()
    task = joined(node)
    big = pack({"w": np.zeros(40 * streams.PART_BYTES, np.uint8)})
    got = node.tell(TaskSpoke(task, Spoken(LEAD, "a", big.manifest, bytes(big.arena))))
    assert len(said(got, StreamFrame)) == streams.WINDOW
    more = node.hear(StreamAck(4))
    assert [f.seq for f in said(more, StreamFrame)] == list(range(16, 20))


def test_a_partner_counts_what_it_gets_from_others_and_tells_the_leader() -> None:
    node = Node()
    task = joined(node)
    node.hear(frame(), OTHER)
    got = node.tell(TaskSpoke(task, Spoken(LEAD, "a", joules=2.5)))
    (sent,) = said(got, StreamFrame)
    assert sent.account["joules"] == 2.5
    assert sent.account["other>me"] > len(PAYLOAD.arena)
    assert not said(node.tell(TaskSpoke(task, Spoken(OTHER, "a"))), StreamFrame)[0].account


@pytest.mark.parametrize("failed", [False, True])
def test_a_session_ends_with_its_task(failed: bool) -> None:
    node = Node()
    task = joined(node)
    event = TaskFailed(task, "no") if failed else TaskFinished(task, FollowResult())
    (end,) = said(node.tell(event), StreamEnd)
    assert end.reason == ("no" if failed else "")
    assert said(node.hear(frame(1)), StreamEnd)[0].reason == "no such session"


def test_what_a_task_said_last_is_delivered_before_its_session_ends() -> None:
    node = Node()
    task = joined(node)
    node.tell(TaskSpoke(task, Spoken(LEAD, "weights")))
    assert not said(node.tell(TaskFinished(task, FollowResult())), StreamEnd)
    assert len(said(node.hear(StreamAck(1)), StreamEnd)) == 1


def lead(node: Node) -> streams.Streams:
    """Have a node lead a session as its task 7."""
    desk = node.core._desk
    desk.tasks[7] = ("journey", None)
    led = node.core._journey.streams
    led.lead(7, Header(MANDATE), [Partner(LEAD), Partner(OTHER)])
    return led


def test_a_leader_sends_the_opening_alone_until_it_is_acknowledged() -> None:
    node = Node()
    lead(node)
    first = node.tell(TaskSpoke(7, Spoken(OTHER, "a")))
    second = node.tell(TaskSpoke(7, Spoken(OTHER, "b")))
    assert [f.opening is not None for f in said(first, StreamFrame)] == [True]
    assert not said(second, StreamFrame)
    got = node.hear(StreamAck(1), OTHER, "me/1/7")
    assert [f.kind for f in said(got, StreamFrame)] == ["b"]


def test_a_partners_word_on_what_it_has_spent_is_believed_within_bounds() -> None:
    node = Node()
    led = lead(node)
    node.tell(TaskSpoke(7, Spoken(OTHER, "a")))
    node.hear(
        StreamAck(1, {"joules": 3.0, "lead>other": 1e30, "other>me": 9e9, "x>y": 5.0}),
        OTHER, "me/1/7",
    )  # fmt: skip
    cost = led.ended(7)
    assert cost.joules == 3.0
    assert cost.links["lead>other"] == streams.MAX_REPORTED
    assert "x>y" not in cost.links
    assert cost.links["other>me"] < 1000
    assert cost.bytes == sum(cost.links.values())


def test_who_did_not_stay_to_the_end_is_in_the_account() -> None:
    node = Node()
    led = lead(node)
    node.tell(TaskSpoke(7, Spoken(OTHER, "a")))
    got = node.hear(StreamEnd("busy"), OTHER, "me/1/7")
    assert [c.told for c in of(got, TellTask)] == [Lost(OTHER)]
    assert led.ended(7).lost == (OTHER,)
