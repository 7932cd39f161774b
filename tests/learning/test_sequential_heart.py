"""Sequential training over the hospitals of the heart data: proportional work is what works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from aats.ids import NodeId
from aats.learning.backend import backend_of
from aats.learning.datasets import load_dataset
from aats.learning.method import Guard
from aats.learning.sequential import SequentialMethod
from aats.learning.weights import initial_payload
from aats.packet import Architecture, Target
from aats.roles.data import NodeData, SkillData
from aats.testing.methods import Walk, header_for


def per_patient(method: SequentialMethod, hospitals: list[SkillData], seed: int) -> float:
    """Return accuracy over all test patients after four cycles in reshuffled order."""
    architecture = Architecture("logistic", {"features": hospitals[0].train_x.shape[1]})
    header = header_for(architecture, requirement=[Target("heart", 0.8)], seed=seed)
    packet = Walk(header, initial_payload(architecture, seed))
    rng = np.random.default_rng(seed)
    for _ in range(4):
        for site in rng.permutation(len(hospitals)):
            packet.visit(method, NodeData.of(hospitals[site]), NodeId(f"h{site}"), Guard())
    backend = backend_of(architecture)
    model = backend.load(architecture, packet.payload)
    right = [
        backend.log_probabilities(model, h.test_x, "heart").argmax(1) == h.test_y for h in hospitals
    ]
    return float(np.concatenate(right).mean())


def test_proportional_work_beats_equal_work(data_folder: Callable[[str], Path]) -> None:
    data = load_dataset("heart", root=str(data_folder("uci-heart").parent))
    hospitals = []
    for site in range(len(data.groups)):
        train = (data.group_of == site) & ~data.is_test
        test = (data.group_of == site) & data.is_test
        hospitals.append(
            SkillData("heart", data.x[train], data.y[train], data.x[test], data.y[test], 2, "h")
        )
    equal = SequentialMethod(equal_steps=100, batch_size=4, lr=0.01, decay=1.0, clip=0.0)
    ours = SequentialMethod(epochs=2, batch_size=4, lr=0.01, clip=0.0, average_last=4)
    seeds = range(2)
    naive = np.mean([per_patient(equal, hospitals, s) for s in seeds])
    proportional = [per_patient(ours, hospitals, s) for s in seeds]
    assert np.mean(proportional) > naive + 0.02
    assert min(proportional) > 0.735
