"""A link or a neighbour that goes down costs what it must, not a chain of time-outs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aats.ids import NodeId
from aats.installed import load_agent, load_policy
from aats.node import core
from aats.node.core import NodeCore
from aats.node.custody import Doing
from aats.node.desk import CoreConfig
from aats.sim.link import LinkSpec
from aats.testing.worlds import Pair, SmallWorld, line, ring, small_world, tally_packet

CONFIG = CoreConfig(NodeId("any"))
DETECT_S = 1.0
SLOW = LinkSpec(NodeId("a"), NodeId("b"), 1e6, 0.02)
"""A packet of a megabyte takes eight seconds."""


def world(
    pairs: list[Pair], *, link: LinkSpec | None = None, frozen: int = 1000, target: float = 0.9
) -> SmallWorld:
    small = small_world(pairs, policies=load_policy, agents=load_agent, link=link)
    header, payload = tally_packet(small, policy="cycle", frozen=frozen, target=target)
    small.world.start()
    small.world.submit(small.owner, header, payload, 0.0)
    return small


def events(small: SmallWorld, *names: str) -> list[dict[str, Any]]:
    return [e for e in map(json.loads, small.world.lines) if e["event"] in names]


def until(small: SmallWorld, *names: str, after: float = 0.0) -> dict[str, Any]:
    """Run on until one of these has happened; return it."""

    def last() -> dict[str, Any] | None:
        found = events(small, *names)
        return found[-1] if found and found[-1]["t"] > after else None

    assert small.world.run(4000.0, lambda: last() is not None)
    found = last()
    assert found is not None
    return found


def on_the_way(small: SmallWorld) -> tuple[NodeId, NodeId] | None:
    """Return from where to where bytes of a packet are sent, if any are."""
    for name, node in small.world.nodes.items():
        held = node.core.snapshot()["copies"] if isinstance(node.core, NodeCore) else {}
        assert isinstance(held, dict)
        for row, doing, *_ in held.values():
            if doing == Doing.SENDING.value:
                return name, row.chosen[0]
    return None


@pytest.mark.parametrize("back", [False, True])
def test_a_neighbour_that_dies_in_a_transfer_is_waited_for_a_little(back: bool) -> None:
    small = world(ring(6), link=SLOW, frozen=250_000)
    small.world.run(4000.0, lambda: on_the_way(small) is not None)
    sender, receiver = on_the_way(small) or small.nodes[:2]
    died_at = small.world.now + 1.0
    small.world.crash(receiver, died_at)
    if back:
        small.world.restart(receiver, died_at + DETECT_S + CONFIG.restart_s / 2)
    found = until(small, "packet.moved", "packet.rerouted", after=died_at)
    if back:
        assert (found["event"], found["to"], found["hop"]) == ("packet.moved", receiver, 1)
        assert not events(small, "packet.regenerated")
    else:
        assert found["event"] == "packet.rerouted"
        assert found["node"] == sender
        assert found["t"] == pytest.approx(died_at + DETECT_S + CONFIG.restart_s)
    small.world.restart(receiver, small.world.now + 5.0)
    small.world.run(4000.0, lambda: bool(small.world.deliveries))
    assert small.world.deliveries[0].header.requirement_met


def test_a_neighbour_that_has_nothing_yet_is_given_up_at_once_and_taken_again_at_once() -> None:
    small = world(ring(6))
    dead = NodeId("n1")
    small.world.crash(dead, 0.4)  # the owner learns of it after it has offered the packet
    gone = until(small, "packet.rerouted")
    assert gone["neighbour"] == dead
    assert gone["t"] == pytest.approx(0.4 + DETECT_S)
    moved = until(small, "packet.moved")
    assert moved["to"] == "n5"
    assert moved["t"] < gone["t"] + 2 * CONFIG.retry_s
    assert not events(small, "packet.regenerated")


@pytest.mark.parametrize("heal_at", [20.0, 22.0, 24.0, 26.0])
def test_a_packet_cut_off_goes_on_when_its_only_link_is_back(heal_at: float) -> None:
    small = world(line(4))
    small.world.cut(NodeId("n0"), NodeId("n1"), 0.2, heal_at)
    up = until(small, "link.up", after=heal_at)
    assert events(small, "packet.waiting")[-1]["t"] > DETECT_S
    assert until(small, "packet.moved")["t"] <= up["t"] + 2 * CONFIG.retry_s


def test_no_number_of_made_up_links_holds_a_packet_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MOST_LINKS", 0)
    assert until(world(ring(6)), "decision")["t"] == pytest.approx(CONFIG.settle_s)


def test_an_owner_waits_for_what_is_new_and_not_for_a_network_at_rest() -> None:
    small = world(ring(8))
    for at in range(200):  # somebody always comes or goes, faster than the map would settle
        node = NodeId(f"n{3 + at % 3}")
        small.world.crash(node, 0.1 + 0.4 * at)
        small.world.restart(node, 0.3 + 0.4 * at)
    assert until(small, "decision")["t"] <= 3 * CONFIG.settle_s
