"""Split learning in one process: the same steps as unsplit training, who survives whom, bytes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf

import numpy as np
import pytest
import torch
from torch import nn

from aats.advert import ComputeAdvert
from aats.errors import ModelError
from aats.ids import NodeId, PacketId
from aats.learning.method import Plan, Stop, Work, seed_of
from aats.learning.models import build, initialise
from aats.learning.modules import deterministic
from aats.learning.segments import Segment, chain_of, cut_at, joined, piece, put, weights_of
from aats.learning.sequential import SequentialMethod
from aats.learning.split import Split, SplitFedMethod, SplitMethod
from aats.learning.stream import Frame, Receive, Send, spelled
from aats.packet import UNLIMITED, Architecture, Header, Mandate, Owner, PacketKind, Plugin, Target
from aats.roles.data import NodeData
from aats.testing.methods import CLASSES, FEATURES, SKILL, blobs
from aats.testing.streams import StreamRun, run_stream

MLP = Architecture("mlp", {"features": FEATURES, "hidden": [16, 12], "classes": CLASSES})
CNN = Architecture("cnn", {"side": 8, "widths": [4, 8], "classes": 3})
HEADER = Header(
    Mandate(
        id=PacketId("00000000-0000-7000-8000-000000000001"), kind=PacketKind.TRAIN,
        owner=Owner(NodeId("owner"), b""), created=0.0, deadline=inf,
        requirement=(Target(SKILL, 0.9),), budget=UNLIMITED, architecture=MLP,
        method=Plugin("split"), policy=Plugin("random"), seed=3,
    )
)  # fmt: skip


def model_of(architecture: Architecture = MLP) -> nn.Module:
    model = build(architecture)
    initialise(model, 5)
    return model


def work(data: NodeData | None = None, seed: int = 0, trained: float = 0.0) -> Work:
    held = data.skills if data else {}
    stop = Stop(NodeId("lab"), 0, seed, held, {"cycle": trained})
    plan = Plan({s: -(-d.samples // 8) for s, d in held.items()}, 8)
    return Work(stop, plan)


def clients(*samples: int) -> dict[str, NodeData]:
    return {f"c{i}": NodeData.of(blobs(n, seed=i)) for i, n in enumerate(samples)}


def run(method: Split, model: nn.Module, data: dict[str, NodeData], **more: object) -> StreamRun:
    header = replace(HEADER, mandate=replace(HEADER.mandate, architecture=more.pop("arch", MLP)))
    with deterministic(0):
        return run_stream(method, model, work(), data, header=header, **more)


def unsplit(data: NodeData, node: str = "c0", architecture: Architecture = MLP) -> nn.Module:
    """Return the model after one epoch of `sequential` with the client's seed."""
    model, seed = model_of(architecture), seed_of("follow", 3, 0, node)
    method = SequentialMethod(lr=0.1, clip=0.0, batch_size=8)
    with deterministic(0):
        method.train(model, work(data, seed))
    return model


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).abs().max().detach()) for p, q in pairs)


@pytest.mark.parametrize("kind", [SplitMethod, SplitFedMethod])
@pytest.mark.parametrize("cut", [1, 2, "auto", "3"])
def test_with_one_client_it_is_sequential_training_to_the_last_bit(kind, cut):
    model, data = model_of(), clients(90)
    method = kind(lr=0.1, clip=0.0, batch_size=8, cut=cut)
    run(method, model, data, compute={"c0": ComputeAdvert(memory_bytes=1 << 30)})
    assert distance(model, model_of()) > 0.01
    assert distance(model, unsplit(data["c0"])) == 0.0


def test_a_convolutional_network_can_be_cut_as_well():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((60, 64)).astype(np.float32)
    data = {"c0": NodeData.of(replace(blobs(60), train_x=images, train_y=np.arange(60) % 3))}
    model = model_of(CNN)
    run(SplitMethod(lr=0.1, clip=0.0, batch_size=8, cut=2), model, data, arch=CNN)
    assert distance(model, unsplit(data["c0"], architecture=CNN)) == 0.0


