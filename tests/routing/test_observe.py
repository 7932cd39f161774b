from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.ids import NodeId, PacketId, Version
from aats.lineage import Record, RecordKind
from aats.messages import ProbeScores
from aats.packet import (
    Architecture,
    Cost,
    EstimateSource,
    Header,
    Mandate,
    Owner,
    PacketKind,
    Plugin,
    SkillEstimate,
    Target,
    VisitEntry,
)
from aats.payload import Manifest
from aats.routing.features import FEATURES, GLOBALS, SIGNED
from aats.routing.observe import observe, phase
from aats.routing.policy import Phase
from aats.topology.stops import Candidate, StopKind, Topology

INF = float("inf")
V1, V2 = Version("v1"), Version("v2")


def packet(
    targets: tuple[Target, ...] = (Target("digits", 0.9),),
    hops: float = INF,
    deadline: float = INF,
    **state: object,
) -> Header:
    mandate = Mandate(
        id=PacketId("p"), kind=PacketKind.TRAIN, owner=Owner(NodeId("home"), b""), created=0.0,
        deadline=deadline, requirement=targets, budget=Cost(hops, INF, INF, INF),
        architecture=Architecture("mlp"), method=Plugin("sequential"), policy=Plugin("minibatch"),
        seed=5,
    )  # fmt: skip
    return Header(mandate, **state)  # type: ignore[arg-type]


def estimate(
    value: float, source: EstimateSource, version: Version = V1, skill: str = "digits"
) -> SkillEstimate:
    return SkillEstimate(skill, "accuracy", value, value, value, 100, NodeId("x"), source, version)


def visit(node: str, action: str = "train", hop: int = 0) -> VisitEntry:
    return VisitEntry(NodeId(node), hop, action, 0.0, 100, 1)


def stop(name: str, kind: StopKind = StopKind.DATA, **fields: object) -> Candidate:
    base: dict[str, object] = {"path": (NodeId(name),), "transfer_s": 1.0, "compute_s": 1.0}
    if kind is StopKind.DATA:
        base["samples"] = {"digits": 100}
    return Candidate(NodeId(name), kind, **(base | fields))  # type: ignore[arg-type]


HOME = stop("home", StopKind.HOME)
WORLD = Topology(
    NodeId("a"),
    (stop("a", path=()), stop("b"), stop("c"), stop("m", StopKind.MPVU), HOME),
)


def legal(header: Header, topology: Topology = WORLD, now: float = 0.0) -> set[str]:
    seen = observe(header, topology, now)
    return {str(seen.candidates[i].node) for i in seen.legal()}


# --- phase ------------------------------------------------------------------------------------


def test_seeks_until_every_target_is_believed_met_then_asks_an_mpvu_then_returns() -> None:
    header = packet(version=V1)
    assert phase(header, 0.0) is Phase.SEEK
    low = header.with_estimates((estimate(0.89, EstimateSource.REFERENCE),))
    assert phase(low, 0.0) is Phase.SEEK
    high = header.with_estimates((estimate(0.9, EstimateSource.REFERENCE),))
    assert phase(high, 0.0) is Phase.VERIFY
    verified = high.with_estimates((estimate(0.9, EstimateSource.MPVU),))
    assert phase(verified, 0.0) is Phase.RETURN


def test_every_target_counts() -> None:
    targets = (Target("digits", 0.9), Target("hearts", 0.8))
    header = packet(targets, version=V1).with_estimates((estimate(0.95, EstimateSource.REFERENCE),))
    assert phase(header, 0.0) is Phase.SEEK
    both = header.with_estimates((estimate(0.85, EstimateSource.REFERENCE, skill="hearts"),))
    assert phase(both, 0.0) is Phase.VERIFY


def test_after_a_disappointing_verdict_the_belief_must_rise_by_what_it_was_too_high() -> None:
    failed = estimate(0.84, EstimateSource.MPVU)
    header = packet(version=V1, skills=(failed, estimate(0.91, EstimateSource.REFERENCE)),
                    journal=(visit("b"), visit("m", "verify")))  # fmt: skip
    assert phase(header, 0.0) is Phase.SEEK
    trained = replace(header, version=V2).with_visit(visit("c"))
    same = trained.with_estimates((estimate(0.93, EstimateSource.REFERENCE, V2),))
    assert phase(same, 0.0) is Phase.SEEK
    risen = trained.with_estimates((estimate(0.961, EstimateSource.REFERENCE, V2),))
    assert phase(risen, 0.0) is Phase.VERIFY


