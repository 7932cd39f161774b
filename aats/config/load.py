"""A scenario from its file: TOML, then `--set key=value`, then defaults, then the checks."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from aats.config.check import check
from aats.config.read import read
from aats.config.scenario import DataConfig, NodeConfig, PacketConfig, Scenario, TopologyConfig
from aats.config.trained import is_file, with_weights
from aats.errors import ScenarioError, nearest
from aats.ids import NodeId
from aats.packet import Plugin
from aats.topology.generate import generate, joined
from aats.topology.graphml import load_graphml, unique_ids
from aats.topology.network import Layout, Network, Site, fill
from aats.topology.place import positions

FILE = "scenario.toml"
_DERIVED = {"network", "folder"}


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Return the checked scenario of a file, or of a folder with a `scenario.toml`.

    Args:
        path: The file or the folder.
        overrides: `table.key=value` settings, value in TOML (a bare word is a string);
            `packets.0.budget.hops=9` reaches into a list, `packets.*.policy=random` into all
            its entries.

    Raises:
        ScenarioError: If the file cannot be read or something in it is wrong.
        InfeasibleError: If a requirement cannot be met on this network.
    """
    file = path / FILE if path.is_dir() else path
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        allowed = f"a scenario file or a folder with a {FILE} is wanted"
        raise ScenarioError("path", str(path), allowed) from missing
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ScenarioError(str(file), str(unreadable), "must be a readable text file") from None
    except tomllib.TOMLDecodeError as broken:
        raise ScenarioError(str(file), str(broken), "must be valid TOML") from broken
    for override in overrides:
        _apply(tables, override)
    name = file.parent.resolve().name if file.name == FILE else file.stem
    return build(tables, file=str(file), folder=file.parent, name=name)


def build(
    tables: Mapping[str, Any], *, file: str = "$", folder: Path = Path(), name: str = ""
) -> Scenario:
    """Return the checked scenario of parsed TOML tables.

    Args:
        tables: As `tomllib` returns them.
        file: What error messages call the file.
        folder: Where relative paths start.
        name: For a scenario that has no name of its own.
    """
    known = [f.name for f in fields(Scenario) if f.name not in _DERIVED] + ["node"]
    for key in tables:
        if key not in known:
            raise ScenarioError(file, key, f"known tables are {', '.join(known)}",
                                nearest(key, known))  # fmt: skip
    place = f"{file}: "
    plain = {k: v for k, v in tables.items() if k not in ("node", "nodes")}
    if "topology" not in plain:
        raise ScenarioError(f"{place}topology", None, "the table must be given")
    scenario = read(Scenario, plain, place)
    layout = _layout(scenario.topology, scenario.seed, folder, f"{place}topology")
    nodes = _placed(_nodes(tables, layout, place), layout)
    layout = fill(Layout(tuple(map(_site, nodes, nodes.values())), layout.edges),
                  scenario.links, scenario.seed)  # fmt: skip
    scenario = replace(
        scenario,
        scenario=replace(scenario.scenario, name=scenario.name or unique_ids([name])[0]),
        topology=TopologyConfig(names=tuple(nodes), edges=layout.edges),
        nodes=nodes,
        data=rooted_data(scenario.data, folder),
        packets=armed(scenario.packets, folder, place),
        network=Network.of(layout),
        folder=folder,
    )
    check(scenario, place)
    return scenario


def _layout(topology: TopologyConfig, seed: int, folder: Path, place: str) -> Layout:
    given = [k for k in ("generator", "edges", "file") if getattr(topology, k)]
    if len(given) > 1 or not (given or topology.names):
        allowed = "one of generator, edges, file must be given"
        raise ScenarioError(place, " and ".join(given) or None, allowed)
    if topology.file:
        return load_graphml(folder / topology.file, component=topology.component)
    if topology.generator:
        return generate(topology.generator, topology.names, seed, place=f"{place}.generator")
    return joined(topology.names, topology.edges, place=place)


def _nodes(tables: Mapping[str, Any], layout: Layout, place: str) -> dict[NodeId, NodeConfig]:
    """Return every node's settings: `[nodes.<name>]` over `[node]` over what the layout says."""
    common, special = tables.get("node", {}), tables.get("nodes", {})
    read(NodeConfig, common, f"{place}node")
    sites = {str(site.name): site for site in layout.sites}
    if not isinstance(special, dict):
        raise ScenarioError(f"{place}nodes", special, "a table for each node is wanted")
    for name in special:
        if name not in sites:
            allowed = f"known nodes are {', '.join(sites)}"
            raise ScenarioError(f"{place}nodes", name, allowed, nearest(name, sites))
        read(NodeConfig, special[name], f"{place}nodes.{name}")
    return {
        site.name: _settled(
            read(NodeConfig, _merged(common, special.get(name, {})), f"{place}nodes.{name}"), site
        )
        for name, site in sites.items()
    }


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    both = {k: _merged(low[k], v) if isinstance(v, dict) and k in low else v
            for k, v in high.items()}  # fmt: skip
    return {**low, **both}