@pytest.mark.parametrize("cut", [1, 2])
def test_the_gradients_are_those_of_one_graph(cut):
    model, whole = model_of(), model_of()
    chain = chain_of(model)
    front, back = Segment(joined(chain, 0, cut)), Segment(joined(chain, cut, len(chain)))
    x, y = torch.randn(8, FEATURES), torch.arange(8) % CLASSES
    nn.functional.cross_entropy(whole(x), y).backward()
    a = front.forward(x)
    back.forward(a)
    before = weights_of(model)
    front.lr = back.lr = 1.0
    front.backward(back.finish(nn.functional.cross_entropy(back.output, y)))
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        step = before[name] - p.detach().numpy()
        assert np.abs(step - q.grad.numpy()).max() < 1e-6


def test_clients_follow_one_another_and_hand_the_weights_on_directly():
    model, data = model_of(), clients(60, 90, 40)
    found = run(replace(SplitMethod(), epochs=2, lr=0.1, batch_size=8), model, data)
    kinds = {(a, b) for a, b, kind in found.frames if kind.startswith("weights")}
    assert kinds == {("lab", "c0"), ("c0", "c1"), ("c1", "c2"), ("c2", "c0"), ("c2", "lab")}
    handed = sum(n for (_, _, kind), n in found.frames.items() if kind.startswith("weights"))
    assert handed == 2 * 3 + 1


def test_three_clients_one_after_the_other_are_three_visits_of_sequential_training():
    model, data = model_of(), clients(60, 90, 40)
    run(SplitMethod(lr=0.1, clip=0.0, batch_size=8), model, data)
    by_hand = model_of()
    for node, held in data.items():
        with deterministic(0):
            SequentialMethod(lr=0.1, clip=0.0, batch_size=8).train(
                by_hand, work(held, seed_of("follow", 3, 0, node))
            )
    assert distance(model, by_hand) == 0.0


def test_one_client_keeps_the_weights_from_epoch_to_epoch():
    model, data = model_of(), clients(60)
    found = run(replace(SplitMethod(), epochs=3, lr=0.1, batch_size=8), model, data)
    assert found.frames["c0", "c0", "weights/1"] == 0
    assert found.frames["c0", "lab", "weights/3"] == 1


@pytest.mark.parametrize(
    ("kind", "handovers"),
    [(SplitMethod, lambda j, e: j * e + 1), (SplitFedMethod, lambda j, e: 2 * j * e)],
)
def test_the_bytes_are_those_of_the_formula(kind, handovers):
    data, epochs = clients(80, 80, 40), 2
    found = run(kind(epochs=epochs, lr=0.1, batch_size=8, cut=1), model_of(), data)
    q = epochs * sum(held.skills[SKILL].samples for held in data.values())
    p, client_part = 16, FEATURES * 16 + 16
    flow = 2 * p * q * 4
    weights = handovers(3, epochs) * client_part * 4
    said = {kind.partition("/")[0]: 0 for _, _, kind in found.bytes}
    for (_, _, what), size in found.bytes.items():
        said[what.partition("/")[0]] += size
    assert said["activations"] - q == p * q * 4  # labels take a byte each
    assert said["activations"] + said["errors"] - q == flow
    assert said["weights"] == weights


@pytest.mark.parametrize("kind", [SplitMethod, SplitFedMethod])
@pytest.mark.parametrize("frame", [0, 1, 3])
def test_a_client_that_dies_is_left_out_and_the_others_go_on(kind, frame):
    model, data = model_of(), clients(60, 90, 40)
    found = run(kind(epochs=2, lr=0.1, batch_size=8), model, data, kill={"c1": frame})
    assert found.carry is not None
    assert found.carry.note.startswith("2 clients")
    assert "lost c1" in found.carry.note
    assert distance(model, model_of()) > 0.01
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_client_before_hands_its_weights_to_the_next_when_one_dies():
    model, data = model_of(), clients(60, 90, 40)
    found = run(SplitMethod(lr=0.1, batch_size=8), model, data, kill={"c1": 3})
    assert found.frames["c0", "c1", "weights/1"] == 1
    assert found.frames["c0", "c2", "weights/2"] == 1


def test_when_the_last_client_dies_the_one_before_brings_the_weights_home():
    model, data = model_of(), clients(60, 90)
    found = run(SplitMethod(lr=0.1, batch_size=8), model, data, kill={"c1": 4})
    assert found.frames["c0", "lab", "weights/2"] == 1
    assert found.carry is not None
    assert found.carry.note.startswith("1 clients")


