"""Copies of a packet that come back: what their measures carried, made one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.measures.gaussian import Gaussians
from aats.learning.measures.options import Measures
from aats.learning.merge import Child, Mean, merge
from aats.learning.method import Guard
from aats.learning.sequential import SequentialMethod
from aats.learning.weights import initial_payload
from aats.payload import STATE, Array, Payload
from aats.roles.data import NodeData
from aats.testing.methods import MLP, SKILL, Walk, blobs, header_for, reference_for

OPEN = Guard(1.0, float("inf"))
REPLAY = Measures(replay=0.5, replay_minimum=5, replay_rank=8)


def bank(state: Mapping[str, Array]) -> Gaussians:
    place = f"{STATE}replay."
    arrays = {n.removeprefix(place).partition(".")[0]: a for n, a in state.items()
              if n.startswith(place)}  # fmt: skip
    return Gaussians.read(arrays, "test", width=8, rank=arrays["scatter"].shape[1], num_classes=3)


def visited(start: Payload, measures: Measures, seed: int, node: str) -> Payload:
    packet = Walk(header_for(seed=seed), start)
    packet.visit(SequentialMethod(), NodeData.of(blobs(90, seed)), NodeId(node), OPEN, measures)
    return packet.payload


def trunk(measures: Measures) -> Payload:
    return visited(initial_payload(MLP, 0, reference_for(blobs(60, 9))), measures, 1, "a")


def allocate(total: int) -> memoryview:
    return memoryview(bytearray(total))


def test_rows_are_counted_once_whatever_way_the_copies_went() -> None:
    start = trunk(REPLAY)
    copies = [visited(start, REPLAY, seed, node) for seed, node in ((2, "b"), (3, "c"))]
    found = bank(REPLAY.merge_state(start.arrays(STATE), [c.arrays(STATE) for c in copies]))
    held = [blobs(90, seed) for seed in (1, 2, 3)]
    whole = Gaussians.of(
        np.concatenate([d.train_x for d in held]), np.concatenate([d.train_y for d in held]), rank=8
    )
    np.testing.assert_allclose(found.count, whole.count)
    np.testing.assert_allclose(found.mean, whole.mean, atol=1e-4)
    for i in range(3):
        np.testing.assert_allclose(found.covariance(i), whole.covariance(i), atol=1e-3)


def test_a_merge_of_whole_packets_merges_what_measures_carry() -> None:
    measures = Measures(
        replay=0.5, replay_minimum=5, ewc=1.0, ewc_bits=8, ema=2.0, interpolate="seen"
    )
    start = trunk(measures)
    copies = [visited(start, measures, seed, node) for seed, node in ((2, "b"), (3, "c"))]
    children = [Child(c, 72, (NodeId("b"),)) for c in copies]
    arenas: list[memoryview] = []

    def kept(total: int) -> memoryview:
        arenas.append(allocate(total))
        return arenas[-1]

    merging = merge(Mean(), SequentialMethod(), start, children, kept, measures)
    state = Payload(merging.manifest, arenas[-1]).arrays(STATE)
    assert set(state) == set(copies[0].arrays(STATE))
    first, second = (c.arrays(STATE) for c in copies)
    raw = f"{STATE}ema.raw.1.weight"
    np.testing.assert_allclose(state[raw], (first[raw] + second[raw]) / 2, atol=1e-6)
    assert state[f"{STATE}interpolate.seen"].tolist() == [3 * 72]
    assert bank(state).count.tolist() == [3 * 24] * 3
    level, peak = (f"{STATE}ewc.{part}.1.weight" for part in ("importance", "peak"))
    means = [(s[level] / 255.0) ** 2 * s[peak] for s in (first, second)]
    found = (state[level] / 255.0) ** 2 * state[peak]
    np.testing.assert_allclose(
        np.sqrt(found), np.sqrt(np.mean(means, 0)), atol=0.01 * found.max() ** 0.5
    )
    assert copies[0].manifest.version(STATE) != merging.manifest.version(STATE)


def test_nothing_carried_is_nothing_merged() -> None:
    assert REPLAY.merge_state({}, [{}, {}]) == {}
    state = trunk(REPLAY).arrays(STATE)
    assert bank(REPLAY.merge_state({}, [{}, state])).count.tolist() == bank(state).count.tolist()
    assert Measures(distil=0.5).merge_state(state, [state, state]) == {}


def test_importance_in_32_bits_is_averaged() -> None:
    measures = Measures(ewc=1.0)
    name = f"{STATE}ewc.importance.w"
    found = measures.merge_state({}, [{name: np.full(2, v, np.float32)} for v in (1, 4)])
    assert found[name].tolist() == [2.5, 2.5]


def test_copies_that_do_not_fit_are_told() -> None:
    state = trunk(REPLAY).arrays(STATE)
    narrow = trunk(Measures(replay=0.5, replay_minimum=5, replay_rank=0)).arrays(STATE)
    with pytest.raises(ModelError, match="different shapes"):
        REPLAY.merge_state({}, [state, narrow])
    name = f"{STATE}ema.raw.w"
    with pytest.raises(ModelError, match="different shapes"):
        Measures(ema=1.0).merge_state({}, [{name: np.zeros(2)}, {name: np.zeros(3)}])
    assert f"{STATE}replay.mean.{SKILL}" in state


@pytest.mark.parametrize(
    ("measures", "base", "bad"),
    [
        (Measures(ema=1.0), {}, {"ema.raw.w": np.zeros(2, np.int8)}),
        (Measures(ema=1.0), {}, {"ema.weight": np.array([7.0])}),
        (Measures(ewc=1.0), {}, {"ewc.importance.w": np.full(2, -1, np.float32)}),
        (Measures(interpolate="seen"), {"interpolate.seen": np.array([9.0])},
         {"interpolate.seen": np.array([3.0])}),
    ],
)  # fmt: skip
def test_what_no_next_visit_would_take_is_refused_in_a_merge(
    measures: Measures, base: Mapping[str, Array], bad: Mapping[str, Array]
) -> None:
    good = {"ema.raw.w": np.zeros(2, np.float32), "ema.weight": np.array([0.5]),
            "ewc.importance.w": np.ones(2, np.float32),
            "interpolate.seen": np.array([12.0])}  # fmt: skip
    trunk = {STATE + name: array for name, array in base.items()}
    states = [{STATE + n: a for n, a in (good | dict(more)).items()} for more in ({}, {}, bad)]
    measures.merge_state(trunk, states[:2])
    with pytest.raises(ModelError, match="cop"):
        measures.merge_state(trunk, states)
