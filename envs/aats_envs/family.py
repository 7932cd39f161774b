"""A family of networks: the distribution that `draw` draws from. Plain data, JSON in and out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from aats.bounds import Between
from aats.config.read import read
from aats.errors import ScenarioError

Share = Annotated[float, Between(0, 1)]
NotNegative = Annotated[float, Between(0)]
Positive = Annotated[float, Between(0, open_low=True)]
Range = tuple[Positive, Positive]
"""From low to high. Drawn log-uniformly: what may differ by a factor."""
Shares = tuple[Share, Share]
Bounds = tuple[NotNegative, NotNegative]
"""From low to high. Drawn uniformly."""
Counts = tuple[Annotated[int, Between(1)], Annotated[int, Between(1)]]
"""From low to high, both included. Drawn uniformly."""

MIN_NODES, MAX_NODES = 8, 256


@dataclass(frozen=True, slots=True)
class Task:
    """What a packet is to learn."""

    fits: tuple[str, ...] = ("digits",)
    """The constants of learning (`aats.learning.fit`): the packet's skills take them in turn."""
    classes: Counts = (10, 10)
    """Of each skill."""
    skills: Counts = (1, 1)
    """Of the packet."""
    model_bytes: Range = (8e3, 12e3)
    """Of the model and what travels with it, all skills together."""
    model_share: Annotated[float, Between(0, 1, open_low=True)] = 1.0
    """The model itself, of those bytes: the states of a method that travel too are not probed."""
    row_bytes: Range = (264, 264)
    """Of one trusted row."""
    reference: Counts = (64, 64)
    """Trusted rows of each skill."""
    test: Counts = (150, 250)
    """Rows of an MPVU's test set, of each skill."""
    rows: Range = (30, 120)
    """Mean training rows of a skill at a node."""
    supply: Annotated[int, Between(0)] = 0
    """Rows of one class that the whole network has at most; 0: any number."""
    epochs: Positive = 2.0
    """Passes over a node's rows at a visit."""
    average_last: Annotated[int, Between(0)] = 0
    """As of the sequential method, for models that learn by rows: the mean of the weights after
    the last visits is what counts. Four at most."""


@dataclass(frozen=True, slots=True)
class Family:
    """A distribution over networks and the packets that live on them.

    Raises:
        ScenarioError: If a range is upside down, or nodes do not suffice.
    """

    seed: Annotated[int, Between(0)] = 0
    """Of the pool of layouts."""
    graphs: tuple[str, ...] = ("random-geometric", "barabasi-albert", "watts-strogatz")
    """Generators of `aats.topology.generate`, each as likely."""
    zoo: str = ""
    """A folder, or a .tar.gz, of GraphML files: used in place of `graphs` if given."""
    nodes: Counts = (16, 16)
    """N, 8-256; of GraphML files those are used that have so many in their largest part."""
    mpvus: Counts = (1, 2)
    data_share: Shares = (0.8, 1.0)
    """Nodes that hold data, of those that are neither home nor MPVU; the others pass packets on."""
    skill_share: Shares = (1.0, 1.0)
    """Skills of the packet that a data node holds; at least one."""
    tasks: tuple[Task, ...] = (Task(),)
    """Each as likely."""

    alpha: Range = (0.3, 0.3)
    """Concentration of the Dirichlet draw of a node's classes; small is uneven."""
    shards: Share = 0.0
    """Share of networks whose nodes hold but `shard_classes` classes of a skill instead."""
    shard_classes: Counts = (2, 2)
    volume_spread: NotNegative = 0.6
    """Standard deviation of the logarithm of the nodes' rows."""

    bad: Shares = (0.25, 0.25)
    """Data nodes with wrong labels."""
    wrong: Shares = (0.5, 0.9)
    """Labels that are wrong at a bad node."""
    lures: Share = 0.0
    """Share of networks whose bad nodes are larger and faster than the others."""
    honest: Shares = (0.0, 0.5)
    """Bad nodes that advertise their true quality; the others know of no fault."""
    liars: Shares = (0.0, 0.0)
    """Data nodes that advertise an even histogram and `lie` times the rows they have."""
    lie: Range = (3.0, 10.0)
    stale: Shares = (0.0, 0.2)
    """Data nodes whose advert tells of an earlier part of their rows."""
    withheld: Shares = (0.0, 0.2)
    """Data nodes that do not advertise label histograms."""
    refused: Shares = (0.0, 0.2)
    """Data nodes that answer no probes."""
    age_s: NotNegative = 86_400.0
    """Mean age of a node's newest sample."""

    samples_per_s: Range = (100.0, 3000.0)
    """Speed of a node's training."""
    speed_error: NotNegative = 0.0
    """Standard deviation of the logarithm of advertised over true speed."""
    watts: Range = (20.0, 200.0)
    """Power while training."""
    queue: NotNegative = 0.2
    """Mean visits that wait at a node."""
    bandwidth_mbps: Range = (20.0, 1000.0)
    """Of a network's links, before their spread."""
    latency_ms: Range = (1.0, 20.0)
    """One way; of a network's links, before their spread."""
    link_spread: NotNegative = 3.0
    """As `spread` of a scenario's `[links]`."""
    loss: Share = 0.0
    """Of control messages."""
    outages: Shares = (0.0, 0.0)
    """Nodes, home excepted, that are out of reach for a while."""

    target: Shares = (0.45, 0.8)
    """Way from chance to the best that a model comes to which is led round the good nodes."""
    budget: Range = (3.0, 10.0)
    """Links allowed, as a multiple of what that model needs to the target, led by short ways."""
    bounded: Share = 0.0
    """Share of packets whose seconds, bytes and joules are bounded too, twice as generously."""
    randomised: NotNegative = 0.0
    """Each constant of learning is multiplied by exp(N(0, randomised))."""
    novelty: Bounds = (0.0, 0.0)
    """Added to how much less a visit brings for each earlier one to the same node. The fitted laws
    know classes and not rows: of rows seen before, real models learn less than they say."""
    harm: Range = (1.0, 1.0)
    """Factor on the harm that wrong labels do: the same wrong ones, seen again, do more."""

    def __post_init__(self) -> None:
        tables: list[tuple[str, Any]] = [("family", self)]
        tables += [(f"family.tasks[{i}]", task) for i, task in enumerate(self.tasks)]
        for place, table in tables:
            for name in table.__dataclass_fields__:
                value = getattr(table, name)
                if isinstance(value, tuple) and len(value) == 2 and all(
                    isinstance(end, int | float) for end in value
                ) and value[0] > value[1]:  # fmt: skip
                    raise ScenarioError(f"{place}.{name}", value, "low comes before high")
        low, high = self.nodes
        if not MIN_NODES <= low <= high <= MAX_NODES:
            allowed = f"networks have {MIN_NODES}-{MAX_NODES} nodes"
            raise ScenarioError("family.nodes", self.nodes, allowed)
        if self.mpvus[1] > low - 3:
            allowed = f"must leave two data nodes of {low}"
            raise ScenarioError("family.mpvus", self.mpvus, allowed)
        if not all(task.fits for task in self.tasks):
            raise ScenarioError("family.tasks", "", "each needs at least one fit")
        if not self.tasks or not (self.graphs or self.zoo):
            raise ScenarioError("family", "", "needs at least one task, and a graph or a zoo")

    def to_dict(self) -> dict[str, Any]:
        """Return the family as JSON values."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Family:
        """Return the family of JSON values; what is not named has its default.

        Raises:
            ScenarioError: Naming a key that is unknown, or a value that is out of range.
        """
        return read(cls, values, "family")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
