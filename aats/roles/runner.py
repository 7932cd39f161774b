"""Runs any task a core commands, live in a worker process or in line in the simulated world.

Importing this needs no torch; running a visit, a probe or a verdict on a torch model does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aats.errors import DataError, WireError
from aats.ids import NodeId
from aats.learning.method import method_of, seed_of
from aats.learning.probe import probe, probe_payload
from aats.learning.rejoin import after_meeting, meet, rejoin
from aats.learning.stream import Player, Script, alone, frame_of
from aats.learning.visit import follow_script, visit_script
from aats.messages import ProbeAsk, ProbeReply, RefusalReason, Samples
from aats.node.tasks import (
    AdoptResult,
    AdoptTask,
    BatchTask,
    ContributeResult,
    ContributeTask,
    FollowTask,
    MergeTask,
    ProbeResult,
    ProbeTask,
    Result,
    Task,
    VerifyTask,
    VisitTask,
)
from aats.payload import Payload
from aats.roles.data import Batch, NodeData
from aats.roles.mpvu import TestSet, verify
from aats.roles.samples import held_out_part, pack_samples, training_part, unpack_samples

VERIFY = "verify"
TRAIN = "train"
"""What samples are given for (`Samples.purpose`)."""


def _bytes(total: int) -> memoryview:
    return memoryview(bytearray(total))


@dataclass(slots=True)
class TaskContext:
    """What a node has to work with. `test_set` and `entrusted` grow by `AdoptTask`."""

    node: NodeId
    data: NodeData = field(default_factory=NodeData)
    entrusted: dict[NodeId, NodeData] = field(default_factory=dict)
    """Data of others, given to this compute node to work on."""
    test_set: TestSet = field(default_factory=TestSet)
    """Of a verification unit."""
    payload: Payload | None = None
    """Of the packet the task is about. Writable means private: a visit may change the bytes."""
    others: tuple[Payload, ...] = ()
    """The further ones it reads (`aats.node.tasks.others_of`), in order."""
    allocate: Callable[[int], memoryview] = _bytes
    """Makes the arena of the payload that leaves."""
    probe_samples: int = 16
    """Rows of a minibatch, over all skills asked."""
    probe_noise: float = 0.0
    """Deviation of the noise on scores, as a share of each score's range."""
    secret: int = 0
    """The node's own seed: of its minibatches, its noise, and what it gives away."""
    contribution: int = 32
    """Rows of each skill given to a test set, at most."""
    limit_bytes: int = 1 << 28
    """Of samples or of a model that others send along with a request."""


def run_task(task: Task, context: TaskContext) -> Result:
    """Run one task that needs nobody else.

    Raises:
        AatsError: If it cannot be done; the message says why.
    """
    match task:
        case VisitTask() | FollowTask():
            return alone(player_of(task, context))
        case MergeTask():
            return rejoin(
                task, _payload(context), context.others,
                node=context.node, allocate=context.allocate,
            )  # fmt: skip
        case ProbeTask():
            return ProbeResult(_probe(task, context))
        case BatchTask():
            return ProbeResult(_batch(task.ask, context))
        case VerifyTask():
            return verify(
                task, _payload(context), context.test_set,
                node=context.node, allocate=context.allocate,
            )  # fmt: skip
        case ContributeTask():
            return ContributeResult(_contribute(task, context))
        case AdoptTask():
            return _adopt(task, context)


def player_of(task: VisitTask | FollowTask, context: TaskContext) -> Player[Result]:
    """Return this node's side of a visit that several nodes may do together, not started.

    Whoever drives it gets the errors that `run_task` would raise.
    """
    script: Script[Result]
    if isinstance(task, VisitTask):
        method, guard, measures = method_of(task.header.mandate.method)
        own = _payload(context)
        payload = meet(own, *context.others) if task.met else own
        script = visit_script(
            method, guard, task, payload, _data_of(task.data_of, context),
            node=context.node, allocate=context.allocate, measures=measures,
        )  # fmt: skip
        if task.met:
            script = after_meeting(script, own.manifest, payload.manifest)
        return Player(script, (p.node for p in task.partners))
    script = follow_script(frame_of(task.opening), task.about, context.data, node=context.node)
    others = {task.leader, *task.partners} - {context.node}
    return Player(script, others, task.leader)


