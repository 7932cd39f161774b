from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.errors import ScenarioError
from aats.ids import NodeId
from aats.packet import Plugin
from aats.topology.generate import GENERATORS, generate, joined
from aats.topology.network import Edge, LinkDefaults, Network, fill

SEEDED = ("random-geometric", "erdos-renyi", "barabasi-albert", "watts-strogatz")
SPARSE: dict[str, dict[str, Any]] = {
    "random-geometric": {"radius": 0.05},
    "erdos-renyi": {"probability": 0.01},
}


def made(name: str, seed: int = 0, names: tuple[str, ...] = (), **params: Any) -> Network:
    layout = generate(Plugin(name, params), tuple(map(NodeId, names)), seed)
    return Network.of(fill(layout, LinkDefaults(), seed))


@pytest.mark.parametrize(
    ("name", "params", "reference"),
    [
        ("ring", {"nodes": 7}, nx.cycle_graph(7)),
        ("line", {"nodes": 7}, nx.path_graph(7)),
        ("star", {"nodes": 7}, nx.star_graph(6)),
        ("complete", {"nodes": 7}, nx.complete_graph(7)),
        ("tree", {"nodes": 13, "branching": 3}, nx.full_rary_tree(3, 13)),
        ("grid", {"rows": 3, "columns": 4}, nx.grid_2d_graph(3, 4)),
        ("watts-strogatz", {"nodes": 9, "neighbours": 4, "rewired": 0.0},
         nx.watts_strogatz_graph(9, 4, 0)),
    ],
)  # fmt: skip
def test_regular_shapes_are_those_of_networkx(
    name: str, params: dict[str, Any], reference: nx.Graph
) -> None:
    graph = made(name, **params).graph()
    assert nx.is_isomorphic(graph, reference)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("seed", range(3))
def test_layouts_are_connected_inside_the_square_and_repeatable(name: str, seed: int) -> None:
    network = made(name, seed, **SPARSE.get(name, {}))
    assert len(network.components()) == 1
    assert all(0 <= x <= 1 for site in network.sites for x in site.position)
    assert len({site.position for site in network.sites}) == len(network.sites)
    assert network == made(name, seed, **SPARSE.get(name, {}))


@pytest.mark.parametrize("name", SEEDED)
def test_another_seed_gives_another_network(name: str) -> None:
    assert made(name, 1).links != made(name, 2).links


@given(nodes=st.integers(2, 40), links=st.integers(1, 4), seed=st.integers(0, 9))
def test_preferential_attachment_has_its_number_of_links(nodes: int, links: int, seed: int) -> None:
    if links < nodes:
        network = made("barabasi-albert", seed, nodes=nodes, links=links)
        assert len(network.links) == links * (nodes - links)


@given(nodes=st.integers(1, 60), radius=st.floats(0.01, 1.5), seed=st.integers(0, 9))
def test_geometric_links_are_the_short_ones(nodes: int, radius: float, seed: int) -> None:
    layout = generate(Plugin("random-geometric", {"nodes": nodes, "radius": radius}), (), seed)
    at = {site.name: site.position for site in layout.sites}
    graph = Network.of(layout).graph()
    near = nx.geometric_edges(_placed(at), radius)
    missing = {frozenset(pair) for pair in near} - {frozenset(pair) for pair in graph.edges}
    assert all(abs(_distance(at, *pair) - radius) < 1e-9 for pair in missing)
    assert nx.is_connected(graph)


def _placed(at: dict[NodeId, tuple[float, float]]) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from((name, {"pos": spot}) for name, spot in at.items())
    return graph


def _distance(at: dict[NodeId, tuple[float, float]], a: NodeId, b: NodeId) -> float:
    return float(sum((x - y) ** 2 for x, y in zip(at[a], at[b], strict=True)) ** 0.5)


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("name", ["ring", "line", "star", "complete", "tree"])
def test_the_smallest_networks_have_no_loops_or_doubles(name: str, nodes: int) -> None:
    network = made(name, nodes=nodes)
    assert len(network.sites) == nodes
    assert len(network.components()) == 1
    assert all(link.a != link.b for link in network.links)


def test_names_give_the_number_of_nodes() -> None:
    assert made("ring", names=("A", "B", "C")).names == ("A", "B", "C")


def test_spread_varies_the_figures_within_its_bounds() -> None:
    layout = generate(Plugin("complete", {"nodes": 12}), (), 0)
    defaults = LinkDefaults(bandwidth_mbps=100, latency_ms=10, spread=1.0)
    links = Network.of(fill(layout, defaults, seed=3)).links
    assert all(50e6 <= link.bandwidth_bps <= 200e6 for link in links)
    assert all(5e-3 <= link.latency_s <= 20e-3 for link in links)
    assert len({link.bandwidth_bps for link in links}) > 50


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("rnig", {}, "did you mean 'ring'"),
        ("ring", {"node": 3}, "did you mean 'nodes'"),
        ("ring", {"nodes": 0}, "nodes must be 1-"),
        ("ring", {"nodes": "8"}, "a whole number is wanted"),
        ("ring", {"nodes": 10**9}, "nodes must be 1-"),
        ("erdos-renyi", {"rng": 3}, "parameters of erdos-renyi are nodes, probability"),
        ("erdos-renyi", {"probability": 2}, "a probability must be 0-1"),
        ("watts-strogatz", {"neighbours": 3}, "neighbours must be even"),
        ("grid", {"rows": -1}, "at least 1"),
        ("random-geometric", {"radius": float("nan")}, "a number is wanted"),
    ],
)
def test_wrong_settings_are_named(name: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ScenarioError, match=says):
        generate(Plugin(name, params), (), 0)


def test_an_edge_may_stand_once() -> None:
    a, b = NodeId("A"), NodeId("B")
    with pytest.raises(ScenarioError, match="once"):
        joined((), [Edge(a, b), Edge(b, a)])
