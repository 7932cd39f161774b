"""Who holds which rows: a data set dealt out to nodes, and what is wrong with each one's share.

`spread` is the whole of it, for one skill: it sets test rows and the packets' trusted rows aside
and deals the rest out. `deal` assigns every row at most once; `node_skill` turns one node's rows
into `SkillData`, with wrong labels and drift where the part asks for them. The same seed gives
the same deal, and a node's own corruption does not depend on who else is in the network.

Schemes: `iid`; `dirichlet` (each node draws its class mix around the whole's: Hsu, Qi and Brown
2019); `shards` (each node has exactly C classes, a class is split over its owners by Dirichlet:
ExDir of Li and Lyu, NeurIPS 2023; a large alpha with C = 1 is plain label shards). Under any of
them a part may take a whole group instead, a site the data really came from; under the first
two it may name its own case mix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aats.errors import DataError, nearest
from aats.learning.datasets import Dataset, IntArray, load_dataset
from aats.packet import Plugin
from aats.roles.data import Batch, Features, SkillData, split

PARTITIONERS: dict[str, dict[str, Any]] = {
    "iid": {},
    "dirichlet": {"alpha": 1.0},
    "shards": {"classes_per_node": 1, "alpha": 10.0},
}
"""Scheme -> its parameters with their defaults. `alpha` is a concentration: small is uneven; 10
is Li and Lyu's."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one node shall hold of a data set.

    Raises:
        DataError: If a number is out of range.
    """

    node: str
    samples: int = 0
    """Rows, training and held-out together; 0: by `share` of what the others leave, or the
    whole group."""
    share: float = 1.0
    """Weight among the parts without `samples`."""
    group: str = ""
    """The site of the source whose rows these are; "" for a part of the deal."""
    mix: tuple[float, ...] = ()
    """Share of each class (relative weights); empty: as the scheme has it."""
    wrong_labels: float = 0.0
    """Share of rows, 0-1, whose label is replaced by another class."""
    drift: float = 0.0
    """How far the features moved since, in their own unit (a deviation, if scaled by it)."""
    freshness_s: float = 0.0
    """Age of the newest row in seconds, as advertised."""
    quality: float = 1.0
    """What the node claims of itself, 0-1, whatever `wrong_labels` is."""

    def __post_init__(self) -> None:
        if self.samples < 0 or self.share < 0 or any(weight < 0 for weight in self.mix):
            raise DataError(f"{self.node}: samples, share and mix must not be negative")
        if self.mix and not sum(self.mix) > 0:
            raise DataError(f"{self.node}: a mix needs a class with a share above 0")
        if not 0 <= self.wrong_labels <= 1 or not 0 <= self.quality <= 1:
            raise DataError(
                f"{self.node}: wrong_labels {self.wrong_labels}, quality {self.quality}; "
                "allowed are 0-1"
            )
        if self.drift < 0 or self.freshness_s < 0:
            raise DataError(f"{self.node}: drift and freshness_s must not be negative")


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """One skill's data, spread out: no row is in two places."""

    nodes: dict[str, SkillData]
    reference: Batch
    """Clean rows, classes as in the whole: the small trusted set that packets carry."""
    test: Batch
    """Clean rows nobody on the network holds, for an independent measurement."""
    classes: tuple[str, ...]
    schema: str
    digest: str
    """Of the source's rows (`Dataset.digest`)."""


def spread(
    skill: str,
    source: Plugin,
    partition: Plugin,
    parts: Sequence[Part],
    *,
    held_out: float = 0.2,
    reference: int = 64,
    test: float = 0.2,
    root: str = "",
    seed: int = 0,
) -> Spread:
    """Load a source and spread it over the network.

    Args:
        skill: The skill's name.
        source: A data source and its parameters.
        partition: One of `PARTITIONERS` and its parameters.
        parts: One a node.
        held_out: Share of each class that a node never trains on.
        reference: Rows of the packets' trusted set.
        test: Share of each class set aside as the test set, unless the source marks its own.
        root: Folder with the files of a source that needs some and does not name its own.
        seed: Of everything drawn at random.

    Raises:
        UnknownPluginError: If there is no such source.
        DataError: If the data are missing or the deal is impossible.
    """
    data = load_dataset(source.name, **{"root": root, **source.params})
    return spread_rows(
        skill, data, partition, parts, held_out=held_out, reference=reference, test=test, seed=seed
    )


