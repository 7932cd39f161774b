"""The architecture `inl`: wiring, stacked rows, absent codes, answers without a dead encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from aats.advert import Partner
from aats.errors import ModelError
from aats.learning.inl.channels import CHANNELS
from aats.learning.inl.leading import Answers
from aats.learning.inl.methods import InlMethod, answers
from aats.learning.inl.nets import InlNet, key
from aats.learning.method import Plan, Stop, Work
from aats.learning.modules import ModuleBackend
from aats.learning.partition import Spread
from aats.learning.stream import Frame, Script
from aats.learning.weights import initial_payload
from aats.packet import Architecture, Header
from aats.roles.data import Labels, NodeData
from aats.testing.streams import StreamRun, run_stream
from tests.learning.inl.views_of_digits import (
    HOME,
    LABELS,
    LEFT,
    NOISY,
    SKILL,
    TWO,
    WHOLE,
    architecture,
    header,
    net,
    run,
    spread,
)

CHAIN = {"left": "whole", "whole": ["", "noisy"], "noisy": ""}
THREE = {**TWO, "shop": WHOLE}


@dataclass(frozen=True)
class Asking:
    """A method that only asks."""

    method: InlMethod
    ids: Labels

    def plan(self, stop: Stop) -> Plan | None:
        return None

    def train(self, model: Any, work: Work) -> None:
        raise AssertionError

    def lead(self, model: Any, work: Work, partners: Sequence[Partner]) -> Script[Any]:
        settings, data = self.method.settings(), work.stop.data[SKILL]
        return answers(settings, model, SKILL, data, self.ids, partners)

    def follow(self, opening: Frame, data: NodeData, header: Header, seed: int) -> Script[None]:
        return self.method.follow(opening, data, header, seed)


def ask(
    module: InlNet, model: Architecture, found: Spread, ids: Labels, **options: Any
) -> tuple[Answers, StreamRun]:
    home = NodeData.of(found.nodes[HOME])
    others = {n: NodeData.of(d) for n, d in found.nodes.items() if n != HOME}
    work = Work(Stop(HOME, 0, 7, home.skills), Plan({}))
    asking = Asking(InlMethod(timeout_s=2.0), ids)
    done = run_stream(asking, module, work, others, header=header(model), **options)
    told: Any = done.carry
    assert isinstance(told, Answers)
    return told, done


def stacked(module: InlNet, found: Spread, ids: Labels) -> torch.Tensor:
    """Return the module's own logits of samples, in one process."""
    views = {d.view: d for d in found.nodes.values()}
    rows = [[*views[v].row_ids, *views[v].held_out_ids].index(i) for v in module.wires for i in ids]
    parts = [
        np.concatenate([views[v].train_x, views[v].test_x])[rows[k * len(ids) :][: len(ids)]]
        for k, v in enumerate(module.wires)
    ]
    module.eval()
    with torch.no_grad():
        logits: torch.Tensor = module(torch.from_numpy(np.concatenate(parts, 1)))
    return logits


