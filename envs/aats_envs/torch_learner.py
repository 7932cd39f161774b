"""Learning in earnest: each visit trains the scenario's model on the rows of the node.

What is done is what a node does (`aats.roles.runner`), with the same seeds: a packet that takes
the same way in the simulated world comes to the same weights, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aats.compose import measure_on
from aats.learning.dynamics import Scores
from aats.learning.probe import make_probe_payload
from aats.learning.weights import reference_of
from aats.messages import ProbeAsk
from aats.node.tasks import ProbeResult, ProbeTask, VerifyResult, VerifyTask, VisitResult, VisitTask
from aats.packet import EstimateSource, Header, VisitEntry
from aats.payload import MODEL, Payload
from aats.roles.runner import TaskContext, run_task
from aats_envs.batch import Networks
from aats_envs.from_scenario import RealTask
from aats_envs.learner import At, Learner, Models
from aats_envs.network import Floats, Ints, KnowledgeNetwork

REMEMBERED = 4096
"""Visits: searches and retried journeys begin alike."""


@dataclass(slots=True, eq=False)
class Travelling:
    """A model on its way: what the packet says of it, and its tensors, which nobody changes."""

    header: Header
    payload: Payload
    trusted: Floats
    """[T] accuracy on the packet's trusted rows."""
    verdict: Floats | None = None
    """[T] accuracy on the MPVUs' test set, once it was asked for."""


class TorchLearner:
    """Trains, probes and judges in earnest; a model is a `Travelling`.

    Args:
        networks: B networks, all of them the task's own.
        task: What `aats_envs.from_scenario` found along with the network.
    """

    def __init__(self, networks: Networks, task: RealTask) -> None:
        self._task = task
        self._shape = networks.limits.skills
        header, payload = task.packet.header, task.packet.payload
        self._skills = [target.skill for target in header.mandate.requirement]
        measured = measure_on(header, payload, reference_of(payload))
        self._start = Travelling(header, payload, self._of(
            {skill: float(found["value"]) for skill, found in measured.items()}
        ))  # fmt: skip
        unit = next(c for c in task.contexts if set(self._skills) <= set(c.test_set.sets))
        self._unit = unit
        self._known: dict[object, Travelling] = {}

    @classmethod
    def of(cls, task: RealTask) -> Callable[[Networks], Learner]:
        """Return what a `Simulator` makes its learner by."""
        return lambda networks: cls(networks, task)

    def fresh(self, rows: Ints) -> Models:
        """See `Learner`."""
        return _array([self._start] * len(rows))

    def visit(self, rows: Ints, nodes: Ints, visits: Floats, models: Models, at: At) -> Models:
        """See `Learner`. A visit that the guard undoes leaves the model as it was."""
        return _array([
            self._visited(model, int(node), int(hop))
            for model, node, hop in zip(models, nodes, at.hops, strict=True)
        ])  # fmt: skip

    def judged(self, rows: Ints, models: Models, at: At) -> Floats:
        """See `Learner`."""
        return np.stack([model.trusted for model in models])

    def verdict(self, rows: Ints, models: Models, at: At) -> Floats:
        """See `Learner`."""
        return np.stack([self._verdict(model) for model in models])

    def probe(self, rows: Ints, nodes: Ints, models: Models, at: At) -> Scores:
        """See `Learner`."""
        found = [
            self._probed(model, int(node), int(hop))
            for model, node, hop in zip(models, nodes, at.hops, strict=True)
        ]
        return Scores(*np.array(found, np.float64).reshape(-1, 4).T)

    def _visited(self, model: Travelling, node: int, hop: int) -> Travelling:
        """Return the model after a visit; what was done a while ago is not done again."""
        way = tuple((entry.node, entry.hop) for entry in model.header.journal)
        key = model.header.version, way, node, hop
        if key not in self._known:
            while len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = self._trained(model, node, hop)
        return self._known[key]

    def _trained(self, model: Travelling, node: int, hop: int) -> Travelling:
        task = self._task
        header = replace(model.header, hop=hop)
        arenas: list[memoryview] = []

        def allocate(total: int) -> memoryview:
            arenas.append(memoryview(bytearray(total)))
            return arenas[-1]

        frozen = Payload(model.payload.manifest, model.payload.arena.toreadonly())
        context = self._context(node, payload=frozen, allocate=allocate)
        result = run_task(VisitTask(header, task.names[node]), context)
        assert isinstance(result, VisitResult)
        entry = VisitEntry(task.names[node], hop, result.action, result.gain, result.samples, 0)
        header = replace(
            header.with_estimates(result.estimates), manifest=result.manifest,
            version=result.manifest.version(MODEL), labels_used=result.labels_used,
            trained=result.trained,
        ).with_visit(entry)  # fmt: skip
        if not arenas:
            return Travelling(header, model.payload, model.trusted)
        payload = Payload(result.manifest, arenas[-1])
        found = {e.skill: e.value for e in result.estimates if e.source == EstimateSource.REFERENCE}
        return Travelling(header, payload, self._of(found))

    def _verdict(self, model: Travelling) -> Floats:
        if model.verdict is None:
            context = replace(self._unit, payload=model.payload)
            result = run_task(VerifyTask(model.header), context)
            assert isinstance(result, VerifyResult)
            model.verdict = self._of({e.skill: e.value for e in result.estimates})
        return model.verdict

    def _probed(self, model: Travelling, node: int, hop: int) -> tuple[float, ...]:
        mandate = model.header.mandate
        manifest, tensors = make_probe_payload(model.payload)
        ask = ProbeAsk(
            model.header.id, model.header.version, mandate.architecture, tuple(self._skills),
            mandate.seed + hop, manifest=manifest, tensors=tensors, data_of=self._task.names[node],
        )  # fmt: skip
        result = run_task(ProbeTask(ask), self._context(node))
        assert isinstance(result, ProbeResult)
        scores = result.reply.scores
        if scores is None:
            return 0.0, 0.0, 0.0, 0.0
        return scores.gain, scores.alignment, scores.loss, scores.gradient_norm

    def _context(self, node: int, **changed: object) -> TaskContext:
        context = self._task.contexts[self._task.works_at[node]]
        return replace(context, **changed)  # type: ignore[arg-type]

    def _of(self, values: dict[str, float]) -> Floats:
        """Return [T] figures by skill; 0 for padding."""
        found = np.zeros(self._shape)
        found[: len(self._skills)] = [values.get(skill, 0.0) for skill in self._skills]
        return found


