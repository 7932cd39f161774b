from __future__ import annotations

import math
import random
from dataclasses import replace

import networkx as nx
import pytest

from aats.advert import (
    Advert,
    ComputeAdvert,
    DataAdvert,
    LinkAdvert,
    NodePolicy,
    ProbeMode,
    Role,
)
from aats.ids import NodeId, PacketId
from aats.packet import (
    UNLIMITED,
    Architecture,
    Header,
    Mandate,
    Owner,
    PacketKind,
    Plugin,
    ProbeEntry,
    Target,
    VisitEntry,
)
from aats.payload import Manifest
from aats.topology.drrt import HEADER_BYTES, cut
from aats.topology.linkstate import Known
from aats.topology.map import GlobalMap
from aats.topology.stops import Candidate, StopKind

SKILLS = ("cardiology", "oncology")


def packet(owner: str = "home", skills: tuple[str, ...] = SKILLS, size_bytes: int = 50_000,
           **state: object) -> Header:  # fmt: skip
    mandate = Mandate(
        id=PacketId("p"), kind=PacketKind.TRAIN, owner=Owner(NodeId(owner), b""), created=0.0,
        deadline=math.inf, requirement=tuple(Target(s, 0.9) for s in skills), budget=UNLIMITED,
        architecture=Architecture("mlp", {"schemas": {"oncology": "onco-1"}}),
        method=Plugin("sequential"), policy=Plugin("minibatch"), seed=1,
    )  # fmt: skip
    return Header(mandate, manifest=Manifest((), size_bytes), **state)  # type: ignore[arg-type]


def node(name: str, peers: str = "", **fields: object) -> Known:
    links = tuple(LinkAdvert(NodeId(p), 1e8, 0.01) for p in peers.split())
    return Known(Advert(NodeId(name), 1, b"", links=links, **fields), 0.0)  # type: ignore[arg-type]


def data_node(name: str, peers: str, *data: DataAdvert, **fields: object) -> Known:
    fields.setdefault("compute", ComputeAdvert(100.0, queue=1))
    return node(name, peers, roles=(Role.DATA, Role.COMPUTE), data=data, **fields)


def view(here: str, *known: Known) -> GlobalMap:
    result = GlobalMap(NodeId(here))
    result.apply({k.advert.origin: k for k in known})
    return result


def by_node(topology_candidates: tuple[Candidate, ...]) -> dict[tuple[StopKind, str], Candidate]:
    return {(c.kind, c.node): c for c in topology_candidates}


CARDIO = DataAdvert("cardiology", "any", 300, labels=(200, 100), quality=0.5, seq=3)
ONCO = DataAdvert("oncology", "onco-1", 100, quality=0.9, freshness_s=60.0, seq=4)


def test_a_data_node_is_described() -> None:
    known = view("home", node("home", "d"), data_node("d", "home", CARDIO, ONCO))
    entry = VisitEntry(NodeId("d"), 5, "train", -0.3, 300, advert_data_seq=7)
    header = packet(hop=9, journal=(entry,))
    found = cut(known, header, NodeId("home"), 10.0).candidates[0]
    size_bits = (header.manifest.total + HEADER_BYTES) * 8
    assert found.kind is StopKind.DATA
    assert found.path == ("d",)
    assert found.transfer_s == pytest.approx(0.01 + size_bits / 1e8, rel=1e-3)
    assert found.compute_s == pytest.approx(400 / 100 * 2)
    assert found.samples == {"cardiology": 300, "oncology": 100}
    assert found.labels == {"cardiology": (200, 100)}
    assert found.quality == pytest.approx(0.6)
    assert (found.visits, found.hops_since, found.last_gain, found.data_seq) == (1, 4, -0.3, 7)
    assert found.age_s == 10.0
    assert found.hurt


def test_a_node_that_hurt_is_forgiven_when_its_data_change() -> None:
    entry = VisitEntry(NodeId("d"), 5, "rolled-back", 0.0, 300, advert_data_seq=7)
    header = packet(hop=9, journal=(entry,))
    old = view("home", node("home", "d"), data_node("d", "home", CARDIO, ONCO))
    changed = replace(CARDIO, seq=4)
    new = view("home", node("home", "d"), data_node("d", "home", changed, ONCO))
    assert cut(old, header, NodeId("home"), 0.0).candidates[0].hurt
    assert not cut(new, header, NodeId("home"), 0.0).candidates[0].hurt


