"""One visit: the packet's method works on a node's data, and what came of it is judged.

Theory of operation. The model is loaded and judged on what the packet trusts (the owner's
reference set) and on the node's held-out rows; the method trains; the model is judged again.
The guard then keeps the new weights or undoes the visit: for weights or losses that are not
finite, for a loss that multiplied, for trusted skill that fell too far. Of an undone visit
nothing stays but its count. If the loss grew even on the node's own rows, the steps were too
long (a divergence, which halves later learning rates); if only trust fell, the data were bad.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aats.errors import ModelError
from aats.ids import NodeId, Version
from aats.learning.backend import Backend, LogProbabilities, backend_of
from aats.learning.evaluate import cross_entropy, measure
from aats.learning.harm import accuracy_of_halves, harm
from aats.learning.isolated import in_scope
from aats.learning.measures.options import NONE, Measures
from aats.learning.method import (
    Carry,
    Guard,
    Method,
    Plan,
    Stop,
    Work,
    method_of,
    progress,
    seed_of,
)
from aats.learning.stream import Frame, Player, Script, StreamMethod, alone
from aats.learning.weights import (
    Allocate,
    Tensor,
    check_finite,
    kept,
    reference_of,
    tensor_of,
    write,
)
from aats.node.tasks import FollowResult, VisitResult, VisitTask
from aats.packet import EstimateSource, Header, SkillEstimate, Target
from aats.payload import MODEL, STATE, Manifest, Payload
from aats.roles.data import Batch, NodeData

if TYPE_CHECKING:
    from aats.learning.measures.measure import Stack

TRAINED = "train"
ROLLED_BACK = "rolled-back"
BACKWARD = 3.0
"""Cost of a training step relative to a forward pass: the backward pass is twice that."""


def visit_by(
    method: Method,
    guard: Guard,
    task: VisitTask,
    payload: Payload,
    data: NodeData,
    *,
    node: NodeId,
    allocate: Allocate,
    measures: Measures = NONE,
) -> VisitResult:
    """Let a method work on a node's data, without partners.

    Args:
        method: As the mandate names it (`method_of`).
        guard: When the visit is undone.
        task: The visit.
        payload: The packet's tensors; if writable, a private copy that may be changed.
        data: Of `task.data_of`.
        node: Who computes: signs the estimates.
        allocate: Makes the arena of the payload that leaves; called only if the model changed.
        measures: The counter-measures that the mandate adds.

    Raises:
        ModelError: If the model that came cannot be used.
    """
    script = visit_script(
        method, guard, task, payload, data, node=node, allocate=allocate, measures=measures
    )
    return alone(Player(script, ()))


def visit_script(
    method: Method,
    guard: Guard,
    task: VisitTask,
    payload: Payload,
    data: NodeData,
    *,
    node: NodeId,
    allocate: Allocate,
    measures: Measures = NONE,
) -> Script[VisitResult]:
    """Return the leader's side of a visit that is done with `task.partners`; as `visit_by`.

    A method that knows nothing of streams does it without them.
    """
    header = task.header
    measures.check(header.mandate.architecture)
    stop = replace(
        stop_of(header, task.data_of or node, data, payload),
        compute=task.compute, bandwidth_bps=task.bandwidth_bps,
    )  # fmt: skip
    leads = bool(task.partners) and isinstance(method, StreamMethod)
    plan = method.plan(stop) or (Plan({}) if leads else None)
    if plan is None and not stop.shared:
        return _unchanged(header, payload.manifest, stop, "no work here")
    script = _visit(method, guard, task, payload, data, node, allocate, measures, stop, plan)
    return (yield from in_scope(script, header.mandate.architecture, stop.seed))


def _visit(
    method: Method,
    guard: Guard,
    task: VisitTask,
    payload: Payload,
    data: NodeData,
    node: NodeId,
    allocate: Allocate,
    measures: Measures,
    stop: Stop,
    plan: Plan | None,
) -> Script[VisitResult]:
    header, reference = task.header, reference_of(payload)
    backend = backend_of(header.mandate.architecture)
    model = backend.load(header.mandate.architecture, payload)
    judge = Judge(backend, header, node, reference, data if plan else NodeData())
    before = judge.judge(model)
    if plan is None:
        estimates = judge.estimates(before, payload.manifest.version(MODEL))
        result = _unchanged(header, payload.manifest, stop, "no work here")
        return replace(result, estimates=estimates, loss_before=before.loss, loss_after=before.loss)
    stack = stack_of(measures, backend.subject(model), stop, plan)
    work = Work(stop if stack is None else stack.stop, plan, stack)
    if task.partners and isinstance(method, StreamMethod):
        carry = yield from method.lead(backend.subject(model), work, task.partners)
    else:
        carry = method.train(backend.subject(model), work)
    carry = carry or Carry()
    if stack is not None:
        stack.check()
    tensors = backend.tensors(model, payload)
    own: dict[str, Tensor] = {}
    try:
        check_finite(tensors)
        if stack is not None:
            own = {name: tensor_of(array) for name, array in stack.finish().items()}
            tensors = backend.tensors(model, payload)
            check_finite({**tensors, **own})
        after = judge.judge(model)
        held_to = guard.of_child() if header.branch else guard
        note = guard_against(held_to, before, after)
    except ModelError as error:
        after, note = LOST, str(error)
    passed = BACKWARD * work.samples + 2 * judge.rows
    flops = backend.flops(model) * (passed + (stack.forwards if stack else 0.0))

    result = VisitResult(
        manifest=payload.manifest,
        estimates=(),
        action=ROLLED_BACK if note else TRAINED,
        note=note or carry.note,
        gain=0.0 if note else after.skill - before.skill,
        steps=work.steps,
        samples=work.samples,
        loss_before=before.loss,
        loss_after=before.loss if note else after.loss,
        labels_used=header.labels_used,
        trained={**stop.trained, **carry.trained},
        flops=flops,
    )
    if note:
        diverged = stop.trained["diverged"] + (not after.local <= before.local)
        return replace(
            result,
            estimates=judge.estimates(before, payload.manifest.version(MODEL)),
            trained={**stop.trained, "diverged": diverged},
        )
    state = kept(payload, STATE)
    if carry.state is not None:
        state = {name: tensor_of(array) for name, array in carry.state.items()}
    if stack is not None:
        state = {name: t for name, t in state.items() if not stack.owns(name)} | own
    manifest = write(payload, tensors, state, allocate)
    return replace(
        result,
        manifest=manifest,
        estimates=judge.estimates(after, manifest.version(MODEL)),
        labels_used=_labels_used(header, work, data),
    )


def stack_of(measures: Measures, model: Any, stop: Stop, plan: Plan) -> Stack | None:
    """Return what acts against forgetting in this visit, None for nothing; prepares the model.

    Raises:
        ModelError: If what a measure carried here does not fit the model.
    """
    if not measures:
        return None
    from aats.learning.measures.measure import Stack

    return Stack(measures.start(), model, stop, plan)


def follow_script(
    opening: Frame, header: Header, data: NodeData, *, node: NodeId
) -> Script[FollowResult]:
    """Return a partner's side of a visit that is done elsewhere.

    Args:
        opening: The leader's first frame.
        header: The packet's mandate and numbers.
        data: This node's own.
        node: This node.

    Raises:
        ModelError: If the method has no such side.
        UnknownPluginError: If the method is unknown here.
        ScenarioError: If its parameters are wrong.
    """
    mandate = header.mandate
    method, _, _ = method_of(mandate.method)
    if not isinstance(method, StreamMethod):
        raise ModelError(f"method {mandate.method.name!r} does not work with partners")
    seed = seed_of("follow", mandate.seed, header.hop, node)
    yield from in_scope(method.follow(opening, data, header, seed), mandate.architecture, seed)
    return FollowResult()


def stop_of(header: Header, node: NodeId, data: NodeData, payload: Payload) -> Stop:
    """Return what a method is told of a visit to a node's data."""
    wanted = dict.fromkeys(target.skill for target in header.mandate.requirement)
    state = {}
    for name, array in payload.arrays(STATE).items():
        view = array.view()
        view.flags.writeable = False
        state[name] = view
    return Stop(
        node=node,
        hop=header.hop,
        seed=seed_of("visit", f"{header.mandate.seed}{header.branch}", header.hop, node),
        data={s: data.skills[s] for s in wanted if s in data.skills and data.skills[s].samples},
        trained=progress(header, node),
        state=state,
        shared={skill: x for skill, (x, _) in reference_of(payload).items()},
        show_labels=data.show_labels,
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """A model's standing. `loss` is on the reference set, on local rows if there is none."""

    loss: float
    local: float
    """Loss on the node's held-out rows, 0 without any."""
    skill: float
    """Mean capped skill on the reference set: value / target, at most 1; 0 without one."""
    reference: Mapping[str, LogProbabilities]
    held_out: Mapping[str, LogProbabilities]
    halves: tuple[float, ...] = ()
    """Accuracy on two disjoint halves of the reference set; empty without one."""


LOST = Judgement(math.nan, math.nan, 0.0, {}, {})
"""A model that cannot be judged: not finite."""


class Judge:
    """Judges a model on the packet's reference set and on the node's own rows.

    Rows a node never trains on are used if it holds any back, its training rows otherwise (those
    guard only; no estimate is made of them). A view of samples cannot judge a whole model.
    """

    def __init__(
        self,
        backend: Backend,
        header: Header,
        node: NodeId,
        reference: Mapping[str, Batch],
        data: NodeData,
    ) -> None:
        self._backend, self._node, self._reference = backend, node, reference
        self._targets = header.mandate.requirement
        wanted = {t.skill for t in self._targets}
        held = {s: d for s, d in data.skills.items() if s in wanted and d.samples}
        mine = {s: d for s, d in held.items() if not d.view}
        self._held_out = {s: (d.test_x, d.test_y) for s, d in mine.items() if len(d.test_y)}
        self._own = self._held_out or {s: (d.train_x, d.train_y) for s, d in mine.items()}
        sets = (*self._reference.values(), *self._own.values())
        self.rows = sum(len(y) for _, y in sets)
        """Rows of one judgement."""

    def judge(self, model: Any) -> Judgement:
        """Return the model's standing.

        Raises:
            ModelError: If rows or labels do not fit the model.
        """
        reference, own = self._predict(model, self._reference), self._predict(model, self._own)
        loss_reference = _mean_loss(reference, self._reference)
        local = _mean_loss(own, self._own)
        return Judgement(
            loss=loss_reference if self._reference else local,
            local=local,
            skill=self._capped(reference),
            reference=reference,
            held_out=own if self._held_out else {},
            halves=accuracy_of_halves(reference, self._reference),
        )

    def estimates(self, found: Judgement, version: Version) -> tuple[SkillEstimate, ...]:
        """Return one estimate for each target and each kind of rows there are for it."""
        out = []
        for target in self._targets:
            for source, predicted, sets in (
                (EstimateSource.REFERENCE, found.reference, self._reference),
                (EstimateSource.LOCAL, found.held_out, self._held_out),
            ):
                if target.skill in predicted:
                    m = measure(target.metric, predicted[target.skill], sets[target.skill][1])
                    out.append(
                        SkillEstimate(target.skill, target.metric, m.value, m.low, m.high, m.n,
                                      self._node, source, version)
                    )  # fmt: skip
        return tuple(out)

    def _predict(self, model: Any, sets: Mapping[str, Batch]) -> dict[str, LogProbabilities]:
        return {s: self._backend.log_probabilities(model, x, s) for s, (x, _) in sets.items()}

    def _capped(self, predicted: Mapping[str, LogProbabilities]) -> float:
        shares = [
            capped(t, measure(t.metric, predicted[t.skill], self._reference[t.skill][1]).value)
            for t in self._targets
            if t.skill in predicted
        ]
        return sum(shares) / len(shares) if shares else 0.0


def capped(target: Target, value: float) -> float:
    """Return the share of a target that a value reaches, at most 1."""
    return min(1.0, value / target.value) if target.value > 0 else 1.0


def guard_against(guard: Guard, before: Judgement, after: Judgement) -> str:
    """Return why a visit is to be undone, "" if it may stand."""
    if not (math.isfinite(after.loss) and math.isfinite(after.local)):
        return "the loss is not finite"
    limit = guard.rollback_loss * before.loss + 1.0
    if after.loss > limit:
        return f"loss {before.loss:.3g} -> {after.loss:.3g}, allowed is {limit:.3g}"
    if before.skill - after.skill > guard.rollback_drop:
        return (
            f"trusted skill {before.skill:.3f} -> {after.skill:.3f}, "
            f"allowed is a fall of {guard.rollback_drop:g}"
        )
    done = harm(every=after.halves, without=before.halves)
    if done > guard.reject_harm:
        return f"harm {done:.3f} on each of two samples, allowed is {guard.reject_harm:g}"
    return ""


def _mean_loss(predicted: Mapping[str, LogProbabilities], sets: Mapping[str, Batch]) -> float:
    losses = [cross_entropy(predicted[s], y) for s, (_, y) in sets.items()]
    return sum(losses) / len(losses) if losses else 0.0


def _unchanged(header: Header, manifest: Manifest, stop: Stop, note: str) -> VisitResult:
    return VisitResult(
        manifest, (), TRAINED, note, labels_used=header.labels_used, trained=dict(stop.trained)
    )


def _labels_used(header: Header, work: Work, data: NodeData) -> dict[str, list[float]]:
    """Add the labels drawn; of a node that keeps its histogram, evenly over the classes."""
    used = {skill: list(counts) for skill, counts in header.labels_used.items()}
    for skill, counts in work.labels.items():
        shown = counts if data.show_labels else counts * 0 + counts.mean()
        old = used.get(skill, [])
        width = max(len(old), len(shown))
        padded = [*old, *[0.0] * (width - len(old))]
        for label, count in enumerate(shown.tolist()):
            padded[label] += count
        used[skill] = padded
    return used
