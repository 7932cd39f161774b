"""The test set of a model performance verification unit (DA-ITN MPVU), and its verdicts.

The set is made of small shares that data nodes give. It is deduplicated by row, its version is
a content hash that does not depend on the order of arrival, and a giver whose labels disagree
with what all the others say about like rows is left out (an outlier site). Samples never leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.backend import LogProbabilities, backend_of
from aats.learning.evaluate import measure, wilson
from aats.learning.harm import remove_harmful
from aats.learning.method import method_of, seed_of
from aats.learning.weights import Allocate, kept, write
from aats.node.tasks import VerifyResult, VerifyTask
from aats.packet import EstimateSource, SkillEstimate
from aats.payload import MODEL, STATE, Payload
from aats.roles.data import Batch, Features, Labels, NodeData, SkillData
from aats.roles.views import joined

NEIGHBOURS = 5
MIN_GIVERS = 3
"""Fewer cannot outvote one."""
MIN_ROWS = 8
"""Fewer rows of one giver prove nothing."""
ROWS_KEPT = 1024
"""Of each skill and giver: nobody makes up the test set alone."""
ROWS_JUDGED = 4096
"""Of each skill, shared evenly by the givers, to find outliers by; each is compared with each."""
TOLERANCE = 0.5
"""A giver is an outlier if its agreement beyond chance is surely below this share of the
others' median."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    x: Features
    y: Labels
    giver: npt.NDArray[np.int64]
    """Number of the giver in the order of names."""


@dataclass(slots=True, eq=False)
class TestSet:
    """What a verification unit measures on. Made from contributions, recomputed when needed."""

    __test__ = False
    """For pytest: a set of test samples, not a test."""

    contributions: dict[NodeId, NodeData] = field(default_factory=dict)
    min_contributors: int = 1
    """Givers whose rows must be among a skill's before it is measured on."""
    _sets: dict[str, Batch] | None = None
    _excluded: dict[NodeId, str] = field(default_factory=dict)

    def adopt(self, giver: NodeId, data: NodeData) -> str:
        """Take a giver's held-out rows in place of its earlier ones; return a note, "" if all well.

        A contribution without rows, or whose rows are of another shape than most givers have,
        is kept but never measured on.
        """
        self.contributions[giver] = data
        self._sets = None
        if not any(len(s.test_y) for s in data.skills.values()):
            return "no rows held out"
        return ""

    @property
    def sets(self) -> Mapping[str, Batch]:
        """The rows to measure on, by skill: distinct, outlier sites left out."""
        if self._sets is None:
            self._compute()
        assert self._sets is not None
        return self._sets

    @property
    def excluded(self) -> Mapping[NodeId, str]:
        """The givers left out, and why."""
        assert self.sets is not None
        return self._excluded

    @property
    def version(self) -> str:
        """Content hash of the rows measured on, 64 hex digits."""
        root = blake3.blake3()
        for skill, (x, y) in sorted(self.sets.items()):
            root.update(f"{skill}\0{x.dtype}\0{x.shape}\0".encode())
            root.update(np.ascontiguousarray(x).tobytes())
            root.update(y.tobytes())
        return root.hexdigest()

    def _compute(self) -> None:
        self._sets, self._excluded = {}, {}
        givers = sorted(self.contributions)
        skills = sorted({s for data in self.contributions.values() for s in data.skills})
        in_views = {s for s in skills if self._in_views(s, givers)}
        for skill in in_views:
            self._join(skill, givers)
        rows = {s: self._distinct(s, givers) for s in skills if s not in in_views}
        for skill, found in rows.items():
            for number, why in outliers(*_some(found)).items():
                self._excluded.setdefault(givers[number], f"{skill}: {why}")
        out = [i for i, g in enumerate(givers) if g in self._excluded]
        for skill, found in rows.items():
            keep = ~np.isin(found.giver, out)
            if keep.any() and len(set(found.giver[keep].tolist())) >= self.min_contributors:
                self._sets[skill] = found.x[keep], found.y[keep]

    def _in_views(self, skill: str, givers: list[NodeId]) -> list[SkillData]:
        """Return what was given of a skill as views of samples, givers by name."""
        given = (self.contributions[g].skills.get(skill) for g in givers)
        return [data for data in given if data is not None and data.view]

    def _join(self, skill: str, givers: list[NodeId]) -> None:
        """Measure on the samples that all views given have, put together by their ids."""
        assert self._sets is not None
        parts = self._in_views(skill, givers)
        x, y, _ = joined(parts)
        if len(y) and len(parts) >= self.min_contributors:
            self._sets[skill] = x[:ROWS_KEPT], y[:ROWS_KEPT]

    def _distinct(self, skill: str, givers: list[NodeId]) -> _Rows:
        """Return the rows of all givers in the order of names, repeated rows only once."""
        xs, ys, numbers, seen = [], [], [], set[bytes]()
        given = {g: self.contributions[g].skills.get(skill) for g in givers}
        forms = Counter(_form(data) for data in given.values() if data and len(data.test_y))
        usual = max(forms, key=forms.__getitem__, default="")
        for number, giver in enumerate(givers):
            data = given[giver]
            if data is None or not len(data.test_y):
                continue
            if _form(data) != usual:
                self._excluded[giver] = f"{skill}: rows of shape {_form(data)}"
                continue
            mine = zip(data.test_x[:ROWS_KEPT], data.test_y[:ROWS_KEPT], strict=True)
            for x, y in mine:
                row = blake3.blake3(x.tobytes()).digest()
                if row not in seen:
                    seen.add(row)
                    xs.append(x)
                    ys.append(y)
                    numbers.append(number)
        x = np.stack(xs) if xs else np.zeros((0, 1), np.float32)
        return _Rows(x, np.array(ys, np.int64), np.array(numbers, np.int64))


