import numpy as np
import pytest

from aats.errors import DataError, WireError
from aats.ids import CustodyKey, NodeId, PacketId
from aats.messages import Alive
from aats.node.commands import Command, SendMessage
from aats.node.events import CustodyRow, Event, LinkDown, Started
from aats.packet import UNLIMITED, Architecture, Header, Mandate, Owner, PacketKind, Plugin
from aats.payload import Payload, pack
from aats.replay import Divergence, EventLog, replay
from aats.sim.store import MemoryStore, StoreError

PACKET = PacketId("01890a5d-ac96-7000-8000-000000000001")
KEY = CustodyKey(PACKET, 1)
ONE = pack({"model.w": np.zeros(4, np.float32), "model.b": np.ones(1, np.float32)})
TWO = pack({"model.w": np.ones(4, np.float32), "model.b": np.ones(1, np.float32)})


def row(payload: Payload, status: str = "held") -> CustodyRow:
    mandate = Mandate(
        PACKET, PacketKind.TRAIN, Owner(NodeId("a"), bytes(32)), 0.0, 1.0, (), UNLIMITED,
        Architecture("mlp"), Plugin("noop"), Plugin("random"), 0,
    )  # fmt: skip
    return CustodyRow(KEY, status, Header(mandate, hop=1, manifest=payload.manifest))


def test_a_received_payload_becomes_the_rows_and_an_outcome_replaces_it() -> None:
    store = MemoryStore()
    store.expect(KEY, ONE.manifest).payload = ONE
    store.save_custody(row(ONE))
    assert store.payload_of(row(ONE).header) is ONE
    store.outcomes[3] = TWO
    store.save_custody(row(TWO, "worked"), outcome=3)
    assert store.payload_of(row(TWO).header) is TWO
    assert not store.parts
    assert not store.outcomes


def test_digests_are_held_as_long_as_some_payload_has_them() -> None:
    store = MemoryStore()
    shared, old = ONE.manifest.tensors[1].digest, ONE.manifest.tensors[0].digest
    store.submit(KEY, ONE)
    store.submit(KEY.next(), TWO)
    store.drop_custody(KEY)
    assert store.holds(shared)
    assert not store.holds(old)
    assert list(store.seen) == [KEY]
    store.drop_custody(KEY.next())
    assert not store.holds(shared)


def test_what_the_disk_could_not_do_is_a_fault() -> None:
    store = MemoryStore()
    with pytest.raises(StoreError, match="no payload"):
        store.save_custody(row(ONE))
    store.submit(KEY, TWO)
    with pytest.raises(StoreError, match="not the one in its header"):
        store.save_custody(row(ONE))
    with pytest.raises(StoreError, match="task 9 left no payload"):
        store.save_custody(row(TWO), outcome=9)
    with pytest.raises(DataError, match="no copy"):
        store.payload_of(row(ONE).header)


def test_a_new_incarnation_forgets_what_was_not_durable() -> None:
    store = MemoryStore()
    assert store.begin() == 1
    store.outcomes[1] = ONE
    store.expect(KEY, ONE.manifest).arrived_bytes = 7.0
    assert store.begin() == 2
    assert not store.outcomes
    assert store.expect(KEY, ONE.manifest).arrived_bytes == 7.0
    assert store.expect(KEY, TWO.manifest).arrived_bytes == 0.0


class Counter:
    """A core that answers with how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def handle(self, event: Event, now: float) -> list[Command]:
        self.calls += 1
        return [SendMessage(NodeId("a"), Alive(CustodyKey(PACKET, self.calls)))]

    def handle_timer(self, now: float) -> list[Command]:
        self.calls += 10
        return []


EVENTS: list[Event | None] = [Started(1), LinkDown(NodeId("b")), None, LinkDown(NodeId("b"))]


def logged() -> EventLog:
    core, log = Counter(), EventLog()
    for at, event in enumerate(EVENTS):
        told = log.told(float(at), event)
        log.commanded(core.handle_timer(at) if told is None else core.handle(told, at))
    return log


def test_a_log_rebuilds_the_core_and_shows_where_another_one_parts() -> None:
    rebuilt = replay(logged(), Counter)
    assert isinstance(rebuilt, Counter)
    assert rebuilt.calls == 13

    class Other(Counter):
        def handle_timer(self, now: float) -> list[Command]:
            self.calls += 1
            return []

    parted = replay(logged(), Other)
    assert isinstance(parted, Divergence)
    assert parted.index == 3
    assert replay(EventLog(), Counter) is None


def test_a_restart_begins_a_new_core() -> None:
    core, log = Counter(), EventLog()
    for _ in range(2):
        log.told(0.0, Started(1))
        log.commanded(Counter().handle(Started(1), 0.0))
    rebuilt = replay(log, lambda: core)
    assert isinstance(rebuilt, Divergence), "one core for both incarnations goes on counting"
    assert isinstance(replay(log, Counter), Counter)


def test_a_log_cut_short_is_told_but_for_commands_that_were_never_given() -> None:
    whole = logged()._data
    for size in (5, 13):
        with pytest.raises(WireError, match="cut short"):
            list(EventLog(bytes(whole[:size])))
    last = list(EventLog(bytes(whole[:-16])))[-1]
    assert last.commands == b""
    assert last.event == EVENTS[-1]
