"""Conformance kit for methods: `check_method` raises with what is wrong.

from aats.testing.methods import check_method
check_method(MyMethod(lr=0.1))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from aats.advert import ComputeAdvert
from aats.ids import NodeId, PacketId
from aats.learning.measures.options import NONE, Measures
from aats.learning.method import Guard, Method, Work
from aats.learning.visit import ROLLED_BACK, stop_of, visit_by
from aats.learning.weights import check_finite, initial_payload, kept
from aats.node.tasks import VisitResult, VisitTask
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
from aats.payload import MODEL, STATE, Payload
from aats.roles.data import Batch, NodeData, SkillData

SKILL = "blobs"
FEATURES = 8
CLASSES = 3
NODE = NodeId("data-1")
_OPEN = Guard(rollback_drop=1.0, rollback_loss=inf)


def blobs(
    samples: int = 90,
    seed: int = 0,
    *,
    skill: str = SKILL,
    classes: int = CLASSES,
    features: int = FEATURES,
    wrong: float = 0.0,
) -> SkillData:
    """Return a Gaussian cloud a class, the same clouds for every seed.

    Args:
        samples: Training and held-out rows together.
        seed: Of the draw.
        skill: Name of the skill.
        classes: Number of clouds.
        features: Width of a row.
        wrong: Share of rows labelled as the next class.
    """
    middle = np.random.default_rng(1).standard_normal((classes, features)) * 2
    rng = np.random.default_rng(seed)
    y = np.arange(samples) % classes
    x = middle[y] + rng.standard_normal((samples, features))
    y = np.where(rng.random(samples) < wrong, (y + 1) % classes, y)
    return SkillData.of(skill, x, y, num_classes=classes, seed=seed)


MLP = Architecture("mlp", {"features": FEATURES, "hidden": [16], "classes": CLASSES})


def header_for(
    architecture: Architecture = MLP,
    *,
    method: Plugin | None = None,
    requirement: Sequence[Target] = (Target(SKILL, 0.9),),
    seed: int = 0,
) -> Header:
    """Return the header of a packet as it leaves its owner, unsigned."""
    return Header(
        Mandate(
            id=PacketId("0190a000-0000-7000-8000-000000000000"),
            kind=PacketKind.TRAIN,
            owner=Owner(NodeId("owner"), b""),
            created=0.0,
            deadline=inf,
            requirement=tuple(requirement),
            budget=UNLIMITED,
            architecture=architecture,
            method=method or Plugin("sequential"),
            policy=Plugin("random"),
            seed=seed,
        )
    )


def reference_for(data: SkillData) -> Mapping[str, Batch]:
    """Return all training rows of `data` as a reference set."""
    return {data.skill: (data.train_x, data.train_y)}


@dataclass(slots=True)
class Walk:
    """A packet that visits nodes one after the other, without a network."""

    header: Header
    payload: Payload
    result: VisitResult | None = None

    def visit(
        self, method: Method, data: NodeData, node: NodeId = NODE, guard: Guard = _OPEN,
        measures: Measures = NONE, compute: ComputeAdvert = ComputeAdvert(),
    ) -> VisitResult:  # fmt: skip
        """Let the method work at a node; header and payload go on as they would leave."""
        arenas: list[memoryview] = []

        def allocate(total: int) -> memoryview:
            arenas.append(memoryview(bytearray(total)))
            return arenas[-1]

        frozen = Payload(self.payload.manifest, self.payload.arena.toreadonly())
        task = VisitTask(self.header, node, compute=compute)
        result = visit_by(
            method, guard, task, frozen, data, node=node, allocate=allocate, measures=measures
        )
        self.result = result
        self.payload = Payload(result.manifest, arenas[-1]) if arenas else self.payload
        hop = self.header.hop
        entry = VisitEntry(node, hop, result.action, result.gain, result.samples, 1)
        header = self.header.with_visit(entry).with_estimates(result.estimates)
        self.header = replace(
            header,
            hop=hop + 1,
            version=result.manifest.version(MODEL),
            manifest=result.manifest,
            labels_used=result.labels_used,
            trained=result.trained,
        )
        return result


def check_method(
    method: Method,
    architecture: Architecture = MLP,
    data: NodeData | None = None,
    measures: Measures = NONE,
) -> None:
    """Check that a method keeps its side of the protocol, on two visits to small data.

    Args:
        method: To be checked.
        architecture: Of the model it shall train.
        data: What to train on; its skills are wanted. By default three Gaussian clouds.
        measures: Against forgetting, which the mandate asks for.

    Raises:
        AssertionError: Saying what is wrong: not deterministic, weights that are not finite,
            weights changed without minibatches drawn from the work or beyond the plan, tensors
            lost, renamed or reshaped, state under a wrong name.
    """
    data = data or NodeData.of(blobs())
    name = type(method).__name__
    first, second = (_walk(method, architecture, data, measures) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.payload.manifest == other.payload.manifest, (
            f"{name}: not deterministic: one seed, two results"
        )
        assert one.header == other.header, f"{name}: not deterministic: what it reports differs"
    _check_plan(method, architecture, data)
    before = initial_payload(architecture, 0, _reference(data)).manifest
    for walk in first:
        result = walk.result
        assert result is not None
        assert result.action != ROLLED_BACK, f"{name}: {result.note}"
        _check_tensors(name, walk.payload, before.version(MODEL), result)
        old = {t.name: (t.dtype, t.shape) for t in before.tensors}
        new = {t.name: (t.dtype, t.shape) for t in walk.payload.manifest.tensors}
        lost = {n for n in old if new.get(n) != old[n]}
        assert not lost, f"{name}: tensors lost, renamed or reshaped: {', '.join(sorted(lost))}"
        strange = {n for n in new if n not in old and not n.startswith(STATE)}
        assert not strange, f"{name}: state must be under {STATE!r}: {', '.join(sorted(strange))}"


def _check_tensors(name: str, payload: Payload, initial: str, result: VisitResult) -> None:
    check_finite(kept(payload, ""))
    payload.verify()
    changed = payload.manifest.version(MODEL) != initial
    assert result.steps or not changed, (
        f"{name}: weights changed, but no minibatch was drawn from the work"
    )


def _check_plan(method: Method, architecture: Architecture, data: NodeData) -> None:
    header = _header(architecture, data, 0)
    stop = stop_of(header, NODE, data, initial_payload(architecture, 0))
    plan, name = method.plan(stop), type(method).__name__
    assert plan == method.plan(stop), f"{name}: plan differs for the same stop"
    if plan is None:
        return
    assert plan.total > 0, f"{name}: a plan without steps; return None for no work"
    strange = sorted(set(plan.steps) - set(stop.data))
    assert not strange, f"{name}: plans steps on {strange}, not held here"
    assert sum(1 for _ in Work(stop, plan)) == plan.total


def _reference(data: NodeData) -> Mapping[str, Batch]:
    return {s: (d.test_x, d.test_y) for s, d in data.skills.items()}


def _header(architecture: Architecture, data: NodeData, seed: int) -> Header:
    return header_for(architecture, requirement=[Target(s, 0.9) for s in data.skills], seed=seed)


def _walk(
    method: Method, architecture: Architecture, data: NodeData, measures: Measures
) -> list[Walk]:
    walk = Walk(_header(architecture, data, 0), initial_payload(architecture, 0, _reference(data)))
    stages = []
    for node in (NODE, NodeId("data-2")):
        walk.visit(method, data, node, measures=measures)
        stages.append(replace(walk))
    return stages