def _form(data: SkillData) -> str:
    return f"{list(data.test_x.shape[1:])} {data.test_x.dtype}"


def _some(rows: _Rows) -> tuple[Features, Labels, npt.NDArray[np.int64]]:
    """Return rows to judge their givers by, at most `ROWS_JUDGED`, as many of each giver."""
    share = ROWS_JUDGED // max(1, len(np.unique(rows.giver)))
    kept = [np.flatnonzero(rows.giver == g)[:share] for g in np.unique(rows.giver)]
    at = np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
    return rows.x[at], rows.y[at], rows.giver[at]


def outliers(x: Features, y: Labels, giver: npt.NDArray[np.int64]) -> dict[int, str]:
    """Return the givers whose labels disagree with the others', and why.

    Each giver's labels are compared with the vote of the nearest rows of all the others; only
    rows whose class the others have count. The worst giver goes first and the rest are judged
    again without it; at most a minority goes.

    Args:
        x: [n, ...] rows.
        y: [n] labels.
        giver: [n] number of who gave the row.
    """
    y = np.unique(y, return_inverse=True)[1]  # labels may be anything; there are few of them
    numbers = np.unique(giver).tolist()
    gone: dict[int, str] = {}
    order = _nearest_first(x)
    while len(numbers) - len(gone) >= MIN_GIVERS and 2 * (len(gone) + 1) < len(numbers):
        inside = ~np.isin(giver, [*gone])
        found = {g: _agreement(order, y, giver, inside, g) for g in numbers if g not in gone}
        judged = {g: a for g, a in found.items() if a[1] >= MIN_ROWS}
        if len(judged) < MIN_GIVERS:
            break
        worst = min(judged, key=lambda g: judged[g][0])
        share, n, chance = judged[worst]
        typical = float(np.median([beyond(a, c) for g, (a, _, c) in judged.items() if g != worst]))
        expected = chance + TOLERANCE * typical * (1 - chance)
        if wilson(share, n)[1] >= expected:
            break
        gone[worst] = (
            f"{share:.0%} of {n} labels agree with those of like rows, expected is {expected:.0%}"
        )
    return gone


def beyond(agreement: float, chance: float) -> float:
    """Return agreement beyond chance (Cohen's kappa), 0 where chance explains all."""
    return (agreement - chance) / (1 - chance) if chance < 1 else 0.0


