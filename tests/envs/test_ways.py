from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.advert import Advert
from aats.ids import NodeId
from aats.sim.link import LinkSpec
from aats.topology.drrt import HEADER_BYTES
from aats.topology.linkstate import Known
from aats.topology.map import GlobalMap
from aats.topology.network import Edge, Layout, Network, Site
from aats_envs.ways import Wires, ways

NAMES = [NodeId(f"n{i}") for i in range(12)]  # "n10" comes before "n2"


def network(edges: list[tuple[int, int, float, float]]) -> Network:
    return Network.of(Layout(
        tuple(map(Site, NAMES)),
        tuple(Edge(NAMES[a], NAMES[b], mbps, ms, 0.0) for a, b, mbps, ms in edges),
    ))  # fmt: skip


def map_of(net: Network) -> GlobalMap:
    found = GlobalMap(NodeId("elsewhere"))
    changes = {}
    for name in net.names:
        links = tuple(
            LinkSpec(x.a, x.b, x.bandwidth_bps, x.latency_s, x.loss).advert(name)
            for x in net.neighbours(name).values()
        )
        changes[name] = Known(Advert(name, 1, b"", links=links), 0.0)
    found.apply(changes)
    return found


pairs = st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda p: p[0] < p[1])
figures = st.tuples(st.sampled_from([1.0, 10.0, 100.0]), st.sampled_from([1.0, 2.0, 5.0]))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(pairs, figures, min_size=1, max_size=24))
def test_packets_go_the_ways_of_the_nodes_maps(links) -> None:
    net = network([(*pair, *values) for pair, values in links.items()])
    found, known = ways(Wires.of(net), 50_000, 40_000), map_of(net)
    for i, a in enumerate(NAMES):
        for j, b in enumerate(NAMES):
            path = known.path(a, b, 50_000 + HEADER_BYTES)
            if i == j:
                assert (found.transfer_s[i, j], found.links[i, j]) == (0, 0)
            elif not path:
                assert np.isinf([found.transfer_s[i, j], found.probe_s[i, j]]).all()
                assert found.links[i, j] == len(NAMES)
            else:
                assert found.links[i, j] == len(path)
                one = [net.neighbours(x)[y] for x, y in zip((a, *path), path, strict=False)]
                least = sum(3 * x.latency_s + 50_000 * 8 / x.bandwidth_bps for x in one)
                assert least < found.transfer_s[i, j] < least * 1.2


def test_loss_makes_a_way_longer() -> None:
    sites = tuple(map(Site, NAMES[:2]))
    seconds = [
        ways(Wires.of(Network.of(Layout(sites, (Edge(*NAMES[:2], 10.0, 5.0, loss),)))), 1e5, 1e5)
        for loss in (0.0, 0.1)
    ]
    assert seconds[0].transfer_s[0, 1] == pytest.approx(0.015 + (1e5 + 4096 + 164) * 8 / 1e7)
    assert seconds[1].transfer_s[0, 1] > seconds[0].transfer_s[0, 1] + 0.2
