"""Snake on live nodes: kill -9 amid a visit and amid a transfer costs no block of the cycle."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.live import LiveNode
from aats.node.fault import FaultPoint, Moment
from aats.packet import Architecture, Plugin

if TYPE_CHECKING:
    from conftest import Network

DEEP = Architecture("mlp", {"features": 1, "hidden": [16] * 4, "classes": 4})
MIDDLE = 3


def test_a_cycle_is_whole_though_nodes_are_killed_at_work_and_amid_a_transfer(
    network: Network, make_ring: Callable[..., list[LiveNode]]
) -> None:
    deaths = [
        FaultPoint(Moment.WORKING, 2), FaultPoint(Moment.RECEIVING, 3),
        FaultPoint(Moment.SENDING, 4),
    ]  # fmt: skip
    run = network.run(
        make_ring(4, deaths=deaths), architecture=DEEP, method=Plugin("snake", {"lr": 0.1}),
        target=1.0, hops=14,
    )  # fmt: skip
    died = run.of("node.died")
    assert len(died) >= len(deaths)
    assert {e["code"] for e in died} == {-signal.SIGKILL}
    (delivered,) = run.delivered
    header = delivered.header
    check_chain(header.chain)
    delivered.payload().verify()
    trained = [record for record in header.chain if record.kind is RecordKind.TRAIN]
    assert len({record.hop for record in trained}) == len(trained) >= MIDDLE
    cycle, left = divmod(len(trained), MIDDLE)
    assert header.trained["snake.cycle"] == cycle
    assert header.trained["snake.done.0"] == (1 << left) - 1
