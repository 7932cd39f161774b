"""Scripts and who plays them: order, time-outs, the lost, what a frame may hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning import stream
from aats.learning.method import Carry, Plan, Stop, Work
from aats.learning.noop import NoopMethod
from aats.learning.stream import (
    Frame,
    Player,
    Receive,
    Script,
    Send,
    StreamMethod,
    alone,
    frame_of,
    read,
    spelled,
    spoken_of,
)
from aats.node.tasks import Lost
from aats.packet import Header
from aats.roles.data import NodeData
from aats.testing.methods import blobs
from aats.testing.streams import run_stream
from tests.learning.test_split import HEADER

A, B, LAB = NodeId("a"), NodeId("b"), NodeId("lab")


def says(sender: NodeId, kind: str = "x") -> Frame:
    return Frame(sender, kind)


def two_words() -> Script[list[str]]:
    """Wait for a frame of each kind, the second kind first."""
    heard = []
    for kind in ("second", "first"):
        yield Send(A, f"want {kind}")
        frame = yield Receive(A, kind, 5.0)
        heard.append(frame.kind if frame else "nothing")
    return heard


def test_a_script_gets_what_it_waits_for_whatever_came_before() -> None:
    player = Player(two_words(), {A})
    assert [s.kind for s in player.start()] == ["want second"]
    assert player.hear(says(A, "first")) == []
    assert [s.kind for s in player.hear(says(A, "second"))] == ["want first"]
    assert player.ended
    assert player.outcome() == ["second", "first"]


def test_a_wait_ends_with_time_or_with_the_sender() -> None:
    player = Player(two_words(), {A, B})
    player.start()
    assert player.waiting == Receive(A, "second", 5.0)
    player.time_out()
    assert player.waiting == Receive(A, "first", 5.0)
    player.lose(A)
    assert player.outcome() == ["nothing", "nothing"]


def test_what_a_lost_node_had_said_is_heard() -> None:
    player = Player(two_words(), {A})
    player.start()
    player.hear(says(A, "first"))
    player.take(Lost(A))
    assert player.outcome() == ["nothing", "first"]


def anyone() -> Script[NodeId]:
    frame = yield Receive(None, None, 5.0)
    return frame.sender if frame else NodeId("")


def test_a_wait_for_anyone_ends_when_all_are_lost_or_the_leader_is() -> None:
    player = Player(anyone(), {A, B})
    player.start()
    player.lose(A)
    assert not player.ended
    player.lose(B)
    assert player.outcome() == ""
    follower = Player(anyone(), {A, LAB}, LAB)
    follower.start()
    follower.lose(LAB)
    assert follower.outcome() == ""


def test_a_flood_of_frames_loses_who_sends_it_and_nothing_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "MAX_WAITING", 5)
    player = Player(two_words(), {A, B})
    player.start()
    player.hear(says(A, "first"))
    for _ in range(9):
        player.hear(says(B))
    player.hear(says(A, "second"))
    assert player.outcome() == ["second", "first"]


@pytest.mark.parametrize(("limit", "value"), [("MAX_WAITING", 2), ("MAX_WAITING_BYTES", 800)])
def test_nobody_waits_for_a_sender_of_too_much(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, limit, value)
    player = Player(two_words(), {A, B})
    player.start()
    for _ in range(3):
        player.hear(Frame(A, "other", {"w": np.zeros(50)}))
    assert player.outcome() == ["nothing", "nothing"]
    assert player.hear(says(A, "second")) == []


def test_a_script_that_is_alone_ends() -> None:
    assert alone(Player(two_words(), ())) == ["nothing", "nothing"]


@given(
    st.dictionaries(
        st.text("abcxyz", min_size=1, max_size=5),
        st.tuples(
            st.sampled_from(["<f4", "<f8", "|u1", "<i8", "|b1"]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=4,
    ),
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(-1e9, 1e9), max_size=3),
)
def test_a_frame_comes_as_it_was_sent(arrays: dict, numbers: dict) -> None:
    rng = np.random.default_rng(0)
    sent = {n: (rng.random(shape) * 9).astype(dtype) for n, (dtype, shape) in arrays.items()}
    came = frame_of(spoken_of(Send(A, "kind", sent, numbers)))
    assert (came.sender, came.kind, came.numbers) == (A, "kind", numbers)
    assert came.arrays.keys() == sent.keys()
    for name, array in sent.items():
        assert came.arrays[name].dtype == array.dtype
        assert np.array_equal(came.arrays[name].ravel(), array.ravel())


def test_a_frame_that_is_too_large_is_refused_where_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "MAX_FRAME_BYTES", 100)
    with pytest.raises(ModelError, match="404 bytes, allowed are 100"):
        spoken_of(Send(A, "big", {"w": np.zeros(101, np.float32)}))


@given(st.text(max_size=50))
def test_texts_can_be_spelled(text: str) -> None:
    assert read(spelled(text)) == text


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ModelError, match="a text that is none"):
        read(np.array([255, 254], np.uint8))


class Echo(NoopMethod):
    """Asks every partner for its rows, in order; partners ask their neighbour first."""

    def lead(self, model, work, partners) -> Script[Carry | None]:
        del model, work
        for p in partners:
            yield Send(p.node, "hello", {"w": np.zeros(8, np.float32)})
        heard = []
        for p in partners:
            frame = yield Receive(p.node, "rows", 10.0)
            heard.append(frame.numbers["rows"] if frame else -1.0)
        return Carry(trained={f"n{i}": rows for i, rows in enumerate(heard)})

    def follow(self, opening: Frame, data: NodeData, header: Header, seed: int) -> Script[None]:
        del header, seed
        rows = sum(d.samples for d in data.skills.values())
        yield Send(opening.sender, "rows", {}, {"rows": rows})


def work() -> Work:
    return Work(Stop(LAB, 0, 0, {}), Plan({}))


def run(**more):
    data = {"a": NodeData.of(blobs(30)), "b": NodeData.of(blobs(60))}
    return run_stream(Echo(), None, work(), data, header=HEADER, **more)


def test_the_driver_counts_the_bytes_of_arrays_by_sender_receiver_and_kind() -> None:
    assert isinstance(Echo(), StreamMethod)
    assert not isinstance(NoopMethod(), StreamMethod)
    found = run()
    assert found.bytes == {
        (LAB, A, "hello"): 32, (LAB, B, "hello"): 32, (A, LAB, "rows"): 0, (B, LAB, "rows"): 0,
    }  # fmt: skip
    assert found.total == 64
    assert found.carry is not None
    assert found.carry.trained == {"n0": 24.0, "n1": 48.0}
    assert found.seconds == 0.0


def test_the_driver_kills_and_delays() -> None:
    killed = run(kill={"a": 0})
    assert killed.carry is not None
    assert killed.carry.trained == {"n0": -1.0, "n1": 48.0}
    slow = run(delay_s={("b", "lab"): 3.0})
    assert slow.seconds == 3.0
    late = run(delay_s={("a", "lab"): 30.0})
    assert late.carry is not None
    assert late.carry.trained == {"n0": -1.0, "n1": 48.0}
    assert late.seconds == 10.0


def test_the_driver_refuses_a_frame_to_a_stranger() -> None:
    class Astray(Echo):
        def lead(self, model, work, partners) -> Script[Carry | None]:
            yield Send(NodeId("nobody"), "hello")
            return None

    with pytest.raises(ValueError, match="takes no part"):
        run_stream(Astray(), None, work(), {"a": NodeData()}, header=HEADER)
