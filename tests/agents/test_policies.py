from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.errors import LocalError
from aats.ids import NodeId
from aats.messages import ProbeScores
from aats.packet import ProbeEntry
from aats.routing.build import build
from aats.routing.features import FEATURES, GLOBALS
from aats.routing.policy import Observation, Phase, RoutePolicy
from aats.topology.stops import Candidate, StopKind
from aats_agents.policies.base import probe_order, ranks
from aats_agents.policies.cycle import CyclePolicy
from aats_agents.policies.label_variance import LabelVariancePolicy
from aats_agents.policies.least_visited import LeastVisitedPolicy
from aats_agents.policies.metric import GradientNormPolicy, LossPolicy
from aats_agents.policies.minibatch import MinibatchPolicy
from aats_agents.policies.random_walk import RandomPolicy

ALL: list[type] = [
    RandomPolicy, LeastVisitedPolicy, CyclePolicy, LabelVariancePolicy, LossPolicy,
    GradientNormPolicy, MinibatchPolicy,
]  # fmt: skip


def stop(name: str, kind: StopKind = StopKind.DATA, **fields: object) -> Candidate:
    base: dict[str, object] = {"path": (NodeId(name),), "transfer_s": 1.0, "compute_s": 1.0}
    return Candidate(NodeId(name), kind, **(base | fields))  # type: ignore[arg-type]


def seen(
    *candidates: Candidate,
    phase: Phase = Phase.SEEK,
    closed: str = "",
    probes: dict[str, ProbeScores] | None = None,
    **fields: object,
) -> Observation:
    """Return an observation with every stop of the phase's kind legal, but those closed."""
    kinds = {Phase.SEEK: StopKind.DATA, Phase.VERIFY: StopKind.MPVU, Phase.RETURN: StopKind.HOME}
    legal = [c.kind is kinds[phase] and c.node not in closed.split() for c in candidates]
    base: dict[str, object] = {"here": NodeId("a"), "labels_used": {}, "hop": 0}
    return Observation(
        features=np.zeros((len(candidates), len(FEATURES)), np.float32),
        globals=np.zeros(len(GLOBALS), np.float32),
        mask=np.array(legal),
        candidates=candidates,
        phase=phase,
        probes={NodeId(n): p for n, p in (probes or {}).items()},
        **(base | fields),  # type: ignore[arg-type]
    )


def probe(gain: float = 0.0, **fields: float) -> ProbeScores:
    base = {"alignment": 0.5, "loss": 1.0, "gradient_norm": 1.0}
    return ProbeScores(gain=gain, samples=32, **(base | fields))


def recalled(node: str, gain: float, *, loss: float = 0.5, hop: int = 10) -> ProbeEntry:
    return ProbeEntry(NodeId(node), hop, gain, alignment=0.5, loss=loss, advert_data_seq=0)


def chosen(policy: RoutePolicy, observation: Observation, seed: int = 1) -> str:
    choice = policy.choose(observation, random.Random(seed))
    assert observation.mask[choice.index]
    assert choice.reason
    return observation.candidates[choice.index].node


HOME = stop("home", StopKind.HOME)


# --- what all of them share -------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_errands_are_the_same_for_every_policy(cls: type) -> None:
    policy = cls()
    mpvus = (
        stop("m1", StopKind.MPVU, transfer_s=3.0),
        stop("m2", StopKind.MPVU, transfer_s=1.0),
        stop("m3", StopKind.MPVU, transfer_s=2.0),
    )
    stops = (stop("a"), *mpvus, HOME)
    assert chosen(policy, seen(*stops, phase=Phase.VERIFY)) == "m2"
    assert chosen(policy, seen(*stops, phase=Phase.RETURN)) == "home"
    assert policy.wants_probes(seen(*stops, phase=Phase.VERIFY), random.Random(1)) == []


