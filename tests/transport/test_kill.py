from __future__ import annotations

import json
import queue
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aats import wire
from aats.ids import CustodyKey, NodeId, new_packet_id
from aats.node.events import CustodyRow
from aats.packet import UNLIMITED, Architecture, Header, Mandate, Owner, PacketKind, Plugin
from aats.payload import Payload, pack
from aats.spool import CHUNK_BYTES
from aats.store import NodeStore
from aats.transport.bulk import BulkLane
from aats.transport.keys import Directory, Endpoint
from aats.transport.sending import WINDOW_CHUNKS
from aats.transport.sending import Sender as SendingHalf
from aats.transport.ticket import FrameKind, Ticket

A, B = NodeId("a"), NodeId("b")
SCRIPT = Path(__file__).with_name("receiver_process.py")
ROOT = Path(__file__).parents[2]
PATIENCE_S = 30


class Receiver:
    """A receiving process, what it says in a queue."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(directory), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.address = self.next()["address"]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.put(json.loads(line))
        self.said.put({"end": True})

    def next(self) -> dict[str, Any]:
        return self.said.get(timeout=PATIENCE_S)

    def offer(self, row: CustodyRow) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(wire.encode_row(row).hex() + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Sender:
    """A sending node in this process; counts what comes back and may kill the receiver."""

    def __init__(self, root: Path) -> None:
        self.directory = Directory()
        self.store = NodeStore(root / "a")
        self.lane = BulkLane(A, "tcp://127.0.0.1:0", self.directory, self.store, lambda event: None)
        self.lane.start()
        self.credits_until_kill = -1
        self.credits = 0
        self.asked: list[int] = []
        """Chunks that each ticket asked for."""
        self.receiver: Receiver | None = None

    def load(self, seed: int, num_chunks: float) -> CustodyRow:
        rng = np.random.default_rng(seed)
        payload: Payload = pack(
            {"model.w": rng.standard_normal(int(num_chunks * CHUNK_BYTES) // 4, np.float32)}
        )
        key = CustodyKey(new_packet_id(seed, random.Random(seed)), 0)
        mandate = Mandate(
            key.packet, PacketKind.TRAIN, Owner(A, bytes(32)), 0.0, 1.0, (), UNLIMITED,
            Architecture("mlp"), Plugin("noop"), Plugin("random"), 0,
        )  # fmt: skip
        row = CustodyRow(key, "worked", Header(mandate, manifest=payload.manifest))
        self.store.submit(key, payload)
        self.store.save(row)
        return row

    def hand_over(self, receiver: Receiver, row: CustodyRow) -> dict[str, Any]:
        """Offer until the receiver says that it has the packet, or is dead; return its word."""
        self.receiver = receiver
        self.directory.add(Endpoint(B, bulk=receiver.address))
        key = row.key.next()
        header = Header(row.header.mandate, hop=key.hop, manifest=row.header.manifest)
        receiver.offer(CustodyRow(key, "held", header, sender=A))
        self.lane.send(B, key, row.key, row.header.manifest)
        while "ticket" in (said := receiver.next()):
            self.asked.append(len(Ticket.decode(bytes.fromhex(said["ticket"])).done))
            self.lane.take_ticket(B, bytes.fromhex(said["ticket"]))
        self.lane.cancel(key)
        return said

    def close(self) -> None:
        self.lane.close()
        self.store.close()


@pytest.fixture
def sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    found = Sender(tmp_path)
    reply = SendingHalf._take_reply

    def counted_reply(half: SendingHalf, to: NodeId, kind: FrameKind, *args: Any) -> None:
        found.credits += kind is not FrameKind.REFUSED
        found.credits_until_kill -= kind is FrameKind.CREDIT
        if found.credits_until_kill == 0 and found.receiver is not None:
            found.receiver.kill()
        reply(half, to, kind, *args)

    monkeypatch.setattr(SendingHalf, "_take_reply", counted_reply)
    yield found
    found.close()


def held_at(directory: Path) -> NodeStore:
    store = NodeStore(directory)
    for row in store.rows():
        store.payload(row.key).verify()
    return store


def test_a_receiver_killed_while_it_receives_goes_on_where_it_was(
    sender: Sender, tmp_path: Path
) -> None:
    row = sender.load(1, 12.5)
    for kill_after in (3, 4):
        receiver = Receiver(tmp_path / "b")
        sender.credits_until_kill = kill_after
        assert "end" in sender.hand_over(receiver, row)
        receiver.close()
    sender.credits_until_kill = -1
    receiver = Receiver(tmp_path / "b")
    assert sender.hand_over(receiver, row)["held"] == str(row.key.next())
    receiver.close()
    first, second, third = sender.asked
    assert first == 13
    assert first - 3 - WINDOW_CHUNKS <= second <= first - 3, "what was acknowledged is not re-sent"
    assert second - 4 - WINDOW_CHUNKS <= third <= second - 4
    store = held_at(tmp_path / "b")
    assert [held.key for held in store.rows()] == [row.key.next()]
    store.close()


def test_a_receiver_killed_between_stored_and_acknowledged_holds_one_packet(
    sender: Sender, tmp_path: Path
) -> None:
    row = sender.load(1, 0.3)
    receiver = Receiver(tmp_path / "b", "die-after-save")
    assert "end" in sender.hand_over(receiver, row)
    receiver.close()
    receiver = Receiver(tmp_path / "b")
    assert sender.hand_over(receiver, row) == {"held": str(row.key.next()), "wire_bytes": 0}
    receiver.close()
    store = held_at(tmp_path / "b")
    assert [held.key for held in store.rows()] == [row.key.next()]
    store.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_packet_is_lost_over_thirty_kills(sender: Sender, tmp_path: Path) -> None:
    chance = random.Random(5)
    rows = [sender.load(seed, 6.5) for seed in range(20)]
    kills, receiver = 0, Receiver(tmp_path / "b")
    for row in rows:
        sender.credits_until_kill = chance.randint(1, 12) if kills < 30 else -1
        while "held" not in sender.hand_over(receiver, row):
            receiver.close()
            kills += 1
            receiver = Receiver(tmp_path / "b")
            sender.credits_until_kill = chance.choice((-1, 1, 2)) if kills < 30 else -1
    receiver.close()
    store = held_at(tmp_path / "b")
    assert sorted(str(held.key) for held in store.rows()) == sorted(
        str(row.key.next()) for row in rows
    )
    store.close()
    assert kills >= 15
    assert len(sender.asked) == len(rows) + kills
    assert sender.credits >= 7 * len(rows) - WINDOW_CHUNKS * kills, "progress outlives a kill"
