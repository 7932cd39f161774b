"""One packet, one way: in the environment with real training, and in the simulated world."""

from __future__ import annotations

from pathlib import Path

import pytest

from aats_agents.evaluate.case import Case, cases_of, drawn, in_earnest
from aats_agents.evaluate.journeys import drive
from aats_agents.evaluate.real import travel
from aats_agents.evaluate.specs import maker, spec_of
from aats_envs.from_scenario import from_scenario
from aats_envs.presets import preset
from aats_envs.torch_learner import TorchLearner

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def ring() -> Case:
    (case,) = cases_of([str(EXAMPLES / "ring")], [3])
    return case


@pytest.fixture(scope="module")
def digits20() -> Case:
    (case,) = cases_of([str(EXAMPLES / "digits20")], [100])
    return case


def check(name: str, case: Case) -> None:
    spec = spec_of(name)
    assert case.scenario is not None
    ((_, task),) = from_scenario(case.scenario)
    (here,) = drive(name, maker(spec), [case], learner=TorchLearner.of(task))
    there = travel(spec, case)
    assert (here.hops, here.success, here.bad_visits) == (
        there.hops, there.success, there.bad_visits
    )  # fmt: skip
    # Headers grow on the way, and the map settles before a packet leaves.
    assert here.seconds == pytest.approx(there.seconds, rel=0.25, abs=1.0)


@pytest.mark.parametrize("name", ["random", "least-visited", "greedy-prior", "minibatch"])
def test_a_policy_goes_one_way_in_both_worlds(name: str, ring: Case) -> None:
    check(name, ring)


# Not `minibatch`: whether it probes depends on how long visits took, which is not quite the same.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "least-visited"])
def test_so_it_does_over_slow_links_with_bad_nodes(name: str, digits20: Case) -> None:
    check(name, digits20)


@pytest.mark.slow
def test_the_oracle_of_a_drawn_network_is_the_fastest_with_real_training_too() -> None:
    case = in_earnest(drawn("small", preset("small"), [4])[0])
    known = travel(spec_of("oracle"), case)
    assert known.success
    for name in ("random", "least-visited", "greedy-prior"):
        other = travel(spec_of(name), case)
        assert not other.success or known.seconds < other.seconds