@pytest.mark.parametrize("cls", ALL)
def test_a_choice_is_legal_repeatable_and_explained(cls: type) -> None:
    policy = cls()
    assert isinstance(policy, RoutePolicy)
    rng = random.Random(0)
    for _ in range(50):
        stops = tuple(
            stop(f"n{i}", visits=rng.randrange(3), hops_since=rng.randrange(9),
                 labels={"s": (rng.randrange(9), rng.randrange(9))}, hurt=rng.random() < 0.2,
                 transfer_s=rng.random())
            for i in range(8)
        )  # fmt: skip
        closed = " ".join(f"n{i}" for i in rng.sample(range(8), rng.randrange(7)))
        probes = {f"n{i}": probe(rng.uniform(-1, 1)) for i in rng.sample(range(8), 3)}
        observation = seen(*stops, HOME, closed=closed, probes=probes)
        seed = rng.randrange(1000)
        first = policy.choose(observation, random.Random(seed))
        assert first == policy.choose(observation, random.Random(seed))
        assert observation.mask[first.index]
        assert first.reason
        assert "{" not in first.reason
        asked = policy.wants_probes(observation, random.Random(seed))
        assert all(observation.mask[i] for i in asked)


@pytest.mark.parametrize("cls", ALL)
def test_an_unknown_parameter_names_the_known_ones(cls: type) -> None:
    with pytest.raises(LocalError, match="'epsilom' is unknown; known: "):
        build(cls, {"epsilom": 1})


def test_parameters_are_checked() -> None:
    assert build(MinibatchPolicy, {"probes": 2, "epsilon": 0}).probes == 2
    with pytest.raises(LocalError, match="did you mean 'epsilon'"):
        build(MinibatchPolicy, {"epsilom": 0.1})
    with pytest.raises(LocalError, match="must be int"):
        build(MinibatchPolicy, {"probes": "many"})
    with pytest.raises(LocalError, match="must be int"):
        build(MinibatchPolicy, {"probes": True})
    with pytest.raises(LocalError, match="within 0-1"):
        build(MinibatchPolicy, {"epsilon": 2.0})
    with pytest.raises(LocalError, match="'fixed' and 'shuffled'"):
        build(CyclePolicy, {"order": "sideways"})


