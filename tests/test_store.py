from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats import wire
from aats.errors import LocalError, StoreFullError, WireError
from aats.identity import Identity
from aats.ids import CustodyKey, NodeId, PacketId, Version, branch_name, new_packet_id
from aats.ledger.record import seal
from aats.lineage import Record, RecordKind
from aats.node.events import CustodyRow
from aats.packet import UNLIMITED, Architecture, Errand, Header, Mandate, Owner, PacketKind, Plugin
from aats.payload import Manifest, Payload, pack
from aats.spool import CHUNK_BYTES, POOL_FILES, Part, map_private, plan, size_of
from aats.store import PARTS_KEPT, SEEN_KEPT, NodeStore

ME = Identity.from_seed(NodeId("a"), b"store")
KEY = CustodyKey(new_packet_id(1, random.Random(1)), 3)
OTHER = CustodyKey(new_packet_id(2, random.Random(2)), 0, 1)


def tensors(seed: int, **sizes: int) -> Payload:
    rng = np.random.default_rng(seed)
    return pack({f"model.{n}": rng.standard_normal(k, np.float32) for n, k in sizes.items()})


SMALL = tensors(0, w=100, b=3)
LARGE = tensors(1, w=CHUNK_BYTES // 2, b=7, v=CHUNK_BYTES // 4)


def row_of(key: CustodyKey, manifest: Manifest, status: str = "held") -> CustodyRow:
    mandate = Mandate(
        key.packet, PacketKind.TRAIN, Owner(ME.node, ME.public_key), 0.0, 1.0, (), UNLIMITED,
        Architecture("mlp"), Plugin("noop"), Plugin("random"), 0,
    )  # fmt: skip
    return CustodyRow(key, status, Header(mandate, hop=key.hop, manifest=manifest))


def record_of(key: CustodyKey, hop: int) -> Record:
    version = Version("0" * 64)
    return seal(Record(key.packet, RecordKind.TRAIN, ME.node, hop, 0, (), version, version), ME)


def receive(part: Part, payload: Payload, first: int | None = None) -> None:
    """Write the first chunks (all: None) of what a part lacks."""
    arena = np.frombuffer(payload.arena, np.uint8)
    for i, chunk in enumerate(part.chunks[:first]):
        part.write(i, np.concatenate([arena[a:b] for a, b in chunk]))


def take(store: NodeStore, key: CustodyKey, payload: Payload) -> None:
    """Receive a payload and make it durable."""
    part = store.incoming(key, payload.manifest)
    receive(part, payload)
    part.complete()
    store.save(row_of(key, payload.manifest))


def files(store: NodeStore) -> set[str]:
    return {path.name for path in store.spool.iterdir() if not path.name.startswith("free.")}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NodeStore]:
    found = NodeStore(tmp_path)
    yield found
    found.close()


def reopened(store: NodeStore) -> NodeStore:
    store.close()
    store.__init__(store.root)  # type: ignore[misc]
    return store


# --- what is saved is there again -------------------------------------------------------------


@pytest.mark.parametrize("level", ["process", "host"])
@pytest.mark.parametrize("payload", [SMALL, LARGE, Payload()], ids=["small", "large", "empty"])
def test_a_received_packet_is_there_again(tmp_path: Path, level: str, payload: Payload) -> None:
    store = NodeStore(tmp_path, level=level)  # type: ignore[arg-type]
    take(store, KEY, payload)
    store.close()
    store = NodeStore(tmp_path, level=level)  # type: ignore[arg-type]
    assert store.rows() == (row_of(KEY, payload.manifest),)
    assert bytes(store.payload(KEY).arena) == bytes(payload.arena)
    assert store.lost == ()
    store.close()


def test_records_state_and_seen_are_there_again(store: NodeStore) -> None:
    records = [record_of(KEY, hop) for hop in range(3)]
    store.submit(KEY, SMALL)
    store.save(row_of(KEY, SMALL.manifest), records)
    store.save(row_of(KEY, SMALL.manifest, "worked"), [*records, record_of(OTHER, 9)])
    store.save_state("adverts", b"\1\2")
    store.drop(OTHER)
    store.drop(KEY)
    store.drop(KEY)
    reopened(store)
    assert store.rows() == ()
    assert store.records(KEY.packet) == tuple(records)
    assert [r.hop for r in store.records()] == [0, 1, 2, 9]
    assert store.state() == {"adverts": b"\1\2"}
    assert store.seen() == (OTHER, KEY)