@pytest.mark.parametrize("fusion", ["concatenate", "attention"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_nodes_together_say_what_the_module_says_of_stacked_rows(
    channel: str, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aats.learning.inl.leading.ASKED", 20)
    model, found = architecture(CHAIN, channel=channel, fusion=fusion), spread(THREE)
    module, ids = net(model), found.nodes[HOME].held_out_ids[:50]
    told, done = ask(module, model, found, ids)
    assert torch.allclose(told.logits, stacked(module, found, ids), atol=1e-5)
    assert told.there.all()
    wired = sum(size for (_, _, kind), size in done.bytes.items() if kind == "payload")
    assert sum(told.bits.values()) == 8 * wired


def test_a_dead_encoder_at_inference_leaves_the_other_s_satellite_to_answer() -> None:
    model, found = architecture(), spread(rows=1797)
    module = net(model)
    run(InlMethod(epochs=8, lr=5e-3, s=0.05, drop=0.2, measure=0), model, module, found)
    home = found.nodes[HOME]
    ids, y = home.held_out_ids, home.test_y
    whole, _ = ask(module, model, found, ids)
    for dead, alive in (("lab", "left"), ("clinic", "noisy")):
        told, _ = ask(module, model, found, ids, kill={dead: 2})
        assert told.there.sum(1).max() == 1
        assert {*told.bits} == {alive}
        right = (told.logits.argmax(1).numpy() == y).mean()
        assert right > 0.4
        assert right <= (whole.logits.argmax(1).numpy() == y).mean() + 0.05


def test_with_all_encoders_dead_every_class_is_as_likely() -> None:
    model, found = architecture(), spread()
    ids = found.nodes[HOME].held_out_ids[:9]
    told, _ = ask(net(model), model, found, ids, kill={"lab": 0, "clinic": 0})
    assert torch.equal(told.logits, torch.zeros(9, 10))
    assert not told.there.any()


def test_rows_that_a_view_lacks_are_answered_from_the_other() -> None:
    views = {"clinic": LEFT, "lab": NOISY, HOME: LABELS}
    found = spread({n: v if n != "lab" else type(v)("noisy", v.transform, False, 0.5)
                    for n, v in views.items()})  # fmt: skip
    model = architecture()
    module, ids = net(model), found.nodes[HOME].held_out_ids[:40]
    told, _ = ask(module, model, found, ids)
    lacking = ~np.isin(ids, found.nodes["lab"].held_out_ids)
    at = [*module.direct].index("noisy")
    assert np.array_equal(~told.there[:, at], lacking)
    assert 5 < lacking.sum() < 35
    left = found.nodes["clinic"]
    rows = [left.held_out_ids.tolist().index(i) for i in ids[lacking]]
    with torch.no_grad():
        link = module.link("left")
        code = link.channel.deliver(link(torch.from_numpy(left.test_x[rows])))
        want = module.satellites[key("left")](code)
    assert torch.allclose(told.logits[torch.from_numpy(lacking)], want, atol=1e-5)


def test_attention_does_not_see_an_absent_code() -> None:
    module = net(architecture(fusion="attention"))
    codes = {
        v: torch.randn(5, 4, generator=torch.Generator().manual_seed(1)) for v in module.direct
    }
    there = torch.tensor([[1.0, 0.0]] * 5)
    other = {**codes, module.direct[1]: codes[module.direct[1]] + 9}
    assert torch.equal(module.decode(codes, there), module.decode(other, there))
    both = torch.ones(5, 2)
    assert not torch.equal(module.decode(codes, both), module.decode(other, both))
    assert torch.isfinite(module.decode(codes, torch.zeros(5, 2))).all()


def test_a_model_travels_and_is_judged_like_any_other() -> None:
    model, found = architecture(CHAIN), spread(THREE)
    payload = initial_payload(model, 3, {SKILL: found.reference})
    backend = ModuleBackend()
    with backend.scope(0):
        loaded = backend.load(model, payload)
        x, y = found.test
        assert backend.log_probabilities(loaded, x, SKILL).shape == (len(y), 10)
        with pytest.raises(ModelError, match="the views have 144"):
            backend.log_probabilities(loaded, x[:, 1:], SKILL)


def views(**changes: Any) -> dict[str, Any]:
    return {"left": {"shape": [4], **changes}, "right": {"shape": [4]}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"views": {}}, "1-64 tables"),
        ({"views": {"a b": {"shape": [1]}}}, "plain name"),
        ({"views": {"a": {}}}, "the shape of its rows"),
        ({"views": views(into="middle")}, "into 'middle'"),
        ({"views": views(into=[])}, "must go somewhere"),
        ({"views": views(into="left")}, "round in a circle"),
        ({"views": {"a": {"shape": [1], "into": "b"}, "b": {"shape": [1], "into": "a"}}}, "fusion"),
        ({"views": views(encoder="rnn")}, "'encoder' is 'rnn'"),
        ({"views": views(encoder="cnn")}, r"\[channels, height, width\]"),
        ({"views": views(encoder="cnn", shape=[1, 2, 2], hidden=[2, 2])}, "cannot be halved"),
        ({"views": views(), "channel": "loud"}, "'channel' is 'loud'"),
        ({"views": views(), "fusion": "sum"}, "'fusion' is 'sum'"),
        ({"views": views(), "fusion": "attention", "tokens": 6}, "multiple of 4"),
        ({"views": views(), "levels": 999}, "999 levels"),
        ({"views": views(), "size": 1}, "'size' is unknown"),
    ],
)
def test_a_wrong_config_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        net(Architecture("inl", {"classes": 3, **config}))
