"""Snake: one middle block a visit, each once a cycle; what is frozen stays, to the bit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aats.advert import ComputeAdvert
from aats.errors import ModelError, ScenarioError
from aats.identity import Identity
from aats.ids import NodeId
from aats.learning import models
from aats.learning.blocks import blocks_of, parameters_of, size_of
from aats.learning.memory import training_bytes
from aats.learning.method import Stop, Work, method_of, prepared
from aats.learning.snake import Place, SnakeMethod
from aats.learning.weights import initial_payload
from aats.packet import Architecture, Plugin, Target
from aats.payload import MODEL, Payload, pack
from aats.roles.data import NodeData, SkillData
from aats.roles.owner import make_packet
from aats.testing import check_method
from aats.testing.methods import (
    CLASSES,
    FEATURES,
    NODE,
    SKILL,
    Walk,
    blobs,
    header_for,
    reference_for,
)

DEEP = Architecture("mlp", {"features": FEATURES, "hidden": [16] * 5, "classes": CLASSES})
MIDDLE = 4
DATA = NodeData.of(blobs(120))
NUMBER = "snake.block"


def walk(architecture: Architecture = DEEP, seed: int = 0) -> Walk:
    return Walk(
        header_for(architecture, seed=seed),
        initial_payload(architecture, seed, reference_for(blobs(60, 9))),
    )


def stop(**more: Any) -> Stop:
    return Stop(NODE, 0, 1, dict(DATA.skills), **more)


def module(architecture: Architecture = DEEP, seed: int = 0) -> nn.Module:
    model = models.build(architecture)
    models.initialise(model, seed)
    return model


def train(method: SnakeMethod, model: nn.Module, at: Stop) -> Mapping[str, float]:
    plan = method.plan(at)
    assert plan is not None
    torch.manual_seed(at.seed)
    return method.train(model, Work(at, plan)).trained


def trained_blocks(method: SnakeMethod, visits: int, seed: int = 0) -> list[int]:
    packet, found = walk(seed=seed), []
    for i in range(visits):
        packet.visit(method, DATA, NodeId(f"n{i % 3}"))
        found.append(int(packet.header.trained[NUMBER]))
    return found


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"optimiser": "adam", "lr": 0.01},
        {"mixed": True},
        {"frozen_bits": 8},
        {"frozen_bits": 8, "mixed": True, "distil": "always"},
        {"order": "random", "assign": "fit", "distil": "always"},
    ],
    ids=str,
)
def test_it_keeps_its_side_of_the_protocol(params: dict[str, Any]) -> None:
    check_method(SnakeMethod(**params), DEEP)


def test_a_mandate_names_it_and_is_told_what_is_wrong() -> None:
    method, *_ = method_of(Plugin("snake", {"order": "random", "tau": 0.1}))
    assert method == SnakeMethod(order="random", tau=0.1)
    with pytest.raises(ScenarioError, match="order is 'spiral', allowed are shallow-to-deep"):
        method_of(Plugin("snake", {"order": "spiral"}))
    with pytest.raises(ScenarioError, match="frozen_bits is 4, allowed are 0 and 8"):
        method_of(Plugin("snake", {"frozen_bits": 4}))


# --- what is trained, what is frozen ---


@pytest.mark.parametrize(
    "params", [{}, {"frozen_bits": 8}, {"mixed": True}, {"frozen_bits": 8, "mixed": True}], ids=str
)
def test_a_visit_changes_first_last_and_one_middle_block_and_no_bit_of_the_rest(
    params: dict[str, Any],
) -> None:
    packet = walk()
    blocks = blocks_of(models.build(DEEP))
    for i in range(2 * MIDDLE):
        before = {t.name: t.digest for t in packet.payload.manifest.tensors}
        packet.visit(SnakeMethod(**params), DATA, NodeId(f"n{i}"))
        changed = {t.name for t in packet.payload.manifest.missing(before.values())}
        touched = (blocks[0], blocks[1 + i % MIDDLE], blocks[-1])
        model = models.build(DEEP)
        allowed = {MODEL + n for block in touched for n in parameters_of(model, block)}
        assert {name for name in changed if name.startswith(MODEL)} == allowed


def test_gradients_flow_through_what_is_frozen_which_holds_none() -> None:
    seen: list[set[str]] = []
    model = module()
    names = {p: n for n, p in model.named_parameters()}
    at = stop()

    class Looking(Work):
        def __iter__(self) -> Any:
            for item in super().__iter__():
                yield item
                seen.append({names[p] for p in model.parameters() if p.grad is not None})

    plan = SnakeMethod().plan(at)
    assert plan is not None
    SnakeMethod().train(model, Looking(at, plan))
    blocks = blocks_of(model)
    mine = {n for b in (blocks[0], blocks[1], blocks[-1]) for n in parameters_of(model, b)}
    assert seen
    assert all(step == mine for step in seen)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Normed(nn.Sequential):
    """A chain with BatchNorm in each block."""

    def __init__(self) -> None:
        super().__init__(
            *(
                layer
                for n in (FEATURES, 16, 16, 16)
                for layer in (nn.Linear(n, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU())
            ),
            nn.Linear(16, CLASSES),
        )


def test_the_running_statistics_of_a_frozen_batch_norm_stay_as_they_are() -> None:
    model = Normed()
    models.initialise(model, 0)
    before = {n: b.clone() for n, b in model.named_buffers()}
    modes: list[bool] = []
    model[9].register_forward_hook(lambda *_: modes.append(model[10].training))
    train(SnakeMethod(), model, stop(trained={"snake.cycle": 0.0}))
    moved = {n.split(".")[0] for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    assert moved == {"1", "5"}, "those of the first and the trained block only"
    assert set(modes) == {False}, "dropout of a frozen block is off, too"


def test_a_model_without_a_middle_is_refused() -> None:
    shallow = Architecture("mlp", {"features": FEATURES, "hidden": [4], "classes": CLASSES})
    with pytest.raises(ModelError, match="a first, a middle and a last block, not 2"):
        train(SnakeMethod(), module(shallow), stop())


def test_it_trains_a_transformer_layer_by_layer() -> None:
    config = {"vocabulary": 12, "length": 6, "depth": 3, "width": 8, "heads": 2, "classes": 3}
    tokens = np.random.default_rng(0).integers(0, 12, (90, 6))
    data = NodeData.of(SkillData.of(SKILL, tokens, tokens[:, 0] % 3, num_classes=3))
    check_method(SnakeMethod(), Architecture("transformer", config), data)
    check_method(SnakeMethod(frozen_bits=8), Architecture("transformer", config), data)


# --- order ---


def test_a_cycle_goes_from_shallow_to_deep_or_back() -> None:
    assert trained_blocks(SnakeMethod(), 2 * MIDDLE) == [1, 2, 3, 4] * 2
    assert trained_blocks(SnakeMethod(order="deep-to-shallow"), 2 * MIDDLE) == [4, 3, 2, 1] * 2


@pytest.mark.parametrize("seed", range(4))
def test_in_random_order_too_every_cycle_trains_each_middle_block_once(seed: int) -> None:
    found = trained_blocks(SnakeMethod(order="random"), 3 * MIDDLE, seed)
    cycles = [found[i : i + MIDDLE] for i in range(0, len(found), MIDDLE)]
    assert all(sorted(cycle) == [1, 2, 3, 4] for cycle in cycles)
    assert len({tuple(c) for c in cycles}) > 1


@given(count=st.integers(1, 100), cycle=st.integers(0, 1000), seed=st.randoms())
def test_the_place_in_the_cycle_survives_the_journey_as_numbers(
    count: int, cycle: int, seed: random.Random
) -> None:
    place = Place(count, cycle)
    for done in range(count):
        assert len(place.left) == count - done
        place = place.after(seed.choice(place.left))
        assert Place.of(place.numbers, count) == place
    assert place == Place(count, cycle + 1)


@pytest.mark.parametrize("value", [-1.0, 0.5, float("inf"), float("nan"), 2.0**60])
def test_numbers_that_make_no_sense_are_refused(value: float) -> None:
    with pytest.raises(ModelError, match=r"must be a whole number below 2\^48"):
        Place.of({"snake.done.0": value}, 4)


def test_a_visit_that_is_undone_leaves_its_block_to_be_trained() -> None:
    packet = walk()
    packet.visit(SnakeMethod(), DATA)
    before = dict(packet.header.trained)
    always = method_of(Plugin("snake", {"rollback_loss": 0.0, "lr": 1e6, "clip": 0.0}))
    result = packet.visit(always[0], DATA, guard=always[1])
    assert result.action == "rolled-back"
    assert packet.header.trained["snake.done.0"] == before["snake.done.0"] == 1.0
    assert packet.visit(SnakeMethod(), DATA).trained[NUMBER] == 2.0


def test_the_rate_decays_by_cycle_and_not_within() -> None:
    at = stop(trained={"snake.cycle": 0.0})
    once, late, rest = module(), module(), module()
    train(SnakeMethod(lr=0.1, decay=0.5), once, at)
    train(SnakeMethod(lr=0.2, decay=0.5), late, replace(at, trained={"snake.cycle": 1.0}))
    train(SnakeMethod(lr=0.1, decay=0.5), rest, replace(at, trained={"cycle": 7.0, **at.trained}))
    for a, b, c in zip(once.parameters(), late.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


# --- who gets which block ---

UNEVEN = Architecture("mlp", {"features": FEATURES, "hidden": [8, 32, 8, 64], "classes": CLASSES})


def assigned(at: Stop, **params: Any) -> int:
    return int(train(SnakeMethod(assign="fit", **params), module(UNEVEN), at)[NUMBER])


def numbers(mean_speed: float, **more: float) -> dict[str, float]:
    met = {"snake.met.nodes": 3.0, "snake.met.speed": mean_speed, "snake.met.bandwidth": 1e6}
    return {"snake.cycle": 0.0, **met, **more}


def test_a_slow_node_or_one_on_a_slow_link_gets_a_cheap_block_and_a_fast_one_a_dear_one() -> None:
    sizes = [size_of(module(UNEVEN), b) for b in blocks_of(module(UNEVEN))[1:-1]]
    cheapest, dearest = 1 + int(np.argmin(sizes)), 1 + int(np.argmax(sizes))
    fast, slow = ComputeAdvert(samples_per_s=1e6), ComputeAdvert(samples_per_s=1.0)
    wide, narrow = 1e12, 1.0
    there = numbers(1000.0)
    assert assigned(stop(trained=there, compute=fast, bandwidth_bps=wide)) == dearest
    assert assigned(stop(trained=there, compute=slow, bandwidth_bps=wide)) == cheapest
    assert assigned(stop(trained=there, compute=fast, bandwidth_bps=narrow)) == cheapest


def test_what_does_not_fit_the_memory_is_left_to_others_and_what_is_done_is_done() -> None:
    model = module(UNEVEN)
    sizes = [size_of(model, b) for b in blocks_of(model)]
    order = sorted(range(1, len(sizes) - 1), key=lambda i: sizes[i])
    total, ends = sum(sizes), sizes[0] + sizes[-1]
    room = training_bytes(total, ends + sizes[order[1]], optimiser="sgd")
    small = ComputeAdvert(samples_per_s=1e6, memory_bytes=room)
    at = stop(trained=numbers(1.0), compute=small, bandwidth_bps=1e12)
    assert assigned(at) == order[1]
    done = sum(1 << i - 1 for i in order[:2])
    with pytest.raises(ModelError, match=f"any block left .* bytes, {NODE} has {room}"):
        assigned(replace(at, trained=numbers(1.0, **{"snake.done.0": float(done)})))


def test_the_means_of_the_nodes_met_travel() -> None:
    packet = walk()
    for _ in range(2):
        packet.visit(SnakeMethod(assign="fit"), DATA)
    assert packet.header.trained["snake.met.nodes"] == 2.0


# --- distillation ---


def one_sided(label: int) -> NodeData:
    held = blobs(240)
    mine = held.train_y == label
    return NodeData.of(replace(held, train_x=held.train_x[mine], train_y=held.train_y[mine]))


def test_the_received_model_teaches_where_the_data_differ_from_the_last_nodes() -> None:
    packet, method = walk(), SnakeMethod()
    for data, taught in ((DATA, 0.0), (DATA, 0.0), (one_sided(0), 1.0), (one_sided(0), 0.0)):
        packet.visit(method, data)
        assert packet.header.trained["snake.taught"] == taught
    packet.visit(method, one_sided(1))
    assert packet.header.trained["snake.divergence"] == pytest.approx(1.0, abs=1e-6)


def test_untrained_weights_teach_nothing() -> None:
    packet = walk()
    for taught in (0.0, 1.0):
        packet.visit(SnakeMethod(distil="always"), DATA)
        assert packet.header.trained["snake.taught"] == taught


def test_a_node_that_keeps_its_labels_says_nothing_and_is_compared_with_none() -> None:
    packet, method = walk(), SnakeMethod()
    packet.visit(method, DATA)
    packet.visit(method, replace(one_sided(0), show_labels=False))
    assert packet.header.trained["snake.taught"] == 0.0
    names = {t.name for t in packet.payload.manifest.tensors if t.name.startswith("state.")}
    assert names == {f"state.snake.edges.{SKILL}"}
    packet.visit(method, one_sided(0))
    assert packet.header.trained["snake.taught"] == 0.0


def test_distillation_keeps_more_of_what_other_nodes_taught() -> None:
    def after(distil: str) -> float:
        packet = walk()
        for i in range(3 * MIDDLE):
            packet.visit(SnakeMethod(lr=0.1), DATA, NodeId(f"n{i}"))
        result = packet.visit(
            SnakeMethod(lr=0.1, epochs=3, distil=distil, distil_weight=2.0), one_sided(0)
        )
        return result.loss_after

    assert after("always") < after("never")


def test_it_does_not_lose_the_state_that_others_carry() -> None:
    packet = walk()
    arrays = {**packet.payload.arrays(""), "state.other": np.ones(3, np.float32)}
    packet.payload = pack(arrays)
    packet.visit(SnakeMethod(), DATA)
    assert "state.other" in {t.name for t in packet.payload.manifest.tensors}


# --- initial weights ---

BLIND = Architecture("mlp", {"features": FEATURES, "hidden": [16] * 9, "classes": CLASSES})


def default_payload(architecture: Architecture, seed: int = 0) -> Payload:
    """Return weights as torch draws them."""
    torch.manual_seed(seed)
    model = models.build(architecture)
    fresh = initial_payload(architecture, seed, reference_for(blobs(60, 9)))
    drawn = {MODEL + n: t.detach().numpy() for n, t in model.state_dict().items()}
    return pack({**fresh.arrays(""), **drawn})


@pytest.mark.parametrize("architecture", [BLIND, Architecture("vgg", {"side": 28, "classes": 3})])
def test_weights_that_let_no_signal_through_are_refused_before_the_packet_leaves(
    architecture: Architecture,
) -> None:
    if architecture.name == "vgg":
        rng = np.random.default_rng(0)
        images = rng.random((30, 28, 28), np.float32)
        reference = {SKILL: (images, np.arange(30) % 3)}
        torch.manual_seed(0)
        drawn = models.build(architecture).state_dict()
        fresh = initial_payload(architecture, 0, reference)
        payload = pack(
            {**fresh.arrays(""), **{MODEL + n: t.detach().numpy() for n, t in drawn.items()}}
        )
    else:
        payload = default_payload(architecture)
    owner = Identity.from_seed(NodeId("owner"), b"x")
    wanted = (Target(SKILL, 0.9),)
    with pytest.raises(ModelError, match="of the signal through to the last block"):
        make_packet(
            owner, architecture, wanted, created=0.0, method=Plugin("snake"), payload=payload
        )


def test_our_own_initialisation_passes_and_a_blind_one_is_repaired_if_asked() -> None:
    for seed in range(5):
        fresh = initial_payload(BLIND, seed, reference_for(blobs(60, 9)))
        assert prepared(Plugin("snake"), BLIND, fresh, seed) is fresh
    blind = default_payload(BLIND)
    assert prepared(Plugin("snake", {"initial": "any"}), BLIND, blind, 0) is blind
    mended = prepared(Plugin("snake", {"initial": "repair"}), BLIND, blind, 7)
    wanted = initial_payload(BLIND, 7, reference_for(blobs(60, 9)))
    assert mended.manifest.version(MODEL) == wanted.manifest.version(MODEL)
    assert mended.manifest.version("ref.") == blind.manifest.version("ref.")
    mended.verify()


def test_without_a_reference_set_the_first_stop_judges() -> None:
    torch.manual_seed(0)
    blind = models.build(BLIND)
    with pytest.raises(ModelError, match=r"needed is 0\.125"):
        train(SnakeMethod(), blind, stop())
    assert train(SnakeMethod(initial="repair"), blind, stop())
    assert train(SnakeMethod(), blind, stop())


def test_torchs_own_initialisation_stays_at_chance_where_he_learns() -> None:
    def skill(payload: Payload) -> float:
        packet = Walk(header_for(BLIND), payload)
        for i in range(24):
            packet.visit(SnakeMethod(initial="any", lr=0.1), DATA, NodeId(f"n{i}"))
        return max(e.value for e in packet.header.skills)

    he = initial_payload(BLIND, 0, reference_for(blobs(60, 9)))
    assert skill(default_payload(BLIND)) <= 0.4
    assert skill(he) >= 0.8
