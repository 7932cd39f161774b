"""Trial steps on a few candidates, judged on data the packet trusts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from aats.messages import ProbeScores
from aats.packet import ProbeEntry
from aats.routing.features import FEATURES
from aats.routing.policy import Choice, Observation
from aats_agents.policies.base import (
    MIN_MEMORY,
    TINY_S,
    Option,
    balances,
    choose_by,
    draw,
    eligible,
    errand,
    num_classes,
    ranks,
    recall,
    relative_costs,
    staleness,
)

_NEED_SUPPLY = FEATURES.index("need_supply")
MOST_COST = 16.0
"""Costs count up to this many times the median's, and down to its inverse."""

SUSPICION = 4.0
"""What a gain is divided by where the loss is above chance: wrong labels can make an overconfident
model look better for a step or two; a class nobody has taught yet gains more than that."""

UNPROBED = 0.5
"""Share of the best gain that a node not asked is expected to bring."""

DISAPPOINTED = 0.3
"""Share of `UNPROBED` for a node whose last visit brought nothing."""

LEAST_RISK = 1 / 3
"""Seconds that an answer may take for each second of a visit, at least: as if one visit in four
undid what another brings."""

NO_EXTRA: Mapping[int, float] = {}


@dataclass(frozen=True, slots=True)
class MinibatchPolicy:
    """Most gain on trusted data, most even classes and most of what is lacking, per second.

    A stop's score is what a few trial steps there take off the loss on the packet's reference set,
    times how far their direction agrees with that set's, raised (the more, the better the probe) by
    the stop's ranks by label balance and by need x supply, times staleness, over relative cost. A
    node is probed only if the answer could change the choice and pays: a bad visit is undone by
    others, so asking is worth the more seconds the more of what the last visits brought others took
    away. None is probed again while its last answer holds. A node that is not worth a probe is
    judged by what its last visit brought. If no probe of now or then helped, the better half of
    those on whose labels the model beats chance is chosen among. Nodes that hurt (until their data
    change) and the two visited last are left out unless nothing else is left.
    """

    name = "minibatch"
    probes: int = 6
    """Nodes probed at each stop, at most."""
    epsilon: float = 0.1
    """Share of stops drawn by score from all that help, so that a wrong belief does not last."""
    patience: float = 4.0
    """Hops, for each node there is to choose from, after which a visited one counts half of a new
    one."""
    warm_up: int = 20
    """Visits after which a loss above chance counts against a node (without a reference set)."""

    def __post_init__(self) -> None:
        if self.probes < 0 or self.patience < 0 or not 0 <= self.epsilon <= 1:
            raise ValueError("probes and patience must be >= 0, epsilon within 0-1")

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nodes not known that would be chosen if they helped as much as the best known.

        The probe's own seconds count, and it must pay: see `_risk`.
        """
        if not observation.hop:
            return []  # a model that knows nothing gains anywhere
        options = eligible(observation)
        known = self._gains(options, observation)
        risk = _risk(observation)
        unknown = [o for o in options if o.index not in known and _pays(o, risk)]
        merit = {**_shares(known), **dict.fromkeys((o.index for o in unknown), 1.0)}
        asking = {o.index: o.candidate.probe_s for o in unknown}
        scores = self._scores(options, merit, observation, asking)
        bar = max((scores[i] for i, gain in known.items() if gain > 0), default=0.0)
        worth = {o.index: scores[o.index] for o in unknown if scores[o.index] > bar}
        return draw(worth, self.probes, rng)

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the data node of the highest score among those that help."""
        if settled := errand(observation):
            return settled
        options = eligible(observation)
        gains = self._gains(options, observation)
        best = max(gains.values(), default=0.0)
        risk = _risk(observation)
        blind = [o for o in options if o.index not in gains and not _pays(o, risk)]
        if best > 0:
            pool = [o for o in options if gains.get(o.index, 0.0) > 0] + blind
            merit = _shares(gains)
            reason = "most gain, balance and need for its cost at {node} ({score})"
        elif gains:
            # A model near its best gains nowhere; what it loses, and its loss there, still tell.
            asked = [o for o in options if o.index in gains]
            calm = [o for o in asked if not _is_above_chance(o, observation)] or asked
            middle = median(gains[o.index] for o in calm)
            pool = [o for o in calm if gains[o.index] >= middle] + blind
            merit = dict(zip(gains, ranks(list(gains.values())), strict=True))
            reason = "no probed node helps; of the others and the least bad {node} ({score})"
        else:
            pool, merit = options, {}
            reason = "no probe at hand; by adverts and past gain {node} ({score})"
        scores = self._scores(pool, merit, observation)
        if best > 0 and rng.random() < self.epsilon:
            index = draw(scores, 1, rng)[0]
            named = {observation.candidates[i].node: score for i, score in scores.items()}
            node = observation.candidates[index].node
            return Choice(index, f"exploring: drew {node} by score", named)
        return choose_by(scores, observation, reason)

    def _gains(self, options: Sequence[Option], observation: Observation) -> dict[int, float]:
        """Return what the probes of now, and those that still hold, promise by now, in nats."""
        found = {}
        for option in options:
            past = recall(option, observation)
            if option.probe is not None:
                found[option.index] = self._gain(option.probe, observation)
            elif past is not None:
                age = (past.hop + 1) / (past.hop + 1 + option.candidate.hops_since_probe)
                found[option.index] = age * self._gain(past, observation)
        return found

    def _gain(self, probe: ProbeScores | ProbeEntry, observation: Observation) -> float:
        """Return nats gained on trusted data; without such data the loss, capped at chance."""
        is_suspect = probe.loss > math.log(num_classes(observation))
        if probe.gain == 0.0 and probe.alignment == 0.0:
            return -probe.loss if is_suspect and observation.hop >= self.warm_up else probe.loss
        if probe.gain <= 0:
            return probe.gain
        # A gain against the trusted gradient is luck.
        return probe.gain * max(0.0, probe.alignment) / (SUSPICION if is_suspect else 1.0)

    def _scores(
        self,
        options: Sequence[Option],
        merit: Mapping[int, float],
        observation: Observation,
        extra_s: Mapping[int, float] = NO_EXTRA,
    ) -> dict[int, float]:
        by_balance = ranks(balances(options, observation))
        by_promise = ranks([_promise(o, observation) for o in options])
        patience = self.patience * len(options)
        costs = relative_costs([o.cost_s + extra_s.get(o.index, 0.0) for o in options], MOST_COST)
        scores = {}
        for o, b, p, c in zip(options, by_balance, by_promise, costs, strict=True):
            worth = merit.get(o.index, _guess(o))
            # Wrong labels look balanced: what adverts say counts as far as a probe bears it out.
            scores[o.index] = worth * (1 + worth * (b + p)) * staleness(o, patience) / c
        return scores