def test_a_probe_is_remembered_until_the_data_change() -> None:
    entry = ProbeEntry(NodeId("d"), 5, 0.1, 0.4, 0.6, advert_data_seq=7)
    header = packet(hop=9, probed=(entry,))
    old = view("home", node("home", "d"), data_node("d", "home", CARDIO, ONCO))
    changed = replace(CARDIO, seq=4)
    new = view("home", node("home", "d"), data_node("d", "home", changed, ONCO))
    found = cut(old, header, NodeId("home"), 0.0).candidates[0]
    assert (found.probed, found.hops_since_probe) == (entry, 4)
    found = cut(new, header, NodeId("home"), 0.0).candidates[0]
    assert (found.probed, found.hops_since_probe) == (None, -1)


def test_data_are_visited_at_the_compute_node_they_are_trusted_to() -> None:
    entrusted = replace(CARDIO, delegate=NodeId("c"))
    weak = data_node("d", "c", entrusted, compute=ComputeAdvert())
    strong = node("c", "home d", roles=(Role.COMPUTE,), compute=ComputeAdvert(300.0))
    known = view("home", node("home", "c"), weak, strong)
    found = cut(known, packet(), NodeId("home"), 0.0).candidates[0]
    assert (found.node, found.path, found.compute_s) == ("d", ("c",), pytest.approx(1.0))
    at_compute = cut(view("c", node("home", "c"), weak, strong), packet(), NodeId("c"), 0.0)
    assert at_compute.candidates[0].path == ()
    assert at_compute.candidates[0].transfer_s == 0.0


@pytest.mark.parametrize(
    "known",
    [
        data_node("d", "home", CARDIO, compute=ComputeAdvert(0.0)),
        data_node("d", "home", replace(CARDIO, delegate=NodeId("nobody"))),
        data_node("d", "home", replace(ONCO, schema="onco-2")),
        data_node("d", "home", replace(ONCO, skill="nephrology")),
        data_node("d", "home", replace(ONCO, samples=0)),
        data_node("d", "elsewhere", ONCO),
        data_node("d", "home", ONCO, policy=NodePolicy(max_packet_bytes=49_999)),
        replace(data_node("d", "home", ONCO), born=-120.5),
        node("d", "home", data=(ONCO,), compute=ComputeAdvert(100.0)),
    ],
    ids=["no-compute", "no-delegate", "schema", "skill", "empty", "unreachable", "size", "stale",
         "role"],
)  # fmt: skip
def test_what_does_not_fit_is_left_out(known: Known) -> None:
    own = node("home", "d") if known.advert.links[0].peer == "home" else node("home", "")
    (only,) = cut(view("home", own, known), packet(), NodeId("home"), 0.0).candidates
    assert only.kind is StopKind.HOME


def test_home_is_always_there_even_out_of_reach() -> None:
    (home,) = cut(view("x", node("x", "")), packet(), NodeId("x"), 0.0).candidates
    assert (home.node, home.path, home.transfer_s) == ("home", (), math.inf)
    (here,) = cut(view("home", node("home", "")), packet(), NodeId("home"), 0.0).candidates
    assert (here.path, here.transfer_s) == ((), 0.0)


