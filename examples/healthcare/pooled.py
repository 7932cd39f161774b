"""What one model would reach with all patients in one room: is a requirement within reach?

python examples/healthcare/pooled.py [--seeds 20] [--scenario FILE] [--set KEY=VALUE]

Trains the packets' model on rows that never meet in the scenario and measures it as the ministry
does, on what the contributing hospitals hold out. Three choices of rows to train on: those of
all contributing hospitals; those of every hospital, wrong labels included; those of the largest
contributing hospital alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from aats.compose import compose
from aats.config import Scenario
from aats.config.load import load_scenario
from aats.learning.models import build, initialise, predict
from aats.packet import Architecture
from aats.roles.data import Batch, SkillData

EPOCHS = 40
BATCH_SIZE = 8
LEARNING_RATE = 0.03


def joined(parts: Iterable[Batch]) -> Batch:
    """Return the rows of many sets as one."""
    xs, ys = zip(*parts, strict=True)
    return np.concatenate(xs), np.concatenate(ys)


def train(architecture: Architecture, sets: Mapping[str, Batch], seed: int) -> torch.nn.Module:
    """Train one model on every skill's rows by plain SGD."""
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


def measure(scenario: Scenario) -> dict[tuple[str, str], float]:
    """Return accuracies by (skill, rows trained on), and the size of each test set."""
    held = {name: node.data.skills for name, node in compose(scenario).nodes.items()}
    audited = [name for name, node in scenario.nodes.items() if node.contributes_to]
    found: dict[tuple[str, str], float] = {}
    choices: dict[str, dict[str, Batch]] = {}
    for skill in scenario.data.skills:
        every = [data[skill] for data in held.values() if skill in data]
        good = [held[name][skill] for name in audited if skill in held[name]]
        chosen: dict[str, list[SkillData]] = {
            "contributing hospitals": good,
            "every hospital": every,
            "largest one alone": [max(good, key=lambda data: data.samples)],
        }
        for name, parts in chosen.items():
            choices.setdefault(name, {})[skill] = joined((d.train_x, d.train_y) for d in parts)
        choices.setdefault("", {})[skill] = joined((d.test_x, d.test_y) for d in good)
    tests = choices.pop("")
    for name, sets in choices.items():
        model = train(scenario.packets[0].model, sets, scenario.seed)
        for skill, test in tests.items():
            found[skill, name] = accuracy(model, skill, test)
            found[skill, "(rows of the test set)"] = len(test[1])
    return found


def main() -> None:
    """Print mean, deviation and worst of each figure over the seeds."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--scenario", type=Path, default=Path(__file__).parent / "scenario.toml")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    scenarios = [
        load_scenario(chosen.scenario, [*chosen.set, f"scenario.seed={seed}"])
        for seed in range(chosen.seeds)
    ]
    found = [measure(scenario) for scenario in scenarios]
    print(f"accuracy on the ministry's test set, {chosen.seeds} seeds: mean, deviation, worst")
    for skill, name in sorted(found[0]):
        values = [figures[skill, name] for figures in found]
        print(f"{skill:10} {name:24} {np.mean(values):7.3f} {np.std(values):.3f} {min(values):.3f}")
    for packet in scenarios[0].packets:
        wanted = ", ".join(f"{t.skill} {t.value:.2f}" for t in packet.requirement)
        print(f"the {packet.name} wants {wanted}")


if __name__ == "__main__":
    main()
