from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from aats.identity import Identity
from aats.ids import NodeId, PacketId
from aats.learning.method import Carry, Plan, Stop, Work, local
from aats.node import executor as executor_module
from aats.node.executor import Executor, Line, TaskError, fork_zygote
from aats.node.pace import Pace, effort
from aats.node.shard import FILE_NAME, save_data
from aats.node.spec import WorkSettings
from aats.node.tasks import (
    AdoptResult,
    AdoptTask,
    ContributeResult,
    ContributeTask,
    Lost,
    Spoken,
    Task,
    VerifyTask,
    VisitResult,
    VisitTask,
)  # fmt: skip
from aats.node.worker import LENGTH, Job, given_directory
from aats.packet import (
    UNLIMITED,
    Architecture,
    Header,
    Mandate,
    Owner,
    PacketKind,
    Plugin,
    Target,
)  # fmt: skip
from aats.payload import Payload, pack
from aats.roles.data import NodeData, SkillData
from aats.roles.owner import make_packet
from aats.wire import decode_told, encode_task

NODE = NodeId("worker")
LIMIT_BYTES = 1 << 28
OWNER = Identity.from_seed(NodeId("owner"), b"test")


@dataclass(frozen=True)
class Hostile:
    """A method that does what a method must not do."""

    how: str = ""
    name: ClassVar[str] = "saboteur"

    def plan(self, stop: Stop) -> Plan | None:
        if self.how == "raise":
            raise RuntimeError("no")
        if self.how == "segfault":
            faulthandler.disable()
            ctypes.string_at(0)
        if self.how == "exit":
            os._exit(0)
        if self.how == "sys-exit":
            sys.exit("enough")
        if self.how == "memory":
            _ = [bytearray(1 << 24) for _ in range(64)]
        while self.how == "hang":
            signal.pause()
        return None

    def train(self, model: Any, work: Work) -> Carry | None:
        return None


local("saboteur", Hostile)


def _data(seed: int) -> NodeData:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(60, 4)), rng.integers(0, 2, 60)
    return NodeData.of(SkillData.of("a", x, y, num_classes=2))


def _packet(method: Plugin) -> tuple[Header, Payload]:
    payload = pack({"model.w": np.arange(12, dtype=np.float32)})
    mandate = Mandate(
        id=PacketId("018f0000-0000-7000-8000-000000000001"), kind=PacketKind.TRAIN,
        owner=Owner(OWNER.node, OWNER.public_key), created=0.0, deadline=1e12,
        requirement=(Target("a", 0.9),), budget=UNLIMITED, architecture=Architecture("mlp"),
        method=method, policy=Plugin("random"), seed=1,
    )  # fmt: skip
    return Header(mandate, manifest=payload.manifest), payload


