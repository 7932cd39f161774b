from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest

from aats.learning.dynamics import accuracy, moved
from aats.learning.fit import load_fit
from aats_envs.draw import draw
from aats_envs.family import Family
from aats_envs.network import KnowledgeNetwork
from aats_envs.pool import Pool
from aats_envs.presets import PRESETS
from aats_envs.world import PROBE_MAX_BYTES, world

FILELESS = [name for name in PRESETS if name != "zoo"]


def some(family: Family, number: int = 20, grounds: int = 8) -> Iterator[KnowledgeNetwork]:
    pool, rng = Pool(family, grounds), np.random.default_rng(5)
    return (draw(family, pool, rng) for _ in range(number))


@pytest.mark.parametrize("name", FILELESS)
def test_a_drawn_network_makes_sense(name: str) -> None:
    family = replace(PRESETS[name], nodes=(8, 32)) if name == "large" else PRESETS[name]
    family = replace(family, mpvus=(1, 2))
    for net in some(family):
        n, t = net.num_nodes, len(net.classes)
        assert family.nodes[0] * 0.7 <= n <= family.nodes[1]
        assert net.clean.shape == net.wrong.shape == net.shown.shape == (n, t, net.classes[0])
        assert net.transfer_s.shape == net.probe_s.shape == net.links.shape == (n, n)
        assert (np.diagonal(net.transfer_s) == 0).all()
        assert np.isfinite(net.transfer_s).all()
        assert net.has_data.sum() >= 1
        assert net.is_mpvu.sum() in (1, 2)
        assert not (net.has_data & net.is_mpvu).any()
        assert not net.has_data[net.home]
        assert not net.is_mpvu[net.home]
        assert ((net.clean + net.wrong).sum((1, 2)) > 0).tolist() == net.has_data.tolist()
        assert (net.shown[~net.shows_labels] == 0).all()
        assert ((net.quality >= 0) & (net.quality <= 1)).all()
        assert ((net.target > 0) & (net.target < 1)).all()
        assert (net.samples_per_s > 0).all()
        assert (net.down[:, 0] <= net.down[:, 1]).all()
        assert np.isinf(net.down[net.home]).all()
        assert net.budget[0] >= 2 * net.links[net.home][net.is_mpvu].min()
        assert len(net.dynamics) == len(net.skills) == t
        assert all(0 < d.ceiling <= 1 and d.start == 1 / net.classes[0] for d in net.dynamics)
        for array in (net.clean, net.wrong, net.shown_samples):
            assert (array == np.floor(array)).all()
            assert (array >= 0).all()


def test_one_state_of_the_generator_gives_one_network() -> None:
    family = PRESETS["train"]
    pool = Pool(family, 4)
    first, second = (draw(family, pool, np.random.default_rng(3)) for _ in range(2))
    other = draw(family, pool, np.random.default_rng(4))
    for f in fields(KnowledgeNetwork):
        a, b = getattr(first, f.name), getattr(second, f.name)
        if isinstance(a, np.ndarray):
            assert a.tobytes() == b.tobytes(), f.name
        elif f.name != "dynamics":
            assert a == b, f.name
    assert [d.tau for d in first.dynamics] == [d.tau for d in second.dynamics]
    assert first.samples_per_s.tobytes() != other.samples_per_s.tobytes()


def test_the_pool_is_left_as_it_is() -> None:
    family = PRESETS["train"]
    pool = Pool(family, 2)
    before = [g.transfer_s.copy() for g in pool.grounds] + [
        g.constants.copy() for g in pool.grounds
    ]
    rng = np.random.default_rng(0)
    for _ in range(20):
        draw(family, pool, rng)
    after = [g.transfer_s for g in pool.grounds] + [g.constants for g in pool.grounds]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_noise_is_as_the_family_has_it() -> None:
    family = replace(PRESETS["small"], bad=(0.5, 0.5), wrong=(0.8, 0.8), honest=(1.0, 1.0))
    for net in some(family):
        held, wrong = (net.clean + net.wrong).sum((1, 2)), net.wrong.sum((1, 2))
        bad = wrong > 0
        assert bad.sum() == round(net.has_data.sum() * 0.5)
        assert wrong[bad].sum() / held[bad].sum() == pytest.approx(0.8, abs=0.05)
        assert (np.isclose(net.quality, 0.2) == bad).all()


