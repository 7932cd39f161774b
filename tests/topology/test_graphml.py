from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from aats.errors import ScenarioError
from aats.ids import NODE_ID
from aats.topology.graphml import load_graphml, unique_ids
from aats.topology.network import LinkDefaults, Network, fill, great_circle_km

HEADER = """<?xml version="1.0"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key attr.name="label" attr.type="string" for="node" id="l"/>
<key attr.name="Latitude" attr.type="double" for="node" id="lat"/>
<key attr.name="Longitude" attr.type="double" for="node" id="lon"/>
<key attr.name="LinkSpeedRaw" attr.type="double" for="edge" id="s"/>
<graph edgedefault="undirected">"""


def node(key: str, label: str, lat: float | None = None, lon: float | None = None) -> str:
    where = f'<data key="lat">{lat}</data><data key="lon">{lon}</data>' if lat is not None else ""
    return f'<node id="{key}"><data key="l">{label}</data>{where}</node>'


def edge(a: str, b: str, bps: float | None = None, key: str = "e") -> str:
    speed = f'<data key="s">{bps}</data>' if bps is not None else ""
    return f'<edge source="{a}" target="{b}" id="{key}">{speed}</edge>'


def write(folder: Path, *parts: str) -> Path:
    path = folder / "net.graphml"
    path.write_text(HEADER + "".join(parts) + "</graph></graphml>", encoding="utf-8")
    return path


@pytest.fixture
def quirky(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        node("0", "New York", 40.71, -74.0), node("1", "Zürich (1)", 47.37, 8.54),
        node("2", "New York"), node("10", ""), node("11", "alone"), node("12", "pair"),
        edge("0", "1", 1e8, "a"), edge("1", "0", 1e9, "b"), edge("0", "1", None, "c"),
        edge("1", "2", None, "d"), edge("2", "2", None, "e"), edge("2", "10", None, "f"),
        edge("11", "12", None, "g"),
    )  # fmt: skip


def test_labels_become_unique_ids_and_stay_as_labels(quirky: Path) -> None:
    sites = load_graphml(quirky).sites
    assert [s.name for s in sites] == ["New-York", "Zurich-1", "New-York-2", "n10", "alone", "pair"]
    assert sites[1].label == "Zürich (1)"


def test_parallel_links_become_the_fastest_and_loops_go(quirky: Path) -> None:
    edges = load_graphml(quirky).edges
    assert [(e.a, e.b, e.bandwidth_mbps) for e in edges] == [
        ("New-York", "Zurich-1", 1000.0),
        ("Zurich-1", "New-York-2", None),
        ("New-York-2", "n10", None),
        ("alone", "pair", None),
    ]


def test_a_node_without_coordinates_is_drawn_between_its_neighbours(quirky: Path) -> None:
    sites = {str(s.name): s for s in load_graphml(quirky).sites}
    assert sites["New-York-2"].lat_lon is None
    assert sites["New-York-2"].position == pytest.approx(sites["Zurich-1"].position, abs=1e-3)
    assert all(0 <= x <= 1 for s in sites.values() for x in s.position)


def test_parts_are_kept_unless_the_largest_is_asked_for(quirky: Path) -> None:
    assert len(load_graphml(quirky).sites) == 6
    largest = load_graphml(quirky, component="largest")
    assert len(largest.sites) == 4
    assert len(largest.edges) == 3


def test_latency_follows_the_great_circle_where_both_ends_are_known(quirky: Path) -> None:
    network = Network.of(fill(load_graphml(quirky), LinkDefaults(latency_ms=2.0), seed=0))
    assert great_circle_km((40.71, -74.0), (47.37, 8.54)) == pytest.approx(6325, rel=0.01)
    assert network.links[0].latency_s == pytest.approx(2e-3 + 6325 / 200e3, rel=0.01)
    assert network.links[1].latency_s == pytest.approx(2e-3)


@pytest.mark.parametrize("text", ["", "<graphml>", "no xml", "<graphml></graphml>"])
def test_what_is_no_graphml_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.graphml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"broken\.graphml"):
        load_graphml(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"none\.graphml"):
        load_graphml(tmp_path / "none.graphml")


def test_unique_ids_avoid_names_that_others_have() -> None:
    ids = unique_ids(["a", "a", "a-2", "a", "?", "", "x" * 80, "x" * 80])
    assert len(set(ids)) == len(ids)
    assert ids[2] == "a-2"
    assert all(NODE_ID.fullmatch(i) for i in ids)


def test_every_network_of_the_zoo_loads(tmp_path: Path, data_folder: Callable[[str], Path]) -> None:
    zoo = data_folder("topology-zoo")
    rows = {
        r["name"]: r for r in csv.DictReader(io.StringIO((zoo / "index.csv").read_text("utf-8")))
    }
    with tarfile.open(next(zoo.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    files = sorted(tmp_path.rglob("*.graphml"))
    assert len(files) == len(rows) == 276
    for file in files:
        row, layout = rows[file.stem], load_graphml(file)
        network = Network.of(fill(layout, LinkDefaults(), seed=0))
        parts = network.components()
        assert len(layout.sites) == int(row["nodes"]), file.stem
        assert len(layout.edges) == int(row["simple_edges"]), file.stem
        assert (len(parts), len(parts[0])) == (int(row["components"]), int(row["largest_cc"]))
        assert sum(s.lat_lon is not None for s in layout.sites) == int(row["nodes_with_lat"])
        assert len(set(network.names)) == len(layout.sites), file.stem
        assert all(NODE_ID.fullmatch(n) for n in network.names), file.stem
        assert all(0 <= x <= 1 for s in layout.sites for x in s.position), file.stem
        assert all(link.bandwidth_bps > 0 and link.latency_s > 0 for link in network.links)