def test_no_second_verdict_is_asked_before_something_was_learned() -> None:
    # The verdict was better than believed, and still not enough.
    header = packet(version=V1, journal=(visit("b"), visit("m", "verify")),
                    skills=(estimate(0.88, EstimateSource.MPVU),), chain=(
        Record(PacketId("p"), RecordKind.TRAIN, NodeId("b"), 0, 0, (), V1, V1,
               metrics={"digits.accuracy.reference": 0.80}),
    ))  # fmt: skip
    assert phase(header, 0.0) is Phase.SEEK
    trained = replace(header, version=V2).with_visit(visit("c"))
    risen = trained.with_estimates((estimate(0.85, EstimateSource.REFERENCE, V2),))
    assert phase(risen, 0.0) is Phase.VERIFY


def test_doubt_halves_with_every_three_visits() -> None:
    header = packet(version=V2, skills=(estimate(0.82, EstimateSource.MPVU),
                                        estimate(0.945, EstimateSource.REFERENCE, V2)),
                    journal=(visit("m", "verify"), visit("a"), visit("b")))  # fmt: skip
    assert phase(header, 0.0) is Phase.SEEK  # 0.08 too low; after two visits 0.05 of it counts
    assert phase(header.with_visit(visit("c")), 0.0) is Phase.VERIFY


def test_how_much_too_high_a_belief_was_is_in_the_chain() -> None:
    told = Record(PacketId("p"), RecordKind.TRAIN, NodeId("a"), 0, 0, (), V1, V1,
                  metrics={"digits.accuracy.reference": 0.96})  # fmt: skip
    header = packet(version=V2, chain=(told,), journal=(visit("m", "verify"), visit("a")),
                    skills=(estimate(0.86, EstimateSource.MPVU, V1),
                            estimate(0.94, EstimateSource.REFERENCE, V2)))  # fmt: skip
    assert phase(header, 0.0) is Phase.SEEK  # 0.04 below the target, but 0.10 below the belief
    assert phase(replace(header, chain=()), 0.0) is Phase.VERIFY


def test_without_any_estimate_an_mpvu_is_asked_every_few_visits() -> None:
    header = packet(version=V1, journal=(visit("a"), visit("b")))
    assert phase(header, 0.0) is Phase.SEEK
    assert phase(header.with_visit(visit("c")), 0.0) is Phase.VERIFY


@pytest.mark.parametrize(
    ("spent", "hops_home", "expected"),
    [(5, 2, Phase.SEEK), (6, 2, Phase.RETURN), (6, 1, Phase.SEEK), (8, 0, Phase.RETURN)],
)
def test_keeps_hops_for_the_way_home(spent: int, hops_home: int, expected: Phase) -> None:
    header = packet(hops=9.0, spent=Cost(hops=spent))
    assert phase(header, 0.0, hops_home=hops_home) is expected


def test_keeps_bytes_for_the_way_home() -> None:
    header = packet(manifest=Manifest((), 100))
    header = replace(header, mandate=replace(header.mandate, budget=Cost(INF, INF, 1000.0, INF)))
    assert phase(replace(header, spent=Cost(bytes=700.0)), 0.0, hops_home=2) is Phase.SEEK
    assert phase(replace(header, spent=Cost(bytes=701.0)), 0.0, hops_home=2) is Phase.RETURN


def test_returns_at_the_deadline() -> None:
    assert phase(packet(deadline=10.0), 9.9) is Phase.SEEK
    assert phase(packet(deadline=10.0), 10.0) is Phase.RETURN


# --- mask -------------------------------------------------------------------------------------


def test_legal_stops_follow_the_phase() -> None:
    believed = (estimate(0.95, EstimateSource.REFERENCE),)
    assert legal(packet()) == {"a", "b", "c"}
    assert legal(packet(version=V1, skills=believed)) == {"m"}
    assert legal(packet(deadline=0.0)) == {"home"}


