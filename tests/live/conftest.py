"""Live networks of real processes; all tests share one fork server, which costs seconds."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from aats.advert import ComputeAdvert, LinkAdvert, NodePolicy, Role
from aats.ids import NodeId
from aats.learning.weights import initial_payload
from aats.lineage import Record
from aats.live import Delivered, LiveNode, LiveOptions, LiveWorld, TraceEvent
from aats.node.desk import CoreConfig
from aats.node.fault import FaultPoint
from aats.node.forkserver import ForkServer
from aats.node.spec import WorkSettings
from aats.node.supervisor import Backoff
from aats.packet import Architecture, Cost, Header, Plugin, Target
from aats.payload import Payload, pack
from aats.roles.data import NodeData, SkillData
from aats.roles.owner import make_packet
from aats.store import NodeStore

SKILL = "colours"
CLASSES = 4
ARCHITECTURE = Architecture("surrogate", {"classes": {SKILL: CLASSES}})
TIMES = {
    "settle_s": 0.2, "offer_timeout_s": 0.4, "transfer_timeout_s": 2.0, "avoid_s": 2.0,
    "retry_s": 0.1, "alive_s": 0.3, "silence_s": 3.0, "task_timeout_s": 20.0,
}  # fmt: skip
OPTIONS = LiveOptions(backoff=Backoff(first_s=0.05, tries=20))


def rows(seed: int, samples: int = 120) -> NodeData:
    """Return data of the surrogate: the one feature is the class."""
    y = np.random.default_rng(seed).integers(0, CLASSES, samples)
    return NodeData.of(SkillData.of(SKILL, y[:, None].astype(np.float32), y, num_classes=CLASSES))


def ring(
    size: int, *, links_bps: float = 1e9, times: Mapping[str, float] = TIMES,
    mpvu: NodeId | None = None, work: WorkSettings = WorkSettings(),
    deaths: Sequence[FaultPoint] = (),
) -> list[LiveNode]:  # fmt: skip
    """Return a ring of data nodes n0, n1, ...; n0 is an owner, too."""
    names = [NodeId(f"n{i}") for i in range(size)]
    nodes = []
    for i, name in enumerate(names):
        peers = {names[i - 1], names[(i + 1) % size]} - {name}
        data = rows(i)
        roles = (Role.DATA, Role.COMPUTE, *((Role.OWNER,) if i == 0 else ()))
        core = CoreConfig(
            name, (*roles, Role.MPVU) if name == mpvu else roles, data.adverts(),
            ComputeAdvert(1000.0), NodePolicy(contributes_to=(mpvu,) if mpvu else ()), **times,
        )  # fmt: skip
        links = tuple(LinkAdvert(p, links_bps, 0.0005) for p in sorted(peers))
        nodes.append(LiveNode(core, data, links, work, tuple(deaths)))
    return nodes


def packet(
    world: LiveWorld, *, method: Plugin = Plugin("surrogate"), target: float = 0.9,
    verifier: str = "any", hops: float = 16, ballast_bytes: int = 0, policy: str = "cycle",
    seed: int = 1, architecture: Architecture = ARCHITECTURE,
) -> tuple[Header, Payload]:  # fmt: skip
    """Return a packet of node n0, signed; `ballast_bytes` travel with it unchanged."""
    reference = rows(99).skills[SKILL]
    payload = initial_payload(architecture, seed, {SKILL: (reference.train_x, reference.train_y)})
    if ballast_bytes:
        ballast = np.random.default_rng(seed).integers(0, 255, ballast_bytes, np.uint8)
        payload = pack({**payload.arrays(), "state.ballast": ballast})
    return make_packet(
        world.identity(NodeId("n0")),
        architecture,
        (Target(SKILL, target, verifier=verifier),),
        created=time.time(),
        method=method,
        policy=Plugin(policy),
        budget=Cost(hops, 1e6, 1e15, 1e15),
        payload=payload,
        seed=seed,
    )


@dataclass
class Run:
    """A run that is over."""

    events: list[TraceEvent]
    delivered: list[Delivered]

    def of(self, name: str) -> list[TraceEvent]:
        """Return the events of a name."""
        return [e for e in self.events if e["event"] == name]


Watch = Callable[[LiveWorld, TraceEvent], None]


@dataclass
class Network:
    """Runs packets on live networks that share a fork server."""

    server: ForkServer
    directory: Path

    def run(
        self, nodes: Sequence[LiveNode], *, options: LiveOptions = OPTIONS,
        watch: Watch = lambda world, event: None, limit_s: float = 40.0,
        seeds: Sequence[int] = (1,), make: Callable[..., tuple[Header, Payload]] = packet,
        **about: object,
    ) -> Run:  # fmt: skip
        """Run a packet for each seed (`about`: see `make`) and return what came of them."""

        async def go() -> Run:
            world = LiveWorld(nodes, self.directory, options, server=self.server)
            events = []
            async with world:
                for seed in seeds:
                    world.submit(*make(world, seed=seed, **about))
                async for event in world.events(limit_s):
                    events.append(event)
                    watch(world, event)
                assert world.ended == "home", f"{world.ended}: waiting for {world.waiting_for}"
            return Run(events, list(world.delivered.values()))

        return asyncio.run(go())

    def records(self) -> Iterator[Record]:
        """Yield what the ledgers of all nodes have, once they have stopped."""
        for directory in sorted((self.directory / "nodes").iterdir()):
            store = NodeStore(directory)
            yield from store.records()
            store.close()


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    plugins = str(Path(__file__).parent / "plugins")
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{plugins}:{before}" if before else plugins
    try:
        server = ForkServer.spawn("daemon")
    finally:
        os.environ["PYTHONPATH"] = before
    yield server
    asyncio.run(server.close())


@pytest.fixture
def network(server: ForkServer, tmp_path: Path) -> Network:
    return Network(server, tmp_path)


@pytest.fixture(scope="session")
def make_ring() -> Callable[..., list[LiveNode]]:
    return ring