def test_skew_follows_alpha_and_shards() -> None:
    def largest(net: KnowledgeNetwork) -> float:
        rows = net.clean[net.has_data, 0]
        return float((rows.max(1) / np.maximum(rows.sum(1), 1)).mean())

    def worlds(family: Family) -> Iterator[KnowledgeNetwork]:
        pool, rng = Pool(family, 8), np.random.default_rng(0)
        return (world(family, pool, rng) for _ in range(20))

    even, uneven = (
        replace(PRESETS["small"], alpha=(a, a), bad=(0.0, 0.0)) for a in (100.0, 0.1)
    )  # fmt: skip
    assert np.mean([largest(net) for net in worlds(even)]) < 0.25
    assert np.mean([largest(net) for net in worlds(uneven)]) > 0.6
    for net in worlds(replace(even, shards=1.0, shard_classes=(2, 2))):
        assert (net.clean[:, 0] > 0).sum(1).max() <= 2


def test_a_source_runs_out() -> None:
    family = replace(PRESETS["small"], nodes=(64, 64), bad=(0.0, 0.0))
    for net in some(family, 5, 2):
        assert net.clean[:, 0].sum(0).max() <= family.tasks[0].supply * 1.2


def test_liars_boast_and_stale_nodes_do_not() -> None:
    quiet = replace(PRESETS["small"], stale=(0.0, 0.0), withheld=(0.0, 0.0))
    for net in some(quiet):
        assert (net.shown == net.clean + net.wrong).all()
        assert (net.shown_samples == net.shown.sum(2)).all()
    for net in some(replace(quiet, liars=(1.0, 1.0))):
        held = (net.clean + net.wrong).sum(2)[net.has_data]
        assert (net.shown_samples[net.has_data] >= np.floor(3 * held)).all()
        shown = net.shown[net.has_data, 0]
        assert (shown == shown[:, :1]).all()
    for net in some(replace(quiet, stale=(1.0, 1.0))):
        held = (net.clean + net.wrong).sum(2)[net.has_data]
        assert (net.shown_samples[net.has_data] <= held).all()
        assert net.shown_samples.sum() < held.sum()


def test_large_models_are_not_probed() -> None:
    for net in some(PRESETS["big-model"], 5):
        assert net.probe_bytes > PROBE_MAX_BYTES
        assert not net.probe_allowed.any()


def test_learning_is_randomised_by_skill() -> None:
    plain = next(some(PRESETS["healthcare"]))
    assert [d.tau for d in plain.dynamics] == [
        load_fit(f"departments-{skill}").dynamics.tau for skill in ("oncology", "diabetes")
    ]
    varied = replace(PRESETS["healthcare"], randomised=0.3)
    factors = [
        np.log(float(d.tau / was.tau))
        for net in some(varied, 200)
        for d, was in zip(net.dynamics, plain.dynamics, strict=True)
    ]
    assert np.std(factors) == pytest.approx(0.3, rel=0.15)
    assert np.mean(factors) == pytest.approx(0.0, abs=0.05)


def reaches(net: KnowledgeNetwork) -> bool:
    """Whether a walk that knows the good nodes, and goes to all as often, meets the targets."""
    t, weights = range(len(net.classes)), np.ones(net.clean.shape[2])
    known = [np.full_like(weights, d.start) for d in net.dynamics]
    visits, here, hops = np.zeros(net.num_nodes), net.home, 0
    mpvu = np.flatnonzero(net.is_mpvu)
    back = (net.links[:, mpvu] + net.links[mpvu, net.home]).min(1)
    good = np.flatnonzero(net.has_data & (net.wrong.sum((1, 2)) == 0))
    while True:
        if all(accuracy(known[i], weights, net.dynamics[i]) >= net.target[i] for i in t):
            return True
        way = np.maximum(net.links[here, good], 2 * (good == here))
        there = good[hops + way + back[good] <= net.budget[0]]
        if not len(there):
            return False
        least = there[visits[there] == visits[there].min()]
        at = least[np.argmin(net.transfer_s[here, least])]
        hops += max(net.links[here, at], 2 * (at == here))
        for i in t:
            known[i] = moved(known[i], net.clean[at, i], net.wrong[at, i].sum(), visits[at],
                             net.dynamics[i], scale=net.epochs / net.fit_epochs)  # fmt: skip
        visits[at] += 1
        here = at


@pytest.mark.parametrize("name", ["small", "train", "digits", "healthcare", "skewed", "noisy"])
def test_most_wishes_can_be_fulfilled(name: str) -> None:
    met = [reaches(net) for net in some(PRESETS[name], 40, 16)]
    assert np.mean(met) >= 0.6
