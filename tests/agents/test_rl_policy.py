from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from aats.errors import LocalError
from aats.ids import NodeId
from aats.installed import load_policy
from aats.messages import ProbeScores
from aats.packet import Plugin
from aats.routing.build import build
from aats.routing.carried import pieces
from aats.routing.features import FEATURES, GLOBALS
from aats.routing.policy import Observation, Phase, RoutePolicy
from aats.routing.probing import worth
from aats.topology.stops import Candidate, StopKind
from aats.wire import can_be_offered, decode_header, encode_header
from aats_agents.policies.greedy_prior import GreedyPriorPolicy
from aats_agents.policies.rl import GUARDED, SHORT, RlPolicy, shipped
from aats_agents.policy_file import PolicyFile, pack
from aats_agents.prior import Prior
from aats_agents.scorer import zeros
from tests.agents.rl_samples import column, random_batch, random_weights
from tests.wire_samples import HEADER

WIDE = dict.fromkeys((*FEATURES, *GLOBALS), (-1.0, 1.0))
FILE = PolicyFile(random_weights(1), Prior(), WIDE, probes=3, fallback="least-visited")


def observation(seed: int = 1, k: int = 12) -> Observation:
    """Return one of data nodes alone, in no special state."""
    features, packet, mask = random_batch(seed, k=k)
    for name in ("is_data", "is_mpvu", "is_home"):
        column(features, name)[...] = name == "is_data"
    column(packet, "has_verdict")[...] = 0
    column(packet, "visits")[...] = 0.5
    return Observation(
        features=features,
        globals=packet,
        mask=mask,
        candidates=tuple(
            Candidate(NodeId(f"n{i}"), StopKind.DATA, (NodeId(f"n{i}"),), 1.0, 1.0)
            for i in range(k)
        ),
        phase=Phase.SEEK,
        here=NodeId("n0"),
        probes=dict[NodeId, ProbeScores](),
        labels_used={},
        hop=5,
    )


RNG = random.Random(0)


def test_it_goes_where_the_score_is_highest_and_says_why() -> None:
    policy = RlPolicy.of(FILE)
    assert isinstance(policy, RoutePolicy)
    for seed in range(30):
        seen = observation(seed)
        choice = policy.choose(seen, RNG)
        assert choice.index == FILE.scorer.choose(seen.features, seen.globals, seen.mask)
        best, *rest = sorted(choice.scores, key=lambda node: -choice.scores[node])
        assert choice.reason.startswith(f"highest score at {best} (")
        assert set(choice.scores) == {seen.candidates[i].node for i in seen.legal()}
        if rest:
            assert f"then {rest[0]} (" in choice.reason


def test_the_reason_names_the_feature_that_made_the_difference() -> None:
    policy = RlPolicy.of(replace(FILE, weights=zeros()))
    seen = observation()
    seen.features[:] = seen.features[0]
    seen.mask[:] = True
    column(seen.features, "log_transfer")[4] = 0.0
    choice = policy.choose(seen, RNG)
    assert choice.index == 4
    assert choice.reason.partition("speak ")[2].startswith("log_transfer +")


def test_one_legal_stop_needs_no_second_to_compare_with() -> None:
    seen = observation()
    seen.mask[:] = False
    seen.mask[7] = True
    assert RlPolicy.of(FILE).choose(seen, RNG).index == 7


def test_it_probes_by_the_rule_it_was_trained_with() -> None:
    asked = 0
    for seed in range(20):
        seen = observation(seed)
        wanted = worth(seen.features, seen.globals, seen.mask, 3)
        found = RlPolicy.of(FILE).wants_probes(seen, RNG)
        assert found == list(np.flatnonzero(wanted))
        asked += len(found)
    assert asked


# --- where it was not trained -----------------------------------------------------------------


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("side", [-1, 1])
def test_out_of_the_range_trained_on_the_fallback_decides(name: str, side: int) -> None:
    policy = RlPolicy.of(replace(FILE, ranges=WIDE | {name: (0.4, 0.6)}))
    seen = observation()
    values = column(seen.globals if name in GLOBALS else seen.features, name)
    values[...] = 0.5 + side * 0.13
    assert policy.choose(seen, RNG).reason.startswith("highest score")
    values[...] = 0.5 + side * 0.15
    choice = policy.choose(seen, RNG)
    assert choice.reason.startswith(f"not trained for this: {name} of ")
    assert "; least-visited: " in choice.reason
    assert seen.mask[choice.index]
    assert policy.wants_probes(seen, RNG) == []  # as least-visited has it


