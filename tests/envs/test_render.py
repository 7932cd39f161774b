import numpy as np
import numpy.typing as npt

from aats_envs.render import GOOD, HOME, PACKET, UNIT
from aats_envs.single import KnowledgeNetworkEnv


def drawn(mode: str, steps: int) -> tuple[KnowledgeNetworkEnv, list[int]]:
    env = KnowledgeNetworkEnv(preset="small", pool_size=4, render_mode=mode)
    env.action_space.seed(0)
    _, info = env.reset(seed=1)
    trail = [info["at"]]
    for _ in range(steps):
        _, _, _, _, info = env.step(env.action_space.sample(info["action_mask"]))
        trail.append(info["at"])
    return env, trail


def has(picture: npt.NDArray[np.uint8], colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((picture == wanted).all(axis=2).any())


def test_a_picture_shows_packet_home_mpvu_and_data() -> None:
    env, _ = drawn("rgb_array", 3)
    picture = env.render()
    assert picture.shape == (580, 960, 3)
    assert picture.dtype == np.uint8
    for colour in (GOOD, HOME, PACKET, UNIT):
        assert has(picture[:530, :570], colour), colour
    assert np.array_equal(picture, env.render())


def test_a_picture_changes_as_the_packet_moves() -> None:
    env, _ = drawn("rgb_array", 1)
    before = env.render()
    env.step(np.int64(np.flatnonzero(env.action_masks())[0]))
    assert not np.array_equal(before, env.render())


def test_a_text_tells_the_trail_and_what_is_legal() -> None:
    env, trail = drawn("ansi", 4)
    told = env.render()
    assert f"at node {trail[-1]}" in told
    assert " > ".join(map(str, trail)) in told
    legal = told.rpartition("may go to")[2].replace("mpvu ", "").replace("home ", "").split()
    rows = [int(part.partition(":")[0]) for part in legal]
    assert rows == np.flatnonzero(env.action_masks()).tolist()


def test_without_a_mode_nothing_is_drawn() -> None:
    env = KnowledgeNetworkEnv(preset="small", pool_size=2)
    env.reset(seed=0)
    assert env.render() is None