def test_only_the_newest_seen_keys_are_kept(store: NodeStore) -> None:
    with store._transaction():
        for hop in range(SEEN_KEPT + 2):
            store._remember(replace(KEY, hop=hop))
    assert len(store.seen()) == SEEN_KEPT
    assert store.seen()[0].hop == 2


def test_a_directory_belongs_to_one_process(store: NodeStore) -> None:
    with pytest.raises(LocalError, match="another process has this node's store open"):
        NodeStore(store.root)


def test_a_row_without_a_payload_is_a_mistake(store: NodeStore) -> None:
    with pytest.raises(LocalError, match="no payload"):
        store.save(row_of(KEY, SMALL.manifest))
    with pytest.raises(LocalError, match="left no tensors"):
        store.save(row_of(KEY, SMALL.manifest), outcome=7)
    assert store.rows() == ()


def test_an_incomplete_part_cannot_be_saved(store: NodeStore) -> None:
    receive(store.incoming(KEY, LARGE.manifest), LARGE, 2)
    with pytest.raises(LocalError, match="no payload"):
        store.save(row_of(KEY, LARGE.manifest))


def test_a_row_whose_payload_is_gone_is_lost_and_said_so(store: NodeStore) -> None:
    take(store, KEY, SMALL)
    path = store.payload_path(KEY)
    assert path is not None
    store.close()
    path.unlink()
    store.__init__(store.root)  # type: ignore[misc]
    assert store.rows() == ()
    assert store.lost == (KEY,)


def test_after_a_reboot_every_payload_is_checked(store: NodeStore) -> None:
    take(store, KEY, SMALL)
    take(store, OTHER, LARGE)
    path = store.payload_path(KEY)
    assert path is not None
    store.save_state("store.boot", b"another boot")
    store.close()
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    store.__init__(store.root)  # type: ignore[misc]
    assert [row.key for row in store.rows()] == [OTHER]
    assert store.lost == (KEY,)


# --- views ------------------------------------------------------------------------------------


def test_a_held_payload_cannot_be_written_and_a_private_one_changes_nothing(
    store: NodeStore,
) -> None:
    take(store, KEY, SMALL)
    assert store.payload(KEY).arena.readonly
    private = store.private_payload(KEY)
    private.arena[:4] = b"\0\0\0\0"
    assert bytes(store.payload(KEY).arena) == bytes(SMALL.arena)


def test_an_arena_in_use_is_not_recycled(store: NodeStore) -> None:
    take(store, KEY, SMALL)
    view, private = store.payload(KEY), store.private_payload(KEY)
    part_of_it = view.array(view.manifest.tensors[0])
    del view
    store.drop(KEY)
    take(store, OTHER, tensors(9, w=100, b=3))
    assert part_of_it.tobytes() == bytes(SMALL.bytes_of(SMALL.manifest.tensors[0]))
    private.verify()


def test_a_private_mapping_by_path_keeps_the_file_from_being_recycled(store: NodeStore) -> None:
    take(store, KEY, SMALL)
    path = store.payload_path(KEY)
    assert path is not None
    worker = map_private(path, SMALL.manifest.total)
    store.drop(KEY)
    take(store, OTHER, tensors(9, w=100, b=3))
    assert bytes(worker) == bytes(SMALL.arena)


def test_an_arena_nobody_uses_is_recycled_without_a_trace(store: NodeStore) -> None:
    take(store, KEY, SMALL)
    path = store.payload_path(KEY)
    assert path is not None
    number = path.stat().st_ino
    store.drop(KEY)
    shorter = tensors(9, w=90, b=3)
    take(store, OTHER, shorter)
    path = store.payload_path(OTHER)
    assert path is not None
    assert path.stat().st_ino == number
    assert bytes(store.payload(OTHER).arena) == bytes(shorter.arena)  # padding included


def test_few_files_wait_for_reuse(store: NodeStore) -> None:
    keys = [replace(KEY, hop=hop) for hop in range(POOL_FILES + 3)]
    for key in keys:
        take(store, key, SMALL)
    for key in keys:
        store.drop(key)
    assert len(list(store.spool.iterdir())) == POOL_FILES
    assert not list(reopened(store).spool.iterdir())


