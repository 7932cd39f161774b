from __future__ import annotations

import math
import random

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.advert import Advert, LinkAdvert
from aats.ids import NodeId
from aats.topology.linkstate import Known
from aats.topology.map import GlobalMap, link_s

Links = dict[str, dict[str, tuple[float, float]]]
"""Node -> peer -> (bits per second, latency)."""


def known(name: str, peers: dict[str, tuple[float, float]], seq: int = 1) -> Known:
    links = tuple(LinkAdvert(NodeId(p), bps, latency) for p, (bps, latency) in peers.items())
    return Known(Advert(NodeId(name), seq, b"", links=links), 0.0)


def mapped(here: str, links: Links) -> GlobalMap:
    view = GlobalMap(NodeId(here))
    view.apply({NodeId(name): known(name, peers) for name, peers in links.items()})
    return view


FAST, SLOW = (1e8, 0.001), (1e6, 0.001)


def test_a_link_needs_both_ends_unless_one_is_ours() -> None:
    view = mapped("a", {"a": {"b": FAST}, "b": {"c": FAST}, "c": {"d": FAST}, "d": {"c": FAST}})
    assert view.path(NodeId("a"), NodeId("b")) == ("b",)
    assert view.path(NodeId("b"), NodeId("c")) == ()
    assert view.path(NodeId("c"), NodeId("d")) == ("d",)
    view.apply({NodeId("c"): known("c", {"b": FAST, "d": FAST})})
    assert view.path(NodeId("a"), NodeId("d")) == ("b", "c", "d")


def test_of_our_own_links_our_word_counts_alone() -> None:
    view = mapped("a", {"a": {}, "b": {"a": FAST}})
    assert view.path(NodeId("b"), NodeId("a")) == ()


def test_the_cheapest_path_depends_on_the_size() -> None:
    near, wide = (1e6, 0.001), (1e9, 0.05)
    links = {
        "a": {"b": near, "c": wide},
        "b": {"a": near, "d": near},
        "c": {"a": wide, "d": wide},
        "d": {"b": near, "c": wide},
    }
    view = mapped("a", links)
    assert view.path(NodeId("a"), NodeId("d"), 100) == ("b", "d")
    assert view.path(NodeId("a"), NodeId("d"), 10_000_000) == ("c", "d")


def test_loss_counts_as_repeats() -> None:
    clean = LinkAdvert(NodeId("b"), 1e6, 0.01)
    lossy = LinkAdvert(NodeId("b"), 1e6, 0.01, loss=0.5)
    assert link_s(lossy, 10_000) == pytest.approx(2 * link_s(clean, 10_000), rel=1e-3)


def test_a_node_forgotten_or_a_link_gone_changes_the_path() -> None:
    links = {"a": {"b": FAST, "c": SLOW}, "b": {"a": FAST, "d": FAST},
             "c": {"a": SLOW, "d": SLOW}, "d": {"b": FAST, "c": SLOW}}  # fmt: skip
    view = mapped("a", links)
    assert view.path(NodeId("a"), NodeId("d"), 1000) == ("b", "d")
    view.apply({NodeId("b"): None})
    assert view.path(NodeId("a"), NodeId("d"), 1000) == ("c", "d")
    assert view.advert(NodeId("b")) is None
    view.apply({NodeId("a"): known("a", {})})
    assert view.distances(NodeId("a"), 1000) == {"a": 0.0}


def test_transfer_over_a_link_that_is_gone_takes_forever() -> None:
    view = mapped("a", {"a": {"b": FAST}, "b": {"a": FAST}})
    assert view.transfer_s(NodeId("a"), (NodeId("b"),), 1000) == pytest.approx(0.00108, rel=1e-2)
    assert view.transfer_s(NodeId("a"), (NodeId("z"),), 1000) == math.inf


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_paths_equal_networkx_and_do_not_depend_on_the_order_of_news(seed: int) -> None:
    rng = random.Random(seed)
    graph = nx.gnp_random_graph(12, 0.3, seed=seed)
    links: Links = {f"n{i}": {} for i in graph.nodes}
    for a, b in graph.edges:
        # Few distinct values, so that there are ties to break.
        links[f"n{a}"][f"n{b}"] = links[f"n{b}"][f"n{a}"] = (rng.choice([1e6, 2e6]), 0.0)
    one = mapped("n0", links)
    order = list(links)
    rng.shuffle(order)
    other = GlobalMap(NodeId("n0"))
    for name in order:
        other.apply({NodeId(name): known(name, dict(reversed(links[name].items())))})
    for target in map(NodeId, links):
        path = one.path(NodeId("n0"), target, 1000)
        assert path == other.path(NodeId("n0"), target, 1000)
        seconds = one.distances(NodeId("n0"), 1000).get(target, math.inf)
        assert one.transfer_s(NodeId("n0"), path, 1000) == (
            pytest.approx(seconds) if path or target == "n0" else 0.0
        )
    expected = nx.single_source_dijkstra_path_length(
        one.graph, "n0", weight=lambda a, b, edge: link_s(edge["link"], 1000)
    )
    assert one.distances(NodeId("n0"), 1000) == pytest.approx(expected)
