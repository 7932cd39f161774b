"""Every task through the one function that all worlds use."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.errors import DataError, WireError
from aats.ids import NodeId
from aats.learning.probe import make_probe_payload
from aats.learning.weights import initial_payload
from aats.messages import ProbeAsk, Samples
from aats.node.tasks import (
    AdoptResult,
    AdoptTask,
    BatchTask,
    ContributeResult,
    ContributeTask,
    ProbeResult,
    ProbeTask,
    VerifyResult,
    VerifyTask,
    VisitResult,
    VisitTask,
)
from aats.packet import Header
from aats.payload import MODEL, Manifest, Payload
from aats.roles.data import NodeData
from aats.roles.runner import TaskContext, run_task
from aats.roles.samples import pack_samples, unpack_samples
from aats.testing.methods import MLP, SKILL, blobs, header_for, reference_for

LIMIT = 1 << 20
HOSPITAL, COMPUTE, MPVU = NodeId("hospital"), NodeId("compute"), NodeId("mpvu")
DATA = NodeData.of(blobs(200), show_labels=False)


def packet() -> tuple[Header, Payload]:
    payload = initial_payload(MLP, 0, reference_for(blobs(60, 9)))
    header = header_for()
    return replace(header, manifest=payload.manifest), payload


def ask(payload: Payload | None = None) -> ProbeAsk:
    header = header_for()
    manifest, tensors = make_probe_payload(payload) if payload else (Manifest(), b"")
    version = payload.manifest.version(MODEL) if payload else ""
    return ProbeAsk(header.id, version, MLP, (SKILL,), 7, 0.0, manifest, tensors)  # type: ignore[arg-type]


def give(purpose: str, to: NodeId) -> Samples:
    result = run_task(ContributeTask(purpose, to, 3), TaskContext(HOSPITAL, DATA))
    assert isinstance(result, ContributeResult)
    return result.samples


def test_a_visit_writes_into_the_arena_it_is_given() -> None:
    header, payload = packet()
    arenas: list[memoryview] = []

    def allocate(total: int) -> memoryview:
        arenas.append(memoryview(bytearray(total)))
        return arenas[-1]

    context = TaskContext(HOSPITAL, DATA, payload=payload, allocate=allocate)
    result = run_task(VisitTask(header, HOSPITAL), context)
    assert isinstance(result, VisitResult)
    Payload(result.manifest, arenas[0]).verify()


def test_a_compute_node_works_on_entrusted_data_only_once_it_has_them() -> None:
    header, payload = packet()
    context = TaskContext(COMPUTE, payload=payload)
    task = VisitTask(header, HOSPITAL)
    before = run_task(task, context)
    adopted = run_task(AdoptTask(HOSPITAL, give("train", COMPUTE)), context)
    after = run_task(task, replace(context, payload=packet()[1]))
    assert isinstance(before, VisitResult)
    assert isinstance(after, VisitResult)
    assert adopted == AdoptResult(True)
    assert (before.steps, after.samples) == (0, DATA.skills[SKILL].samples)
    assert not context.entrusted[HOSPITAL].show_labels
    own = run_task(task, TaskContext(HOSPITAL, DATA, payload=packet()[1]))
    assert isinstance(own, VisitResult)
    assert own.manifest == after.manifest


def test_a_contribution_becomes_a_verdict() -> None:
    header, payload = packet()
    context = TaskContext(MPVU, payload=payload)
    samples = give("verify", MPVU)
    assert samples.incarnation == 3
    assert run_task(AdoptTask(HOSPITAL, samples), context) == AdoptResult(True)
    result = run_task(VerifyTask(header), context)
    assert isinstance(result, VerifyResult)
    assert result.estimates[0].n == 32


def test_what_is_given_for_a_test_set_was_held_out() -> None:
    samples = give("verify", MPVU)
    given_data = unpack_samples(samples.manifest, samples.tensors, limit_bytes=LIMIT).skills[SKILL]
    assert given_data.samples == 0
    held_out = {r.tobytes() for r in DATA.skills[SKILL].test_x}
    assert {r.tobytes() for r in given_data.test_x} <= held_out


def test_a_probe_at_the_data_equals_one_on_the_minibatch_sent() -> None:
    header, payload = packet()
    there = run_task(ProbeTask(ask(payload)), TaskContext(HOSPITAL, DATA, secret=5))
    batch = run_task(BatchTask(ask()), TaskContext(HOSPITAL, DATA, secret=5))
    assert isinstance(there, ProbeResult)
    assert isinstance(batch, ProbeResult)
    holder = TaskContext(COMPUTE, payload=payload)
    here = run_task(ProbeTask(ask(), batch.reply, header), holder)
    assert isinstance(here, ProbeResult)
    assert here.reply.scores == there.reply.scores
    assert there.reply.tensors == b""


def test_a_probe_for_what_a_node_lacks_is_refused_with_a_reason() -> None:
    result = run_task(ProbeTask(ask(packet()[1])), TaskContext(COMPUTE))
    assert isinstance(result, ProbeResult)
    assert "no data" in result.reply.refused
    refused = run_task(BatchTask(ask()), TaskContext(COMPUTE))
    assert isinstance(refused, ProbeResult)
    assert refused.reply.refused


def test_no_result_but_a_minibatch_holds_samples() -> None:
    header, payload = packet()
    data = DATA.skills[SKILL]
    context = TaskContext(HOSPITAL, DATA, payload=payload)
    context.test_set.adopt(HOSPITAL, DATA)
    for task in (VisitTask(header, HOSPITAL), VerifyTask(header), ProbeTask(ask(packet()[1]))):
        wire = msgspec.msgpack.encode(run_task(task, context))
        for row in (*data.train_x, *data.test_x):
            assert row.tobytes() not in wire
            assert row[:2].tobytes() not in wire


def test_a_task_without_its_payload_says_so() -> None:
    with pytest.raises(DataError, match="payload is not here"):
        run_task(VisitTask(packet()[0], HOSPITAL), TaskContext(HOSPITAL, DATA))


def test_broken_samples_are_not_adopted() -> None:
    samples = give("verify", MPVU)
    result = run_task(
        AdoptTask(HOSPITAL, replace(samples, tensors=samples.tensors[:-1])), TaskContext(MPVU)
    )
    assert isinstance(result, AdoptResult)
    assert not result.accepted
    assert "manifest says" in result.note
    strange = run_task(AdoptTask(HOSPITAL, replace(samples, purpose="sell")), TaskContext(MPVU))
    assert strange == AdoptResult(False, "samples for 'sell' are not wanted")


def test_samples_survive_the_journey() -> None:
    back = unpack_samples(*pack_samples(DATA), limit_bytes=LIMIT)
    assert back.show_labels is False
    was, now = DATA.skills[SKILL], back.skills[SKILL]
    assert (was.histogram, was.schema, was.seq) == (now.histogram, now.schema, now.seq)
    assert (was.train_x == now.train_x).all()


@given(st.binary(max_size=400), st.integers(0, 2000))
def test_hostile_samples_raise_wire_errors_only(noise: bytes, at: int) -> None:
    manifest, tensors = pack_samples(NodeData.of(blobs(30)))
    at %= len(tensors)
    hostile = (tensors[:at] + noise + tensors[at + len(noise) :])[: len(tensors)]
    with contextlib.suppress(WireError):
        unpack_samples(manifest, hostile, limit_bytes=LIMIT)


def test_the_runner_needs_no_torch_to_be_imported() -> None:
    code = "import sys, aats.roles.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_warm_up_starts_no_thread() -> None:
    code = (
        "import os; from aats.roles.runner import fork_safe_warmup; fork_safe_warmup();"
        "print(len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.strip() == "1"
