"""The learned policy: a small network scores every stop; a heuristic takes over out of range."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from aats import plugins
from aats.errors import LocalError
from aats.routing.carried import joined, pieces
from aats.routing.features import FEATURES, GLOBALS
from aats.routing.policy import Choice, FloatArray, Observation, RoutePolicy
from aats.routing.probing import worth
from aats_agents.policy_file import PolicyFile, load, pack, unpack
from aats_agents.scorer import Scorer

SHIPPED = "default.safetensors"
"""In `aats_agents/shipped`."""
GUARDED = (
    "log_samples", "log_transfer", "log_compute", "log_size", "log_targets",
)  # fmt: skip
"""What tells one kind of world from another; a network is not trusted outside the kinds it saw."""
SLACK = 0.02
"""Columns of logarithms: a factor of 1.5 in seconds, of 1.3 in samples, of 1.7 in bytes."""
WIDTH = 0.1
"""And this share of the trained range, on both sides."""
SHORT = 0.7
"""Share of a budget after which a failed verdict leaves no room for a second mistake."""
TOLD = 3
"""Features named in a reason."""


@dataclass(frozen=True, slots=True)
class RlPolicy:
    """The highest score of a trained network among the legal stops.

    It travels with the packet: `weights` are a policy file in base64, in the mandate that the
    owner signed, so every node that knows this class can decide. Without them the policy that
    ships with AATS is used. A node opens no file that a packet names.
    """

    name = "rl"
    weights: tuple[str, ...] = ()
    """A policy file, base64 in pieces of at most 16 KiB."""
    _file: PolicyFile = field(init=False, repr=False, compare=False)
    _fallback: RoutePolicy = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        file = _carried(self.weights) if self.weights else shipped()
        object.__setattr__(self, "_file", file)
        object.__setattr__(self, "_fallback", _fallback(file))

    @classmethod
    def of(cls, file: PolicyFile) -> RlPolicy:
        """Return the policy of a file, as a packet would carry it."""
        return cls(pieces(pack(file)))

    @property
    def file(self) -> PolicyFile:
        """What it decides by."""
        return self._file

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return the candidates worth a probe, by the rule the policy was trained with."""
        if self._why_not(observation):
            return self._fallback.wants_probes(observation, rng)
        asked = worth(
            observation.features, observation.globals, observation.mask, self._file.probes
        )
        return [int(i) for i in np.flatnonzero(asked)]

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the stop of the highest score, or the fallback's where that is safer."""
        legal = np.flatnonzero(observation.mask)
        features, packet = observation.features[legal], observation.globals
        logits = self._file.scorer.logits(features, packet, np.ones(len(legal), np.bool_))
        order = np.argsort(-logits, kind="stable")
        best = int(order[0])
        if why := self._why_not(observation, features[best]):
            chosen = self._fallback.choose(observation, rng)
            reason = f"{why}; {self._fallback.name}: {chosen.reason}"
            return Choice(chosen.index, reason, chosen.scores)
        names = [observation.candidates[i].node for i in legal]
        reason = f"highest score at {names[best]} ({logits[best]:.3g})"
        if len(order) > 1:
            second = order[1]
            reason += f", then {names[second]} ({logits[second]:.3g})"
            reason += _told(self._file.scorer, features, packet, best)
        return Choice(int(legal[best]), reason, dict(zip(names, logits.tolist(), strict=True)))

    def _why_not(self, observation: Observation, winner: FloatArray | None = None) -> str:
        """Return why the network should not decide, "" if it may."""
        packet, stops = observation.globals, observation.features[observation.mask]
        if _is_short(packet):
            return "a verdict failed and the budget is short"
        data = stops[stops[:, _IS_DATA] > 0.5][:, _OF_STOPS]
        usual = np.median(data, axis=0) if len(data) else None
        for name in GUARDED:
            if name not in self._file.ranges:
                continue
            low, high = self._file.ranges[name]
            slack = SLACK + WIDTH * (high - low)
            for where, value in _values(name, packet, usual, winner):
                if not low - slack <= value <= high + slack:
                    seen = f"{low:.2f} to {high:.2f}"
                    return f"not trained for this: {name} {where} is {value:.2f}, seen was {seen}"
        return ""


_IS_DATA = FEATURES.index("is_data")
_OF_STOPS = [FEATURES.index(name) for name in GUARDED if name in FEATURES]
_USED = [GLOBALS.index(n) for n in ("hops_used", "seconds_used", "bytes_used", "joules_used")]


def shipped() -> PolicyFile:
    """Return the policy that ships with AATS.

    Raises:
        ScenarioError: If it was made for other observations than this version's.
    """
    with resources.as_file(resources.files("aats_agents") / "shipped" / SHIPPED) as path:
        return _loaded(path)


@lru_cache(maxsize=1)
def _loaded(path: Path) -> PolicyFile:
    return load(path)


@lru_cache(maxsize=8)  # the few packets a node holds, at every arrival and every decision
def _carried(weights: tuple[str, ...]) -> PolicyFile:
    return unpack(joined(weights), "parameter 'weights'")


def _fallback(file: PolicyFile) -> RoutePolicy:
    if file.fallback == RlPolicy.name:
        raise LocalError(f"a policy's fallback is {file.fallback!r}, must be another policy")
    policy: RoutePolicy = plugins.load("aats.policies", file.fallback)()
    return policy


def _is_short(packet: FloatArray) -> bool:
    failed = packet[GLOBALS.index("has_verdict")] > 0.5
    unmet = packet[GLOBALS.index("verified_share")] < 1
    return bool(failed and unmet and packet[_USED].max() >= SHORT)


def _values(
    name: str, packet: FloatArray, usual: FloatArray | None, winner: FloatArray | None
) -> Sequence[tuple[str, float]]:
    """Return what is held against a range: the packet's, or the usual data node's and the winner's.

    Args:
        name: Of the range.
        packet: [G]
        usual: [len(_OF_STOPS)] medians over the data nodes; None where there are none.
        winner: [F] of the best stop, if it is known.
    """
    if name in GLOBALS:
        return [("of the packet", float(packet[GLOBALS.index(name)]))]
    column = FEATURES.index(name)
    found = []
    if usual is not None:
        found.append(("of the usual stop", float(usual[_OF_STOPS.index(column)])))
    if winner is not None and winner[_IS_DATA] > 0.5:
        found.append(("of the best stop", float(winner[column])))
    return found


def _told(scorer: Scorer, features: FloatArray, packet: FloatArray, best: int) -> str:
    """Return what made the winner: by how much its lead falls with a feature of the median's."""
    usual = np.sort(features, axis=0)[len(features) // 2]  # np.median takes three times as long
    changed = np.flatnonzero(features[best] != usual)
    variants = np.repeat(features[None], len(changed) + 1, axis=0)
    variants[np.arange(len(changed)), best, changed] = usual[changed]
    everywhere = np.ones(variants.shape[:2], np.bool_)
    logits = scorer.logits(variants, np.repeat(packet[None], len(variants), 0), everywhere)
    won = logits[:, best].copy()
    logits[:, best] = -np.inf
    lead = won - logits.max(axis=-1)
    gained = lead[-1] - lead[:-1]
    top = [i for i in np.argsort(-gained, kind="stable")[:TOLD] if gained[i] > 0]
    parts = [f"{FEATURES[changed[i]]} {gained[i]:+.2g}" for i in top]
    return f"; for it speak {', '.join(parts)}" if parts else ""
