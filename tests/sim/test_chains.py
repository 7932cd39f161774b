"""LoRA chains through whole networks: what travels, what an MPVU takes out, forks and merges."""

from __future__ import annotations

from typing import Any

import numpy as np

from aats.compose import compose
from aats.config.load import build
from aats.learning.lora import LoraModel
from aats.learning.modules import ModuleBackend
from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.oam.view import Event
from aats.packet import Header
from aats.payload import MODEL, Payload
from aats.simulate import simulate

BASE = {"name": "mlp", "features": 64, "hidden": [64], "classes": 10}
METHOD = {"name": "lora", "lr": 0.5, "max_steps": 6, "rollback_drop": 1.0, "rollback_loss": 1000.0}


def run(
    stops: list[str], *, method: dict[str, Any], nodes: dict[str, Any] | None = None, **packet: Any
) -> tuple[Header, Payload, list[Event]]:
    """Send one packet through a ring of five; n4 verifies."""
    tables = {
        "scenario": {"seed": 2},
        "topology": {"generator": {"name": "ring", "nodes": 5}},
        "node": {"contributes_to": ["n4"]},
        "nodes": {"n0": {"roles": ["owner"]}, "n4": {"roles": ["mpvu"]}, **(nodes or {})},
        "data": {"skills": {"digits": {"source": "digits", "reference": 40}}},
        "packets": [
            {
                "name": "reader",
                "owner": "n0",
                "requirement": [{"skill": "digits", "value": 1.0, "verifier": "mpvu"}],
                "model": {"name": "lora", "base": BASE},
                "method": {**METHOD, **method},
                "policy": {"name": "itinerary", "stops": stops},
                "budget": {"hops": 40},
                **packet,
            }
        ],
    }
    scenario = build(tables)
    events: list[Event] = []
    ((header, payload),) = simulate(scenario, compose(scenario), events.append).values()
    check_chain(header.chain)
    payload.verify()
    return header, payload, events


def chain_of(header: Header, payload: Payload) -> LoraModel:
    module = ModuleBackend().load(header.mandate.architecture, payload).module
    assert isinstance(module, LoraModel)
    return module


def test_only_new_adapters_travel_to_a_node_that_holds_the_rest() -> None:
    header, payload, events = run(["n1", "n2", "n1", "n2"], method={"visits": 4})
    arrived = {e["hop"]: e["wire_bytes"] for e in events if e["event"] == "packet.received"}
    base = sum(t.size for t in payload.manifest.tensors if t.name.startswith(f"{MODEL}base."))
    adapter = sum(t.size for t in payload.manifest.tensors if ".1@n1." in t.name)
    assert arrived[1] > base > 5 * adapter
    assert all(arrived[hop] < 2 * adapter + base / 2 for hop in (3, 4))
    assert len(chain_of(header, payload).contributions) == 4


def test_an_mpvu_takes_out_what_harms_and_says_so_in_the_ledger() -> None:
    bad = {"n3": {"contributes_to": [], "data": {"digits": {"wrong_labels": 0.9}}}}
    about = {"visits": 3, "max_steps": 30, "drop_harm": 0.05}
    header, payload, events = run(["n1", "n2", "n3"], method=about, nodes=bad)
    trained, removed, verdict = header.chain[-4:-1]
    assert trained.note.startswith("added 3@n3")
    assert (removed.kind, removed.node) == (RecordKind.REMOVE, "n4")
    assert removed.note.startswith("subtract 3@n3; test set ")
    assert removed.metrics["harm.3@n3"] > 0.05
    assert removed.version == trained.base == verdict.version == header.version
    assert payload.manifest.version(MODEL) == header.version
    assert [*map(str, chain_of(header, payload).contributions)] == ["1@n1", "2@n2"]
    told = next(e for e in events if e["event"] == "verdict")
    assert [*told["removed"]] == ["3@n3"]


def test_an_mpvu_leaves_alone_what_does_not_harm() -> None:
    header, _, _ = run(["n1", "n2", "n3"], method={"visits": 3, "drop_harm": 0.2})
    assert RecordKind.REMOVE not in {r.kind for r in header.chain}


def test_what_harms_is_rejected_before_it_is_handed_on() -> None:
    bad = {"n2": {"data": {"digits": {"wrong_labels": 0.9}}}}
    about = {"visits": 3, "max_steps": 30, "reject_harm": 0.05}
    header, payload, _ = run(["n1", "n2", "n3"], method=about, nodes=bad)
    found = {
        r.node: r for r in header.chain if r.kind in (RecordKind.TRAIN, RecordKind.ROLLED_BACK)
    }
    assert found["n2"].kind is RecordKind.ROLLED_BACK
    assert found["n2"].note.startswith("harm 0.")
    assert [*map(str, chain_of(header, payload).contributions)] == ["1@n1", "3@n3"]


def test_children_of_a_fork_bring_their_contributions_home_side_by_side() -> None:
    header, payload, _ = run(
        [], method={"max_steps": 6}, policy="cycle", rendezvous={"name": "fedavg"},
        requirement=[{"skill": "digits", "value": 0.2, "verifier": "any"}],
    )  # fmt: skip
    assert RecordKind.MERGE in {r.kind for r in header.chain}
    model = chain_of(header, payload)
    assert {"n1", "n2", "n3"} <= {c.node for c in model.contributions}
    assert all(np.isfinite(payload.array(t)).all() for t in payload.manifest.tensors)
