"""Which way of learning is recommended, rule by rule, and what adverts tell of a setting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.advert import DataAdvert
from aats.control.method import ALIKE, Setting, label_skew, recommend, setting_of
from aats.packet import Plugin

MB = 1e6
BASE = Setting(nodes=10, model_bytes=10 * MB, skew=0.07)
ONE_CLASS, MILD = 0.76, 0.07


@pytest.mark.parametrize(
    ("setting", "name", "said"),
    [
        # strong skew and few steps: Li and Lyu's first regime
        (replace(BASE, skew=ONE_CLASS, local_steps=5), "sequential", "learns more from each"),
        # many steps and a convex model: their second
        (replace(BASE, skew=ONE_CLASS, local_steps=50, convex=True), "fedavg", "convex model, 50"),
        (replace(BASE, local_steps=5, convex=True), "sequential", "both ways tie"),
        (replace(BASE, local_steps=50), "fedavg", "50 local steps at a label skew of 0.07"),
        (replace(BASE, local_steps=5), "sequential", "learns more from each transfer"),
        (replace(BASE, skew=ONE_CLASS, local_steps=50), "sequential", "skew of 0.76"),
        # views
        (replace(BASE, aligned_views=True), "vfl", "no rate term"),
        (replace(BASE, aligned_views=True, bits_per_sample=32.0), "inl", "32 bits a sample"),
        # what may be taken out later
        (replace(BASE, removable=True), "lora", "removable"),
        # memory: 30 MB to train, 10 + 20 * slice for a Snake
        (replace(BASE, memory_bytes=30 * MB), "sequential", "learns more"),
        (replace(BASE, memory_bytes=20 * MB, slice_share=0.5), "snake", "30 MB, the smallest"),
        (replace(BASE, memory_bytes=19 * MB, slice_share=0.5), "split", "nor a slice of it"),
        (replace(BASE, memory_bytes=29 * MB), "split", "nor a slice of it"),
        (
            replace(BASE, memory_bytes=20 * MB, slice_share=0.5, server_bytes=30 * MB),
            "split",
            "a node of 30 MB can run the rest",
        ),
        (
            replace(
                BASE,
                memory_bytes=20 * MB,
                slice_share=0.5,
                server_bytes=30 * MB,
                budget_bytes=9000 * MB,
            ),
            "snake",
            "it takes 20 MB",
        ),
        # one visit each
        (replace(BASE, passes=1, skew=ONE_CLASS), "sequential", "replay keeps"),
        (replace(BASE, passes=1, skew=0.01), "sequential", "a plain chain"),
        # bytes: averaging 2 GB, a chain 1 GB
        (replace(BASE, budget_bytes=2000 * MB, local_steps=50), "fedavg", "averaging"),
        (replace(BASE, budget_bytes=1999 * MB, local_steps=50), "sequential", "sends 1e+03 MB"),
        (replace(BASE, budget_bytes=500 * MB), "sequential", "makes 50 visits"),
    ],
)
def test_each_rule(setting: Setting, name: str, said: str) -> None:
    advice = recommend(setting)
    assert advice.name == name
    assert said in "; ".join(advice.reasons)


def test_what_is_recommended_can_be_put_into_a_mandate() -> None:
    once = recommend(replace(BASE, passes=1, skew=ONE_CLASS))
    assert (once.method, once.rendezvous) == (Plugin("sequential", {"replay": 0.5}), None)
    split = recommend(replace(BASE, memory_bytes=1.0))
    assert (split.method, split.rendezvous) == (Plugin("split"), Plugin("assemble"))
    averaged = recommend(replace(BASE, local_steps=50))
    assert (averaged.method, averaged.rendezvous) == (Plugin("sequential"), Plugin("fedavg"))


@given(
    st.builds(
        Setting, nodes=st.integers(1, 99), model_bytes=st.floats(1, 1e9), skew=st.floats(0, 1),
        local_steps=st.floats(1, 999), convex=st.booleans(), aligned_views=st.booleans(),
        bits_per_sample=st.floats(1), memory_bytes=st.floats(1), slice_share=st.floats(0.01, 1),
        passes=st.floats(1), removable=st.booleans(), budget_bytes=st.floats(1),
        rounds=st.floats(1, 99),
    )
)  # fmt: skip
def test_there_is_always_one_answer_with_a_reason(setting: Setting) -> None:
    advice = recommend(setting)
    assert advice.reasons
    assert advice == recommend(setting)


def test_skew_has_the_values_that_the_thresholds_are_given_for() -> None:
    one = np.eye(10) * 100
    assert label_skew(one.tolist()) == pytest.approx(0.76, abs=0.01)
    assert label_skew((one + np.roll(one, 1, axis=1)).tolist()) == pytest.approx(0.61, abs=0.01)
    rng = np.random.default_rng(0)
    for alpha, expected in ((0.1, 0.48), (0.5, 0.22), (2.0, 0.07)):
        drawn = [label_skew((rng.dirichlet([alpha] * 10, size=10).T * 1000).tolist())
                 for _ in range(50)]  # fmt: skip
        assert np.mean(drawn) == pytest.approx(expected, abs=0.03)
    assert label_skew(rng.multinomial(200, [0.1] * 10, size=9).tolist()) < ALIKE


def test_skew_of_nothing_is_0() -> None:
    assert label_skew([]) == label_skew([(), (0, 0)]) == label_skew([(3, 1), ()]) == 0


def test_adverts_tell_the_skew_of_the_worst_skill_and_whether_there_are_views() -> None:
    def advert(skill: str, *labels: int, view: str = "") -> DataAdvert:
        return DataAdvert(skill, "schema", sum(labels) or 10, labels, view=view)

    mixed = setting_of(
        {
            "a": [advert("even", 5, 5), advert("odd", 9, 0)],
            "b": [advert("even", 7, 7), advert("odd", 0, 9)],
            "c": [advert("even")],
        },
        model_bytes=MB,
        passes=1.0,
    )
    assert (mixed.nodes, mixed.passes, mixed.aligned_views) == (3, 1.0, False)
    assert mixed.skew == pytest.approx(label_skew([(1, 0), (0, 1)]))
    seen = setting_of(
        {"a": [advert("x", view="left")], "b": [advert("x", view="right")]}, model_bytes=MB
    )
    assert seen.aligned_views
    assert setting_of({}, model_bytes=MB, skew=0.3).skew == 0.3
