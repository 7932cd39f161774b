"""A scenario: one TOML file that the live and the simulated world read.

Each table of the file is one dataclass here, each key one field; the docstring under a field
is its reference. `aats.config.load` reads the file, `aats.config.check` judges what it means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from aats.advert import ProbeMode, Role
from aats.bounds import Between
from aats.ids import NodeId
from aats.packet import METHOD, POLICY, Architecture, Cost, PacketKind, Plugin, Target
from aats.topology.network import Edge, LinkDefaults, Network

Share = Annotated[float, Between(0, 1)]
Positive = Annotated[float, Between(0, open_low=True)]
NotNegative = Annotated[float, Between(0)]
Limit = Annotated[float, Between(0, inf, open_low=True)]
"""Above 0; infinity is none."""
MEGABYTES = 1e12
"""More would not fit the 64 bits of a count of bytes."""
Count = Annotated[int, Between(0)]
AtLeastOne = Annotated[int, Between(1)]


@dataclass(frozen=True, slots=True)
class About:
    """`[scenario]`: what this is, and what all randomness comes from."""

    name: str = ""
    """For people and run ids, as a node id is written; the file's or its folder's if empty."""
    description: str = ""
    seed: Count = 0
    """Of everything drawn at random: topology, links, partition, models, policies, faults."""
    limit_s: Positive = 3600.0
    """Seconds (virtual ones in the simulated world) after which a run ends, whatever is still on
    its way. The default is an hour: far above any example, far below a forgotten process."""


@dataclass(frozen=True, slots=True)
class TopologyConfig:
    """`[topology]`: who is joined to whom. One of `generator`, `edges`, `file`.

    In a loaded scenario it is resolved: `names` and `edges` with all their figures.
    """

    generator: Plugin | None = None
    """A generator of `aats.topology.generate` with its parameters, e.g.
    `{ name = "ring", nodes = 8 }`."""
    names: tuple[NodeId, ...] = ()
    """The nodes in order: a generator's (n0, n1, ... if empty), or those of `edges` and any that
    have no link."""
    edges: tuple[Edge, ...] = ()
    """Pairs `["A", "B"]`, or `["A", "B", { latency_ms = 9, bandwidth_mbps = 50, loss = 0.01 }]`."""
    file: str = ""
    """A GraphML file (Internet Topology Zoo files load as they are), relative to the scenario."""
    component: Literal["all", "largest"] = "all"
    """Of a file with parts that do not hang together: keep all, or the largest only."""


@dataclass(frozen=True, slots=True)
class HeldData:
    """`[nodes.<name>.data.<skill>]`: what is special about one node's share of a skill's data."""

    share: NotNegative = 1.0
    """Weight against the other holders where the partitioner lets sizes vary; 0: holds none."""
    samples: Count = 0
    """Rows, training and held-out together; 0: by `share`, or the whole group."""
    group: str = ""
    """Takes the rows of this site of the source (a hospital) instead of a part of the partition."""
    mix: tuple[NotNegative, ...] = ()
    """Relative weight of each class; as the partitioner has it if empty."""
    wrong_labels: Share = 0.0
    """Share of labels replaced by another class."""
    drift: NotNegative = 0.0
    """How far the features have moved, in their own (scaled) unit."""
    quality: Share = 1.0
    """What the node claims of its data. The default is a node that knows of no fault in them."""
    freshness_s: NotNegative = 0.0
    """Age of the newest sample in seconds."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """`[node]` for all nodes, `[nodes.<name>]` for one: what it offers and what it allows."""

    roles: tuple[Role, ...] = (Role.DATA, Role.COMPUTE)
    """Holds data; offers compute; verifies (mpvu); submits packets (owner); only passes packets
    on (transit)."""
    samples_per_s: NotNegative = 1000.0
    """Training samples per second of the reference step: the speed of a node, simulated or live;
    one that runs as fast as it can (`live.shaping`) advertises this until it has measured its own.
    0: offers no compute."""
    memory_mb: Annotated[float, Between(0, MEGABYTES, open_low=True)] = 4096.0
    """Advertised memory, megabytes (10^6)."""
    joules_per_sample: NotNegative = 0.05
    """Energy of one training sample. The default is 50 W at 1000 samples per second."""
    probe: ProbeMode = ProbeMode.SCORE
    """What a packet may learn before a visit."""
    show_labels: bool = True
    """Advertise the label histogram."""
    contributes_to: tuple[NodeId, ...] = ()
    """MPVUs to which the node gives samples for a test set."""
    streams: bool = False
    """Work along with packets that are elsewhere (split learning): what a method sends, say
    activations of this node's rows and their labels, then leaves it."""
    delegate: NodeId = NodeId("")
    """The compute node trusted to work on this node's data; "" for itself."""
    withdrawn: bool = False
    """It has taken its data back: they are dealt out as ever, and it offers none of them."""
    max_packet_mb: Annotated[float, Between(0, MEGABYTES, open_low=True)] = 4096.0
    """Refuses larger packets."""
    label: str = ""
    """For people: a hospital, a city."""
    lat: Annotated[float, Between(-90, 90)] | None = None
    """Degrees north; the topology's coordinate if unset."""
    lon: Annotated[float, Between(-180, 180)] | None = None
    """Degrees east."""
    position: tuple[Share, Share] | None = None
    """Place in the unit square, for drawing; the topology's if unset."""
    data: dict[str, HeldData] = field(default_factory=dict)
    """By skill."""


