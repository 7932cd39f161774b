"""Views of the same samples: rows put in line by the samples' ids, and views laid side by side.

A *stacked* row is what a model of several views is judged on in one process: the flattened
views of one sample, one after the other in the order of the views' names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from aats.roles.data import Features, Labels, SkillData

ABSENT = -1
"""Row number of a sample that is not there."""


def stacked(views: Mapping[str, Features]) -> Features:
    """Return [n, total width] float32: the views' rows side by side, views by name.

    Args:
        views: By name, [n, ...] each, of the same samples in the same order.
    """
    return np.concatenate([flat(views[name]) for name in sorted(views)], axis=1)


def flat(x: Features) -> Features:
    """Return rows as vectors, [n, width] float32; there may be none, and they may be empty."""
    return x.reshape(len(x), int(np.prod(x.shape[1:]))).astype(np.float32, copy=False)


def rows_of(ids: Labels, wanted: Labels) -> Labels:
    """Return the row number of each wanted id, `ABSENT` where it is not among `ids`."""
    if not len(ids):
        return np.full(len(wanted), ABSENT, np.int64)
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    rows = order[at]
    return np.where(ids[rows] == wanted, rows, ABSENT)


def joined(parts: Sequence[SkillData]) -> tuple[Features, Labels, Labels]:
    """Return the held-out rows that all views have and whose label is known, stacked.

    Args:
        parts: Of one skill, each with a view; of two with the same view, what the first one has
            counts, and its width.

    Returns:
        x [n, total width], y [n], ids [n] rising. Samples whose label the parts do not agree on
        are left out.
    """
    views: dict[str, list[SkillData]] = {}
    for part in parts:
        of_view = views.setdefault(part.view, [])
        if not of_view or flat(part.test_x).shape[1] == flat(of_view[0].test_x).shape[1]:
            of_view.append(part)
    held = [[p.held_out_ids for p in of_view] for of_view in views.values()]
    common = np.unique(np.concatenate(held[0])) if held else np.zeros(0, np.int64)
    for ids in held[1:]:
        common = common[np.isin(common, np.concatenate(ids))]
    told = [
        np.where((rows := rows_of(p.held_out_ids, common)) == ABSENT, ABSENT, p.test_y[rows])
        for p in parts
        if p.num_classes and len(p.test_y)
    ]
    y = np.max(told, axis=0) if told else np.full(len(common), ABSENT)
    agreed = (y != ABSENT) & np.all([(t == ABSENT) | (t == y) for t in told], axis=0)
    common, y = common[agreed], y[agreed]
    return stacked({name: _rows(of_view, common) for name, of_view in views.items()}), y, common


def _rows(parts: Sequence[SkillData], ids: Labels) -> Features:
    ids_here = np.concatenate([p.held_out_ids for p in parts])
    first = np.unique(ids_here, return_index=True)[1]
    x = np.concatenate([flat(p.test_x) for p in parts])
    return x[first][rows_of(ids_here[first], ids)]
