import json
import re
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_checker import data_equivalence as same
from stable_baselines3.common.env_checker import check_env as check_for_sb3

import aats_envs
from aats.errors import ScenarioError
from aats.routing.features import FEATURES, GLOBALS, SIGNED
from aats_envs.simulator import Reward
from aats_envs.single import KnowledgeNetworkEnv

ID = "aats_envs:aats/KnowledgeNetwork-v0"
FEW: dict[str, Any] = {"preset": "small", "pool_size": 4}


@pytest.fixture
def env() -> KnowledgeNetworkEnv:
    return KnowledgeNetworkEnv(**FEW)


def walk(env: gym.Env[Any, Any], steps: int) -> list[tuple[Any, ...]]:
    """Legal choices from the environment's own space, from one journey to the next."""
    seen = []
    info = env.unwrapped._episodes.told()  # type: ignore[attr-defined]
    mask = info["action_mask"][0]
    for _ in range(steps):
        found = env.step(env.action_space.sample(mask))
        mask = found[4]["action_mask"]
        seen.append(found)
        if found[2] or found[3]:
            mask = env.reset()[1]["action_mask"]
    return seen


def test_gymnasium_s_checker_finds_nothing() -> None:
    check_env(gym.make(ID, **FEW, render_mode="rgb_array").unwrapped)


def test_stable_baselines_s_checker_finds_only_the_matrix_of_candidates() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your observation features has an unconventional shape")
        check_for_sb3(KnowledgeNetworkEnv(**FEW))


def test_its_spec_survives_json_and_the_limit_holds() -> None:
    made = gym.make(ID, **FEW, reward={"seconds": 0.5}, max_episode_steps=3)
    assert made.spec is not None
    again = gym.make(EnvSpec.from_json(made.spec.to_json()))
    for env in (made, again):
        env.reset(seed=1)
        assert [found[3] for found in walk(env, 3)] == [False, False, True]


def test_arguments_are_plain_values(env: KnowledgeNetworkEnv) -> None:
    family = json.loads(json.dumps({"nodes": [9, 9], "graphs": ["ring"]}))
    other = KnowledgeNetworkEnv(family=family, pool_size=2, k=16, reward={"failure": 5})
    other.reset(seed=0)
    assert other._episodes.sim.net.num_nodes[0] == 9
    assert other._episodes.sim.reward.failure == 5
    assert other.observation_space["features"].shape == (16, len(FEATURES))  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"preset": "smal"}, "family: 'smal'"),
        ({"preset": "small", "family": {"nodes": [8, 8]}}, "preset and family"),
        ({"family": {"node": [8, 8]}}, "nodes"),
        (FEW | {"k": 5}, "environment: k: 5"),
        (FEW | {"probes": -1}, "environment: probes: -1"),
        ({"pool_size": 0}, "environment: pool_size: 0"),
        (FEW | {"reward": {"second": 1.0}}, "seconds"),
        ({"render_mode": "human"}, "rgb_array, ansi"),
    ],
)
def test_a_wrong_argument_is_told(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(told)):
        KnowledgeNetworkEnv(**arguments)


def test_a_journey_is_told_by_its_key_and_can_be_begun_again(env: KnowledgeNetworkEnv) -> None:
    env.reset(seed=7)
    observed, info = env.reset()
    env.action_space.seed(0)
    first = walk(env, 10)
    replayed, told = env.reset(seed=8, options={"network": info["network"]})
    env.action_space.seed(0)
    assert same((observed, info), (replayed, told), exact=True)
    assert same(first[:5], walk(env, 5), exact=True)
    with pytest.raises(ScenarioError, match="network"):
        env.reset(options={"network": -1})


def test_the_mask_is_the_same_wherever_it_is_told(env: KnowledgeNetworkEnv) -> None:
    observed, info = env.reset(seed=3)
    for _ in range(30):
        assert observed["mask"].dtype == info["action_mask"].dtype == np.int8
        assert np.array_equal(observed["mask"], info["action_mask"])
        assert np.array_equal(env.action_masks(), info["action_mask"] > 0)
        observed, _, ended, _, info = env.step(env.action_space.sample(info["action_mask"]))
        if ended:
            observed, info = env.reset()


