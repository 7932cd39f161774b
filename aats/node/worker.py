"""What a task's process does: read one job, set its limits, run the task, answer, end.

A task that works with other nodes (`aats.learning.stream`) speaks with its daemon meanwhile, on
the same channel: what it says are `TaskSpoke` events, what it is told comes between them.

The process is forked from a worker zygote for this one task, so a crash, a leak or a hang in a
method touches nothing else. The packet's payload is copied (the custody file stays as it
arrived), the new payload is written straight into the file that will be handed on.
Samples that other nodes gave lie as files in the node's directory and are read by each task
that needs them; they belong to one incarnation of the node.
"""

from __future__ import annotations

import fcntl
import mmap
import resource
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from aats.identity import Identity
from aats.ids import NodeId
from aats.learning.stream import Player, Send, spoken_of
from aats.node.events import TaskFailed, TaskFinished, TaskSpoke
from aats.node.pace import Pace, effort
from aats.node.shard import FILE_NAME, load_data
from aats.node.spec import WorkSettings
from aats.node.tasks import (
    AdoptResult,
    AdoptTask,
    FollowTask,
    Result,
    Spending,
    Told,
    VisitTask,
    others_of,
)
from aats.packet import Architecture, Header, Plugin, Target
from aats.payload import Payload
from aats.roles.data import NodeData
from aats.roles.mpvu import TestSet
from aats.roles.owner import make_packet
from aats.roles.runner import TaskContext, player_of, run_task
from aats.spool import Arena
from aats.wire import decode_task, decode_told, encode_event, encode_task

MAX_JOB_BYTES = 1 << 30
MAX_REASON = 500
"""Characters kept of a failure's reason."""
LENGTH = struct.Struct("!Q")
"""Before a job and before its answer: size in bytes."""


@dataclass(frozen=True, slots=True)
class Job:
    """One task with all a fresh process needs to run it."""

    number: int
    """The core's number of the task."""
    node: NodeId
    directory: str
    """The node's; holds `data.safetensors` and what others gave."""
    incarnation: int
    kind: str
    """The task's, in words for people."""
    task: bytes
    """`wire.encode_task`."""
    payload: str = ""
    """File with the packet's tensors, "" where the task has none."""
    others: tuple[str, ...] = ()
    """Files with the further payloads the task reads, in order."""
    outcome: str = ""
    """File that takes the new tensors."""
    settings: WorkSettings = WorkSettings()
    watts: float = 0.0
    """Power one busy core draws, for the joules of the answer."""
    pace: Pace | None = None
    """The node it imitates, where that is slower than this machine; its outcome says how long the
    node would have taken. None: as fast as it can."""


def encode_job(job: Job) -> bytes:
    """Return a job as bytes, its length first."""
    body = msgspec.msgpack.encode(job)
    return LENGTH.pack(len(body)) + body


# --- in the task's process --------------------------------------------------------------------

_preloaded: dict[Path, tuple[int, NodeData]] = {}
"""Data by file, with the file's time of change in nanoseconds."""


def preload_data(directory: Path) -> None:
    """Read a node's data now, so that processes forked from this one have them."""
    path = directory / FILE_NAME
    if path.exists():
        _preloaded[path] = path.stat().st_mtime_ns, load_data(path)


def _own_data(directory: Path) -> NodeData:
    path = directory / FILE_NAME
    changed_ns, data = _preloaded.get(path, (0, NodeData()))
    if path.exists() and path.stat().st_mtime_ns != changed_ns:
        return load_data(path)
    return data


def rehearse() -> None:
    """Do a small visit without training: processes forked from this one find it all done once.

    What is compiled, looked up or loaded at first use costs 50 ms. There is no backward pass:
    autograd starts threads, and threads do not survive a fork.
    """
    owner = Identity.from_seed(NodeId("rehearsal"), b"")
    rows = np.zeros((2, 2), np.float32), np.arange(2)
    header, payload = make_packet(
        owner,
        Architecture("mlp", {"features": 2, "hidden": [2], "classes": 2}),
        (Target("rehearsal", 1.0),),
        created=0.0,
        method=Plugin("noop"),
        reference={"rehearsal": rows},
    )
    task = decode_task(encode_task(VisitTask(header, owner.node)))
    result = run_task(task, TaskContext(owner.node, payload=payload))
    encode_event(TaskFinished(1, result))


def limit_memory(limit_bytes: int) -> None:
    """Let this process map at most `limit_bytes` more than it has now (Linux only)."""
    if limit_bytes and sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        total = pages * mmap.PAGESIZE + limit_bytes
        resource.setrlimit(resource.RLIMIT_AS, (total, total))


def be_first_to_die() -> None:
    """Have the kernel choose this process when memory runs out, not a daemon (Linux only)."""
    if sys.platform == "linux":
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")


