"""The fewest seconds in which a packet can be home with its targets verified: beam search.

States are rows of a `Simulator`, so a route is found with the very rules, figures and luck of
an episode: followed there, it costs what was found. Two questions are asked of it. `oracle`
knows everything, the labels that are wrong, what each visit will do and what each verdict will
say: a bound that no policy can know enough to reach. `plan` knows what nodes advertise and the
law of learning, as the unit that computes whole itineraries does (MTRCE, DA-ITN IV).

Time is cut into slots, and of the states that fall into a slot the most advanced few go on. So
states are compared that took equally long, and no guess is needed of how long the rest will take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aats.routing.view import Kind, legal, select, stage_here
from aats_envs.batch import Limits, Networks
from aats_envs.learner import At, Learner, Surrogate
from aats_envs.network import Bools, Floats, Ints, KnowledgeNetwork
from aats_envs.simulator import SECONDS, Simulator

WIDTHS = (4, 8, 16, 32, 64)
"""States of a slot that go on, from one pass to the next."""
SLOTS = 4
"""Slots in the time of a usual stop."""
ROUND = 1024
"""Visits tried at once."""
TIE = 1e-3
"""What counts where progress is equal: a target overshot, and the way home, in usual stops."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where to go, and what that comes to."""

    stops: tuple[int, ...]
    """Nodes, in order: data nodes, MPVUs, home at the end."""
    seconds: float
    """Until home; until the last stop where no success was found."""
    success: bool
    """Whether it ends at home with every target verified."""
    visits: int
    """Visits, verdicts and ways home that the search tried."""


class Given:
    """A source of networks that gives those of a list, in order, over and over.

    Args:
        networks: At least one.
    """

    def __init__(self, networks: Sequence[KnowledgeNetwork]) -> None:
        self._networks, self._next = networks, 0
        self.limits = Limits.of(networks)

    def draw(self, rng: np.random.Generator) -> KnowledgeNetwork:
        """Return the next one."""
        network = self._networks[self._next % len(self._networks)]
        self._next += 1
        return network


class Expected(Surrogate):
    """Learning by formula, with neither good nor bad luck."""

    def visit(self, rows: Ints, nodes: Ints, visits: Floats, models: Floats, at: At) -> Floats:
        """See `Learner`."""
        return super().visit(rows, nodes, visits, models, _Even(at))

    def judged(self, rows: Ints, models: Floats, at: At) -> Floats:
        """See `Learner`."""
        return super().judged(rows, models, _Even(at))

    def verdict(self, rows: Ints, models: Floats, at: At) -> Floats:
        """See `Learner`."""
        return super().verdict(rows, models, _Even(at))


class _Even(At):
    def __init__(self, at: At) -> None:
        super().__init__(at.keys, at.steps, at.hops)

    def normals(self, stream: object, count: int, *, episode: bool = False) -> Floats:
        return np.zeros((len(self.keys), count))


def oracle(
    network: KnowledgeNetwork,
    key: int,
    *,
    learner: Callable[[Networks], Learner] = Surrogate,
    widths: Sequence[int] = WIDTHS,
    most_visits: int = 100_000,
    max_steps: int = 256,
    k: int = 32,
) -> Route:
    """Return the fastest route found by one that knows all, the luck of the episode included.

    Args:
        network: Where.
        key: Of the episode.
        learner: What a visit does: by formula, or in earnest.
        widths: States that go on from a slot of time, pass by pass; it ends early when two
            passes found nothing better.
        most_visits: The last pass is the one in which so many visits are reached.
        max_steps: As the simulator's that follows the route.
        k: As the simulator's: where there are more stops, it chooses among those a packet sees.
    """
    start = Simulator(Given([network]), 1, k=k, probes=0, max_steps=max_steps, learner=learner)
    start.reset([0], [key])
    best, idle = Route((), math.inf, False, 0), 0
    for width in widths:
        found = _Pass(start, width, best).run()
        better = (found.success, -found.seconds) > (best.success, -best.seconds)
        idle = 0 if better else idle + 1
        best = replace(found if better else best, visits=best.visits + found.visits)
        if idle == 2 or best.visits >= most_visits:
            break
    return best


def plan(network: KnowledgeNetwork, **how: object) -> Route:
    """Return the fastest route by what nodes advertise, were it true: an itinerary.

    Args:
        network: Where.
        how: As `oracle` takes them, but for `learner`.
    """
    return oracle(advertised(network), 0, learner=Expected, **how)  # type: ignore[arg-type]


def advertised(network: KnowledgeNetwork) -> KnowledgeNetwork:
    """Return the network as its adverts have it; of what they withhold, the likeliest.

    Where no histogram is shown, the classes are even. Of rows that are labelled wrong, by the
    advertised quality, every class has as many. Nobody is ever out of reach. The law of learning
    is the network's own.
    """
    count = network.classes[:, None]
    even = (np.arange(network.shown.shape[2]) < count) / count
    known = network.shows_labels[..., None]
    shown = np.where(known, network.shown, network.shown_samples[..., None] * even)
    clean = shown * network.quality[:, None, None]
    wrong = (shown - clean).sum(axis=2, keepdims=True) * even
    return replace(
        network,
        clean=clean,
        wrong=wrong,
        transfer_s=network.shown_transfer_s,
        samples_per_s=network.shown_per_s,
        down=np.full_like(network.down, np.inf),
    )


@dataclass(slots=True)
class _State:
    """A row of a simulator, and how it came about."""

    value: float
    rows: Simulator
    row: int
    stops: tuple[int, ...]


