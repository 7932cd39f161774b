"""Conformance check for methods: says in words what is wrong with one.

A method is handed to other people's nodes, so what it may get wrong without an error on its
author's machine is looked for here: randomness that no seed governs, state that stays in the
object, data that it changes, work beside the plan, tensors that cannot travel, measures that
would have no effect.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.backend import SURROGATE
from aats.learning.factors import is_factor
from aats.learning.measures.options import NONE, Measures
from aats.learning.method import MAX_STEPS, Carry, Method, Plan, Stop, Work
from aats.learning.visit import ROLLED_BACK, stop_of
from aats.learning.weights import check_finite, initial_payload, tensor_of
from aats.node.tasks import VisitResult
from aats.packet import Architecture, Header, Target
from aats.payload import MODEL, STATE, Payload
from aats.roles.data import Batch, NodeData
from aats.testing.methods import MLP, NODE, Walk, blobs, header_for

_NODES = (NODE, NodeId("data-2"))
_PULL = Measures(proximal=10.0)
"""Strong enough that no method which minimises `work.loss` ends where it would without."""


def check_method(
    method: Method,
    architecture: Architecture = MLP,
    data: NodeData | None = None,
    measures: Measures = NONE,
    *,
    takes_measures: bool = True,
) -> None:
    """Check that a method keeps its side of the protocol, on visits to small data.

    Args:
        method: To be checked.
        architecture: Of the model it shall train.
        data: What to train on; its skills are wanted. By default three Gaussian clouds.
        measures: Against forgetting, which the mandate asks for.
        takes_measures: Whether the method minimises `work.loss`, or a loss of its own made with
            `work.composed`, so that a mandate's measures act. False for one that does not train
            by a loss; it must then fail with measures rather than be quietly without them.

    Raises:
        AssertionError: Saying what is wrong: not deterministic, state in the object, changed
            data, weights changed without minibatches drawn from the work, a plan beyond the
            data, values that are not finite, tensors lost, renamed or reshaped, state under a
            wrong name or of a dtype that cannot travel, no `Carry`, measures without effect.
    """
    check = _Check(method, architecture, data or NodeData.of(blobs()), measures)
    check.plans()
    first = check.walk(fresh=True)
    if any(one != other for one, other in zip(first, check.walk(fresh=True), strict=True)):
        check.wrong("not deterministic: one seed, two results")
    if any(one != other for one, other in zip(first, check.walk(fresh=False), strict=True)):
        check.wrong(
            "keeps state in the object: a second visit by the same object has another result than "
            "one by a new object, as another node makes it; what must last belongs in Carry.state"
        )
    check.tensors(first)
    check.effect(first[0], takes_measures=takes_measures)


@dataclass(frozen=True, slots=True)
class _Stage:
    """A packet after a visit; two are equal if all that travels is."""

    header: Header
    payload: Payload
    result: VisitResult

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Stage)
            and self.payload.manifest == other.payload.manifest
            and self.header == other.header
        )


class _Watched:
    """A method whose promises are checked while it works."""

    def __init__(self, method: Method, wrong: Callable[[str], NoReturn]) -> None:
        self._method, self._wrong = method, wrong

    def plan(self, stop: Stop) -> Plan | None:
        return self._method.plan(stop)

    def train(self, model: Any, work: Work) -> Carry | None:
        before = _digest(work.stop)
        try:
            carry = self._method.train(model, work)
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            self._wrong(f"writes into what belongs to the packet or the node: {error}")
        if _digest(work.stop) != before:
            self._wrong("changes the node's data in place; take a copy")
        if carry is None:
            return None
        if not isinstance(carry, Carry):
            self._wrong(f"train returned {type(carry).__name__}; allowed are Carry and None")
        self._check(carry)
        return carry

    def _check(self, carry: Carry) -> None:
        for name, array in (carry.state or {}).items():
            if not name.startswith(STATE):
                self._wrong(f"state must be under {STATE!r}: {name}")
            if not isinstance(array, np.ndarray):
                self._wrong(f"{name} is {type(array).__name__}; state is NumPy arrays")
            try:
                check_finite({name: tensor_of(array)})
            except ModelError as error:
                self._wrong(f"{name}: {error}")
        for name, value in carry.trained.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and np.isfinite(value)):
                self._wrong(f"Carry.trained[{name!r}] is {value!r}; a finite number is wanted")
        if not isinstance(carry.note, str):
            self._wrong(f"Carry.note is {carry.note!r}; text is wanted")


class _Check:
    def __init__(
        self, method: Method, architecture: Architecture, data: NodeData, measures: Measures
    ) -> None:
        self._method, self._architecture = method, architecture
        self._data, self._measures = data, measures
        self._pristine = copy.deepcopy(method)
        self._initial = initial_payload(architecture, 0, _reference(data))
        wanted = [Target(skill, 0.9) for skill in data.skills]
        self._header = header_for(architecture, requirement=wanted)

    def wrong(self, what: str) -> NoReturn:
        raise AssertionError(f"{type(self._method).__name__}: {what}")

    def plans(self) -> None:
        """Check the plan at a node with data, and at one with none."""
        stop = stop_of(self._header, NODE, self._data, self._initial)
        plan = self._new().plan(stop)
        if plan != self._new().plan(stop):
            self.wrong("plan differs for the same stop")
        if (nothing := self._new().plan(replace(stop, data={}))) and nothing.total:
            self.wrong(f"plans beyond the data: {nothing.total} steps where the node holds none")
        if plan is None:
            return
        if not isinstance(plan, Plan):
            self.wrong(f"plan returned {type(plan).__name__}; allowed are Plan and None")
        if strange := sorted(set(plan.steps) - set(stop.data)):
            self.wrong(f"plans beyond the data: steps on {strange}, held is {sorted(stop.data)}")
        if plan.batch_size < 1 or any(n < 0 for n in plan.steps.values()):
            self.wrong(f"plans steps or rows below what there can be: {plan}")
        if not plan.total:
            self.wrong("a plan without steps; return None for no work")
        if plan.total > MAX_STEPS:
            self.wrong(f"plans {plan.total} steps; a visit has at most {MAX_STEPS}")
        if sum(1 for _ in Work(stop, plan)) != plan.total:
            self.wrong(f"the plan's {plan.total} steps cannot be drawn")

    def walk(self, *, fresh: bool, measures: Measures | None = None) -> list[_Stage]:
        """Return a packet's stages on two visits, each by a new object or both by one."""
        walk = Walk(self._header, self._initial)
        used = self._new()
        stages = []
        for node in _NODES:
            method = _Watched(self._new() if fresh else used, self.wrong)
            result = walk.visit(
                method, self._data, node, measures=self._measures if measures is None else measures
            )
            stages.append(_Stage(walk.header, walk.payload, result))
        return stages

    def tensors(self, stages: list[_Stage]) -> None:
        """Check what left each visit against what set out."""
        before = self._initial.manifest
        old = {t.name: (t.dtype, t.shape) for t in before.tensors}
        for stage in stages:
            result = stage.result
            if result.action == ROLLED_BACK:
                self.wrong(result.note)
            stage.payload.verify()
            if not result.steps and stage.payload.manifest.version(MODEL) != before.version(MODEL):
                self.wrong("weights changed, but no minibatch was drawn from the work")
            new = {t.name: (t.dtype, t.shape) for t in stage.payload.manifest.tensors}
            if lost := sorted(n for n in old if new.get(n) != old[n]):
                self.wrong(f"tensors lost, renamed or reshaped: {', '.join(lost)}")
            added = [n for n in new if n not in old and not is_factor(n.removeprefix(MODEL))]
            if strange := sorted(n for n in added if not n.startswith(STATE)):
                self.wrong(f"state must be under {STATE!r}: {', '.join(strange)}")

    def effect(self, stage: _Stage, *, takes_measures: bool) -> None:
        """Check that a measure acts, or fails, where the visit trains several steps on weights."""
        changed = stage.payload.manifest.version(MODEL) != self._initial.manifest.version(MODEL)
        if self._architecture.name == SURROGATE or not changed or stage.result.steps < 2:
            return
        pulled = replace(self._measures, proximal=_PULL.proximal)
        try:
            found = self.walk(fresh=True, measures=pulled)[0].payload.manifest
        except ModelError as error:
            if takes_measures:
                self.wrong(f"ignores work.loss, so a mandate's measures would fail: {error}")
            return
        if found.version(MODEL) == stage.payload.manifest.version(MODEL):
            self.wrong(
                "asks for work.loss but does not minimise it: a mandate's measures would have no "
                "effect"
            )

    def _new(self) -> Method:
        return copy.deepcopy(self._pristine)


def _digest(stop: Stop) -> list[bytes]:
    return [
        array.tobytes()
        for data in stop.data.values()
        for array in (data.train_x, data.train_y, data.test_x, data.test_y)
    ]


def _reference(data: NodeData) -> Mapping[str, Batch]:
    return {s: (d.test_x, d.test_y) for s, d in data.skills.items()}