def test_the_node_just_visited_is_illegal_unless_it_is_the_only_one() -> None:
    assert legal(packet(journal=(visit("a"),))) == {"b", "c", "m"}
    assert legal(packet(journal=(visit("a"), visit("m", "verify")))) == {"b", "c"}
    alone = Topology(NodeId("a"), (stop("a", path=()), HOME))
    assert legal(packet(journal=(visit("a"),)), alone) == {"a"}


def test_without_an_mpvu_in_reach_training_goes_on() -> None:
    far = stop("m", StopKind.MPVU, path=(), transfer_s=INF)
    topology = Topology(NodeId("a"), (stop("b"), far, HOME))
    header = packet(version=V1, skills=(estimate(0.95, EstimateSource.REFERENCE),))
    assert legal(header, topology) == {"b"}


def test_no_stop_from_which_the_hops_left_might_not_lead_home() -> None:
    topology = Topology(
        NodeId("a"),
        (stop("near"), stop("far", path=(NodeId("x"), NodeId("y"), NodeId("far"))), HOME),
    )
    assert legal(packet(hops=20.0), topology) == {"near", "far"}
    assert legal(packet(hops=5.0), topology) == {"near"}
    assert legal(packet(hops=2.0), topology) == {"home"}
    far_only = Topology(NodeId("a"), topology.candidates[1:])
    seen = observe(packet(hops=5.0), far_only, 0.0)
    assert seen.phase is Phase.RETURN
    assert [seen.candidates[i].node for i in seen.legal()] == ["home"]


def test_it_goes_home_rather_than_stay_where_it_was_for_ever() -> None:
    topology = Topology(NodeId("a"), (stop("a", path=()), stop("b"), HOME))
    assert legal(packet(hops=3.0), topology) == {"a", "b"}
    home_is_here = stop("home", StopKind.HOME, path=())
    far = (stop("a", path=()), stop("b", path=tuple(map(NodeId, "xyb"))), home_is_here)
    visited = packet(hops=4.0, journal=(visit("a"),))
    assert legal(visited, Topology(NodeId("a"), far)) == {"home"}


def test_with_nothing_in_reach_it_waits_for_home() -> None:
    home = stop("home", StopKind.HOME, path=(), transfer_s=INF)
    seen = observe(packet(), Topology(NodeId("x"), (home,)), 0.0)
    assert seen.phase is Phase.SEEK
    assert seen.legal() == [0]


# --- rows -------------------------------------------------------------------------------------


def test_home_and_the_nearest_mpvus_always_have_a_row() -> None:
    data = tuple(stop(f"d{i:03}", samples={"digits": i + 1}) for i in range(300))
    mpvus = tuple(stop(f"m{i}", StopKind.MPVU, transfer_s=9.0 - i) for i in range(9))
    seen = observe(packet(), Topology(NodeId("x"), (*data, *mpvus, HOME)), 0.0, k=32)
    assert seen.features.shape == (32, len(FEATURES))
    kinds = [c.kind for c in seen.candidates]
    assert (kinds.count(StopKind.HOME), kinds.count(StopKind.MPVU), len(kinds)) == (1, 4, 32)
    assert [c.node for c in seen.candidates if c.kind is StopKind.MPVU] == ["m5", "m6", "m7", "m8"]
    assert max(c.samples["digits"] for c in seen.candidates if c.samples) == 300


def test_nodes_not_seen_for_long_come_back_into_the_rows() -> None:
    seen_lately = tuple(stop(f"d{i:03}", visits=1, hops_since=1) for i in range(100))
    topology = Topology(NodeId("x"), (*seen_lately, stop("new"), HOME))
    assert "new" in {c.node for c in observe(packet(), topology, 0.0, k=8).candidates}


# --- values -----------------------------------------------------------------------------------


def value(header: Header, candidate: Candidate, name: str, **probes: ProbeScores) -> float:
    scores = {NodeId(node): probe for node, probe in probes.items()}
    seen = observe(header, Topology(NodeId("a"), (candidate, HOME)), 0.0, probes=scores)
    return float(seen.features[0, FEATURES.index(name)])


