"""Several nodes learn what one graph would, and survive the death of any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from aats.errors import ModelError, ScenarioError
from aats.ids import NodeId
from aats.learning.inl.encoder import kept, noise_of
from aats.learning.inl.following import facts_of
from aats.learning.inl.methods import InlMethod, VflMethod
from aats.learning.inl.nets import FUSION, InlNet
from aats.learning.method import Plan, method_of
from aats.learning.partition import Spread
from aats.learning.stream import Script, Send
from aats.learning.views import View
from aats.packet import Architecture, Plugin
from aats.roles.data import NodeData, SkillData
from aats.testing.streams import run_stream
from tests.learning.inl.views_of_digits import (
    HOME,
    LABELS,
    LEFT,
    NOISY,
    SKILL,
    TWO,
    WHOLE,
    accuracy,
    architecture,
    header,
    net,
    run,
    spread,
    work,
)

CHAIN = {"left": "whole", "whole": ["", "noisy"], "noisy": ""}
"""An inner node that gets a code and passes its own to two."""
THREE: Mapping[str, View] = {**TWO, "shop": WHOLE}
OWN: Mapping[str, View] = {"clinic": LEFT, "lab": NOISY, HOME: replace(WHOLE, labels=True)}
"""The leader has a view of its own."""


def one_graph(
    method: VflMethod, module: InlNet, found: Spread, seed: int = 7
) -> dict[str, torch.Tensor]:
    """Return the gradients of one step, everything in one autograd graph, by plain means."""
    settings = method.settings()
    home = NodeData.of(found.nodes[HOME])
    drawing = work(home, Plan({SKILL: 1}, method.batch_size), seed)
    next(iter(drawing))
    ids = home.skills[SKILL].row_ids[drawing.drawn]
    y = torch.from_numpy(home.skills[SKILL].train_y[drawing.drawn])
    by_view = {d.view: d for d in found.nodes.values()}
    there, codes, total = {}, {}, torch.zeros(())
    module.train()
    for view in module.order:
        data = by_view[view]
        row_of = {int(i): r for r, i in enumerate(data.row_ids)}
        here = np.array([int(i) in row_of for i in ids])
        x = torch.from_numpy(data.train_x[[row_of[int(i)] for i in ids[here]]])
        incoming = [
            (codes[v] * torch.from_numpy(
                there[v] & kept(settings.drop, len(ids), seed, 0, v, view))[:, None])[here]
            for v in module.before(view)
        ]  # fmt: skip
        link = module.link(view)
        raw = link(x.reshape(len(x), *module.wires[view].shape), incoming)
        sent = link.channel.send(raw, noise_of(seed, 0, view), False)
        whole = torch.zeros(len(ids), link.channel.width)
        codes[view] = whole.index_put((torch.from_numpy(np.flatnonzero(here)),), sent.code)
        there[view] = here
        total = total + settings.weight * sent.nats.sum() / len(ids)
    masks = [there[v] & kept(settings.drop, len(ids), seed, 0, v, FUSION) for v in module.direct]
    mask = np.stack(masks, 1)
    none = ~mask.any(1)
    for i, v in enumerate(module.direct):
        mask[none, i] = there[v][none]
    total = total + module.loss(
        codes, torch.from_numpy(mask.astype(np.float32)), y, settings.satellites
    )
    total.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def assert_stream_is_one_graph(method: VflMethod, model: Architecture, found: Spread) -> None:
    one = replace(method, optimiser="sgd", lr=1.0, measure=0)
    module = net(model)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    run(one, model, module, found, steps=1)
    want = one_graph(one, net(model), found)
    for name, p in module.named_parameters():
        moved = before[name] - p.detach()
        expected = want.get(name, torch.zeros_like(p))
        assert (moved - expected).abs().max() < 1e-6, name
    assert any(g.abs().max() > 1e-3 for n, g in want.items() if "link" in n)


@pytest.mark.parametrize("fusion", ["concatenate", "attention"])
@pytest.mark.parametrize("channel", ["exact", "gaussian", "dithered", "levels"])
def test_gradients_of_two_encoders_are_those_of_one_graph(channel: str, fusion: str) -> None:
    model = architecture(channel=channel, fusion=fusion)
    assert_stream_is_one_graph(InlMethod(s=0.1, batch_size=16), model, spread())


@pytest.mark.parametrize(
    ("into", "views"), [(CHAIN, THREE), (CHAIN, OWN), ({"left": "noisy"}, TWO)]
)
@pytest.mark.parametrize("channel", ["exact", "dithered"])
def test_gradients_through_inner_nodes_are_those_of_one_graph(
    channel: str, into: Mapping[str, Any], views: Mapping[str, View]
) -> None:
    model = architecture(into, channel=channel)
    assert_stream_is_one_graph(InlMethod(s=0.1, batch_size=16), model, spread(views))


def test_rows_that_a_view_lacks_and_links_that_drop_change_nothing_of_that() -> None:
    views = {
        "clinic": replace(LEFT, missing=0.3), "lab": replace(NOISY, missing=0.3),
        "shop": WHOLE, HOME: LABELS,
    }  # fmt: skip
    method = InlMethod(s=0.1, batch_size=24, drop=0.4)
    assert_stream_is_one_graph(method, architecture(CHAIN, channel="dithered"), spread(views))


def test_a_cnn_may_encode_a_view() -> None:
    views = {v: {"shape": [1, 8, 8], "encoder": "cnn", "hidden": [4]} for v in ("left", "noisy")}
    model = Architecture("inl", {"views": views, "classes": 10, "code": 4, "channel": "exact"})
    assert_stream_is_one_graph(VflMethod(batch_size=16), model, spread())


def weights(module: InlNet) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in module.state_dict().items()}


@pytest.mark.parametrize("channel", ["dithered", "levels"])
def test_real_bytes_in_training_change_no_weight(channel: str) -> None:
    model, found = architecture(CHAIN, channel=channel), spread(THREE)
    plain, coded = net(model), net(model)
    one = run(InlMethod(measure=0), model, plain, found, steps=6)
    two = run(InlMethod(measure=0, coded=True), model, coded, found, steps=6)
    assert all(torch.equal(t, weights(coded)[n]) for n, t in weights(plain).items())
    sent = {kind for _, _, kind in one.bytes}
    assert sent == {kind for _, _, kind in two.bytes}
    assert (
        two.bytes[NodeId("clinic"), NodeId("shop"), "code"]
        < (one.bytes[NodeId("clinic"), NodeId("shop"), "code"])
    )


def identical(order: list[str]) -> tuple[InlNet, Spread, Architecture]:
    """Return a model of two equal encoders and nodes whose inputs are in this order."""
    model = architecture(channel="exact")
    module = net(model)
    module.link("noisy").load_state_dict(module.link("left").state_dict())
    half = module.decoder[0].weight.shape[1] // 2
    with torch.no_grad():
        module.decoder[0].weight[:, half:] = module.decoder[0].weight[:, :half]
    found = spread()
    given = [found.nodes[n] for n in order]
    swapped = {
        "clinic": replace(given[0], view="left"), "lab": replace(given[1], view="noisy"),
        HOME: found.nodes[HOME],
    }  # fmt: skip
    return module, replace(found, nodes=swapped), model


def test_two_equal_encoders_with_swapped_inputs_learn_each_other_s_part() -> None:
    method = VflMethod(optimiser="sgd", lr=0.5, measure=0, batch_size=16)
    learnt = []
    for order in (["clinic", "lab"], ["lab", "clinic"]):
        module, found, model = identical(order)
        run(method, model, module, found, steps=3)
        learnt.append(module)
    one, two = learnt
    for first, second in (("left", "noisy"), ("noisy", "left")):
        for a, b in zip(one.link(first).parameters(), two.link(second).parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    a, b = (next(iter(m.link("left").parameters())) for m in learnt)
    assert not torch.allclose(a, b, atol=1e-4)


def test_samples_in_another_order_and_with_strangers_among_them_are_aligned_by_id() -> None:
    model, method = architecture(channel="dithered"), InlMethod(measure=64)
    found = spread()
    mixed = dict(found.nodes)
    data = mixed["lab"]
    rng = np.random.default_rng(1)
    order = rng.permutation(data.samples)
    strange = np.array([10**6, 10**6 + 1])
    mixed["lab"] = replace(
        data,
        train_x=np.concatenate([np.full((2, 64), 9, np.float32), data.train_x[order]]),
        train_y=np.concatenate([data.train_y[:2], data.train_y[order]]),
        ids=np.concatenate([strange, data.row_ids[order]]),
    )
    one, two = net(model), net(model)
    run(method, model, one, found, steps=10)
    run(method, model, two, replace(found, nodes=mixed), steps=10)
    assert all(torch.equal(t, weights(two)[n]) for n, t in weights(one).items())


@pytest.mark.parametrize("fusion", ["concatenate", "attention"])
def test_inl_learns_and_says_what_it_takes(fusion: str) -> None:
    model, found = architecture(fusion=fusion), spread(rows=1797)
    module = net(model)
    before = accuracy(module, found)
    result = run(InlMethod(epochs=8, lr=3e-3, s=0.003), model, module, found)
    assert accuracy(module, found) > before + 0.4
    assert result.carry is not None
    told = result.carry.trained
    assert told["network_accuracy"] > before + 0.4
    for view in ("left", "noisy"):
        assert 0 < told[f"kl.{view}"] <= told[f"bits.{view}"] + 0.05
        assert told[f"bits.{view}"] < 1.03 * told[f"kl.{view}"] + 0.2


@pytest.mark.parametrize("channel", ["dithered", "gaussian", "levels", "exact"])
def test_the_bits_told_are_the_bytes_on_the_wire(channel: str) -> None:
    model, found = architecture(CHAIN, channel=channel), spread(THREE)
    result = run(InlMethod(epochs=1, measure=50), model, net(model), found)
    assert result.carry is not None
    told = result.carry.trained
    wired = {
        "left": [("clinic", "shop")], "whole": [("shop", HOME), ("shop", "lab")],
        "noisy": [("lab", HOME)],
    }  # fmt: skip
    for view, links in wired.items():
        total = sum(result.bytes[NodeId(a), NodeId(b), "payload"] for a, b in links)
        assert told[f"bits.{view}"] * 50 == pytest.approx(8 * total)


@pytest.mark.parametrize(
    ("channel", "capacity"),
    [("levels", 6.0), pytest.param("gaussian", 4.0, marks=pytest.mark.slow)],
)
def test_a_capacity_is_met(channel: str, capacity: float) -> None:
    model, found = architecture(channel=channel), spread(rows=1797)
    module = net(model)
    method = InlMethod(epochs=20, lr=3e-3, capacity=capacity, rho=3e-4)
    result = run(method, model, module, found)
    assert result.carry is not None
    for view in ("left", "noisy"):
        assert result.carry.trained[f"kl.{view}"] == pytest.approx(capacity, rel=0.15)
        if channel == "levels":
            assert result.carry.trained[f"bits.{view}"] == pytest.approx(capacity, rel=0.15)
        assert float(module.link(view).channel.multiplier) > 0
    assert accuracy(module, found) > 0.6


# --- death ------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [TWO, THREE])
@pytest.mark.parametrize("frames", [0, 1, 2, 7])
def test_a_partner_that_dies_in_training_is_survived(
    frames: int, views: Mapping[str, View]
) -> None:
    into = CHAIN if "shop" in views else {}
    model, found = architecture(into, channel="dithered"), spread(views)
    module = net(model)
    fresh = weights(module)
    method = InlMethod(epochs=3, drop=0.2, timeout_s=2.0)
    dead = "shop" if "shop" in views else "lab"
    result = run(method, model, module, found, kill={dead: frames})
    assert result.carry is not None
    assert "silent" in result.carry.note
    now, lost = weights(module), {"shop": "whole", "lab": "noisy"}[dead]
    assert all(torch.equal(t, fresh[n]) for n, t in now.items() if f"view_{lost}.trunk" in n)
    alive = "view_noisy.head" if dead == "shop" else "view_left.head"
    assert any(not torch.equal(t, fresh[n]) for n, t in now.items() if alive in n)
    assert 0 < result.carry.trained["network_accuracy"] <= 1
    assert result.seconds <= 20


def test_an_encoder_whose_code_goes_nowhere_any_more_is_not_undone_by_its_price() -> None:
    # Left goes to the noisy one, that to the whole one, which dies.
    into = {"left": "noisy", "noisy": "whole", "whole": ""}
    model, found = architecture(into), spread(THREE)
    moved = []
    for epochs in (1, 6):
        module = net(model)
        method = InlMethod(epochs=epochs, s=0.5, lr=0.01, measure=0, timeout_s=1.0)
        done = run(method, model, module, found, kill={"shop": 4})
        assert done.seconds < 30
        moved.append(weights(module))
    same = [n for n in moved[0] if "view_left" in n and "used" not in n]
    assert all(torch.equal(moved[0][n], moved[1][n]) for n in same)


def test_training_ends_when_the_last_view_falls_silent() -> None:
    model, found = architecture(), spread()
    module = net(model)
    method = InlMethod(epochs=5, batch_size=16, timeout_s=1.0)
    home = NodeData.of(found.nodes[HOME])
    stop = work(home, Plan({SKILL: 90}, 16))
    others = {n: NodeData.of(d) for n, d in found.nodes.items() if n != HOME}
    result = run_stream(
        method, module, stop, others, header=header(model), kill={"clinic": 5, "lab": 7}
    )
    assert result.carry is not None
    assert result.carry.note == "silent: left, noisy"
    assert 0 < stop.steps < 10


def test_all_partners_dead_is_no_visit() -> None:
    model, found = architecture(), spread()
    module = net(model)
    fresh = weights(module)
    result = run(InlMethod(timeout_s=1.0), model, module, found, kill={"clinic": 0, "lab": 0})
    assert result.carry is not None
    assert "no node" in result.carry.note
    assert all(torch.equal(t, fresh[n]) for n, t in weights(module).items())


@pytest.mark.parametrize("kind", ["ready", "code", "weights", "payload"])
def test_a_partner_that_sends_nonsense_counts_as_dead(kind: str) -> None:
    class Odd(InlMethod):
        def follow(self, *given: Any) -> Script[None]:
            script = InlMethod.follow(self, *given)
            answer = None
            while True:
                try:
                    said = script.send(answer)
                except StopIteration:
                    return
                view = facts_of(given[0])["view"]
                if isinstance(said, Send) and said.kind == kind and view == "noisy":
                    said = replace(said, arrays={"there": np.full(3, np.nan)})
                answer = yield said

    model, found = architecture(channel="dithered"), spread()
    module = net(model)
    result = run(Odd(timeout_s=1.0), model, module, found)
    assert result.carry is not None
    assert "noisy" in result.carry.note
    assert all(torch.isfinite(t).all() for t in weights(module).values())


# --- what does not fit ------------------------------------------------------------------------


def test_a_view_alone_teaches_nothing_and_whole_samples_train_in_one_graph() -> None:
    model, found = architecture(), spread()
    module = net(model)
    home = NodeData.of(found.nodes[HOME])
    carry = InlMethod().train(module, work(home, Plan({SKILL: 2})))
    assert carry is not None
    assert "no partners" in carry.note
    x, y = found.reference
    whole = NodeData.of(SkillData.of(SKILL, x, y, num_classes=10))
    fresh = weights(module)
    InlMethod(capacity=1.0).train(module, work(whole, Plan({SKILL: 2})))
    assert any(not torch.equal(t, fresh[n]) for n, t in weights(module).items())


@pytest.mark.parametrize("name", ["inl", "vfl"])
def test_wrong_parameters_are_refused(name: str) -> None:
    for wrong in ({"drop": 1.0}, {"optimiser": "lion"}, {"epochs": 0}, {"timeout_s": 0}):
        with pytest.raises(ScenarioError):
            method_of(Plugin(name, wrong))
    assert method_of(Plugin(name, {"epochs": 2}))[0].epochs == 2  # type: ignore[attr-defined]


def test_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="no views"):
        InlMethod().train(torch.nn.Linear(1, 1), work(NodeData.of(spread().nodes[HOME]), Plan({})))
