"""Small simulated networks without tensors worth the name: for tests of cores and policies.

The work is a tally: each visit to a data node raises the packet's skill by a share of what is
missing, each verdict reads it off. So a packet's whole journey takes milliseconds, and needs
neither data nor torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aats.advert import ComputeAdvert, DataAdvert, NodePolicy, Role
from aats.errors import ModelError
from aats.identity import Identity
from aats.ids import NodeId, new_packet_id
from aats.messages import ProbeReply, ProbeScores, Samples
from aats.node.core import NodeCore
from aats.node.desk import CoreConfig
from aats.node.pace import Pace
from aats.node.tasks import (
    AdoptResult,
    BatchTask,
    ContributeResult,
    ContributeTask,
    MergeResult,
    MergeTask,
    ProbeResult,
    ProbeTask,
    Result,
    Task,
    VerifyResult,
    VerifyTask,
    VisitResult,
    VisitTask,
)
from aats.packet import (
    Architecture,
    Cost,
    EstimateSource,
    Header,
    Mandate,
    Owner,
    PacketKind,
    Plugin,
    SkillEstimate,
    Target,
)
from aats.payload import MODEL, Payload, pack
from aats.routing.agent import Agent
from aats.routing.policy import RoutePolicy
from aats.routing.rendezvous import Rendezvous, no_rendezvous
from aats.sim.link import LinkSpec
from aats.sim.network import Settings, SimulatedWorld
from aats.sim.node import NodeParts
from aats.sim.talk import Work
from aats.wire import sign_mandate

SKILL = "tally"
SHARE = 0.4
"""Of what is missing, that a visit adds."""
SAMPLES = 100
"""Of each data node."""
Pair = tuple[int, int]


def line(n: int) -> list[Pair]:
    """Return the links of a line of `n` nodes."""
    return [(i, i + 1) for i in range(n - 1)]


def ring(n: int) -> list[Pair]:
    """Return the links of a ring."""
    return [*line(n), (0, n - 1)]


def star(n: int) -> list[Pair]:
    """Return the links of a star; node 1 is its middle."""
    return [(1, i) for i in range(n) if i != 1]


def tree(n: int) -> list[Pair]:
    """Return the links of a binary tree."""
    return [((i - 1) // 2, i) for i in range(1, n)]


def mesh(n: int) -> list[Pair]:
    """Return a link between any two nodes."""
    return [(i, j) for i in range(n) for j in range(i)]


SHAPES: dict[str, Callable[[int], list[Pair]]] = {
    "line": line, "ring": ring, "star": star, "tree": tree, "mesh": mesh,
}  # fmt: skip


def names(n: int) -> list[NodeId]:
    """Return the names of `n` nodes: n0, n1, ..."""
    return [NodeId(f"n{i}") for i in range(n)]


class TallyWorker:
    """Does a node's tasks on the tally: no data, no training."""

    def __init__(self, node: NodeId) -> None:
        self._node = node

    def __call__(self, task: Task, payload: Payload, others: Sequence[Payload] = ()) -> Work:
        """Do a task; see `aats.sim.node.Worker`."""
        match task:
            case MergeTask():
                return self._merge(task.header, payload, others)
            case VisitTask(header=header):
                return self._visit(header, payload)
            case VerifyTask(header=header):
                value = float(_tally(payload)[0])
                return Work(VerifyResult((self._estimate(header, value, EstimateSource.MPVU),)))
            case ProbeTask(ask=ask):
                asked = Payload(ask.manifest, memoryview(ask.tensors))
                value = float(_tally(asked if ask.tensors else payload)[0])
                scores = ProbeScores(SHARE * (1 - value), 0.5, 1 - value, 1.0, 32)
                return Work(ProbeResult(ProbeReply(scores)))
            case BatchTask():
                batch = pack({"x": np.zeros(32, np.float32)})
                return Work(ProbeResult(ProbeReply(None, batch.manifest, bytes(batch.arena))))
            case ContributeTask(purpose=purpose, incarnation=incarnation):
                return Work(ContributeResult(Samples(purpose, incarnation)))
            case _:
                return Work(AdoptResult(True))

    def _visit(self, header: Header, payload: Payload) -> Work:
        before = _tally(payload)
        after = before.copy()
        after[0] += SHARE * (1 - before[0])
        after[1] += 1
        new = pack({f"{MODEL}tally": after, f"{MODEL}frozen": _frozen(payload)})
        version = new.manifest.version(MODEL)
        estimate = self._estimate(
            replace(header, version=version), float(after[0]), EstimateSource.REFERENCE
        )
        result: Result = VisitResult(
            manifest=new.manifest,
            estimates=(estimate,),
            action="train",
            gain=float(after[0] - before[0]),
            steps=1,
            samples=SAMPLES,
            trained={"visits": float(after[1])},
        )
        return Work(result, new)

    def _merge(self, header: Header, payload: Payload, others: Sequence[Payload]) -> Work:
        """Make the tally the children's mean, and the count of visits the sum of theirs."""
        before, tallies = _tally(payload), [_tally(other) for other in others]
        after = before.copy()
        after[0] = sum(tally[0] for tally in tallies) / len(tallies)
        after[1] = before[1] + sum(tally[1] - before[1] for tally in tallies)
        new = pack({f"{MODEL}tally": after, f"{MODEL}frozen": _frozen(payload)})
        merged = replace(header, version=new.manifest.version(MODEL))
        estimate = self._estimate(merged, float(after[0]), EstimateSource.REFERENCE)
        return Work(MergeResult(new.manifest, (estimate,)), new)

    def _estimate(self, header: Header, value: float, source: EstimateSource) -> SkillEstimate:
        low, high = max(0.0, value - 0.01), min(1.0, value + 0.01)
        version = header.version
        return SkillEstimate(SKILL, "accuracy", value, low, high, 100, self._node, source, version)