def test_features_say_what_their_names_say() -> None:
    assert value(packet(), stop("b"), "is_data") == 1.0
    assert value(packet(), stop("b"), "is_here") == 0.0
    assert value(packet(), stop("b", path=()), "is_here") == 1.0
    even, one = {"digits": (5, 5, 5, 5)}, {"digits": (20, 0, 0, 0)}
    assert value(packet(), stop("b", labels=even), "label_entropy") == pytest.approx(1.0)
    assert value(packet(), stop("b", labels=even), "label_hhi") == pytest.approx(0.25)
    assert value(packet(), stop("b", labels=even), "label_weakest") == pytest.approx(1.0)
    assert value(packet(), stop("b", labels=one), "label_entropy") == pytest.approx(0.0)
    assert value(packet(), stop("b"), "labels_known") == 0.0
    used = packet(labels_used={"digits": [0.0, 20.0, 20.0, 20.0]})
    assert value(used, stop("b", labels=one), "label_balance") == pytest.approx(1.0)
    probe = ProbeScores(gain=0.4, alignment=0.5, loss=1.0, gradient_norm=2.0, samples=32)
    assert value(packet(), stop("b"), "has_probe", b=probe) == 1.0
    assert value(packet(), stop("b"), "probe_gain", b=probe) == pytest.approx(0.4)
    assert value(packet(), stop("b"), "probe_gain", c=probe) == 0.0


def test_what_is_already_met_is_not_needed() -> None:
    done = packet(version=V1, skills=(estimate(0.9, EstimateSource.MPVU),))
    assert value(done, stop("b"), "need_supply") == 0.0
    assert value(packet(), stop("b"), "need_supply") > 0.3


finite = st.floats(0, 1e12, allow_nan=False)
wild = st.floats(allow_nan=True, allow_infinity=True)
histogram = st.lists(st.integers(0, 10_000), min_size=4, max_size=4).map(tuple)
candidates = st.builds(
    Candidate,
    node=st.just(NodeId("n")),
    kind=st.sampled_from(StopKind),
    path=st.lists(st.just(NodeId("n")), max_size=5).map(tuple),
    transfer_s=finite | st.just(INF),
    compute_s=finite,
    probe_s=finite,
    verify_s=finite | st.just(INF),
    samples=st.dictionaries(st.sampled_from(["s1", "s2"]), st.integers(0, 10**9), min_size=1),
    labels=st.dictionaries(st.sampled_from(["s1", "s2"]), histogram),
    quality=wild,
    freshness_s=wild,
    age_s=wild,
    visits=st.integers(0, 10**6),
    hops_since=st.integers(-1, 10**6),
    last_gain=wild,
    hurt=st.booleans(),
    probe_allowed=st.booleans(),
    trust=wild,
)
topologies = st.lists(candidates, min_size=1, max_size=50).map(
    lambda found: Topology(
        NodeId("n0"),
        tuple(replace(c, node=NodeId(f"n{i}")) for i, c in enumerate(found)),
    )
)
headers = st.builds(
    lambda hops, spent, value, journal, used: packet(
        (Target("s1", 0.9), Target("s2", 0.5)), hops=hops, spent=Cost(spent, spent, spent, spent),
        version=V1, skills=(estimate(value, EstimateSource.LOCAL, V1, "s1"),),
        journal=tuple(visit(f"n{i}", action, i) for i, action in journal),
        labels_used={"s1": used},
    ),
    st.floats(0, 1e6) | st.just(INF),
    st.floats(0, 1e6),
    st.floats(0, 1),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["train", "verify", "refused"]))),
    st.lists(st.floats(0, 1e9), min_size=4, max_size=4),
)  # fmt: skip
probe_maps = st.dictionaries(
    st.integers(0, 9).map(lambda i: NodeId(f"n{i}")),
    st.builds(ProbeScores, wild, wild, wild, wild, st.just(32)),
)


