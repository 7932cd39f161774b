"""One live hop between two processes, beside raw TCP and what others would do.

A hop: the sender hashes the tensors, signs the header and offers it; the receiver checks both
signatures, accepts, takes the chunks straight into its store, checks every digest, makes the
packet durable (custody level "process"), rebuilds the model's state, and acknowledges.

Beside it, in the same rounds and in random order: the same bytes over a raw TCP socket between
warm buffers (the physical limit), the same duties on one thread an end that waits for nothing
but its own socket (the floor: what they cost in Python without lanes, an event loop, a
neighbour that may be busy), `torch.save` over ZeroMQ, and a gRPC stream of the same chunks into
a warm buffer, hashed at both ends.

    python benchmarks/bench_hop.py --sizes 1,10,100,500
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq
from common import Bar, finish, show

from aats import wire
from aats.identity import Identity
from aats.ids import CustodyKey, NodeId, new_packet_id
from aats.messages import Accept, Custody, Offer
from aats.node.events import CustodyRow, PacketReceived
from aats.packet import UNLIMITED, Architecture, Header, Mandate, Owner, PacketKind, Plugin
from aats.payload import MODEL, Manifest, Payload, TensorSpec, digest, layout
from aats.spool import CHUNK_BYTES
from aats.store import NodeStore
from aats.transport.base import (
    BulkEvent,
    Incoming,
    Kind,
    LinkChanged,
    TicketReady,
    joined,
    parted,
)  # fmt: skip
from aats.transport.bulk import BulkLane
from aats.transport.hub import Hub
from aats.transport.keys import CurveKeys, Directory, Endpoint
from aats.transport.zmq import ControlLane

A, B = NodeId("a"), NodeId("b")
KINDS = {"hop": (False, False), "hop, encrypted": (True, False), "hop, ipc": (False, True)}
"""Variants of a hop: encrypted? Unix sockets instead of TCP?"""
TENSORS = {1: 40, 10: 80, 100: 160, 500: 160}
"""Tensors of a model by its size in MB (2^20 bytes)."""
METHOD = "/hop/Stream"
EFFICIENCY = {1: 0.20, 10: 0.30, 100: 0.60}
CPU_EFFICIENCY = {1: 0.25, 10: 0.25, 100: 0.28}
"""What holds on a loaded machine, too."""
TIMES_NAIVE = {1: 3.0, 10: 4.0, 100: 5.0}


def settle() -> None:
    """Do what a daemon does once it is loaded."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def identity_of(node: NodeId) -> Identity:
    """Return the identity both processes know a node by."""
    return Identity.from_seed(node, b"bench")