def _settled(node: NodeConfig, site: Site) -> NodeConfig:
    """Return the settings with the site's place filled in and references to itself removed."""
    lat, lon = site.lat_lon or (None, None)
    return replace(
        node,
        label=node.label or site.label,
        lat=lat if node.lat is None else node.lat,
        lon=lon if node.lon is None else node.lon,
        contributes_to=tuple(n for n in node.contributes_to if n != site.name),
        delegate=NodeId("") if node.delegate == site.name else node.delegate,
    )


def _placed(nodes: dict[NodeId, NodeConfig], layout: Layout) -> dict[NodeId, NodeConfig]:
    """Return the settings with a drawing position each: its own, by coordinates, the layout's."""
    places = {
        name: (node.lat, node.lon) if node.lat is not None and node.lon is not None else None
        for name, node in nodes.items()
    }
    spots = (
        positions(places, layout.edges)
        if any(places.values())
        else {site.name: site.position for site in layout.sites}
    )
    return {
        name: replace(node, position=node.position or spots[name]) for name, node in nodes.items()
    }


def _site(name: NodeId, node: NodeConfig) -> Site:
    known = node.lat is not None and node.lon is not None
    return Site(
        name,
        node.label,
        node.position or (0.5, 0.5),
        (node.lat or 0.0, node.lon or 0.0) if known else None,
    )


def rooted_data(data: DataConfig, folder: Path) -> DataConfig:
    """Return the data table with every `root` absolute, wherever the process moves to."""

    def rooted(root: str) -> str:
        return str((folder / Path(root).expanduser()).resolve()) if root else ""

    skills = {
        name: replace(skill, source=Plugin(skill.source.name, {
            k: rooted(v) if k == "root" else v for k, v in {
                # A file of one's own lies beside the file that names it.
                **({"root": "."} if skill.source.name in _BESIDE and not data.root else {}),
                **skill.source.params,
            }.items()
        }))
        for name, skill in data.skills.items()
    }  # fmt: skip
    return replace(data, root=rooted(data.root), skills=skills)


def armed(packets: tuple[PacketConfig, ...], folder: Path, place: str) -> tuple[PacketConfig, ...]:
    """Return the packets, each with its policy's weights, and the path of its own absolute."""
    return tuple(
        replace(
            p,
            policy=with_weights(p.policy, folder, f"{place}packets[{i}].policy"),
            weights=str((folder / Path(p.weights).expanduser()).resolve()) if p.weights else "",
        )
        for i, p in enumerate(packets)
    )


def _apply(tables: dict[str, Any], override: str) -> None:
    """Carry out one `table.key=value` setting."""
    path, equals, text = override.partition("=")
    keys = [quoted or bare for quoted, bare in _KEY.findall(path.strip())]
    if not equals or not keys:
        raise ScenarioError("--set", override, "table.key=value is wanted")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    is_path = keys[-1] in PATHS or (keys[-1] == "policy" and is_file(str(value)))
    if is_path and isinstance(value, str) and value:
        # A path that is typed is relative to where it is typed, not to the scenario.
        value = str(Path(value).expanduser().resolve())
    _put(tables, keys, value, f"--set {path}")


PATHS = {"root", "file", "weights"}
"""Keys whose value is a path."""
_BESIDE = {"file", "text"}
"""Sources that read a person's own file, beside the scenario."""
_KEY = re.compile(r'"([^"]+)"|([^."\s]+)')


def _put(table: Any, keys: Sequence[str], value: Any, place: str) -> None:
    key, rest = keys[0], keys[1:]
    if isinstance(table, list):
        if key != "*" and not (key.isdecimal() and int(key) < len(table)):
            allowed = f"a number below {len(table)} or * is wanted in a list"
            raise ScenarioError(place, key, allowed)
        for i in range(len(table)) if key == "*" else [int(key)]:
            if rest:
                _put(table[i], rest, value, place)
            else:
                table[i] = value
    elif not isinstance(table, dict):
        raise ScenarioError(place, key, "only tables and lists have keys")
    elif rest:
        if isinstance(table.get(key), str):  # a plug-in given by its name alone
            table[key] = {"name": table[key]}
        _put(table.setdefault(key, {}), rest, value, place)
    else:
        table[key] = value