class _Pass:
    """One search with a fixed width."""

    def __init__(self, start: Simulator, width: int, best: Route) -> None:
        self._start, self._width = start, width
        self._best = best
        self._slot_s = float(start.unit[0, SECONDS]) / SLOTS
        self._visits = 0
        self._farthest = _State(-math.inf, start, 0, ())
        self._open: dict[int, dict[bytes, _State]] = {}
        net = start.net
        units = net.mpvu_at[0][net.mpvu_at[0] >= 0]
        leg = net.transfer_s[0][:, units] + net.transfer_s[0][units, net.home[0]]
        self._home_s = leg.min(axis=1) if len(units) else np.full(net.limits.nodes, np.inf)
        self._straight_s = net.transfer_s[0][:, net.home[0]]

    def run(self) -> Route:
        """Return the best route of this pass."""
        start = self._start
        self._expand([_State(0.0, start, 0, ())])
        while self._open:
            slot = min(self._open)
            if slot * self._slot_s >= self._best.seconds:
                break
            states = self._open.pop(slot).values()
            self._expand(sorted(states, key=lambda s: -s.value)[: self._width])
        if self._best.success:
            return replace(self._best, visits=self._visits)
        last = self._farthest
        seconds = float(last.rows.spent[last.row, SECONDS])
        return Route(last.stops, seconds, False, self._visits)

    def _expand(self, states: list[_State]) -> None:
        parents = _joined(states)
        stops, mask = _choices(parents)
        parent, place = np.nonzero(mask)
        for first in range(0, len(parent), ROUND):
            part = slice(first, first + ROUND)
            self._step(states, parents, parent[part], stops[parent[part], place[part]])

    def _step(self, states: list[_State], parents: Simulator, parent: Ints, stops: Ints) -> None:
        rows = parents.gather([(parents, parent)])
        rows.seen.rows[:, 0], rows.seen.mask[:, 0] = stops, True
        node = rows.stop_of(stops)[1]
        outcome = rows.step(np.zeros(len(parent), np.int64))
        self._visits += len(parent)
        seconds = rows.spent[:, SECONDS]
        verified = (rows.met | (rows.net.classes == 0)).all(axis=1)
        rest = np.where(verified, self._straight_s[rows.at], self._home_s[rows.at])
        value = self._value(rows, rest)
        done = outcome.terminated
        for i in np.flatnonzero(outcome.success & (seconds < self._best.seconds)):
            way = (*states[parent[i]].stops, int(node[i]))
            if not self._best.success or seconds[i] < self._best.seconds:
                self._best = Route(way, float(seconds[i]), True, 0)
        going = ~done & ~outcome.truncated & (rows.at == node)
        going &= seconds + rest < self._best.seconds
        self._keep(states, rows, np.flatnonzero(going), value, parent)

    def _keep(
        self, states: list[_State], rows: Simulator, going: Ints, value: Floats, parent: Ints
    ) -> None:
        slots = (rows.spent[:, SECONDS] / self._slot_s).astype(np.int64)
        chosen: list[tuple[int, bytes, int]] = []
        for i in going[np.argsort(-value[going], kind="stable")]:
            seen = self._open.setdefault(int(slots[i]), {})
            key = rows.at[i].tobytes() + rows.visits[i].tobytes() + rows.judged[i].tobytes()
            if key in seen:
                if seen[key].value >= value[i]:
                    continue
            elif len(seen) >= 4 * self._width:
                worst = min(seen, key=lambda name: seen[name].value)
                if seen[worst].value >= value[i]:
                    continue
                del seen[worst]
            seen[key] = _State(float(value[i]), rows, int(i), ())
            chosen.append((int(slots[i]), key, int(i)))
        if not chosen:
            return
        kept = rows.gather([(rows, np.array([i for _, _, i in chosen]))])
        for place, (slot, key, i) in enumerate(chosen):
            state = self._open[slot].get(key)
            if state is None or state.rows is not rows or state.row != i:
                continue
            way = (*states[parent[i]].stops, int(rows.at[i]))
            state.rows, state.row, state.stops = kept, place, way
            if state.value > self._farthest.value:
                self._farthest = state

    def _value(self, rows: Simulator, rest: Floats) -> Floats:
        """Return [n] how far the states are, by what a verdict would say of them."""
        every = np.arange(rows.size)
        found = rows.learner.verdict(every, rows.models, rows.when(every))
        target = np.where(rows.net.target > 0, rows.net.target, 1.0)
        wanted = rows.net.classes > 0
        share = np.where(wanted, found / target, 0.0)
        progress = np.minimum(share, 1.0).sum(axis=1) / wanted.sum(axis=1)
        more = share.sum(axis=1) - rest / float(self._start.unit[0, SECONDS])
        value: Floats = progress + TIE * np.where(np.isfinite(more), more, -1e3)
        return value


def _joined(states: Sequence[_State]) -> Simulator:
    """Return one simulator of the states' rows, in their order."""
    parts = [(s.rows, np.array([s.row])) for s in states]
    return states[0].rows.gather(parts)


def _choices(rows: Simulator) -> tuple[Ints, Bools]:
    """Return stops and whether they are legal, [n, K] each."""
    every = np.arange(rows.size)
    stops, journey = rows.stops(every), rows.journey(every)
    index = select(stops, journey, rows.k)
    kept = stops.rows(index)
    mask = legal(kept, journey, stage_here(kept, journey)) & np.isfinite(kept.transfer_s)
    return index, mask & (kept.kind != Kind.NONE)
