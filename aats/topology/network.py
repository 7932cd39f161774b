"""The network as it is built, before any node knows of it: sites, links and their figures.

A generator or a file gives a `Layout` (who is joined to whom, and what is known of it); `fill`
adds the figures the layout leaves open, and `Network.of` has them in SI units.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from aats.bounds import Between
from aats.ids import NodeId

EARTH_RADIUS_KM = 6371.0
FIBRE_KM_PER_MS = 200.0
"""Light in glass: two thirds of its speed in vacuum."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a node stands."""

    name: NodeId
    label: str = ""
    """For people: a city, a hospital. Need not be unique."""
    position: tuple[float, float] = (0.5, 0.5)
    """Place in the unit square, for drawing."""
    lat_lon: tuple[float, float] | None = None
    """Degrees north and east, where known."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Two joined sites and what the source says of the link; None where it says nothing."""

    a: NodeId
    b: NodeId
    bandwidth_mbps: float | None = None
    latency_ms: float | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Sites and edges; at most one edge between two sites, none from a site to itself."""

    sites: tuple[Site, ...]
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A link with all its figures; the same in both directions."""

    a: NodeId
    b: NodeId
    bandwidth_bps: float
    """Bits per second."""
    latency_s: float
    """One way, seconds."""
    loss: float
    """Share of messages lost, 0-1."""


@dataclass(frozen=True, slots=True)
class LinkDefaults:
    """The `[links]` table: figures of the links that state none of their own."""

    bandwidth_mbps: Annotated[float, Between(0, open_low=True)] = 100.0
    """Megabits per second, each direction. The default is a modest hospital uplink."""
    latency_ms: Annotated[float, Between(0, 60_000)] = 5.0
    """One way, milliseconds; with `from_distance` what is added to the time in the fibre."""
    loss: Annotated[float, Between(0, 1)] = 0.0
    """Share of control messages lost."""
    spread: Annotated[float, Between(0, 100)] = 0.0
    """Unevenness: default bandwidth and latency of each link are multiplied by a factor drawn
    log-uniformly from 1 / (1 + spread) to 1 + spread. 0: all alike."""
    from_distance: bool = True
    """Add the light's time in fibre along the great circle where both ends have coordinates."""


@dataclass(frozen=True, slots=True)
class Network:
    """Sites and the links between them."""

    sites: tuple[Site, ...] = ()
    links: tuple[Link, ...] = ()
    _joined: dict[NodeId, dict[NodeId, Link]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for site in self.sites:
            self._joined[site.name] = {}
        for link in self.links:
            self._joined[link.a][link.b] = self._joined[link.b][link.a] = link

    @classmethod
    def of(cls, layout: Layout) -> Network:
        """Return the network of a filled layout; a figure that is missing counts as 0."""
        return cls(
            layout.sites,
            tuple(
                Link(
                    edge.a,
                    edge.b,
                    1e6 * (edge.bandwidth_mbps or 0.0),
                    1e-3 * (edge.latency_ms or 0.0),
                    edge.loss or 0.0,
                )
                for edge in layout.edges
            ),
        )

    @property
    def names(self) -> tuple[NodeId, ...]:
        """Node ids in order."""
        return tuple(site.name for site in self.sites)

    def neighbours(self, node: NodeId) -> Mapping[NodeId, Link]:
        """Return the links of one node by the node at their other end."""
        return self._joined[node]

    def components(self) -> tuple[frozenset[NodeId], ...]:
        """Return the connected parts, the largest first (ties: in site order)."""
        return components(self.names, ((link.a, link.b) for link in self.links))

    def graph(self) -> Any:
        """Return a `networkx.Graph` with the links' figures as edge attributes."""
        import networkx as nx

        graph = nx.Graph()
        graph.add_nodes_from(self.names)
        for link in self.links:
            graph.add_edge(
                link.a, link.b,
                bandwidth_bps=link.bandwidth_bps, latency_s=link.latency_s, loss=link.loss,
            )  # fmt: skip
        return graph


def components(
    names: Iterable[NodeId], pairs: Iterable[tuple[NodeId, NodeId]]
) -> tuple[frozenset[NodeId], ...]:
    """Return the connected parts of a graph, the largest first (ties: in the order of names)."""
    joined: dict[NodeId, set[NodeId]] = {name: {name} for name in names}
    for a, b in pairs:
        joined[a].add(b)
        joined[b].add(a)
    parts, seen = [], set[NodeId]()
    for name in joined:
        if name in seen:
            continue
        part, frontier = set[NodeId](), [name]
        while frontier:
            here = frontier.pop()
            if here not in part:
                part.add(here)
                frontier.extend(joined[here] - part)
        seen |= part
        parts.append(frozenset(part))
    return tuple(sorted(parts, key=len, reverse=True))


def great_circle_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return the distance of two (latitude, longitude) points in degrees (haversine)."""
    (lat_a, lon_a), (lat_b, lon_b) = (tuple(map(math.radians, p)) for p in (a, b))
    h = (
        math.sin((lat_b - lat_a) / 2) ** 2
        + math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, h)))


def fill(layout: Layout, defaults: LinkDefaults, seed: int) -> Layout:
    """Return the layout with every figure of every edge filled in; one seed, one result."""
    at = {site.name: site.lat_lon for site in layout.sites}
    rng = random.Random(f"links {seed}")
    width = math.log1p(defaults.spread)

    def filled(edge: Edge) -> Edge:
        faster, slower = (math.exp(rng.uniform(-width, width)) for _ in range(2))
        a, b = at[edge.a], at[edge.b]
        in_fibre = (
            great_circle_km(a, b) / FIBRE_KM_PER_MS if defaults.from_distance and a and b else 0.0
        )
        bandwidth, latency, loss = edge.bandwidth_mbps, edge.latency_ms, edge.loss
        return Edge(
            edge.a,
            edge.b,
            defaults.bandwidth_mbps * faster if bandwidth is None else bandwidth,
            defaults.latency_ms * slower + in_fibre if latency is None else latency,
            defaults.loss if loss is None else loss,
        )

    return Layout(layout.sites, tuple(map(filled, layout.edges)))
