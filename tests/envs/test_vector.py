from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.utils.env_checker import data_equivalence as same
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from aats_envs.vector import KnowledgeNetworkVectorEnv

ID = "aats_envs:aats/KnowledgeNetwork-v0"


def choices(mask: npt.NDArray[np.int8], step: int) -> npt.NDArray[np.int64]:
    """Legal choices that depend on the masks and the step alone."""
    score = np.random.default_rng(step).random(mask.shape)
    return np.where(mask > 0, score, -1.0).argmax(axis=1)


@pytest.mark.parametrize(
    ("preset", "rows", "steps"),
    [
        ("small", 3, 60),
        ("train", 3, 60),
        pytest.param("small", 8, 400, marks=pytest.mark.slow),
        pytest.param("train", 8, 400, marks=pytest.mark.slow),
    ],
)
def test_every_row_is_the_single_environment_of_its_seed(
    preset: str, rows: int, steps: int
) -> None:
    """Bit for bit, through autoresets: observations, rewards, ends and all that is told."""
    arguments: dict[str, Any] = {"preset": preset, "pool_size": 8}
    batch = gym.make_vec(ID, rows, max_episode_steps=30, **arguments)
    single = SyncVectorEnv(
        [lambda: gym.make(ID, max_episode_steps=30, **arguments)] * rows,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    assert isinstance(batch, KnowledgeNetworkVectorEnv)
    assert batch.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert batch.observation_space == single.observation_space
    found, expected = batch.reset(seed=11), single.reset(seed=11)
    assert same(found, expected, exact=True)
    ended = np.zeros(2, np.int64)
    for step in range(steps):
        actions = choices(found[0]["mask"], step)
        found_step, expected_step = batch.step(actions), single.step(actions)
        assert same(found_step, expected_step, exact=True), step
        found = found_step[:1]
        ended += found_step[2].sum(), found_step[3].sum()
    assert (ended > 0).all()  # both kinds of end were there
    batch.close()
    single.close()


def test_seeds_may_be_given_one_by_one_and_keys_replay() -> None:
    batch = KnowledgeNetworkVectorEnv(3, preset="small", pool_size=4)
    observed, info = batch.reset(seed=[5, 6, 5])
    assert np.array_equal(observed["features"][0], observed["features"][2])
    assert not np.array_equal(observed["features"][0], observed["features"][1])
    batch.reset()
    replayed, _ = batch.reset(options={"network": info["network"]})
    assert same(observed, replayed, exact=True)


def test_it_has_a_picture_of_every_row() -> None:
    batch = KnowledgeNetworkVectorEnv(2, preset="small", pool_size=2, render_mode="ansi")
    batch.reset(seed=0)
    drawn = batch.render()
    assert drawn is not None
    assert len(drawn) == 2
    assert all("may go to" in text for text in drawn)
