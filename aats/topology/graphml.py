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
from aats.topology.network import Edge, Layout, Site, components
from aats.topology.place import positions

SPEED = "LinkSpeedRaw"
"""Edge attribute: bits per second."""


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
    spots = positions(places, edges)
    return Layout(
        tuple(Site(ids[k], labels[k], spots[ids[k]], places[ids[k]]) for k in ids),
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
