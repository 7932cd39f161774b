"""Policies as people name them: `minibatch`, `minibatch:probes=5`, `runs/mine.safetensors`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aats.config.trained import is_file, with_weights
from aats.errors import ScenarioError
from aats.installed import load_policy
from aats.packet import Plugin
from aats.routing.policy import RoutePolicy
from aats_agents.evaluate.case import Case
from aats_agents.planner import LearnerOf, clairvoyant, planned
from aats_envs.learner import Surrogate

ORACLE, ITINERARY = "oracle", "itinerary"
"""Computed for each case: no packet could know what the first does; the second goes by adverts."""
BOUNDS = frozenset({ORACLE, ITINERARY})


@dataclass(frozen=True, slots=True)
class Spec:
    """A policy to compare."""

    name: str
    """As it was given; a file's is its stem."""
    plugin: Plugin

    @property
    def is_learned(self) -> bool:
        """Whether it decides by weights."""
        return self.plugin.name == "rl"

    @property
    def is_heuristic(self) -> bool:
        """Whether it is neither learned nor computed for each case."""
        return not self.is_learned and self.name not in BOUNDS


def spec_of(text: str) -> Spec:
    """Return the policy that a text names.

    Args:
        text: A name; a name with parameters, `name:key=value,key=value` (values in TOML, a bare
            word is a string); or the path of a policy's file.

    Raises:
        ScenarioError: If it is none of these.
        LocalError: If no such policy is installed, or it does not take these parameters.
    """
    if is_file(text):
        spec = Spec(Path(text).stem, with_weights(Plugin(text), Path(), "policy"))
    else:
        name, _, params = text.partition(":")
        spec = Spec(text, Plugin(name, dict(map(_param, filter(None, params.split(","))))))
    if spec.name != ORACLE:
        load_policy(spec.plugin)
    return spec


def _param(text: str) -> tuple[str, object]:
    key, given, value = text.partition("=")
    if not given:
        raise ScenarioError("policy", text, "parameters are key=value, separated by commas")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def carried(spec: Spec, case: Case, learner: LearnerOf = Surrogate) -> Plugin:
    """Return what a packet of this case carries: for the bounds, a list of stops made for it.

    Args:
        spec: The policy.
        case: The episode.
        learner: What visits do in it, for the oracle.
    """
    if spec.name == ORACLE:
        return Plugin(
            ITINERARY, {"stops": list(clairvoyant(case.network, case.key, learner).stops)}
        )
    if spec.name == ITINERARY:
        return Plugin(ITINERARY, {"stops": list(planned(case.network).stops)})
    return spec.plugin


def maker(spec: Spec, learner: LearnerOf = Surrogate) -> Callable[[Case], RoutePolicy]:
    """Return what makes the policy of a case."""
    return lambda case: load_policy(carried(spec, case, learner))
