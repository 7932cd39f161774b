"""Pilot hops: short real walks over varied partitions, recorded for the fit of `Dynamics`.

A hop is the whole visit that a node makes (`aats.learning.visit`) and the probe before it
(`aats.learning.probe`), without a network around. What a node holds in truth is known here, so
the fit can tell what a visit does from what its labels say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from aats.errors import DataError
from aats.ids import NodeId, PacketId
from aats.learning.backend import backend_of
from aats.learning.datasets import Dataset, load_dataset
from aats.learning.dynamics import Floats
from aats.learning.method import Guard, method_of, seed_of
from aats.learning.partition import Part, Spread, spread_rows
from aats.learning.probe import probe
from aats.learning.visit import visit_by
from aats.learning.weights import initial_payload
from aats.node.tasks import VisitTask
from aats.packet import (
    UNLIMITED,
    Architecture,
    Header,
    Mandate,
    Owner,
    PacketKind,
    Plugin,
    Target,
    VisitEntry,
)
from aats.payload import MODEL, Payload
from aats.roles.data import Batch, NodeData

PROBE_ROWS = 32
"""Of a pilot's probe: `aats.learning.dynamics.probed` scales from here."""
WALKS = ("random", "repeat", "cycle", "probe")
"""How the pilot packets go: anywhere; again and again to one node; round two or three; to the
node whose probe promises most. Policies come back to good nodes, which random walks hardly do."""
ALL_EVERY = 3
"""Every so many stops all nodes are tried, to tell how well candidates are told apart."""
WRONG_SHARE = 0.3
"""Share of the nodes that are given wrong labels, 20-90 % of theirs."""
_OPEN = Guard(rollback_drop=1.0, rollback_loss=math.inf)


@dataclass(frozen=True, slots=True)
class SkillPlan:
    """Where a skill's rows come from and how they are dealt out; fields as of `spread`."""

    source: Plugin
    partition: Plugin
    parts: tuple[Part, ...]
    held_out: float = 0.2
    reference: int = 64
    test: float = 0.2
    root: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """What is calibrated: a model, how it is trained, and the data of each of its skills."""

    name: str
    architecture: Architecture
    method: Plugin
    skills: Mapping[str, SkillPlan]


@dataclass(frozen=True, slots=True, eq=False)
class Hops:
    """Recorded visits of one skill: H tried ones, of which the packet took some."""

    walk: npt.NDArray[np.int64]
    """[H]; which packet."""
    stop: npt.NDArray[np.int64]
    """[H]; which stop of the walk."""
    taken: npt.NDArray[np.bool_]
    """[H]; whether the packet went on from this one. It is the first of its stop."""
    kind: npt.NDArray[np.int64]
    """[H]; index into `WALKS`."""
    known: Floats
    """[H, C], before: mean probability of the true class on the test rows."""
    after: Floats
    """[H, C]."""
    clean: Floats
    """[H, C], training rows labelled right."""
    wrong: Floats
    """[H, C], those that are not, by the class they are labelled."""
    visits: Floats
    """[H], earlier ones of the packet to the node."""
    weights: Floats
    """[H, C], share of each class among the test rows."""
    accuracy: Floats
    """[H, 2], before and after."""
    scores: Floats
    """[H, 4]: the probe's gain, alignment, loss, gradient norm."""
    rows: Floats
    """[H], of the probe's minibatch."""

    def where(self, chosen: npt.NDArray[np.bool_]) -> Hops:
        """Return the chosen ones."""
        return Hops(**{f.name: getattr(self, f.name)[chosen] for f in fields(Hops)})

    def __len__(self) -> int:
        return len(self.walk)


@dataclass(frozen=True, slots=True)
class Network:
    """One deal: what each node holds, and in truth; what packets and verifiers hold."""

    nodes: dict[NodeId, NodeData]
    truth: dict[tuple[NodeId, str], tuple[Floats, Floats]]
    """By node and skill: rows [C] labelled right, and labelled wrong by their label."""
    reference: dict[str, Batch]
    test: dict[str, Batch]


def pilot(
    task: Task,
    *,
    seed: int,
    hops: int,
    stops: int = 18,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Hops]:
    """Walk real packets over varied deals of a task's data; return the visits by skill.

    Args:
        task: What to train on what.
        seed: Of everything.
        hops: Visits to make, about; at least one walk is made.
        stops: Of each walk.
        progress: Told the visits made and wanted.
    """
    data = {s: load_dataset(p.source.name, **{"root": p.root, **p.source.params})
            for s, p in task.skills.items()}  # fmt: skip
    recorder = _Recorder(task)
    walk = 0
    while not walk or recorder.made < hops:
        network = vary(task, data, seed_of("deal", seed, walk))
        recorder.walk(network, walk, WALKS[walk % len(WALKS)], stops, seed_of("walk", seed, walk))
        walk += 1
        if progress is not None:
            progress(min(recorder.made, hops), hops)
    return recorder.hops()


