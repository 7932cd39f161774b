"""Momentum that travels: in few bits, and without a break between stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from aats.errors import ModelError, ScenarioError
from aats.ids import NodeId
from aats.learning.method import method_of
from aats.learning.models import build
from aats.learning.momentum import (
    PREFIX,
    RANGE,
    mean_momentum,
    quantised,
    read_momentum,
    restored,
    write_momentum,
)
from aats.learning.sequential import SequentialMethod
from aats.learning.weights import initial_payload
from aats.packet import Plugin
from aats.payload import MODEL, STATE
from aats.roles.data import NodeData, SkillData
from aats.testing import check_method
from aats.testing.methods import MLP, SKILL, Walk, blobs, header_for

VALUES = arrays.arrays(
    np.float32, st.integers(0, 40), elements=st.floats(-1e3, 1e3, width=32)
)  # fmt: skip


@given(VALUES, st.sampled_from([8, 16]))
def test_a_value_comes_back_within_half_a_step(values: np.ndarray, bits: int) -> None:
    codes, span = quantised(values, bits)
    assert codes.dtype.itemsize * 8 == bits
    step = float(span[1] - span[0]) / (2**bits - 1)
    np.testing.assert_allclose(restored(codes, span), values, atol=0.51 * step + 1e-3)


def test_codes_are_the_papers() -> None:
    """s = (2^b - 1) / (q - p), z = -round(p s) - 2^(b-1), v_q = round(s v + z)."""
    values = np.array([-1.0, -0.5, 0.0, 2.0], np.float32)
    codes, _ = quantised(values, 8)
    s = 255 / 3
    z = -round(-1.0 * s) - 128
    assert codes.tolist() == [round(s * float(v) + z) for v in values]
    assert (codes.min(), codes.max()) == (-128, 127)


def walk() -> Walk:
    return Walk(header_for(), initial_payload(MLP, 0))


def halves(data: SkillData) -> tuple[NodeData, NodeData, NodeData]:
    """Return all rows, and the same rows in two parts of one batch each."""
    middle = len(data.train_y) // 2

    def part(rows: slice) -> NodeData:
        return NodeData.of(SkillData(
            SKILL, data.train_x[rows], data.train_y[rows], data.test_x, data.test_y, 3, "",
        ))  # fmt: skip

    return part(slice(None)), part(slice(middle)), part(slice(middle, None))


def test_momentum_in_full_goes_on_as_if_there_had_been_no_hop() -> None:
    _, first, second = halves(blobs(60))
    method = SequentialMethod(
        lr=0.1, batch_size=100, decay=1.0, momentum=0.9, carry_momentum=32, clip=0.0
    )
    packet = walk()
    packet.visit(method, first, NodeId("a"))
    packet.visit(method, second, NodeId("b"))
    packet.visit(method, first, NodeId("c"))

    net = build(MLP)
    start = initial_payload(MLP, 0).arrays(MODEL)
    net.load_state_dict({n.removeprefix(MODEL): torch.tensor(a) for n, a in start.items()})
    torchs = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for data in (first, second, first):
        held = data.skills[SKILL]
        torchs.zero_grad()
        x, y = torch.from_numpy(held.train_x), torch.from_numpy(held.train_y)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        torchs.step()
    for name, p in net.state_dict().items():
        found = packet.payload.arrays(MODEL)[MODEL + name]
        np.testing.assert_allclose(found, p.numpy(), rtol=1e-4, atol=1e-5)


def size(packet: Walk, prefix: str) -> int:
    return sum(t.size for t in packet.payload.manifest.tensors if t.name.startswith(prefix))


@pytest.mark.parametrize(("bits", "share"), [(8, 0.25), (16, 0.5), (32, 1.0)])
def test_momentum_costs_its_bits(bits: int, share: float) -> None:
    method = SequentialMethod(momentum=0.9, carry_momentum=bits)
    check_method(method)
    packet = walk()
    packet.visit(method, NodeData.of(blobs()))
    assert size(packet, PREFIX) == share * size(packet, MODEL)
    assert size(packet, RANGE) == (0 if bits == 32 else 8 * 4)


def test_8_bits_learn_nearly_what_32_do() -> None:
    values = []
    for bits in (8, 32):
        packet, data = walk(), blobs(300, wrong=0.2)
        method = SequentialMethod(lr=0.01, momentum=0.9, carry_momentum=bits)
        for number in range(6):
            packet.visit(method, NodeData.of(data), NodeId(f"n{number % 2}"))
        values.append(np.concatenate([a.ravel() for a in packet.payload.arrays(MODEL).values()]))
    eight, full = values
    start = np.concatenate([a.ravel() for a in initial_payload(MLP, 0).arrays(MODEL).values()])
    moved = np.linalg.norm(full - start)
    assert 0 < np.linalg.norm(eight - full) < 0.05 * moved


@pytest.mark.parametrize(
    "params",
    [
        {"momentum": 0.9, "carry_momentum": 12},
        {"carry_momentum": 8},
        {"momentum": 0.9, "carry_momentum": 8, "average_last": 3},
    ],
)
def test_what_makes_no_sense_is_refused(params: dict[str, float]) -> None:
    with pytest.raises(ScenarioError, match="carry_momentum"):
        method_of(Plugin("sequential", params))


@pytest.mark.parametrize("bits", [8, 32])
def test_momentum_that_does_not_fit_is_refused(bits: int) -> None:
    net = build(MLP)
    whole = write_momentum({n: p.detach().clone() for n, p in net.named_parameters()}, bits)
    assert set(read_momentum(net, whole, bits)) == dict(net.named_parameters()).keys()
    name = PREFIX + "1.weight"
    bad = {
        "shape": {**whole, name: whole[name][:2]},
        "dtype": {**whole, name: whole[name].astype(np.float16)},
        "value": (
            {**whole, name: np.full_like(whole[name], np.nan)} if bits == 32
            else {**whole, RANGE + "1.weight": np.array([0, np.inf], np.float32)}
        ),
    }  # fmt: skip
    for state in bad.values():
        with pytest.raises(ModelError, match=r"momentum\.1\.weight"):
            read_momentum(net, state, bits)


def test_copies_merge_to_the_mean_momentum_and_forget_past_weights() -> None:
    parts = [{PREFIX + "w": np.full(3, v, np.float32)} for v in (1.0, 3.0)]
    trunk = {f"{STATE}last.0.w": np.zeros(3, np.float32), f"{STATE}other": np.ones(1, np.float32)}
    merged = SequentialMethod(momentum=0.9, carry_momentum=32).merge_state(trunk, parts)
    assert {n: a.tolist() for n, a in merged.items()} == {
        f"{STATE}other": [1.0], PREFIX + "w": [2.0, 2.0, 2.0],
    }  # fmt: skip
    small = [
        write_momentum({"w": torch.tensor([v, -v, 0.0])}, 8) for v in (1.0, 3.0)
    ]  # fmt: skip
    mean = mean_momentum(small)
    np.testing.assert_allclose(
        restored(mean[PREFIX + "w"], mean[RANGE + "w"]), [2, -2, 0], atol=0.05
    )
    assert mean_momentum([{}, {}]) == {}


def test_momentum_of_copies_that_differ_in_kind_is_refused() -> None:
    small = [write_momentum({"w": torch.tensor([1.0, 2.0])}, bits) for bits in (8, 8, 16)]
    mean_momentum(small[:2])
    for odd in (small[2], {PREFIX + "w": small[0][PREFIX + "w"]}, {PREFIX + "v": np.ones(2)}):
        with pytest.raises(ModelError, match="copies"):
            mean_momentum([small[0], odd])