def test_all_clients_dead_leaves_the_model_as_it_was():
    model, data = model_of(), clients(60, 90)
    found = run(SplitMethod(lr=0.1, batch_size=8), model, data, kill={"c0": 0, "c1": 0})
    assert found.carry is not None
    assert found.carry.note.startswith("0 clients")
    assert distance(model, model_of()) == 0.0


def test_rows_trained_on_at_clients_are_in_the_account():
    data, account = clients(60, 90), work()
    with deterministic(0):
        run_stream(SplitMethod(batch_size=8), model_of(), account, data, header=HEADER)
    assert account.samples == sum(held.skills[SKILL].samples for held in data.values())
    assert account.labels[SKILL].sum() == account.samples


def test_a_node_that_keeps_its_labels_is_no_client():
    hidden = NodeData.of(blobs(60), show_labels=False)
    data = {**clients(60), "c1": hidden}
    found = run(SplitMethod(), model_of(), data)
    assert {b for _, b, _ in found.frames} == {"lab", "c0"}
    with pytest.raises(ModelError, match="keeps its labels"):
        next(SplitMethod().follow(Frame(NodeId("lab"), "order"), hidden, HEADER, 0))


def test_the_cut_follows_the_memory_of_the_weakest_client():
    model = model_of()
    blocks = [FEATURES * 16 + 16, 16 * 12 + 12]
    assert cut_at(model, "auto", 1 << 30) == 2
    assert cut_at(model, "auto", 16 * sum(blocks)) == 2
    assert cut_at(model, "auto", 16 * sum(blocks) - 1) == 1
    assert cut_at(model, "auto", 0) == 1


@pytest.mark.parametrize("cut", [0, 3, "5.weight", "midle"])
def test_a_cut_that_is_nowhere_is_refused_with_what_is_allowed(cut):
    with pytest.raises(ModelError, match="allowed are"):
        cut_at(model_of(), cut, 0)


def test_a_part_of_a_model_takes_its_weights_and_nothing_else():
    whole = model_of()
    chain = chain_of(whole)
    for start, stop in pairwise(range(len(chain) + 1)):
        part = piece(MLP, start, stop)
        put(part, weights_of(joined(chain, start, stop)))
        for p, q in zip(part.parameters(), chain[start].parameters(), strict=True):
            assert torch.equal(p, q)
    with pytest.raises(ModelError, match="expected"):
        put(piece(MLP, 0, 1), weights_of(chain[1]))
    poisoned = {n: np.full_like(a, np.nan) for n, a in weights_of(chain[0]).items()}
    with pytest.raises(ModelError, match="NaN"):
        put(piece(MLP, 0, 1), poisoned)


def test_a_model_that_is_no_sequence_cannot_be_cut():
    departments = Architecture(
        "departments", {"features": {"a": 3}, "classes": {"a": 2}, "width": 4}
    )
    with pytest.raises(ModelError, match="no sequence of blocks"):
        chain_of(build(departments))


def test_one_seed_one_result():
    first, second = model_of(), model_of()
    runs = [run(SplitFedMethod(epochs=2), m, clients(60, 90)) for m in (first, second)]
    assert distance(first, second) == 0.0
    assert runs[0].bytes == runs[1].bytes


def with_rogue(kind, twist, samples=72):
    """Return a method in which the client of so many rows says what `twist` makes of its frames."""

    class Rogue(kind):
        def follow(self, opening, data, header, seed):
            script, answer = kind.follow(self, opening, data, header, seed), None
            while True:
                try:
                    step = script.send(answer)
                except StopIteration:
                    return
                if data.skills[SKILL].samples == samples and isinstance(step, Send):
                    step = twist(step)
                answer = yield step

    return Rogue(lr=0.1, batch_size=8, cut=1)


def twisted(what, **changed):
    def twist(send):
        if not send.kind.startswith(what):
            return send
        arrays = changed.get("arrays", lambda a: a)(dict(send.arrays))
        return replace(send, arrays=arrays, kind=changed.get("kind", send.kind))

    return twist