def spread_rows(
    skill: str,
    data: Dataset,
    partition: Plugin,
    parts: Sequence[Part],
    *,
    held_out: float = 0.2,
    reference: int = 64,
    test: float = 0.2,
    seed: int = 0,
) -> Spread:
    """Spread a data set that is loaded already; otherwise as `spread`."""
    aside = np.flatnonzero(data.is_test) if data.is_test.any() else split(data.y, test, seed)[1]
    pool = np.setdiff1d(np.arange(len(data)), aside)
    if reference > len(pool):
        raise DataError(f"{data.name}: reference {reference}, but {len(pool)} rows are there")
    trusted = pool[stratified_rows(data.y[pool], reference, seed)]
    rest = data.take(np.setdiff1d(pool, trusted))
    dealt = deal(rest, parts, scheme=partition.name, seed=seed, **partition.params)
    nodes = {
        part.node: node_skill(skill, rest, dealt[part.node], part, held_out=held_out, seed=seed)
        for part in parts
    }
    return Spread(
        nodes, (data.x[trusted], data.y[trusted]), (data.x[aside], data.y[aside]),
        data.classes, data.schema, data.digest,
    )  # fmt: skip


def deal(
    data: Dataset,
    parts: Sequence[Part],
    *,
    scheme: str = "iid",
    seed: int = 0,
    **params: Any,
) -> dict[str, IntArray]:
    """Return the rows of each node, sorted; no row goes to two nodes.

    Args:
        data: What is dealt out.
        parts: One a node.
        scheme: One of `PARTITIONERS`.
        seed: Of the deal.
        **params: Of the scheme.

    Raises:
        DataError: If the deal is impossible; says for whom and what is there.
    """
    settings = _settings(scheme, params)
    names = [part.node for part in parts]
    if len(set(names)) < len(names):
        raise DataError(f"{data.name}: a node has two parts among {', '.join(names)}")
    rng = np.random.default_rng([seed, 1])
    dealt = {part.node: _site(data, part, rng) for part in parts if part.group}
    if len(taken := {part.group for part in parts if part.group}) < len(dealt):
        raise DataError(f"{data.name}: two parts want one group among {', '.join(sorted(taken))}")
    sites = np.array([group in taken for group in data.groups], dtype=np.bool_)
    free = np.flatnonzero(~sites[data.group_of]) if taken else np.arange(len(data))
    others = [part for part in parts if not part.group]
    if others:
        left = data.take(free)
        if scheme == "shards":
            pieces = _shards(left, others, rng=rng, **settings)
        else:
            counts = _class_counts(left, others, settings.get("alpha", 0.0), rng)
            pieces = _draw(left, counts, rng)
        for part, piece in zip(others, pieces, strict=True):
            dealt[part.node] = free[piece]
    return {name: np.sort(dealt[name]) for name in names}


def node_skill(
    skill: str,
    data: Dataset,
    rows: IntArray,
    part: Part,
    *,
    held_out: float = 0.2,
    seed: int = 0,
) -> SkillData:
    """Return one node's data for a skill, corrupted as its part says.

    Wrong labels and drift hit the training and the held-out part alike: a hospital that records
    badly does so for all its patients.

    Args:
        skill: The skill's name.
        data: The data set the rows index.
        rows: The node's rows.
        part: What is wrong with them, and what the node claims.
        held_out: Share of each class held out.
        seed: Of the split and of the corruption, together with the node's name.
    """
    mine = data.take(rows)
    rng = np.random.default_rng([seed, 2, *f"{part.node}/{skill}".encode()])
    x = drifted(mine.x, part.drift, rng)
    y = mislabelled(mine.y, part.wrong_labels, len(data.classes), rng)
    train, test = split(mine.y, held_out, int(rng.integers(2**31)))
    return SkillData(
        skill, x[train], y[train], x[test], y[test], len(data.classes), data.schema,
        quality=part.quality, freshness_s=part.freshness_s,
    )  # fmt: skip


