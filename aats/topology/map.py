"""The global map (DA-ITN G-KRRM) as one node sees it: adverts, links that work, cheapest paths."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import pairwise

import networkx as nx

from aats.advert import Advert, LinkAdvert
from aats.ids import NodeId
from aats.topology.linkstate import Known

MAX_CACHED = 64
"""Shortest-path trees kept; a node handles few packet sizes at a time."""
HOP_S = 1e-6
"""Added to every link, so that of two free paths the shorter one wins."""
MAX_LOSS = 0.999
"""Above this a link is treated as this bad, not as infinitely bad."""

Tree = tuple[dict[NodeId, float], dict[NodeId, NodeId]]
"""Seconds to every node that can be reached, and the node before it on the way."""


class GlobalMap:
    """An incremental view over adverts, with the graph of links that can be used.

    A link can be used when both of its ends advertise it. Of our own links we know ourselves:
    there our word counts alone.

    Args:
        here: The node whose view this is.
    """

    def __init__(self, here: NodeId) -> None:
        self.here = here
        self.graph: nx.DiGraph[NodeId] = nx.DiGraph()
        """An edge each way per usable link, with the `link` (a `LinkAdvert`) of its direction."""
        self._known: dict[NodeId, Known] = {}
        self._trees: OrderedDict[tuple[NodeId, int], Tree] = OrderedDict()

    def apply(self, changes: Mapping[NodeId, Known | None]) -> None:
        """Take in what a `LinkState` learnt (`take_changes`); None is a node forgotten."""
        for origin, known in changes.items():
            before = self._links_of(origin)
            if known is None:
                self._known.pop(origin, None)
            else:
                self._known[origin] = known
            after = self._links_of(origin)
            if before != after:
                self._relink(origin, before.keys() | after.keys())
            if known is not None:
                self.graph.add_node(origin)
            elif origin in self.graph and not self.graph.adj[origin]:
                self.graph.remove_node(origin)

    def advert(self, node: NodeId) -> Advert | None:
        """Return what a node advertises, None if nothing is known of it."""
        known = self._known.get(node)
        return known.advert if known else None

    def age_s(self, node: NodeId, now: float) -> float:
        """Return the age of a node's advert in seconds, infinity if there is none."""
        known = self._known.get(node)
        return known.age_s(now) if known else math.inf

    def adverts(self) -> Iterator[Advert]:
        """Iterate over all adverts in order of node id."""
        for node in sorted(self._known):
            yield self._known[node].advert

    def distances(self, source: NodeId, size_bytes: int) -> dict[NodeId, float]:
        """Return seconds to move `size_bytes` from `source` to every node in reach of it."""
        return dict(self._tree(source, size_bytes)[0])

    def path(self, source: NodeId, target: NodeId, size_bytes: int = 0) -> tuple[NodeId, ...]:
        """Return the cheapest path, the first link's far end first, `target` last.

        Returns:
            () if `target` is `source` or cannot be reached (`distances` tells which).
        """
        seconds, before = self._tree(source, size_bytes)
        if target not in seconds:
            return ()
        steps = []
        while target != source:
            steps.append(target)
            target = before[target]
        return tuple(reversed(steps))

    def transfer_s(self, source: NodeId, path: tuple[NodeId, ...], size_bytes: int) -> float:
        """Return seconds to move `size_bytes` along `path`, infinity over a link that is gone."""
        total_s = 0.0
        for a, b in pairwise((source, *path)):
            edge = self.graph.get_edge_data(a, b)
            if edge is None:
                return math.inf
            total_s += link_s(edge["link"], size_bytes)
        return total_s

    def _links_of(self, node: NodeId) -> dict[NodeId, LinkAdvert]:
        known = self._known.get(node)
        return {link.peer: link for link in known.advert.links} if known else {}

    def _relink(self, node: NodeId, peers: set[NodeId]) -> None:
        mine = self._links_of(node)
        for peer in peers:
            theirs = self._links_of(peer)
            if node == peer:
                continue
            if self.here in (node, peer):
                confirmed = peer in mine if node == self.here else node in theirs
            else:
                confirmed = peer in mine and node in theirs
            if confirmed:
                there, back = mine.get(peer), theirs.get(node)
                self.graph.add_edge(node, peer, link=there or back)
                self.graph.add_edge(peer, node, link=back or there)
            else:
                self.graph.remove_edges_from([(node, peer), (peer, node)])
        self._trees.clear()

    def _tree(self, source: NodeId, size_bytes: int) -> Tree:
        key = source, size_bytes
        tree = self._trees.get(key)
        if tree is None:
            tree = self._trees[key] = _dijkstra(self.graph, source, size_bytes)
            if len(self._trees) > MAX_CACHED:
                self._trees.popitem(last=False)
        self._trees.move_to_end(key)
        return tree


def link_s(link: LinkAdvert, size_bytes: int) -> float:
    """Return the expected seconds to move `size_bytes` over a link, repeats for loss included."""
    bits_s = size_bytes * 8 / link.bandwidth_bps if link.bandwidth_bps > 0 else math.inf
    return HOP_S + (max(0.0, link.latency_s) + bits_s) / (1 - min(max(0.0, link.loss), MAX_LOSS))


def _dijkstra(graph: nx.DiGraph[NodeId], source: NodeId, size_bytes: int) -> Tree:
    # Not networkx's: there a tie falls to the edge that was added first, and two nodes with the
    # same map must find the same path.
    seconds: dict[NodeId, float] = {source: 0.0}
    before: dict[NodeId, NodeId] = {}
    done: set[NodeId] = set()
    heap: list[tuple[float, NodeId]] = [(0.0, source)]
    while heap:
        so_far_s, node = heapq.heappop(heap)
        if node in done or node not in graph:
            continue
        done.add(node)
        for peer, edge in graph.adj[node].items():
            total_s = so_far_s + link_s(edge["link"], size_bytes)
            best_s = seconds.get(peer, math.inf)
            if total_s < best_s or (total_s == best_s < math.inf and node < before[peer]):
                seconds[peer], before[peer] = total_s, node
                heapq.heappush(heap, (total_s, peer))
    return seconds, before
