from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.advert import Advert, DataAdvert, LinkAdvert, Notice, Role
from aats.identity import Identity
from aats.ids import NodeId, new_packet_id
from aats.messages import Flood, Message, Pull, Summary, SummaryEntry
from aats.topology import linkstate
from aats.topology.linkstate import LinkState

DELAY_S = 0.02
SEED = b"linkstate"


def identity(name: str) -> Identity:
    return Identity.from_seed(NodeId(name), SEED)


def content(samples: int = 100) -> Advert:
    data = (DataAdvert("digits", "schema", samples),)
    return Advert(NodeId(""), 0, b"", roles=(Role.DATA,), data=data)


class Network:
    """LinkStates on a virtual clock, over links that delay, drop, repeat, reorder and fail."""

    def __init__(self, graph: nx.Graph, *, seed: int = 0, drop: float = 0.0, repeat: float = 0.0,
                 jitter_s: float = 0.0, **settings: float) -> None:  # fmt: skip
        self.rng = random.Random(seed)
        self.drop, self.repeat, self.jitter_s = drop, repeat, jitter_s
        self.settings = settings
        self.now = 0.0
        self.sent: list[tuple[NodeId, NodeId, Message]] = []
        self.cut: set[frozenset[NodeId]] = set()
        self.edges = {frozenset(map(NodeId, edge)) for edge in graph.edges}
        self._mail: list[tuple[float, int, NodeId, NodeId, Message]] = []
        self._count = 0
        self.nodes: dict[NodeId, LinkState] = {}
        for name in graph.nodes:
            self.start(NodeId(name))
        for a, b in sorted(tuple(sorted(edge)) for edge in self.edges):
            self.up(a, b)

    def start(self, name: NodeId, samples: int = 100) -> None:
        self.nodes[name] = LinkState(identity(name), **self.settings)
        self.nodes[name].set_own(content(samples), self.now)

    def up(self, a: NodeId, b: NodeId) -> None:
        for here, peer in ((a, b), (b, a)):
            if here in self.nodes:
                self.nodes[here].link_up(LinkAdvert(peer, 1e8, DELAY_S), self.now)
        self.flush()

    def down(self, a: NodeId, b: NodeId) -> None:
        for here, peer in ((a, b), (b, a)):
            if here in self.nodes:
                self.nodes[here].link_down(peer, self.now)
        self.flush()

    def kill(self, name: NodeId) -> None:
        del self.nodes[name]
        for edge in self.edges:
            if name in edge:
                self.down(*edge)

    def flush(self) -> None:
        for name, node in self.nodes.items():
            for peer, message in node.take():
                self.sent.append((name, peer, message))
                if self.rng.random() < self.drop or frozenset((name, peer)) in self.cut:
                    continue
                for _ in range(1 + (self.rng.random() < self.repeat)):
                    self._count += 1
                    at = self.now + DELAY_S + self.rng.random() * self.jitter_s
                    heapq.heappush(self._mail, (at, self._count, name, peer, message))

    def run(self, until: float) -> None:
        while True:
            timers = [
                (max(self.now, due), name)
                for name, node in self.nodes.items()
                if (due := node.next_deadline()) is not None
            ]
            due, name = min(timers, default=(float("inf"), NodeId("")))
            mail_at = self._mail[0][0] if self._mail else float("inf")
            if min(due, mail_at) > until:
                break
            self.now = min(due, mail_at)
            if mail_at <= due:
                _, _, sender, to, message = heapq.heappop(self._mail)
                if to in self.nodes:
                    self.nodes[to].receive(sender, message, self.now)
            else:
                self.nodes[name].tick(self.now)
            self.flush()
        self.now = until

    def databases(self) -> list[dict[NodeId, Advert]]:
        return [
            {origin: advert for origin, (advert, _) in node.adverts(self.now).items()}
            for node in self.nodes.values()
        ]

    def agree(self) -> bool:
        first, *rest = self.databases()
        return first.keys() == self.nodes.keys() and all(first == other for other in rest)


def random_graph(seed: int, num_nodes: int = 50) -> nx.Graph:
    graph = nx.connected_watts_strogatz_graph(num_nodes, 4, 0.3, seed=seed)
    return nx.relabel_nodes(graph, {i: f"n{i:02}" for i in graph.nodes})


