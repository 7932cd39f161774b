"""What the simulated world charges for a task, in samples trained on."""

from __future__ import annotations

import pytest

from aats.ids import NodeId
from aats.learning.probe import TRUSTED_ROWS
from aats.messages import ProbeAsk, ProbeReply, ProbeScores
from aats.node.pace import effort
from aats.node.tasks import ProbeResult, ProbeTask, VisitResult, VisitTask
from aats.packet import Header
from aats.payload import REFERENCE, Manifest, TensorSpec
from tests.wire_samples import HEADER


def carrying(rows: int) -> Manifest:
    return Manifest((TensorSpec(f"{REFERENCE}oncology.y", "int64", (rows,), 0, 8 * rows, b""),), 0)


def ask(manifest: Manifest) -> ProbeAsk:
    mandate = HEADER.mandate
    return ProbeAsk(HEADER.id, HEADER.version, mandate.architecture, (), 1, manifest=manifest)


def test_a_probe_costs_its_five_steps_and_what_it_is_judged_on() -> None:
    result = ProbeResult(ProbeReply(ProbeScores(0.1, 0.1, 0.1, 0.1, samples=16)))
    few, many = (effort(ProbeTask(ask(carrying(n))), result) for n in (30, 3000))
    assert few == pytest.approx(5 * 16 + 30 * 4 / 3)
    assert many == pytest.approx(5 * 16 + TRUSTED_ROWS * 4 / 3)


def test_a_refused_probe_costs_nothing() -> None:
    assert effort(ProbeTask(ask(carrying(30))), ProbeResult(ProbeReply(refused="busy"))) == 0.0


def test_a_visit_costs_its_samples_and_being_judged_twice() -> None:
    header = Header(HEADER.mandate, manifest=carrying(60))
    done = VisitResult(header.manifest, (), "train", samples=100)
    task = VisitTask(header, NodeId("d"))
    assert effort(task, done) == pytest.approx(100 + 2 * 60 / 3)