def test_an_illegal_choice_goes_home_and_fails(env: KnowledgeNetworkEnv) -> None:
    _, info = env.reset(seed=0)
    home = info["at"]
    # Away first, to a place that the way home leads back from.
    _, _, _, _, info = env.step(np.int64(np.flatnonzero(info["action_mask"])[-1]))
    illegal = int(np.flatnonzero(info["action_mask"] == 0)[-1])
    _, reward, terminated, truncated, info = env.step(np.int64(illegal))
    assert (terminated, truncated) == (True, False)
    assert (info["at"], info["ending"], info["is_success"]) == (home, "illegal", False)
    assert float(reward) < -0.9 * Reward().scale * Reward().failure


def test_a_choice_that_is_no_row_is_refused(env: KnowledgeNetworkEnv) -> None:
    env.reset(seed=0)
    for wrong in (-1, 32):
        with pytest.raises(ValueError, match="within 0-31"):
            env.step(np.int64(wrong))


def test_nodes_are_those_that_rows_lead_to(env: KnowledgeNetworkEnv) -> None:
    _, info = env.reset(seed=5)
    for _ in range(20):
        chosen = env.action_space.sample(info["action_mask"])
        node = info["nodes"][chosen]
        assert (info["nodes"] == -1).sum() == 32 - (info["nodes"] >= 0).sum()
        _, _, ended, _, info = env.step(chosen)
        assert info["at"] == node  # nobody is out of reach in this family
        if ended:
            _, info = env.reset()


def test_what_is_spent_only_grows_and_ends_with_a_cost(env: KnowledgeNetworkEnv) -> None:
    _, info = env.reset(seed=0)
    ended, costs = False, ("hops", "seconds", "bytes", "joules", "probe_bytes", "cost")
    rewards, charged = [], 0.0
    while not ended:
        before = info
        _, reward, ended, _, info = env.step(env.action_space.sample(info["action_mask"]))
        rewards.append(float(reward))
        assert all(info[name] >= before[name] for name in costs)
        charged += min(Reward().most, info["cost"] - before["cost"])
        assert info["probe_bytes"] < info["bytes"]
    sim = env._episodes.sim
    assert info["seconds"] / sim.unit[0, 1] == pytest.approx(info["cost"])
    assert info["ending"] in ("verified", "over budget")
    assert info["is_success"] == (info["ending"] == "verified")
    # The failure and the cost are in the rewards, besides shaping.
    assert sum(rewards) < 0.1 * (2.0 + 10.0 - charged) + 2.0


def test_the_docstring_names_every_column() -> None:
    doc = KnowledgeNetworkEnv.__doc__ or ""
    rows = re.findall(r"\| (\d+) \| (\w+) \| (-?\d) \| (\d) \|", doc)
    expected = [
        (str(i), name, "-1" if name in SIGNED else "0", "1")
        for names in (FEATURES, GLOBALS)
        for i, name in enumerate(names)
    ]
    assert rows == expected
    for section in (
        "Description", "Action Space", "Observation Space", "Starting State", "Rewards",
        "Episode End", "Information", "Arguments", "Version History",
    ):  # fmt: skip
        assert f"## {section}\n" in doc


def test_the_docstring_names_what_info_has(env: KnowledgeNetworkEnv) -> None:
    _, info = env.reset(seed=0)
    doc = (KnowledgeNetworkEnv.__doc__ or "").partition("## Information")[2].partition("## Arg")[0]
    named = [name for row in re.findall(r"^    \| ([a-z_, ]+) \|", doc, re.M)
             for name in row.split(", ")]  # fmt: skip
    assert set(named) == set(info)


def test_the_examples_of_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    readme = Path(aats_envs.__file__).parents[1] / "README.md"
    examples = re.findall(r"```python\n(.*?)```", readme.read_text(), re.S)
    assert len(examples) == 3
    for example in examples:
        exec(example, {})
    assert "may go to" in capsys.readouterr().out
