"""Children of a fork made one model again, and judged; and two siblings that meet at a stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.backend import backend_of
from aats.learning.merge import Child, Mean, merge, merge_rule
from aats.learning.method import method_of, seed_of
from aats.learning.stream import Script
from aats.learning.visit import LOST, Judge, Judgement, guard_against
from aats.learning.weights import Allocate, reference_of
from aats.node.tasks import MergeResult, MergeTask, Result, VisitResult
from aats.packet import Header
from aats.payload import MODEL, Manifest, Payload
from aats.roles.data import Batch, NodeData


def rejoin(
    task: MergeTask,
    trunk: Payload,
    children: Sequence[Payload],
    *,
    node: NodeId,
    allocate: Allocate,
) -> MergeResult:
    """Merge what a packet's children brought back, and judge it on what the packet trusts.

    The method's guard holds for a merge as for a visit: one that multiplies the loss, lets trusted
    skill fall too far or is not finite is undone, and the trunk keeps its model.

    Args:
        task: The merge.
        trunk: The packet's tensors as it forked.
        children: Those of `task.parts`, in order.
        node: Who computes: signs the estimates.
        allocate: Makes the arena of the payload that leaves.

    Raises:
        ModelError: If no child can be used, or the rule refuses.
        UnknownPluginError: If the rule or the method is unknown here.
        ScenarioError: If its parameters are wrong.
    """
    mandate = task.header.mandate
    method, guard, measures = method_of(mandate.method)
    parts = [
        Child(payload, part.samples, part.nodes)
        for payload, part in zip(children, task.parts, strict=True)
    ]
    seed = seed_of("merge", mandate.seed, task.header.hop)
    before, _ = _judged(task.header, trunk, node, seed)

    def attempt(children: Sequence[Child]) -> MergeResult:
        arenas: list[memoryview] = []

        def arena(total: int) -> memoryview:
            arenas.append(allocate(total))
            return arenas[-1]

        made = merge(merge_rule(task.rule), method, trunk, children, arena, measures)
        merged = Payload(made.manifest, arenas[-1] if arenas else trunk.arena)
        after, judge = _judged(task.header, merged, node, seed)
        notes = [made.left_out[i] for i in sorted(made.left_out)]
        undone = guard_against(guard, before, after)
        result = MergeResult(
            manifest=merged.manifest,
            estimates=(),
            note="; ".join([undone, *notes] if undone else notes),
            gain=after.skill - before.skill,
            loss_before=before.loss,
            loss_after=after.loss,
            left_out=tuple(sorted(made.left_out)),
        )
        if undone:
            version = trunk.manifest.version(MODEL)
            return replace(
                result, manifest=trunk.manifest, gain=0.0, loss_after=before.loss,
                estimates=judge.estimates(before, version),
            )  # fmt: skip
        return replace(result, estimates=judge.estimates(after, merged.manifest.version(MODEL)))

    result: MergeResult | ModelError
    try:
        result = attempt(parts)
        if result.manifest != trunk.manifest:
            return result
    except ModelError as error:
        result = error
    sound = [replace(p, fault=_fault_of(task.header, trunk, p, node, seed)) for p in parts]
    if any(part.fault for part in sound):  # those that nobody can use shall not stop the others
        return attempt(sound)
    if isinstance(result, ModelError):
        raise result
    return result


def _fault_of(header: Header, trunk: Payload, child: Child, node: NodeId, seed: int) -> str:
    """Return why a child by itself is no model that can be judged, "" if it is one."""
    found, _ = _judged(header, child.payload, node, seed, reference_of(trunk))
    who = ", ".join(child.nodes) or "nowhere"
    return f"the copy from {who} cannot be judged" if found is LOST else ""


def _judged(
    header: Header, payload: Payload, node: NodeId, seed: int,
    reference: Mapping[str, Batch] | None = None,
) -> tuple[Judgement, Judge]:  # fmt: skip
    backend = backend_of(header.mandate.architecture)
    with backend.scope(seed):
        sets = reference_of(payload) if reference is None else reference
        judge = Judge(backend, header, node, sets, NodeData())
        try:
            found = judge.judge(backend.load(header.mandate.architecture, payload))
        except ModelError:
            found = LOST
        return found if math.isfinite(found.loss) else LOST, judge


def meet(own: Payload, sibling: Payload) -> Payload:
    """Return a packet's payload with the mean of its model and a sibling's in the model's place.

    Raises:
        ModelError: If one of the two is not finite, or they do not fit.
    """
    arenas: list[memoryview] = []

    def arena(total: int) -> memoryview:
        arenas.append(memoryview(bytearray(total)))
        return arenas[-1]

    both = [Child(own, 1, ()), Child(sibling, 1, ())]
    made = merge(Mean("equal"), None, own, both, arena)
    if made.left_out:
        raise ModelError("; ".join(made.left_out.values()))
    return Payload(made.manifest, arenas[-1] if arenas else own.arena)


def after_meeting(script: Script[Result], own: Manifest, mean: Manifest) -> Script[Result]:
    """Play a visit to a mean; where it left that as it was, the packet keeps the model it had."""
    result = yield from script
    if isinstance(result, VisitResult) and result.manifest == mean:
        return replace(result, manifest=own, estimates=())
    return result
