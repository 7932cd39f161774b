"""Children made one model again at their rendezvous: one that is no model stops nobody."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aats.errors import ModelError
from aats.ids import CustodyKey, NodeId
from aats.learning.rejoin import rejoin
from aats.learning.sequential import SequentialMethod
from aats.learning.weights import initial_payload
from aats.node.tasks import Beside, MergePart, MergeResult, MergeTask
from aats.packet import Architecture, Plugin
from aats.payload import MODEL, REFERENCE, Payload, pack
from aats.roles.data import NodeData
from aats.testing.methods import MLP, Walk, blobs, header_for, reference_for

LORA = Architecture("lora", {"base": {"name": MLP.name, **MLP.config}})


def start(architecture: Architecture = MLP) -> Payload:
    return initial_payload(architecture, 0, reference_for(blobs(60, 9)))


def learned(trunk: Payload, seed: int) -> Payload:
    packet = Walk(header_for(seed=seed), trunk)
    packet.visit(SequentialMethod(), NodeData.of(blobs(90, seed)))
    return packet.payload


def merged(
    trunk: Payload, children: list[Payload], architecture: Architecture = MLP
) -> MergeResult:
    header = replace(header_for(architecture), hop=3)
    parts = tuple(
        MergePart(Beside(CustodyKey(header.id, i), c.manifest), 72, (NodeId(f"n{i}"),))
        for i, c in enumerate(children)
    )
    return rejoin(
        MergeTask(header, Plugin("mean"), parts), trunk, children,
        node=NodeId("home"), allocate=lambda total: memoryview(bytearray(total)),
    )  # fmt: skip


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_child_whose_weights_overflow_is_left_out_and_the_merge_goes_on(
    with_reference: bool,
) -> None:
    trunk = start()
    good = [learned(trunk, seed) for seed in (1, 2)]
    far = {
        n: np.full_like(a, 3e38) if n.startswith(MODEL) else a
        for n, a in trunk.arrays().items()
        if with_reference or not n.startswith(REFERENCE)
    }
    result = merged(trunk, [good[0], pack(far), good[1]])
    assert result.left_out == (1,)
    assert result.loss_after < result.loss_before
    assert result.manifest.version(MODEL) == merged(trunk, good).manifest.version(MODEL)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("0@rogue", (4, 5)), ("no contribution", (2, 8)), ("0@rogue", (2, 8))],
)
def test_a_child_with_adapters_of_no_fit_shape_is_left_out(
    name: str, shape: tuple[int, ...]
) -> None:
    trunk = start(LORA)
    odd = {
        **trunk.arrays(), f"{MODEL}chain.{name}.0/weight.a": np.ones(shape, np.float32),
        f"{MODEL}chain.{name}.0/weight.b": np.ones((3, 3), np.float32),
    }  # fmt: skip
    same = pack(trunk.arrays())
    result = merged(trunk, [same, pack(odd)], LORA)
    assert result.left_out == (1,)
    assert "cannot be judged" in result.note


def test_only_children_that_are_no_models_are_no_merge() -> None:
    trunk = start()
    bad = {n: np.full_like(a, np.nan) for n, a in trunk.arrays(MODEL).items()}
    with pytest.raises(ModelError, match="nothing to merge"):
        merged(trunk, [pack({**trunk.arrays(), **bad})])
