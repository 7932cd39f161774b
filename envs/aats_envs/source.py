"""Where an environment's networks come from: a family or a scenario, by plain JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aats.config import load_scenario
from aats.config.read import read
from aats.errors import ScenarioError
from aats_envs.batch import Limits, Networks, Source
from aats_envs.draw import Lesson, lessons, wish
from aats_envs.family import Family
from aats_envs.from_scenario import RealTask, from_scenario, reseeded
from aats_envs.learner import Learner, Surrogate
from aats_envs.network import KnowledgeNetwork
from aats_envs.pool import Pool
from aats_envs.presets import preset as family_of
from aats_envs.row_learner import RowLearner
from aats_envs.scenario_rows import own_rows
from aats_envs.simulator import Reward, Simulator

DEFAULT = "train"
"""The preset where nothing else is asked for."""
NETWORKS = 512
VARIANTS = 32
MIN_K = 6
"""Home, four MPVUs and one data node have a row each."""
OBSERVED = 32
"""Rows of an observation unless asked for more."""
PROBES = 3
FORMULA, ROWS, TORCH = "formula", "rows", "torch"
"""Fidelities: learning by the calibrated law; small models that are trained on rows, many at once;
a scenario's own models, trained as its nodes do."""
MAX_EPISODE_STEPS = 256


class TaughtSource(Source, Protocol):
    """A source that says how models learn on its networks."""

    @property
    def learner(self) -> Callable[[Networks], Learner]:
        """What makes a learner of them."""
        ...


class FamilySource:
    """Networks of a family.

    Args:
        family: The family.
        pool_size: Networks drawn in advance; targets, budgets and outages are drawn afresh.
        fidelity: `FORMULA` or `ROWS`.
    """

    def __init__(self, family: Family, pool_size: int = NETWORKS, fidelity: str = FORMULA) -> None:
        self._family = family
        self._lessons = _lessons(family, pool_size, fidelity == ROWS)
        self.learner: Callable[[Networks], Learner] = RowLearner if fidelity == ROWS else Surrogate
        """Makes the learner of these networks."""
        self.limits = Limits.of([lesson.network for lesson in self._lessons])

    def draw(self, rng: np.random.Generator) -> KnowledgeNetwork:
        """See `aats_envs.batch.Source`."""
        return wish(self._family, self._lessons[rng.integers(len(self._lessons))], rng)


class ScenarioSource:
    """The networks of a scenario's packets, and those of the same scenario under other seeds.

    Args:
        path: The scenario's folder or file.
        pool_size: Seeds, that of the scenario the first.
        fidelity: How models learn.
    """

    def __init__(self, path: Path, pool_size: int = VARIANTS, fidelity: str = FORMULA) -> None:
        self._variants = _variants(path.resolve(), pool_size)
        learners: dict[str, Callable[[Networks], Learner]] = {
            FORMULA: Surrogate, ROWS: RowLearner, TORCH: self._in_earnest
        }  # fmt: skip
        self.learner = learners[fidelity]
        """Makes the learner of these networks."""
        if fidelity == ROWS:
            deals = own_rows(self._variants)
            self._variants = tuple(
                (replace(network, rows=deal), task)
                for (network, task), deal in zip(self._variants, deals, strict=True)
            )
        self.limits = Limits.of([network for network, _ in self._variants])

    def draw(self, rng: np.random.Generator) -> KnowledgeNetwork:
        """See `aats_envs.batch.Source`."""
        return self._variants[rng.integers(len(self._variants))][0]

    def _in_earnest(self, networks: Networks) -> Learner:
        from aats_envs.torch_learner import TorchLearners

        return TorchLearners(networks, self._variants)


@lru_cache(maxsize=8)  # environments made one by one are many, their families few
def _lessons(family: Family, size: int, with_rows: bool) -> tuple[Lesson, ...]:
    rng = np.random.default_rng(family.seed)
    return lessons(family, Pool(family, size), rng, size, with_rows=with_rows)


@lru_cache(maxsize=8)
def _variants(path: Path, size: int) -> tuple[tuple[KnowledgeNetwork, RealTask], ...]:
    scenario = load_scenario(path)
    return tuple(
        found for i in range(size) for found in from_scenario(reseeded(scenario, scenario.seed + i))
    )


def source_of(
    *,
    preset: str = "",
    scenario: str | Path | None = None,
    family: Mapping[str, Any] | None = None,
    pool_size: int | None = None,
    fidelity: str = FORMULA,
) -> TaughtSource:
    """Return the source that an environment's arguments name; "train" if none is named.

    Args:
        preset: A family by name.
        scenario: Folder or file of a scenario.
        family: A family's values.
        pool_size: Networks of a family, or seeds of a scenario.
        fidelity: How models learn.

    Raises:
        ScenarioError: If more than one is named, or what is named is not right.
    """
    named = [name for name, value in (("preset", preset), ("scenario", scenario),
                                      ("family", family)) if value]  # fmt: skip
    if len(named) > 1:
        raise ScenarioError("environment", " and ".join(named), "only one of them may be given")
    if pool_size is not None and pool_size < 1:
        raise ScenarioError("environment: pool_size", pool_size, "at least 1 is wanted")
    known = (FORMULA, ROWS, TORCH) if scenario else (FORMULA, ROWS)
    if fidelity not in known:
        kind = "a scenario" if scenario else "a family"
        raise ScenarioError("environment: fidelity", fidelity, f"of {kind}: {', '.join(known)}")
    if scenario:
        return ScenarioSource(Path(scenario), pool_size or VARIANTS, fidelity)
    drawn = Family.from_dict(dict(family)) if family else family_of(preset or DEFAULT)
    return FamilySource(drawn, pool_size or NETWORKS, fidelity)


def simulator_of(
    size: int,
    source: TaughtSource,
    *,
    k: int,
    probes: int,
    reward: Mapping[str, float] | Reward | None,
    max_steps: int,
) -> Simulator:
    """Return a simulator of so many rows for an environment's arguments.

    Raises:
        ScenarioError: If one of them is out of range.
    """
    least = ("num_envs", size, 1), ("k", k, MIN_K), ("probes", probes, 0)
    for name, value, low in (*least, ("max_episode_steps", max_steps, 1)):
        if value < low:
            raise ScenarioError(f"environment: {name}", value, f"at least {low} is wanted")
    if not isinstance(reward, Reward):
        reward = read(Reward, dict(reward or {}), "reward")
    return Simulator(
        source, size, k=k, probes=probes, reward=reward, max_steps=max_steps,
        learner=source.learner,
    )  # fmt: skip