# --- work -------------------------------------------------------------------------------------


def test_an_outcome_becomes_the_payload_that_leaves(store: NodeStore) -> None:
    take(store, KEY, SMALL)
    trained = tensors(5, w=100, b=3)
    store.outcome_path(4).write_bytes(trained.arena)
    store.save(row_of(KEY, trained.manifest, "worked"), outcome=4)
    assert bytes(store.payload(KEY).arena) == bytes(trained.arena)
    assert len(files(store)) == 1
    reopened(store)
    assert bytes(store.payload(KEY).arena) == bytes(trained.arena)


def test_an_outcome_that_is_too_short_changes_nothing(store: NodeStore) -> None:
    take(store, KEY, SMALL)
    store.outcome_path(4).write_bytes(b"short")
    with pytest.raises(LocalError, match="5 bytes"):
        store.save(row_of(KEY, SMALL.manifest, "worked"), outcome=4)
    assert store.rows()[0].status == "held"
    store.discard_outcome(4)
    store.discard_outcome(4)


# --- parts ------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), max_size=8), st.integers(1, 100)
)
def test_a_plan_covers_its_ranges_exactly(gaps: list[tuple[int, int]], chunk: int) -> None:
    ranges, at = [], 0
    for gap, size in gaps:
        ranges.append((at + gap, at + gap + size))
        at += gap + size
    chunks = plan(ranges, chunk)
    assert [b for c in chunks for r in c for b in range(*r)] == [
        b for r in ranges for b in range(*r)
    ]
    assert all(size_of(c) == chunk for c in chunks[:-1])
    assert all(0 < size_of(c) <= chunk for c in chunks)


def test_a_part_resumes_in_another_life(store: NodeStore) -> None:
    part = store.incoming(KEY, LARGE.manifest)
    assert len(part.chunks) == 4
    receive(part, LARGE, 3)
    reopened(store)
    part = store.incoming(KEY, LARGE.manifest)
    assert len(part.chunks) == 1
    receive(part, LARGE)
    part.complete()
    store.save(row_of(KEY, LARGE.manifest))
    store.payload(KEY).verify()
    assert len(files(store)) == 1


def test_a_part_of_another_payload_is_begun_anew(store: NodeStore) -> None:
    receive(store.incoming(KEY, LARGE.manifest), LARGE, 3)
    other = tensors(2, w=CHUNK_BYTES // 2, b=7, v=CHUNK_BYTES // 4)
    assert len(store.incoming(KEY, other.manifest).chunks) == 4


def test_a_resumed_part_with_wrong_bytes_is_noticed(store: NodeStore) -> None:
    part = store.incoming(KEY, LARGE.manifest)
    receive(part, LARGE, 3)
    assert part.arena is not None
    part.arena.view(10, writable=True)[3] ^= 1
    del part
    reopened(store)
    part = store.incoming(KEY, LARGE.manifest)
    receive(part, LARGE)
    with pytest.raises(WireError, match=r"model\.w"):
        part.complete()


def test_chunks_may_come_in_any_order(store: NodeStore) -> None:
    part = store.incoming(KEY, LARGE.manifest)
    arena = np.frombuffer(LARGE.arena, np.uint8)
    for i in (2, 0, 3, 1):
        part.write(i, np.concatenate([arena[a:b] for a, b in part.chunks[i]]))
        assert not part.wants(i)
    part.complete()
    store.save(row_of(KEY, LARGE.manifest))
    store.payload(KEY).verify()


@given(st.lists(st.integers(1, CHUNK_BYTES), max_size=6), st.booleans())
def test_a_chunk_is_hashed_piece_by_piece(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], is_right: bool
) -> None:
    store = NodeStore(tmp_path_factory.mktemp("node"))
    part = store.incoming(KEY, LARGE.manifest)
    slot = part.begin(0)
    assert slot is not None
    np.copyto(slot, np.frombuffer(LARGE.arena[: len(slot)], np.uint8))
    if not is_right:
        slot[0] ^= 1
    for count in sorted(set(counts)):
        part.grew(0, count)
    part.wrote(0)
    for index in range(1, len(part.chunks)):
        slot = part.begin(index)
        assert slot is not None
        ((start, end),) = part.chunks[index]
        np.copyto(slot, np.frombuffer(LARGE.arena[start:end], np.uint8))
        if is_right or LARGE.manifest.tensors[0].size > end:
            part.wrote(index)
        else:
            with pytest.raises(WireError, match=r"'model\.w' does not fit its digest"):
                part.wrote(index)
            break
    else:
        part.complete()
    assert part.is_complete == is_right
    store.close()


