"""What runs send, as their packets' accounts have it, beside the formulas.

Tensors, or frames, are within 2 % of the formulas. What packets that move pay on top of tensors is
stated apart: headers with their signed chain, within a tenth of `header_bytes`.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from aats.compose import build_world, compose
from aats.config.load import build
from aats.control.cost import (
    averaging_bytes,
    chain_bytes,
    header_bytes,
    snake_bytes,
    split_bytes,
)
from aats.packet import Header

WITHIN = 0.02
TRAINED_ROWS = 1437


def scenario(nodes: int, hidden: list[int], **packet: Any) -> dict[str, Any]:
    """Return nodes with digits and an owner with none, one link from each to each."""
    names = [*(f"n{i}" for i in range(nodes)), "owner"]
    return {
        "scenario": {"seed": 1, "limit_s": 1e6},
        "topology": {"edges": [[a, b] for i, a in enumerate(names) for b in names[:i]]},
        "node": {"streams": True},
        "nodes": {"owner": {"roles": ["owner", "compute"]}},
        "data": {"skills": {"digits": {
            "source": "digits", "held_out": 0.0, "reference": 0, "test": 0.2,
        }}},
        "packets": [{
            "name": "reader", "owner": "owner", "policy": "cycle", "budget": {"hops": 1000},
            "requirement": [{"skill": "digits", "value": 1.0, "verifier": "any"}],
            "model": {"name": "mlp", "features": 64, "hidden": hidden, "classes": 10}, **packet,
        }],
    }  # fmt: skip


@functools.cache
def sent(way: str) -> tuple[Header, float]:
    """Run a way; return the header that came home and the bytes of tensors on all links."""
    tables = {
        "chain": scenario(6, [128], method={"name": "sequential", "visits": 12}),
        "fedavg": scenario(
            6, [128], method="sequential", rendezvous={"name": "fedavg", "rounds": 3}
        ),
        "snake": scenario(2, [64] * 4, method={"name": "snake", "visits": 20}),
        "split": scenario(
            6, [256, 64], method={"name": "split", "cut": 1, "batch_size": 128, "visits": 1},
            rendezvous={"name": "assemble"},
        ),
    }[way]  # fmt: skip
    plan = compose(made := build(tables, name=way))
    world = build_world(made, plan)
    world.start()
    world.run(1e6, lambda: bool(world.deliveries))
    return world.deliveries[0].header, float(world.counts["bulk"])


def layer(reads: int, makes: int) -> int:
    """Return bytes of a linear layer."""
    return 4 * (reads + 1) * makes


SMALL = layer(64, 128) + layer(128, 10)


def test_a_chain_sends_the_model_once_for_each_visit_and_once_home() -> None:
    header, tensors = sent("chain")
    assert header.trained["visits"] == 12
    formula = chain_bytes(SMALL, nodes=6, passes=2) + SMALL
    assert tensors == pytest.approx(formula, rel=WITHIN)
    assert header.spent.bytes - tensors == pytest.approx(header_bytes(13, tensors=4), rel=0.1)


def test_averaging_sends_the_model_to_every_node_and_back_in_each_round() -> None:
    header, tensors = sent("fedavg")
    assert header.trained["visits"] == 18
    assert tensors == pytest.approx(averaging_bytes(SMALL, participants=6, rounds=3), rel=WITHIN)
    # Each of 36 transfers has a header that knows only the last two records of the trunk's past.
    assert 36 * 1500 < header.spent.bytes - tensors < 36 * 3000


@pytest.mark.slow
def test_a_snake_between_two_nodes_sends_a_slice_a_hop_once_both_have_the_model() -> None:
    header, tensors = sent("snake")
    assert header.trained["visits"] == 20
    block, last = layer(64, 64), layer(64, 10)
    model, cycle = 4 * block + last, [float(2 * block + last)] * 3
    # Two visits find nodes without the model, and the owner's copy is old: three times all of it.
    assert tensors == pytest.approx(3 * model + snake_bytes(cycle, cycles=6), rel=WITHIN)
    assert header.spent.bytes - tensors == pytest.approx(header_bytes(21, tensors=10), rel=0.1)


@pytest.mark.slow
def test_split_learning_sends_what_its_formula_says_frames_and_all() -> None:
    header, tensors = sent("split")
    assert tensors == 0, "the packet stays at its owner: all it sends is frames"
    client = layer(64, 256)
    formula = split_bytes(TRAINED_ROWS, width=256, client=client, clients=6)
    # The clients' part sets out from the packet and comes back: one time more than from each.
    assert header.spent.bytes == pytest.approx(formula + client, rel=WITHIN)