def _tally(payload: Payload) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    arrays = payload.arrays(f"{MODEL}tally")
    if not arrays:
        raise ModelError("no tally")
    return np.array(arrays[f"{MODEL}tally"], np.float32)


def _frozen(payload: Payload) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(payload.arrays(f"{MODEL}frozen")[f"{MODEL}frozen"], np.float32)


@dataclass(frozen=True, slots=True)
class SmallWorld:
    """A simulated network with one owner (n0), one MPVU (the last node) and data elsewhere."""

    world: SimulatedWorld
    nodes: tuple[NodeId, ...]
    identities: Mapping[NodeId, Identity] = field(repr=False)

    @property
    def owner(self) -> NodeId:
        """The node packets are submitted at."""
        return self.nodes[0]

    @property
    def mpvu(self) -> NodeId:
        """The node that verifies."""
        return self.nodes[-1]


def small_world(
    pairs: Iterable[Pair],
    *,
    policies: Callable[[Plugin], RoutePolicy],
    agents: Callable[[str], Agent],
    rendezvous: Callable[[Plugin], Rendezvous] = no_rendezvous,
    seed: int = 0,
    link: LinkSpec | None = None,
    settings: Settings = Settings(),
    transit: Iterable[int] = (),
    sink: Callable[[str], None] | None = None,
    tune: Callable[[CoreConfig], CoreConfig] = lambda config: config,
) -> SmallWorld:
    """Return a network of `pairs` of node numbers, ready to start.

    Args:
        pairs: Links.
        policies: Returns the policy a packet names.
        agents: Returns the agent for a packet's kind.
        rendezvous: Returns the rendezvous a packet names.
        seed: Of identities and links.
        link: Figures of every link (its ends do not count).
        settings: How fast a break is noticed.
        transit: Nodes that only pass packets on.
        sink: Takes the trace; None gathers it in `world.lines`.
        tune: Changes a node's settings.
    """
    links = list(pairs)
    count = 1 + max(max(pair) for pair in links)
    nodes = names(count)
    identities = {n: Identity.from_seed(n, f"small world {seed}".encode()) for n in nodes}
    keys = {n: identity.public_key for n, identity in identities.items()}
    only_pass = set(transit)

    def config(i: int) -> CoreConfig:
        role = (
            Role.OWNER if i == 0 else Role.MPVU if i == count - 1
            else Role.TRANSIT if i in only_pass else Role.DATA
        )  # fmt: skip
        data = (DataAdvert(SKILL, "schema", SAMPLES),) if role is Role.DATA else ()
        return tune(
            CoreConfig(
                node=nodes[i],
                roles=(role, Role.COMPUTE) if role is Role.DATA else (role,),
                data=data,
                compute=ComputeAdvert(samples_per_s=100.0, joules_per_sample=0.01),
                policy=NodePolicy(contributes_to=(nodes[-1],) if data else (), streams=True),
                known_keys=keys,
            )
        )

    def parts(i: int) -> NodeParts:
        node, settled = nodes[i], config(i)
        return NodeParts(
            node,
            lambda: NodeCore(settled, identities[node], policies, agents, rendezvous),
            lambda: TallyWorker(node),
            Pace(settled.compute.samples_per_s, settled.compute.joules_per_sample),
        )

    figures = link or LinkSpec(NodeId("a"), NodeId("b"), 10e6, 0.02)
    world = SimulatedWorld(
        [parts(i) for i in range(count)],
        [replace(figures, a=nodes[i], b=nodes[j]) for i, j in links],
        seed=seed,
        sink=sink,
        settings=settings,
    )
    return SmallWorld(world, tuple(nodes), identities)


def tally_packet(
    small: SmallWorld,
    *,
    seed: int = 0,
    target: float = 0.8,
    policy: str = "random",
    rendezvous: Plugin | None = None,
    budget: Cost = Cost(60, float("inf"), float("inf"), float("inf")),
    deadline: float = float("inf"),
    frozen: int = 1000,
    created: float = 0.0,
) -> tuple[Header, Payload]:
    """Return a packet that wants the tally at `target`, and its payload.

    Args:
        small: Where it will be submitted.
        seed: Of its id and its decisions.
        target: The skill wanted.
        policy: Name of its policy.
        rendezvous: How it works at several nodes at one moment, if it does.
        budget: What it may spend.
        deadline: When it goes home.
        frozen: Length of a float32 tensor that no visit changes.
        created: Seconds.
    """
    payload = pack(
        {
            f"{MODEL}tally": np.zeros(2, np.float32),
            f"{MODEL}frozen": np.full(frozen, seed, np.float32),
        }
    )
    owner = small.identities[small.owner]
    mandate = Mandate(
        id=new_packet_id(round(created * 1000), random.Random(f"packet/{seed}")),
        kind=PacketKind.TRAIN,
        owner=Owner(owner.node, owner.public_key),
        created=created,
        deadline=deadline,
        requirement=(Target(SKILL, target),),
        budget=budget,
        architecture=Architecture("tally"),
        method=Plugin("tally"),
        policy=Plugin(policy),
        rendezvous=rendezvous,
        seed=seed,
        label="tally",
    )
    version = payload.manifest.version(MODEL)
    header = Header(sign_mandate(mandate, owner), version=version, base=version,
                    manifest=payload.manifest)  # fmt: skip
    return header, payload
