"""The file of one node of a network that spans machines: `node.toml` in the node's directory.

Its tables `[node]`, `[data]`, `[mpvu]` and `[training]` are those of a scenario, and what the
node is made of is composed from them as in a launch. `[[packets]]` stand in files of their own,
which the owner hands in when it likes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from aats.advert import Role
from aats.bounds import Between
from aats.config.check import check_data, check_packets, known_name
from aats.config.load import armed, rooted_data
from aats.config.read import read
from aats.config.scenario import (
    About,
    Count,
    DataConfig,
    MpvuConfig,
    NodeConfig,
    NotNegative,
    PacketConfig,
    Positive,
    Scenario,
    Share,
    TrainingConfig,
)
from aats.errors import ScenarioError, nearest
from aats.ids import NodeId
from aats.topology.network import Link, Network, Site

FILE = "node.toml"
PORT = 7100
"""Of the control lane, unless the file says otherwise; the bulk lane has the next one."""


@dataclass(frozen=True, slots=True)
class NeighbourConfig:
    """`[neighbours.<name>]`: a node to connect to, which names this one as well. May be empty."""

    bandwidth_mbps: Positive = 100.0
    """Megabits per second that the link is advertised with."""
    latency_ms: NotNegative = 5.0
    """One way, milliseconds."""
    loss: Share = 0.0
    """Share of messages lost."""


@dataclass(frozen=True, slots=True)
class NodeFile:
    """One node, as its file has it."""

    name: NodeId
    """What the others call it."""
    listen: str = "127.0.0.1"
    """Address that it binds. Loopback unless you mean it."""
    port: Annotated[int, Between(1, 65_534)] = PORT
    """TCP port of the control lane; the bulk lane binds the next one."""
    address: str = ""
    """Host name or address by which the others reach it; `listen` if empty."""
    neighbours: dict[NodeId, NeighbourConfig] = field(default_factory=dict)
    """Whom it has a link to."""
    node: NodeConfig = NodeConfig()
    """As in a scenario."""
    data: DataConfig = DataConfig()
    """As in a scenario. A skill that names `nodes` is dealt out among them, the same on every
    machine with the same seed, and this node keeps its own part. A skill that names none is this
    node's alone: if it has the role data, every row, unless `reference` or `test` set some
    aside."""
    mpvu: MpvuConfig = MpvuConfig()
    training: TrainingConfig = TrainingConfig()
    custody: Literal["process", "host"] = "process"
    """What a packet in custody survives: the death of the process, or of the host (fsync)."""
    leave_s: NotNegative = 30.0
    """When it is told to stop: seconds to finish and hand on what is under way; 0: stop at once."""
    insecure: bool = False
    """No encryption and no authentication between nodes. All of them must agree."""
    seed: Count = 0
    """Of the deal of the data."""
    directory: str = ""
    """Where keys, store and logs are, relative to the file; the file's own folder if empty."""

    @property
    def folder(self) -> Path:
        """The node's directory, absolute once loaded."""
        return Path(self.directory)

    def scenario(self) -> Scenario:
        """Return the part of the network that this node knows, as a scenario without packets."""
        listed = {
            peer: NodeConfig()
            for skill in self.data.skills.values()
            for peer in (*skill.nodes, *(view.node for view in skill.views.values()))
        }
        links = tuple(
            Link(self.name, peer, link.bandwidth_mbps * 1e6, link.latency_ms / 1e3, link.loss)
            for peer, link in self.neighbours.items()
        )
        nodes = {**listed, self.name: self.node}
        sites = tuple(Site(name) for name in {**nodes, **self.neighbours})
        return Scenario(
            scenario=About(name=self.name, seed=self.seed),
            nodes=nodes,
            data=self.data,
            mpvu=self.mpvu,
            training=self.training,
            network=Network(sites, links),
            folder=self.folder,
        )