def _risk(observation: Observation) -> float:
    """Return the most seconds that an answer is worth for each second of a visit.

    Blind visits won W and lost L of skill in c seconds each, visits that were asked about win W
    in c + p: asking pays while W / (c + p) > (W - L) / c, that is p / c < L / (W - L). Counted
    are the last visits to each node since the packet was half as old, when gains were like now.
    """
    recent = max(MIN_MEMORY, observation.hop / 2)
    gains = [c.last_gain for c in observation.candidates if c.visits and c.hops_since <= recent]
    won = math.fsum(max(0.0, gain) for gain in gains)
    lost = math.fsum(max(0.0, -gain) for gain in gains)
    if lost and lost >= won:
        return math.inf
    return max(LEAST_RISK, lost / (won - lost)) if lost else LEAST_RISK


def _pays(option: Option, risk: float) -> bool:
    """Return whether it may be asked, and its answer is worth its seconds."""
    stop = option.candidate
    return stop.probe_allowed and stop.probe_s <= risk * max(option.cost_s, TINY_S)


def _guess(option: Option) -> float:
    """Return the share of the best gain that a node is expected to bring, without a probe."""
    stop = option.candidate
    return UNPROBED * (DISAPPOINTED if stop.visits and stop.last_gain <= 0 else 1.0)


def _is_above_chance(option: Option, observation: Observation) -> bool:
    probe = option.probe or recall(option, observation)
    return probe is not None and probe.loss > math.log(num_classes(observation))


def _shares(gains: Mapping[int, float]) -> dict[int, float]:
    """Return each gain as a share of the best, 0 for what does not help."""
    best = max(gains.values(), default=0.0)
    return {i: max(0.0, gain) / best if best > 0 else 0.0 for i, gain in gains.items()}


def _promise(option: Option, observation: Observation) -> float:
    """Return what adverts and the last visit promise: need x supply, and the last gain."""
    need = float(observation.features[option.index, _NEED_SUPPLY])
    return need + option.candidate.last_gain
