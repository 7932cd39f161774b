"""What a data node holds: per skill a training part and a held-out part, as NumPy arrays.

Needs no torch, so a scenario can build, split and advertise data without loading it. Samples
never leave the node but by its own policy (a contribution, or probe mode minibatch).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import blake3
import numpy as np
import numpy.typing as npt

from aats.advert import DataAdvert
from aats.errors import DataError
from aats.ids import NodeId

Features = npt.NDArray[np.float32] | npt.NDArray[np.int64]
"""[n, ...]: float32 features (rows, images as channels-height-width) or int64 tokens."""
Labels = npt.NDArray[np.int64]
"""[n], each in 0..num_classes-1."""
Batch = tuple[Features, Labels]

SELF = NodeId("")
NO_LABEL = -1
"""The label of a row whose label the node does not know."""


def schema_digest(features: Iterable[str]) -> str:
    """Return the digest of feature names and types by which schemas are compared.

    Args:
        features: One word a feature, in column order (`"age:f32"`), or one word for a shape
            (`"f32[1,28,28]"`).
    """
    return blake3.blake3("\0".join(features).encode()).hexdigest()[:16]


def as_features(x: npt.ArrayLike) -> Features:
    """Return `x` contiguous, as int64 tokens if it is of an integer type, else as float32."""
    array = np.asarray(x)
    if np.issubdtype(array.dtype, np.integer):
        return np.ascontiguousarray(array, np.int64)
    return np.ascontiguousarray(array, np.float32)


def split(y: Labels, held_out: float, seed: int) -> tuple[Labels, Labels]:
    """Return the row numbers of the training and the held-out part, split within each class.

    A class keeps at least one training row; the rows stay in their given order.
    """
    rng = np.random.default_rng(seed)
    away = np.zeros(len(y), np.bool_)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        away[rows[: min(round(held_out * len(rows)), len(rows) - 1)]] = True
    return np.flatnonzero(~away), np.flatnonzero(away)


@dataclass(frozen=True, slots=True, eq=False)
class SkillData:
    """What a node holds for one skill.

    A node may see only a *view* of each sample (some of its features), and need not know the
    labels of a view. Samples are then known by ids, the same at all nodes that see them, and a
    sample that one of them holds out is held out by all.

    Raises:
        DataError: If rows, labels and ids do not fit, a label is out of range, or a feature is
            not finite.
    """

    skill: str
    train_x: Features
    train_y: Labels
    test_x: Features
    """Held out: judges a visit, is never trained on."""
    test_y: Labels
    num_classes: int
    """0 for a view without labels: then all of them are `NO_LABEL`."""
    schema: str
    """`schema_digest` of the features."""
    quality: float = 1.0
    """The node's own claim, 0-1."""
    freshness_s: float = 0.0
    seq: int = 1
    """Version of this data."""
    view: str = ""
    """Which part of each sample the features are; "" for all of it."""
    ids: Labels | None = None
    """[n] of the training rows: names of the samples, each once; None: their row numbers."""
    test_ids: Labels | None = None
    """The same for the held-out rows."""

    def __post_init__(self) -> None:
        if self.num_classes < (0 if self.view else 1):
            raise DataError(
                f"data of skill {self.skill!r}: {self.num_classes} classes; only a view may do "
                "without labels (0)"
            )
        for part, x, y, ids in (
            ("train", self.train_x, self.train_y, self.ids),
            ("test", self.test_x, self.test_y, self.test_ids),
        ):
            place = f"data of skill {self.skill!r}, {part} part"
            if y.ndim != 1 or len(x) != len(y):
                raise DataError(f"{place}: {len(x)} rows and labels of shape {y.shape}")
            low, high = (0, self.num_classes - 1) if self.num_classes else (NO_LABEL, NO_LABEL)
            if len(y) and not low <= y.min() <= y.max() <= high:
                raise DataError(f"{place}: labels {y.min()}-{y.max()}, allowed are {low}-{high}")
            if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
                raise DataError(f"{place}: a feature is NaN or infinite")
            if ids is not None and (ids.shape != y.shape or len(np.unique(ids)) < len(ids)):
                raise DataError(f"{place}: {len(y)} rows, each needs an id of its own")

    @classmethod
    def of(
        cls,
        skill: str,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        num_classes: int = 0,
        schema: str = "",
        held_out: float = 0.2,
        seed: int = 0,
        quality: float = 1.0,
    ) -> SkillData:
        """Return data split deterministically into a training and a held-out part.

        Args:
            skill: The skill's name.
            x: [n, ...] features.
            y: [n] labels.
            num_classes: 0 for the greatest label plus one.
            schema: "" for the digest of dtype and shape of a row.
            held_out: Share of each class that is held out, 0-1.
            seed: Of the split.
            quality: The node's own claim, 0-1.
        """
        features, labels = as_features(x), np.ascontiguousarray(y, np.int64)
        train, test = split(labels, held_out, seed)
        row = f"{features.dtype}{list(features.shape[1:])}"
        return cls(
            skill, features[train], labels[train], features[test], labels[test],
            num_classes or int(labels.max(initial=0)) + 1, schema or schema_digest([row]), quality,
        )  # fmt: skip

    @property
    def samples(self) -> int:
        """Training rows."""
        return len(self.train_y)

    @property
    def histogram(self) -> tuple[int, ...]:
        """Training rows of each class; () for a view without labels."""
        if not self.num_classes:
            return ()
        return tuple(np.bincount(self.train_y, minlength=self.num_classes).tolist())

    @property
    def row_ids(self) -> Labels:
        """The ids of the training rows."""
        return np.arange(self.samples) if self.ids is None else self.ids

    @property
    def held_out_ids(self) -> Labels:
        """The ids of the held-out rows."""
        return np.arange(len(self.test_y)) if self.test_ids is None else self.test_ids

    def minibatch(self, size: int, seed: int) -> Batch:
        """Return up to `size` training rows, drawn without replacement."""
        rows = np.random.default_rng(seed).permutation(self.samples)[:size]
        return self.train_x[rows], self.train_y[rows]

    def held_out(self, size: int, seed: int) -> Batch:
        """Return up to `size` held-out rows, each class in its proportion (stratified)."""
        rows = self.held_out_rows(size, seed)
        return self.test_x[rows], self.test_y[rows]

    def held_out_rows(self, size: int, seed: int) -> Labels:
        """Return the numbers of up to `size` held-out rows.

        Of whole samples each class in its proportion (stratified), drawn by seed. Of a view those
        that come first in an order of ids that all nodes share, so that what different nodes
        give is of the same samples.
        """
        if self.view:
            mixed = self.held_out_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            return np.argsort(mixed, kind="stable")[:size]
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(self.test_y))
        place = np.zeros(len(rows))
        for label in np.unique(self.test_y):
            of_class = rows[self.test_y[rows] == label]
            place[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
        return rows[np.argsort(place[rows], kind="stable")][:size]


@dataclass(frozen=True, slots=True, eq=False)
class NodeData:
    """All a node holds, by skill, and whether its label histograms may be advertised."""

    skills: Mapping[str, SkillData] = field(default_factory=lambda: MappingProxyType({}))
    show_labels: bool = True

    @classmethod
    def of(cls, *skills: SkillData, show_labels: bool = True) -> NodeData:
        """Return the data of these skills."""
        return cls({s.skill: s for s in skills}, show_labels)

    def __bool__(self) -> bool:
        return bool(self.skills)

    def adverts(self, delegate: NodeId = SELF) -> tuple[DataAdvert, ...]:
        """Return what the node says of its data, one advert a skill.

        Args:
            delegate: The compute node trusted to work on the data; "" for the node itself.
        """
        return tuple(
            DataAdvert(
                skill=s.skill,
                schema=s.schema,
                samples=s.samples,
                labels=s.histogram if self.show_labels else (),
                quality=s.quality,
                freshness_s=s.freshness_s,
                seq=s.seq,
                delegate=delegate,
                view=s.view,
            )
            for s in self.skills.values()
        )