@pytest.mark.parametrize("seed", [1, 2])
def test_change_is_everywhere_within_diameter_and_twice_per_link_at_most(seed: int) -> None:
    graph = random_graph(seed)
    network = Network(graph, refresh_s=1e6, max_age_s=1e7, summary_s=1e6)
    network.run(3.0)
    assert network.agree()
    for samples, name in enumerate(map(NodeId, ("n07", "n22", "n48"))):
        network.sent.clear()
        network.nodes[name].set_own(content(samples), network.now)
        network.flush()
        network.run(network.now + nx.diameter(graph) * DELAY_S + 1e-9)
        assert network.agree()
        assert network.databases()[0][name].data[0].samples == samples
        network.run(network.now + 1.0)
        carried = Counter(frozenset((a, b)) for a, b, m in network.sent if isinstance(m, Flood))
        assert max(carried.values()) <= 2
        assert len(network.sent) <= 2 * graph.number_of_edges()


@pytest.mark.parametrize("seed", [3, *(pytest.param(s, marks=pytest.mark.slow) for s in (4, 5))])
def test_of_vanished_nodes_nothing_stale_is_left_after_max_age(seed: int) -> None:
    refresh_s, max_age_s = 30.0, 60.0
    network = Network(random_graph(seed), refresh_s=refresh_s, max_age_s=max_age_s, summary_s=20.0)
    network.run(5.0)
    assert network.agree()
    for name in ("n03", "n17", "n31"):
        network.kill(NodeId(name))
        network.run(network.now + 1.0)
    assert len(network.databases()[0]) == 50, "they were gone before their time"
    network.run(network.now + max_age_s)
    assert network.agree()
    network.run(network.now + refresh_s)
    assert network.agree()
    numbers = {name: node.own_seq for name, node in network.nodes.items()}
    told = [
        (numbers[origin] - advert.seq, age)
        for node in network.nodes.values()
        for origin, (advert, age) in node.adverts(network.now).items()
    ]
    assert len(told) == 47**2
    assert max(behind for behind, _ in told) == 0
    assert max(age for _, age in told) <= refresh_s + 50 * DELAY_S


@pytest.mark.parametrize("seed", range(4))
def test_lossy_repeating_reordering_links_end_with_one_database(seed: int) -> None:
    network = Network(
        random_graph(seed, 10), seed=seed, drop=0.3, repeat=0.2, jitter_s=0.1,
        refresh_s=20.0, max_age_s=80.0, summary_s=1.0,
    )  # fmt: skip
    for step in range(6):
        network.run(network.now + 0.5)
        name = network.rng.choice(sorted(network.nodes))
        network.nodes[name].set_own(content(step), network.now)
        network.flush()
    network.drop = 0.0
    network.run(network.now + 5.0)
    assert network.agree()


def test_partition_heals() -> None:
    network = Network(random_graph(5, 12), refresh_s=20.0, max_age_s=100.0, summary_s=2.0)
    network.run(2.0)
    west = {NodeId(f"n{i:02}") for i in range(6)}
    across = [edge for edge in network.edges if len(edge & west) == 1]
    for edge in across:
        network.down(*edge)
    for name in ("n01", "n09"):
        network.nodes[NodeId(name)].set_own(content(9), network.now)
    network.flush()
    network.run(network.now + 10.0)
    assert not network.agree()
    for edge in across:
        network.up(*edge)
    network.run(network.now + 1.0)
    assert network.agree()


def test_silent_partition_heals_without_a_link_event() -> None:
    network = Network(random_graph(6, 8), refresh_s=50.0, max_age_s=200.0, summary_s=1.0)
    network.run(2.0)
    network.cut = set(network.edges)
    network.nodes[NodeId("n02")].set_own(content(2), network.now)
    network.flush()
    network.run(network.now + 1.0)
    network.cut = set()
    network.run(network.now + 4.0)
    assert network.agree()


@pytest.mark.parametrize("is_noticed", [True, False])
def test_restart_at_zero_jumps_above_the_old_number(is_noticed: bool) -> None:
    network = Network(random_graph(7, 8), refresh_s=50.0, max_age_s=200.0, summary_s=5.0)
    network.run(1.0)
    name = NodeId("n04")
    for samples in range(1, 6):
        network.nodes[name].set_own(content(samples), network.now)
        network.flush()
        network.run(network.now + 0.5)
    old = network.nodes[name].own_seq
    if is_noticed:
        network.kill(name)
    network.start(name, samples=77)
    for edge in network.edges:
        if name in edge:
            network.up(*edge)
    network.run(network.now + 1.0)
    assert network.nodes[name].own_seq > old
    assert network.agree()
    assert network.databases()[0][name].data[0].samples == 77


