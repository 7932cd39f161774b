"""What methods are tried on: small data, and a packet that visits nodes without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from aats.advert import ComputeAdvert
from aats.ids import NodeId, PacketId
from aats.learning.measures.options import NONE, Measures
from aats.learning.method import Guard, Method
from aats.learning.visit import visit_by
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
from aats.payload import MODEL, Payload
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
