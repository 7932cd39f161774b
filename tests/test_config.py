from __future__ import annotations

import contextlib
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aats.codec import MAX_TEXT
from aats.config import Scenario, build, load_scenario
from aats.errors import AatsError, InfeasibleError, ScenarioError
from aats.ids import NodeId as N
from aats.routing.carried import MAX_BYTES, joined

BASE = """
[scenario]
name = "try"
seed = 3
[topology]
generator = { name = "ring", nodes = 5 }
[node]
contributes_to = ["n4"]
[nodes.n0]
roles = ["owner"]
[nodes.n1.data.diagnosis]
wrong_labels = 0.8
[nodes.n4]
roles = ["mpvu"]
[data.skills.diagnosis]
source = "breast-cancer"
partition = { name = "dirichlet", alpha = 0.5 }
[[packets]]
name = "p"
owner = "n0"
requirement = [{ skill = "diagnosis", value = 0.9 }]
model = { name = "mlp", hidden = [16] }
policy = "random"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scenario.toml").write_text(BASE)
    return tmp_path


def with_(folder: Path, *overrides: str) -> Scenario:
    return load_scenario(folder, overrides)


def test_defaults_nodes_and_links_are_filled_in(folder: Path) -> None:
    scenario = with_(folder)
    assert list(scenario.nodes) == ["n0", "n1", "n2", "n3", "n4"]
    assert scenario.nodes[N("n1")].data["diagnosis"].wrong_labels == 0.8
    assert scenario.nodes[N("n2")].contributes_to == ("n4",)
    assert scenario.nodes[N("n4")].contributes_to == ()
    assert scenario.holders("diagnosis") == ("n1", "n2", "n3")
    assert len(scenario.network.links) == 5
    packet = scenario.packets[0]
    assert (packet.policy.name, packet.model.config) == ("random", {"hidden": [16]})
    assert packet.budget.cost.seconds == float("inf")


def test_the_resolved_copy_loads_to_the_same_scenario(folder: Path) -> None:
    scenario = with_(
        folder, "links.spread=2", "sim.loss=0.1", "packets.0.deadline_s=9",
        'faults=[{ kind = "crash", on = "visit.started" }, { kind = "loss", link = ["n0", "n1"] }]',
    )  # fmt: skip
    again = build(tomllib.loads(scenario.to_toml()))
    assert again == scenario
    assert again.digest() == scenario.digest()
    assert again.to_toml() == scenario.to_toml()


def test_the_digest_depends_on_settings_and_not_on_folders(folder: Path) -> None:
    here, there = with_(folder, "data.root=a"), with_(folder, "data.root=b")
    assert here.data.root == str(Path("a").resolve())
    assert here.digest() == there.digest()
    assert here.digest() != with_(folder, "scenario.seed=4").digest()


@pytest.mark.parametrize(
    ("override", "place", "says"),
    [
        ("scenario.sede=1", "scenario", "did you mean 'seed'"),
        ("topolgy.x=1", "toml", "did you mean 'topology'"),
        ("packets.0.budget.hop=1", r"packets\[0\].budget", "did you mean 'hops'"),
        ("packets.0.budget.hops=0", r"packets\[0\].budget.hops", "above 0"),
        ("packets.0.budget.hops=many", "budget.hops", "a number is wanted"),
        ("packets.0.owner=n9", r"packets\[0\].owner", "known nodes are n0"),
        ("packets.0.owner='a b'", r"packets\[0\].owner", "letters, digits"),
        ("packets.0.policy=rendom", r"packets\[0\].policy", "did you mean 'random'"),
        ("packets.0.policy.name=3", r"packets\[0\].policy.name", "a string is wanted"),
        ("packets.0.method=sequentail", "method", "did you mean 'sequential'"),
        ("packets.0.model=logistics", "model", "did you mean 'logistic'"),
        ("packets.0.kind=trian", "kind", "did you mean 'train'"),
        ("packets.0.requirement=[]", "requirement", "at least one target"),
        ("packets.0.requirement.0.value=1.5", r"requirement\[0\].value", "at most 1"),
        ("packets.0.requirement.0.value=nan", r"requirement\[0\].value", "a number"),
        ("packets.0.requirement.0.metric=acuracy", "metric", "did you mean 'accuracy'"),
        ("packets.0.requirement.0.verifier=me", "verifier", "known verifiers are mpvu, any"),
        ("packets=[]", "packets", "at least one packet"),
        ("packets=3", "packets", "a list is wanted"),
        ("nodes.n7.label=x", "nodes", "known nodes are"),
        ("nodes.n1.roles=['dta']", r"nodes.n1.roles\[0\]", "did you mean 'data'"),
        ("nodes.n1.lat=3", "nodes.n1", "lat and lon come together"),
        ("nodes.n1.lat=99", "nodes.n1.lat", "at most 90"),
        ("nodes.n1.delegate=n9", "nodes.n1.delegate", "known nodes"),
        ("nodes.n1.delegate=n4", "nodes.n1.delegate", "must have the role compute"),
        ("nodes.n1.contributes_to=['n2']", "nodes.n1.contributes_to", "known MPVUs are n4"),
        ("nodes.n1.data.diagnoses.share=1", "nodes.n1.data", "did you mean 'diagnosis'"),
        ("nodes.n1.data.diagnosis.wrong_labels=2", "wrong_labels", "at most 1"),
        ("nodes.n4.data.diagnosis.share=1", "nodes.n4.data", "needs the role data"),
        ("node.probe=all", "node.probe", "'score', 'minibatch', 'none'"),
        ("data.skills.diagnosis.source=brest-cancer", "source", "did you mean 'breast-cancer'"),
        ("data.skills.diagnosis.partition=dirichle", "partition", "did you mean 'dirichlet'"),
        ("data.skills.diagnosis.nodes=['n4']", "diagnosis.nodes", "known data nodes are"),
        ("data.skills.diagnosis.reference=-1", "reference", "at least 0"),
        ("topology.generator.nodes=0", "topology.generator", "nodes must be"),
        ("topology.file=x.graphml", "topology", "one of generator, edges, file"),
        ("links.loss=1.5", "links.loss", "at most 1"),
        ("links.bandwidth_mbps=inf", "links.bandwidth_mbps", "a finite number is wanted"),
        ("training.timeout_s=inf", "training.timeout_s", "a finite number is wanted"),
        ("packets.0.after_s=inf", r"packets\[0\].after_s", "a finite number is wanted"),
        ("node.memory_mb=1e13", "node.memory_mb", "at most 1e+12"),
        ("packets.0.seed=18446744073709551616", r"packets\[0\].seed", "at most 64 bits"),
        ("live.custody=disk", "live.custody", "'process', 'host'"),
        ("live.insecure=1", "live.insecure", "true or false"),
        ("scenario.seed=1.5", "scenario.seed", "a whole number"),
        ("scenario.seed=true", "scenario.seed", "a whole number"),
        ("faults=[{}]", r"faults\[0\].kind", "must be given"),
        ("faults=[{kind='crash'}]", r"faults\[0\].node", "needs a node or an event"),
        ("faults=[{kind='crash',node='x'}]", r"faults\[0\]", "known nodes"),
        ("faults=[{kind='partition'}]", r"faults\[0\].nodes", "one side"),
        ("faults=[{kind='loss',link=['n0','n2']}]", r"faults\[0\].link", "a link of the topology"),
        ("faults=[{kind='loss',link=['n0']}]", r"faults\[0\].link", "a list of 2"),
        ("packets.3.name=x", "--set packets.3.name", "a number below 1"),
        ("nonsense", "--set", "table.key=value"),
        ("scenario.name='../x'", "scenario.name", "letters, digits"),
        ("packets.0.name='a/b'", r"packets\[0\].name", "letters, digits"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(
    folder: Path, override: str, place: str, says: str
) -> None:
    with pytest.raises(ScenarioError, match=place) as raised:
        with_(folder, override)
    assert says in str(raised.value)


def test_only_what_may_be_unlimited_takes_infinity(folder: Path) -> None:
    budget = with_(folder, "packets.0.budget={hops=inf,bytes=inf}", "packets.0.deadline_s=inf")
    assert budget.packets[0].budget.hops == budget.packets[0].deadline_s == math.inf


def test_the_last_port_must_exist(folder: Path) -> None:
    with pytest.raises(ScenarioError, match=r"live\.base_port.*ports up to 65600"):
        with_(folder, "topology.generator.nodes=300", "live.base_port=65000")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["packets.0.requirement.0.skill=diagnosi"], "did you mean 'diagnosis'"),
        (["node.data.diagnosis.share=0", "nodes={n0={roles=['data']},n4={roles=['mpvu','data']}}"],
         "nobody has data"),
        (["node.samples_per_s=0"], "has compute or a delegate"),
        (["nodes.n4.roles=['transit']", "node.contributes_to=[]"], "no node has that role"),
        (["node.contributes_to=[]"], "gets test samples from 1 node(s)"),
        (["mpvu.min_contributors=4"], "gets test samples from 4 node(s)"),
        (["topology={names=['n0','n1','n4'],edges=[['n1','n4']]}"], "no path"),
        (["topology={generator={name='line',nodes=5}}", "packets.0.budget.hops=3"],
         "is 4 hops from owner n0"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_said_before_anything_runs(
    folder: Path, overrides: list[str], says: str
) -> None:
    with pytest.raises(InfeasibleError, match="packet 'p'") as raised:
        with_(folder, *overrides)
    assert says in str(raised.value)


def test_a_delegate_lends_its_compute(folder: Path) -> None:
    scenario = with_(
        folder, "node.roles=['data']", "node.delegate=n2", "nodes.n2.roles=['compute']"
    )
    assert scenario.nodes[N("n2")].delegate == ""
    assert scenario.nodes[N("n1")].delegate == "n2"


def test_a_network_in_parts_is_told(folder: Path) -> None:
    edges = "topology={edges=[['n0','n1'],['n1','n4'],['n2','n3']]}"
    assert "2 parts of 3, 2 nodes" in with_(folder, edges).notes()[0]
    assert with_(folder).notes() == ()


def test_edges_carry_their_own_figures(folder: Path) -> None:
    figures = "{latency_ms=9,bandwidth_mbps=2,loss=0.5}"
    ring = f"[['n0','n1',{figures}],['n1','n2'],['n2','n3'],['n3','n4']]"
    link = with_(folder, f"topology={{edges={ring}}}").network.links[0]
    assert link.latency_s == pytest.approx(0.009)
    assert (link.bandwidth_bps, link.loss) == (2e6, 0.5)


def test_a_graphml_file_is_found_beside_the_scenario(folder: Path) -> None:
    (folder / "net.graphml").write_text(
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected">'
        + "".join(f'<node id="{i}"/>' for i in range(6))
        + "".join(f'<edge source="{i}" target="{i + 1}"/>' for i in range(4))
        + "</graph></graphml>"
    )
    everything = with_(folder, "topology={file='net.graphml'}")
    assert len(everything.nodes) == 6
    assert everything.notes()
    largest = with_(folder, "topology={file='net.graphml',component='largest'}")
    assert len(largest.nodes) == 5
    again = build(tomllib.loads(largest.to_toml()))
    assert (again, again.digest()) == (largest, largest.digest())


@pytest.mark.parametrize(
    "edges", ["[['a']]", "[['a','a']]", "[['a','b',{lat=1}]]", "[['a','b'],['b','a']]", "[3]"]
)
def test_a_wrong_edge_is_named(folder: Path, edges: str) -> None:
    with pytest.raises(ScenarioError, match="topology"):
        with_(folder, f"topology={{edges={edges}}}")


def test_coordinates_place_nodes_and_give_links_their_latency(folder: Path) -> None:
    at = "nodes.n0.lat=0", "nodes.n0.lon=0", "nodes.n1.lat=0", "nodes.n1.lon=90"
    network = with_(folder, *at).network
    assert network.links[0].latency_s == pytest.approx(5e-3 + 10_008 / 200e3, rel=0.01)
    assert [site.position for site in network.sites[:2]] == [(0.05, 0.5), (0.95, 0.5)]


def test_files_that_are_no_scenario_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="none"):
        load_scenario(tmp_path / "none")
    (tmp_path / "a.toml").write_text("[scenario")
    with pytest.raises(ScenarioError, match=r"a\.toml.*valid TOML"):
        load_scenario(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match=r"b\.toml"):
        load_scenario(tmp_path / "b.toml")


def test_a_scenario_without_a_name_has_its_folders(folder: Path) -> None:
    (folder / "scenario.toml").write_text(BASE.replace('name = "try"\n', ""))
    assert with_(folder).name == folder.name


NUMBERS = st.integers(-9, 9) | st.floats(-9, 9)
EXTREMES = st.sampled_from([math.inf, -math.inf, math.nan, 1e308, 1 << 63, 1 << 64, -(1 << 64)])
LEAVES = st.none() | st.booleans() | NUMBERS | EXTREMES | st.text(max_size=4)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3)
)


@settings(max_examples=200)
@given(data=st.data())
def test_whatever_stands_in_a_table_only_our_errors_come(data: st.DataObject) -> None:
    tables: dict[str, Any] = tomllib.loads(BASE)
    table: Any = tables[data.draw(st.sampled_from(sorted(tables)))]
    while True:
        key = (
            data.draw(st.integers(0, len(table) - 1))
            if isinstance(table, list)
            else data.draw(st.sampled_from(sorted(table)))
        )
        if not isinstance(table[key], dict | list) or not table[key] or data.draw(st.booleans()):
            break
        table = table[key]
    table[key] = data.draw(VALUES)
    with contextlib.suppress(AatsError):
        build(tables)


def test_a_path_that_is_typed_starts_where_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ring = Path(__file__).parents[1] / "examples" / "ring"
    scenario = load_scenario(ring, ["data.root=some/where"])
    assert scenario.data.root == str(tmp_path / "some" / "where")


def test_a_policy_named_by_its_file_is_read_and_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scenario.toml").write_text(BASE.replace('"random"', '"own/p.safetensors"'))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "p.safetensors").write_bytes(bytes(20_000))
    monkeypatch.chdir(tmp_path / "own")
    for overrides in ([], ["packets.*.policy=p.safetensors"], ["packets.0.policy=./p.safetensors"]):
        policy = load_scenario(tmp_path, overrides).packets[0].policy
        assert policy.name == "rl"
        assert joined(policy.params["weights"]) == bytes(20_000)
        assert all(len(part) < MAX_TEXT for part in policy.params["weights"])


def test_a_policy_file_that_cannot_travel_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "scenario.toml").write_text(BASE)
    (tmp_path / "big.safetensors").write_bytes(bytes(MAX_BYTES + 1))
    for name, message in (("big", "cannot travel"), ("absent", "No such file")):
        with pytest.raises(ScenarioError, match=rf"packets\[0\].policy.*{name}.*{message}"):
            load_scenario(tmp_path, [f"packets.0.policy={tmp_path}/{name}.safetensors"])