def test_one_strange_stop_matters_only_if_it_would_be_chosen() -> None:
    seen = observation()
    seen.mask[:] = True
    column(seen.features, "log_compute")[:] = 0.5
    scores = RlPolicy.of(FILE).choose(seen, RNG).scores
    order = sorted(range(12), key=lambda i: -scores[NodeId(f"n{i}")])
    # The heuristic dislikes what takes long, and likes what takes no time at all.
    policy = RlPolicy.of(replace(FILE, weights=zeros(), ranges=WIDE | {"log_compute": (0.4, 0.6)}))
    column(seen.features, "log_compute")[order[-1]] = 1.0
    assert policy.choose(seen, RNG).reason.startswith("highest score")
    for name in ("log_compute", "log_transfer"):
        column(seen.features, name)[order[0]] = 0.0
    assert "log_compute of the best stop is 0.00" in policy.choose(seen, RNG).reason


def test_after_a_failed_verdict_with_little_left_it_takes_no_risk() -> None:
    policy, seen = RlPolicy.of(FILE), observation()
    for name in ("hops_used", "seconds_used", "bytes_used", "joules_used"):
        column(seen.globals, name)[...] = 0.1
    column(seen.globals, "verified_share")[...] = 0.5
    column(seen.globals, "has_verdict")[...] = 1
    assert policy.choose(seen, RNG).reason.startswith("highest score")
    column(seen.globals, "bytes_used")[...] = SHORT + 0.01
    assert policy.choose(seen, RNG).reason.startswith("a verdict failed")
    column(seen.globals, "has_verdict")[...] = 0
    assert policy.choose(seen, RNG).reason.startswith("highest score")


# --- how it travels ---------------------------------------------------------------------------


def test_it_travels_in_the_mandate_and_decides_the_same_elsewhere() -> None:
    file = replace(FILE, weights=random_weights(2, 32))
    plugin = Plugin("rl", {"weights": list(pieces(pack(file)))})
    header = replace(HEADER, mandate=replace(HEADER.mandate, policy=plugin))
    assert can_be_offered(header)
    arrived = decode_header(encode_header(header)).mandate.policy
    policy = load_policy(arrived)
    assert isinstance(policy, RlPolicy)
    assert policy.file.digest == file.digest
    seen = observation()
    assert policy.choose(seen, RNG) == RlPolicy.of(file).choose(seen, RNG)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weights": "AAAA"}, "must be a list of str"),
        ({"weights": [1]}, "must be a list of str"),
        ({"weights": ["????"]}, "no base64"),
        ({"weights": ["AAAA"]}, "a policy file is wanted"),
        ({"weights": ["A" * 300_000]}, "at most"),
        ({"path": "/etc/passwd"}, "unknown"),
        ({"weights": list(pieces(pack(replace(FILE, fallback="rl"))))}, "another policy"),
        ({"weights": list(pieces(pack(replace(FILE, fallback="no-such"))))}, "no-such"),
    ],
)
def test_what_a_stranger_sends_for_weights_is_refused(
    params: dict[str, object], message: str
) -> None:
    with pytest.raises(LocalError, match=message):
        build(RlPolicy, params)


def test_without_weights_the_shipped_policy_decides() -> None:
    policy = load_policy(Plugin("rl"))
    assert isinstance(policy, RlPolicy)
    assert policy.file.digest == shipped().digest
    assert policy.choose(observation(), RNG).reason


# --- the heuristic on its own -----------------------------------------------------------------


def test_the_heuristic_is_a_policy_with_weights_as_parameters() -> None:
    seen = observation()
    usual = load_policy(Plugin("greedy-prior")).choose(seen, RNG)
    logits = Prior().logits(seen.features, seen.globals, seen.mask)
    assert usual.index == np.where(seen.mask, logits, -np.inf).argmax()
    assert usual.scores[seen.candidates[usual.index].node] == 0
    careless = load_policy(Plugin("greedy-prior", {"cost": 0, "need": 500.0, "balance": 0}))
    chosen = careless.choose(seen, RNG).index
    need = np.where(seen.mask, column(seen.features, "need_supply"), -1)
    assert chosen == need.argmax() != usual.index


def test_the_heuristic_refuses_weights_that_make_no_sense() -> None:
    for params in ({"floor": 0.0}, {"probes": -1}, {"colour": 1}):
        with pytest.raises(LocalError):
            build(GreedyPriorPolicy, params)