def test_a_node_may_verify_and_hold_data_and_each_has_its_own_past() -> None:
    both = data_node("d", "home", ONCO)
    both = replace(both, advert=replace(both.advert, roles=(Role.DATA, Role.MPVU)))
    journal = (
        VisitEntry(NodeId("d"), 1, "verify", 0.0, 0, 0),
        VisitEntry(NodeId("d"), 2, "refused", 0.0, 0, 0),
        VisitEntry(NodeId("d"), 3, "train", 0.1, 100, 4),
    )
    found = by_node(
        cut(view("home", node("home", "d"), both), packet(hop=4, journal=journal), NodeId("home"),
            0.0).candidates
    )  # fmt: skip
    assert found[StopKind.DATA, "d"].visits == 2
    assert found[StopKind.DATA, "d"].trust == pytest.approx(2 / 3)
    assert found[StopKind.MPVU, "d"].visits == 1
    assert found[StopKind.MPVU, "d"].hops_since == 3


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_brute_force_on_a_thousand_nodes(seed: int) -> None:
    rng = random.Random(seed)
    graph = nx.random_geometric_graph(1000, 0.05, seed=seed)
    names = [f"n{i:04}" for i in graph.nodes]
    known: dict[NodeId, Known] = {}
    for i in graph.nodes:
        roles = tuple(r for r in (Role.DATA, Role.MPVU) if rng.random() < 0.4)
        data = tuple(
            DataAdvert(
                rng.choice([*SKILLS, "other"]) if n else "oncology",
                rng.choice(["onco-1", "onco-2"]),
                rng.randrange(0, 50),
                delegate=NodeId(rng.choice(names)) if rng.random() < 0.2 else NodeId(""),
            )
            for n in range(rng.randrange(0, 2))
        )
        advert = Advert(
            NodeId(names[i]), 1, b"", roles=roles, data=data,
            links=tuple(
                LinkAdvert(NodeId(names[j]), rng.choice([1e6, 1e8]), 0.01)
                for j in graph.adj[i] if rng.random() < 0.95
            ),
            compute=ComputeAdvert(rng.choice([0.0, 100.0])),
            policy=NodePolicy(
                probe=rng.choice(list(ProbeMode)),
                max_packet_bytes=rng.choice([10_000, 1 << 30]),
            ),
        )  # fmt: skip
        known[advert.origin] = Known(advert, -rng.uniform(0.0, 150.0))
    here, now, header = NodeId(names[0]), 20.0, packet(owner=names[1])
    result = GlobalMap(here)
    result.apply(known)
    found = cut(result, header, here, now, max_age_s=120.0).candidates
    expected = brute_force(known, header, here, now, 120.0)
    assert [(c.kind, c.node, c.path[-1:] or here) for c in found[:-1]] == [
        (kind, name, (stop,) if stop != here else here) for kind, name, stop in expected
    ]
    assert {c.kind for c in found} == set(StopKind)
    assert found[-1].kind is StopKind.HOME


def brute_force(
    known: dict[NodeId, Known], header: Header, here: NodeId, now: float, max_age_s: float
) -> list[tuple[StopKind, NodeId, NodeId]]:
    peers = {name: {link.peer for link in k.advert.links} for name, k in known.items()}
    reached, edge = {here}, [here]
    while edge:
        a = edge.pop()
        for b in peers:
            if (b in peers[a] and (a == here or a in peers[b])) and b != here and b not in reached:
                reached.add(b)
                edge.append(b)

    def is_fit(name: NodeId) -> bool:
        k = known[name]
        return (
            name in reached
            and now - k.born <= max_age_s
            and k.advert.policy.max_packet_bytes >= header.manifest.total
        )

    data, mpvus = [], []
    for name in sorted(known):
        advert = known[name].advert
        is_told = now - known[name].born <= max_age_s
        is_told &= advert.policy.max_packet_bytes >= header.manifest.total
        if Role.MPVU in advert.roles and is_fit(name):
            mpvus.append((StopKind.MPVU, name, name))
        if Role.DATA not in advert.roles or not is_told:
            continue
        for item in advert.data:
            stop = item.delegate or name
            fits = item.skill == "cardiology" or (
                item.skill == "oncology" and item.schema == "onco-1"
            )
            works = known[stop].advert.compute.samples_per_s > 0
            if fits and works and item.samples > 0 and is_fit(stop):
                data.append((StopKind.DATA, name, stop))
    return data + mpvus


def test_a_node_with_only_a_view_is_no_stop() -> None:
    part = replace(ONCO, view="left half")
    known = view("home", node("home", "d e"), data_node("d", "home", part),
                 data_node("e", "home", CARDIO, part))  # fmt: skip
    found = by_node(cut(known, packet(), NodeId("home"), 10.0).candidates)
    assert [key for key in found if key[0] is StopKind.DATA] == [(StopKind.DATA, "e")]
    assert found[StopKind.DATA, "e"].samples == {"cardiology": 300}
