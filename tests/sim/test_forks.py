"""Packets that fork come home whatever happens, nothing counts twice, nothing is left behind."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from aats.advert import Partner
from aats.ids import NodeId
from aats.ledger.record import check_chain, heads
from aats.lineage import Record, RecordKind
from aats.packet import Cost, Errand, Header, Plugin
from aats.payload import MODEL
from aats.replay import Divergence, EventLog, replay
from aats.routing.rendezvous import Fork
from aats.sim.link import LinkSpec
from aats.testing.worlds import SHAPES, SmallWorld, tally_packet
from tests.sim.test_journeys import MOMENTS, check_effects, make, schedule

QUICK, FULL = 16, 400
LIMIT_S = 6000.0
END_S = 260.0
"""By then everything that was planned to go wrong has, and is over."""
BUDGET = Cost(400, float("inf"), float("inf"), float("inf"))
LINK = LinkSpec(NodeId("a"), NodeId("b"), 1e7, 0.02)
FORK_MOMENTS = (*MOMENTS, "forked", "resting", "merging", "merged")
MODES = "each", "chain", "walk"


class Round:
    """Sends one child to each partner, along chains of two of them, or on walks."""

    merge = "mean"

    def __init__(self, mode: str, within_s: float, quorum: float) -> None:
        self.mode, self.within_s, self.quorum = mode, within_s, quorum

    def plan(
        self, header: Header, partners: Sequence[Partner], now: float, rng: random.Random
    ) -> Fork | None:
        nodes = [p.node for p in partners]
        if not nodes:
            return None
        errands = {
            "each": [Errand((node,)) for node in nodes],
            "chain": [Errand((a, b), 2) for a, b in zip(nodes, nodes[1:] + nodes[:1], strict=True)],
            "walk": [Errand(visits=2, meet=True)] * 3,
        }[self.mode]
        return Fork(tuple(errands), self.within_s, self.quorum)


def forking(seed: int) -> dict[str, object]:
    rng = random.Random(f"fork/{seed}")
    mode = rng.choice(MODES)
    round_ = Round(mode, rng.choice([5.0, 20.0, 60.0]), rng.choice([0.0, 0.5, 1.0]))
    return {"rendezvous": lambda plugin: round_}


def run_home(small: SmallWorld, seed: int) -> Header:
    world = small.world
    header, payload = tally_packet(small, seed=seed, budget=BUDGET, rendezvous=Plugin("round"))
    world.submit(small.owner, header, payload, at=1.0)
    world.start()
    assert world.run(LIMIT_S, lambda: bool(world.deliveries)), "the packet did not come home"
    world.run(max(world.now + 60.0, END_S))
    (delivery,) = world.deliveries
    check_effects(small)
    check_lineage_of_forks(small, delivery.header)
    check_count(delivery.header, delivery.payload.arrays(f"{MODEL}tally")[f"{MODEL}tally"][1])
    check_nothing_is_left(small)
    return delivery.header


def check_lineage_of_forks(small: SmallWorld, home: Header) -> None:
    keys = {node: identity.public_key for node, identity in small.identities.items()}
    check_chain(home.chain, keys)
    assert heads(home.chain) == (home.chain[-1],)
    assert home.chain[-1].kind is RecordKind.HOME
    every = {record.id: record for record in home.chain}
    merged = [
        every[parent].branch
        for record in home.chain
        if record.kind is RecordKind.MERGE
        for parent in record.parents[1:]
    ]
    assert len(set(merged)) == len(merged), "a child was merged twice"
    effects = [(r.branch, r.hop) for r in home.chain if r.kind is RecordKind.TRAIN]
    assert len(set(effects)) == len(effects), "a hop took effect twice"


def check_count(home: Header, visits: float) -> None:
    """Check that each visit in the history is in the model, once, and no other is."""
    if not any(len(r.parents) > 1 for r in home.chain if r.kind is RecordKind.TRAIN):
        assert visits == sum(r.kind is RecordKind.TRAIN for r in home.chain)


def check_nothing_is_left(small: SmallWorld) -> None:
    for name, node in small.world.nodes.items():
        if node.is_up:
            left = [(str(row.key), row.status) for row in node.store.rows.values()]
            assert [status for _, status in left] == ["home"] * (name == small.owner), (name, left)
            assert len(node.store.payloads) == len(left)


@pytest.mark.parametrize("mode", MODES)
def test_a_packet_that_forks_comes_home_with_its_requirement_met(mode: str) -> None:
    small = make(SHAPES["star"](6), 0, LINK, rendezvous=lambda plugin: Round(mode, 60.0, 1.0))
    home = run_home(small, 0)
    assert home.requirement_met
    merges = [r for r in home.chain if r.kind is RecordKind.MERGE]
    assert merges
    assert home.trained["cycle"] == len(merges)
    assert home.trained["visits"] == sum(r.kind is RecordKind.TRAIN for r in home.chain)
    received = sum(line.count('"packet.received"') for line in small.world.lines)
    assert home.spent.hops == received, "every link is paid for, and hops in place are not"
    if mode == "walk":
        assert any(len(r.parents) == 2 for r in home.chain if r.kind is RecordKind.TRAIN)


def dead_client(within_s: float, quorum: float) -> SmallWorld:
    plan = Round("each", within_s, quorum)
    small = make(SHAPES["mesh"](6), 1, LINK, rendezvous=lambda plugin: plan)
    small.world.crash(small.nodes[2], 1.9, for_good=True)
    return small


def test_a_merge_goes_on_without_a_client_that_stays_dead() -> None:
    small = dead_client(8.0, 0.5)
    home = run_home(small, 1)
    first = next(r for r in home.chain if r.kind is RecordKind.MERGE)
    assert first.note == "3 of 4 children"
    assert small.nodes[2] not in {r.node for r in home.chain}


def test_a_round_without_its_quorum_is_repeated() -> None:
    small = dead_client(8.0, 1.0)
    home = run_home(small, 1)
    forks = [r for r in home.chain if r.kind is RecordKind.FORK]
    merges = [r for r in home.chain if r.kind is RecordKind.MERGE]
    assert len(forks) > len(merges) > 0
    assert any("merge.failed" in line for line in small.world.lines)


def test_children_do_not_carry_what_was_before_the_fork() -> None:
    small = make(SHAPES["star"](6), 0, LINK, rendezvous=lambda plugin: Round("each", 60.0, 1.0))
    carried: list[tuple[str, tuple[Record, ...]]] = []

    def hook(node, what) -> None:
        row = getattr(what, "row", None)
        if row is not None and row.status == "held" and row.header.branch:
            carried.append((row.header.branch, row.header.chain))

    small.world.hooks.append(hook)
    run_home(small, 0)
    assert len({branch.split("-")[0] for branch, _ in carried}) > 1, "there is one round only"
    for _, chain in carried:
        assert [r.kind.value for r in chain[:2]] == ["init", "fork"]
        assert len(chain) <= 3


LONG = 275
"""Its MPVU dies for good, so the packet works on until its header takes seconds on a slow link."""


@pytest.mark.parametrize("seed", [*range(QUICK), LONG])
def test_a_packet_that_forks_comes_home_under_any_schedule(seed: int) -> None:
    run_home(schedule(seed, FORK_MOMENTS, **forking(seed)), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(QUICK, FULL))
def test_a_packet_that_forks_comes_home_under_many_more_schedules(seed: int) -> None:
    run_home(schedule(seed, FORK_MOMENTS, **forking(seed)), seed)


@pytest.mark.parametrize("seed", range(3))
def test_one_seed_gives_one_trace(seed: int) -> None:
    traces = []
    for _ in range(2):
        small = schedule(seed, FORK_MOMENTS, **forking(seed))
        run_home(small, seed)
        traces.append("\n".join(small.world.lines))
    assert traces[0] == traces[1]


@pytest.mark.parametrize("seed", range(3))
def test_a_core_is_rebuilt_from_its_event_log(seed: int, tmp_path) -> None:
    small = schedule(seed, FORK_MOMENTS, **forking(seed))
    small.world.logs.update((node, EventLog()) for node in small.nodes)
    run_home(small, seed)
    for name, node in small.world.nodes.items():
        path = tmp_path / name
        small.world.logs[name].save(path)
        core = replay(EventLog.load(path), node.parts.make_core)
        assert not isinstance(core, Divergence), core
        if node.core is not None:
            assert core.snapshot() == node.core.snapshot()
