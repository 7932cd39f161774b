"""Planners of forks: who takes part, in what order, when it is over; one seed, one plan."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.advert import DataAdvert, Partner
from aats.errors import LocalError
from aats.ids import NodeId, PacketId, Version
from aats.installed import load_rendezvous
from aats.learning.merge import merge_rule
from aats.lineage import Record, RecordKind
from aats.packet import Errand, Header, Plugin
from aats.routing.rendezvous import Finish, Fork, Rendezvous, merge_of
from aats.testing.methods import header_for
from aats_agents.rendezvous.daisy_chain import DaisyChainRendezvous, latin_rows
from aats_agents.rendezvous.fedavg import FedAvgRendezvous
from aats_agents.rendezvous.fedopt import FedOptRendezvous
from aats_agents.rendezvous.gossip import GossipRendezvous

NAMES = ("fedavg", "fedopt", "daisy-chain", "gossip")


def nodes(count: int) -> list[NodeId]:
    return [NodeId(f"n{i}") for i in range(count)]


def partners(count: int, here: int = -1) -> list[Partner]:
    data = (DataAdvert("s", "schema", 10),)
    return [Partner(n, data, links=int(i != here)) for i, n in enumerate(nodes(count))]


def merged(rounds: int, at: str = "") -> Header:
    """Return a packet that was merged so often, the last time at a node."""
    header = replace(header_for(), trained={"cycle": float(rounds)})
    if not at:
        return header
    record = Record(
        id="", packet=PacketId(""), kind=RecordKind.MERGE, hop=1, epoch=0, parents=(),
        base=Version(""), version=Version(""), node=NodeId(at), public_key=b"", at=0.0,
    )  # fmt: skip
    return replace(header, chain=(record,))


def planned(
    rendezvous: Rendezvous, count: int, seed: int = 0, header: Header | None = None
) -> Fork:
    plan = rendezvous.plan(header or header_for(), partners(count), 0.0, random.Random(seed))
    assert isinstance(plan, Fork)
    return plan


@given(count=st.integers(1, 30))
def test_fedavg_sends_one_child_to_every_client(count: int) -> None:
    fork = planned(FedAvgRendezvous(within_s=7.0, quorum=0.25), count)
    assert fork == Fork(tuple(Errand((n,)) for n in nodes(count)), 7.0, 0.25)


@given(count=st.integers(1, 30), clients=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_fedavg_draws_clients_once_each(count: int, clients: int, seed: int) -> None:
    rendezvous = FedAvgRendezvous(clients=clients)
    fork = planned(rendezvous, count, seed)
    stops = [errand.itinerary[0] for errand in fork.errands]
    assert len(stops) == len(set(stops)) == min(clients, count)
    assert set(stops) <= set(nodes(count))
    assert planned(rendezvous, count, seed) == fork


def test_fedavg_draws_other_clients_another_round() -> None:
    rendezvous = FedAvgRendezvous(clients=3)
    assert len({planned(rendezvous, 20, seed) for seed in range(20)}) > 10


def test_every_client_has_its_turn() -> None:
    rendezvous = FedAvgRendezvous(clients=5)
    drawn = [e.itinerary[0] for s in range(200) for e in planned(rendezvous, 20, s).errands]
    times = [drawn.count(n) for n in nodes(20)]
    assert min(times) > 25  # 50 each in the mean
    assert max(times) < 80


def test_fedavg_moves_between_rounds_if_it_shall() -> None:
    moving, resting = FedAvgRendezvous(move=True), FedAvgRendezvous()
    rng = random.Random(0)

    def goes_on(rendezvous: Rendezvous, header: Header, here: int) -> bool:
        return rendezvous.plan(header, partners(4, here), 0.0, rng) is None

    assert not goes_on(moving, merged(0), 1)  # the first round
    assert goes_on(moving, merged(1, at="n1"), 1)  # just merged here
    assert not goes_on(moving, merged(1, at="n1"), 2)  # and has moved
    assert goes_on(moving, merged(1, at="owner"), -1)  # merged at a node without data
    assert not goes_on(moving, merged(1, at="owner"), 2)
    assert not goes_on(resting, merged(1, at="n1"), 1)


@given(count=st.integers(1, 12), stops=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_daisy_chains_are_rows_of_latin_squares(count: int, stops: int, seed: int) -> None:
    rows = latin_rows(nodes(count), stops, random.Random(seed))
    assert [len(row) for row in rows] == [stops] * count
    for step in zip(*rows, strict=True):
        assert sorted(step) == sorted(nodes(count))  # at each step, each node has one model
    for row in rows:
        if count > 1:
            assert all(a != b for a, b in itertools.pairwise(row))
        assert len(set(row[:count])) == min(stops, count)
    assert latin_rows(nodes(count), stops, random.Random(seed)) == rows


@given(count=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_a_whole_square_brings_every_model_to_every_node(count: int, seed: int) -> None:
    for row in latin_rows(nodes(count), count, random.Random(seed)):
        assert sorted(row) == sorted(nodes(count))


def test_daisy_chaining_sends_a_child_for_each_node_that_takes_part() -> None:
    fork = planned(DaisyChainRendezvous(every=3), 5)
    assert [(len(e.itinerary), e.visits) for e in fork.errands] == [(3, 3)] * 5
    few = planned(DaisyChainRendezvous(every=3, clients=2), 5)
    assert len({n for e in few.errands for n in e.itinerary}) == len(few.errands) == 2


@given(count=st.integers(1, 12), clients=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_one_walker_goes_through_all_clients_of_a_round(
    count: int, clients: int, seed: int
) -> None:
    fork = planned(DaisyChainRendezvous(every=clients, clients=clients, walkers=1), count, seed)
    (errand,) = fork.errands
    assert len(set(errand.itinerary)) == min(clients, count)


def test_gossip_lets_the_policy_steer() -> None:
    fork = planned(GossipRendezvous(walkers=3, visits=6), 5)
    assert fork.errands == (Errand((), visits=6, meet=True),) * 3
    alone = planned(GossipRendezvous(walkers=1, visits=2, meet=False), 5)
    assert alone.errands == (Errand((), visits=2),)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_over_after_its_rounds(name: str) -> None:
    rendezvous = load_rendezvous(Plugin(name, {"rounds": 3}))
    assert isinstance(rendezvous, Rendezvous)
    planned(rendezvous, 4, header=merged(2))
    over = rendezvous.plan(merged(3), partners(4), 0.0, random.Random(0))
    assert over == Finish()
    endless = load_rendezvous(Plugin(name))
    planned(endless, 4, header=merged(1000))


@pytest.mark.parametrize("name", NAMES)
def test_there_is_nothing_to_plan_where_nobody_can_train(name: str) -> None:
    rendezvous = load_rendezvous(Plugin(name))
    views = [Partner(NodeId("v"), (DataAdvert("s", "schema", 10, view="left"),))]
    assert rendezvous.plan(header_for(), [], 0.0, random.Random(0)) is None
    assert rendezvous.plan(header_for(), views, 0.0, random.Random(0)) is None
    mixed = rendezvous.plan(header_for(), [*partners(2), *views], 0.0, random.Random(0))
    assert isinstance(mixed, Fork)
    assert all("v" not in errand.itinerary for errand in mixed.errands)


@pytest.mark.parametrize("optimiser", ["adam", "yogi", "adagrad", "avgm"])
def test_fedopt_names_its_rule_with_its_parameters(optimiser: str) -> None:
    rendezvous = FedOptRendezvous(optimiser=optimiser, lr=0.5, beta_1=0.7, weighting="equal")
    rule = merge_rule(merge_of(rendezvous))
    assert (rule.lr, rule.weighting) == (0.5, "equal")  # type: ignore[attr-defined]
    kept = rule.momentum if optimiser == "avgm" else rule.beta_1  # type: ignore[attr-defined]
    assert kept == 0.7


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_that_is_named_is_installed(name: str) -> None:
    merge_rule(merge_of(load_rendezvous(Plugin(name))))


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("fedavg", {"clients": -1}, "clients is -1"),
        ("fedavg", {"client": 1}, "did you mean 'clients'"),
        ("fedavg", {"within_s": 0.0}, "within_s is 0.0"),
        ("fedavg", {"quorum": 1.5}, "quorum is 1.5"),
        ("fedavg", {"weighting": "rows"}, "allowed are samples, equal"),
        ("fedopt", {"optimiser": "sgd"}, "allowed are adam, yogi, adagrad, avgm"),
        ("fedopt", {"lr": 0.0}, "lr is 0.0"),
        ("fedopt", {"beta_2": 1.0}, "beta_2 is 1.0"),
        ("fedopt", {"rounds": -1}, "rounds is -1"),
        ("daisy-chain", {"every": 0}, "every is 0"),
        ("gossip", {"walkers": 0}, "walkers is 0"),
    ],
)
def test_wrong_parameters_are_told(name: str, params: dict[str, object], words: str) -> None:
    with pytest.raises(LocalError, match=words):
        load_rendezvous(Plugin(name, params))
