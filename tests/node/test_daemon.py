"""A daemon inside a program: two nodes in one event loop, tasks by an executor of the test's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from aats.advert import ComputeAdvert, LinkAdvert, Role
from aats.errors import LocalError, SignatureError
from aats.ids import NodeId, Version
from aats.lineage import RecordKind
from aats.messages import Alive, Offer
from aats.node import inbox
from aats.node.daemon import Daemon, Home
from aats.node.desk import CoreConfig
from aats.node.executor import Executor, fork_zygote
from aats.node.layout import Layout, LiveNode
from aats.node.spec import (
    CURVE_FILE,
    EVENTS_FILE,
    IDENTITY_FILE,
    LOG_FILE,
    PEERS_FILE,
    DaemonSpec,
)
from aats.packet import Architecture, Cost, Header, Plugin, Target
from aats.payload import MODEL, Payload, pack
from aats.roles.data import NodeData, SkillData
from aats.roles.owner import make_packet
from aats.transport.base import Kind, joined
from aats.transport.hub import Hub
from aats.transport.keys import CurveKeys, Directory
from aats.wire import encode_message, sign_header, sign_mandate

A, B = NodeId("a"), NodeId("b")
SKILL = "colours"
TIMES = {"settle_s": 0.1, "retry_s": 0.1, "offer_timeout_s": 0.3}


def rows(seed: int) -> NodeData:
    y = np.random.default_rng(seed).integers(0, 2, 80)
    return NodeData.of(SkillData.of(SKILL, y[:, None].astype(np.float32), y, num_classes=2))


class Pair:
    """Nodes a (owner) and b (data), not started."""

    def __init__(self, directory: Path) -> None:
        data = rows(1)
        owner = CoreConfig(A, (Role.OWNER,), **TIMES)  # type: ignore[arg-type]
        holder = CoreConfig(
            B, (Role.DATA, Role.COMPUTE), data.adverts(), ComputeAdvert(100.0), **TIMES
        )  # type: ignore[arg-type]
        self.layout = Layout(
            [
                LiveNode(owner, links=(LinkAdvert(B, 1e9, 0.0),)),
                LiveNode(holder, data, (LinkAdvert(A, 1e9, 0.0),)),
            ],
            directory,
        )
        self.specs = self.layout.write()

    def packet(self) -> tuple[Header, Payload]:
        reference = rows(2).skills[SKILL]
        return make_packet(
            self.layout.identities[A], Architecture("surrogate", {"classes": {SKILL: 2}}),
            (Target(SKILL, 0.7, verifier="any"),), created=time.time(),
            method=Plugin("surrogate"), policy=Plugin("cycle"), budget=Cost(20, 1e6, 1e12, 1e12),
            reference={SKILL: (reference.train_x, reference.train_y)},
        )  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    yield pair  # type: ignore[misc]
    pair.layout.close()


@contextlib.asynccontextmanager
async def running(pair: Pair) -> AsyncIterator[dict[NodeId, Daemon]]:
    executor = Executor(fork_zygote([pair.specs[B].directory]))
    executor.start()
    async with contextlib.AsyncExitStack() as stack:
        hub = Hub()
        stack.callback(hub.close)
        stack.push_async_callback(executor.close)
        yield {
            name: await stack.enter_async_context(Daemon(spec, executor=executor, hub=hub))
            for name, spec in pair.specs.items()
        }


async def home(daemon: Daemon) -> Home:
    return await asyncio.wait_for(anext(daemon.delivered()), 30)


def events(spec: DaemonSpec) -> list[str]:
    lines = (spec.directory / EVENTS_FILE).read_text("utf-8").splitlines()
    return [json.loads(line)["event"] for line in lines]


async def test_a_submitted_packet_comes_home_to_the_program(pair: Pair) -> None:
    async with running(pair) as daemons:
        await daemons[A].submit(*pair.packet())
        back = await home(daemons[A])
    assert back.header.requirement_met
    back.payload.verify()
    assert "visit.finished" in events(pair.specs[B])
    parcels, broken = inbox.look(pair.specs[A].directory / inbox.HOME)
    assert [p.header for p in parcels] == [back.header]
    assert not broken


async def test_a_packet_in_the_inbox_is_taken_and_what_is_none_put_aside(pair: Pair) -> None:
    directory = pair.specs[A].directory / inbox.INBOX
    inbox.put(directory, *pair.packet())
    (directory / "noise.header").write_bytes(b"noise")
    async with running(pair) as daemons:
        daemons[A].poke()
        await home(daemons[A])
    assert [p.name for p in directory.iterdir()] == ["noise.broken"]


async def test_what_a_stopped_node_holds_is_resumed(pair: Pair) -> None:
    async with running(pair) as daemons:
        await daemons[A].submit(*pair.packet())
    async with running(pair) as daemons:
        assert (await home(daemons[A])).header.requirement_met
    assert events(pair.specs[A]).count("packet.submitted") == 1
    assert events(pair.specs[A]).count("node.up") == 2


async def test_a_mandate_that_its_owner_has_not_signed_is_the_submitters_fault(pair: Pair) -> None:
    header, payload = pair.packet()
    forged = replace(header, mandate=replace(header.mandate, signature=bytes(64)))
    inbox.put(pair.specs[A].directory / inbox.INBOX, forged, payload)
    async with running(pair) as daemons:
        with pytest.raises(SignatureError):
            await daemons[A].submit(forged, payload)
        with pytest.raises(LocalError, match="its owner is a, not b"):
            await daemons[B].submit(header, payload)
        await daemons[A].submit(header, payload)
        await home(daemons[A])


async def test_changed_data_are_advertised(pair: Pair) -> None:
    async with running(pair) as daemons:
        await daemons[B].change_data(NodeData())
        header, payload = pair.packet()
        mandate = replace(header.mandate, deadline=time.time() + 1)
        signed = sign_mandate(mandate, pair.layout.identities[A])
        await daemons[A].submit(replace(header, mandate=signed), payload)
        assert not (await home(daemons[A])).header.requirement_met
    assert "visit.started" not in events(pair.specs[B])


async def test_a_node_without_its_key_says_which_file_is_missing(pair: Pair) -> None:
    (pair.specs[A].directory / IDENTITY_FILE).unlink()
    with pytest.raises(LocalError, match=IDENTITY_FILE):
        async with Daemon(pair.specs[A]):
            pass


async def test_a_directory_is_run_once_at_a_time(pair: Pair) -> None:
    async with Daemon(pair.specs[A]):
        with pytest.raises(LocalError, match="another process has this node's store open"):
            async with Daemon(pair.specs[A]):
                pass


def test_a_spec_is_read_as_it_was_written(pair: Pair) -> None:
    spec = pair.specs[B]
    assert DaemonSpec.load(spec.directory) == spec
    path = spec.directory / "node.json"
    path.write_text(path.read_text("utf-8").replace('"process"', '"cloud"'), "utf-8")
    with pytest.raises(LocalError, match=r"node\.json: .*cloud.*custody"):
        DaemonSpec.load(spec.directory)


@pytest.mark.parametrize("cut", [0, 1, 100])
async def test_a_parcel_whose_tensors_are_cut_short_is_put_aside(pair: Pair, cut: int) -> None:
    directory = pair.specs[A].directory / inbox.INBOX
    parcel = inbox.put(directory, *pair.packet())
    file = parcel.path.with_suffix(".payload")
    file.write_bytes(file.read_bytes()[:cut])
    async with running(pair) as daemons:
        daemons[A].poke()
        await daemons[A].submit(*pair.packet())
        await home(daemons[A])
    assert [p.name for p in directory.iterdir() if p.suffix == ".broken"]


async def test_what_no_node_would_take_is_told_at_once(pair: Pair) -> None:
    header, payload = pair.packet()
    flipped = Payload(payload.manifest, memoryview(bytearray(len(payload.arena))))
    unknown = replace(header.mandate, policy=Plugin("teleport"))
    unknown = sign_mandate(unknown, pair.layout.identities[A])
    async with running(pair) as daemons:
        with pytest.raises(LocalError, match="does not fit its digest"):
            await daemons[A].submit(header, flipped)
        with pytest.raises(LocalError, match="not that of its tensors"):
            await daemons[A].submit(replace(header, version=Version("0" * 64)), payload)
        with pytest.raises(LocalError, match="teleport"):
            await daemons[A].submit(replace(header, mandate=unknown), payload)
        await daemons[A].submit(header, payload)
        await daemons[A].submit(header, payload)
        await home(daemons[A])


# --- on the wire ------------------------------------------------------------------------------


def _hostile_frames(pair: Pair) -> list[bytes]:
    """Frames by one who has a's keys: everything that is wrong with bytes, and with offers."""
    header, _ = pair.packet()
    alive = bytes((Kind.MESSAGE,)) + encode_message(Alive(header.key))
    moved = replace(header.moved_by(A), holder=A)
    signed = sign_header(moved, pair.layout.identities[A])
    forged = replace(signed, signature=bytes(64))
    other = replace(signed, version=Version("1" * 64))
    flipped = bytearray(bytes((Kind.MESSAGE,)) + encode_message(Offer(signed.key, signed)))
    flipped[len(flipped) // 2] ^= 0xFF
    offers = [
        bytes((Kind.MESSAGE,)) + encode_message(Offer(h.key, h)) for h in (forged, other, signed)
    ]
    return [
        b"", b"\0", b"\xff" * 40, alive[:-3], alive[:2], alive + b"x",
        bytes((Kind.MESSAGE, 99)) + alive[2:],  # another wire version
        bytes((Kind.MESSAGE, alive[1], 250)) + alive[3:],  # a type that is none
        bytes((Kind.MESSAGE,)) + b"\1\x0d" + b"\xdf\xff\xff\xff\xff",  # a map of 2^32 entries
        bytes((Kind.TICKET,)) + b"junk" * 9, bytes(flipped), *offers,
        bytes((Kind.BOTH,)) + b"\xff" * 40, bytes((Kind.BOTH,)) + joined(b"junk", alive[:-3]),
        bytes((Kind.MESSAGE,)) + bytes(3 << 20),  # larger than any message
    ]  # fmt: skip


async def test_hostile_frames_harm_neither_the_node_nor_a_packet(pair: Pair) -> None:
    victim, keys = pair.specs[B], CurveKeys.load(pair.specs[A].directory / CURVE_FILE)
    peers = Directory.load(victim.directory / PEERS_FILE)
    async with running(pair) as daemons:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 2000
            dealer.curve_serverkey = peers.get(B).curve_key
            dealer.curve_publickey, dealer.curve_secretkey = keys.public, keys.secret
            dealer.connect(victim.control)
            for frame in _hostile_frames(pair):
                await asyncio.to_thread(dealer.send, frame)
            await asyncio.to_thread(dealer.send_multipart, [b"a", b"b", b"c"])
            await daemons[A].submit(*pair.packet())
            back = await home(daemons[A])
    assert back.header.requirement_met
    told = events(victim)
    assert told.count("message.rejected") >= 8
    assert told.count("offer.refused") >= 2
    assert "node.fault" not in told
    assert told.count("node.up") == 1
    words = (victim.directory / LOG_FILE).read_text("utf-8")
    assert "control.malformed" in words
    assert "bulk.malformed" in words


async def test_a_model_that_does_not_fit_is_refused_and_comes_home_as_it_was(pair: Pair) -> None:
    header, payload = pair.packet()
    wrong = {n: a for n, a in payload.arrays().items() if not n.startswith(MODEL)}
    bad = pack({f"{MODEL}knowledge.{SKILL}": np.zeros(7, np.int32), **wrong})
    version = bad.manifest.version(MODEL)
    header = replace(header, version=version, base=version, manifest=bad.manifest)
    async with running(pair) as daemons:
        await daemons[A].submit(header, bad)
        back = await home(daemons[A])
    assert not back.header.requirement_met
    assert back.header.version == version
    assert {r.kind for r in back.header.chain} == {RecordKind.INIT, RecordKind.HOME}
    assert {e.action for e in back.header.journal} == {"refused"}
    lines = (pair.specs[B].directory / EVENTS_FILE).read_text("utf-8").splitlines()
    failed = [e for e in map(json.loads, lines) if e["event"] == "visit.failed"]
    assert failed
    assert "ModelError" in failed[0]["reason"]
