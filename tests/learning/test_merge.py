"""Merge rules against hand-made sums; what cannot be merged is left out or refused, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aats.errors import ModelError, ScenarioError, UnknownPluginError
from aats.ids import NodeId
from aats.learning import factors
from aats.learning.fedopt import FIRST, SECOND, Adagrad, Adam, AvgM, Yogi
from aats.learning.lora import CHAIN, owner_of
from aats.learning.merge import Child, Mean, MergeRule, Part, Trunk, merge, merge_rule
from aats.packet import Plugin
from aats.payload import MODEL, STATE, Array, Payload, pack

RULES: list[MergeRule] = [Mean(), AvgM(), Adam(), Yogi(), Adagrad()]


def trunk(**model: Array) -> Trunk:
    return Trunk(model, {})


def part(samples: int = 1, weight: float = 1.0, node: str = "n1", **model: Array) -> Part:
    return Part(model, weight, {}, samples, (NodeId(node),))


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def test_the_mean_is_weighted_by_samples_or_not_at_all() -> None:
    parts = [part(3, w=floats(0, 4)), part(1, w=floats(4, 0))]
    assert Mean().merge(trunk(w=floats(9, 9)), parts).model["w"].tolist() == [1, 3]
    equal = Mean(weighting="equal").merge(trunk(w=floats(9, 9)), parts)
    assert equal.model["w"].tolist() == [2, 2]


def test_a_part_of_no_weight_does_not_count() -> None:
    parts = [part(3, weight=0.0, w=floats(100)), part(1, w=floats(4))]
    assert Mean().merge(trunk(w=floats(0)), parts).model["w"].tolist() == [4]
    with pytest.raises(ModelError, match="no part has a weight"):
        Mean().merge(trunk(w=floats(0)), parts[:1])


WEIGHTS = hnp.arrays(np.float32, 5, elements=st.floats(-1e3, 1e3, width=32))


@given(w=WEIGHTS, samples=st.lists(st.integers(1, 10_000), min_size=1, max_size=12))
def test_the_mean_of_equal_parts_is_that_part_to_the_bit(w: Array, samples: list[int]) -> None:
    merged = Mean().merge(trunk(w=w * 0), [part(n, w=w) for n in samples])
    assert merged.model["w"].tobytes() == w.tobytes() or (merged.model["w"] == w).all()


@given(parts=st.lists(st.tuples(WEIGHTS, st.integers(1, 999)), min_size=1, max_size=8))
def test_the_mean_lies_between_its_parts(parts: list[tuple[Array, int]]) -> None:
    merged = Mean().merge(trunk(w=parts[0][0]), [part(n, w=w) for w, n in parts])
    stacked = np.stack([w for w, _ in parts])
    assert (merged.model["w"] >= stacked.min(0)).all()
    assert (merged.model["w"] <= stacked.max(0)).all()


@given(
    parts=st.lists(st.tuples(WEIGHTS, st.integers(1, 999)), min_size=2, max_size=6),
    rule=st.sampled_from(RULES),
)
def test_a_rule_gives_the_same_bits_again(parts: list[tuple[Array, int]], rule: MergeRule) -> None:
    given = [part(n, w=w) for w, n in parts]
    first, second = (rule.merge(trunk(w=parts[0][0]), given) for _ in range(2))
    assert first.model["w"].tobytes() == second.model["w"].tobytes()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_counts_and_flags_stay_the_trunks(rule: MergeRule) -> None:
    old = {"w": floats(1), "seen": np.array([7]), "on": np.array([True])}
    new = {"w": floats(2), "seen": np.array([9]), "on": np.array([False])}
    merged = rule.merge(Trunk(old, {}), [part(**new)])
    assert merged.model["seen"].tolist() == [7]
    assert merged.model["on"].tolist() == [True]
    assert list(merged.model) == list(old)
    assert {a.dtype for a in merged.model.values()} == {a.dtype for a in old.values()}


def reference(
    kind: str, start: float, means: Sequence[float], lr: float, b1: float, b2: float, tau: float
) -> float:
    """Algorithm 2 of Reddi et al. on one number, with their sign: delta = mean - x."""
    x, m, v = start, 0.0, tau**2
    for mean in means:
        delta = mean - x
        m = b1 * m + (1 - b1) * delta
        if kind == "adagrad":
            v += delta**2
        elif kind == "yogi":
            v -= (1 - b2) * delta**2 * np.sign(v - delta**2)
        else:
            v = b2 * v + (1 - b2) * delta**2
        x += lr * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("kind", ["adam", "yogi", "adagrad"])
def test_adaptive_rules_follow_the_paper(kind: str) -> None:
    params = {"lr": 0.1, "beta_1": 0.8, "beta_2": 0.9, "tau": 0.01}
    rule = merge_rule(Plugin(kind, params))
    means = [1.0, 3.0, -2.0, 0.5]
    now = trunk(w=np.array([2.0]))
    for mean in means:
        now = rule.merge(now, [part(w=np.array([mean - 1])), part(w=np.array([mean + 1]))])
    wanted = reference(kind, 2.0, means, 0.1, 0.8, 0.9, 0.01)
    assert now.model["w"][0] == pytest.approx(wanted, rel=1e-6)  # moments travel as float32
    assert set(now.state) == {f"{FIRST}w", f"{SECOND}w"}


def test_avgm_without_momentum_is_the_mean_and_with_it_goes_on() -> None:
    parts = [part(w=floats(1, 2))]
    plain = AvgM(momentum=0.0).merge(trunk(w=floats(3, 3)), parts)
    assert plain.model["w"].tolist() == [1, 2]
    rule = AvgM(momentum=0.5)
    once = rule.merge(trunk(w=floats(3, 3)), parts)
    stays = part(w=once.model["w"])  # nobody learned anything: only the momentum moves it
    assert rule.merge(once, [stays]).model["w"].tolist() == [0, 1.5]


def test_moments_of_another_shape_are_refused() -> None:
    now = Trunk({"w": floats(1, 2)}, {f"{FIRST}w": floats(1)})
    with pytest.raises(ModelError, match=r"state\.merge\.m\.w.*shape \[2\]"):
        AvgM().merge(now, [part(w=floats(1, 2))])


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        (Plugin("mean", {"weighting": "row"}), "allowed are samples, equal"),
        (Plugin("mean", {"lr": 1.0}), "known parameters: weighting"),
        (Plugin("adam", {"lr": 0.0}), "lr must be above 0"),
        (Plugin("yogi", {"beta_1": 1.0}), "not 1"),
        (Plugin("adagrad", {"tau": 0.0}), "tau is 0"),
    ],
)
def test_wrong_parameters_are_told(plugin: Plugin, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        merge_rule(plugin)


def test_an_unknown_rule_names_those_there_are() -> None:
    with pytest.raises(UnknownPluginError, match="did you mean 'adam'"):
        merge_rule(Plugin("adm"))


# Payloads


def allocate(total: int) -> memoryview:
    return memoryview(bytearray(total))


def payload(w: Array, **more: Array) -> Payload:
    names = {f"{MODEL}w": w, "ref.s.x": floats(5), **more}
    return pack({name.replace("__", "."): array for name, array in names.items()})


def child(w: Array, samples: int = 1, node: str = "n1", **more: Array) -> Child:
    return Child(payload(w, **more), samples, (NodeId(node),))


def merged(trunk: Payload, children: Sequence[Child], method: object = None) -> Payload:
    arenas: list[memoryview] = []

    def kept(total: int) -> memoryview:
        arenas.append(allocate(total))
        return arenas[-1]

    manifest = merge(Mean(), method, trunk, children, kept).manifest
    new = Payload(manifest, arenas[0])
    new.verify()
    return new


def test_a_payload_is_merged_and_the_rest_goes_on() -> None:
    new = merged(payload(floats(0)), [child(floats(1)), child(floats(3), samples=3)])
    assert new.arrays()[f"{MODEL}w"].tolist() == [2.5]
    assert new.arrays()["ref.s.x"].tolist() == [5]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (child(floats(np.nan), node="bad"), "the copy from bad: tensor 'w' has NaN"),
        (child(floats(1, 2), node="bad"), r"the copy from bad: .* float32\[2\], .* float32\[1\]"),
        (child(np.array([1]), node="bad"), "the copy from bad: tensor 'w' is int64"),
        (Child(pack({f"{MODEL}v": floats(1)}), 1, ()), "from nowhere: tensor 'w' is missing"),
        (child(floats(1), model__v=floats(1), node="bad"), "tensor 'v' is new"),
    ],
)
def test_a_child_that_cannot_be_used_is_left_out(bad: Child, words: str) -> None:
    found = merge(Mean(), None, payload(floats(0)), [bad, child(floats(2))], allocate)
    assert list(found.left_out) == [0]
    with pytest.raises(ModelError, match=words):
        merge(Mean(), None, payload(floats(0)), [bad], allocate)


def test_what_overflows_is_refused() -> None:
    far = np.float32(3e38)
    with pytest.raises(ModelError, match="NaN or infinite"), np.errstate(over="ignore"):
        merge(AvgM(lr=10.0), None, payload(floats(-far)), [child(floats(far))], allocate)


def test_bfloat16_is_averaged_and_rounded_to_the_nearest() -> None:
    def bits(*values: float) -> Payload:
        raw = (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return pack({f"{MODEL}w": raw}, dtypes={f"{MODEL}w": "bf16"})

    children = [Child(bits(a, b), 1, ()) for a, b in ((1.0, 1.0), (2.0, 1.0078125))]
    new = merged(bits(0.0, 0.0), children)
    assert new.manifest.tensors[0].dtype == "bf16"
    # 1.00390625 lies midway between two bfloat16: the even one is 1.
    assert new.arrays()[f"{MODEL}w"].tolist() == bits(1.5, 1.0).arrays()[f"{MODEL}w"].tolist()


class Counting:
    """Each copy counts rows; what the trunk counted is in every copy."""

    def merge_state(
        self, trunk: Mapping[str, Array], states: Sequence[Mapping[str, Array]]
    ) -> Mapping[str, Array]:
        name = f"{STATE}n"
        return {name: trunk[name] + sum(state[name] - trunk[name] for state in states)}


def test_a_methods_state_is_kept_or_merged_by_the_method() -> None:
    start = payload(floats(0), state__n=floats(10))
    children = [child(floats(1), state__n=floats(n)) for n in (12, 15)]
    assert merged(start, children).arrays()[f"{STATE}n"].tolist() == [10]
    assert merged(start, children, Counting()).arrays()[f"{STATE}n"].tolist() == [17]


class Adding:
    """Adds up what copies carry; all must be of one shape."""

    def merge_state(
        self, trunk: Mapping[str, Array], states: Sequence[Mapping[str, Array]]
    ) -> Mapping[str, Array]:
        shapes = {state[f"{STATE}n"].shape for state in states}
        if len(shapes) > 1:
            raise ModelError(f"shapes {shapes}")
        return {f"{STATE}n": np.sum([state[f"{STATE}n"] for state in states], axis=0)}


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize(
    "bad",
    [
        child(floats(9), state__n=floats(1, 2), node="bad"),
        child(floats(9), state__n=floats(np.inf), node="bad"),
        child(floats(9), state__other=floats(1), node="bad"),
    ],
)
def test_a_child_whose_state_fits_no_others_is_left_out_and_does_not_stop_the_merge(
    bad: Child, place: int
) -> None:
    children = [child(floats(w), state__n=floats(w)) for w in (1, 2, 3, 4)]
    children.insert(place, bad)
    found = merge(Mean(), Adding(), payload(floats(0)), children, allocate)
    assert list(found.left_out) == [place]
    assert "the copy from bad" in found.left_out[place]
    new = merged(payload(floats(0)), children, Adding())
    assert new.arrays()[f"{MODEL}w"].tolist() == [2.5]
    assert new.arrays()[f"{STATE}n"].tolist() == [10]


def test_copies_none_of_which_fit_are_no_merge() -> None:
    children = [child(floats(w), state__n=np.zeros(w, np.float32)) for w in (1, 2, 3)]
    with pytest.raises(ModelError, match="nothing to merge"):
        merge(Mean(), Adding(), payload(floats(0)), children, allocate)


def test_a_rules_moments_travel_and_the_methods_state_with_them() -> None:
    start = payload(floats(0), state__n=floats(10))
    arena: list[memoryview] = []

    def kept(total: int) -> memoryview:
        arena.append(allocate(total))
        return arena[-1]

    found = merge(AvgM(), Counting(), start, [child(floats(1), state__n=floats(11))], kept)
    state = Payload(found.manifest, arena[0]).arrays(STATE)
    assert state[f"{STATE}n"].tolist() == [11]
    assert state[f"{FIRST}w"].tolist() == [-1]


def test_both_ends_call_adapters_the_same() -> None:
    assert CHAIN == factors.CHAIN


DRAWS = [np.random.default_rng(seed) for seed in range(3)]
FACTORS = [(rng.standard_normal((2, 3)), rng.standard_normal((4, 2))) for rng in DRAWS]
"""a [2, 3] and b [4, 2] of three adapters."""


def adapter(name: str, a: Array, b: Array) -> dict[str, Array]:
    return {f"chain.{name}.w.a": a, f"chain.{name}.w.b": b}


def product(model: Mapping[str, Array]) -> Array:
    """Return what all adapters do to the weight."""
    pairs = [(model[n[:-1] + "b"], a) for n, a in model.items() if n.endswith(".a")]
    total: Array = np.sum([b.astype(float) @ a.astype(float) for b, a in pairs], axis=0)
    return total


def test_factors_averaged_one_by_one_are_not_the_mean_of_their_products() -> None:
    """The trap: with two factors under plain names the mean is wrong."""
    wanted = np.mean([b @ a for a, b in FACTORS], axis=0)
    a, b = (np.mean([pair[i] for pair in FACTORS], axis=0) for i in (0, 1))
    assert np.abs(b @ a - wanted).max() > 0.1


def test_adapters_are_kept_side_by_side_and_their_sum_is_the_mean() -> None:
    base = floats(1, 2)
    parts = [part(n, base=base, **adapter(f"1@n{n}", *FACTORS[n - 1])) for n in (1, 2, 3)]
    merged = Mean().merge(trunk(base=base), parts)
    wanted = np.average([b @ a for a, b in FACTORS], axis=0, weights=[1, 2, 3])
    assert np.allclose(product(merged.model), wanted, atol=1e-12)
    assert {owner_of(n)[0].node for n in merged.model if n != "base"} == {"n1", "n2", "n3"}
    assert merged.model["base"].tobytes() == base.tobytes()


def test_a_contribution_that_two_copies_have_is_taken_once() -> None:
    shared, own = adapter("1@n1", *FACTORS[0]), adapter("2@n2", *FACTORS[1])
    merged = Mean().merge(trunk(), [part(**shared, **own), part(**shared)])
    wanted = FACTORS[0][1] @ FACTORS[0][0] + FACTORS[1][1] @ FACTORS[1][0] / 2
    assert len(merged.model) == 4
    assert np.allclose(product(merged.model), wanted, atol=1e-12)


def test_contributions_that_share_a_name_become_twins() -> None:
    parts = [part(**adapter("1@n1", *pair)) for pair in FACTORS]
    merged = Mean().merge(trunk(), parts)
    names = sorted({str(owner_of(name)[0]) for name in merged.model})
    assert names == ["1@n1", "1@n1+1", "1@n1+2"]
    wanted = np.mean([b @ a for a, b in FACTORS], axis=0)
    assert np.allclose(product(merged.model), wanted, atol=1e-12)


def test_factors_that_were_trained_further_are_refused() -> None:
    def adapted(a: Array) -> Payload:
        factors = adapter("1@n1", a, FACTORS[0][1])
        return pack({f"{MODEL}{name}": array for name, array in factors.items()})

    start, changed = adapted(FACTORS[0][0]), adapted(FACTORS[1][0])
    with pytest.raises(ModelError, match="factors have no mean of their own"):
        merge(Mean(), None, start, [Child(changed, 1, ())], allocate)


def test_a_rule_that_does_not_grow_refuses_adapters() -> None:
    grown = child(floats(1), **{f"{MODEL}chain.1@n1.w.a": floats(1)})
    with pytest.raises(ModelError, match=r"'chain\.1@n1\.w\.a' is new"):
        merge(Adam(), None, payload(floats(0)), [grown], allocate)


def test_the_knowledge_of_a_surrogate_is_averaged_in_whole_millionths() -> None:
    def of(*known: int) -> Payload:
        return pack({f"{MODEL}knowledge.a": np.array(known, np.int32)})

    arenas: list[memoryview] = []

    def allocate(total: int) -> memoryview:
        arenas.append(memoryview(bytearray(total)))
        return arenas[-1]

    children = [Child(of(100, 200), 1, ()), Child(of(300, 201), 3, ())]
    made = merge(Mean(), None, of(0, 0), children, allocate)
    (merged,) = Payload(made.manifest, arenas[-1]).arrays(MODEL).values()
    assert merged.dtype == np.int32
    assert merged.tolist() == [250, 201]