@settings(max_examples=150, deadline=None)
@given(headers, topologies, probe_maps)
def test_everything_is_finite_in_range_and_something_is_legal(
    header: Header, topology: Topology, probes: dict[NodeId, ProbeScores]
) -> None:
    seen = observe(header, topology, 1.0, probes=probes)
    n = len(seen.candidates)
    assert seen.features.shape == (32, len(FEATURES))
    assert seen.globals.shape == (len(GLOBALS),)
    assert np.isfinite(seen.features).all()
    assert np.isfinite(seen.globals).all()
    low = np.array([-1.0 if name in SIGNED else 0.0 for name in FEATURES])
    assert (seen.features >= low).all()
    assert (seen.features <= 1).all()
    low = np.array([-1.0 if name in SIGNED else 0.0 for name in GLOBALS])
    assert ((seen.globals >= low) & (seen.globals <= 1)).all()
    assert seen.legal()
    assert not seen.mask[n:].any()
    assert not seen.features[n:].any()
    again = observe(header, topology, 1.0, probes=probes)
    assert (seen.features == again.features).all()
    assert (seen.mask == again.mask).all()


@settings(max_examples=60, deadline=None)
@given(headers, topologies, probe_maps, st.randoms(use_true_random=False))
def test_rows_follow_their_candidates(
    header: Header, topology: Topology, probes: dict[NodeId, ProbeScores], rng: object
) -> None:
    # Of equal ones those that come first get the rows: let there be none.
    unlike = (replace(c, transfer_s=float(i)) for i, c in enumerate(topology.candidates))
    topology = replace(topology, candidates=tuple(unlike))
    order = list(range(len(topology.candidates)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    homes = [c for c in topology.candidates if c.kind is StopKind.HOME]
    if len(homes) > 1:
        return
    mixed = Topology(topology.here, tuple(topology.candidates[i] for i in order))
    one, other = (observe(header, t, 1.0, probes=probes) for t in (topology, mixed))
    rows = {c.node: (i, one.mask[i]) for i, c in enumerate(one.candidates)}
    assert set(rows) == {c.node for c in other.candidates}
    assert (one.globals == other.globals).all()
    for j, candidate in enumerate(other.candidates):
        i, is_legal = rows[candidate.node]
        np.testing.assert_array_equal(one.features[i], other.features[j])
        assert is_legal == other.mask[j]


@settings(max_examples=60, deadline=None)
@given(headers, topologies, st.permutations(range(4)))
def test_names_and_numbers_of_skills_and_classes_do_not_matter(
    header: Header, topology: Topology, order: list[int]
) -> None:
    swap = {"s1": "s2", "s2": "s1"}

    def moved(values: object) -> list[float]:
        return [values[i] for i in order]  # type: ignore[index]

    renamed = replace(
        header,
        mandate=replace(
            header.mandate,
            requirement=tuple(
                replace(t, skill=swap[t.skill]) for t in header.mandate.requirement[::-1]
            ),
        ),
        skills=tuple(replace(s, skill=swap[s.skill]) for s in header.skills),
        labels_used={swap[s]: moved(used) for s, used in header.labels_used.items()},
    )
    other = Topology(
        topology.here,
        tuple(
            replace(
                c,
                samples={swap[s]: n for s, n in c.samples.items()},
                labels={swap[s]: tuple(moved(h)) for s, h in c.labels.items()},
            )
            for c in topology.candidates
        ),
    )
    one, two = observe(header, topology, 1.0), observe(renamed, other, 1.0)
    np.testing.assert_allclose(one.features, two.features, atol=1e-6)
    np.testing.assert_allclose(one.globals, two.globals, atol=1e-6)
    assert math.isclose(one.mask.sum(), two.mask.sum())


def test_no_histogram_makes_a_node_allocate_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aats.routing.observe.MAX_CELLS", 40)  # ten classes for four candidates
    even, long = stop("b", labels={"digits": (5,) * 10}), stop("c", labels={"digits": (5,) * 11})
    topology = Topology(NodeId("a"), (even, long, stop("m", StopKind.MPVU), HOME))
    header = packet(labels_used={"digits": [1.0] * 500})
    seen = observe(header, topology, 0.0)
    assert seen.features[:2, FEATURES.index("labels_known")].tolist() == [1.0, 0.0]
    assert phase(header, 0.0) is Phase.SEEK