@pytest.mark.parametrize("kind", [SplitMethod, SplitFedMethod])
@pytest.mark.parametrize(
    "twist",
    [
        twisted("activations", arrays=lambda a: {**a, "a": np.array(1, np.float32)}),
        twisted("activations", kind="activations/next_hop"),
        twisted("activations", kind="activations/a skill nobody wants"),
        twisted("activations", arrays=lambda a: {**a, "a": np.full_like(a["a"], 3e38)}),
        twisted("done", kind=f"activations/{SKILL}"),
    ],
)
def test_a_client_that_sends_nonsense_is_left_out_and_the_others_go_on(kind, twist):
    model, data, account = model_of(), clients(60, 90, 40), work()
    with deterministic(0):
        found = run_stream(with_rogue(kind, twist), model, account, data, header=HEADER)
    assert "lost c1" in found.carry.note
    assert found.carry.note.startswith("2 clients")
    assert list(account.labels) == [SKILL]
    assert distance(model, model_of()) > 0.01
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("other", [lambda w: w.astype(np.int8), lambda w: np.full(w.shape, 1e300)])
@pytest.mark.parametrize("kind", [SplitMethod, SplitFedMethod])
def test_weights_of_another_dtype_are_not_taken_from_anyone(kind, other):
    twist = twisted("weights", arrays=lambda a: {n: other(w) for n, w in a.items()})
    model, data, account = model_of(), clients(60, 90, 40), work()
    with deterministic(0):
        found = run_stream(with_rogue(kind, twist), model, account, data, header=HEADER)
    assert kind is SplitMethod or "lost c1" in found.carry.note
    assert found.frames["c2", "lab", "done"] == 1
    front = weights_of(joined(chain_of(model), 0, 1))
    assert all(np.isfinite(w).all() for w in front.values())
    assert any((w % 1).any() for w in front.values())


def test_a_client_that_never_ends_its_turn_is_left_out():
    def endless(self, opening, data, header, seed):
        if data.skills[SKILL].samples != 72:
            yield from SplitMethod.follow(self, opening, data, header, seed)
            return
        while True:
            frame = {"a": np.ones((8, 16), np.float32), "y": np.zeros(8, np.uint8)}
            yield Send(opening.sender, f"activations/{SKILL}", frame)
            if (yield Receive(opening.sender, "errors", 1.0)) is None:
                return

    method = type("Endless", (SplitMethod,), {"follow": endless})(lr=0.1, batch_size=8, cut=1)
    found = run(method, model_of(), clients(60, 90, 40))
    assert "lost c1" in found.carry.note


def test_a_leader_gets_no_more_passes_than_the_owner_signed_for():
    data, front = clients(16)["c0"], weights_of(joined(chain_of(model_of()), 0, 1))
    script = SplitMethod(epochs=2, batch_size=8).follow(order(0), data, HEADER, 0)
    answer, said, turn = None, [], 0
    while turn < 5:
        step = script.send(answer)
        answer = None
        if isinstance(step, Send):
            said.append(step.kind.partition("/")[0])
            size = len(step.arrays.get("y", ()))
        elif step.kind is None:
            answer, turn = order(turn + 1), turn + 1
        elif step.kind == "errors":
            answer = Frame(NodeId("lab"), "errors", {"e": np.zeros((size, 16), np.float32)})
        else:
            answer = Frame(NodeId("lab"), step.kind, front)
    assert said.count("activations") == 2 * 2
    assert said.count("failed") == 3


def order(turn):
    numbers = {"turn": turn, "epoch": 0, "cut": 1, "lr": 0.1, "kept": 0}
    return Frame(NodeId("lab"), "order", {"to": spelled(""), "from": spelled("")}, numbers)


def test_a_client_takes_weights_from_whom_its_order_names_and_nobody_else():
    script = SplitMethod().follow(order(0), clients(16)["c0"], HEADER, 0)
    assert next(script) == Receive(NodeId("lab"), "weights/0", 20.0)
    wrong = {n: np.full_like(w, np.nan) for n, w in weights_of(chain_of(model_of())[0]).items()}
    assert script.send(Frame(NodeId("lab"), "weights/0", wrong)) == Send(NodeId("lab"), "failed")
