"""The learning environment: steps a CPU second, its share of training, and a decision's time.

Every figure is CPU time of this process, on one thread. Contestants are warmed up, then take
turns in random order; figures are medians over the rounds. Only the environment's own calls are
timed, choosing a legal action at random is not; CartPole-v1, in the same rounds, tells how fast
this machine is at the time.

    python benchmarks/bench_env.py
    python benchmarks/bench_env.py --quick
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from common import Bar, Row, finish, show
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import DummyVecEnv

from aats.ids import NodeId
from aats.routing.policy import Candidate, Observation, Phase, StopKind
from aats.routing.view import look
from aats_agents.policies.rl import RlPolicy
from aats_agents.prior import Prior
from aats_agents.rl import settings
from aats_agents.rl.network import CandidatePolicy, prior_weights
from aats_envs.sb3 import KnowledgeVecEnv
from aats_envs.simulator import Simulator
from aats_envs.single import KnowledgeNetworkEnv
from aats_envs.source import FORMULA, ROWS, source_of
from aats_envs.vector import KnowledgeNetworkVectorEnv

NODES = 16, 64, 256
BATCHES = 16, 64, 256
TOGETHER = 16
"""Single environments in Stable-Baselines3's DummyVecEnv."""
CANDIDATES = 64
DECIDED_AT = 16, 80, 256
"""Nodes: fewer than the candidates, more, and many more."""
TRAINED_ON = "train"
Turn = Callable[[], float]
"""Takes steps and returns how many a CPU second it took."""


def family(nodes: int) -> dict[str, Any]:
    """Return the arguments for networks of so many nodes, otherwise like the preset "small"."""
    return {"family": {"nodes": [nodes, nodes]}, "pool_size": 16}