def _nearest_first(x: Features) -> npt.NDArray[np.int64]:
    """Return for each row all rows, nearest first, features scaled to unit deviation."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    spread = flat.std(0)
    flat = (flat - flat.mean(0)) / np.where(spread > 0, spread, 1.0)
    squares = (flat**2).sum(1)
    distance = squares[:, None] + squares[None, :] - 2 * flat @ flat.T
    return np.argsort(distance, axis=1, kind="stable")


def _agreement(
    order: npt.NDArray[np.int64],
    y: Labels,
    giver: npt.NDArray[np.int64],
    inside: npt.NDArray[np.bool_],
    number: int,
) -> tuple[float, int, float]:
    """Return the share of a giver's rows the others' vote agrees with, rows, and chance."""
    others = inside & (giver != number)
    mine = np.flatnonzero((giver == number) & np.isin(y, np.unique(y[others])))
    if not len(mine) or not others.any():
        return 1.0, 0, 0.0
    classes = int(y.max()) + 1
    votes = np.zeros((len(mine), classes))
    for i, row in enumerate(mine):
        near = order[row][others[order[row]]][:NEIGHBOURS]
        # The nearest breaks a tie.
        votes[i] = np.bincount(y[near], 1 + 1e-3 * (near == near[0]), classes)
    voted = votes.argmax(1)
    chance = float(
        (np.bincount(voted, minlength=classes) / len(mine))
        @ (np.bincount(y[mine], minlength=classes) / len(mine))
    )
    return float((voted == y[mine]).mean()), len(mine), chance


def _in_memory(total: int) -> memoryview:
    return memoryview(bytearray(total))


def verify(
    task: VerifyTask,
    payload: Payload,
    test_set: TestSet,
    *,
    node: NodeId,
    allocate: Allocate = _in_memory,
) -> VerifyResult:
    """Measure the packet's model on the test set: one unsigned estimate for each target skill.

    A target whose skill the test set does not have gets no estimate. Contributions of a chain
    that harm are taken out before, if the mandate wants that (`Guard.drop_harm`).

    Args:
        task: What to measure.
        payload: The packet's tensors.
        test_set: What to measure on.
        node: Who measures.
        allocate: Makes the arena of the payload that leaves; called only if the model changed.

    Raises:
        ModelError: If the model cannot be used, or the test set has none of the skills wanted.
    """
    mandate = task.header.mandate
    targets = [t for t in mandate.requirement if t.skill in test_set.sets]
    if not targets:
        wanted = ", ".join(t.skill for t in mandate.requirement) or "none"
        known = ", ".join(test_set.sets) or "nothing"
        raise ModelError(f"{node}: the test set has {known}, wanted is {wanted}")
    backend = backend_of(mandate.architecture)
    version = payload.manifest.version(MODEL)
    with backend.scope(seed_of("verify", version)):
        model = backend.load(mandate.architecture, payload)
        skills = tuple(dict.fromkeys(t.skill for t in targets))

        def predict() -> dict[str, LogProbabilities]:
            return {s: backend.log_probabilities(model, test_set.sets[s][0], s) for s in skills}

        harms = _remove_harmful(task, backend.subject(model), predict, test_set)
        manifest = None
        if harms:
            tensors = backend.tensors(model, payload)
            manifest = write(payload, tensors, kept(payload, STATE), allocate)
            version = manifest.version(MODEL)
        predicted = predict()
    estimates = []
    for target in targets:
        known = test_set.sets[target.skill][1] < predicted[target.skill].shape[1]
        if not known.any():
            raise ModelError(f"{node}: skill {target.skill!r}: no label is one of the model's")
        labels = test_set.sets[target.skill][1][known]
        m = measure(target.metric, predicted[target.skill][known], labels)
        estimates.append(
            SkillEstimate(target.skill, target.metric, m.value, m.low, m.high, m.n, node,
                          EstimateSource.MPVU, version)
        )  # fmt: skip
    return VerifyResult(tuple(estimates), test_set.version, manifest, harms)


def _remove_harmful(
    task: VerifyTask,
    model: Any,
    predict: Callable[[], Mapping[str, LogProbabilities]],
    test_set: TestSet,
) -> dict[str, float]:
    """Take out what harms, if the model is a chain and the mandate wants it."""
    method = task.header.mandate.method
    if "drop_harm" not in method.params or not hasattr(model, "contributions"):
        return {}
    limit = method_of(method)[1].drop_harm
    return remove_harmful(model, predict, test_set.sets, limit)