class Bench:
    """A node's directory, and an executor for it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.memory_bytes = directory, LIMIT_BYTES
        save_data(directory / FILE_NAME, _data(0))
        self.executor = Executor(fork_zygote([directory]))
        self.executor.start()

    def job(self, task: Task, payload: Payload | None = None, incarnation: int = 1) -> Job:
        path = self.directory / "payload"
        if payload is not None:
            path.write_bytes(payload.arena)
        return Job(
            number=1, node=NODE, directory=str(self.directory), incarnation=incarnation,
            kind=type(task).__name__, task=encode_task(task), payload=str(path),
            outcome=str(self.directory / "outcome"),
            settings=WorkSettings(memory_bytes=self.memory_bytes),
        )  # fmt: skip

    async def visit(self, how: str, timeout_s: float = 30.0) -> VisitResult:
        header, payload = _packet(Plugin("saboteur", {"how": how}))
        event = await self.executor.run(self.job(VisitTask(header, NODE), payload), timeout_s)
        assert isinstance(event.result, VisitResult)
        return event.result


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.executor.close()


async def test_a_task_takes_as_long_as_the_node_it_imitates_would(bench: Bench) -> None:
    header, payload = _packet(Plugin("saboteur"))
    task = VisitTask(header, NODE)
    slow = Pace(samples_per_s=1.0, joules_per_sample=2.0, overhead_s=3.0)
    done = await bench.executor.run(replace(bench.job(task, payload), pace=slow), 30.0)
    assert done.spending == slow.spending(effort(task, done.result))
    swift = replace(slow, overhead_s=0.0)
    done = await bench.executor.run(replace(bench.job(task, payload), pace=swift), 30.0)
    assert done.spending.seconds > 0, "what it really took is more"


async def test_a_task_too_slow_for_the_node_it_imitates_is_a_failure(bench: Bench) -> None:
    header, payload = _packet(Plugin("saboteur"))
    job = replace(bench.job(VisitTask(header, NODE), payload), pace=Pace(overhead_s=1e6))
    with pytest.raises(TaskError, match="ran longer than 2 s"):
        await bench.executor.run(job, 2.0)


async def test_a_visit_runs_in_a_process_of_its_own_and_answers(bench: Bench) -> None:
    result = await bench.visit("")
    header, _ = _packet(Plugin("noop"))
    assert result.manifest == header.manifest
    assert not (bench.directory / "outcome").exists()


@pytest.mark.parametrize("there_before", [0, 8, 4096])
async def test_a_visit_writes_what_leaves_and_not_what_came(
    bench: Bench, there_before: int
) -> None:
    y = np.arange(60) % 2
    rows = SkillData.of("a", y[:, None].astype(np.float32), y, num_classes=2)
    save_data(bench.directory / FILE_NAME, NodeData.of(rows))
    header, payload = make_packet(
        OWNER,
        Architecture("surrogate", {"classes": {"a": 2}}),
        (Target("a", 0.9),),
        created=0.0,
        method=Plugin("surrogate"),
    )
    if there_before:
        (bench.directory / "outcome").write_bytes(b"\xff" * there_before)
    event = await bench.executor.run(bench.job(VisitTask(header, NODE), payload), 30.0)
    assert isinstance(event.result, VisitResult)
    new = event.result.manifest
    assert new.version() != payload.manifest.version()
    left = (bench.directory / "outcome").read_bytes()
    Payload(new, memoryview(left)).verify()
    assert len(left) == max(new.total, there_before)
    assert (bench.directory / "payload").read_bytes() == bytes(payload.arena)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "failed: RuntimeError: no"),
        ("segfault", "crashed: its process was ended by SIGSEGV"),
        ("exit", "crashed: its process ended with status 0 and no answer"),
        ("sys-exit", "failed: SystemExit: enough"),
        ("memory", "MemoryError"),
    ],
)
async def test_whatever_a_method_does_is_a_failed_task(bench: Bench, how: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        await bench.visit(how)
    await bench.visit("")


async def test_a_task_that_hangs_is_stopped_at_its_limit(bench: Bench) -> None:
    with pytest.raises(TaskError, match=r"longer than 0\.2 s"):
        await bench.visit("hang", timeout_s=0.2)
    await bench.visit("")


async def test_a_cancelled_task_leaves_no_process(bench: Bench) -> None:
    started = asyncio.Event()
    header, payload = _packet(Plugin("saboteur", {"how": "hang"}))
    job = bench.job(VisitTask(header, NODE), payload)
    running = asyncio.create_task(bench.executor.run(job, 30.0, started.set))
    await asyncio.wait_for(started.wait(), 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await bench.visit("")
    async with asyncio.timeout(30):
        while len(bench.executor._children) > 1:  # but for the one ahead, all are reaped
            bench.executor._ended.clear()
            await bench.executor._ended.wait()


async def test_an_unknown_method_is_a_failed_task(bench: Bench) -> None:
    header, payload = _packet(Plugin("no-such-method"))
    with pytest.raises(TaskError, match=r"unknown aats\.methods 'no-such-method'"):
        await bench.executor.run(bench.job(VisitTask(header, NODE), payload), 30.0)


async def test_samples_given_to_a_node_are_there_for_its_later_tasks(bench: Bench) -> None:
    async def run(task: Task, incarnation: int = 1) -> object:
        return (await bench.executor.run(bench.job(task, payload, incarnation), 30.0)).result

    header, payload = _packet(Plugin("noop"))
    bench.memory_bytes = 0
    given = await run(ContributeTask("verify", NODE, 1))
    assert isinstance(given, ContributeResult)
    adopted = await run(AdoptTask(NodeId("giver"), given.samples))
    assert isinstance(adopted, AdoptResult)
    assert adopted.accepted
    assert (given_directory(bench.directory) / "1" / "verify.giver.task").exists()
    refused = await run(AdoptTask(NodeId("other"), replace(given.samples, purpose="keep")))
    assert isinstance(refused, AdoptResult)
    assert not refused.accepted
    assert len(list((given_directory(bench.directory) / "1").iterdir())) == 1

    # The model of the packet is no model, which only a node with a test set finds out.
    with pytest.raises(TaskError, match=r"mlp|tensor|model"):
        await run(VerifyTask(header))
    with pytest.raises(TaskError, match="test set has nothing"):
        await run(VerifyTask(header), incarnation=2)


async def test_a_sender_that_floods_a_task_is_lost_to_it_and_the_others_are_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor_module, "MAX_TOLD_BY_ONE", 3000)
    line = Line(lambda event: None)
    flood = Spoken(NodeId("rogue"), "x", pack({"w": np.zeros(100)}).manifest, bytes(800))
    assert all(line.tell(flood) for _ in range(50))
    assert line.tell(Spoken(NodeId("other"), "word"))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        writing = asyncio.create_task(line.write(ours))
        await asyncio.sleep(0.1)
        writing.cancel()
        data, told = theirs.recv(1 << 20), []
    while data:
        size = LENGTH.unpack_from(data)[0] + LENGTH.size
        told.append(decode_told(data[LENGTH.size : size]))
        data = data[size:]
    assert told[-2:] == [Lost(NodeId("rogue")), Spoken(NodeId("other"), "word")]
    assert 1 <= len(told) - 2 <= 3
