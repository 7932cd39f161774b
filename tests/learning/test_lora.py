from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.backend import backend_of
from aats.learning.lora import (
    CHAIN,
    Contribution,
    LoraModel,
    build_lora,
    owner_of,
)
from aats.learning.lora_method import LoraMethod
from aats.learning.measures.options import Measures
from aats.learning.method import Guard
from aats.learning.modules import ModuleBackend
from aats.learning.weights import initial_payload
from aats.packet import Architecture
from aats.payload import MODEL, Payload, pack
from aats.roles.data import NodeData
from aats.testing.check import check_method
from aats.testing.methods import CLASSES, FEATURES, Walk, blobs, header_for, reference_for

BASE = {"name": "mlp", "features": FEATURES, "hidden": [16], "classes": CLASSES}
LORA = Architecture("lora", {"base": BASE})
BASES: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
    "mlp": (BASE, torch.ones(2, FEATURES)),
    "cnn": ({"name": "cnn", "channels": 1, "side": 8, "classes": 3}, torch.ones(2, 1, 8, 8)),
    "transformer": (
        {"name": "transformer", "vocabulary": 5, "length": 4, "width": 8, "depth": 1, "classes": 3},
        torch.ones(2, 4, dtype=torch.long),
    ),
}


def names(*hops: int) -> list[Contribution]:
    return [Contribution(hop, NodeId(f"n{hop}.x")) for hop in hops]


def chain(base: dict[str, Any] = BASE, hops: tuple[int, ...] = (1, 2, 5)) -> LoraModel:
    """Return a model with contributions that change it."""
    torch.manual_seed(0)
    model = build_lora({"base": base})
    assert isinstance(model, LoraModel)
    for c in names(*hops):
        model.add(c, 2, seed=c.hop)
        for name, p in model.part(c).named_parameters():
            if name.endswith(".b"):
                torch.nn.init.normal_(p)
    return model.eval()


# --- names ------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**9 - 1),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    st.integers(0, 99),
    st.sampled_from(["1.weight", "encoder.layers.0.self_attn.in_proj_weight"]),
)
def test_a_name_comes_back_from_its_tensor(hop: int, node: str, twin: int, target: str) -> None:
    c = Contribution(hop, NodeId(node), twin)
    assert Contribution.of(str(c)) == c
    name = f"{CHAIN}{str(c).replace('.', '/')}.{target.replace('.', '/')}.a"
    assert owner_of(name) == (c, target, "a")


@pytest.mark.parametrize("text", ["", "3", "3@", "@n", "03@n", "-1@n", "3@n+0", "3@-n", "x@n"])
def test_what_is_no_contribution_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="is no contribution; wanted is hop@node"):
        Contribution.of(text)


# --- the layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_it_computes_the_base_with_all_added(name: str) -> None:
    config, x = BASES[name]
    model = chain(config)
    with torch.no_grad():
        expected = {n: p.clone() for n, p in model.base.named_parameters()}
        for c in model.contributions:
            for target in model.targets:
                pair = model.pairs(c)[target]
                shape = expected[target].shape
                expected[target] += model.alpha / 2 * (pair.b @ pair.a).reshape(shape)
        plain = model.base
        out = model(x)
        plain.load_state_dict(expected, strict=False)
        torch.testing.assert_close(out, plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_a_new_contribution_changes_nothing_yet(name: str) -> None:
    config, x = BASES[name]
    model = chain(config, ())
    with torch.no_grad():
        before = model(x)
        model.add(Contribution(0, NodeId("n")), 2, 0)
        assert torch.equal(model(x), before)


def test_embeddings_are_no_targets_unless_the_weight_is_shared_by_none() -> None:
    targets = chain(BASES["transformer"][0]).targets
    assert "encoder.layers.0.self_attn.in_proj_weight" in targets
    assert not [t for t in targets if t.startswith(("token", "position"))]


def test_targets_go_by_the_names_of_weights_or_modules() -> None:
    assert build_lora({"base": BASE, "targets": ["1"]}).targets == ("1.weight",)
    assert build_lora({"base": BASE, "targets": ["3.w*", "1"]}).targets == ("1.weight", "3.weight")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "'base' is None"),
        ({"base": {"features": 3}}, "allowed is { name"),
        ({"base": {"name": "lora", "base": BASE}}, "'base' is 'lora' again"),
        ({"base": BASE, "targets": ["9"]}, r"'9' matches no weight; there are: 1\.weight, 3\."),
        ({"base": BASE, "targets": []}, "'targets' is"),
        ({"base": BASE, "targets": [3]}, "'targets' has 3"),
        ({"base": BASE, "alpha": 0}, "'alpha' is 0"),
        ({"base": BASE, "alpha": float("nan")}, "'alpha' is nan"),
        ({"base": BASE, "target": ["1"]}, "'target' is unknown"),
    ],
)
def test_a_wrong_config_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_lora(config)


