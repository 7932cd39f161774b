"""Forks and merges, one thing at a time, on small simulated networks."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aats.advert import Partner
from aats.ids import NodeId
from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.messages import Moved, Offer, Refuse
from aats.node.commands import SaveCustody, SendMessage
from aats.node.gathering import shortened, travelling
from aats.node.joining import joined
from aats.packet import Cost, Errand, Header, Plugin
from aats.payload import Payload, pack
from aats.routing.rendezvous import Assemble, Finish, Fork, Plan, merge_of
from aats.sim.link import LinkSpec
from aats.testing.worlds import SHAPES, SmallWorld, tally_packet
from aats.wire import can_be_offered, encode_header
from tests.sim.test_journeys import make

LINK = LinkSpec(NodeId("a"), NodeId("b"), 1e7, 0.02)
INF = float("inf")


class Planned:
    """Plans what a function says, and counts how often it was asked."""

    merge = Plugin("mean")

    def __init__(self, plan: Callable[[Header, Sequence[Partner]], Plan | None]) -> None:
        self._plan, self.asked = plan, Counter[str]()

    def plan(
        self, header: Header, partners: Sequence[Partner], now: float, rng: random.Random
    ) -> Plan | None:
        self.asked["plan"] += 1
        return self._plan(header, partners)


def each(header: Header, partners: Sequence[Partner]) -> Plan:
    return Fork(tuple(Errand((p.node,)) for p in partners), 30.0, 0.5)


def world(
    plan: Callable[[Header, Sequence[Partner]], Plan | None],
    shape: str = "star",
    nodes: int = 6,
    **more: Any,
) -> SmallWorld:
    rendezvous = Planned(plan)
    return make(SHAPES[shape](nodes), 0, LINK, rendezvous=lambda plugin: rendezvous, **more)


def home_of(small: SmallWorld, hops: float = 400, limit_s: float = 2000.0) -> Header:
    header, payload = tally_packet(
        small, budget=Cost(hops, INF, INF, INF), rendezvous=Plugin("planned")
    )
    small.world.submit(small.owner, header, payload, at=1.0)
    small.world.start()
    assert small.world.run(limit_s, lambda: bool(small.world.deliveries))
    return small.world.deliveries[0].header


def sent(small: SmallWorld, kind: type) -> list[tuple[NodeId, Any]]:
    """Gather the messages of a kind as they are sent."""
    found: list[tuple[NodeId, Any]] = []

    def hook(node: Any, what: Any) -> None:
        if isinstance(what, SendMessage) and isinstance(what.message, kind):
            found.append((node.node, what.message))

    small.world.hooks.append(hook)
    return found


# --- what is planned --------------------------------------------------------------------------


def test_without_a_plan_a_packet_goes_on_by_its_policy() -> None:
    home = home_of(world(lambda header, partners: None))
    assert home.requirement_met
    assert not [r for r in home.chain if r.kind in (RecordKind.FORK, RecordKind.MERGE)]


def test_a_rendezvous_that_fails_is_told_of_and_the_packet_goes_on() -> None:
    def fail(header: Header, partners: Sequence[Partner]) -> Plan | None:
        raise RuntimeError("no idea")

    small = world(fail)
    assert home_of(small).requirement_met
    assert any("RuntimeError: no idea" in line for line in small.world.lines)


def test_a_packet_whose_rendezvous_is_finished_goes_home() -> None:
    def once(header: Header, partners: Sequence[Partner]) -> Plan:
        return Finish() if header.trained.get("cycle") else each(header, partners)

    home = home_of(world(once))
    assert home.trained["cycle"] == 1
    assert not home.requirement_met


def test_partners_are_those_with_wanted_data_in_the_order_of_their_names() -> None:
    seen: list[Sequence[Partner]] = []

    def look(header: Header, partners: Sequence[Partner]) -> Plan:
        seen.append(partners)
        return Finish()

    home_of(world(look, "line", 5))
    assert [(p.node, p.links) for p in seen[0]] == [("n1", 1), ("n2", 2), ("n3", 3)]
    assert all(p.data and p.compute.samples_per_s and 0 < p.transfer_s < INF for p in seen[0])


def test_a_fork_that_the_hops_left_do_not_cover_is_not_begun() -> None:
    home = home_of(world(each), hops=6)
    assert not [r for r in home.chain if r.kind is RecordKind.FORK]
    assert home.spent.hops <= 6


def test_an_assembly_of_nodes_that_are_not_there_is_none() -> None:
    home = home_of(world(lambda header, partners: Assemble((NodeId("nobody"),))))
    assert home.requirement_met


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Fork(()), "at least one errand"),
        (lambda: Fork((Errand(),), within_s=0.0), "within_s is 0.0"),
        (lambda: Fork((Errand(),), within_s=INF), "within_s is inf"),
        (lambda: Fork((Errand(),), quorum=1.5), "quorum is 1.5"),
        (lambda: Assemble(()), "at least one partner"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: Callable[[], Plan], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_merge_rule_is_a_name_or_a_plugin() -> None:
    class Named(Planned):
        merge = "adam"

    assert merge_of(Named(each)) == Plugin("adam")
    assert merge_of(Planned(each)) == Plugin("mean")


# --- children ---------------------------------------------------------------------------------


def test_more_children_than_a_node_takes_come_back_to_it() -> None:
    def patient(header: Header, partners: Sequence[Partner]) -> Plan:
        return Fork(tuple(Errand((p.node,)) for p in partners), 300.0)

    small = world(patient, nodes=14, tune=lambda config: replace(config, max_packets=3))
    refused = sent(small, Refuse)
    home = home_of(small)
    assert home.requirement_met
    assert refused, "the hub was never full"
    merges = [r.note for r in home.chain if r.kind is RecordKind.MERGE]
    assert set(merges) == {"12 of 12 children"}


def test_children_visit_the_stops_of_their_itinerary_in_order() -> None:
    way = (NodeId("n3"), NodeId("n1"), NodeId("n2"))

    def chain(header: Header, partners: Sequence[Partner]) -> Plan:
        return Fork((Errand(way, visits=3),), 60.0)

    home = home_of(world(chain))
    trained = [r.node for r in home.chain if r.kind is RecordKind.TRAIN]
    assert tuple(trained[:3]) == way
    assert home.journal[0].node == "n3"


def test_a_stop_that_is_nowhere_is_left_out() -> None:
    def chain(header: Header, partners: Sequence[Partner]) -> Plan:
        return Fork((Errand((NodeId("nobody"), NodeId("n2")), visits=2),), 60.0)

    small = world(chain)
    home = home_of(small)
    assert {r.node for r in home.chain if r.kind is RecordKind.TRAIN} == {"n2"}
    assert any("stop.left-out" in line for line in small.world.lines)


def test_children_are_merged_before_the_deadline() -> None:
    def long(header: Header, partners: Sequence[Partner]) -> Plan:
        return Fork((Errand((NodeId("n1"),)), Errand((NodeId("n2"),))), 500.0)

    small = world(long, "mesh", 5)
    small.world.crash(small.nodes[2], 1.5, for_good=True)
    header, payload = tally_packet(small, deadline=20.0, rendezvous=Plugin("planned"))
    small.world.submit(small.owner, header, payload, at=1.0)
    small.world.start()
    assert small.world.run(60.0, lambda: bool(small.world.deliveries))
    home = small.world.deliveries[0]
    assert home.at < 21.0
    assert home.header.trained["visits"] >= 1


def test_a_late_child_is_dropped_and_its_spare_released() -> None:
    def hurried(header: Header, partners: Sequence[Partner]) -> Plan:
        if header.trained.get("cycle"):
            return Finish()
        return Fork((Errand((NodeId("n1"),)), Errand((NodeId("n2"),))), 3.0, 0.5)

    small = world(hurried, "mesh", 5)
    small.world.partition([small.nodes[2]], 1.5, 9.0)
    home = home_of(small)
    (merge,) = [r for r in home.chain if r.kind is RecordKind.MERGE]
    assert merge.note == "1 of 2 children"
    (told,) = [json.loads(x) for x in small.world.lines if '"packet.merged"' in x]
    there_and_back_and_lost = 3
    assert home.spent.hops == there_and_back_and_lost
    assert told["bytes"] > 3 * travelling(home.manifest).total
    small.world.run(small.world.now + 120.0)
    left = {
        n: [r.status for r in node.store.rows.values()] for n, node in small.world.nodes.items()
    }
    assert left == {n: ["home"] if n == small.owner else [] for n in small.nodes}


def test_a_child_that_is_back_releases_its_spare() -> None:
    small = world(each)
    moved = sent(small, Moved)
    home_of(small)
    assert {m.key.packet.rpartition("-")[2] for node, m in moved if node == small.owner} >= {"0"}


def test_a_history_follows_a_fork_or_does_not() -> None:
    home = home_of(world(each))
    forks = [r for r in home.chain if r.kind is RecordKind.FORK]
    assert all(home.follows(fork.id) for fork in forks)
    child = replace(home, chain=(home.chain[0], forks[0]))
    assert child.follows(forks[0].id)
    assert not child.follows(forks[1].id)
    assert not replace(home, chain=home.chain[:1]).follows(forks[0].id)


# --- the header of both -----------------------------------------------------------------------


def test_what_children_did_is_joined() -> None:
    headers: list[Header] = []

    def hook(node: Any, what: Any) -> None:
        if isinstance(what, SaveCustody) and (what.children or what.row.status == "resting"):
            headers.append(what.row.header)

    small = world(each, nodes=4)
    small.world.hooks.append(hook)
    home_of(small)
    trunk, *children = headers[:3]
    assert trunk.forked is not None
    header = joined(trunk, children, children[:1], Cost(1, 0.0, 40.0, 0.0))
    assert header.hop > max(c.hop for c in children)
    assert header.spent.hops == sum(c.spent.hops for c in children) + 1
    assert header.spent.bytes == pytest.approx(sum(c.spent.bytes for c in children) + 40)
    assert [e.node for e in header.journal] == [e.node for c in children for e in c.journal]
    assert header.trained == {"visits": 1.0, "distinct": 2.0, "cycle": 1.0, "in_cycle": 0.0}
    assert [r.kind.value for r in header.chain] == ["init", "fork", "train"]
    assert not header.awaited


def test_a_child_is_as_large_in_the_last_round_as_in_the_first() -> None:
    sizes: list[int] = []

    def hook(node: Any, what: Any) -> None:
        if isinstance(what, SendMessage) and isinstance(what.message, Offer):
            header = what.message.header
            if header.branch and node.node == small.owner:
                sizes.append(len(encode_header(header)))

    small = world(each)
    small.world.hooks.append(hook)
    home = home_of(small)
    assert home.trained["cycle"] > 3
    assert sizes[-1] < 1.3 * sizes[0]


def test_a_history_that_has_grown_too_long_to_travel_begins_with_its_last_fork() -> None:
    home = home_of(world(each))
    *before, last = [r for r in home.chain if r.kind is RecordKind.FORK]
    bulk = tuple(replace(before[0], note="x" * 16_000, id=f"{i:064x}") for i in range(50))
    at = home.chain.index(last)
    long = replace(home, chain=(*home.chain[:at], *bulk, *home.chain[at:]))
    assert not can_be_offered(long)
    short = shortened(long)
    assert can_be_offered(short)
    assert short.chain == (home.chain[0], *home.chain[at:])
    check_chain(short.chain)
    assert shortened(home) is home


def test_a_rules_own_state_stays_with_the_trunk() -> None:
    arrays = {"model.w": np.ones(3, np.float32), "state.m": np.ones(5, np.float32)}
    full = pack({**arrays, "state.merge.first": np.ones(100, np.float32)})
    manifest = travelling(full.manifest)
    assert [t.name for t in manifest.tensors] == ["model.w", "state.m"]
    assert manifest.total < full.manifest.total
    manifest.check(limit_bytes=1 << 20)
    Payload(manifest, full.arena[: manifest.total]).verify()
    assert travelling(manifest) is manifest