def mislabelled(y: IntArray, share: float, classes: int, rng: np.random.Generator) -> IntArray:
    """Return labels of which round(share * n) are wrong, each another class at random."""
    wrong = rng.permutation(len(y))[: round(share * len(y))]
    changed = y.copy()
    changed[wrong] = (y[wrong] + rng.integers(1, classes, size=len(wrong))) % classes
    return changed


def drifted(x: Features, drift: float, rng: np.random.Generator) -> Features:
    """Return features all moved by the same offset, `drift` times a normal draw a feature.

    Raises:
        DataError: If they are tokens, which are no quantities.
    """
    if np.issubdtype(x.dtype, np.integer):
        if drift:
            raise DataError(f"drift {drift}: tokens have no unit to drift in; allowed is 0")
        return x
    offset = drift * rng.standard_normal(x.shape[1:])
    moved: Features = (x + offset).astype(np.float32)
    return moved


def stratified_rows(y: IntArray, samples: int, seed: int) -> IntArray:
    """Return `samples` rows with the classes in the proportion of the whole, sorted.

    Raises:
        DataError: If there are fewer rows.
    """
    if samples > len(y):
        raise DataError(f"{samples} rows wanted, {len(y)} are there")
    if not samples:
        return np.zeros(0, dtype=np.int64)
    rng = np.random.default_rng([seed, 3])
    counts = _apportion(samples, np.bincount(y).astype(np.float64))
    chosen = [
        rng.permutation(np.flatnonzero(y == label))[:count] for label, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(chosen))


def _settings(scheme: str, params: dict[str, Any]) -> dict[str, Any]:
    if scheme not in PARTITIONERS:
        raise DataError(
            f"partition {scheme!r}: allowed are {', '.join(PARTITIONERS)}"
            f"{nearest(scheme, PARTITIONERS)}"
        )
    known = PARTITIONERS[scheme]
    for name in params:
        if name not in known:
            raise DataError(
                f"partition {scheme!r}: parameter {name!r}; allowed are "
                f"{', '.join(known) or 'none'}{nearest(name, known)}"
            )
    settings = {**known, **params}
    if not 0 < settings.get("alpha", 1.0) < math.inf:
        raise DataError(f"partition {scheme!r}: alpha {settings['alpha']}; must be above 0")
    return settings


def _site(data: Dataset, part: Part, rng: np.random.Generator) -> IntArray:
    if part.group not in data.groups:
        listed = ", ".join(data.groups) or "none"
        raise DataError(
            f"{data.name}: no group {part.group!r} for {part.node}; groups: {listed}"
            f"{nearest(part.group, data.groups)}"
        )
    if part.mix:
        raise DataError(f"{data.name}: {part.node}: a group has its own mix; drop mix")
    rows = np.flatnonzero(data.group_of == data.groups.index(part.group))
    if part.samples > len(rows):
        raise DataError(
            f"{data.name}: {part.node} wants {part.samples} rows of {part.group!r}, "
            f"{len(rows)} are there"
        )
    return rng.permutation(rows)[: part.samples or len(rows)]


def _sizes(data: Dataset, parts: Sequence[Part]) -> list[int]:
    fixed = sum(part.samples for part in parts)
    if fixed > len(data):
        raise DataError(
            f"{data.name}: {len(data)} rows, but the parts want {fixed}: "
            + ", ".join(f"{part.node} {part.samples}" for part in parts if part.samples)
        )
    weights = {i: part.share for i, part in enumerate(parts) if not part.samples}
    total = sum(weights.values())
    sizes = [part.samples for part in parts]
    for i, weight in weights.items():
        sizes[i] = int((len(data) - fixed) * weight / total) if total else 0
        if weight and not sizes[i]:
            raise DataError(
                f"{data.name}: no row for {parts[i].node}: {len(data) - fixed} are left for "
                f"{len(weights)} parts by share"
            )
    return sizes