@settings(deadline=None, max_examples=20)
@given(st.permutations([1, 2, 5]), st.integers(0, 3))
def test_what_is_left_does_not_depend_on_the_order_of_removal(order: list[int], keep: int) -> None:
    model, other = chain(), chain()
    gone = [c for c in names(*order) if c.hop != keep]
    for c in gone:
        model.remove(c)
    for c in sorted(gone):
        other.remove(c)
    x = torch.ones(2, FEATURES)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
    assert [*model.state_dict()] == [*other.state_dict()]


def test_folding_keeps_the_model_and_forgets_the_contribution() -> None:
    model, x = chain(), torch.ones(2, FEATURES)
    with torch.no_grad():
        before = model(x)
        model.fold(names(1)[0])
        torch.testing.assert_close(model(x), before)
    assert model.contributions == tuple(names(2, 5))
    with pytest.raises(ModelError, match=r"1@n1\.x is not in the chain; there are: 2@n2\.x, 5@"):
        model.remove(names(1)[0])


def test_the_base_stays_in_eval_mode() -> None:
    model = chain().train()
    assert model.training
    assert not model.base.training


def test_a_small_weight_has_a_smaller_rank_and_the_same_scale() -> None:
    model = chain(hops=())
    c = Contribution(0, NodeId("n"))
    model.add(c, 6, 0)
    assert [model.pairs(c)[t].rank for t in model.targets] == [6, CLASSES]
    assert model.scale(c) == model.alpha / 6


# --- what travels -----------------------------------------------------------------------------


def carried(model: LoraModel) -> Payload:
    return pack({MODEL + n: t.detach().numpy() for n, t in model.state_dict().items()})


def test_a_chain_comes_out_of_a_payload_as_it_went_in() -> None:
    backend, payload = ModuleBackend(), carried(chain())
    again = backend.load(LORA, payload)
    left = backend.tensors(again, payload)
    assert [*left] == [t.name for t in payload.manifest.tensors]
    assert all((left[t.name].data == payload.array(t)).all() for t in payload.manifest.tensors)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("chain.1@n.1/weight.a", (0, FEATURES), "rank 0, allowed is 1-8"),
        ("chain.1@n.1/weight.a", (), "rank 0, allowed"),
        ("chain.1@n.1/weight.a", (9, FEATURES), "rank 9, allowed is 1-8"),
        ("chain.1@n.1/weight.a", (2, FEATURES + 1), "has shape|no adapter for"),
        ("chain.1@n.7/weight.a", (2, FEATURES), "have no target '7.weight'"),
        ("chain.1@n.1/weight.c", (2, FEATURES), "is no adapter's"),
        ("chain.x@n.1/weight.a", (2, FEATURES), "is no contribution"),
        ("chain.a", (2, FEATURES), "is no adapter's"),
        ("chain.7@n.1/weight.b", (16, 2), "is not expected"),
        ("other", (2,), "'other' .* is not expected"),
    ],
)
def test_strange_adapters_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    arrays = dict(ModuleBackend().initial(LORA, 0))
    payload = pack({**arrays, MODEL + name: np.ones(shape, np.float32)})
    with pytest.raises(ModelError, match=message):
        ModuleBackend().load(LORA, payload)


# --- the method -------------------------------------------------------------------------------

FAST = LoraMethod(epochs=3, lr=0.1, rank_min=2, rank_max=2)


def walk_of(architecture: Architecture = LORA) -> Walk:
    data = blobs(seed=9)
    return Walk(header_for(architecture), initial_payload(architecture, 0, reference_for(data)))


def steps(walk: Walk, method: LoraMethod, count: int, **about: Any) -> list[Payload]:
    before = [walk.payload]
    for i in range(count):
        walk.visit(method, NodeData.of(blobs(seed=i)), NodeId(f"n{i}"), **about)
        before.append(walk.payload)
    return before


def versions(payloads: list[Payload]) -> list[str]:
    return [p.manifest.version(MODEL) for p in payloads]


def loaded(payload: Payload, architecture: Architecture = LORA) -> LoraModel:
    module = backend_of(architecture).load(architecture, payload).module
    assert isinstance(module, LoraModel)
    return module


def test_each_visit_adds_one_contribution_and_leaves_all_else_as_it_was() -> None:
    walk = walk_of()
    seen = steps(walk, FAST, 3)
    assert [*map(str, loaded(walk.payload).contributions)] == ["0@n0", "1@n1", "2@n2"]
    assert len(set(versions(seen))) == 4
    for before, after in itertools.pairwise(seen):
        old = {t.name: t.digest for t in before.manifest.tensors}
        new = {t.name: t.digest for t in after.manifest.tensors}
        assert old.items() <= new.items()
    assert walk.result is not None
    assert walk.result.note == "added 2@n2 of rank 2"
    assert walk.header.skills[0].value > 0.9


def test_without_the_last_contribution_it_is_the_checkpoint_before_to_the_bit() -> None:
    walk = walk_of()
    seen = steps(walk, FAST, 3)
    model = loaded(seen[-1])
    model.remove(model.contributions[-1])
    assert carried(model).manifest.version(MODEL) == versions(seen)[-2]


