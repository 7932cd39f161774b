"""A program of your own becomes a node: its data stay in it, agents come to them and learn.

    python examples/custom_daemon.py

Two nodes on this machine's loopback, both in this one asyncio program: `clinic`, which holds
data from a source of your own, and `owner`, which sends a model out and gets it back trained.
"""

import asyncio
import tempfile
import time
from pathlib import Path

from sklearn.datasets import load_breast_cancer

from aats import Architecture, ComputeAdvert, Cost, LinkAdvert, NodeId, Plugin, Role, Target
from aats.node.daemon import Daemon
from aats.node.desk import CoreConfig
from aats.node.layout import Layout, LiveNode
from aats.roles.data import NodeData, SkillData
from aats.roles.owner import make_packet

CLINIC, OWNER = NodeId("clinic"), NodeId("owner")


async def main(folder: str) -> None:
    """Run both nodes until the packet is home."""
    x, y = load_breast_cancer(return_X_y=True)  # your data, wherever they come from
    x = (x - x.mean(0)) / x.std(0)
    mine = NodeData.of(SkillData.of("diagnosis", x[100:], y[100:]))

    works = CoreConfig(CLINIC, (Role.DATA, Role.COMPUTE), mine.adverts(), ComputeAdvert(1000.0))
    clinic = LiveNode(works, mine, (LinkAdvert(OWNER, 1e9, 0.001),))
    owner = LiveNode(CoreConfig(OWNER, (Role.OWNER,)), links=(LinkAdvert(CLINIC, 1e9, 0.001),))
    layout = Layout([clinic, owner], Path(folder))  # keys, addresses, a directory for each
    specs = layout.write()
    packet = make_packet(
        layout.identities[OWNER],
        Architecture("mlp", {"features": 30, "hidden": [16], "classes": 2}),
        (Target("diagnosis", 0.9, verifier="any"),),
        created=time.time(),
        method=Plugin("sequential", {"epochs": 10}),
        policy=Plugin("least-visited"),
        budget=Cost(hops=8, seconds=60, bytes=1e9, joules=1e9),
        reference={"diagnosis": (x[:100], y[:100])},
    )
    async with Daemon(specs[CLINIC]), Daemon(specs[OWNER]) as home:
        await home.submit(*packet)
        async for back in home.delivered():
            for skill in back.header.skills:
                print(f"{skill.skill}: {skill.metric} {skill.value:.2f} on {skill.n} rows")
            print("requirement met:", back.header.requirement_met)
            break
    layout.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(place))