@dataclass(frozen=True, slots=True)
class ViewConfig:
    """`[data.skills.<skill>.views.<view>]`: one node's view of the samples all views share."""

    node: NodeId
    """Who sees the samples so."""
    transform: Plugin = Plugin("identity")
    """What it sees: a transform of `aats.learning.views`, e.g. `{ name = "noise", sd = 2.0 }`."""
    labels: bool = True
    """Whether it knows the labels."""
    missing: Share = 0.0
    """Share of the samples that it has no row of."""


@dataclass(frozen=True, slots=True)
class SkillConfig:
    """`[data.skills.<skill>]`: where a skill's data come from and how they are spread."""

    source: Plugin
    """A source of `aats.learning.datasets` or an `aats.data` plug-in, with its parameters."""
    partition: Plugin = Plugin("iid")
    """A partitioner of `aats.learning.partition`, e.g. `{ name = "dirichlet", alpha = 0.3 }`."""
    nodes: tuple[NodeId, ...] = ()
    """Who holds this skill's data; every node with the role data if empty."""
    held_out: Annotated[float, Between(0, 0.9)] = 0.2
    """Share of each class that a node keeps for judging a visit and never trains on."""
    reference: Count = 64
    """Samples set aside for the small trusted set that a packet carries."""
    test: Annotated[float, Between(0, 0.9)] = 0.2
    """Share of the rows that no node gets, for the independent measurement in the report; a
    source that has its own test set uses that."""
    views: dict[str, ViewConfig] = field(default_factory=dict)
    """Instead of a partition: every node listed here sees all samples, each by its own view."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """`[data]`: the data of the whole scenario."""

    root: str = ""
    """Folder with the files of sources that need some, relative to the scenario; the environment
    variable AATS_DATA if empty."""
    skills: dict[str, SkillConfig] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Budget:
    """`budget` of a packet: what it may spend. Unset: as much as needed, hops excepted."""

    hops: Limit = 64.0
    """Links travelled. Bounded by default, so that every packet comes home."""
    seconds: Limit = inf
    bytes: Limit = inf
    joules: Limit = inf

    @property
    def cost(self) -> Cost:
        """The same as the header has it."""
        return Cost(self.hops, self.seconds, self.bytes, self.joules)


@dataclass(frozen=True, slots=True)
class PacketConfig:
    """`[[packets]]`: one AI packet. It starts at its owner, and nothing says where it goes."""

    name: str
    """For people, the command line and file names: written as a node id, unique."""
    owner: NodeId
    """The node it is submitted at and comes home to."""
    requirement: tuple[Target, ...]
    """Targets, e.g. `[{ skill = "diagnosis", value = 0.9 }]`; metric and verifier have defaults."""
    model: Architecture
    """A builder of `aats.models` and its configuration, e.g. `{ name = "mlp", hidden = [32] }`."""
    kind: PacketKind = PacketKind.TRAIN
    method: Plugin = METHOD
    """What a visit does, with its parameters."""
    policy: Plugin = POLICY
    """How it picks its next stop, with its parameters."""
    rendezvous: Plugin | None = None
    """How it works at several nodes at one moment, with its parameters; a packet without one
    visits one after the other."""
    budget: Budget = Budget()
    deadline_s: Limit = inf
    """Seconds after submission when it goes home whatever it has."""
    after_s: NotNegative = 0.0
    """Seconds after the start of the run when it is submitted."""
    weights: str = ""
    """A `.safetensors` file of an earlier run that it starts from, relative to the scenario; a
    fresh model if empty."""
    seed: Count = 0
    """Of everything random about it, together with the scenario's; 0: by its place in the file."""


