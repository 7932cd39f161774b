from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence as same
from pettingzoo.test import parallel_api_test, parallel_seed_test

from aats.errors import ScenarioError
from aats.node.pace import FORWARD_SHARE
from aats_envs.fleet import KnowledgeFleet, way
from aats_envs.presets import preset
from aats_envs.single import KnowledgeNetworkEnv
from aats_envs.source import FamilySource

FEW: dict[str, Any] = {"preset": "small", "pool_size": 4}
UNPROBED = {"preset": "small", "pool_size": 4, "probes": 0}


def to(info: dict[str, Any], node: int) -> np.int64:
    """The row that leads to a node."""
    rows = np.flatnonzero((info["nodes"] == node) & (info["action_mask"] > 0))
    return np.int64(rows[0])


def test_it_is_a_parallel_environment() -> None:
    parallel_api_test(KnowledgeFleet(3, **FEW, max_episode_steps=40), num_cycles=60)


def test_the_same_seed_gives_the_same_journeys() -> None:
    parallel_seed_test(lambda: KnowledgeFleet(3, **FEW), num_cycles=30)


def test_packets_leave_when_they_are_home_and_the_others_go_on() -> None:
    env = KnowledgeFleet(3, **FEW)
    _, infos = env.reset(seed=0)
    illegal = np.int64(np.flatnonzero(infos["packet_1"]["action_mask"] == 0)[-1])
    chosen = {agent: env.action_space(agent).sample(info["action_mask"])
              for agent, info in infos.items()}  # fmt: skip
    seen, reward, terminated, _, told = env.step(chosen | {"packet_1": illegal})
    assert set(seen) == set(reward) == set(told) == {"packet_0", "packet_1", "packet_2"}
    assert terminated == {"packet_0": False, "packet_1": True, "packet_2": False}
    assert told["packet_1"]["ending"] == "illegal"
    assert env.agents == ["packet_0", "packet_2"]
    chosen = {agent: env.action_space(agent).sample(told[agent]["action_mask"])
              for agent in env.agents}  # fmt: skip
    assert set(env.step(chosen)[0]) == {"packet_0", "packet_2"}


def test_a_fleet_of_one_is_the_single_environment() -> None:
    fleet, single = KnowledgeFleet(1, **FEW), KnowledgeNetworkEnv(**FEW)
    fleet.reset(seed=0)
    # The same network and luck: the fleet's network under the single one's key.
    key = int(fleet._episodes.sim.keys[0])
    single._episodes.sim.source = fleet._shared
    observed, info = single.reset(options={"network": key})
    for _ in range(15):
        action = single.action_space.sample(info["action_mask"])
        observed, reward, ended, _, info = single.step(action)
        seen, gained, terminated, _, told = fleet.step({"packet_0": action})
        seen["packet_0"]["mask"] = seen["packet_0"].pop("action_mask")
        assert same(seen["packet_0"], observed, exact=True)
        assert (gained["packet_0"], terminated["packet_0"]) == (reward, ended)
        assert told["packet_0"]["seconds"] == info["seconds"]
        if ended:
            break


def test_who_goes_where_others_go_waits_and_sees_them() -> None:
    def moved(together: bool) -> tuple[float, KnowledgeFleet, int]:
        env = KnowledgeFleet(2, **UNPROBED)
        _, infos = env.reset(seed=3)
        net = env._shared.network
        data = np.flatnonzero(net.has_data & (np.arange(net.num_nodes) != net.home)).tolist()
        first, second = next(
            (a, b) for a in data for b in data
            if not set(way(net, net.home, a)) & set(way(net, net.home, b))
        )  # fmt: skip
        told = env.step({
            "packet_0": to(infos["packet_0"], first),
            "packet_1": to(infos["packet_1"], first if together else second),
        })[4]  # fmt: skip
        queue = env._episodes.sim.net.queue[:, first] - env._queue[first]
        assert queue.tolist() == pytest.approx([float(together), 1.0])
        return told["packet_0"]["seconds"], env, first

    alone, _, _ = moved(False)
    together, env, first = moved(True)
    network = env._shared.network
    work = (network.clean + network.wrong)[first].sum() * network.epochs
    work += 2 * FORWARD_SHARE * network.reference.sum()
    waited = work / network.samples_per_s[first] + network.transfer_s[network.home, first]
    assert together - alone == pytest.approx(waited)


def test_links_are_shared_only_in_the_same_direction() -> None:
    env = KnowledgeFleet(2, **UNPROBED)
    env.reset(seed=0)
    sim, net = env._episodes.sim, env._shared.network
    a, b = (int(i) for i in np.argwhere(net.links == 1)[0])
    before = sim.net.transfer_s.copy()
    env._jam(np.array([a, b]), np.array([b, a]), np.ones(2, np.bool_))
    assert np.array_equal(sim.net.transfer_s, before)
    env._jam(np.array([a, a]), np.array([b, b]), np.ones(2, np.bool_))
    assert sim.net.transfer_s[0, a, b] == sim.net.transfer_s[1, a, b] == 2 * before[0, a, b]
    env._jam(np.array([a, a]), np.array([b, b]), np.array([True, False]))
    assert sim.net.transfer_s[0, a, b] == 2 * before[0, a, b]


@pytest.mark.parametrize("name", ["small", "train"])
def test_a_way_leads_there_over_links_that_add_up(name: str) -> None:
    source = FamilySource(preset(name), 8)
    for seed in range(8):
        network = source.draw(np.random.default_rng(seed))
        for start in range(network.num_nodes):
            for end in range(network.num_nodes):
                links = way(network, start, end)
                assert len(links) == network.links[start, end]
                assert all(one[1] == other[0] for one, other in pairwise(links))
                assert all(network.neighbours[link] for link in links)
                total = sum(network.transfer_s[link] for link in links)
                assert total == pytest.approx(network.transfer_s[start, end])


def test_journeys_are_begun_again_by_their_key() -> None:
    env = KnowledgeFleet(2, **FEW, render_mode="ansi")
    env.reset(seed=0)
    seen, infos = env.reset()
    again, _ = env.reset(options={"network": infos["packet_1"]["network"]})
    assert same(seen, again, exact=True)
    assert (env.render() or "").count("may go to") == 2


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ScenarioError, match="packets"):
        KnowledgeFleet(0, **FEW)
    with pytest.raises(ScenarioError, match="render_mode"):
        KnowledgeFleet(1, **FEW, render_mode="human")
