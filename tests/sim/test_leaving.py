"""A node that is told to leave hands on what it holds, takes nothing more, is missed by none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aats.ids import NodeId
from aats.installed import load_agent, load_policy
from aats.node.core import NodeCore
from aats.node.events import Leaving
from aats.sim.network import SimulatedWorld
from aats.testing.worlds import SmallWorld, ring, small_world, tally_packet

MPVU = NodeId("n5")
FAREWELL_S = 0.5
"""As in `aats.node.daemon`: its last words go out."""


def events(world: SimulatedWorld, node: str, event: str) -> list[dict[str, Any]]:
    told = map(json.loads, world.lines)
    return [e for e in told if e["node"] == node and e["event"] == event]


def core(world: SimulatedWorld, node: NodeId) -> NodeCore:
    found = world.nodes[node].core
    assert isinstance(found, NodeCore)
    return found


def under_way(seed: int, node: NodeId, event: str) -> SmallWorld:
    """Return a ring in which a packet has come so far: this event has happened at this node."""
    small = small_world(ring(6), policies=load_policy, agents=load_agent, seed=seed)
    header, payload = tally_packet(small, seed=seed, target=0.9, policy="cycle")
    small.world.start()
    small.world.submit(small.owner, header, payload, 0.0)
    assert small.world.run(4000.0, lambda: bool(events(small.world, node, event)))
    return small


@pytest.mark.parametrize("event", ["packet.received", "visit.started", "visit.finished"])
@pytest.mark.parametrize("leaver", ["n1", "n3", MPVU])
def test_it_hands_on_what_it_holds_and_may_stay_away(event: str, leaver: str) -> None:
    node = NodeId(leaver)
    if node == MPVU and event != "packet.received":
        event = "verdict"
    small = under_way(1, node, event)
    world = small.world
    world.nodes[node].feed(Leaving())
    told_at = world.now
    assert world.run(told_at + 100.0, lambda: core(world, node).is_clear)
    gone_at = world.now + FAREWELL_S
    world.run(gone_at)
    world.crash(node, for_good=True)
    if node == MPVU:  # nobody else can verify: what was under way is all that it owes
        world.run(gone_at + 60.0)
    else:
        world.run(4000.0, lambda: bool(world.deliveries))
        assert world.deliveries[0].header.requirement_met
        assert world.deliveries[0].header.epoch == 0
    assert not [line for line in world.lines if '"packet.regenerated"' in line]
    assert all(e["t"] <= told_at for e in events(world, node, "packet.received"))
    assert events(world, node, "node.leaving")


def test_it_offers_nothing_more_and_says_why_it_refuses() -> None:
    small = under_way(1, NodeId("n2"), "packet.received")
    world = small.world
    leaver = NodeId("n1")
    world.nodes[leaver].feed(Leaving())
    world.run(4000.0, lambda: bool(world.deliveries))
    home = world.deliveries[0].header
    assert home.requirement_met
    assert all(e["reason"] == "failed" for e in events(world, leaver, "offer.refused"))
    assert core(world, leaver).is_clear


def test_what_is_coming_home_is_taken() -> None:
    small = under_way(2, MPVU, "packet.received")
    world = small.world
    world.nodes[small.owner].feed(Leaving())
    world.run(4000.0, lambda: bool(world.deliveries))
    assert world.deliveries[0].node == small.owner
    assert core(world, small.owner).is_clear


def test_a_packet_that_nobody_else_can_take_stays() -> None:
    small = under_way(1, NodeId("n2"), "visit.started")
    world = small.world
    for a, b in (("n1", "n2"), ("n2", "n3")):
        world.cut(NodeId(a), NodeId(b), world.now)
    node = NodeId("n2")
    world.nodes[node].feed(Leaving())
    world.run(world.now + 8.0)
    assert not core(world, node).is_clear
