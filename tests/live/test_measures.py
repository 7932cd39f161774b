"""What counter-measures carry survives a kill -9: a visit cut off leaves nothing behind."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from aats.ids import NodeId
from aats.learning.method import Guard, method_of
from aats.learning.weights import initial_payload
from aats.lineage import RecordKind
from aats.live import LiveNode
from aats.node.fault import FaultPoint, Moment
from aats.packet import Architecture, Plugin
from aats.payload import MODEL, STATE, Payload
from aats.roles.data import NodeData
from aats.testing.methods import Walk

if TYPE_CHECKING:
    from conftest import Network

MODELLED = Architecture("mlp", {"features": 1, "hidden": [8], "classes": 4})
METHOD = Plugin("sequential", {
    "lr": 0.05, "momentum": 0.9, "carry_momentum": 8, "ema": 2.0, "ewc": 1.0, "replay": 0.5,
    "interpolate": "seen", "rollback_drop": 1.0, "rollback_loss": 1e9,
})  # fmt: skip


def test_a_visit_cut_off_by_a_kill_9_is_done_again_from_the_state_that_came(
    network: Network, make_ring: Callable[..., list[LiveNode]]
) -> None:
    """The packet's tensors are, to the bit, those of the same visits made in one process."""
    points = [FaultPoint(Moment.WORKING, 2), FaultPoint(Moment.WORKED, 3)]
    nodes = make_ring(3, deaths=points)
    run = network.run(nodes, hops=6, target=1.0, method=METHOD, architecture=MODELLED)
    (delivered,) = run.delivered
    header, payload = delivered.header, delivered.payload()
    assert [e["code"] for e in run.of("node.died")] == [-signal.SIGKILL] * 2
    visits = [r for r in header.chain if r.kind is RecordKind.TRAIN]
    assert len(visits) >= 3
    assert max(Counter(r.hop for r in visits).values()) == 1

    # What the owner sent: its reference set came home as it was.
    start = initial_payload(MODELLED, 1, _reference(payload))
    assert start.manifest.version(MODEL) == header.chain[0].version
    measures = method_of(METHOD)[2]
    mandate = replace(header, skills=(), journal=(), chain=(), trained={}, labels_used={})
    alone = Walk(replace(mandate, version=header.chain[0].version), start)
    for record in visits:
        alone.header = replace(alone.header, hop=record.hop)
        data: NodeData = next(n.data for n in nodes if n.name == record.node)
        alone.visit(method_of(METHOD)[0], data, NodeId(record.node), Guard(1.0, inf), measures)
        assert alone.payload.manifest.version(MODEL) == record.version
    assert alone.payload.manifest.version(STATE) == payload.manifest.version(STATE)
    carried = {name.split(".")[1] for name in payload.arrays(STATE)}
    assert carried == {"momentum", "momentum-range", "ema", "ewc", "replay", "interpolate"}


def _reference(payload: Payload) -> dict[str, tuple]:  # type: ignore[type-arg]
    arrays = payload.arrays("ref.")
    skills = {name.split(".")[1] for name in arrays}
    return {s: (arrays[f"ref.{s}.x"], arrays[f"ref.{s}.y"]) for s in skills}
