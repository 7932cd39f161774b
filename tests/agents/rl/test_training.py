from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aats.errors import MissingExtraError, ScenarioError
from aats_agents.policy_file import PolicyFile, load
from aats_agents.prior import Prior
from aats_agents.rl import settings
from aats_agents.rl.curve import Point, best
from aats_agents.rl.settings import ROLLOUT, Algorithm, TrainingConfig
from aats_agents.rl.train import Origin, evaluate, train
from aats_agents.scorer import Scorer, zeros
from tests.agents.rl.toy import LENGTH, ToyVecEnv

SMALL = TrainingConfig(
    num_envs=8, hidden=8, every=2, episodes=32, prior=None, steps=4 * ROLLOUT * 8
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"learning_starts": 500, "batch_size": 128, "gradient_steps": 4, "buffer_size": 8000}
    for name, value in (few | {"target_update_interval": 500}).items():
        monkeypatch.setitem(settings.DQN, name, value)


def run(config: TrainingConfig, folder: Path, *, resume: bool = False) -> PolicyFile:
    return train(config, ToyVecEnv, folder / "p.safetensors", resume=resume)


@pytest.mark.parametrize(
    ("algorithm", "steps"),
    [
        (Algorithm.PPO, 24 * ROLLOUT * 16),
        pytest.param(Algorithm.DQN, 20 * ROLLOUT * 16, marks=pytest.mark.slow),
    ],
)
def test_what_is_rewarded_is_learned_in_seconds(
    algorithm: Algorithm, steps: int, tmp_path: Path
) -> None:
    config = TrainingConfig(
        algorithm, steps, num_envs=16, hidden=16, prior=None, every=10, episodes=256
    )
    policy = run(config, tmp_path)
    found = policy.training.metrics
    assert found["start_success"] < 0.4
    assert found["success"] > 0.9
    other = evaluate(policy.scorer, ToyVecEnv(256, 1), 12345)
    assert other.success > 0.9
    assert other.cost == pytest.approx(LENGTH - other.reward)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_one_seed_gives_one_policy(algorithm: Algorithm, tmp_path: Path) -> None:
    config = replace(SMALL, algorithm=algorithm)
    first, second = (run(config, tmp_path / name) for name in "ab")
    other = run(replace(config, seed=1), tmp_path / "c")
    assert first.digest == second.digest
    for name, weights in first.weights.items():
        np.testing.assert_array_equal(weights, second.weights[name])
    assert any(not np.array_equal(w, other.weights[n]) for n, w in first.weights.items())


def test_a_run_that_was_resumed_is_the_run_it_continues(tmp_path: Path) -> None:
    whole = run(SMALL, tmp_path / "whole")
    broken = tmp_path / "broken"
    seen = []

    def stop(steps: int, point: Point | None) -> None:
        seen.append(steps)
        if steps > SMALL.steps // 2 and point is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, ToyVecEnv, broken / "p.safetensors", report=stop)
    resumed = run(SMALL, broken, resume=True)
    assert max(seen) < SMALL.steps
    assert (broken / "p.safetensors").read_bytes() == (
        tmp_path / "whole" / "p.safetensors"
    ).read_bytes()
    assert resumed.digest == whole.digest
    assert (broken / "p.csv").read_text() == (tmp_path / "whole" / "p.csv").read_text()


def test_only_the_same_run_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="there is no such checkpoint"):
        run(SMALL, tmp_path, resume=True)
    run(SMALL, tmp_path)
    with pytest.raises(ScenarioError, match=r"--resume: hidden: 9 .* has 8"):
        run(replace(SMALL, hidden=9), tmp_path, resume=True)
    (tmp_path / "p.checkpoint").write_bytes(b"no checkpoint")
    with pytest.raises(ScenarioError, match="a checkpoint of"):
        run(SMALL, tmp_path, resume=True)
    with pytest.raises(ScenarioError, match="only ppo can be resumed"):
        run(replace(SMALL, algorithm=Algorithm.DQN), tmp_path, resume=True)


def test_the_file_says_how_it_was_made_and_what_it_saw(tmp_path: Path) -> None:
    origin = Origin("preset:toy", "ab" * 32, "aats policy train --preset toy")
    path = tmp_path / "p.safetensors"
    config = replace(SMALL, prior=Prior(), seed=3, probes=2, fallback="random")
    train(config, ToyVecEnv, path, origin=origin)
    policy = load(path)
    assert (policy.probes, policy.fallback, policy.prior) == (2, "random", Prior())
    made = policy.training
    assert (made.algorithm, made.world, made.seed) == ("ppo", "preset:toy", 3)
    assert (made.command, made.world_digest) == (origin.command, origin.world_digest)
    assert made.steps == SMALL.steps
    low, high = policy.ranges["freshness"]
    assert 0 <= low < 0.01 < 0.99 < high <= 1
    assert {"is_mpvu", "log_size"} <= policy.ranges.keys()
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["steps"]) for row in rows] == [0, SMALL.steps // 2, SMALL.steps]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_without_steps_the_prior_is_written_as_it_is(tmp_path: Path) -> None:
    policy = run(replace(SMALL, steps=0, prior=Prior()), tmp_path)
    assert policy.training.algorithm == ""
    env = ToyVecEnv(32, 0)
    prior = evaluate(Scorer(zeros(), Prior()), env, 7)
    assert evaluate(policy.scorer, env, 7) == prior


def test_the_best_is_most_successful_first_and_cheapest_then() -> None:
    def at(*pairs: tuple[float, float]) -> int:
        return best([Point(i, s, c, 0.0, 0.0) for i, (s, c) in enumerate(pairs)])

    assert at((0.9, 5.0), (0.95, 9.0), (0.5, 1.0)) == 1
    assert at((0.95, 5.0), (0.955, 9.0), (0.95, 5.0)) == 0
    # Each a little worse than the one before: held against the best of all, not the last.
    assert at((1.0, 5.0), (0.992, 4.0), (0.984, 3.0), (0.976, 2.0)) == 1


def test_an_evaluation_counts_each_journey_once() -> None:
    point = evaluate(Scorer(zeros(), Prior()), ToyVecEnv(64, 0), 5)
    again = evaluate(Scorer(zeros(), Prior()), ToyVecEnv(64, 99), 5)
    assert point == again  # by the seed it is given, whatever came before
    assert point.hops == LENGTH
    assert asdict(point)["reward"] == pytest.approx(LENGTH - point.cost, rel=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed"
)
def test_tensorboard_is_named_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"aats-network\[tensorboard\]"):
        train(SMALL, ToyVecEnv, tmp_path / "p.safetensors", tensorboard=tmp_path / "tb")


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"num_envs": 0}, {"every": 0}])
def test_a_training_that_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(SMALL, **wrong)