def plain_layout(size_mb: int) -> Manifest:
    """Return the layout (no digests) of a model: a weight and a bias a layer."""
    num = TENSORS.get(size_mb, 40)
    items = (size_mb << 20) // 4
    small = 64
    large = (items - num // 2 * small) // (num // 2)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for i in range(num // 2):
        shapes[f"{MODEL}layers.{i}.weight"] = ("f32", (large,))
        shapes[f"{MODEL}layers.{i}.bias"] = ("f32", (small,))
    return layout(shapes)


def hashed(payload: Payload) -> Manifest:
    """Return a payload's manifest with the digests of its tensors, computed anew."""
    specs = [
        TensorSpec(t.name, t.dtype, t.shape, t.offset, t.size, digest(payload.bytes_of(t)))
        for t in payload.manifest.tensors
    ]
    return Manifest(tuple(specs), payload.manifest.total)


def rebuilt(payload: Payload) -> dict[str, torch.Tensor]:
    """Return a payload as a model's state: writable tensors over its arena."""
    return {
        name.removeprefix(MODEL): torch.from_numpy(array)
        for name, array in payload.arrays(MODEL).items()
    }


def cpu_s() -> float:
    """Return the CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory(field: str) -> int:
    """Return a field of /proc/self/status ("VmRSS", "VmHWM") in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def reset_peak() -> None:
    """Begin to count the peak of this process's memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


# --- our node ---------------------------------------------------------------------------------


class End:
    """One end of the network under test: a store and two lanes on an event loop."""

    def __init__(self, node: NodeId, root: Path, kind: str) -> None:
        secure, is_local = KINDS[kind]
        self.node = node
        place = root / f"{node}-{list(KINDS).index(kind)}"
        place.mkdir(parents=True)
        self.identity = identity_of(node)
        self.hub = Hub()
        self.store = NodeStore(place)
        self.directory = Directory()
        self.keys = CurveKeys.generate() if secure else None
        control, bulk = (
            f"ipc://{place / lane}" if is_local else "tcp://127.0.0.1:0"
            for lane in ("control", "bulk")
        )
        self.control = ControlLane(node, control, self.directory, self.keys, hub=self.hub)
        self.loop = asyncio.get_running_loop()
        self.bulk = BulkLane(
            node, bulk, self.directory, self.store, self._on_bulk, encrypt=secure, hub=self.hub
        )
        self.peer = B if node == A else A
        self.peer_key = identity_of(self.peer).public_key
        self.up = asyncio.Event()
        self.custody = asyncio.Event()
        self.sending: tuple[CustodyKey, Manifest] | None = None
        self.offers: dict[CustodyKey, Header] = {}
        self.accepts: dict[CustodyKey, bytes] = {}
        self.held: CustodyKey | None = None

    async def start(self) -> Endpoint:
        """Bind; return where this end is."""
        self.bulk.start()
        await self.control.start()
        self.task = asyncio.create_task(self._serve())
        key = self.keys.public if self.keys else b""
        own = Endpoint(self.node, self.control.address, self.bulk.address, key)
        self.directory.add(own)
        return own

    async def meet(self) -> None:
        """Connect to the other end, which knows us; return when the link is up."""
        self.control.connect(self.peer)
        await self.up.wait()

    async def close(self) -> None:
        """Close everything."""
        await self.control.close()
        await self.task
        self.bulk.close()
        self.store.close()
        self.hub.close()

    def _on_bulk(self, event: BulkEvent) -> None:
        self.loop.call_soon_threadsafe(self._take_bulk, event)

    def _take_bulk(self, event: BulkEvent) -> None:
        if isinstance(event, TicketReady):
            accept = self.accepts.pop(event.key)
            self.control.send(event.to, joined(event.data, accept), Kind.BOTH)
        elif isinstance(event, PacketReceived):
            self._received(event)
        else:
            raise RuntimeError(f"{self.node}: {event}")

    def _received(self, event: PacketReceived) -> None:
        header = self.offers.pop(event.key)
        self.store.save(CustodyRow(event.key, "held", header, sender=event.sender))
        rebuilt(self.store.private_payload(event.key))
        self.control.send(event.sender, wire.encode_message(Custody(event.key)))
        self.held = event.key

    async def _serve(self) -> None:
        async for event in self.control.events():
            match event:
                case LinkChanged(up=True):
                    self.up.set()
                case Incoming(sender, Kind.BOTH, data):
                    ticket, message = parted(data)
                    self.bulk.take_ticket(sender, ticket)
                    self._take_message(sender, message)
                case Incoming(sender, _, data):
                    self._take_message(sender, data)
                case _:
                    raise RuntimeError(f"{self.node}: {event}")

    def _take_message(self, sender: NodeId, data: bytes) -> None:
        match wire.decode_message(data):
            case Offer(key, header):
                wire.check_mandate(header.mandate)
                wire.check_header(header, self.peer_key)
                self.offers[key] = header
                self.bulk.expect(sender, key, header.manifest, len(data))
                known = self.store.known_digests(header.manifest)
                self.accepts[key] = wire.encode_message(Accept(key, known))
            case Accept(key):
                assert self.sending is not None
                self.bulk.send(sender, key, *self.sending)
            case Custody():
                self.custody.set()

    # --- the sender's side ----

    def load(self, payload: Payload) -> None:
        """Put a payload into the store, as a visit would have."""
        payload = Payload(hashed(payload), payload.arena)
        self.ids = random.Random(payload.manifest.total)
        self.renew()
        self.source = self.template.key
        self.store.submit(self.source, payload)
        row = CustodyRow(self.source, "worked", replace(self.template, manifest=payload.manifest))
        self.store.save(row)
        self.rounds = 0

    def renew(self) -> None:
        """Take another packet's mandate: a node that knows one does not check it again."""
        mandate = Mandate(
            new_packet_id(0, self.ids), PacketKind.TRAIN, Owner(A, self.identity.public_key),
            0.0, 1.0, (), UNLIMITED, Architecture("mlp"), Plugin("sequential"), Plugin("random"), 0,
        )  # fmt: skip
        self.template = Header(wire.sign_mandate(mandate, self.identity))

    def offer(self) -> Offer:
        """Hash the tensors, sign the header."""
        payload = self.store.payload(self.source)
        manifest = hashed(payload)
        self.rounds += 1
        header = replace(
            self.template, hop=self.rounds, manifest=manifest, version=manifest.version(MODEL)
        )
        header = wire.sign_header(header, self.identity)
        return Offer(header.key, header)

    async def hop(self) -> None:
        """Move the loaded packet to the other end; return when it has custody."""
        offer = self.offer()
        self.custody.clear()
        self.sending = (self.source, offer.header.manifest)
        self.control.send(B, wire.encode_message(offer))
        await self.custody.wait()

    def unload(self) -> None:
        """Forget the loaded packet."""
        self.store.drop(self.source)


# --- the others -------------------------------------------------------------------------------


def raw_server(listener: socket.socket, buffer: memoryview) -> None:
    """Receive as many bytes as announced into a warm buffer, acknowledge, and again."""
    conn, _ = listener.accept()
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while head := conn.recv(8, socket.MSG_WAITALL):
        left = buffer[: struct.unpack("<Q", head)[0]]
        while left:
            left = left[conn.recv_into(left) :]
        conn.sendall(b"k")


def floor_server(listener: socket.socket, root: Path) -> None:
    """Do what a receiving node does, one thing after the other, until the sender is gone."""
    conn, _ = listener.accept()
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    store, key = NodeStore(root), identity_of(A).public_key
    while data := read_frame(conn):
        offer = wire.decode_message(data)
        assert isinstance(offer, Offer)
        header = offer.header
        wire.check_mandate(header.mandate)
        wire.check_header(header, key)
        part = store.incoming(offer.key, header.manifest)
        accept = Accept(offer.key, store.known_digests(header.manifest))
        send_frame(conn, wire.encode_message(accept))
        for index in range(len(part.chunks)):
            slot = part.slot(index)
            assert slot is not None, "all of it is missing"
            conn.recv_into(slot.data, len(slot), socket.MSG_WAITALL)
            part.wrote(index)
        del slot
        part.complete()
        store.save(CustodyRow(offer.key, "held", header, sender=A))
        rebuilt(store.private_payload(offer.key))
        send_frame(conn, wire.encode_message(Custody(offer.key)))
        store.drop(offer.key)
    store.close()


def send_frame(conn: socket.socket, data: bytes) -> None:
    """Send a length and so many bytes."""
    conn.sendall(struct.pack("<I", len(data)) + data)


def read_frame(conn: socket.socket) -> bytes:
    """Return what `send_frame` sent; b"" if the other end has closed."""
    head = conn.recv(4, socket.MSG_WAITALL)
    return conn.recv(struct.unpack("<I", head)[0], socket.MSG_WAITALL) if head else b""


def naive_server(sock: zmq.Socket[bytes]) -> None:
    """Load what `torch.save` wrote, acknowledge, and again, until an empty message."""
    while data := sock.recv():
        torch.load(io.BytesIO(data), weights_only=True)
        sock.send(b"k")
    sock.close(linger=0)


def grpc_server(buffer: np.ndarray[Any, Any]) -> tuple[Any, int]:
    """Serve a stream of chunks into a warm buffer, hashing as they come."""
    import blake3
    import grpc

    def stream(chunks: Iterator[bytes], context: object) -> bytes:
        at, hasher = 0, blake3.blake3()
        for chunk in chunks:
            np.copyto(buffer[at : at + len(chunk)], np.frombuffer(chunk, np.uint8))
            hasher.update(chunk)
            at += len(chunk)
        return hasher.digest()

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.stream_unary_rpc_method_handler(stream)

    server = grpc.server(ThreadPoolExecutor(1), options=GRPC_OPTIONS)
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


GRPC_OPTIONS = [("grpc.max_receive_message_length", 4 * CHUNK_BYTES)]


# --- the receiving process --------------------------------------------------------------------


def receiver(channel: multiprocessing.connection.Connection, root: str, largest_mb: int) -> None:
    """Serve every design until told to stop."""
    settle()
    asyncio.run(_receiver(channel, Path(root), largest_mb))
    os._exit(0)  # gRPC's threads do not end by themselves


async def _receiver(
    channel: multiprocessing.connection.Connection, root: Path, largest_mb: int
) -> None:
    ends = [End(B, root, kind) for kind in KINDS]
    own = [await end.start() for end in ends]
    others: dict[str, int] = {}
    if largest_mb:
        buffer = np.ones((largest_mb + 1) << 20, np.uint8)  # padding comes on top
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=raw_server, args=(listener, buffer.data), daemon=True).start()
        sock = ends[0].hub.context.socket(zmq.PAIR)
        others["naive"] = sock.bind_to_random_port("tcp://127.0.0.1")
        threading.Thread(target=naive_server, args=(sock,), daemon=True).start()
        others["raw"] = listener.getsockname()[1]
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=floor_server, args=(listener, root / "floor"), daemon=True).start()
        others["floor"] = listener.getsockname()[1]
        _server, others["grpc"] = grpc_server(buffer)
    channel.send((own, others))
    for end, peer in zip(ends, await _received(channel), strict=True):
        end.directory.add(peer)
    channel.send("known")
    for end in ends:
        await end.meet()
    channel.send("ready")
    while (command := await _received(channel)) != "stop":
        if command == "forget":
            for end in ends:
                if end.held is not None:
                    end.store.drop(end.held)
                    end.held = None
        elif command == "reset":
            reset_peak()
        channel.send((cpu_s(), memory("VmRSS"), memory("VmHWM")))