def test_restart_jumps_even_after_its_advert_was_purged() -> None:
    network = Network(random_graph(8, 6), refresh_s=3.0, max_age_s=10.0, summary_s=1.0)
    network.run(6.0)
    network.kill(NodeId("n02"))
    network.run(network.now + 12.0)
    network.start(NodeId("n02"))
    for edge in network.edges:
        if "n02" in edge:
            network.up(*edge)
    network.run(network.now + 1.0)
    assert network.agree()


def test_restored_number_is_continued() -> None:
    node = LinkState(identity("a"))
    node.restore(41)
    node.set_own(content(), 0.0)
    assert node.own_seq == 42


def test_origination_is_damped_and_the_last_state_is_told() -> None:
    network = Network(nx.path_graph(["a", "b"]), min_interval_s=1.0, refresh_s=1e6, max_age_s=1e7)
    network.run(3.0)
    before = network.nodes[NodeId("a")].own_seq
    for i in range(20):
        network.nodes[NodeId("a")].set_own(content(i), network.now)
        network.flush()
        network.run(network.now + 0.05)
    network.run(network.now + 2.0)
    assert network.nodes[NodeId("a")].own_seq <= before + 2
    assert network.databases()[1][NodeId("a")].data[0].samples == 19


def test_unchanged_content_is_not_told_again_before_the_refresh() -> None:
    node = LinkState(identity("a"), refresh_s=30.0)
    node.set_own(content(), 0.0)
    node.set_own(content(), 5.0)
    node.tick(29.9)
    assert node.own_seq == 1
    node.tick(30.0)
    assert node.own_seq == 2


def test_own_change_is_in_our_own_map_before_damping_lets_it_out() -> None:
    node = LinkState(identity("a"), min_interval_s=10.0)
    node.set_own(content(), 0.0)
    node.take_changes()
    node.link_up(LinkAdvert(NodeId("b"), 1e6, 0.01), 1.0)
    known = node.take_changes()[NodeId("a")]
    assert known is not None
    assert [link.peer for link in known.advert.links] == ["b"]
    assert node.own_seq == 1


def told_by(name: str, samples: int = 100, refreshes: int = 0) -> Flood:
    """Return what `name` floods to a neighbour b after some refreshes."""
    node = LinkState(identity(name), refresh_s=1.0)
    node.set_own(content(samples), 0.0)
    node.link_up(LinkAdvert(NodeId("b"), 1e8, DELAY_S), 0.0)
    for i in range(refreshes):
        node.tick(1.0 + i)
    floods = [m for _, m in node.take() if isinstance(m, Flood)]
    return floods[-1]


def listener(**settings: object) -> LinkState:
    node = LinkState(identity("b"), **settings)  # type: ignore[arg-type]
    node.set_own(content(), 0.0)
    for peer in ("a", "c"):
        node.link_up(LinkAdvert(NodeId(peer), 1e8, DELAY_S), 0.0)
    node.take()
    return node


@pytest.mark.parametrize("bit", range(0, 512, 37))
def test_bit_flipped_signature_is_rejected_and_not_passed_on(bit: int) -> None:
    node = listener()
    (signed,) = told_by("a").adverts
    flipped = bytearray(signed.signature)
    flipped[bit // 8] ^= 1 << bit % 8
    node.receive(NodeId("a"), Flood((replace(signed, signature=bytes(flipped)),)), 0.0)
    assert node.take() == []
    assert NodeId("a") not in node.adverts(0.0)
    assert node.rejected["signature"] == 1
    (rejection,) = node.take_rejections()
    assert (rejection.sender, rejection.origin) == ("a", "a")


def test_renumbered_or_renamed_advert_is_rejected() -> None:
    node = listener()
    (signed,) = told_by("a").adverts
    wrong = replace(signed, seq=99), replace(signed, origin=NodeId("z"))
    node.receive(NodeId("a"), Flood(wrong), 0.0)
    assert node.rejected.total() == 2
    assert node.take() == []


def test_undecodable_body_is_rejected() -> None:
    node = listener()
    (signed,) = told_by("a").adverts
    node.receive(NodeId("a"), Flood((replace(signed, body=b"\xff" * 40),)), 0.0)
    assert node.rejected["malformed"] == 1


def test_only_known_keys_count() -> None:
    keys = {NodeId("a"): identity("a").public_key, NodeId("c"): b"\1" * 32}
    node = listener(known_keys=keys)
    for name in ("a", "c", "d"):
        node.receive(NodeId("a"), told_by(name), 0.0)
    assert set(node.adverts(0.0)) == {"a", "b"}
    assert node.rejected == {"signature": 1, "unknown-key": 1}


def test_first_key_seen_for_a_name_is_the_one_that_counts() -> None:
    node = listener()
    node.receive(NodeId("a"), told_by("a"), 0.0)
    thief = LinkState(Identity.from_seed(NodeId("a"), b"thief"))
    thief.restore(100)
    thief.set_own(content(), 0.0)
    thief.link_up(LinkAdvert(NodeId("b"), 1e8, DELAY_S), 0.0)
    for _, message in thief.take():
        if isinstance(message, Flood):
            node.receive(NodeId("c"), message, 0.0)
    assert node.rejected["signature"] == 1
    assert node.adverts(0.0)[NodeId("a")][0].public_key == identity("a").public_key


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkstate, "MAX_ORIGINS", 3)
    node = listener()
    for i in range(6):
        node.receive(NodeId("a"), told_by(f"x{i}"), 0.0)
    assert len(node.adverts(0.0)) == 4
    assert node.rejected["unknown-key"] == 3