def test_a_node_chooses_the_rank_by_its_rows() -> None:
    walk = walk_of()
    method = LoraMethod(epochs=1, rank_min=1, rank_max=3, rows_per_rank=20)
    for i, rows in enumerate((20, 60, 300)):
        walk.visit(method, NodeData.of(blobs(rows, seed=i)), NodeId(f"n{i}"))
    model = loaded(walk.payload)
    assert [model.rank(c) for c in model.contributions] == [1, 2, 3]


def test_beyond_the_budget_the_oldest_is_folded_and_said_so() -> None:
    walk = walk_of()
    method = LoraMethod(epochs=3, rank_min=2, rank_max=2, rank_budget=4)
    steps(walk, method, 3)
    assert [*map(str, loaded(walk.payload).contributions)] == ["1@n1", "2@n2"]
    assert walk.result is not None
    assert walk.result.note == "added 2@n2 of rank 2, folded 0@n0 into the base"


def test_repair_trains_a_nodes_own_contributions_and_elsewhere_all() -> None:
    walk = walk_of()
    steps(walk, FAST, 3)
    repair = LoraMethod(steps=2, repair=("1@n1", "2@n2"))
    before = walk.payload
    walk.visit(repair, NodeData.of(blobs(seed=1)), NodeId("n1"))
    assert changed(before, walk.payload) == {"1@n1"}
    before = walk.payload
    walk.visit(repair, NodeData.of(blobs(seed=7)), NodeId("n7"))
    assert changed(before, walk.payload) == {"1@n1", "2@n2"}
    assert walk.result is not None
    assert (walk.result.steps, walk.result.note) == (2, "repaired 1@n1 2@n2")


def changed(before: Payload, after: Payload) -> set[str]:
    old = {t.name: t.digest for t in before.manifest.tensors}
    return {
        str(owner_of(t.name.removeprefix(MODEL))[0])
        for t in after.manifest.tensors
        if t.name.startswith(MODEL) and old.get(t.name) != t.digest
    }


def test_what_harms_on_two_samples_is_rejected_at_once_and_exactly() -> None:
    walk = walk_of()
    steps(walk, FAST, 2)
    before = walk.payload.manifest.version(MODEL)
    guard = Guard(rollback_drop=1.0, rollback_loss=1e9, reject_harm=0.1)
    poison = NodeData.of(blobs(seed=5, wrong=1.0))
    rejected = walk.visit(FAST, poison, NodeId("bad"), guard)
    assert rejected.action == "rolled-back"
    assert rejected.note.startswith("harm 0.")
    assert walk.payload.manifest.version(MODEL) == before
    accepted = walk.visit(FAST, NodeData.of(blobs(seed=6)), NodeId("good"), guard)
    assert accepted.action == "train"


@pytest.mark.parametrize("name", ["proximal", "ewc", "ema", "interpolate"])
def test_measures_on_weights_that_came_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=rf"\({name}\) hold on to the weights that came"):
        walk_of().visit(FAST, NodeData.of(blobs()), measures=Measures(**{name: 0.5}))


@pytest.mark.parametrize("measure", [{"distil": 0.5}, {"replay": 0.5}, {"sam": 0.05}])
def test_other_measures_act_on_the_new_contribution(measure: dict[str, float]) -> None:
    walks = walk_of(), walk_of()
    for walk, measures in zip(walks, (Measures(**measure), Measures()), strict=True):  # type: ignore[arg-type]
        for i in range(2):
            result = walk.visit(
                FAST, NodeData.of(blobs(seed=i)), NodeId(f"n{i}"), measures=measures
            )
            assert result.action == "train"
    assert len({walk.payload.manifest.version(MODEL) for walk in walks}) == 2


def test_it_keeps_its_side_of_the_protocol() -> None:
    check_method(LoraMethod(epochs=1), LORA, takes_measures=False)


def test_it_needs_a_chain() -> None:
    walk = walk_of(Architecture("mlp", {k: v for k, v in BASE.items() if k != "name"}))
    with pytest.raises(ModelError, match="wrap the architecture as"):
        walk.visit(FAST, NodeData.of(blobs()))


@pytest.mark.parametrize(
    "params",
    [{"epochs": 0}, {"rank_min": 0}, {"rank_min": 5}, {"rank_budget": 3}, {"momentum": 1.0},
     {"steps": -1}, {"since": -1}, {"rows_per_rank": 0}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        LoraMethod(**params)


def test_the_work_of_loading_a_chain_grows_with_its_length_and_no_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, model = Contribution.of, chain(hops=tuple(range(40)))
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    asked: list[str] = []

    def counted(text: str) -> Contribution:
        asked.append(text)
        return read(text)

    monkeypatch.setattr(Contribution, "of", staticmethod(counted))
    chain(hops=()).grow(shapes)
    assert len(asked) <= len(shapes)