def _class_counts(
    data: Dataset, parts: Sequence[Part], alpha: float, rng: np.random.Generator
) -> IntArray:
    """Return [parts, classes] rows to take; parts with a mix of their own are served first."""
    left = np.bincount(data.y, minlength=len(data.classes))
    whole = left / max(left.sum(), 1)
    sizes = _sizes(data, parts)
    counts = np.zeros((len(parts), len(left)), dtype=np.int64)
    for i in sorted(range(len(parts)), key=lambda i: not parts[i].mix):
        part = parts[i]
        if part.mix:
            if len(part.mix) != len(left):
                raise DataError(
                    f"{data.name}: {part.node}: mix of {len(part.mix)} for {len(left)} classes: "
                    + ", ".join(data.classes)
                )
            counts[i] = _apportion(sizes[i], np.array(part.mix))
            if (short := np.flatnonzero(counts[i] > left)).size:
                k = int(short[0])
                raise DataError(
                    f"{data.name}: {part.node} wants {counts[i, k]} rows of {data.classes[k]!r}, "
                    f"{left[k]} are left"
                )
        elif alpha:
            present = whole > 0
            mix = np.zeros(len(left))
            mix[present] = rng.dirichlet(alpha * whole[present] * present.sum())
            counts[i] = _within(sizes[i], mix, left, rng)
        else:
            counts[i] = rng.multivariate_hypergeometric(left, sizes[i])
        left = left - counts[i]
    return counts


def _apportion(size: int, weights: npt.NDArray[np.float64]) -> IntArray:
    """Share out `size` in proportion to the weights, largest remainders first."""
    exact = size * weights / weights.sum()
    counts: IntArray = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: size - counts.sum()]] += 1
    return counts


def _within(
    size: int,
    mix: npt.NDArray[np.float64],
    left: IntArray,
    rng: np.random.Generator,
) -> IntArray:
    """Draw `size` rows by the mix; what a class lacks is drawn from the others."""
    counts = np.zeros_like(left)
    while (missing := size - int(counts.sum())) > 0:
        open_classes = counts < left
        weights = np.where(open_classes, mix, 0)
        if not weights.sum() > 0:
            weights = (left - counts).astype(np.float64)
        counts = np.minimum(counts + rng.multinomial(missing, weights / weights.sum()), left)
    return counts


def _draw(data: Dataset, counts: IntArray, rng: np.random.Generator) -> list[IntArray]:
    dealt: list[list[IntArray]] = [[] for _ in counts]
    for label in range(counts.shape[1]):
        rows = rng.permutation(np.flatnonzero(data.y == label))
        for mine, piece in zip(dealt, np.split(rows, np.cumsum(counts[:, label])), strict=False):
            mine.append(piece)
    return [np.concatenate(mine) for mine in dealt]


def _shards(
    data: Dataset,
    parts: Sequence[Part],
    *,
    classes_per_node: int,
    alpha: float,
    rng: np.random.Generator,
) -> list[IntArray]:
    num_classes = len(data.classes)
    if not 1 <= classes_per_node <= num_classes:
        raise DataError(
            f"{data.name}: classes_per_node {classes_per_node}; allowed are 1-{num_classes}"
        )
    for part in parts:
        if part.samples or part.mix:
            raise DataError(
                f"{data.name}: {part.node}: shards sizes its own parts; drop samples and mix"
            )
    deck = rng.permutation(num_classes)
    seats = rng.permutation(len(parts))
    owners: dict[int, list[int]] = {label: [] for label in range(num_classes)}
    for place, node in enumerate(seats):
        for turn in range(classes_per_node):
            owners[int(deck[(place * classes_per_node + turn) % num_classes])].append(int(node))
    dealt: list[list[IntArray]] = [[] for _ in parts]
    for label, held_by in owners.items():
        if not held_by:
            continue
        rows = rng.permutation(np.flatnonzero(data.y == label))
        if len(rows) < len(held_by):
            raise DataError(
                f"{data.name}: {len(rows)} rows of {data.classes[label]!r} for {len(held_by)} nodes"
            )
        shares = rng.dirichlet(np.full(len(held_by), alpha))
        sizes = 1 + rng.multinomial(len(rows) - len(held_by), shares)
        for node, piece in zip(held_by, np.split(rows, np.cumsum(sizes)), strict=False):
            dealt[node].append(piece)
    return [np.concatenate(mine) for mine in dealt]