def test_age_grows_on_the_way_and_in_store() -> None:
    network = Network(nx.path_graph(["a", "b", "c", "d"]), refresh_s=1e6, max_age_s=1e7)
    network.run(1.0)
    told = network.nodes[NodeId("a")]
    network.run(11.0)
    own_age = told.adverts(network.now)[NodeId("a")][1]
    for node in network.nodes.values():
        assert node.adverts(network.now)[NodeId("a")][1] == pytest.approx(own_age)
    assert own_age > 9.0


def test_too_old_an_advert_is_not_taken() -> None:
    node = listener(max_age_s=10.0)
    (signed,) = told_by("a").adverts
    node.receive(NodeId("a"), Flood((replace(signed, age_s=10.0),)), 0.0)
    assert NodeId("a") not in node.adverts(0.0)
    assert node.take() == []


def test_older_advert_is_answered_with_the_newer_one() -> None:
    node = listener()
    node.receive(NodeId("a"), told_by("a", refreshes=3), 0.0)
    node.take()
    node.receive(NodeId("c"), told_by("a"), 0.0)
    ((peer, answer),) = node.take()
    assert peer == "c"
    assert isinstance(answer, Flood)
    assert answer.adverts[0].seq == 4


def test_summary_pulls_what_is_missing_and_pushes_what_is_newer() -> None:
    node = listener()
    node.receive(NodeId("a"), told_by("a", refreshes=3), 0.0)
    node.take()
    lines = (SummaryEntry(NodeId("a"), 2), SummaryEntry(NodeId("z"), 1))
    node.receive(NodeId("c"), Summary(lines), 0.0)
    pull, push = (message for _, message in node.take())
    assert pull == Pull((NodeId("z"),))
    assert isinstance(push, Flood)
    assert [(s.origin, s.seq) for s in push.adverts] == [("a", 4)]


def test_notices_keep_the_newest() -> None:
    node = LinkState(identity("a"))
    rng = random.Random(0)
    notices = tuple(Notice(new_packet_id(i, rng), i) for i in range(500))
    node.set_own(replace(content(), notices=notices), 0.0)
    kept = node.adverts(0.0)[NodeId("a")][0].notices
    assert kept == notices[-linkstate.MAX_NOTICES :]


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(8)), st.lists(st.integers(0, 7), max_size=6))
def test_order_and_repetition_do_not_matter(order: list[int], again: list[int]) -> None:
    said = [told_by(name, refreshes=n) for name in ("a", "c") for n in range(4)]
    node = listener(known_keys=None)
    for i in (*order, *again):
        node.receive(NodeId("a"), said[i], 0.0)
    found = {origin: advert.seq for origin, (advert, _) in node.adverts(0.0).items()}
    assert found == {"a": 4, "b": 1, "c": 4}


def test_ends_that_see_their_link_at_different_times_know_alike_at_once() -> None:
    network = Network(nx.Graph([("a", "b"), ("c", "d")]))
    network.run(1.0)
    b, c = NodeId("b"), NodeId("c")
    link = {b: LinkAdvert(c, 1e8, DELAY_S), c: LinkAdvert(b, 1e8, DELAY_S)}
    network.nodes[b].link_up(link[b], network.now)
    for _, message in [m for m in network.nodes[b].take() if m[0] == c]:
        network.nodes[c].receive(b, message, network.now)
    # What c would answer is lost: it has no link to b yet.
    for peer, message in network.nodes[c].take():
        if peer != b:
            network.nodes[peer].receive(c, message, network.now)
    network.nodes[c].link_up(link[c], network.now)
    network.edges.add(frozenset((b, c)))
    network.flush()
    network.run(network.now + 10 * DELAY_S)
    assert {len(database) for database in network.databases()} == {4}