class TorchLearners:
    """`TorchLearner` for rows whose networks are of several tasks.

    Args:
        networks: B networks, each of them one of `tasks`.
        tasks: A network, and what `aats_envs.from_scenario` found along with it.
    """

    def __init__(
        self, networks: Networks, tasks: Sequence[tuple[KnowledgeNetwork, RealTask]]
    ) -> None:
        self._networks = networks
        self._tasks = {id(network): task for network, task in tasks}
        self._learners: dict[int, TorchLearner] = {}

    def fresh(self, rows: Ints) -> Models:
        """See `Learner`; None in a row that has no network yet."""
        out = np.empty(len(rows), object)
        for learner, at in self._groups(rows):
            out[at] = learner.fresh(rows[at])
        return out

    def visit(self, rows: Ints, nodes: Ints, visits: Floats, models: Models, at: At) -> Models:
        """See `Learner`."""
        out = np.empty(len(rows), object)
        for learner, i in self._groups(rows):
            out[i] = learner.visit(rows[i], nodes[i], visits[i], models[i], at.of(i))
        return out

    def judged(self, rows: Ints, models: Models, at: At) -> Floats:
        """See `Learner`."""
        return np.stack([model.trusted for model in models])

    def verdict(self, rows: Ints, models: Models, at: At) -> Floats:
        """See `Learner`."""
        out = np.zeros((len(rows), self._networks.limits.skills))
        for learner, i in self._groups(rows):
            out[i] = learner.verdict(rows[i], models[i], at.of(i))
        return out

    def probe(self, rows: Ints, nodes: Ints, models: Models, at: At) -> Scores:
        """See `Learner`."""
        out = np.zeros((4, len(rows)))
        for learner, i in self._groups(rows):
            out[:, i] = learner.probe(rows[i], nodes[i], models[i], at.of(i))
        return Scores(*out)

    def _groups(self, rows: Ints) -> Iterator[tuple[TorchLearner, Ints]]:
        """Yield each learner with the places in `rows` whose networks are its task's."""
        keys = np.array([id(self._networks.drawn[row]) for row in rows.tolist()])
        for key in dict.fromkeys(keys.tolist()):
            if key in self._tasks:
                if key not in self._learners:
                    self._learners[key] = TorchLearner(self._networks, self._tasks[key])
                yield self._learners[key], np.flatnonzero(keys == key)


def _array(models: Sequence[Travelling]) -> Models:
    out = np.empty(len(models), object)
    out[:] = models
    return out