def test_a_chunk_that_comes_anew_is_hashed_anew(store: NodeStore) -> None:
    part = store.incoming(KEY, LARGE.manifest)
    arena = np.frombuffer(LARGE.arena, np.uint8)
    for i, ((start, end),) in enumerate(part.chunks):
        slot = part.begin(i)
        assert slot is not None
        np.copyto(slot, arena[start:end])
        part.grew(i, len(slot))
        if i == 1:  # the second half of the first tensor: all of it has been hashed
            slot = part.begin(i)
            assert slot is not None
            slot[0] ^= 1
        part.wrote(i)
    with pytest.raises(WireError, match=r"'model\.w' does not fit its digest"):
        part.complete()


def test_a_complete_part_waits_for_its_row(store: NodeStore) -> None:
    part = store.incoming(KEY, SMALL.manifest)
    receive(part, SMALL)
    part.complete()
    assert store.incoming(KEY, SMALL.manifest) is part


def test_what_another_packet_holds_is_copied(store: NodeStore) -> None:
    take(store, KEY, LARGE)
    arrays = LARGE.arrays()
    changed = pack({**arrays, "model.b": arrays["model.b"] + np.float32(1)})
    known = store.known_digests(changed.manifest)
    assert len(known) == 2
    part = store.incoming(OTHER, changed.manifest)
    assert [size_of(c) for c in part.chunks] == [28]
    receive(part, changed)
    part.complete()
    store.save(row_of(OTHER, changed.manifest))
    store.payload(OTHER).verify()


def test_a_missing_chunk_is_no_complete_part(store: NodeStore) -> None:
    part = store.incoming(KEY, LARGE.manifest)
    receive(part, LARGE, 3)
    with pytest.raises(WireError, match="1 of 4 chunks missing"):
        part.complete()


def test_an_abandoned_part_leaves_what_can_be_resumed(store: NodeStore) -> None:
    store.incoming(KEY, SMALL.manifest)
    store.abandon(KEY)
    assert files(store) == set()
    receive(store.incoming(KEY, LARGE.manifest), LARGE, 1)
    store.abandon(KEY)
    assert len(files(store)) == 2
    assert len(store.incoming(KEY, LARGE.manifest).chunks) == 3
    store.discard(KEY)
    assert files(store) == set()


# --- room -------------------------------------------------------------------------------------


def test_the_quota_is_kept_before_anything_is_allocated(tmp_path: Path) -> None:
    store = NodeStore(tmp_path, quota_bytes=SMALL.manifest.total + 100)
    take(store, KEY, SMALL)
    with pytest.raises(StoreFullError, match="do not fit"):
        store.incoming(OTHER, SMALL.manifest)
    with pytest.raises(StoreFullError):
        store.submit(OTHER, SMALL)
    assert len(files(store)) == 1
    store.drop(KEY)
    take(store, OTHER, SMALL)
    store.close()


def test_a_disk_without_room_is_said_before_anything_is_mapped(
    store: NodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreFullError, match="no room"):
        store.incoming(KEY, LARGE.manifest)
    assert files(store) == set()


# --- a process that dies at any step ----------------------------------------------------------