def load_node(path: Path, overrides: Mapping[str, Any] | None = None) -> NodeFile:
    """Return the checked node of a file, or of a directory with a `node.toml`.

    Args:
        path: The file or the directory.
        overrides: Values by key that go over the file's own.

    Raises:
        ScenarioError: If the file cannot be read or something in it is wrong.
    """
    file = path / FILE if path.is_dir() else path
    allowed = f"a node's directory or its file is wanted; make one with: aats node init {path}"
    place = f"{file}: "
    tables = {**_tables(file, "path", allowed), **(overrides or {})}
    known = [f.name for f in fields(NodeFile)]
    for key in tables:
        if key not in known:
            allowed = f"known keys are {', '.join(known)}"
            raise ScenarioError(str(file), key, allowed, nearest(key, known))
    node = read(NodeFile, tables, place)
    if not node.name:
        raise ScenarioError(f"{place}name", "", "1-64 letters, digits, '.', '_', '-' are wanted")
    if node.name in node.neighbours:
        raise ScenarioError(f"{place}neighbours", node.name, "a node is no neighbour of its own")
    for key in ("listen", "address"):
        value = getattr(node, key)
        if not value.isascii() or any(c in value for c in " /:"):
            raise ScenarioError(f"{place}{key}", value, "a host name or an IPv4 address is wanted")
    if not node.address and node.listen == "0.0.0.0":
        allowed = "must be given: the others cannot connect to 0.0.0.0"
        raise ScenarioError(f"{place}address", "", allowed)
    folder = (file.parent / Path(node.directory).expanduser()).resolve()
    data = node.data
    if Role.DATA in node.node.roles:
        data = replace(
            data,
            skills={
                name: _all_rows(skill, tables["data"]["skills"][name])
                for name, skill in data.skills.items()
            },
        )
    node = replace(node, directory=str(folder), data=rooted_data(data, file.parent))
    for skill in node.node.data:
        known_name(skill, node.data.skills, f"{place}node.data", "skills")
    check_data(node.scenario(), place)
    return node


def load_packets(path: Path, node: NodeFile) -> Scenario:
    """Return what a node knows of the network with the packets of a file, each checked.

    Args:
        path: A TOML file with `[[packets]]`, as they stand in a scenario; `owner` may be left out.
        node: Their owner.

    Raises:
        ScenarioError: If the file cannot be read or something in it is wrong.
    """
    tables = _tables(path, "PACKET", "a TOML file with [[packets]] is wanted")
    place = f"{path}: "
    for key in tables:
        if key != "packets":
            hint = nearest(key, ["packets"])
            raise ScenarioError(str(path), key, "only [[packets]] may stand here", hint)
    listed = tables.get("packets", [])
    if not isinstance(listed, list):
        raise ScenarioError(f"{place}packets", listed, "a list of tables, [[packets]], is wanted")
    packets = []
    for i, table in enumerate(listed):
        owned = {"owner": node.name, **table} if isinstance(table, dict) else table
        packet = read(PacketConfig, owned, f"{place}packets[{i}]")
        if packet.owner != node.name:
            allowed = f"a packet is handed in at its owner's node, and this one is {node.name}"
            raise ScenarioError(f"{place}packets[{i}].owner", packet.owner, allowed)
        if packet.after_s:
            allowed = "a packet that is handed in leaves at once: drop the key"
            raise ScenarioError(f"{place}packets[{i}].after_s", packet.after_s, allowed)
        packets.append(packet)
    scenario = replace(node.scenario(), packets=armed(tuple(packets), path.parent, place))
    check_packets(scenario, place)
    return scenario


def _all_rows(skill: Any, table: Mapping[str, Any]) -> Any:
    """Return the settings of a skill that is this node's alone: no rows set aside unasked."""
    if skill.nodes or skill.views:
        return skill
    return replace(skill, reference=table.get("reference", 0), test=table.get("test", 0.0))


def _tables(file: Path, place: str, allowed: str) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise ScenarioError(place, str(file), allowed) from missing
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ScenarioError(str(file), str(unreadable), "must be a readable text file") from None
    except tomllib.TOMLDecodeError as broken:
        raise ScenarioError(str(file), str(broken), "must be valid TOML") from broken
