"""The random-walking snake in one process: whose rows train what, who hands what to whom."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from torch import nn

from aats.ids import NodeId, PacketId
from aats.learning.method import Plan, Stop, Work, seed_of
from aats.learning.models import build, initialise
from aats.learning.modules import deterministic
from aats.learning.rws import RwsMethod, Snake
from aats.learning.sequential import SequentialMethod
from aats.learning.stream import Frame, Receive, Send, spelled
from aats.packet import UNLIMITED, Architecture, Header, Mandate, Owner, PacketKind, Plugin, Target
from aats.roles.data import NodeData
from aats.testing.methods import CLASSES, FEATURES, SKILL, blobs
from aats.testing.streams import StreamRun, run_stream

WIDTHS = [16, 12, 10]
DEEP = Architecture("mlp", {"features": FEATURES, "hidden": WIDTHS, "classes": CLASSES})
HEADER = Header(
    Mandate(
        id=PacketId("00000000-0000-7000-8000-000000000001"), kind=PacketKind.TRAIN,
        owner=Owner(NodeId("owner"), b""), created=0.0, deadline=inf,
        requirement=(Target(SKILL, 0.9),), budget=UNLIMITED, architecture=DEEP,
        method=Plugin("rws"), policy=Plugin("random"), seed=3,
    )
)  # fmt: skip
PLAIN = RwsMethod(lr=0.1, clip=0.0, batch_size=8)


def model_of() -> nn.Module:
    model = build(DEEP)
    initialise(model, 5)
    return model


def work() -> Work:
    return Work(Stop(NodeId("lab"), 0, 7, {}), Plan({}))


def nodes(count: int) -> dict[str, NodeData]:
    return {f"c{i}": NodeData.of(blobs(50 + 10 * i, seed=i)) for i in range(count)}


def run(
    method: RwsMethod, model: nn.Module, data: dict[str, NodeData], **more: object
) -> StreamRun:
    with deterministic(0):
        return run_stream(method, model, work(), data, header=HEADER, **more)


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).abs().max().detach()) for p, q in pairs)


def heads(count: int, segments: int, rounds: int) -> list[str]:
    """Return the heads of the walk that the lab draws."""
    names = [NodeId(f"c{i}") for i in range(count)]
    snake = Snake(names, [nn.Sequential()] * segments, [], random.Random(7))
    return [snake.body[0] for _ in range(rounds) if snake.step()]


@pytest.mark.parametrize("segments", [1, 2, 3, 4])
def test_it_is_sequential_training_along_the_heads_of_the_walk(segments):
    model, data = model_of(), nodes(5)
    run(replace(PLAIN, segments=segments, rounds=7), model, data)
    by_hand = model_of()
    for number, head in enumerate(heads(5, segments, 7)):
        held = data[head].skills[SKILL]
        seed = seed_of("round", seed_of("follow", 3, 0, head), number)
        plan = Plan({SKILL: -(-held.samples // 8)}, 8)
        with deterministic(0):
            SequentialMethod(lr=0.1, clip=0.0, batch_size=8).train(
                by_hand, Work(Stop(NodeId("x"), 0, seed, {SKILL: held}), plan)
            )
    assert distance(model, by_hand) == 0.0
    assert distance(model, model_of()) > 0.01


def test_it_works_where_every_node_is_in_the_body():
    model = model_of()
    found = run(replace(PLAIN, segments=3, rounds=5), model, nodes(3))
    assert found.carry is not None
    assert found.carry.note == "3 segments, 5 heads"
    assert distance(model, model_of()) > 0.01


def test_the_snake_moves_by_one_node_a_round():
    names = [NodeId(f"c{i}") for i in range(6)]
    snake = Snake(names, [nn.Sequential()] * 3, [], random.Random(1))
    snake.step()
    for _ in range(50):
        before = list(snake.body)
        assert snake.step()
        assert snake.body[1:] == before[:-1]
        assert snake.body[0] not in before
    assert len(set(snake.body)) == 3


def test_activations_flow_from_node_to_node_and_past_the_packets_stop():
    found = run(replace(PLAIN, segments=3, rounds=4), model_of(), nodes(5))
    for sender, receiver, kind in found.frames:
        if kind.startswith(("forward", "backward")):
            assert "lab" not in (sender, receiver)
    out = sum(n for (a, _, kind), n in found.frames.items() if a == "lab" and "segment" in kind)
    back = sum(n for (_, b, kind), n in found.frames.items() if b == "lab" and "segment" in kind)
    assert (out, back) == (3, 3)


def test_the_bytes_are_those_of_the_formula():
    data, rounds = nodes(5), 4
    found = run(replace(PLAIN, segments=2, rounds=rounds), model_of(), data)
    q = sum(data[head].skills[SKILL].samples for head in heads(5, 2, rounds))
    size = {"forward": 0, "backward": 0, "segment": 0}
    for (_, _, kind), n in found.bytes.items():
        if kind.partition("/")[0] in size:
            size[kind.partition("/")[0]] += n
    width = WIDTHS[1]  # four blocks, cut after two
    batches = sum(n for (_, _, kind), n in found.frames.items() if kind.startswith("backward"))
    assert size["backward"] == width * q * 4
    assert size["forward"] == width * q * 4 + q + batches * len(SKILL)
    parameters = sum(p.numel() for p in model_of().parameters())
    assert size["segment"] == (rounds + 1) * parameters * 4


@pytest.mark.parametrize("frame", [0, 2, 5])
def test_a_node_that_dies_is_left_out_and_the_walk_goes_on(frame):
    model = model_of()
    found = run(
        replace(PLAIN, segments=2, rounds=6, patience_s=2), model, nodes(5), kill={"c1": frame}
    )
    assert found.carry is not None
    assert "lost c1" in found.carry.note
    assert distance(model, model_of()) > 0.01
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_too_few_nodes_left_end_the_walk():
    found = run(
        replace(PLAIN, segments=2, rounds=9, patience_s=2), model_of(), nodes(2), kill={"c1": 3}
    )
    assert found.carry is not None
    assert "lost c1" in found.carry.note


def test_rows_of_the_heads_are_in_the_account():
    account, data = work(), nodes(4)
    with deterministic(0):
        run_stream(replace(PLAIN, segments=2), model_of(), account, data, header=HEADER)
    walked = heads(4, 2, 4)
    assert account.samples == sum(data[head].skills[SKILL].samples for head in walked)
    assert account.steps == sum(-(-data[head].skills[SKILL].samples // 8) for head in walked)


def test_one_seed_one_result():
    first, second = model_of(), model_of()
    assert run(PLAIN, first, nodes(4)).bytes == run(PLAIN, second, nodes(4)).bytes
    assert distance(first, second) == 0.0


@pytest.mark.parametrize(
    "counts",
    [
        {"next_hop": np.array([3])},
        {"a skill nobody wants": np.array([3])},
        {SKILL: np.array([[3, 4]])},
        {SKILL: np.array([np.nan])},
        {SKILL: np.array(3)},
        {SKILL: np.array([1 << 62, 1 << 62])},
        {SKILL: np.array([-1, 5])},
        {SKILL: np.zeros(1 << 20, np.int64)},
    ],
)
def test_a_head_that_claims_what_it_cannot_have_trained_on_is_lost(counts):
    class Rogue(RwsMethod):
        def follow(self, opening, data, header, seed):
            script, answer = RwsMethod.follow(self, opening, data, header, seed), None
            while True:
                try:
                    step = script.send(answer)
                except StopIteration:
                    return
                told = isinstance(step, Send) and step.kind.startswith("done") and step.arrays
                answer = yield replace(step, arrays=counts) if told and data is rogue else step

    data, account = nodes(4), work()
    rogue = data["c1"]
    method = Rogue(lr=0.1, clip=0.0, batch_size=8, segments=2)
    with deterministic(0):
        found = run_stream(method, model_of(), account, data, header=HEADER)
    assert "lost c1" in found.carry.note
    assert list(account.labels) == [SKILL]
    assert 0 < account.samples < 300


def test_a_neighbours_nonsense_breaks_the_round_and_not_the_node():
    data = nodes(1)["c0"]
    names = {"before": spelled(""), "after": spelled(""), "from": spelled("")}
    numbers = {"round": 0, "segment": 0, "start": 0, "stop": 4, "has": 0, "lr": 0.1}
    script = PLAIN.follow(Frame(NodeId("lab"), "run", names, numbers), data, HEADER, 0)
    assert next(script) == Receive(NodeId("lab"), "segment/0/0", 20.0)
    said = script.send(Frame(NodeId("lab"), "segment/0/0", {"w": np.zeros(3)}))
    assert said == Send(NodeId("lab"), "done/0", {}, {"failed": 1.0})