def vary(task: Task, data: Mapping[str, Dataset], seed: int) -> Network:
    """Return a deal like the task's, of another case mix, other volumes and wrong labels."""
    rng = np.random.default_rng(seed)
    dealt, truth = {}, {}
    bad = {p.node: rng.uniform(0.2, 0.9) for p in _parts(task) if rng.random() < WRONG_SHARE}
    for skill, plan in task.skills.items():
        parts = [_varied(part, bad.get(part.node, 0.0), rng) for part in plan.parts]
        params = dict(plan.partition.params)
        if "alpha" in params:
            params["alpha"] *= float(rng.choice([0.3, 1.0, 3.0]))
        partition = Plugin(plan.partition.name, params)
        dealt[skill] = _dealt(skill, plan, data[skill], partition, parts, seed)
        # The same deal of rows that show their true class.
        classes = data[skill].y.reshape(-1, *[1] * (data[skill].x.ndim - 1))
        shown = replace(data[skill], x=np.broadcast_to(classes, data[skill].x.shape).astype("f4"))
        unmoved = [replace(part, drift=0.0) for part in parts]
        truth[skill] = _dealt(skill, plan, shown, partition, unmoved, seed)
    names = dict.fromkeys(NodeId(name) for found in dealt.values() for name in found.nodes)
    return Network(
        {n: NodeData.of(*(f.nodes[n] for f in dealt.values() if n in f.nodes)) for n in names},
        {(n, s): _counts(f, n) for s, f in truth.items() for n in names if n in f.nodes},
        {s: f.reference for s, f in dealt.items()},
        {s: f.test for s, f in dealt.items()},
    )


def _parts(task: Task) -> list[Part]:
    """Return one part of each node."""
    return [*{p.node: p for plan in task.skills.values() for p in plan.parts}.values()]


def _varied(part: Part, wrong: float, rng: np.random.Generator) -> Part:
    factor = float(np.exp(rng.normal(0, 0.6)))
    if part.group or part.samples:
        return replace(part, wrong_labels=wrong)
    return replace(part, share=part.share * factor, wrong_labels=wrong)


def _dealt(
    skill: str, plan: SkillPlan, data: Dataset, partition: Plugin, parts: Sequence[Part], seed: int
) -> Spread:
    return spread_rows(
        skill, data, partition, parts,
        held_out=plan.held_out, reference=plan.reference, test=plan.test, seed=seed,
    )  # fmt: skip


def _counts(shown: Spread, node: NodeId) -> tuple[Floats, Floats]:
    held = shown.nodes[node]
    true = np.rint(held.train_x.reshape(held.samples, -1)[:, 0]).astype(np.int64)
    right = true == held.train_y
    clean, wrong = (
        np.bincount(held.train_y[rows], minlength=held.num_classes).astype(np.float64)
        for rows in (right, ~right)
    )
    return clean, wrong


@dataclass(frozen=True, slots=True)
class _Packet:
    """A pilot packet between two stops."""

    header: Header
    payload: Payload


