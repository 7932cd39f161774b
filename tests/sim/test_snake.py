"""What snake moves over a simulated network: changed blocks only, to whoever holds the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from aats.compose import build_world, compose
from aats.config.load import build
from aats.ids import NodeId
from aats.learning.blocks import blocks_of, size_of
from aats.learning.models import build as build_model
from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.node.commands import SendPacket
from aats.packet import Architecture
from aats.payload import MODEL
from aats.sim.network import Delivery
from aats.simulate import simulate

MODEL_CONFIG = {"features": 8, "hidden": [16, 32, 8, 24, 16], "classes": 3}
HUB = "hub"

LEARNER = build_model(Architecture("mlp", MODEL_CONFIG))
SIZES = [4 * size_of(LEARNER, block) for block in blocks_of(LEARNER)]
SLICES = [SIZES[0] + middle + SIZES[-1] for middle in SIZES[1:-1]]
"""Bytes of what a visit changes, by the middle block it trains."""
FULL = sum(SIZES)


@dataclass(frozen=True)
class Sent:
    sender: NodeId
    to: NodeId
    model_bytes: int


def tables(edges: list[list[str]], hops: int, **method: Any) -> dict[str, Any]:
    return {
        "scenario": {"name": "snake", "seed": 3},
        "topology": {"edges": edges},
        "nodes": {HUB: {"roles": ["owner"]}},
        "data": {
            "skills": {
                "blobs": {
                    "source": {"name": "synthetic", "samples": 600, "classes": 3, "spread": 1.0},
                    "reference": 64,
                }
            }
        },
        "packets": [
            {
                "name": "learner",
                "owner": HUB,
                "requirement": [{"skill": "blobs", "value": 1.0, "verifier": "any"}],
                "model": {"name": "mlp", **MODEL_CONFIG},
                "method": {"name": "snake", **method},
                "policy": "cycle",
                "budget": {"hops": hops},
            }
        ],
    }


def go(
    edges: list[list[str]], hops: int, *, caches: bool = True, **method: Any
) -> tuple[list[Sent], Delivery]:
    """Let a packet go its way; return the transfers of model tensors, in order."""
    scenario = build(tables(edges, hops, **method))
    plan = compose(scenario)
    if not caches:
        for name, node in plan.nodes.items():
            if name != HUB:
                plan.nodes[name] = replace(node, core=replace(node.core, cached_copies=0))
    world = build_world(scenario, plan)
    sent: list[Sent] = []

    def look(node: Any, what: Any) -> None:
        if isinstance(what, SendPacket):
            missing = what.manifest.missing(what.known)
            size = sum(t.size for t in missing if t.name.startswith(MODEL))
            sent.append(Sent(node.node, what.to, size))

    world.hooks.append(look)
    world.start()
    assert world.run(1e5, lambda: bool(world.deliveries)), "the packet did not come home"
    return sent, world.deliveries[0]


def test_between_two_nodes_only_what_the_last_visit_changed_moves() -> None:
    sent, home = go([[HUB, "a"], ["a", "b"]], 10)
    assert [s.model_bytes for s in sent[:2]] == [FULL, FULL], "neither had anything yet"
    # Each has what it trained itself and lacks what the other has trained since: one slice.
    assert [s.model_bytes for s in sent[2:-1]] == [SLICES[i % 4] for i in range(1, len(sent) - 2)]
    check_chain(home.header.chain)
    assert home.header.trained["snake.cycle"] == 2.0


def test_round_more_nodes_a_cache_is_as_stale_as_it_is_old() -> None:
    sent, _ = go([[HUB, "a"], ["a", "b"], ["b", "c"], ["c", "a"]], 12)
    ends, middle = SIZES[0] + SIZES[-1], SIZES[1:-1]
    # Of three, each lacks the two blocks trained since it had the packet, and both ends.
    wanted = [ends + middle[(i - 1) % 4] + middle[i % 4] for i in range(2, len(sent) - 2)]
    assert [s.model_bytes for s in sent[3:-1]] == wanted


def test_by_way_of_a_coordinator_the_slice_goes_up_and_to_who_holds_nothing_all_comes_down() -> (
    None
):
    leaves = ["a", "b", "c"]
    sent, home = go([[HUB, leaf] for leaf in leaves], 25, caches=False)
    up = [s.model_bytes for s in sent if s.to == HUB]
    down = [s.model_bytes for s in sent if s.sender == HUB]
    visits = len(home.header.journal)
    assert up[:visits] == [SLICES[i % 4] for i in range(visits)]
    assert down[:visits] == [FULL] * visits
    cycles = 4 * (visits // 4)
    share = sum(up[:cycles] + down[:cycles]) / (2 * FULL * cycles)
    assert share == pytest.approx((1 + sum(SLICES) / (4 * FULL)) / 2)


def test_by_way_of_a_coordinator_to_who_holds_an_older_copy_less_comes_down() -> None:
    sent, _ = go([[HUB, leaf] for leaf in ("a", "b", "c")], 25)
    up = [s.model_bytes for s in sent if s.to == HUB]
    down = [s.model_bytes for s in sent if s.sender == HUB]
    assert up[:9] == [SLICES[i % 4] for i in range(9)]
    ends, middle = SIZES[0] + SIZES[-1], SIZES[1:-1]
    assert down[:3] == [FULL] * 3
    assert down[3:8] == [ends + middle[(i - 2) % 4] + middle[(i - 1) % 4] for i in range(3, 8)]


def test_a_packet_learns_by_slices_and_its_ledger_says_so() -> None:
    _, home = go([[HUB, "a"], ["a", "b"], ["b", "c"]], 40, lr=0.1)
    assert max(e.value for e in home.header.skills) > 0.8
    trained = [record for record in home.header.chain if record.kind is RecordKind.TRAIN]
    assert {record.method for record in trained} == {"snake"}
    assert len({record.version for record in trained}) == len(trained)


def test_a_visit_lost_with_its_node_is_made_up_for_and_the_cycles_stay_whole() -> None:
    ring = [[HUB, "a"], ["a", "b"], ["b", "c"], ["c", HUB]]
    crash = {"kind": "crash", "on": "visit.started", "count": 3, "for_s": 5.0}
    scenario = build({**tables(ring, 16), "faults": [crash]})
    events: list[dict[str, Any]] = []
    (home,) = simulate(scenario, compose(scenario), events.append).values()
    header = home[0]
    started = sum(e["event"] == "visit.started" for e in events)
    trained = [record for record in header.chain if record.kind is RecordKind.TRAIN]
    assert started > len(trained)
    check_chain(header.chain)
    cycle, left = divmod(len(trained), 4)
    assert header.trained["snake.cycle"] == cycle
    assert header.trained["snake.done.0"] == (1 << left) - 1
