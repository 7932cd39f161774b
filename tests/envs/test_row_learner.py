from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aats.errors import ScenarioError
from aats_envs.batch import Limits, Networks
from aats_envs.chance import Keys
from aats_envs.draw import draw
from aats_envs.fleet import KnowledgeFleet
from aats_envs.learner import At
from aats_envs.network import KnowledgeNetwork
from aats_envs.pool import Pool
from aats_envs.presets import PRESETS
from aats_envs.row_learner import RowLearner
from aats_envs.rows import deal
from aats_envs.sb3 import KnowledgeVecEnv
from aats_envs.single import KnowledgeNetworkEnv
from aats_envs.source import ScenarioSource
from aats_envs.vector import KnowledgeNetworkVectorEnv

RING = Path(__file__).parents[2] / "examples" / "ring"


def networks(number: int, preset: str = "train", average_last: int = 0) -> list[KnowledgeNetwork]:
    family = PRESETS[preset]
    pool, rng = Pool(family, number), np.random.default_rng(7)
    drawn = [draw(family, pool, rng) for _ in range(number)]
    return [replace(network, rows=deal(network, average_last, rng)) for network in drawn]


def learner_of(drawn: list[KnowledgeNetwork]) -> RowLearner:
    batch = Networks(len(drawn), Limits.of(drawn))
    for row, network in enumerate(drawn):
        batch.put(row, network)
    return RowLearner(batch)


def at(count: int, step: int = 0) -> At:
    keys: Keys = np.arange(count, dtype=np.uint64) * np.uint64(977)
    return At(keys, np.full(count, step), np.full(count, float(step)))


def good_node(network: KnowledgeNetwork) -> int:
    right = network.clean.sum(axis=(1, 2)) - 10 * network.wrong.sum(axis=(1, 2))
    return int(right.argmax())


def test_visits_teach_and_a_verdict_says_so() -> None:
    drawn = networks(12)
    learner, rows = learner_of(drawn), np.arange(12)
    nodes = np.array([good_node(network) for network in drawn])
    models = learner.fresh(rows)
    before = learner.verdict(rows, models, at(12))
    for step in range(6):
        models = learner.visit(rows, nodes, np.full(12, float(step)), models, at(12, step))
    after = learner.verdict(rows, models, at(12))
    wanted = np.array([np.pad(n.classes, (0, before.shape[1] - len(n.classes))) for n in drawn]) > 0
    assert (after[~wanted] == 0).all()
    assert (after - before)[wanted].mean() > 0.2
    assert np.abs(after - learner.judged(rows, models, at(12)))[wanted].mean() < 0.12


def test_the_same_rows_teach_less_than_others() -> None:
    drawn = networks(16, "clean")
    learner, rows = learner_of(drawn), np.arange(16)
    some, none = np.zeros(16), at(16)
    ranked = np.array([n.clean.sum(axis=(1, 2)).argsort()[::-1][:6] for n in drawn])
    same = other = learner.fresh(rows)
    for step in range(6):
        same = learner.visit(rows, ranked[:, 0], some, same, at(16, step))
        other = learner.visit(rows, ranked[:, step], some, other, at(16, step))
    gain = learner.verdict(rows, other, none) - learner.verdict(rows, same, none)
    assert gain[gain != 0].mean() > 0.05  # of a skill that a network lacks it is 0