class _Recorder:
    """Makes the visits of pilot packets and keeps what each did to each skill."""

    def __init__(self, task: Task) -> None:
        self.made = 0
        self._task = task
        self._backend = backend_of(task.architecture)
        self._method, _, self._measures = method_of(task.method)
        self._kept: dict[str, list[dict[str, object]]] = {s: [] for s in task.skills}

    def hops(self) -> dict[str, Hops]:
        """Return all visits so far, by skill."""
        return {
            skill: Hops(**{f.name: np.array([row[f.name] for row in rows]) for f in fields(Hops)})
            for skill, rows in self._kept.items()
        }

    def walk(self, network: Network, number: int, kind: str, stops: int, seed: int) -> None:
        """Let one packet go `stops` stops."""
        rng = np.random.default_rng(seed)
        names = [name for name, data in network.nodes.items() if _works(data)]
        if not names:
            raise DataError(f"pilot of {self._task.name!r}: no node holds a row to train on")
        packet = self._packet(network, seed)
        standing = self._standing(packet, network)
        visits = dict.fromkeys(names, 0)
        route = _route(kind, names, rng)
        for stop in range(stops):
            chosen, everywhere = next(route), stop % ALL_EVERY == 0
            asked = names if everywhere or not chosen else [chosen]
            scores = {name: self._probe(packet, network, name, seed + stop) for name in asked}
            if not chosen:
                chosen = max(names, key=lambda name: _promise(scores[name], network.nodes[name]))
            tried = [chosen, *(n for n in names if n != chosen)] if everywhere else [chosen]
            first = packet, standing
            for name in tried:
                after = self._visit(first[0], network.nodes[name], name)
                found = self._standing(after, network)
                self._keep(
                    network, name, first[1], found, scores[name],
                    walk=number, stop=stop, taken=name == chosen, kind=WALKS.index(kind),
                    visits=float(visits[name]),
                )  # fmt: skip
                if name == chosen:
                    packet, standing = after, found
            visits[chosen] += 1

    def _packet(self, network: Network, seed: int) -> _Packet:
        mandate = Mandate(
            id=PacketId("0190a000-0000-7000-8000-000000000000"),
            kind=PacketKind.TRAIN,
            owner=Owner(NodeId("pilot"), b""),
            created=0.0,
            deadline=math.inf,
            requirement=tuple(Target(skill, 1.0) for skill in self._task.skills),
            budget=UNLIMITED,
            architecture=self._task.architecture,
            method=self._task.method,
            policy=Plugin("pilot"),
            seed=seed,
        )
        return _Packet(
            Header(mandate), initial_payload(self._task.architecture, seed, network.reference)
        )

    def _visit(self, packet: _Packet, data: NodeData, node: NodeId) -> _Packet:
        arenas: list[memoryview] = []

        def allocate(total: int) -> memoryview:
            arenas.append(memoryview(bytearray(total)))
            return arenas[-1]

        frozen = Payload(packet.payload.manifest, packet.payload.arena.toreadonly())
        result = visit_by(
            self._method, _OPEN, VisitTask(packet.header, node), frozen, data, node=node,
            allocate=allocate, measures=self._measures,
        )  # fmt: skip
        self.made += 1
        entry = VisitEntry(node, packet.header.hop, result.action, result.gain, result.samples, 1)
        header = replace(
            packet.header.with_visit(entry),
            hop=packet.header.hop + 1,
            version=result.manifest.version(MODEL),
            manifest=result.manifest,
            labels_used=result.labels_used,
            trained=result.trained,
        )
        return _Packet(header, Payload(result.manifest, arenas[-1]) if arenas else packet.payload)

    def _probe(
        self, packet: _Packet, network: Network, node: NodeId, seed: int
    ) -> dict[str, tuple[Floats, int]]:
        """Return the scores of each skill by itself, and the rows they come of."""
        out = {}
        for skill, held in network.nodes[node].skills.items():
            if held.samples:
                batch = held.minibatch(PROBE_ROWS, seed_of("pilot probe", seed, node))
                found = probe(self._task.architecture, packet.payload, {skill: batch}, seed=seed)
                scores = [found.gain, found.alignment, found.loss, found.gradient_norm]
                out[skill] = np.array(scores), found.samples
        return out

    def _standing(self, packet: _Packet, network: Network) -> dict[str, tuple[Floats, float]]:
        """Return knowledge [C] and accuracy on the test rows, by skill."""
        architecture = self._task.architecture
        frozen = Payload(packet.payload.manifest, packet.payload.arena.toreadonly())
        found = {}
        with self._backend.scope(0):
            model = self._backend.load(architecture, frozen)
            for skill, (x, y) in network.test.items():
                log_p = self._backend.log_probabilities(model, x, skill)
                sure = np.exp(log_p[np.arange(len(y)), y])
                count = np.maximum(np.bincount(y, minlength=log_p.shape[1]), 1)
                known = np.bincount(y, weights=sure, minlength=log_p.shape[1]) / count
                found[skill] = known, float((log_p.argmax(1) == y).mean())
        return found

    def _keep(
        self,
        network: Network,
        node: NodeId,
        before: Mapping[str, tuple[Floats, float]],
        after: Mapping[str, tuple[Floats, float]],
        scores: Mapping[str, tuple[Floats, int]],
        **rest: object,
    ) -> None:
        for skill in scores:
            clean, wrong = network.truth[node, skill]
            y = network.test[skill][1]
            self._kept[skill].append({
                **rest,
                "known": before[skill][0],
                "after": after[skill][0],
                "accuracy": np.array([before[skill][1], after[skill][1]]),
                "clean": clean,
                "wrong": wrong,
                "weights": np.bincount(y, minlength=len(clean)) / len(y),
                "scores": scores[skill][0],
                "rows": float(scores[skill][1]),
            })  # fmt: skip


def _works(data: NodeData) -> bool:
    return any(held.samples for held in data.skills.values())


def _promise(scores: Mapping[str, tuple[Floats, int]], data: NodeData) -> float:
    """Return what a node promises: the gain its probes found, times the root of its rows."""
    return sum(float(s[0]) * math.sqrt(data.skills[skill].samples)
               for skill, (s, _) in scores.items())  # fmt: skip


def _route(kind: str, names: Sequence[NodeId], rng: np.random.Generator) -> Iterator[NodeId]:
    """Yield the stops of a walk without end; "" where the probes shall choose."""
    while True:
        if kind == "random":
            yield names[int(rng.integers(len(names)))]
        elif kind == "repeat":
            yield from [names[int(rng.integers(len(names)))]] * int(rng.integers(2, 6))
        elif kind == "cycle":
            ring = rng.permutation(len(names))[: int(rng.integers(2, 4))].tolist()
            yield from [names[i] for i in ring] * int(rng.integers(2, 5))
        else:
            yield NodeId("")
