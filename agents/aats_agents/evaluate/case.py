"""Episodes that policies are compared on, and what a journey through one came to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aats.compose import compose
from aats.config import Scenario, load_scenario
from aats.errors import DataError, ScenarioError
from aats.learning.method import seed_of
from aats.oam.plots import BAD_LABELS
from aats_envs.family import Family
from aats_envs.from_scenario import from_scenario, reseeded
from aats_envs.network import Bools, KnowledgeNetwork
from aats_envs.presets import DEPARTMENTS, DIGITS, PRESETS, preset
from aats_envs.search import Given
from aats_envs.simulator import SECONDS, Simulator
from aats_envs.source import FamilySource
from aats_envs.to_scenario import to_scenario

LAYOUTS = 64
"""Drawn in advance for each family."""
REAL = DIGITS, DEPARTMENTS
"""Tasks that there are real data for."""
REAL_TASKS = {10: "digits", 2: "departments"}
"""Classes of a network's skills -> the data that have so many."""


@dataclass(frozen=True, slots=True)
class Case:
    """One episode: a network, the key that all its luck follows from, and the same in earnest."""

    family: str
    key: int
    network: KnowledgeNetwork
    scenario: Scenario | None = None
    """With this one packet. None: nothing but the environment."""
    drawn: bool = False
    """Whether the scenario was made of the network, and not the other way round."""

    @property
    def bad(self) -> Bools:
        """[N] whose labels are wrong beyond `BAD_LABELS`."""
        wrong = self.network.wrong.sum(axis=(1, 2))
        rows = wrong + self.network.clean.sum(axis=(1, 2))
        return np.asarray(wrong >= BAD_LABELS * np.maximum(1, rows), np.bool_)

    @property
    def seed(self) -> int:
        """Of the packet: what its policy draws is drawn from it, the same in every world."""
        if self.scenario is None:
            return self.key
        return seed_of("packet", f"{self.scenario.seed}/0")

    @property
    def unit_s(self) -> float:
        """Seconds of a usual stop."""
        simulator = Simulator(Given([self.network]), 1)
        simulator.reset([0], [0])
        return float(simulator.unit[0, SECONDS])


@dataclass(frozen=True, slots=True)
class Journey:
    """What one packet's journey came to."""

    policy: str
    family: str
    seed: int
    seconds: float
    """Until home; until it was cut off, where it did not come home."""
    unit_s: float
    """Seconds of a usual stop of the network."""
    hops: float
    bytes: float
    success: bool
    """Home, every target verified."""
    bad_visits: float
    """Share of the visits that went to nodes with wrong labels."""
    wall_s: float = 0.0
    """Real seconds: in the environment those of a decision, elsewhere those of the whole run."""
    network: str = ""


def cases_of(
    names: Sequence[str], seeds: Sequence[int], *, real: bool = False, data: str = ""
) -> list[Case]:
    """Return the cases of families and scenarios, as many of each as there are seeds.

    Args:
        names: Of presets, or paths of scenarios; a scenario of several packets gives a case each.
        seeds: Of the episodes.
        real: Whether every case must have a scenario: families then draw tasks with real data.
        data: Folder of what a family needs.

    Raises:
        ScenarioError: If one is neither.
    """
    found: list[Case] = []
    for name in names:
        if name in PRESETS:
            family = preset(name, data=data)
            family = replace(family, tasks=REAL) if real else family
            found += drawn(name, family, seeds, real=real)
        elif Path(name).exists():
            found += _given(Path(name), seeds)
        else:
            known = ", ".join(PRESETS)
            raise ScenarioError("world", name, f"a scenario's path, or one of {known}, is wanted")
    return found


def drawn(name: str, family: Family, seeds: Sequence[int], *, real: bool = False) -> list[Case]:
    """Return cases of a family, one a seed.

    Args:
        name: What the family is called in the results.
        family: What to draw from.
        seeds: Of the episodes.
        real: Whether every case shall have a scenario; the family must then draw tasks that have
            real data.
    """
    source = FamilySource(family, LAYOUTS)
    if real:
        return [_dealt(name, seed, source) for seed in seeds]
    return [Case(name, seed, source.draw(np.random.default_rng(seed))) for seed in seeds]


def _dealt(name: str, seed: int, source: FamilySource) -> Case:
    """Return a case whose network's rows the real data can provide: large ones want too many."""
    rng = np.random.default_rng(seed)
    while True:
        case = in_earnest(Case(name, seed, source.draw(rng)))
        assert case.scenario is not None
        with suppress(DataError):
            compose(case.scenario)
            return case


def in_earnest(case: Case) -> Case:
    """Return the case of a drawn network with a scenario of real data.

    Raises:
        ScenarioError: If there are no data with its number of skills and classes.
    """
    task = REAL_TASKS.get(int(case.network.classes[0]), "digits")
    scenario = to_scenario(case.network, task, case.key)
    return replace(case, scenario=scenario, drawn=True)


def _given(path: Path, seeds: Sequence[int]) -> list[Case]:
    scenario = load_scenario(path)
    cases = []
    for seed in seeds:
        varied = reseeded(scenario, seed)
        for packet, (network, _) in zip(varied.packets, from_scenario(varied), strict=True):
            alone = replace(varied, packets=(replace(packet, after_s=0.0),))
            # As the network of that scenario: the seeds of a packet depend on its number.
            network = network if len(varied.packets) == 1 else from_scenario(alone)[0][0]
            name = scenario.name if len(varied.packets) == 1 else network.name
            cases.append(Case(name, seed, network, alone))
    return cases