def test_a_probe_tells_right_labels_from_wrong_ones() -> None:
    drawn = [
        replace(n, clean=c, wrong=w)
        for n in networks(24, "clean")
        for c, w in ((n.clean, n.wrong), (np.zeros_like(n.clean), n.clean + n.wrong))
    ]
    for i, network in enumerate(drawn):
        # The same table, weights and rows but for their labels.
        rng = np.random.default_rng(i // 2)
        drawn[i] = replace(network, rows=deal(network, 0, rng))
    learner, rows = learner_of(drawn), np.arange(48)
    nodes = np.array([int(n.has_data.argmax()) for n in drawn])
    scores = learner.probe(rows, nodes, learner.fresh(rows), at(48))
    right, wrong = np.asarray(scores.gain)[::2], np.asarray(scores.gain)[1::2]
    assert (right > wrong).mean() > 0.7
    assert right.mean() > 0 > wrong.mean()
    assert (np.asarray(scores.alignment)[::2] > 0).mean() > 0.8
    assert (np.abs(np.asarray(scores.alignment)) <= 1.0001).all()
    assert (np.asarray(scores.gradient_norm) > 0).all()


def test_what_is_shipped_is_the_mean_of_the_last_visits() -> None:
    drawn = networks(4, "healthcare", average_last=3)
    learner, rows = learner_of(drawn), np.arange(4)
    nodes = np.array([good_node(network) for network in drawn])
    models, newest = learner.fresh(rows), []
    for step in range(5):
        models = learner.visit(rows, nodes, np.zeros(4), models, at(4, step))
        newest.append(models[:, 1].copy())
        assert np.allclose(models[:, 0], np.mean(newest[-3:], axis=0), atol=1e-6)
    plain = learner_of([replace(n, rows=replace(n.rows, average_last=0)) for n in drawn if n.rows])
    once = plain.visit(rows, nodes, np.zeros(4), plain.fresh(rows), at(4))
    assert np.array_equal(once[:, 0], newest[0])


def test_a_row_learns_alike_whoever_is_beside_it() -> None:
    drawn = networks(10)
    together, rows = learner_of(drawn), np.arange(10)
    nodes = np.array([good_node(network) for network in drawn])
    # Of the same limits, so that all shapes are the same.
    batch = Networks(1, Limits.of(drawn))
    alone = RowLearner(batch)
    models = together.fresh(rows)
    models = together.visit(rows, nodes, np.zeros(10), models, at(10))
    scores = np.stack(together.probe(rows, nodes, models, at(10, 1)))
    for row in (0, 4, 9):
        batch.put(0, drawn[row])
        zero, own = np.zeros(1, np.int64), at(10).of(np.array([row]))
        model = alone.fresh(zero)
        model = alone.visit(zero, nodes[row : row + 1], np.zeros(1), model, own)
        assert np.array_equal(model[0], models[row], equal_nan=True)
        found = alone.probe(zero, nodes[row : row + 1], model, at(10, 1).of(np.array([row])))
        assert np.array_equal(np.stack(found)[:, 0], scores[:, row])


def test_all_views_of_the_environment_take_rows() -> None:
    batch = KnowledgeVecEnv(3, preset="small", pool_size=2, fidelity="rows", seed=4)
    single = KnowledgeNetworkEnv(preset="small", pool_size=2, fidelity="rows")
    vector = KnowledgeNetworkVectorEnv(3, preset="small", pool_size=2, fidelity="rows")
    seen, (alone, _) = batch.reset(), single.reset(seed=5)
    beside, _ = vector.reset(seed=4)
    for _ in range(4):
        assert np.array_equal(seen["features"][1], alone["features"])
        assert np.array_equal(seen["features"].shape, beside["features"].shape)
        actions = seen["mask"].argmax(axis=1)
        seen, reward, _, _ = batch.step(actions)
        alone, own, *_ = single.step(actions[1])
        beside, *_ = vector.step(beside["mask"].argmax(axis=1))
        assert reward[1] == np.float32(own)
    fleet = KnowledgeFleet(2, preset="small", pool_size=2, fidelity="rows")
    observed, _ = fleet.reset(seed=1)
    observed, *_ = fleet.step({a: o["action_mask"].argmax() for a, o in observed.items()})
    assert observed


def test_a_family_has_no_models_of_its_own() -> None:
    with pytest.raises(ScenarioError, match="of a family: formula, rows"):
        KnowledgeNetworkEnv(preset="small", pool_size=2, fidelity="torch")


def test_a_scenario_s_small_models_learn_by_its_own_rows() -> None:
    """What nodes, packets and MPVUs hold there, in place of rows dealt by counts."""
    source = ScenarioSource(RING, 2, "rows")
    for network, task in source._variants:
        rows = network.rows
        assert rows is not None
        for node, name in enumerate(task.names):
            for t, skill in enumerate(network.skills):
                if not network.has_data[node]:
                    continue
                data = task.plan.nodes[name].data.skills[skill]
                part = slice(rows.first[node, t], rows.first[node, t] + rows.held[node, t])
                mine = rows.table[rows.at[part], : data.train_x.shape[1]]
                assert sorted(map(bytes, mine)) == sorted(map(bytes, data.train_x))
                assert sorted(rows.label[part]) == sorted(data.train_y)
        (x, y), *_ = rows.trusted
        wanted = task.plan.reference[network.skills[0]]
        assert np.array_equal(rows.table[x][:, : wanted[0].shape[1]], wanted[0])
        assert np.array_equal(y, wanted[1])
    env = KnowledgeVecEnv(4, scenario=RING, pool_size=2, fidelity="rows", seed=0)
    seen = env.reset()
    before = env._episodes.told()["accuracy"]
    for _ in range(4):
        seen, *_ = env.step(seen["mask"].argmax(axis=1))
    assert (env._episodes.told()["accuracy"] - before).max() > 0.2


def test_rows_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aats_envs.scenario_rows.WIDTH", 30)
    with pytest.raises(ScenarioError, match=r"fidelity rows.*30.*at most 29 numbers"):
        ScenarioSource(RING, 1, "rows")
