"""One data set seen by several nodes: each sees its own view of the same samples.

A view is what a transform makes of a sample: half of an image, a noisy copy, some columns. All
nodes share the samples' ids (row numbers of the source) and hold out the same ones.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from aats.errors import DataError, nearest
from aats.learning.datasets import Dataset, FloatArray, load_dataset
from aats.learning.partition import Part, Spread, drifted, mislabelled, stratified_rows
from aats.packet import Plugin
from aats.roles.data import NO_LABEL, Features, SkillData, schema_digest, split
from aats.roles.views import stacked

Side = Literal["left", "right", "top", "bottom"]


@dataclass(frozen=True, slots=True)
class View:
    """How one node sees the samples of a skill."""

    name: str
    transform: Plugin = Plugin("identity")
    """One of `TRANSFORMS` and its parameters."""
    labels: bool = True
    """Whether the node knows the labels."""
    missing: float = 0.0
    """Share of the samples, 0-1, that this node has no row of."""


def identity(x: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return the rows as they are."""
    return x


def nothing(x: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return rows without features, for a node that knows the labels only."""
    return np.zeros((len(x), 0), np.float32)


def noise(x: FloatArray, rng: np.random.Generator, sd: float = 1.0) -> FloatArray:
    """Return the rows with Gaussian noise of deviation `sd` added."""
    if not 0 <= sd < math.inf:
        raise DataError(f"view 'noise': sd {sd}, allowed are 0 and more")
    return x + np.float32(sd) * rng.standard_normal(x.shape, np.float32)


def occlude(
    x: FloatArray, rng: np.random.Generator, side: Side = "left", share: float = 0.5
) -> FloatArray:
    """Return images of which a share from one side on is black (zero)."""
    if side not in get_args(Side) or not 0 <= share <= 1:
        raise DataError(
            f"view 'occlude': side {side!r}, share {share}; allowed are "
            f"{', '.join(get_args(Side))} and 0-1"
        )
    images = _images(x, "occlude").copy()
    length = images.shape[-1 if side in ("left", "right") else -2]
    n = round(share * length)
    at = slice(0, n) if side in ("left", "top") else slice(length - n, length)
    images[(..., at) if side in ("left", "right") else (..., at, slice(None))] = 0
    return images.reshape(x.shape)


def crop(
    x: FloatArray, rng: np.random.Generator, top: int = 0, left: int = 0, height: int = 0,
    width: int = 0,
) -> FloatArray:  # fmt: skip
    """Return a rectangle of each image; `height` and `width` 0: to the edge."""
    images = _images(x, "crop")
    rows, columns = images.shape[-2:]
    height, width = height or rows - top, width or columns - left
    if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
        raise DataError(
            f"view 'crop': {height} x {width} from ({top}, {left}) on; images are "
            f"{rows} x {columns}"
        )
    cut = images[..., top : top + height, left : left + width]
    return np.ascontiguousarray(cut if x.ndim > 2 else cut.reshape(len(x), -1))


def columns(x: FloatArray, rng: np.random.Generator, first: int = 0, last: int = -1) -> FloatArray:
    """Return the columns `first` to `last`, both included, of a table; -1: to the end."""
    flat = x.reshape(len(x), -1)
    end = flat.shape[1] if last == -1 else last + 1
    if not 0 <= first < end <= flat.shape[1]:
        raise DataError(f"view 'columns': {first}-{last}; allowed are 0-{flat.shape[1] - 1}")
    return np.ascontiguousarray(flat[:, first:end])


TRANSFORMS: dict[str, Callable[..., FloatArray]] = {
    "identity": identity, "nothing": nothing, "noise": noise, "occlude": occlude, "crop": crop,
    "columns": columns,
}  # fmt: skip
"""What a node may see of a sample; each takes rows [n, ...], a generator and its parameters.
Images are [n, ..., height, width], or flat rows of as many features as a square has."""


def seen(x: FloatArray, view: View, seed: int) -> FloatArray:
    """Return what a view shows of rows; noise is drawn by the seed and the view's name.

    Raises:
        DataError: If the transform is unknown or does not fit the rows.
    """
    transform, params = view.transform.name, view.transform.params
    if transform not in TRANSFORMS:
        raise DataError(
            f"view {view.name!r}: transform {transform!r}; allowed are {', '.join(TRANSFORMS)}"
            f"{nearest(transform, TRANSFORMS)}"
        )
    function = TRANSFORMS[transform]
    known = [*inspect.signature(function).parameters][2:]
    for key in params:
        if key not in known:
            raise DataError(
                f"view {view.name!r}: parameter {key!r} of {transform!r}; allowed are "
                f"{', '.join(known) or 'none'}{nearest(key, known)}"
            )
    rng = np.random.default_rng([seed, 4, *view.name.encode()])
    return function(x, rng, **params).astype(np.float32, copy=False)


def spread_views(
    skill: str,
    source: Plugin,
    views: Mapping[str, View],
    parts: Sequence[Part] = (),
    *,
    held_out: float = 0.2,
    reference: int = 64,
    test: float = 0.2,
    root: str = "",
    seed: int = 0,
) -> Spread:
    """Load a source and show it to nodes, each by its view; otherwise as `partition.spread`.

    Args:
        skill: The skill's name.
        source: A data source and its parameters.
        views: By node.
        parts: What is special about nodes' rows: wrong labels, drift, and what they claim.
        held_out: Share of each class that nobody trains on, the same samples at all nodes.
        reference: Samples of the packets' trusted set: stacked rows (`aats.roles.views`).
        test: Share of each class set aside as the test set, stacked too.
        root: Folder with the files of a source that needs some.
        seed: Of everything drawn at random.
    """
    data = load_dataset(source.name, **{"root": root, **source.params})
    return spread_seen(
        skill, data, views, parts, held_out=held_out, reference=reference, test=test, seed=seed
    )


def spread_seen(
    skill: str,
    data: Dataset,
    views: Mapping[str, View],
    parts: Sequence[Part] = (),
    *,
    held_out: float = 0.2,
    reference: int = 64,
    test: float = 0.2,
    seed: int = 0,
) -> Spread:
    """Show a data set that is loaded already; otherwise as `spread_views`.

    Raises:
        DataError: If two nodes have one view, or nobody has labels.
    """
    listed = [view.name for view in views.values()]
    if len(set(listed)) < len(listed):
        raise DataError(f"{data.name}: two nodes have one view among {', '.join(listed)}")
    if not any(view.labels for view in views.values()):
        raise DataError(f"{data.name}: no view of {', '.join(listed)} has labels")
    if data.x.dtype != np.float32:
        raise DataError(f"{data.name}: views are of features, not of tokens")
    aside = np.flatnonzero(data.is_test) if data.is_test.any() else split(data.y, test, seed)[1]
    pool = np.setdiff1d(np.arange(len(data)), aside)
    trusted = pool[stratified_rows(data.y[pool], reference, seed)]
    rest = np.setdiff1d(pool, trusted)
    train, kept = split(data.y[rest], held_out, seed)
    features = cast(FloatArray, data.x)
    shown = {node: seen(features, view, seed) for node, view in views.items()}
    special = {part.node: part for part in parts}

    def at(node: str, view: View) -> SkillData:
        part = special.get(node, Part(node))
        if part.samples or part.mix or part.group:
            raise DataError(
                f"{data.name}: {node}: all views are of the same samples; drop samples, mix, group"
            )
        rng = np.random.default_rng([seed, 5, *f"{node}/{skill}".encode()])
        there = rng.random(len(data)) >= view.missing
        x = drifted(shown[node], part.drift, rng)
        y = mislabelled(data.y, part.wrong_labels, len(data.classes), rng)
        y = y if view.labels else np.full(len(data), NO_LABEL)
        ids, test_ids = (rows[there[rows]] for rows in (rest[train], rest[kept]))
        return SkillData(
            skill, x[ids], y[ids], x[test_ids], y[test_ids],
            len(data.classes) if view.labels else 0, _schema(data, view, x),
            quality=part.quality, freshness_s=part.freshness_s, view=view.name, ids=ids,
            test_ids=test_ids,
        )  # fmt: skip

    whole = stacked({view.name: shown[node] for node, view in views.items()})
    return Spread(
        {node: at(node, view) for node, view in views.items()},
        (whole[trusted], data.y[trusted]), (whole[aside], data.y[aside]),
        data.classes, data.schema, data.digest,
    )  # fmt: skip


def _schema(data: Dataset, view: View, x: Features) -> str:
    return schema_digest([*data.features, view.name, f"{view.transform}", f"{list(x.shape[1:])}"])


def _images(x: FloatArray, name: str) -> FloatArray:
    if x.ndim > 2:
        return x
    side = math.isqrt(x.shape[1])
    if side * side != x.shape[1]:
        raise DataError(f"view {name!r}: rows of {x.shape[1]} features are no square images")
    return x.reshape(len(x), side, side)