def child_main(argument: str, fds: list[int]) -> None:
    """Run the one job that comes over `fds[0]` and answer on it. `argument` is for people."""
    del argument
    with socket.socket(fileno=fds[0]) as channel:
        size = LENGTH.unpack(_read(channel, LENGTH.size))[0]
        if size > MAX_JOB_BYTES:
            raise ValueError(f"job of {size} bytes, allowed are {MAX_JOB_BYTES}")
        job = msgspec.msgpack.decode(_read(channel, size), type=Job)
        answer = encode_event(perform(job, Talk(channel, job)))
        channel.sendall(LENGTH.pack(len(answer)) + answer)


class Talk:
    """The task's end of the channel, while its script talks with other nodes."""

    def __init__(self, channel: socket.socket, job: Job) -> None:
        self._channel, self._job = channel, job
        self._cpu = time.process_time()
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)

    def play(self, player: Player[Result]) -> Result:
        """Play a script to its end: frames go to the daemon, what it tells goes to the script."""
        self._say(player.start())
        while (wanted := player.waiting) is not None:
            until = time.monotonic() + wanted.timeout_s
            while player.waiting is wanted:
                told = self._next(until - time.monotonic())
                self._say(player.time_out() if told is None else player.take(told))
        return player.outcome()

    def _say(self, sent: list[Send]) -> None:
        for send in sent:
            joules = (time.process_time() - self._cpu) * self._job.watts
            data = encode_event(TaskSpoke(self._job.number, spoken_of(send, joules)))
            self._channel.sendall(LENGTH.pack(len(data)) + data)

    def _next(self, wait_s: float) -> Told | None:
        if not self._poll.poll(max(0.0, wait_s) * 1000):
            return None
        size = LENGTH.unpack(_read(self._channel, LENGTH.size))[0]
        return decode_told(memoryview(_read(self._channel, size)))


def perform(job: Job, talk: Talk | None = None) -> TaskFinished | TaskFailed:
    """Run a job in this process under its limits; an exception comes back as a failure.

    Args:
        job: What to do.
        talk: How to speak with other nodes; None for a job that does not.
    """
    be_first_to_die()
    started, cpu = time.perf_counter(), time.process_time()
    try:
        result = _run(job, talk)
        work = effort(decode_task(job.task), result) if job.pace else 0.0
    except (Exception, SystemExit) as e:  # noqa: BLE001 - the top of a process: report it
        return TaskFailed(job.number, f"{type(e).__name__}: {e}"[:MAX_REASON])
    joules = (time.process_time() - cpu) * job.watts
    spent = Spending(time.perf_counter() - started, joules)
    paced = job.pace.spending(work) if job.pace else spent
    return TaskFinished(job.number, result, max(spent, paced, key=lambda s: s.seconds))


def _read(channel: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = channel.recv_into(view)
        if not got:
            raise EOFError("the daemon closed the channel of a task")
        view = view[got:]
    return data


def _run(job: Job, talk: Talk | None) -> Result:
    task = decode_task(job.task)
    header: Header | None = getattr(task, "header", None)
    context = TaskContext(
        node=job.node,
        data=_own_data(Path(job.directory)),
        allocate=lambda total: _create(Path(job.outcome), total),
        probe_samples=job.settings.probe_samples,
        probe_noise=job.settings.probe_noise,
        secret=job.settings.secret,
        contribution=job.settings.contribution,
        test_set=TestSet(min_contributors=job.settings.min_contributors),
    )
    if header is not None:
        arena = _load(Path(job.payload), header.manifest.total)
        context.payload = Payload(header.manifest, arena)
        context.others = tuple(
            Payload(other.manifest, _load(Path(path), other.manifest.total))
            for other, path in zip(others_of(task), job.others, strict=True)
        )
    limit_memory(job.settings.memory_bytes)
    given = given_directory(Path(job.directory)) / str(job.incarnation)
    if given.exists():
        for path in sorted(p for p in given.iterdir() if p.suffix == ".task"):
            run_task(decode_task(path.read_bytes()), context)
    if talk is not None and isinstance(task, VisitTask | FollowTask):
        return talk.play(player_of(task, context))
    result = run_task(task, context)
    if isinstance(task, AdoptTask) and isinstance(result, AdoptResult) and result.accepted:
        _keep(given / f"{task.samples.purpose}.{task.giver}.task", job.task)
    return result


def given_directory(directory: Path) -> Path:
    """Return where a node keeps what others gave it, a folder for each of its incarnations."""
    return directory / "given"


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(data)
    temporary.replace(path)


def _load(path: Path, size: int) -> memoryview:
    """Return a copy of a payload's file in huge pages.

    Reading all of it so costs a quarter of what touching a private mapping page by page does.
    """
    if size == 0:
        return memoryview(bytearray())
    copy = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        copy.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(copy)
    with path.open("rb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # the store does not recycle a file that is being read
        while view:
            got = file.readinto(view)
            if not got:
                raise EOFError(f"{path}: {len(view)} of {size} bytes missing")
            view = view[got:]
    return memoryview(copy)


def _create(path: Path, size: int) -> memoryview:
    """Return the file of the payload that leaves, mapped; one that is there is used anew."""
    if size == 0:
        return memoryview(bytearray())
    fits = path.exists() and path.stat().st_size >= size
    arena = Arena.open(path) if fits else Arena.create(path, size)
    return arena.view(size, writable=True)