@dataclass(frozen=True, slots=True)
class MpvuConfig:
    """`[mpvu]`: how verification units work."""

    query_budget: AtLeastOne = 200
    """Verdicts one MPVU gives one packet: each verdict leaks a little of the test set."""
    min_contributors: AtLeastOne = 1
    """Nodes that must have contributed to a skill's test set before it is used."""
    contribution: AtLeastOne = 64
    """Samples per skill that a node gives to each MPVU it contributes to."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """`[training]`: limits of one task in its worker process."""

    timeout_s: Positive = 60.0
    """A task that takes longer is stopped and counts as failed."""
    memory_mb: Annotated[float, Between(0, MEGABYTES)] = 0.0
    """Address space of the worker, megabytes; 0: no limit."""


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """`[live]`: how node daemons are run on this machine."""

    host: str = "127.0.0.1"
    """Address the daemons bind. Loopback unless you mean it."""
    base_port: Annotated[int, Between(0, 65_000)] = 0
    """Node i binds control on base_port + 2 i and bulk on the next one; 0: free ports."""
    nodes_per_process: AtLeastOne = 1
    """Nodes sharing one OS process; more saves memory, one isolates crashes."""
    shaping: bool = True
    """Let links and tasks take as long as the figures say, where this machine is faster."""
    custody: Literal["process", "host"] = "process"
    """What a packet in custody survives: the death of the process, or of the host (fsync)."""
    insecure: bool = False
    """No keys, no encryption between nodes. For measurements on one machine only."""


@dataclass(frozen=True, slots=True)
class SimConfig:
    """`[sim]`: what a simulated network does to control messages beside its links' figures."""

    loss: Share = 0.0
    """Share lost, on top of each link's own loss."""
    duplication: Share = 0.0
    """Share delivered twice."""
    reorder: Share = 0.0
    """Share overtaken by later ones."""
    jitter_ms: NotNegative = 0.0
    """Greatest random extra delay, milliseconds."""


class FaultKind(StrEnum):
    """What goes wrong."""

    CRASH = "crash"
    """The node dies at once (kill -9), its memory with it."""
    RESTART = "restart"
    """A crashed node starts again on what its store holds."""
    PARTITION = "partition"
    """No link between `nodes` and the rest."""
    LOSS = "loss"
    """Links lose `loss` of their control messages; 1 cuts them."""


@dataclass(frozen=True, slots=True)
class FaultConfig:
    """`[[faults]]`: one thing that goes wrong, at a time or at an event."""

    kind: FaultKind
    after_s: NotNegative = 0.0
    """Seconds after the start of the run, or after the event that `on` names."""
    on: str = ""
    """A trace event's name, e.g. "visit.started"; "" for a time."""
    count: AtLeastOne = 1
    """The how-manieth such event (of `node`, if one is named)."""
    node: NodeId = NodeId("")
    """Of a crash or restart; "": the node where the event happened."""
    nodes: tuple[NodeId, ...] = ()
    """One side of a partition."""
    link: tuple[NodeId, NodeId] | None = None
    """Of a loss; every link if unset."""
    loss: Share = 1.0
    for_s: Limit = inf
    """Seconds until it is over: a crashed node is started again, links work again."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A checked scenario: every default filled in, every node named, the network built."""

    scenario: About = About()
    topology: TopologyConfig = TopologyConfig()
    links: LinkDefaults = LinkDefaults()
    nodes: dict[NodeId, NodeConfig] = field(default_factory=dict)
    """Every node of the network, in its order, `[node]` and `[nodes.<name>]` merged."""
    data: DataConfig = DataConfig()
    packets: tuple[PacketConfig, ...] = ()
    mpvu: MpvuConfig = MpvuConfig()
    training: TrainingConfig = TrainingConfig()
    live: LiveConfig = LiveConfig()
    sim: SimConfig = SimConfig()
    faults: tuple[FaultConfig, ...] = ()
    network: Network = Network()
    """Built from `topology` and `links`; not a table of the file."""
    folder: Path = field(default=Path(), compare=False)
    """Where relative paths in the file start; not a table of the file."""

    @property
    def name(self) -> str:
        """The scenario's name."""
        return self.scenario.name

    @property
    def seed(self) -> int:
        """The scenario's seed."""
        return self.scenario.seed

    def with_role(self, role: Role) -> tuple[NodeId, ...]:
        """Return the nodes that have a role, in order."""
        return tuple(name for name, node in self.nodes.items() if role in node.roles)

    def holders(self, skill: str) -> tuple[NodeId, ...]:
        """Return the nodes that hold data of a skill, in order."""
        config = self.data.skills[skill]
        seeing = tuple(view.node for view in config.views.values())
        listed = seeing or config.nodes or self.with_role(Role.DATA)
        return tuple(
            name
            for name in self.nodes
            if name in listed and self.nodes[name].data.get(skill, HeldData()).share > 0
        )

    def notes(self) -> tuple[str, ...]:
        """Return what is allowed and yet worth a word to a person."""
        parts = self.network.components()
        if len(parts) < 2:
            return ()
        sizes = ", ".join(str(len(part)) for part in parts)
        return (f"the network is in {len(parts)} parts of {sizes} nodes; none reaches another",)

    def to_toml(self) -> str:
        """Return the resolved scenario as TOML: loading it gives an equal scenario.

        The topology is written out as edges with figures, so the text needs no other file.
        """
        from aats.config.write import to_toml

        return to_toml(self)

    def digest(self) -> str:
        """Return the BLAKE3 (64 hex digits) of the resolved scenario, whatever machine it is on."""
        from aats.config.write import digest

        return digest(self)