async def _received(channel: multiprocessing.connection.Connection) -> Any:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(channel.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(channel.fileno())
    return channel.recv()


# --- the sending process ----------------------------------------------------------------------


class Bench:
    """The sending process and its view of the other."""

    def __init__(self, root: Path, largest_mb: int) -> None:
        self.root, self.largest_mb = root, largest_mb
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=receiver, args=(theirs, str(root), largest_mb))
        self.process.start()

    async def open(self) -> None:
        """Start our ends and connect everything."""
        self.ends = {kind: End(A, self.root, kind) for kind in KINDS}
        theirs, others = self.channel.recv()
        for end, peer in zip(self.ends.values(), theirs, strict=True):
            end.directory.add(peer)
        self.channel.send([await end.start() for end in self.ends.values()])
        assert await _received(self.channel) == "known"
        for end in self.ends.values():
            await end.meet()
        assert await _received(self.channel) == "ready"
        if not self.largest_mb:
            return
        self.raw, self.floor = (
            socket.create_connection(("127.0.0.1", others[name])) for name in ("raw", "floor")
        )
        for sock in (self.raw, self.floor):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.naive = self.ends["hop"].hub.context.socket(zmq.PAIR)
        self.naive.connect(f"tcp://127.0.0.1:{others['naive']}")
        import grpc

        self.grpc = grpc.insecure_channel(f"127.0.0.1:{others['grpc']}", options=GRPC_OPTIONS)
        self.stream = self.grpc.stream_unary(METHOD)

    def ask(self, command: str) -> tuple[float, int, int]:
        """Send the other process a command; return its CPU seconds, memory and peak."""
        self.channel.send(command)
        answer: tuple[float, int, int] = self.channel.recv()
        return answer

    async def close(self) -> None:
        """End both processes' parts."""
        if self.largest_mb:
            self.naive.send(b"")
            self.naive.close(linger=100)
            self.raw.close()
            self.floor.close()
            self.grpc.close()
        self.channel.send("stop")
        for end in self.ends.values():
            await end.close()
        self.process.join(10)
        self.process.kill()

    def send_raw(self, data: memoryview) -> None:
        """Send bytes from warm memory and wait for the acknowledgement."""
        self.raw.sendall(struct.pack("<Q", len(data)))
        self.raw.sendall(data)
        self.raw.recv(1)

    def send_floor(self) -> None:
        """Do what a sending node does, one thing after the other."""
        end = self.ends["hop"]
        send_frame(self.floor, wire.encode_message(end.offer()))
        wire.decode_message(read_frame(self.floor))
        self.floor.sendall(end.store.payload(end.source).arena)
        wire.decode_message(read_frame(self.floor))

    def send_naive(self, state: dict[str, torch.Tensor]) -> None:
        """Send a state as `torch.save` writes it."""
        out = io.BytesIO()
        torch.save(state, out)
        self.naive.send(out.getvalue())
        self.naive.recv()

    def send_grpc(self, data: memoryview) -> None:
        """Stream the chunks; the answer is their digest."""
        import blake3

        hasher = blake3.blake3()

        def chunks() -> Iterator[bytes]:
            for at in range(0, len(data), CHUNK_BYTES):
                chunk = bytes(data[at : at + CHUNK_BYTES])
                hasher.update(chunk)
                yield chunk

        if self.stream(chunks()) != hasher.digest():
            raise RuntimeError("gRPC delivered other bytes")

    async def measure(self, size_mb: int, rounds: int) -> list[dict[str, Any]]:
        """Return one row a design, all measured in the same rounds."""
        manifest = plain_layout(size_mb)
        arena = np.empty(manifest.total, np.uint8)
        np.random.default_rng(size_mb).standard_normal(
            manifest.total // 4, np.float32, out=arena[: manifest.total // 4 * 4].view(np.float32)
        )
        payload = Payload(manifest, arena.data)
        state = rebuilt(payload)
        for end in self.ends.values():
            end.load(payload)
        designs: dict[str, Callable[[], Any]] = {
            "raw TCP": lambda: self.send_raw(arena.data),
            "floor": self.send_floor,
            **{kind: end.hop for kind, end in self.ends.items()},
            "torch.save over ZeroMQ": lambda: self.send_naive(state),
            "gRPC stream": lambda: self.send_grpc(arena.data),
        }
        seconds: dict[str, list[float]] = {name: [] for name in designs}
        cpu: dict[str, list[float]] = {name: [] for name in designs}
        order = random.Random(size_mb)
        for turn in range(rounds + 2):
            for name in order.sample(list(designs), len(designs)):
                for end in self.ends.values():
                    end.renew()
                other, own, begin = self.ask("cpu")[0], cpu_s(), time.perf_counter()
                pending = designs[name]()
                if pending is not None:
                    await pending
                took = time.perf_counter() - begin
                used = cpu_s() - own + self.ask("forget")[0] - other
                if turn >= 2:
                    seconds[name].append(took)
                    cpu[name].append(used)
        for end in self.ends.values():
            end.unload()
        return [_row(size_mb, len(manifest.tensors), name, seconds, cpu) for name in designs]


