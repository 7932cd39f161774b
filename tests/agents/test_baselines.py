"""The policies of the literature, one by one, and every shipped policy on any observation."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import fields, replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.errors import LocalError
from aats.ids import NodeId
from aats.plugins import load, names
from aats.routing.build import build
from aats.routing.features import FEATURES, GLOBALS
from aats.routing.policy import Observation, Phase, RoutePolicy
from aats.topology.stops import Candidate, StopKind
from aats_agents.policies.bandit import BanditPolicy
from aats_agents.policies.base import MIN_MEMORY
from aats_agents.policies.greedy import GreedyPolicy
from aats_agents.policies.label_variance import LabelVariancePolicy
from aats_agents.policies.load_variance import LoadVariancePolicy
from aats_agents.policies.metric import (
    AlignmentPolicy,
    BalanceGainPolicy,
    CappedLossPolicy,
    GradientNormPolicy,
    LossPolicy,
    ProbeGainPolicy,
)
from aats_agents.policies.minibatch import MinibatchPolicy
from aats_agents.policies.oort import OortPolicy
from aats_agents.policies.walk import JumpPolicy, MetropolisPolicy
from tests.agents.test_policies import HOME, chosen, probe, recalled, seen, stop

OTHERS = {"rl", "greedy-prior", "itinerary"}
"""Have tests of their own: a network, the heuristic it starts from, a plan of one place."""
BASELINES = [name for name in names("aats.policies") if name not in OTHERS]

# --- any observation --------------------------------------------------------------------------

some_seconds = st.floats(0, 1e4)
some_score = st.floats(-5, 5)


@st.composite
def some_candidate(draw: st.DrawFn, i: int) -> Candidate:
    kind = draw(st.sampled_from([StopKind.DATA, StopKind.DATA, StopKind.MPVU]))
    name = f"n{i}"
    visits = draw(st.integers(0, 9))
    samples = draw(st.integers(0, 500))
    labels = draw(st.lists(st.integers(0, 99), min_size=3, max_size=3))
    has_past = draw(st.booleans())
    return stop(
        name, kind,
        path=tuple(NodeId(f"n{j}") for j in draw(st.lists(st.integers(0, 9), max_size=2))),
        transfer_s=draw(some_seconds), compute_s=draw(some_seconds), probe_s=draw(some_seconds),
        samples={"s": samples} if kind is StopKind.DATA else {},
        labels={"s": tuple(labels)} if draw(st.booleans()) else {},
        quality=draw(st.floats(0, 1)),
        visits=visits, hops_since=draw(st.integers(0, 200)) if visits else -1,
        last_gain=draw(st.floats(-1, 1)) if visits else 0.0,
        hurt=draw(st.booleans()), probe_allowed=draw(st.booleans()),
        probed=recalled(name, draw(some_score), loss=draw(st.floats(0, 10))) if has_past else None,
        hops_since_probe=draw(st.integers(0, 99)) if has_past else -1,
    )  # fmt: skip


@st.composite
def some_observation(draw: st.DrawFn) -> Observation:
    stops = [draw(some_candidate(i)) for i in range(draw(st.integers(0, 6)))]
    everyone = (*stops, HOME)
    mask = np.array([draw(st.booleans()) for _ in everyone])
    if not mask.any():
        mask[-1] = True
    asked = [c.node for c in stops if c.kind is StopKind.DATA and draw(st.booleans())]
    columns = np.random.default_rng(draw(st.integers(0, 99)))
    return replace(
        seen(
            *everyone,
            probes={
                node: probe(
                    draw(some_score), alignment=draw(st.floats(-1, 1)), loss=draw(st.floats(0, 10))
                )
                for node in asked
            },
            phase=draw(st.sampled_from(list(Phase))),
            hop=draw(st.integers(0, 300)),
            labels_used=draw(st.sampled_from([{}, {"s": (5.0, 0.0, 90.0)}])),
            visited=tuple(c.node for c in stops[:2]),
        ),
        mask=mask,
        features=columns.random((len(everyone), len(FEATURES)), np.float32),
        globals=columns.random(len(GLOBALS), np.float32),
    )


@pytest.mark.parametrize("name", BASELINES)
@settings(max_examples=40, deadline=None)
@given(observation=some_observation(), seed=st.integers(0, 99))
def test_any_observation_gets_a_legal_repeatable_explained_choice(
    name: str, observation: Observation, seed: int
) -> None:
    policy: RoutePolicy = load("aats.policies", name)()
    asked = policy.wants_probes(observation, random.Random(seed))
    assert all(observation.mask[i] for i in asked)
    assert asked == policy.wants_probes(observation, random.Random(seed))
    choice = policy.choose(observation, random.Random(seed))
    assert choice == policy.choose(observation, random.Random(seed))
    assert observation.mask[choice.index]
    assert choice.reason
    assert "{" not in choice.reason


@pytest.mark.parametrize("name", BASELINES)
def test_the_phase_decides_on_errands_whatever_else_is_legal(name: str) -> None:
    policy = load("aats.policies", name)()
    stops = (stop("a"), stop("near", StopKind.MPVU, transfer_s=0.1), stop("far", StopKind.MPVU))
    everything = np.array([True, True, True, True])
    for phase, node in ((Phase.VERIFY, "near"), (Phase.SEEK, "a"), (Phase.RETURN, "home")):
        observation = replace(seen(*stops, HOME, phase=phase), mask=everything)
        assert chosen(policy, observation) == node
    no_data = replace(seen(*stops, HOME), mask=np.array([False, True, True, True]))
    assert chosen(policy, no_data) == "near"
    no_mpvu = replace(
        seen(*stops, HOME, phase=Phase.VERIFY), mask=np.array([True, False, False, False])
    )
    assert chosen(policy, no_mpvu) == "a"


@pytest.mark.parametrize("name", BASELINES)
def test_every_whole_number_below_zero_is_refused(name: str) -> None:
    cls = load("aats.policies", name)
    for field in fields(cls):
        if field.name in ("probes", "patience", "boldness", "jump", "alpha"):
            value = -1 if isinstance(field.default, int) else -1.0
            with pytest.raises(LocalError, match=field.name):
                build(cls, {field.name: value})


# --- walks ------------------------------------------------------------------------------------


def visits_on(graph: nx.Graph, policy: RoutePolicy, hops: int, seed: int = 0) -> Counter[int]:
    """Walk over a graph of data nodes, seeing the shortest paths alone; return visits by node."""
    paths = dict(nx.all_pairs_shortest_path(graph))
    here, counted = 0, Counter[int]()
    for hop in range(hops):
        stops = [
            stop(f"n{i}", path=tuple(NodeId(f"n{j}") for j in paths[here][i][1:]))
            for i in sorted(graph)
            if i != here
        ]
        observation = seen(*stops, HOME, here=NodeId(f"n{here}"))
        here = int(chosen(policy, observation, seed + hop)[1:])
        counted[here] += 1
    return counted


WHEEL = nx.wheel_graph(9)
"""A hub joined to each of eight nodes on a ring."""


def test_metropolis_stays_with_neighbours_and_does_not_favour_the_hub() -> None:
    counted = visits_on(WHEEL, MetropolisPolicy(), 3000)
    assert set(counted) == set(WHEEL)
    # A plain walk spends as much time at a node as it has links: 8 of 32 at the hub.
    # A bound on degrees takes part of that away; the degrees themselves would leave a ninth.
    assert counted[0] / 3000 < 0.23
    line = nx.path_graph(6)
    stops = [stop(f"n{i}", path=tuple(NodeId(f"n{j}") for j in range(1, i + 1))) for i in line if i]
    observation = seen(*stops, HOME, here=NodeId("n0"))
    assert {chosen(MetropolisPolicy(), observation, s) for s in range(30)} == {"n1"}
    assert {chosen(JumpPolicy(jump=1.0), observation, s) for s in range(90)} == {
        f"n{i}" for i in range(1, 6)
    }


def test_without_a_neighbour_a_walk_takes_the_nearest_in_links() -> None:
    stops = (
        stop("a", path=(NodeId("x"), NodeId("a"))),
        stop("b", path=(NodeId("x"), NodeId("y"), NodeId("b"))),
    )
    assert {chosen(MetropolisPolicy(), seen(*stops, HOME), s) for s in range(20)} == {"a"}


def test_one_jump_in_ten_leaves_the_neighbourhood() -> None:
    stops = [stop("near")] + [stop(f"far{i}", path=(NodeId("near"), NodeId(f"far{i}")))
                              for i in range(9)]  # fmt: skip
    observation = seen(*stops, HOME)
    far = sum(chosen(JumpPolicy(), observation, s) != "near" for s in range(2000))
    assert 0.06 < far / 2000 < 0.12


# --- adverts alone ----------------------------------------------------------------------------


def test_load_variance_is_the_cheapest_of_the_even_enough() -> None:
    stops = (
        stop("best", labels={"s": (0, 10)}, compute_s=9.0),
        stop("good", labels={"s": (1, 9)}, compute_s=2.0),
        stop("cheap", labels={"s": (10, 0)}, compute_s=0.1),
    )
    observation = seen(*stops, HOME, labels_used={"s": (100.0, 0.0)})
    assert chosen(LabelVariancePolicy(), observation) == "best"
    assert chosen(LoadVariancePolicy(slack=0.0), observation) == "best"
    assert chosen(LoadVariancePolicy(), observation) == "good"
    assert chosen(LoadVariancePolicy(slack=1.0), observation) == "cheap"
    assert chosen(LoadVariancePolicy(), seen(stop("hidden"), HOME)) == "hidden"


# --- metrics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "best"),
    [
        (LossPolicy, "wrong"), (GradientNormPolicy, "wrong"), (CappedLossPolicy, "steep"),
        (AlignmentPolicy, "kin"), (ProbeGainPolicy, "steep"), (BalanceGainPolicy, "steep"),
    ],
)  # fmt: skip
def test_a_metric_goes_where_its_number_is_highest(cls: type[RoutePolicy], best: str) -> None:
    probes = {
        "wrong": probe(-0.2, alignment=-0.3, loss=3.0, gradient_norm=9.0),
        "steep": probe(0.4, alignment=0.3, loss=0.6, gradient_norm=3.0),
        "kin": probe(0.2, alignment=0.8, loss=0.3, gradient_norm=1.0),
    }
    stops = [stop(n, labels={"s": (5, 5)}) for n in ("unknown", *probes)]
    assert chosen(cls(), seen(*stops, HOME, probes=probes, hop=30)) == best


def test_capped_loss_believes_a_high_loss_of_a_young_model() -> None:
    probes = {"a": probe(loss=3.0), "b": probe(loss=0.5)}
    stops = tuple(stop(n, labels={"s": (1, 1)}) for n in probes)
    assert chosen(CappedLossPolicy(), seen(*stops, HOME, probes=probes, hop=3)) == "a"
    assert chosen(CappedLossPolicy(), seen(*stops, HOME, probes=probes, hop=20)) == "b"


def test_balance_breaks_what_gain_leaves_open() -> None:
    probes = {"one": probe(0.3), "both": probe(0.3), "none": probe(-0.1)}
    shown = {"one": (9, 0), "both": (5, 5), "none": (5, 5)}
    stops = [stop(n, labels={"s": shown[n]}) for n in probes]
    assert chosen(BalanceGainPolicy(), seen(*stops, HOME, probes=probes)) == "both"


# --- oort -------------------------------------------------------------------------------------

EXPLOIT = OortPolicy(exploring=0.0)


def oort_stops(**of_b: object) -> list[Candidate]:
    base: dict[str, object] = {"visits": 1, "hops_since": 3, "samples": {"s": 100}}
    return [stop("a", **base), stop("b", **(base | of_b)), stop("c", **base)]


def test_oort_takes_loss_size_and_speed_into_account() -> None:
    even = {n: probe(loss=1.0) for n in "abc"}
    high = even | {"b": probe(loss=2.0)}
    assert chosen(EXPLOIT, seen(*oort_stops(), HOME, probes=high, hop=9)) == "b"
    large = oort_stops(samples={"s": 200})
    assert chosen(EXPLOIT, seen(*large, HOME, probes=even, hop=9)) == "b"
    slow = oort_stops(compute_s=20.0)
    drawn = {chosen(EXPLOIT, seen(*slow, HOME, probes=high, hop=9), s) for s in range(20)}
    assert "b" not in drawn


def test_oort_comes_back_to_who_was_not_seen_for_long() -> None:
    even = {n: probe(loss=1.0) for n in "abc"}
    stale = oort_stops(hops_since=39)
    assert chosen(EXPLOIT, seen(*stale, HOME, probes=even, hop=40)) == "b"


def test_oort_explores_less_as_the_packet_ages() -> None:
    probes = {n: probe(loss=1.0) for n in "abc"}
    stops = [*oort_stops(), stop("new")]
    young, old = (
        sum(
            chosen(OortPolicy(), seen(*stops, HOME, probes=probes, hop=hop), s) == "new"
            for s in range(300)
        )
        for hop in (0, 200)
    )
    assert young > 0.8 * 300
    assert 0.1 * 300 < old < 0.3 * 300


# --- bandit -----------------------------------------------------------------------------------


def test_the_bandit_learns_who_pays_and_tries_the_cheap_first() -> None:
    gain = {"good": 0.1, "poor": 0.01, "bad": -0.1, "dear": 0.1}
    cost = {"good": 1.0, "poor": 1.0, "bad": 0.5, "dear": 30.0}
    visits: Counter[str] = Counter()
    for hop in range(100):
        stops = [
            stop(n, transfer_s=0.0, compute_s=cost[n], visits=visits[n], hops_since=0,
                 last_gain=gain[n] if visits[n] else 0.0)
            for n in gain
        ]  # fmt: skip
        node = chosen(BanditPolicy(), seen(*stops, HOME, hop=hop))
        if not hop:
            assert node == "bad"
        visits[node] += 1
    assert visits["good"] > 60
    assert visits["bad"] < 20
    assert visits["dear"] == 0


# --- greedy -----------------------------------------------------------------------------------


def trained(*stops: Candidate, belief: float = 0.7, **fields: object) -> Observation:
    observation = seen(*stops, HOME, hop=12, labels_used={"s": (60.0, 60.0, 60.0)}, **fields)  # type: ignore[arg-type]
    level = observation.globals.copy()
    level[GLOBALS.index("belief_mean")] = belief
    return replace(observation, globals=level)


def clinic(name: str, **fields: object) -> Candidate:
    return stop(name, samples={"s": 90}, labels={"s": (30, 30, 30)}, **fields)


def test_greedy_takes_most_expected_gain_per_second() -> None:
    more = stop("more", samples={"s": 300}, labels={"s": (100, 100, 100)})
    assert chosen(GreedyPolicy(), trained(clinic("less"), more)) == "more"
    dear = replace(more, compute_s=60.0)
    assert chosen(GreedyPolicy(), trained(clinic("less"), dear)) == "less"
    poor = replace(more, quality=0.2)
    assert chosen(GreedyPolicy(), trained(clinic("less"), poor)) == "less"


def test_greedy_believes_labels_until_a_probe_says_otherwise() -> None:
    wrong = stop("wrong", samples={"s": 150}, labels={"s": (50, 50, 50)})
    assert chosen(GreedyPolicy(), trained(clinic("right"), wrong)) == "wrong"
    bad = probe(-0.5, alignment=-0.5, loss=3.0)
    assert chosen(GreedyPolicy(), trained(clinic("right"), wrong, probes={"wrong": bad})) == "right"
    past = replace(
        wrong, probed=replace(recalled("wrong", -0.5, loss=3.0), alignment=-0.5), hops_since_probe=2
    )
    assert chosen(GreedyPolicy(), trained(clinic("right"), past)) == "right"


def test_greedy_asks_the_most_promising_whose_answer_is_sooner_than_a_visit() -> None:
    stops = (
        clinic("known", probed=recalled("known", 0.1), hops_since_probe=1),
        clinic("slow", probe_s=9.0), clinic("shy", probe_allowed=False),
        clinic("less", quality=0.5), clinic("more"),
    )  # fmt: skip
    asked = GreedyPolicy(probes=2).wants_probes(trained(*stops), random.Random(0))
    assert [stops[i].node for i in asked] == ["more", "less"]


def test_greedy_names_the_fits_there_are() -> None:
    with pytest.raises(LocalError, match="digits"):
        build(GreedyPolicy, {"fit": "digts"})


# --- when the default asks --------------------------------------------------------------------


def asked_by_default(*stops: Candidate, hop: int = 9) -> set[str]:
    observation = seen(*stops, HOME, hop=hop)
    return {stops[i].node for i in MinibatchPolicy().wants_probes(observation, random.Random(1))}


def visited(name: str, gain: float, *, since: int = 2) -> Candidate:
    return stop(name, visits=1, hops_since=since, last_gain=gain)


def test_an_answer_must_pay_for_its_seconds() -> None:
    # A visit takes 2 s; before any harm a third of that is what an answer is worth.
    quick, slow = stop("quick", probe_s=0.6), stop("slow", probe_s=1.9)
    assert asked_by_default(quick, slow, visited("a", 0.1)) >= {"quick"}
    assert "slow" not in asked_by_default(quick, slow, visited("a", 0.1))
    # Half of what one visit won another lost: 0.05 / (0.1 - 0.05) = 1, so 2 s.
    assert "slow" in asked_by_default(quick, slow, visited("a", 0.1), visited("b", -0.05))
    # All of it was lost: any answer pays.
    dearest = stop("dearest", probe_s=30.0)
    assert "dearest" in asked_by_default(dearest, visited("a", 0.1), visited("b", -0.1))


def test_old_harm_counts_no_more() -> None:
    slow, old = stop("slow", probe_s=1.9), visited("b", -0.1, since=MIN_MEMORY + 1)
    assert "slow" not in asked_by_default(slow, visited("a", 0.1), old, hop=6)


def test_a_visit_since_tells_more_than_the_probe_before_it() -> None:
    probed = recalled("a", 0.1)
    before = stop("a", probed=probed, hops_since_probe=3, visits=1, hops_since=9)
    after = stop("a", probed=probed, hops_since_probe=9, visits=1, hops_since=3)
    assert "a" not in asked_by_default(before)
    assert "a" in asked_by_default(after)


def test_where_nobody_is_worth_asking_the_disappointing_wait() -> None:
    stops = (
        stop("a", visits=1, hops_since=9, last_gain=0.0, probe_s=9.0),
        stop("b", visits=1, hops_since=9, last_gain=0.01, probe_s=9.0),
    )
    assert chosen(MinibatchPolicy(), seen(*stops, HOME, hop=9)) == "b"


def test_adverts_count_as_far_as_a_probe_bears_them_out() -> None:
    even, one = {"s": (5, 5)}, {"s": (10, 0)}
    stops = (stop("liar", labels=even), stop("plain", labels=one))
    probes = {"liar": probe(0.04), "plain": probe(0.06)}
    assert chosen(MinibatchPolicy(epsilon=0.0), seen(*stops, HOME, probes=probes)) == "plain"
