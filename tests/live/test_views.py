"""Live nodes that see different views of the same samples learn together; one is killed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from aats.advert import ComputeAdvert, LinkAdvert, NodePolicy, Role
from aats.ids import NodeId
from aats.learning.datasets import digits
from aats.learning.views import View, spread_seen
from aats.learning.weights import initial_payload
from aats.ledger.record import check_chain
from aats.live import LiveNode, LiveWorld
from aats.node.desk import CoreConfig
from aats.node.fault import FaultPoint, Moment
from aats.packet import Architecture, Cost, Header, Plugin, Target
from aats.payload import Payload
from aats.roles.data import NodeData
from aats.roles.owner import make_packet

if TYPE_CHECKING:
    from conftest import Network

TIMES = {
    "settle_s": 0.2, "offer_timeout_s": 0.4, "avoid_s": 1.0, "retry_s": 0.1, "alive_s": 0.3,
    "silence_s": 2.0, "task_timeout_s": 20.0,
}  # fmt: skip
SKILL = "digits"
VIEWS = {
    "n0": View("labels", Plugin("nothing")),
    "n1": View("left", Plugin("occlude"), labels=False),
    "n2": View("noisy", Plugin("noise", {"sd": 0.3}), labels=False),
}
FOUND = spread_seen(SKILL, digits().take(np.arange(600)), VIEWS, reference=64)
MODEL = Architecture(
    "inl",
    {
        "classes": 10, "code": 8, "levels": 8,
        "views": {v: {"shape": [64], "hidden": [32]} for v in ("left", "noisy")},
    },
)  # fmt: skip
METHOD = Plugin("inl", {"epochs": 6, "batch_size": 32, "lr": 0.01, "s": 1e-3, "timeout_s": 5.0})


def triangle(deaths: dict[str, FaultPoint]) -> list[LiveNode]:
    """Return n0 (owner, labels), n1 and n2 (views), all joined."""
    names = [NodeId(name) for name in VIEWS]
    nodes = []
    for name in names:
        data = NodeData.of(FOUND.nodes[name])
        roles = (Role.DATA, Role.COMPUTE, *((Role.OWNER,) if name == "n0" else ()))
        core = CoreConfig(
            name, roles, data.adverts(), ComputeAdvert(1000.0), NodePolicy(streams=True), **TIMES
        )
        links = tuple(LinkAdvert(p, 1e9, 0.0005) for p in names if p != name)
        nodes.append(LiveNode(core, data, links, deaths=(deaths[name],) if name in deaths else ()))
    return nodes


def packet(world: LiveWorld, *, seed: int = 1) -> tuple[Header, Payload]:
    payload = initial_payload(MODEL, seed, {SKILL: FOUND.reference})
    return make_packet(
        world.identity(NodeId("n0")), MODEL, (Target(SKILL, 0.5, verifier="any"),),
        created=time.time(), method=METHOD, policy=Plugin("cycle"),
        rendezvous=Plugin("assemble", {"at_data": True}), budget=Cost(20, 1e6, 1e15, 1e15),
        payload=payload, seed=seed,
    )  # fmt: skip


def test_a_view_s_node_killed_in_mid_stream_is_done_without(network: Network) -> None:
    run = network.run(triangle({"n2": FaultPoint(Moment.SPEAKING, 0)}), make=packet)
    (delivered,) = run.delivered
    assert delivered.header.requirement_met
    check_chain(delivered.header.chain)
    delivered.payload().verify()
    assert [e["node"] for e in run.of("node.died")] == ["n2"]
    visits = run.of("visit.finished")
    assert "noisy" in visits[0]["note"]
    assert visits[0]["stream_bytes"] > 0
    told = delivered.header.trained
    assert 0 < told["kl.left"] < told["bits.left"] + 0.1