def _row(
    size_mb: int,
    tensors: int,
    name: str,
    seconds: dict[str, list[float]],
    cpu: dict[str, list[float]],
) -> dict[str, Any]:
    ratios = [raw / own for raw, own in zip(seconds["raw TCP"], seconds[name], strict=True)]
    quarter = statistics.quantiles(seconds[name], n=4)
    return {
        "MB": size_mb,
        "tensors": tensors,
        "design": name,
        "ms": 1e3 * statistics.median(seconds[name]),
        "ms_iqr": 1e3 * (quarter[2] - quarter[0]),
        "ms_min": 1e3 * min(seconds[name]),
        "raw/this": statistics.median(ratios),
        "min/min": min(seconds["raw TCP"]) / min(seconds[name]),
        "cpu_ms": 1e3 * statistics.fmean(cpu[name]),
        "cpu raw/this": sum(cpu["raw TCP"]) / max(sum(cpu[name]), 1e-9),
    }


async def peaks(root: Path, size_mb: int, kind: str) -> dict[str, Any]:
    """Return the peak memory of one first hop in two fresh processes, as multiples of it."""
    bench = Bench(root, 0)
    await bench.open()
    end = bench.ends[kind]
    manifest = plain_layout(size_mb)
    warm = layout({f"{MODEL}w": ("f32", (1000,))})
    for first, plan in ((True, warm), (False, manifest)):
        end.load(Payload(plan, memoryview(np.ones(plan.total, np.uint8))))
        np.frombuffer(end.store.payload(end.source).arena, np.uint8).sum()
        _, before, _ = bench.ask("reset")
        reset_peak()
        own_before = memory("VmRSS")
        await end.hop()
        _, _, peak = bench.ask("cpu")
        if not first:
            received, sent = peak - before, memory("VmHWM") - own_before
    await bench.close()
    return {
        "MB": size_mb,
        "design": kind,
        "receiver_peak": received / manifest.total,
        "sender_extra": sent / manifest.total,
    }


