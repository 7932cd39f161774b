"""Counter-measures in a whole simulated network: what they carry travels, and it helps."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from aats.compose import build_packets, compose, measure_on, simulated_identity
from aats.config import Scenario
from aats.config.load import build
from aats.errors import ScenarioError
from aats.packet import Header
from aats.payload import STATE, Payload
from aats.simulate import simulate

NODES = ("a", "b", "c", "d", "e")
SKILL = "digits"


def scenario(method: dict[str, Any], model: dict[str, Any] | None = None) -> Scenario:
    """Return five nodes with two digits each, and a packet that calls at each once."""
    names = (*NODES, "owner", "judge")
    return build({
        "scenario": {"name": "measures", "seed": 3},
        "topology": {"edges": [[a, b] for i, a in enumerate(names) for b in names[:i]]},
        "nodes": {
            "owner": {"roles": ["owner"]}, "judge": {"roles": ["mpvu"]},
            **{n: {"data": {SKILL: {}}, "contributes_to": ["judge"]} for n in NODES},
        },
        "data": {"skills": {SKILL: {
            "source": "digits", "reference": 100,
            "partition": {"name": "shards", "classes_per_node": 2},
        }}},
        "packets": [{
            "name": "learner", "owner": "owner",
            "requirement": [{"skill": SKILL, "value": 1.0}],
            "model": model or {"name": "mlp", "features": 64, "hidden": [32], "classes": 10},
            "method": {"rollback_drop": 1.0, "rollback_loss": 1e9, **method},
            "policy": {"name": "itinerary", "stops": list(NODES)},
            "budget": {"hops": 7},
        }],
    }, name="measures")  # fmt: skip


def travelled(
    method: dict[str, Any], model: dict[str, Any] | None = None
) -> tuple[Header, Payload, float]:
    made = scenario(method, model)
    plan = compose(made)
    ((header, payload),) = simulate(made, plan, lambda event: None).values()
    return header, payload, float(measure_on(header, payload, plan.test)[SKILL]["value"])


PLAIN = {"name": "sequential", "lr": 0.05, "equal_steps": 60}


def test_replay_travels_and_keeps_what_plain_training_forgets() -> None:
    _, payload, plain = travelled(PLAIN)
    assert not payload.arrays(STATE)
    header, payload, replayed = travelled({**PLAIN, "replay": 0.5, "ema": 0.5})
    assert plain < 0.35
    assert replayed > 0.7
    state = payload.arrays(STATE)
    assert state[f"{STATE}replay.classes.{SKILL}"].tolist() == list(range(10))
    visits = [r for r in header.chain if r.kind == "train"]
    assert [r.node for r in visits] == list(NODES)
    # Rows that were made up are no samples: 60 steps of at most 32 rows.
    assert max(r.samples for r in visits) <= 60 * 32
    assert sum(header.labels_used[SKILL]) == sum(r.samples for r in visits)


def test_one_seed_gives_one_packet() -> None:
    method = {
        **PLAIN, "replay": 0.5, "distil": 0.3, "ewc": 1.0, "ewc_rows": 8, "ema": 0.5, "sam": 0.01,
        "equal_steps": 10,
    }  # fmt: skip
    versions = {travelled(method)[1].manifest.version() for _ in range(2)}
    assert len(versions) == 1


@pytest.mark.parametrize("head", ["closed", "trained"])
def test_statistics_alone_learn_all_classes_in_one_pass(head: str) -> None:
    model = {"name": "logistic", "features": 64, "classes": 10}
    method = {"name": "generative", "head": head, "epochs": 20, "lr": 0.2}
    header, payload, value = travelled(method, model)
    assert value > 0.85
    assert payload.arrays(STATE)[f"{STATE}generative.count.{SKILL}"].min() > 0
    assert len([r for r in header.chain if r.kind == "train"]) == 5


def test_codes_of_a_bottleneck_are_replayed() -> None:
    model = {"name": "bottleneck", "features": 64, "hidden": [32], "code": 8, "classes": 10}
    method = {"name": "bottleneck", "lr": 0.05, "equal_steps": 60, "replay": 0.5,
              "replay_space": "feature", "replay_rank": 0}  # fmt: skip
    _, payload, _ = travelled(method, model)
    assert payload.arrays(STATE)[f"{STATE}replay.mean.{SKILL}"].shape == (10, 8)


def test_momentum_travels() -> None:
    _, payload, _ = travelled({**PLAIN, "momentum": 0.9, "carry_momentum": 8, "equal_steps": 10})
    codes = payload.arrays(f"{STATE}momentum.")
    assert {a.dtype.name for a in codes.values()} == {"int8"}
    assert len(codes) == 4


def test_a_surrogate_is_told_before_the_run_that_it_has_no_weights() -> None:
    method = {"name": "surrogate", "replay": 0.5}
    model = {"name": "surrogate", "classes": {SKILL: 10}}
    made = scenario(method, model)
    with pytest.raises(ScenarioError, match="counter-measures"):
        build_packets(made, compose(made), partial(simulated_identity, made), 0.0)
