"""A routing policy of your own: how a packet picks its next stop.

    python examples/custom_policy.py

A policy is a class with a name, `wants_probes` and `choose`. Installed as a plug-in, every node
and the simulated world know it by name; in your package's pyproject.toml:

    [project.entry-points."aats.policies"]
    most-samples = "my_package.policies:MostSamples"

Here it runs in process instead: three data nodes and an owner on loopback, in one program.
"""

import asyncio
import contextlib
import itertools
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sklearn.datasets import load_digits

from aats import (
    Architecture,
    Choice,
    ComputeAdvert,
    Cost,
    LinkAdvert,
    NodeId,
    Observation,
    Plugin,
    Role,
    StopKind,
    Target,
)  # fmt: skip
from aats.installed import load_policy
from aats.node.daemon import Daemon
from aats.node.desk import CoreConfig
from aats.node.executor import Executor
from aats.node.forkserver import ForkServer
from aats.node.layout import Layout, LiveNode
from aats.roles.data import NodeData, SkillData
from aats.roles.owner import make_packet
from aats.routing.policy import RoutePolicy
from aats.transport.hub import Hub

NAMES = [NodeId(name) for name in ("owner", "small", "medium", "large")]


@dataclass(frozen=True)
class MostSamples:
    """Where most samples are per visit already made."""

    name = "most-samples"

    def wants_probes(self, observation: Observation, rng: random.Random) -> list[int]:
        """Return nothing: what the nodes advertise is enough."""
        return []

    def choose(self, observation: Observation, rng: random.Random) -> Choice:
        """Return the best legal stop; verification and the way home are stops, too."""
        scores = {}
        for index in observation.legal():
            stop = observation.candidates[index]
            worth = sum(stop.samples.values()) / (1 + stop.visits)
            scores[index] = worth if stop.kind is StopKind.DATA else 0.0
        best = max(scores, key=lambda i: scores[i])
        named = {observation.candidates[i].node: score for i, score in scores.items()}
        return Choice(best, f"{scores[best]:.0f} samples per visit", named)


def policies(plugin: Plugin) -> RoutePolicy:
    """Return ours by its name, else an installed one."""
    return MostSamples() if plugin.name == MostSamples.name else load_policy(plugin)


def networked(x, y) -> list[LiveNode]:
    """Return the nodes: each joined to every other, each with its share of the digits."""
    shares = dict(zip(NAMES, (slice(0), slice(100, 200), slice(200, 500), slice(500, 1500)),
                      strict=True))  # fmt: skip
    nodes = []
    for name, share in shares.items():
        data = NodeData.of(SkillData.of("digits", x[share], y[share], num_classes=10))
        holds = name != "owner"
        core = CoreConfig(
            name,
            (Role.DATA, Role.COMPUTE) if holds else (Role.OWNER,),
            data.adverts() if holds else (),
            ComputeAdvert(1000.0 if holds else 0.0),
        )
        links = tuple(LinkAdvert(peer, 1e9, 0.001) for peer in NAMES if peer != name)
        nodes.append(LiveNode(core, data if holds else NodeData(), links))
    return nodes


async def main(folder: str) -> None:
    """Send one packet out, and show where its policy took it."""
    x, y = load_digits(return_X_y=True)
    layout = Layout(networked(x / 16, y), Path(folder))
    specs = layout.write()
    packet = make_packet(
        layout.identities[NAMES[0]],
        Architecture("mlp", {"features": 64, "hidden": [32], "classes": 10}),
        (Target("digits", 0.99, verifier="any"),),
        created=time.time(),
        method=Plugin("sequential", {"epochs": 3, "lr": 0.1}),
        policy=Plugin(MostSamples.name),
        budget=Cost(hops=6, seconds=60, bytes=1e9, joules=1e9),
        reference={"digits": (x[:100] / 16, y[:100])},
    )
    workers, hub = Executor(ForkServer.spawn("worker")), Hub()  # shared by all four nodes
    workers.start()
    async with contextlib.AsyncExitStack() as running:
        running.callback(hub.close)
        running.push_async_callback(workers.close)
        daemons = [
            await running.enter_async_context(
                Daemon(spec, executor=workers, hub=hub, policies=policies)
            )
            for spec in specs.values()
        ]
        await daemons[0].submit(*packet)
        back = await anext(daemons[0].delivered())
    for before, visit in itertools.pairwise((None, *back.header.journal)):
        where = "stays at" if before and before.node == visit.node else "goes to"
        print(f"{where} {visit.node}: {visit.samples} samples, gain {visit.gain:+.2f}")
    layout.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(place))
