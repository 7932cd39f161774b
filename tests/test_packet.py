from __future__ import annotations

import random
import uuid
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.ids import CustodyKey, NodeId, PacketId, Version, new_packet_id, next_epoch, node_id
from aats.packet import (
    JOURNAL_LENGTH,
    PROBES_KEPT,
    UNLIMITED,
    Cost,
    EstimateSource,
    Header,
    ProbeEntry,
    SkillEstimate,
    Target,
    VisitEntry,
)
from tests.wire_samples import HEADER, KEY, MANDATE, TRAIN

COSTS = st.builds(Cost, *[st.integers(0, 1 << 40).map(float)] * 4)
OLD, NEW = Version("0" * 64), Version("1" * 64)
TARGET = Target("oncology", 0.9)


def estimate(value: float, source: EstimateSource, version: Version = NEW) -> SkillEstimate:
    return SkillEstimate(
        "oncology", "accuracy", value, value - 0.1, value + 0.1, 50, NodeId("n"), source, version
    )


def header(*estimates: SkillEstimate) -> Header:
    mandate = replace(MANDATE, requirement=(TARGET,))
    return Header(mandate, version=NEW, skills=estimates)


# --- cost -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(COSTS, COSTS, COSTS)
def test_costs_add_up_in_any_order(a: Cost, b: Cost, c: Cost) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Cost() == a
    assert not a.exceeds(a + b)
    assert not a.exceeds(UNLIMITED)


@pytest.mark.parametrize("part", ["hops", "seconds", "bytes", "joules"])
def test_one_part_above_the_budget_exceeds_it(part: str) -> None:
    budget = Cost(1, 1, 1, 1)
    assert replace(budget, **{part: 1.5}).exceeds(budget)
    assert not budget.exceeds(budget)


def test_hops_left_is_budget_less_spent() -> None:
    assert HEADER.hops_left == HEADER.mandate.budget.hops - 2


# --- skills -----------------------------------------------------------------------------------


def test_only_a_verdict_on_this_very_version_meets_a_verified_target() -> None:
    assert header(estimate(0.9, EstimateSource.MPVU)).requirement_met
    assert not header(estimate(0.89, EstimateSource.MPVU)).met(TARGET)
    assert not header(estimate(0.99, EstimateSource.REFERENCE)).met(TARGET)
    assert not header(estimate(0.99, EstimateSource.MPVU, OLD)).met(TARGET)
    assert not header().requirement_met


def test_any_estimate_of_this_version_meets_an_unverified_target() -> None:
    target = replace(TARGET, verifier="any")
    assert header(estimate(0.95, EstimateSource.LOCAL)).met(target)
    assert not header(estimate(0.95, EstimateSource.LOCAL, OLD)).met(target)
    assert not header(estimate(0.95, EstimateSource.LOCAL)).met(replace(target, skill="other"))
    assert not header(estimate(0.95, EstimateSource.LOCAL)).met(replace(target, metric="auc"))


def test_belief_prefers_this_version_then_trust() -> None:
    local, reference = EstimateSource.LOCAL, EstimateSource.REFERENCE
    assert header().belief(TARGET) is None
    assert header().estimate(TARGET) is None
    assert header(estimate(0.5, local), estimate(0.6, reference)).belief(TARGET) == 0.6
    old_verdict = estimate(0.9, EstimateSource.MPVU, OLD)
    mixed = header(estimate(0.5, local), old_verdict)
    assert mixed.belief(TARGET) == 0.5
    assert mixed.estimate(TARGET) == old_verdict
    assert header(old_verdict).belief(TARGET) == 0.9


def test_a_new_estimate_replaces_that_of_the_same_source_only() -> None:
    local, verdict = estimate(0.5, EstimateSource.LOCAL), estimate(0.6, EstimateSource.MPVU)
    newer = estimate(0.7, EstimateSource.LOCAL)
    assert header(local, verdict).with_estimates((newer,)).skills == (verdict, newer)


# --- state on the way -------------------------------------------------------------------------


def test_the_oldest_line_of_the_journal_falls_off() -> None:
    travelled = header()
    for hop in range(JOURNAL_LENGTH + 3):
        travelled = travelled.with_visit(VisitEntry(NodeId("n"), hop, "train", 0.0, 1, 1))
    assert len(travelled.journal) == JOURNAL_LENGTH
    assert [travelled.journal[0].hop, travelled.journal[-1].hop] == [3, JOURNAL_LENGTH + 2]


def test_the_newest_probe_of_a_node_counts_and_the_oldest_fall_off() -> None:
    def entry(node: int, hop: int) -> ProbeEntry:
        return ProbeEntry(NodeId(f"n{node}"), hop, 0.1, 0.2, 0.3, 1)

    travelled = header().with_probes((entry(1, 0), entry(2, 0))).with_probes((entry(1, 5),))
    assert travelled.probed == (entry(2, 0), entry(1, 5))
    for node in range(PROBES_KEPT + 3):
        travelled = travelled.with_probes((entry(node, 9),))
    assert len(travelled.probed) == PROBES_KEPT
    assert travelled.probed[0].node == "n3"


def test_header_knows_its_key_and_its_lineage() -> None:
    assert HEADER.key == KEY
    assert HEADER.lineage == TRAIN.id
    assert header().lineage == ""


def test_values_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        HEADER.hop = 3  # type: ignore[misc]


# --- ids --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, (1 << 48) - 1), st.integers())
def test_packet_id_is_a_uuid_of_version_7_with_its_time(created_ms: int, seed: int) -> None:
    text = new_packet_id(created_ms, random.Random(seed))
    value = uuid.UUID(text)
    assert str(value) == text
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert value.int >> 80 == created_ms
    assert text == new_packet_id(created_ms, random.Random(seed))


@pytest.mark.parametrize("text", ["a", "clinic-1", "A.b_c-d", "0", "x" * 64])
def test_node_ids(text: str) -> None:
    assert node_id(text) == text


@pytest.mark.parametrize("text", ["", "-a", ".a", "a b", "a/b", "x" * 65, "\u00e4", "a\n"])
def test_what_is_no_node_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="allowed are 1-64 letters"):
        node_id(text)


def test_the_next_key_is_one_hop_on() -> None:
    key = CustodyKey(PacketId("p"), 3, 2)
    assert key.next() == CustodyKey(PacketId("p"), 4, 2)
    assert str(key) == "p.3.2"


@settings(deadline=None)
@given(st.integers(0, 1 << 40))
def test_a_regenerated_packet_has_a_higher_epoch(epoch: int) -> None:
    here, there = next_epoch(epoch, NodeId("a")), next_epoch(epoch, NodeId("b"))
    assert epoch < here != there > epoch


def test_of_another_chain_only_what_its_last_record_follows_is_joined() -> None:
    first = replace(TRAIN, id="first", parents=())
    mine = replace(TRAIN, id="mine", parents=("first",))
    tip = replace(TRAIN, id="tip", parents=("first",))
    stray = replace(TRAIN, id="stray", parents=("first",))
    trunk, other = (replace(HEADER, chain=c) for c in ((first, mine), (first, stray, tip)))
    assert [r.id for r in trunk.joined_chain(other, None)] == ["first", "mine", "tip"]
    assert other.follows("tip")
    assert other.follows("first")
    assert not other.follows("stray")
