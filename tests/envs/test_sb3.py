from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence as same
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.vec_env import DummyVecEnv

from aats.errors import ScenarioError
from aats_envs.sb3 import KnowledgeVecEnv
from tests.envs.test_vector import ID, choices

FEW: dict[str, Any] = {"preset": "small", "pool_size": 8}


def test_it_does_what_a_dummy_of_single_environments_does() -> None:
    """Bit for bit, but for the infos of rows that go on, which it leaves empty."""
    batch = KnowledgeVecEnv(3, **FEW, max_episode_steps=25, seed=3)
    dummy = DummyVecEnv([lambda: gym.make(ID, max_episode_steps=25, **FEW)] * 3)
    dummy.seed(3)
    observed: Any = batch.reset()
    assert same(dict(dummy.reset()), observed, exact=True)
    ended = np.zeros(3, np.int64)
    for step in range(60):
        assert np.array_equal(get_action_masks(batch), get_action_masks(dummy))
        actions = choices(observed["mask"], step)
        observed, reward, done, infos = batch.step(actions)
        again, reward_again, done_again, infos_again = dummy.step(actions)
        assert same(observed, dict(again), exact=True)
        assert np.array_equal(reward, reward_again)
        assert np.array_equal(done, done_again)
        for i in range(3):
            if not done[i]:
                assert infos[i] == {}
                continue
            episode = infos[i].pop("episode")
            assert episode["l"] == step + 1 - ended[i]
            ended[i] = step + 1
            if not infos[i]["TimeLimit.truncated"]:  # home: it does not look around again
                for name in ("terminal_observation", "action_mask", "nodes", "stage"):
                    del infos[i][name], infos_again[i][name]
            assert same(infos[i], infos_again[i], exact=True)
    assert (ended > 0).all()


def test_the_same_seed_begins_anew_and_none_goes_on() -> None:
    env = KnowledgeVecEnv(3, **FEW, seed=5)
    first: Any = env.reset()
    second: Any = env.reset()
    env.seed(5)
    assert same(env.reset(), first, exact=True)
    assert same(env.reset(), second, exact=True)
    assert not same(first, second)


def test_what_is_returned_is_the_caller_s() -> None:
    env = KnowledgeVecEnv(2, **FEW, seed=0)
    first: Any = env.reset()
    kept = {name: values.copy() for name, values in first.items()}
    env.step(choices(first["mask"], 0))
    assert same(first, kept, exact=True)


def test_attributes_and_methods_come_by_row() -> None:
    env = KnowledgeVecEnv(3, **FEW, seed=0)
    env.reset()
    assert is_masking_supported(env)
    masks = env.env_method("action_masks")
    assert masks.shape == (3, 32)
    assert np.array_equal(env.env_method("action_masks", indices=[2])[0], masks[2])
    assert env.get_attr("num_envs", indices=1) == [3]
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    assert not env.has_attr("nonsense")


def test_maskable_ppo_learns_on_it_and_knows_success() -> None:
    env = KnowledgeVecEnv(8, **FEW, seed=0)
    model = MaskablePPO(
        "MultiInputPolicy", env, n_steps=32, batch_size=64, n_epochs=1, seed=0,
        device="cpu",
    )  # fmt: skip
    model.learn(8 * 32 * 2)
    assert model.num_timesteps == 8 * 32 * 2
    assert len(model.ep_info_buffer or ()) > 0
    assert len(model.ep_success_buffer or ()) == len(model.ep_info_buffer or ())


def test_it_draws_its_rows() -> None:
    env = KnowledgeVecEnv(2, **FEW, seed=0, render_mode="rgb_array")
    env.reset()
    tiled = env.render()
    assert tiled is not None
    assert tiled.shape == (2 * 580, 960, 3)


@pytest.mark.parametrize("count", [0, -1])
def test_there_is_at_least_one_row(count: int) -> None:
    with pytest.raises(ScenarioError, match="num_envs"):
        KnowledgeVecEnv(count, **FEW)