def test_ranks_share_ties() -> None:
    assert ranks([3.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]
    assert ranks([1.0, 1.0, 0.0]) == [0.75, 0.75, 0.0]
    assert ranks([5.0]) == [1.0]


def test_probes_favour_the_stale_and_leave_out_who_refuses_or_hurt() -> None:
    stops = (
        stop("new"), stop("old", visits=1, hops_since=50), stop("fresh", visits=1, hops_since=0),
        stop("shy", probe_allowed=False), stop("hurt", visits=1, hops_since=9, hurt=True),
    )  # fmt: skip
    observation = seen(*stops, HOME)
    drawn = Counter(
        stops[i].node
        for seed in range(400)
        for i in probe_order(observation, 1, random.Random(seed))
    )
    assert set(drawn) == {"new", "old", "fresh"}
    assert drawn["new"] > drawn["old"] > drawn["fresh"]


# --- one by one -------------------------------------------------------------------------------


def test_random_reaches_every_legal_node() -> None:
    observation = seen(*(stop(f"n{i}") for i in range(5)), HOME, closed="n3")
    drawn = Counter(chosen(RandomPolicy(), observation, seed) for seed in range(500))
    assert set(drawn) == {"n0", "n1", "n2", "n4"}
    assert min(drawn.values()) > 80


def test_least_visited_then_longest_ago_then_cheapest() -> None:
    stops = (
        stop("a", visits=2, hops_since=9),
        stop("b", visits=1, hops_since=1),
        stop("c", visits=1, hops_since=5),
        stop("d", visits=1, hops_since=5, compute_s=0.5),
    )
    assert chosen(LeastVisitedPolicy(), seen(*stops, HOME)) == "d"
    assert chosen(LeastVisitedPolicy(), seen(*stops, HOME, closed="d")) == "c"


def walk_cycle(policy: RoutePolicy, names: list[str], hops: int, seed: int = 0,
               down: dict[int, str] | None = None) -> list[str]:  # fmt: skip
    visited: list[str] = []
    stops = [stop(n) for n in names]
    for hop in range(hops):
        gone = (down or {}).get(hop, "")
        observation = seen(
            *stops, HOME, closed=gone, hop=hop, seed=seed,
            visited=tuple(NodeId(n) for n in visited[-128:]),
        )  # fmt: skip
        visited.append(chosen(policy, observation, seed=hop))
    return visited


def test_fixed_cycle_goes_round_by_node_id() -> None:
    assert walk_cycle(CyclePolicy(), ["c", "a", "b"], 7) == list("abcabca")


def test_shuffled_cycle_visits_each_once_in_a_new_order() -> None:
    names = list("abcdefg")
    visited = walk_cycle(CyclePolicy(order="shuffled"), names, 7 * 30, seed=3)
    cycles = [tuple(visited[i : i + 7]) for i in range(0, len(visited), 7)]
    assert all(sorted(cycle) == names for cycle in cycles)
    assert len(set(cycles)) > 20
    assert visited == walk_cycle(CyclePolicy(order="shuffled"), names, 7 * 30, seed=3)
    assert visited != walk_cycle(CyclePolicy(order="shuffled"), names, 7 * 30, seed=4)


@settings(max_examples=15)
@given(count=st.integers(2, 160), order=st.sampled_from(["fixed", "shuffled"]), seed=st.integers(0))
def test_a_cycle_visits_each_node_once_however_many_there_are(
    count: int, order: str, seed: int
) -> None:
    names = [f"n{i}" for i in range(count)]
    visited = walk_cycle(CyclePolicy(order=order), names, 2 * count, seed)
    assert sorted(visited[:count]) == sorted(visited[count:]) == sorted(names)


@settings(max_examples=60)
@given(data=st.data())
def test_a_cycle_stays_even_where_nodes_come_and_go(data: st.DataObject) -> None:
    names = [f"n{i}" for i in range(data.draw(st.integers(3, 8)))]
    order = data.draw(st.sampled_from(["fixed", "shuffled"]))
    gone = data.draw(st.sampled_from(names))
    back = data.draw(st.integers(0, 30))
    visited: list[str] = []
    for hop in range(60):
        closed = " ".join({gone if hop < back else "", *visited[-1:]})
        observation = seen(
            *(stop(n) for n in names), HOME, closed=closed, hop=hop, seed=7,
            visited=tuple(map(NodeId, visited)),
        )  # fmt: skip
        visited.append(chosen(CyclePolicy(order=order), observation))
    visits = Counter(visited)
    always = [visits[n] for n in names if n != gone]
    # In each cycle that it misses, its turn is another's.
    assert max(always) - min(always) <= 2 + back // len(names)
    since = Counter(visited[back:])
    assert max(since.values()) - min(since[n] for n in names) <= 3


def test_cycle_skips_who_is_out_of_reach_and_catches_up() -> None:
    visited = walk_cycle(CyclePolicy(), ["a", "b", "c"], 6, down={1: "b"})
    assert visited[:3] == ["a", "c", "b"]


def test_label_variance_is_the_published_rule() -> None:
    # By hand: used (100, 0, 0); a holds class 0, b classes 1 and 2, c all three; 60 samples.
    stops = (
        stop("a", labels={"s": (9, 0, 0)}),
        stop("b", labels={"s": (0, 5, 5)}),
        stop("c", labels={"s": (3, 3, 3)}),
    )
    observation = seen(*stops, HOME, labels_used={"s": (100.0, 0.0, 0.0)})
    choice = LabelVariancePolicy(batch=60.0).choose(observation, random.Random(0))
    assert choice.index == 1
    for name, counts in (("a", [160, 0, 0]), ("b", [100, 30, 30]), ("c", [120, 20, 20])):
        assert choice.scores[NodeId(name)] == pytest.approx(-np.var(counts))


def test_label_variance_ignores_who_withholds_and_breaks_ties_by_index() -> None:
    hidden = stop("a")
    two = (stop("b", labels={"s": (0, 5)}), stop("c", labels={"s": (0, 5)}))
    observation = seen(hidden, *two, HOME, labels_used={"s": (10.0, 0.0)})
    assert chosen(LabelVariancePolicy(), observation) == "b"
    assert chosen(LabelVariancePolicy(), seen(hidden, HOME)) == "a"


def test_label_variance_weighs_several_skills() -> None:
    stops = (
        stop("a", labels={"s": (5, 5), "t": (5, 5)}),
        stop("b", labels={"s": (0, 5), "t": (5, 0)}),
    )
    used = {"s": (80.0, 0.0), "t": (0.0, 80.0)}
    assert chosen(LabelVariancePolicy(), seen(*stops, HOME, labels_used=used)) == "b"


@pytest.mark.parametrize("seed", range(3))
def test_label_variance_visits_every_class_before_it_repeats_one(seed: int) -> None:
    classes = 10
    stops = [
        stop(f"n{i}", labels={"s": tuple(100 * (c == i) for c in range(classes))})
        for i in range(classes)
    ]
    random.Random(seed).shuffle(stops)
    used, visited = [0.0] * classes, []
    for _ in range(3 * classes):
        name = chosen(LabelVariancePolicy(), seen(*stops, HOME, labels_used={"s": tuple(used)}))
        visited.append(name)
        used[int(name[1:])] += 100.0
    for start in range(0, len(visited), classes):
        assert len(set(visited[start : start + classes])) == classes


@pytest.mark.parametrize("cls", [LossPolicy, GradientNormPolicy])
def test_loss_and_gradient_norm_go_where_theirs_is_highest(cls: type) -> None:
    probes = {
        "a": probe(loss=1.0, gradient_norm=1.0),
        "b": probe(loss=3.0, gradient_norm=4.0),
        "c": probe(loss=2.0, gradient_norm=2.0),
    }
    observation = seen(*(stop(n) for n in "abcd"), HOME, probes=probes)
    assert chosen(cls(), observation) == "b"
    assert chosen(cls(), seen(stop("a", visits=1, hops_since=1), stop("b"), HOME)) == "b"


SURE = MinibatchPolicy(epsilon=0.0)


def test_minibatch_takes_trusted_gain_over_loss() -> None:
    probes = {"a": probe(0.3, loss=0.5), "b": probe(-0.4, loss=5.0), "c": probe(0.1)}
    assert chosen(SURE, seen(*(stop(n) for n in "abcd"), HOME, probes=probes)) == "a"


def test_minibatch_weighs_balance_and_cost() -> None:
    probes = {"a": probe(0.30), "b": probe(0.29), "c": probe(0.1)}
    even, one = {"s": (5, 5)}, {"s": (10, 0)}
    stops = (stop("a", labels=one), stop("b", labels=even), stop("c", labels=one))
    assert chosen(SURE, seen(*stops, HOME, probes=probes)) == "b"
    dear = (stops[0], replace(stops[1], transfer_s=9.0), stops[2])
    assert chosen(SURE, seen(*dear, HOME, probes=probes)) == "a"


def test_minibatch_neither_bounces_back_nor_returns_to_who_hurt() -> None:
    probes = {"a": probe(0.3), "b": probe(0.2), "c": probe(0.1)}
    stops = (stop("a", visits=1, hops_since=2), stop("b", visits=1, hurt=True), stop("c"))
    came = (NodeId("a"), NodeId("x"))
    assert chosen(SURE, seen(*stops, HOME, probes=probes, visited=came)) == "c"
    only = seen(*stops[:2], HOME, probes=probes, visited=came)
    assert chosen(SURE, only) == "a"
    assert chosen(SURE, seen(stops[1], HOME, probes=probes)) == "b"


def test_minibatch_takes_the_least_bad_when_nothing_helps() -> None:
    probes = {"a": probe(-0.3), "b": probe(-0.1)}
    assert chosen(SURE, seen(stop("a"), stop("b"), stop("c"), HOME, probes=probes)) == "b"


def test_minibatch_without_a_reference_set_caps_the_loss_at_chance() -> None:
    blind = {"alignment": 0.0}
    probes = {
        "a": probe(loss=2.9, **blind),
        "b": probe(loss=1.9, **blind),
        "c": probe(loss=0.2, **blind),
    }
    stops = tuple(stop(n, labels={"s": (1,) * 10}) for n in "abc")
    assert math.log(10) < 2.9
    assert chosen(SURE, seen(*stops, HOME, probes=probes, hop=5)) == "a"
    assert chosen(SURE, seen(*stops, HOME, probes=probes, hop=30)) == "b"


def test_minibatch_suspects_a_loss_above_chance_but_not_a_class_nobody_has_taught() -> None:
    stops = tuple(stop(n, labels={"s": (1,) * 10}) for n in "ab")
    noisy = {"a": probe(0.3, loss=5.0), "b": probe(0.2, loss=0.5)}
    assert chosen(SURE, seen(*stops, HOME, probes=noisy, hop=30)) == "b"
    new_class = {"a": probe(1.5, loss=9.0), "b": probe(0.2, loss=0.5)}
    assert chosen(SURE, seen(*stops, HOME, probes=new_class, hop=30)) == "a"


def test_minibatch_without_probes_goes_by_adverts_and_past_gain() -> None:
    stops = (
        stop("a", visits=1, hops_since=5, last_gain=-0.1),
        stop("b", visits=1, hops_since=5, last_gain=0.2),
        stop("c", visits=1, hops_since=5),
    )
    assert chosen(SURE, seen(*stops, HOME)) == "b"


def test_minibatch_asks_only_where_the_answer_could_change_the_choice() -> None:
    known = stop("good", probed=recalled("good", 0.1), hops_since_probe=2, visits=1, hops_since=9)
    stops = (
        known, stop("new"), stop("shy", probe_allowed=False), stop("dear", compute_s=50.0),
        stop("suspect", probed=recalled("suspect", -0.1, loss=2.0), hops_since_probe=20),
    )  # fmt: skip
    observation = seen(*stops, HOME, hop=9)
    asked = {i for seed in range(20) for i in SURE.wants_probes(observation, random.Random(seed))}
    assert {stops[i].node for i in asked} == {"new"}
    assert chosen(SURE, seen(known, stops[4], HOME, hop=9)) == "good"


def test_minibatch_asks_again_when_the_packet_is_twice_as_old() -> None:
    for since, is_asked in ((9, False), (11, True)):
        stops = (stop("a", probed=recalled("a", -0.1, loss=0.1), hops_since_probe=since), HOME)
        assert bool(SURE.wants_probes(seen(*stops, hop=9), random.Random(1))) is is_asked


def test_minibatch_asks_nobody_before_the_first_visit() -> None:
    assert SURE.wants_probes(seen(stop("a"), stop("b"), HOME), random.Random(1)) == []


def test_minibatch_prefers_a_node_it_found_good_to_one_that_does_not_help() -> None:
    stops = (
        stop("a", probed=recalled("a", 0.1), hops_since_probe=3),
        stop("b", probed=recalled("b", -0.2), hops_since_probe=3),
    )
    assert chosen(SURE, seen(*stops, HOME, hop=9, probes={"b": probe(-0.1)})) == "a"


def test_minibatch_explores_only_what_helps() -> None:
    probes = {"a": probe(0.3), "b": probe(-0.4), "c": probe(0.1)}
    observation = seen(*(stop(n) for n in "abc"), HOME, probes=probes)
    drawn = {chosen(MinibatchPolicy(epsilon=1.0), observation, seed) for seed in range(50)}
    assert drawn == {"a", "c"}


def test_no_policy_comes_straight_back() -> None:
    """A packet that steers itself through a mesh by minibatch never visits A, B, A."""
    names, visited = [f"n{i}" for i in range(6)], ["n0", "n1"]
    for hop in range(2, 60):
        stops = [stop(n, visits=visited.count(n)) for n in names]
        probes = {n: probe(0.5 if n in ("n0", "n1") else 0.1) for n in names}
        observation = seen(
            *stops, HOME, probes=probes, closed=visited[-1], hop=hop,
            visited=tuple(NodeId(n) for n in visited),
        )  # fmt: skip
        visited.append(chosen(SURE, observation, hop))
    assert all(a != c for a, c in pairwise(visited[::2]))
