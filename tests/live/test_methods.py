"""Methods of one travelling packet that have no test of their own: kill -9 amid a visit."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.live import LiveNode
from aats.node.fault import FaultPoint, Moment
from aats.packet import Architecture, Plugin

if TYPE_CHECKING:
    from conftest import Network

MLP = Architecture("mlp", {"features": 1, "hidden": [16, 16], "classes": 4})
VISITS = RecordKind.TRAIN, RecordKind.ROLLED_BACK
SMALL = {"name": "logistic", "features": 1, "classes": 4}


@pytest.mark.parametrize(
    ("name", "params", "architecture"),
    [
        ("nested", {"ratio": 0.5}, MLP),
        ("exchange", {"small": SMALL}, MLP),
        ("generative", {"minimum": 2}, MLP),
        ("bottleneck", {}, Architecture("bottleneck", {"features": 1, "classes": 4})),
    ],
)
def test_a_node_killed_at_work_does_the_visit_again(
    network: Network, make_ring: Callable[..., list[LiveNode]], name: str,
    params: dict[str, Any], architecture: Architecture,
) -> None:  # fmt: skip
    deaths = [FaultPoint(Moment.WORKING, 2), FaultPoint(Moment.WORKED, 3)]
    run = network.run(
        make_ring(3, deaths=deaths), architecture=architecture, target=1.01, hops=8,
        method=Plugin(name, {**params, "rollback_drop": 1.0, "rollback_loss": 1e9}),
    )  # fmt: skip
    assert [e["code"] for e in run.of("node.died")] == [-signal.SIGKILL] * 2
    (delivered,) = run.delivered
    check_chain(delivered.header.chain)
    delivered.payload().verify()
    visits = [r.hop for r in delivered.header.chain if r.kind in VISITS]
    assert {2, 3} <= set(visits), "both visits were done in the end"
    assert max(Counter(visits).values()) == 1