def dies(work: Callable[[], None], code: int = 9) -> None:
    """Run `work` in a forked process that must end with `code`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended == code, f"the process ended with {ended}"


def at(step: str) -> Callable[[str], None]:
    return lambda reached: os._exit(9) if reached == step else None


@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("step", ["named", "committed", "cleaned"])
def test_a_kill_while_a_packet_is_taken_leaves_all_or_nothing(
    tmp_path: Path, step: str, payload: Payload
) -> None:
    dies(lambda: take(NodeStore(tmp_path, checkpoint=at(step)), KEY, payload))
    store = NodeStore(tmp_path)
    if step == "named":
        assert store.rows() == ()
        part = store.incoming(KEY, payload.manifest)
        assert len(part.chunks) == (1 if payload is SMALL else 0), "a finished part is not re-sent"
        receive(part, payload)
        part.complete()
        store.save(row_of(KEY, payload.manifest))
    assert store.rows() == (row_of(KEY, payload.manifest),)
    store.payload(KEY).verify()
    assert files(store) == {f"{KEY}.pkt"}
    store.close()


@pytest.mark.parametrize("step", ["named", "committed", "cleaned"])
def test_a_kill_while_an_outcome_is_saved_leaves_the_old_or_the_new(
    tmp_path: Path, step: str
) -> None:
    trained = tensors(5, w=100, b=3)

    def work() -> None:
        store = NodeStore(tmp_path)
        take(store, KEY, SMALL)
        store.outcome_path(4).write_bytes(trained.arena)
        store._checkpoint = at(step)
        store.save(row_of(KEY, trained.manifest, "worked"), [record_of(KEY, 3)], outcome=4)

    dies(work)
    store = NodeStore(tmp_path)
    expected, status = (SMALL, "held") if step == "named" else (trained, "worked")
    assert store.rows() == (row_of(KEY, expected.manifest, status),)
    assert len(store.records()) == (0 if step == "named" else 1)
    assert bytes(store.payload(KEY).arena) == bytes(expected.arena)
    assert len(files(store)) == 1
    store.close()


CHILDREN = tuple(
    CustodyKey(PacketId(KEY.packet + branch_name(KEY.hop, KEY.epoch, i)), KEY.hop, KEY.epoch)
    for i in range(3)
)


def child_row(key: CustodyKey, manifest: Manifest) -> CustodyRow:
    row = row_of(replace(key, packet=KEY.packet), manifest, "worked")
    branch = key.packet.removeprefix(KEY.packet)
    header = replace(row.header, branch=branch, errand=Errand(), rendezvous=ME.node)
    return replace(row, key=key, header=header)


def forked(store: NodeStore, checkpoint: Callable[[str], None] = lambda step: None) -> None:
    """Take a packet and let it fork."""
    take(store, KEY, SMALL)
    store._checkpoint = checkpoint
    rows = [child_row(key, SMALL.manifest) for key in CHILDREN]
    store.save(row_of(KEY, SMALL.manifest, "worked"), [record_of(KEY, 3)], children=rows)


def merged(store: NodeStore, outcome: Payload) -> None:
    store.outcome_path(4).write_bytes(outcome.arena)
    row = row_of(KEY, outcome.manifest, "worked")
    store.save(row, [record_of(KEY, 4)], outcome=4, dropped=CHILDREN)


def test_children_share_the_file_of_their_trunk_as_long_as_one_needs_it(store: NodeStore) -> None:
    forked(store)
    for _ in range(2):
        assert {row.key for row in store.rows()} == {KEY, *CHILDREN}
        assert files(store) == {f"{KEY}.pkt"}
        for key in CHILDREN:
            assert bytes(store.payload(key).arena) == bytes(SMALL.arena)
        reopened(store)
    store.drop(CHILDREN[0])
    store.outcome_path(7).write_bytes(TRAINED.arena)
    store.save(child_row(CHILDREN[1], TRAINED.manifest), outcome=7)
    assert bytes(store.payload(KEY).arena) == bytes(SMALL.arena)
    assert bytes(store.payload(CHILDREN[2]).arena) == bytes(SMALL.arena)
    merged(store, TRAINED)
    take(store, OTHER, SMALL)  # takes a file that is free, and writes over it
    reopened(store)
    assert {row.key for row in store.rows()} == {KEY, OTHER}
    assert set(store.seen()) == set(CHILDREN)
    assert bytes(store.payload(KEY).arena) == bytes(TRAINED.arena)
    assert len(files(store)) == 2


TRAINED = tensors(5, w=100, b=3)


@pytest.mark.parametrize("step", ["named", "committed", "cleaned"])
def test_a_kill_while_a_packet_forks_leaves_all_children_or_none(tmp_path: Path, step: str) -> None:
    dies(lambda: forked(NodeStore(tmp_path), at(step)))
    store = NodeStore(tmp_path)
    keys = {KEY} if step == "named" else {KEY, *CHILDREN}
    assert {row.key for row in store.rows()} == keys
    assert len(store.records()) == len(keys) // 4
    for key in keys:
        assert bytes(store.payload(key).arena) == bytes(SMALL.arena)
    store.close()


@pytest.mark.parametrize("step", ["named", "committed", "cleaned"])
def test_a_kill_while_children_are_merged_leaves_them_or_the_trunk(
    tmp_path: Path, step: str
) -> None:
    def work() -> None:
        store = NodeStore(tmp_path)
        forked(store)
        store._checkpoint = at(step)
        merged(store, TRAINED)

    dies(work)
    store = NodeStore(tmp_path)
    keys, payload = ({KEY, *CHILDREN}, SMALL) if step == "named" else ({KEY}, TRAINED)
    assert {row.key for row in store.rows()} == keys
    assert bytes(store.payload(KEY).arena) == bytes(payload.arena)
    assert len(files(store)) == 1
    store.close()


def test_a_kill_while_a_packet_is_dropped_leaves_no_file(tmp_path: Path) -> None:
    def work() -> None:
        store = NodeStore(tmp_path)
        take(store, KEY, SMALL)
        store._checkpoint = at("dropped")
        store.drop(KEY)

    dies(work)
    store = NodeStore(tmp_path)
    assert store.rows() == ()
    assert store.seen() == (KEY,)
    assert files(store) == set()
    store.close()


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_between_chunks_costs_one_chunk_at_most(tmp_path: Path, seed: int) -> None:
    steps = random.Random(seed)
    payload = tensors(seed, w=5 * CHUNK_BYTES // 4, b=5, v=3 * CHUNK_BYTES // 4)
    arrived, lives = 0, 0
    while True:
        killed_after = steps.randint(0, 4)

        def work(killed_after: int = killed_after) -> None:
            store = NodeStore(tmp_path)
            part = store.incoming(KEY, payload.manifest)
            receive(part, payload, killed_after)
            if part.num_waiting == 0:
                part.complete()
                store.save(row_of(KEY, payload.manifest))
                os._exit(9)
            os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            try:
                work()
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lives += 1
        assert ended in (9, -signal.SIGKILL)
        if ended == 9:
            break
        arrived += killed_after
        store = NodeStore(tmp_path)
        assert store.rows() == ()
        assert sum(size_of(c) for c in store.incoming(KEY, payload.manifest).chunks) == (
            sum(size_of(c) for c in plan([(0, payload.manifest.total)])[arrived:])
        )
        store.close()
        assert lives < 100
    store = NodeStore(tmp_path)
    assert len(store.rows()) == 1
    store.payload(KEY).verify()
    store.close()


def test_what_a_row_says_is_what_the_wire_says(store: NodeStore) -> None:
    take(store, KEY, SMALL)
    blob = store._db.execute("SELECT row FROM custody").fetchone()[0]
    assert blob == wire.encode_row(store.rows()[0])


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("blob", [b"", b"junk", bytes(3)])
def test_a_damaged_row_is_lost_and_the_others_are_not(store: NodeStore, blob: bytes) -> None:
    take(store, KEY, SMALL)
    take(store, OTHER, LARGE)
    with store._transaction():
        store._db.execute("UPDATE custody SET row = ? WHERE hop = ?", (blob, KEY.hop))
    reopened(store)
    assert [row.key for row in store.rows()] == [OTHER]
    assert store.lost == (KEY,)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(LocalError, match=r"store\.db"):
        NodeStore(tmp_path)
    (tmp_path / "store.db").unlink()
    NodeStore(tmp_path).close()


def test_transfers_that_always_break_off_do_not_fill_the_disk(store: NodeStore) -> None:
    keys = [replace(KEY, hop=hop) for hop in range(10, 10 + 3 * PARTS_KEPT)]
    for key in keys:
        receive(store.incoming(key, LARGE.manifest), LARGE, 1)
        store.abandon(key)
    left = {f"{key}{end}" for key in keys[-PARTS_KEPT:] for end in (".part", ".progress")}
    assert files(store) == left
    assert files(reopened(store)) == left
    assert (
        store.incoming(keys[-1], LARGE.manifest).num_waiting
        == len(plan(((0, LARGE.manifest.total),))) - 1
    )


def test_a_key_is_known_while_it_is_here_and_after(store: NodeStore) -> None:
    assert not store.has_had(KEY)
    take(store, KEY, SMALL)
    assert store.has_had(KEY)
    store.drop(KEY)
    assert store.has_had(KEY)
