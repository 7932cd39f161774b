"""Layouts from GraphML; the files of the Internet Topology Zoo load as they are.

The Zoo (Knight, Nguyen, Falkner, Bowden and Roughan, JSAC 2011) has parallel links, labels that
are no node ids or stand twice, nodes without coordinates and networks in several parts. Here
parallel links become the fastest of them; node ids are made from the labels; a node without
coordinates is drawn between its neighbours and gets no latitude and longitude; parts are kept.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

from aats.errors import ScenarioError
from aats.ids import NodeId
from aats.topology.generate import circle
from aats.topology.network import Edge, Layout, Site, components

SPEED = "LinkSpeedRaw"
"""Edge attribute: bits per second."""
MARGIN = 0.05
ROUNDS = 100
"""Of averaging neighbours' positions; enough for the longest chains of the Zoo to settle."""


def load_graphml(path: Path, *, component: Literal["all", "largest"] = "all") -> Layout:
    """Return the layout of a GraphML file.

    Args:
        path: The file.
        component: Keep all parts, or only the largest.

    Raises:
        ScenarioError: If the file cannot be read or is no GraphML.
    """
    import networkx as nx

    try:
        graph = nx.read_graphml(path)
    except (OSError, ParseError, nx.NetworkXError, KeyError, ValueError) as broken:
        raise ScenarioError("topology.file", str(path), f"must be a GraphML file: {broken}") from (
            broken
        )
    if not len(graph):
        raise ScenarioError("topology.file", str(path), "must have at least one node")
    keys = sorted(graph, key=_natural)
    labels = {key: str(graph.nodes[key].get("label", "")).strip() for key in keys}
    ids = dict(zip(keys, unique_ids([labels[k] or f"n{k}" for k in keys]), strict=True))
    edges = _edges(graph, ids)
    if component == "largest":
        kept = components(ids.values(), ((edge.a, edge.b) for edge in edges))[0]
        ids = {key: name for key, name in ids.items() if name in kept}
        edges = [edge for edge in edges if edge.a in kept]
    places = {ids[key]: _lat_lon(graph.nodes[key]) for key in ids}
    positions = _positions(places, edges)
    return Layout(
        tuple(Site(ids[k], labels[k], positions[ids[k]], places[ids[k]]) for k in ids),
        tuple(edges),
    )


def unique_ids(labels: Sequence[str]) -> list[NodeId]:
    """Return a node id for each label: its letters and digits, numbered where two are alike."""
    plain = [_plain(label) for label in labels]
    taken, ids = set(plain), list[NodeId]()
    used = set[str]()
    for name in plain:
        number = 2
        candidate = name
        while candidate in used:
            candidate = f"{name[: 63 - len(str(number))]}-{number}"
            if candidate in taken:
                candidate = name
            number += 1
        used.add(candidate)
        ids.append(NodeId(candidate))
    return ids


def _plain(label: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    words = re.sub(r"[^A-Za-z0-9._]+", "-", ascii_only).strip("-._")
    return words[:64].rstrip("-._") or "node"


def _natural(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isdecimal() else (1 << 62, key)


def _edges(graph: Any, ids: Mapping[str, NodeId]) -> list[Edge]:
    order = {key: i for i, key in enumerate(ids)}
    fastest: dict[tuple[str, str], float | None] = {}
    for a, b, attributes in graph.edges(data=True):
        if a == b:
            continue
        pair = (a, b) if order[a] < order[b] else (b, a)
        speed, known = _positive(attributes.get(SPEED)), fastest.get(pair)
        fastest[pair] = max(speed, known) if speed and known else speed or known
    return [
        Edge(ids[a], ids[b], bandwidth_mbps=None if bps is None else bps / 1e6)
        for (a, b), bps in sorted(fastest.items(), key=lambda e: (order[e[0][0]], order[e[0][1]]))
    ]


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _lat_lon(attributes: Mapping[str, Any]) -> tuple[float, float] | None:
    lat, lon = _number(attributes.get("Latitude")), _number(attributes.get("Longitude"))
    if lat is None or lon is None or abs(lat) > 90 or abs(lon) > 180:
        return None
    return lat, lon


def _positions(
    places: Mapping[NodeId, tuple[float, float] | None], edges: Sequence[Edge]
) -> dict[NodeId, tuple[float, float]]:
    """Return drawing positions: known places projected, the others between their neighbours."""
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
    return {name: (round(x, 6), round(y, 6)) for name, (x, y) in spots.items()}


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
