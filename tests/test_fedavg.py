"""Federated averaging by packets is federated averaging: equal to a plain loop, bit for bit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aats.compose import compose
from aats.config import Scenario
from aats.config.load import build
from aats.ids import NodeId
from aats.learning.weights import initial_payload
from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.oam.progress import Quiet
from aats.oam.view import RunView
from aats.packet import Header
from aats.payload import Array, Payload
from aats.run import Delivered, Watch, run_live, run_simulated
from aats.testing.federated import Settings, Turn, fedavg, rounds_of, start_of

CLIENTS = ("a", "b", "c", "d")
ROUNDS = 4


def scenario(
    rendezvous: dict[str, Any], *, reference: int = 32, held_out: float = 0.2, **method: Any
) -> Scenario:
    """Return a scenario: an owner without data in the midst of four unequal clients."""
    return build(
        {
            "scenario": {"name": "averaging", "seed": 5},
            "topology": {"edges": [["owner", client] for client in CLIENTS]},
            "nodes": {
                "owner": {"roles": ["owner"]},
                "b": {"data": {"blobs": {"share": 2.0}}},
                "d": {"data": {"blobs": {"share": 0.5}}},
            },
            "data": {
                "skills": {
                    "blobs": {
                        "source": {"name": "synthetic", "samples": 300, "classes": 3},
                        "partition": {"name": "dirichlet", "alpha": 0.5},
                        "reference": reference,
                        "held_out": held_out,
                    }
                }
            },
            "live": {"shaping": False},
            "packets": [
                {
                    "name": "learner",
                    "owner": "owner",
                    "requirement": [{"skill": "blobs", "value": 1.0, "verifier": "any"}],
                    "model": {"name": "mlp", "features": 8, "hidden": [6], "classes": 3},
                    "method": {"name": "sequential", "lr": 0.2, "batch_size": 16, **method},
                    "rendezvous": rendezvous,
                    "policy": "least-visited",
                    "budget": {"hops": 500},
                }
            ],
        }
    )


def watch() -> Watch:
    view = RunView()
    return Watch(view, Quiet(view, None))  # type: ignore[arg-type]


def the_only(delivered: Delivered) -> tuple[Header, Payload]:
    ((header, payload),) = delivered.values()
    payload.verify()
    check_chain(header.chain)
    return header, payload


def plain(
    scenario: Scenario, header: Header, rounds: Sequence[Sequence[Turn]], **settings: Any
) -> dict[str, Array]:
    """Return the weights of the plain loop over the same clients in the same rounds."""
    mandate = header.mandate
    data = {NodeId(n): plan.data.skills["blobs"] for n, plan in compose(scenario).nodes.items()
            if plan.data.skills}  # fmt: skip
    start = start_of(initial_payload(mandate.architecture, mandate.seed))
    every = Settings(**{"lr": 0.2, "batch_size": 16, "seed": mandate.seed, **settings})
    return list(fedavg(mandate.architecture, start, data, rounds, every))[-1]


def check_same(payload: Payload, wanted: dict[str, Array]) -> None:
    found = start_of(payload)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ({}, {}),
        ({"epochs": 2.0, "decay": 0.5}, {"epochs": 2.0, "decay": 0.5}),
        ({"equal_steps": 7, "clip": 0.0}, {"steps": 7, "clip": 0.0}),
    ],
)
def test_simulated_averaging_is_the_plain_loop(
    method: dict[str, Any], settings: dict[str, Any]
) -> None:
    made = scenario({"name": "fedavg", "rounds": ROUNDS}, **method)
    header, payload = the_only(run_simulated(made, None, watch()))
    rounds = rounds_of(header)
    assert [[turn.node for turn in turns] for turns in rounds] == [list(CLIENTS)] * ROUNDS
    assert header.trained["cycle"] == ROUNDS
    check_same(payload, plain(made, header, rounds, **settings))


def test_rounds_go_on_where_nothing_tells_how_good_the_model_is() -> None:
    made = scenario({"name": "fedavg", "rounds": 6}, reference=0, held_out=0.0)
    header, payload = the_only(run_simulated(made, None, watch()))
    assert not header.skills
    rounds = rounds_of(header)
    assert len(rounds) == 6
    check_same(payload, plain(made, header, rounds))


def test_some_clients_a_round_are_drawn_anew() -> None:
    made = scenario({"name": "fedavg", "rounds": 6, "clients": 2})
    header, payload = the_only(run_simulated(made, None, watch()))
    rounds = rounds_of(header)
    assert {len({turn.node for turn in turns}) for turns in rounds} == {2}
    assert len({tuple(turn.node for turn in turns) for turns in rounds}) > 1
    check_same(payload, plain(made, header, rounds))


def test_fedavgm_without_momentum_is_the_mean_and_with_it_another_model() -> None:
    settings = {"name": "fedopt", "optimiser": "avgm", "lr": 1.0, "rounds": 3}
    made = scenario({**settings, "beta_1": 0.0})
    header, payload = the_only(run_simulated(made, None, watch()))
    wanted = plain(made, header, rounds_of(header))
    for name, array in start_of(payload).items():
        assert np.allclose(array, wanted[name], atol=1e-6)
    _, moved = the_only(run_simulated(scenario({**settings, "beta_1": 0.9}), None, watch()))
    assert any(not np.allclose(a, wanted[n], atol=1e-3) for n, a in start_of(moved).items())


@pytest.mark.parametrize(
    "rendezvous",
    [
        {"name": "daisy-chain", "every": 3, "rounds": 2},
        {"name": "gossip", "walkers": 3, "visits": 4, "rounds": 2},
        {"name": "fedopt", "optimiser": "yogi", "lr": 0.2, "rounds": 4},
        {"name": "fedavg", "move": True, "rounds": 3},
    ],
    ids=lambda table: str(table["name"]),
)
def test_every_plan_ends_after_its_rounds_and_learns(rendezvous: dict[str, Any]) -> None:
    made = scenario(rendezvous, epochs=2.0)
    header, _ = the_only(run_simulated(made, None, watch()))
    merges = [r for r in header.chain if r.kind is RecordKind.MERGE]
    assert len(merges) == header.trained["cycle"] == rendezvous["rounds"]
    (skill,) = (s for s in header.skills if s.source == "reference")
    assert skill.value > 0.6, "a third is chance"
    if "every" in rendezvous:
        visits = [r for r in header.chain if r.kind is RecordKind.TRAIN]
        assert len(visits) == 2 * 3 * len(CLIENTS)
    if rendezvous.get("move"):
        assert len({merge.node for merge in merges}) > 1, "it has met in several places"


def test_live_averaging_is_the_plain_loop(tmp_path: Path) -> None:
    made = scenario({"name": "fedavg", "rounds": 2})
    header, payload = the_only(asyncio.run(run_live(made, tmp_path / "live", watch())))
    rounds = rounds_of(header)
    assert [[turn.node for turn in turns] for turns in rounds] == [list(CLIENTS)] * 2
    check_same(payload, plain(made, header, rounds))