def chosen(mask: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a legal action for each row, at random."""
    return np.where(mask > 0, rng.random(mask.shape), -1.0).argmax(axis=-1)


def single(env: gym.Env[Any, Any], steps: int) -> Turn:
    """Time a single environment, resets included."""
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)

    def turn() -> float:
        nonlocal info
        spent = 0.0
        for _ in range(steps):
            mask = info.get("action_mask", np.ones(2, np.int8))
            action = chosen(mask, rng)
            start = time.process_time()
            _, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                _, info = env.reset()
            spent += time.process_time() - start
        return steps / spent

    return turn


def batched(env: Any, count: int, steps: int) -> Turn:
    """Time an environment of many rows: a Gymnasium vector environment or one of SB3's."""
    rng = np.random.default_rng(0)
    first = env.reset()
    seen = first[0] if isinstance(first, tuple) else first

    def turn() -> float:
        nonlocal seen
        spent = 0.0
        for _ in range(steps):
            free = np.ones((count, 2), np.int8)
            action = chosen(seen["mask"] if isinstance(seen, dict) else free, rng)
            start = time.process_time()
            seen = env.step(action)[0]
            spent += time.process_time() - start
        return steps * count / spent

    return turn


def contestants(sizes: tuple[int, ...], budget: int) -> dict[tuple[str, int, int], Turn]:
    """Return what is timed, by name, nodes and rows; each turn takes about `budget` steps."""
    found: dict[tuple[str, int, int], Turn] = {}
    cart = "CartPole-v1"
    found[f"{cart}, single", 0, 1] = single(gym.make(cart), budget)
    carts = DummyVecEnv([lambda: gym.make(cart)] * TOGETHER)
    found[f"{cart}, DummyVecEnv", 0, TOGETHER] = batched(carts, TOGETHER, budget // TOGETHER)
    for n in sizes:
        made = family(n)
        few = max(8, budget // 4)  # a single one is slow
        found["single", n, 1] = single(KnowledgeNetworkEnv(**made), few)
        dummy = DummyVecEnv([lambda made=made: KnowledgeNetworkEnv(**made)] * TOGETHER)  # type: ignore[misc]
        found["DummyVecEnv of single", n, TOGETHER] = batched(dummy, TOGETHER, few // TOGETHER)
        for b in BATCHES:
            env = KnowledgeVecEnv(b, seed=0, **made)
            found["KnowledgeVecEnv", n, b] = batched(env, b, max(4, budget // b))
        b = BATCHES[-1]
        vector = KnowledgeNetworkVectorEnv(b, **made)
        found["KnowledgeNetworkVectorEnv", n, b] = batched(vector, b, max(4, budget // b))
    return found


def raced(turns: dict[tuple[str, int, int], Turn], rounds: int) -> list[Row]:
    """Return the median speed of each, the rounds in random order."""
    order, speeds = list(turns), {key: list[float]() for key in turns}
    rng = random.Random(0)
    for i in range(rounds + 1):
        rng.shuffle(order)
        for key in order:
            speed = turns[key]()
            if i:  # the first round warms up
                speeds[key].append(speed)
    return [
        {
            "environment": name, "nodes": nodes or "-", "rows": rows,
            "steps/s": statistics.median(speeds[name, nodes, rows]),
            "us/step": 1e6 / statistics.median(speeds[name, nodes, rows]),
        }
        for name, nodes, rows in turns
    ]  # fmt: skip


class Timed(KnowledgeVecEnv):
    """Counts the CPU seconds spent in it."""

    spent = 0.0

    def step_wait(self) -> Any:
        """See `VecEnv`."""
        start = time.process_time()
        found = super().step_wait()
        self.spent += time.process_time() - start
        return found

    def env_method(self, *args: Any, **kwargs: Any) -> Any:
        """See `VecEnv`."""
        start = time.process_time()
        found = super().env_method(*args, **kwargs)
        self.spent += time.process_time() - start
        return found


def training(rollouts: int, envs: int, fidelity: str) -> Row:
    """Return the environment's share of MaskablePPO's CPU time, settings as in a training."""
    env = Timed(envs, preset=TRAINED_ON, seed=0, fidelity=fidelity)
    model = MaskablePPO(
        CandidatePolicy, env, **settings.PPO, batch_size=settings.PPO_BATCH, seed=0,
        learning_rate=settings.PPO_RATE, device="cpu",
        policy_kwargs={"hidden": 32, "prior": prior_weights(Prior()), "attention": False},
    )  # fmt: skip
    rollout = settings.ROLLOUT * envs
    model.learn(rollout)  # warms up
    env.spent, start = 0.0, time.process_time()
    model.learn(rollouts * rollout, reset_num_timesteps=False)
    took = time.process_time() - start
    return {
        "training on": TRAINED_ON, "models learn by": fidelity, "rows": envs,
        "epochs": settings.PPO["n_epochs"],
        "steps/s": rollouts * rollout / took, "environment's share": env.spent / took,
    }  # fmt: skip


def observed(nodes: int, k: int) -> tuple[Simulator, Observation]:
    """Return a packet after a few visits, and what it sees."""
    sim = Simulator(source_of(**family(nodes)), 1, k=k, probes=0)
    sim.reset([0], [1])
    for _ in range(4):
        sim.look()
        sim.step(sim.seen.mask.argmax(axis=1))
    sim.look()
    seen = sim.seen
    stops = [i for i in seen.rows[0].tolist() if i >= 0]
    candidates = tuple(
        Candidate(NodeId(f"n{i}"), StopKind.DATA, (), 1.0, 1.0) for i in range(len(stops))
    )
    observation = Observation(
        seen.features[0], seen.globals[0], seen.mask[0], candidates, Phase.SEEK, NodeId("n0"),
        {}, {}, 4,
    )  # fmt: skip
    return sim, observation


def decisions(sizes: tuple[int, ...], rounds: int) -> list[Row]:
    """Return what a packet's decision takes by the shipped policy, in milliseconds."""
    policy, rng, here = RlPolicy(), random.Random(0), np.zeros(1, np.int64)
    packets = {n: observed(n, CANDIDATES) for n in sizes}
    took: dict[int, dict[str, list[float]]] = {}
    for i in range(rounds + 1):
        for n, (sim, seen) in packets.items():
            parts = {
                "look ms": lambda sim=sim: look(sim.stops(here), sim.journey(here), CANDIDATES),
                "whom to probe ms": lambda seen=seen: policy.wants_probes(seen, rng),
                "choose ms": lambda seen=seen: policy.choose(seen, rng),
            }
            for name, part in parts.items():
                start = time.process_time()
                for _ in range(20):
                    part()
                if i:
                    spent = (time.process_time() - start) / 20 * 1e3
                    took.setdefault(n, {}).setdefault(name, []).append(spent)
    return [
        {
            "decision at nodes": n, "candidates": len(packets[n][1].candidates),
            "legal": int(packets[n][1].mask.sum()),
        }
        | {name: statistics.median(values) for name, values in took[n].items()}
        for n in sizes
    ]  # fmt: skip


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, small networks")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    sizes = NODES[:1] if quick else NODES
    speeds = raced(contestants(sizes, 512 if quick else 2048), 2 if quick else 5)
    show("Steps a CPU second", speeds)
    learned = [training(1 if quick else 4, 64 if quick else 256, f) for f in (FORMULA, ROWS)]
    show("Share of a training", learned)
    decided = decisions(DECIDED_AT, 5 if quick else 25)
    show("A packet's decision, by the policy that ships", decided)

    def best(name: str) -> float:
        return max(row["steps/s"] for row in speeds
                   if row["environment"] == name and row["nodes"] == NODES[0])  # fmt: skip

    fewer, more = (row["choose ms"] + row["whom to probe ms"] for row in decided[1:])
    bars = [
        Bar("batched over DummyVecEnv, 16 nodes",
            best("KnowledgeVecEnv") / best("DummyVecEnv of single"), 20.0),
        Bar("environment's share of training, by formula", learned[0]["environment's share"], 0.10,
            at_least=False),
        Bar(f"a decision among {CANDIDATES} candidates, ms", fewer, 1.0, at_least=False),
        Bar("the same with 3.2 times the nodes, times", more / fewer, 1.5, at_least=False),
    ]  # fmt: skip
    return finish("env", [*speeds, *learned, *decided], bars)


if __name__ == "__main__":
    sys.exit(main())
