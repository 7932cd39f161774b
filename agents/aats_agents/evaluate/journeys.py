"""Any policy in the learning environment: what it sees there is what a daemon would show it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import numpy as np

from aats.ids import NodeId
from aats.messages import ProbeScores
from aats.packet import ProbeEntry
from aats.routing.policy import Candidate, Observation, Phase, RoutePolicy, StopKind
from aats.routing.view import Kind, Seen, Stage, Stops
from aats_agents.evaluate.case import Case, Journey
from aats_agents.planner import LearnerOf
from aats_envs.learner import PROBE_ROWS, Surrogate
from aats_envs.network import Bools, Floats, Ints, KnowledgeNetwork
from aats_envs.search import Given
from aats_envs.simulator import BYTES, HOPS, SECONDS, Simulator

KINDS = {Kind.DATA: StopKind.DATA, Kind.MPVU: StopKind.MPVU, Kind.HOME: StopKind.HOME}
PHASES = {Stage.SEEK: Phase.SEEK, Stage.VERIFY: Phase.VERIFY, Stage.RETURN: Phase.RETURN}
OBSERVED = 32
MAX_STEPS = 256
AT_ONCE = 64
"""Journeys side by side."""


Made = Callable[[Case], RoutePolicy]
"""Makes the policy that a packet of this case carries."""


def drive(
    name: str,
    make: Made,
    cases: Sequence[Case],
    *,
    learner: LearnerOf = Surrogate,
    k: int = OBSERVED,
) -> list[Journey]:
    """Return the journeys of a policy, one a case.

    Args:
        name: What the policy is called in the results.
        make: Makes it.
        cases: Where and when.
        learner: What a visit does to a model.
        k: Rows of an observation.
    """
    # Luck is drawn by skill and class: only networks that have as many can share a batch.
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, case in enumerate(cases):
        shapes.setdefault(case.network.clean.shape[1:], []).append(i)
    found: dict[int, Journey] = {}
    for places in shapes.values():
        for first in range(0, len(places), AT_ONCE):
            some = places[first : first + AT_ONCE]
            chosen = [cases[i] for i in some]
            policies = [make(case) for case in chosen]
            journeys = _Drive(name, policies, chosen, learner, k).run()
            found.update(zip(some, journeys, strict=True))
    return [found[i] for i in range(len(cases))]


class _Drive:
    def __init__(
        self,
        name: str,
        policies: list[RoutePolicy],
        cases: Sequence[Case],
        learner: LearnerOf,
        k: int,
    ) -> None:
        self._name, self._policies, self._cases = name, policies, cases
        source = Given([case.network for case in cases])
        self._sim = Simulator(source, len(cases), k=k, max_steps=MAX_STEPS, learner=learner)
        self._sim.reset(range(len(cases)), [case.key for case in cases])
        self._names = [
            [NodeId(str(site.name)) for site in case.network.layout.sites] for case in cases
        ]
        self._visited: list[list[NodeId]] = [[] for _ in cases]
        self._bad = [case.bad for case in cases]
        self._went_bad = np.zeros(len(cases))
        self._wall_s, self._decisions = np.zeros(len(cases)), np.zeros(len(cases))

    def run(self) -> list[Journey]:
        sim = self._sim
        going = np.arange(sim.size)
        found: dict[int, Journey] = {}
        while len(going):
            sim.look(going, self._wanted)
            actions = np.zeros(sim.size, np.int64)
            for i, row in enumerate(going):
                actions[row] = self._chosen(i, int(row))
            before = sim.visits.sum(axis=1)
            outcome = sim.step(actions)
            for row in going[sim.visits.sum(axis=1)[going] > before[going]]:
                node = int(sim.last[row])
                self._visited[row].append(self._names[row][node])
                self._went_bad[row] += self._bad[row][node]
            for row in going[(outcome.terminated | outcome.truncated)[going]]:
                found[int(row)] = self._told(int(row), bool(outcome.success[row]))
            going = going[~(outcome.terminated | outcome.truncated)[going]]
        return [found[row] for row in range(sim.size)]

    def _told(self, row: int, success: bool) -> Journey:
        sim, case = self._sim, self._cases[row]
        return Journey(
            self._name, case.family, case.key,
            seconds=float(sim.spent[row, SECONDS]),
            unit_s=float(sim.unit[row, SECONDS]),
            hops=float(sim.spent[row, HOPS]),
            bytes=float(sim.spent[row, BYTES]),
            success=success,
            bad_visits=float(self._went_bad[row] / max(1, len(self._visited[row]))),
            wall_s=float(self._wall_s[row] / max(1, self._decisions[row])),
            network=case.network.name,
        )  # fmt: skip

    def _rng(self, row: int, what: str) -> random.Random:
        # As a node draws them (`aats.node.desk`), with the first epoch.
        return random.Random(f"{self._cases[row].seed}/{int(self._sim.hop[row])}/0/{what}")

    def _wanted(self, rows: Ints, seen: Seen) -> Bools:
        """Return [n, K] whom the policies want probed: as at a node, only while they seek."""
        asked = np.zeros(seen.mask.shape, np.bool_)
        # Kept for the choice: while probes are out, nodes come and go.
        stops = self._stops = self._sim.stops(rows)
        for i in np.flatnonzero(seen.stage == Stage.SEEK).tolist():
            row = int(rows[i])
            observation = self._observation(stops, i, row, seen, i)
            since = time.perf_counter()
            wanted = self._policies[row].wants_probes(observation, self._rng(row, "probe"))
            self._wall_s[row] += time.perf_counter() - since
            asked[i, [j for j in wanted if seen.mask[i, j]]] = True
        return asked

    def _chosen(self, i: int, row: int) -> int:
        observation = self._observation(self._stops, i, row, self._sim.seen, row)
        since = time.perf_counter()
        choice = self._policies[row].choose(observation, self._rng(row, "choose"))
        self._wall_s[row] += time.perf_counter() - since
        self._decisions[row] += 1
        return choice.index

    def _observation(self, stops: Stops, i: int, row: int, seen: Seen, at: int) -> Observation:
        """Return what a daemon would show the packet of a row.

        Args:
            stops: Of some rows.
            i: The row's place among them.
            row: The row.
            seen: Of some rows.
            at: The row's place among those.
        """
        sim, network, names = self._sim, self._cases[row].network, self._names[row]
        index = seen.rows[at][seen.rows[at] >= 0]
        n, skills = sim.net.limits.nodes, network.skills
        others = [*sim.net.mpvu_at[row], sim.net.home[row]]
        nodes = [names[s if s < n else others[s - n]] for s in index.tolist()]
        candidates = tuple(
            _candidate(stops, i, s, node, network, sim.hop[row])
            for s, node in zip(index.tolist(), nodes, strict=True)
        )
        probes = {
            nodes[j]: _scores(sim.probed[row, j])
            for j in np.flatnonzero(sim.probed[row, : len(nodes), 0])
        } if seen is sim.seen else {}  # fmt: skip
        return Observation(
            features=seen.features[at].copy(),
            globals=seen.globals[at].copy(),
            mask=seen.mask[at].copy(),
            candidates=candidates,
            phase=PHASES[Stage(int(seen.stage[at]))],
            here=names[sim.at[row]],
            probes=probes,
            labels_used={
                skill: tuple(sim.used[row, t, : network.classes[t]].tolist())
                for t, skill in enumerate(skills)
                if sim.used[row, t].any()
            },
            hop=len(self._visited[row]),
            visited=tuple(self._visited[row]),
            seed=self._cases[row].seed,
        )


def _scores(found: Floats) -> ProbeScores:
    _, gain, alignment, loss, norm = found.tolist()
    return ProbeScores(gain, alignment, loss, norm, samples=int(PROBE_ROWS))


def _candidate(
    stops: Stops, i: int, s: int, node: NodeId, network: KnowledgeNetwork, hop: float
) -> Candidate:
    samples, past = stops.samples[i, s], stops.past[i, s]
    probed = None
    if past[0]:
        gain, alignment, loss = past[1:4].tolist()
        probed = ProbeEntry(node, int(hop - past[4]), gain, alignment, loss, 0)
    labels = {
        skill: tuple(stops.labels[i, s, t, : network.classes[t]].astype(int).tolist())
        for t, skill in enumerate(network.skills)
        if stops.shown[i, s, t]
    }
    return Candidate(
        node,
        KINDS[Kind(int(stops.kind[i, s]))],
        (node,) * int(stops.links[i, s]),
        float(stops.transfer_s[i, s]),
        float(stops.compute_s[i, s]),
        probe_s=float(stops.probe_s[i, s]),
        verify_s=float(stops.verify_s[i, s]),
        samples={k: int(v) for k, v in zip(network.skills, samples.tolist(), strict=False) if v},
        labels=labels,
        quality=float(stops.quality[i, s]),
        freshness_s=float(stops.freshness_s[i, s]),
        age_s=float(stops.age_s[i, s]),
        visits=int(stops.visits[i, s]),
        hops_since=int(stops.hops_since[i, s]),
        last_gain=float(stops.last_gain[i, s]),
        hurt=bool(stops.hurt[i, s]),
        probe_allowed=bool(stops.probe_allowed[i, s]),
        probed=probed,
        hops_since_probe=int(past[4]) if past[0] else -1,
        trust=float(stops.trust[i, s]),
    )
