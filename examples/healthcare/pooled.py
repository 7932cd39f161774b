"""What one model would reach if all patients were in one room: is a requirement within reach?

python examples/healthcare/pooled.py [--seeds 20] [--scenario examples/healthcare/scenario.toml]

Trains the packets' model on rows that never meet in the scenario and measures it as the ministry
does, on what the contributing hospitals hold out. Three rows: the patients of all contributing
hospitals together; those of every hospital, wrong labels included; the largest contributing
hospital alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from aats.config import HeldData, Scenario
from aats.config.load import load_scenario
from aats.learning.models import build, initialise, predict
from aats.learning.partition import Part, Spread, spread
from aats.packet import Architecture
from aats.roles.data import Batch, SkillData

EPOCHS = 40
BATCH_SIZE = 8
LEARNING_RATE = 0.03


def spread_all(scenario: Scenario, seed: int) -> dict[str, Spread]:
    """Return every skill's data dealt out as the scenario says."""
    return {
        skill: spread(
            skill, config.source, config.partition,
            [
                Part(node, **asdict(scenario.nodes[node].data.get(skill, HeldData())))
                for node in scenario.holders(skill)
            ],
            held_out=config.held_out, reference=config.reference, test=config.test,
            root=scenario.data.root, seed=seed,
        )
        for skill, config in scenario.data.skills.items()
    }  # fmt: skip


def joined(parts: Iterable[Batch]) -> Batch:
    """Return the rows of many sets as one."""
    xs, ys = zip(*parts, strict=True)
    return np.concatenate(xs), np.concatenate(ys)


def train(architecture: Architecture, sets: Mapping[str, Batch], seed: int) -> torch.nn.Module:
    """Train one model on all sets by plain SGD."""
    model = build(architecture)
    initialise(model, seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        for skill, (x, y) in sets.items():
            for rows in np.array_split(rng.permutation(len(y)), max(1, len(y) // BATCH_SIZE)):
                optimiser.zero_grad()
                logits = predict(model, torch.from_numpy(x[rows]), skill)
                loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[rows]))
                torch.autograd.backward(loss)
                optimiser.step()
    return model


def accuracy(model: torch.nn.Module, skill: str, rows: Batch) -> float:
    """Return the share of rows the model has right."""
    with torch.no_grad():
        guess = predict(model, torch.from_numpy(rows[0]), skill).argmax(1).numpy()
    return float((guess == rows[1]).mean())


def main() -> None:
    """Print mean, spread and worst of each skill over the seeds."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--scenario", type=Path, default=Path(__file__).parent / "scenario.toml")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    scenario = load_scenario(chosen.scenario, chosen.set)
    audited = {name for name, node in scenario.nodes.items() if node.contributes_to}
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(chosen.seeds):
        dealt = spread_all(scenario, seed)
        tests = {
            skill: joined((d.test_x, d.test_y) for node, d in s.nodes.items() if node in audited)
            for skill, s in dealt.items()
        }
        for row, sets in training_sets(dealt, audited).items():
            model = train(scenario.packets[0].model, sets, seed)
            for skill, rows in tests.items():
                found.setdefault(row, {}).setdefault(skill, []).append(accuracy(model, skill, rows))
    wanted = {
        skill: ", ".join(
            f"{packet.name} {target.value:.2f}"
            for packet in scenario.packets
            for target in packet.requirement
            if target.skill == skill
        )
        for skill in scenario.data.skills
    }
    print(f"accuracy on the ministry's test set, {chosen.seeds} seeds: mean, deviation, worst")
    for row, by_skill in found.items():
        for skill, values in by_skill.items():
            print(
                f"{row:26} {skill:10} {np.mean(values):.3f} {np.std(values):.3f} "
                f"{min(values):.3f}   targets: {wanted[skill]}"
            )


def training_sets(dealt: Mapping[str, Spread], audited: Collection[str]) -> dict[str, dict[str, Batch]]:
    """Return the three choices of rows to train on, by skill."""

    def rows(data: SkillData) -> Batch:
        return data.train_x, data.train_y

    def largest(nodes: Mapping[str, SkillData]) -> SkillData:
        return max((d for n, d in nodes.items() if n in audited), key=lambda d: d.samples)

    return {
        "audited hospitals, pooled": {
            s: joined(rows(d) for n, d in of.nodes.items() if n in audited)
            for s, of in dealt.items()
        },
        "every hospital, pooled": {
            s: joined(rows(d) for d in of.nodes.values()) for s, of in dealt.items()
        },
        "largest hospital alone": {s: rows(largest(of.nodes)) for s, of in dealt.items()},
    }


if __name__ == "__main__":
    main()
