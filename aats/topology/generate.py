"""Layouts by name: who is joined to whom, always connected, the same for the same seed.

A generator is a function of keyword arguments with defaults; its parameters are those of the
`generator` table of a scenario. Random ones join what fell apart by the shortest missing links,
so the result is connected and stays close to the model.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterable, Sequence

from aats.errors import ScenarioError, nearest
from aats.ids import NodeId
from aats.packet import Plugin
from aats.topology.network import Edge, Layout, Site, components
from aats.topology.place import circle, tidy

MAX_NODES = 100_000
"""Above it a typing error is likelier than a wish."""

Position = tuple[float, float]
Pairs = set[tuple[int, int]]
Shape = tuple[list[Position], Pairs]
"""Positions in the unit square, and pairs (i, j) with i < j."""


def generate(
    generator: Plugin, names: Sequence[NodeId], seed: int, *, place: str = "generator"
) -> Layout:
    """Return the layout of a named generator.

    Args:
        generator: A key of `GENERATORS` and its parameters.
        names: Of the nodes, in order; `n0`, `n1`, ... if empty. Their number is the default of
            the generator's `nodes`.
        seed: Of the random ones.
        place: What error messages call the place of the settings.

    Raises:
        ScenarioError: If the generator or a parameter is unknown or out of range.
    """
    build = GENERATORS.get(generator.name)
    if build is None:
        allowed = f"known generators are {', '.join(GENERATORS)}"
        hint = nearest(generator.name, GENERATORS)
        raise ScenarioError(f"{place}.name", generator.name, allowed, hint)
    known = inspect.signature(build).parameters
    params = dict(generator.params)
    if "nodes" in known and names:
        params.setdefault("nodes", len(names))
    for key, value in params.items():
        if key not in known or key == "rng":
            allowed = (
                f"parameters of {generator.name} are {', '.join(k for k in known if k != 'rng')}"
            )
            raise ScenarioError(place, key, allowed, nearest(key, known))
        _check_number(known[key], value, f"{place}.{key}")
    random_source = random.Random(f"{generator.name} {seed}")
    extra = {"rng": random_source} if "rng" in known else {}
    try:
        positions, pairs = build(**params, **extra)
    except ValueError as wrong:
        raise ScenarioError(place, generator.params, str(wrong)) from wrong
    if names and len(names) != len(positions):
        allowed = f"{len(names)} names were given for them"
        raise ScenarioError(place, f"{len(positions)} nodes", allowed)
    ids = list(names) or [NodeId(f"n{i}") for i in range(len(positions))]
    if len(set(ids)) < len(ids):
        raise ScenarioError(f"{place}: names", ", ".join(ids), "each may stand once")
    return Layout(
        tuple(Site(name, position=at) for name, at in zip(ids, positions, strict=True)),
        tuple(Edge(ids[a], ids[b]) for a, b in sorted(pairs)),
    )


def joined(names: Iterable[NodeId], edges: Sequence[Edge], *, place: str = "edges") -> Layout:
    """Return the layout of an explicit list of edges, its nodes on a circle.

    Args:
        names: The nodes in order; those that only edges name follow.
        edges: One a pair of nodes.
        place: What error messages call the place of the settings.

    Raises:
        ScenarioError: If a pair stands twice.
    """
    ids = list(dict.fromkeys([*names, *(n for edge in edges for n in (edge.a, edge.b))]))
    pairs = set[frozenset[NodeId]]()
    for edge in edges:
        pair = frozenset((edge.a, edge.b))
        if pair in pairs:
            raise ScenarioError(f"{place}.edges", f"{edge.a}-{edge.b}", "each pair may stand once")
        pairs.add(pair)
    spots = circle(len(ids))
    return Layout(
        tuple(Site(name, position=at) for name, at in zip(ids, spots, strict=True)), tuple(edges)
    )


def _check_number(parameter: inspect.Parameter, value: object, place: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(parameter.default, int):
        if not whole:
            raise ScenarioError(place, value, "a whole number is wanted")
    elif not (whole or isinstance(value, float)) or not math.isfinite(float(str(value))):
        raise ScenarioError(place, value, "a number is wanted")


def _wanted(nodes: int, least: int = 1) -> int:
    if not least <= nodes <= MAX_NODES:
        raise ValueError(f"nodes must be {least}-{MAX_NODES}")
    return nodes


def _pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


def ring(nodes: int = 8) -> Shape:
    """Return a ring; two nodes are joined once."""
    n = _wanted(nodes)
    return circle(n), {_pair(i, (i + 1) % n) for i in range(n) if n > 1}


def line(nodes: int = 8) -> Shape:
    """Return a line."""
    n = _wanted(nodes)
    return [(tidy((i + 0.5) / n), 0.5) for i in range(n)], {(i, i + 1) for i in range(n - 1)}


def star(nodes: int = 8) -> Shape:
    """Return a star with the first node in the middle."""
    n = _wanted(nodes)
    return [(0.5, 0.5), *circle(n - 1)], {(0, i) for i in range(1, n)}


def complete(nodes: int = 8) -> Shape:
    """Return the graph in which all are joined to all."""
    n = _wanted(nodes)
    return circle(n), {(i, j) for i in range(n) for j in range(i + 1, n)}


def tree(nodes: int = 15, branching: int = 2) -> Shape:
    """Return a tree filled level by level, the root first."""
    n = _wanted(nodes)
    if branching < 1:
        raise ValueError("branching must be at least 1")
    parents = [(i - 1) // branching for i in range(1, n)]
    depth = [0]
    for parent in parents:
        depth.append(depth[parent] + 1)
    rows: dict[int, list[int]] = {}
    for i, level in enumerate(depth):
        rows.setdefault(level, []).append(i)
    spots: list[Position] = [(0.5, 0.5)] * n
    for level, row in rows.items():
        for k, i in enumerate(row):
            spots[i] = (tidy((k + 0.5) / len(row)), tidy(1 - (level + 0.5) / (len(rows))))
    return spots, {(parent, i + 1) for i, parent in enumerate(parents)}


def grid(rows: int = 4, columns: int = 4) -> Shape:
    """Return a grid, row by row; every node is joined to the four around it."""
    if rows < 1 or columns < 1 or rows * columns > MAX_NODES:
        raise ValueError(f"rows and columns must be at least 1, their product at most {MAX_NODES}")
    spots = [
        (tidy((c + 0.5) / columns), tidy(1 - (r + 0.5) / rows))
        for r in range(rows)
        for c in range(columns)
    ]
    right = {(i, i + 1) for i in range(rows * columns) if (i + 1) % columns}
    down = {(i, i + columns) for i in range((rows - 1) * columns)}
    return spots, right | down


def random_geometric(nodes: int = 16, radius: float = 0.35, *, rng: random.Random) -> Shape:
    """Return points drawn in the unit square, joined where nearer than `radius`."""
    n = _wanted(nodes)
    if not 0 < radius <= 2:
        raise ValueError("radius must be above 0 and at most 2")
    spots = [(tidy(rng.random()), tidy(rng.random())) for _ in range(n)]
    return spots, _joined_up(spots, _within(spots, radius))


def erdos_renyi(nodes: int = 16, probability: float = 0.25, *, rng: random.Random) -> Shape:
    """Return a graph in which each pair is joined with the same probability."""
    n = _wanted(nodes)
    _check_probability(probability)
    pairs = {(i, j) for i in range(n) for j in range(i + 1, n) if rng.random() < probability}
    spots = circle(n)
    return spots, _joined_up(spots, pairs)


def barabasi_albert(nodes: int = 16, links: int = 2, *, rng: random.Random) -> Shape:
    """Return a graph grown node by node, each joined to `links` others, the well-joined first.

    Barabasi and Albert 1999; the first node joins to `links` unjoined ones.
    """
    n = _wanted(nodes, 2)
    if not 1 <= links < n:
        raise ValueError(f"links must be 1-{n - 1}")
    pairs: Pairs = {(i, links) for i in range(links)}
    ends = [end for pair in sorted(pairs) for end in pair]
    for new in range(links + 1, n):
        chosen: set[int] = set()
        while len(chosen) < links:
            chosen.add(rng.choice(ends))
        for old in sorted(chosen):
            pairs.add((old, new))
            ends += [old, new]
    return circle(n), pairs


def watts_strogatz(
    nodes: int = 16, neighbours: int = 4, rewired: float = 0.1, *, rng: random.Random
) -> Shape:
    """Return a ring with `neighbours` nearest ones joined and a share of the links moved.

    Watts and Strogatz 1998.
    """
    n = _wanted(nodes, 3)
    _check_probability(rewired)
    if neighbours % 2 or not 2 <= neighbours < n:
        raise ValueError(f"neighbours must be even and 2-{n - 1}")
    pairs = {_pair(i, (i + k) % n) for i in range(n) for k in range(1, neighbours // 2 + 1)}
    for k in range(1, neighbours // 2 + 1):
        for i in range(n):
            old = _pair(i, (i + k) % n)
            free = [j for j in range(n) if j != i and _pair(i, j) not in pairs]
            if old in pairs and free and rng.random() < rewired:
                pairs.remove(old)
                pairs.add(_pair(i, rng.choice(free)))
    spots = circle(n)
    return spots, _joined_up(spots, pairs)


def _check_probability(value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError("a probability must be 0-1")


def _within(spots: Sequence[Position], radius: float) -> Pairs:
    """Return all pairs nearer than `radius`, by cells of that size."""
    cells: dict[tuple[int, int], list[int]] = {}
    pairs: Pairs = set()
    for i, (x, y) in enumerate(spots):
        column, row = int(x / radius), int(y / radius)
        for c in range(column - 1, column + 2):
            for r in range(row - 1, row + 2):
                pairs |= {(j, i) for j in cells.get((c, r), ())
                          if math.dist(spots[i], spots[j]) < radius}  # fmt: skip
        cells.setdefault((column, row), []).append(i)
    return pairs


def _joined_up(spots: Sequence[Position], pairs: Pairs) -> Pairs:
    """Return the pairs with each smaller part joined to the largest by the shortest link."""
    ids = [NodeId(str(i)) for i in range(len(spots))]
    parts = components(ids, ((ids[a], ids[b]) for a, b in pairs))
    inside = sorted(int(i) for i in parts[0])
    for part in parts[1:]:
        members = sorted(int(i) for i in part)
        a, b = min(
            ((i, j) for i in members for j in inside),
            key=lambda p: (math.dist(spots[p[0]], spots[p[1]]), p),
        )
        pairs = pairs | {_pair(a, b)}
        inside += members
    return pairs


GENERATORS: dict[str, Callable[..., Shape]] = {
    "ring": ring,
    "line": line,
    "star": star,
    "complete": complete,
    "tree": tree,
    "grid": grid,
    "random-geometric": random_geometric,
    "erdos-renyi": erdos_renyi,
    "barabasi-albert": barabasi_albert,
    "watts-strogatz": watts_strogatz,
}
"""By the name a scenario uses."""
