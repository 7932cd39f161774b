"""Where nodes are drawn: coordinates projected, the rest placed between their neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aats.ids import NodeId
from aats.topology.network import Edge

MARGIN = 0.05
ROUNDS = 100
"""Of averaging neighbours' positions; enough for the longest chains of the Zoo to settle."""


def circle(nodes: int) -> list[tuple[float, float]]:
    """Return evenly spaced positions on a circle in the unit square, the first on top."""
    turns = (2 * math.pi * i / max(nodes, 1) for i in range(nodes))
    return [(tidy(0.5 + 0.45 * math.sin(t)), tidy(0.5 + 0.45 * math.cos(t))) for t in turns]


def tidy(x: float) -> float:
    """Round so that a position is the same on every platform's libm."""
    return round(x, 6)


def positions(
    places: Mapping[NodeId, tuple[float, float] | None], edges: Sequence[Edge]
) -> dict[NodeId, tuple[float, float]]:
    """Return a position in the unit square for each node.

    Args:
        places: Latitude and longitude in degrees, where known.
        edges: A node without a place is drawn in the middle of those it is joined to; with no
            place known at all, or nobody to be near to, on a circle.
    """
    fixed = _projected({name: at for name, at in places.items() if at is not None})
    spots = dict(zip(places, circle(len(places)), strict=True)) | fixed
    near: dict[NodeId, list[NodeId]] = {name: [] for name in places}
    for edge in edges:
        near[edge.a].append(edge.b)
        near[edge.b].append(edge.a)
    loose = [name for name in places if fixed and name not in fixed and near[name]]
    for _ in range(ROUNDS):
        for name in loose:
            xs, ys = zip(*(spots[peer] for peer in near[name]), strict=True)
            spots[name] = (sum(xs) / len(xs), sum(ys) / len(ys))
    return {name: (tidy(x), tidy(y)) for name, (x, y) in spots.items()}


def _projected(
    places: Mapping[NodeId, tuple[float, float]],
) -> dict[NodeId, tuple[float, float]]:
    """Return an equirectangular projection that fills the unit square up to a margin."""
    if not places:
        return {}
    middle = math.radians(sum(lat for lat, _ in places.values()) / len(places))
    flat = {name: (lon * math.cos(middle), lat) for name, (lat, lon) in places.items()}
    xs, ys = zip(*flat.values(), strict=True)
    span = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    scale = (1 - 2 * MARGIN) / span
    cx, cy = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return {name: (0.5 + (x - cx) * scale, 0.5 + (y - cy) * scale) for name, (x, y) in flat.items()}