def fork_safe_warmup() -> None:
    """Load what tasks need, so that forked processes have it: torch, and one forward pass.

    No backward pass: autograd starts threads, and threads do not survive a fork.
    """
    import torch
    import torch._dynamo

    import aats.learning.modules
    import aats.learning.sequential

    torch.set_num_threads(1)
    with torch.no_grad():
        torch.nn.Linear(2, 2)(torch.zeros(1, 2))
    del aats


def _payload(context: TaskContext) -> Payload:
    if context.payload is None:
        raise DataError(f"{context.node}: the packet's payload is not here")
    return context.payload


def _data_of(node: NodeId, context: TaskContext) -> NodeData:
    """Return a node's data, ours or entrusted; none if we do not have any."""
    if node in ("", context.node):
        return context.data
    return context.entrusted.get(node, NodeData())


def _minibatch(ask: ProbeAsk, context: TaskContext) -> NodeData:
    """Return this node's minibatch for a request: the same for the same request."""
    data = _data_of(ask.data_of, context)
    skills = [data.skills[s] for s in ask.skills if s in data.skills]
    held = [s for s in skills if s.samples]
    size = max(1, context.probe_samples // max(1, len(held)))
    seed = seed_of("minibatch", context.secret, context.node, ask.packet, ask.seed)
    return NodeData.of(*(training_part(s, size, seed) for s in held), show_labels=data.show_labels)


def _probe(task: ProbeTask, context: TaskContext) -> ProbeReply:
    ask = task.ask
    if task.batch is not None and task.batch.refused:
        return task.batch
    if task.batch is not None:
        data = unpack_samples(
            task.batch.manifest, task.batch.tensors, limit_bytes=context.limit_bytes
        )
    else:
        data = _minibatch(ask, context)
    batch: dict[str, Batch] = {
        s: (d.train_x, d.train_y) for s, d in data.skills.items() if s in ask.skills and d.samples
    }
    if not batch:
        return ProbeReply(refused=f"{RefusalReason.UNKNOWN}: no data for these skills")
    carried = task.header is not None
    payload = _payload(context) if carried else probe_payload(ask, limit_bytes=context.limit_bytes)
    scores = probe(
        ask.architecture, payload, batch, lr=ask.method_lr, seed=ask.seed,
        noise=0.0 if carried else context.probe_noise,
        noise_seed=seed_of("noise", context.secret, ask.packet, ask.version, ask.seed),
    )  # fmt: skip
    return ProbeReply(scores=scores)


def _batch(ask: ProbeAsk, context: TaskContext) -> ProbeReply:
    data = _minibatch(ask, context)
    if not data:
        return ProbeReply(refused=f"{RefusalReason.UNKNOWN}: no data for these skills")
    manifest, tensors = pack_samples(data)
    return ProbeReply(manifest=manifest, tensors=tensors)


def _contribute(task: ContributeTask, context: TaskContext) -> Samples:
    data = context.data
    if task.purpose == VERIFY:
        seed = seed_of("contribute", context.secret, context.node)
        data = NodeData.of(
            *(held_out_part(s, context.contribution, seed) for s in data.skills.values())
        )
    elif task.purpose != TRAIN:
        raise DataError(f"samples for {task.purpose!r}: allowed are {VERIFY!r} and {TRAIN!r}")
    manifest, tensors = pack_samples(data)
    return Samples(task.purpose, task.incarnation, manifest, tensors)


def _adopt(task: AdoptTask, context: TaskContext) -> AdoptResult:
    samples = task.samples
    try:
        data = unpack_samples(samples.manifest, samples.tensors, limit_bytes=context.limit_bytes)
    except WireError as error:
        return AdoptResult(False, str(error))
    if samples.purpose == VERIFY:
        return AdoptResult(True, context.test_set.adopt(task.giver, data))
    if samples.purpose == TRAIN:
        context.entrusted[task.giver] = data
        return AdoptResult(True)
    return AdoptResult(False, f"samples for {samples.purpose!r} are not wanted")
