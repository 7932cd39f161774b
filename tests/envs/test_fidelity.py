from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aats.errors import ScenarioError
from aats_envs.sb3 import KnowledgeVecEnv
from aats_envs.single import KnowledgeNetworkEnv

RING = Path(__file__).parents[2] / "examples" / "ring"


def test_models_are_really_trained_in_every_row_and_alike_in_a_single_environment() -> None:
    batch = KnowledgeVecEnv(3, scenario=RING, pool_size=2, fidelity="torch", probes=1, seed=4)
    single = KnowledgeNetworkEnv(scenario=RING, pool_size=2, fidelity="torch", probes=1)
    seen = batch.reset()
    alone, _ = single.reset(seed=5)
    assert np.array_equal(seen["features"][1], alone["features"])
    for _ in range(3):
        actions = seen["mask"].argmax(axis=1)
        seen, reward, _, _ = batch.step(actions)
        alone, own, _, _, info = single.step(actions[1])
        assert np.array_equal(seen["features"][1], alone["features"])
        assert reward[1] == np.float32(own)
    assert info["accuracy"][0] > 0.7  # three visits teach a real model to tell most tumours


def test_there_are_three_fidelities() -> None:
    with pytest.raises(ScenarioError, match="of a scenario: formula, rows, torch"):
        KnowledgeNetworkEnv(scenario=RING, pool_size=1, fidelity="real")