def bars_of(rows: list[dict[str, Any]], memory_rows: list[dict[str, Any]]) -> list[Bar]:
    """Return the limits these rows must keep."""
    bars = []
    by = {(row["MB"], row["design"]): row for row in rows}
    for size, limit in EFFICIENCY.items():
        if (size, "hop") not in by:
            continue
        hop, sealed = by[size, "hop"], by[size, "hop, encrypted"]
        naive = by[size, "torch.save over ZeroMQ"]
        grpc = by[size, "gRPC stream"]
        bars += [
            Bar(f"{size} MB: raw TCP / hop", hop["raw/this"], limit),
            Bar(f"{size} MB: CPU of raw TCP / hop", hop["cpu raw/this"], CPU_EFFICIENCY[size]),
            Bar(f"{size} MB: times faster than torch.save", naive["ms"] / hop["ms"],
                TIMES_NAIVE[size]),
            Bar(f"{size} MB: times faster than gRPC", grpc["ms"] / hop["ms"], 1.0),
            Bar(f"{size} MB: encrypted / plain efficiency", sealed["raw/this"] / hop["raw/this"],
                0.5),
        ]  # fmt: skip
    for row in memory_rows:
        name = f"{row['MB']} MB, {row['design']}"
        bars.append(Bar(f"{name}: receiver's peak / payload", row["receiver_peak"], 1.25, False))
        bars.append(Bar(f"{name}: sender's extra / payload", row["sender_extra"], 0.1, False))
    return bars


async def run(sizes: list[int], rounds: int, root: Path) -> int:
    """Measure, print, and return the exit status."""
    rows: list[dict[str, Any]] = []
    bench = Bench(root / "speed", max(sizes))
    await bench.open()
    for size in sizes:
        few = rounds if size < 500 else max(5, rounds // 3)
        found = await bench.measure(size, few)
        show(f"Hop of {size} MB, {few} rounds", found)
        rows += found
    await bench.close()
    measured = [s for s in sizes if s >= 100][:1]
    memory_rows = [
        await peaks(root / f"memory-{index}", size, kind)
        for size in measured
        for index, kind in enumerate(KINDS)
    ]
    if memory_rows:
        show("Peak memory of a first hop, in payloads", memory_rows)
    return finish("hop", rows + memory_rows, bars_of(rows, memory_rows))


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="1,10,100,500", help="MB, comma-separated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--directory", type=Path, help="where the stores lie (default: temporary)")
    options = parser.parse_args()
    settle()
    root = Path(tempfile.mkdtemp(prefix="aats-hop-", dir=options.directory))
    try:
        return asyncio.run(run([int(s) for s in options.sizes.split(",")], options.rounds, root))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    sys.exit(main())
