from __future__ import annotations

import random

import numpy as np
import pytest

from aats.ids import NodeId
from aats.installed import load_policy
from aats.packet import Plugin
from aats.routing.features import FEATURES, GLOBALS
from aats.routing.policy import Observation, Phase
from aats.topology.stops import Candidate, StopKind
from aats_agents.policies.itinerary import ItineraryPolicy

KINDS = {"m": StopKind.MPVU, "home": StopKind.HOME}


def seen(legal: str, visited: str = "", phase: Phase = Phase.SEEK) -> Observation:
    """Return an observation of data nodes a-d, MPVU m and home; legal are those named."""
    names = ["a", "b", "c", "d", "m", "home"]
    stops = tuple(
        Candidate(NodeId(n), KINDS.get(n, StopKind.DATA), (NodeId(n),), 1.0, 1.0,
                  visits=visited.split().count(n))
        for n in names
    )  # fmt: skip
    return Observation(
        features=np.zeros((len(names), len(FEATURES)), np.float32),
        globals=np.zeros(len(GLOBALS), np.float32),
        mask=np.array([n in legal.split() for n in names]),
        candidates=stops,
        phase=phase,
        here=NodeId("home"),
        probes={},
        labels_used={},
        hop=len(visited.split()),
        visited=tuple(map(NodeId, visited.split())),
    )


def chosen(stops: str, observation: Observation) -> tuple[str, str]:
    choice = ItineraryPolicy(tuple(stops.split())).choose(observation, random.Random(0))
    assert observation.mask[choice.index]
    return observation.candidates[choice.index].node, choice.reason


@pytest.mark.parametrize(
    ("visited", "legal", "expected"),
    [
        ("", "a b c d", "b"),
        ("b", "a c d", "a"),
        ("b a", "b c d", "b"),
        ("b a b", "a c d", "d"),
        ("b", "c d", "d"),  # a is out of reach, b just visited
        ("b d a", "b c", "c"),  # used up: the least visited
        ("c", "a b d", "b"),  # c is not in the list
    ],
)
def test_it_goes_by_its_list(visited: str, legal: str, expected: str) -> None:
    assert chosen("b a b d", seen(legal, visited))[0] == expected


def test_it_says_which_stop_of_how_many_and_what_was_left_out() -> None:
    assert chosen("b a d", seen("d c", "b")) == ("d", "d is stop 3 of 3, a left out")
    assert chosen("b", seen("a", "b"))[1].startswith("the itinerary is used up; ")
    assert chosen("b a", seen("c d", "b"))[1].startswith("nothing in reach of a; ")


def test_it_asks_the_mpvu_of_its_list_unready_and_any_when_the_phase_wants_it() -> None:
    assert chosen("b m d", seen("a c d m", "b"))[0] == "m"
    assert chosen("b m d", seen("a c d", "b"))[0] == "d", "asked a moment ago"
    assert chosen("b d", seen("m", "b", Phase.VERIFY))[0] == "m"
    assert chosen("b d", seen("home", "b", Phase.RETURN))[0] == "home"


def test_a_list_is_carried_as_parameters() -> None:
    policy = load_policy(Plugin("itinerary", {"stops": ["a", "b"]}))
    assert policy == ItineraryPolicy(("a", "b"))
