"""One node of a network that spans machines: its file, its directory, its packets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aats import cli
from aats.advert import Role
from aats.config.node import NodeFile, load_node, load_packets
from aats.errors import LocalError, ScenarioError
from aats.ids import NodeId
from aats.member import (
    bring,
    in_words,
    init,
    is_running,
    known_packets,
    packet_of,
    prepare,
    public_line,
    submit,
)
from aats.node import inbox
from aats.node.shard import load_data
from aats.node.spec import DaemonSpec
from aats.store import NodeStore
from aats.wire import check_mandate

CLASSES = 3
DATA = """
[data.skills.colours]
source = { name = "file", file = "rows.npz", classes = 3 }
"""
PACKET = """
[[packets]]
name = "painter"
requirement = [{ skill = "colours", value = 0.8, verifier = "any" }]
model = { name = "mlp", features = 2, hidden = [4], classes = 3 }
"""


def rows(folder: Path, seed: int = 0, samples: int = 300) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, samples)
    np.savez(folder / "rows.npz", x=np.c_[y, rng.normal(size=samples)], y=y)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return the directory of a node that has data of its own and one neighbour."""
    for name, port in (("a", 7100), ("b", 7200)):
        init(tmp_path / name, NodeId(name), host="127.0.0.1", port=port, address="")
    rows(tmp_path / "a")
    (tmp_path / "a" / "node.toml").write_text('name = "a"\n[neighbours]\nb = {}\n' + DATA)
    (tmp_path / "a" / "peers.toml").write_text(public_line(load_node(tmp_path / "b")))
    return tmp_path / "a"


# --- the file ---------------------------------------------------------------------------------


def test_a_new_node_can_be_read(tmp_path: Path) -> None:
    init(tmp_path / "x", NodeId("x"), host="0.0.0.0", port=9000, address="x.example.org")
    node = load_node(tmp_path / "x")
    assert (node.name, node.listen, node.port, node.address, node.folder) == (
        "x", "0.0.0.0", 9000, "x.example.org", tmp_path / "x",
    )  # fmt: skip
    assert node.node.roles == (Role.DATA, Role.COMPUTE)
    assert "tcp://x.example.org:9000" in public_line(node)
    assert load_node(tmp_path / "x" / "node.toml") == node


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "name: None is not allowed; the key must be given"),
        ('name = "a b"', "name: 'a b' is not allowed"),
        ('name = ""', "name: '' is not allowed"),
        ('name = "a"\nprot = 1', "'prot' is not allowed; known keys .*did you mean 'port'"),
        ('name = "a"\nport = 65535', "port: 65535 is not allowed; must be at least 1 and at most"),
        ('name = "a"\nlisten = "tcp://x"', "listen: 'tcp://x' is not allowed; a host name"),
        ('name = "a"\nlisten = "0.0.0.0"', "address: '' is not allowed; must be given"),
        ('name = "a"\ncustody = "disk"', "custody: 'disk' is not allowed; must be one of"),
        ('name = "a"\n[neighbours]\na = {}', "neighbours: 'a' is not allowed"),
        ('name = "a"\n[neighbours.b]\nloss = 2', "neighbours.b.loss: 2.0 is not allowed"),
        ('name = "a"\n[node]\nroles = ["date"]', r"roles\[0\]: 'date' .*did you mean 'data'"),
        ('name = "a"\n[node.data.x]\nshare = 1', "node.data: 'x' is not allowed; known skills"),
        ('name = "a"\n[data.skills.x]\nsource = "digit"', "source: 'digit' .*did you mean"),
        ("name = ", "must be valid TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "node.toml").write_text(text)
    with pytest.raises(ScenarioError, match=said):
        load_node(tmp_path)


def test_a_directory_without_a_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="aats node init"):
        load_node(tmp_path)


def test_the_command_line_goes_over_the_file(made: Path) -> None:
    node = load_node(made, {"port": 7300, "insecure": True})
    assert (node.port, node.insecure) == (7300, True)
    spec = prepare(node)
    assert (spec.control, spec.secure) == ("tcp://127.0.0.1:7300", False)


# --- the directory ----------------------------------------------------------------------------


def test_keys_are_made_once_and_are_private(made: Path) -> None:
    node = load_node(made)
    line = public_line(node)
    assert public_line(node) == line
    assert {(made / key).stat().st_mode & 0o777 for key in ("identity.key", "curve.key")} == {0o600}
    secret = (made / "curve.key").read_text().strip()
    assert secret not in line
    with pytest.raises(ScenarioError, match=r"has a node\.toml already"):
        init(made, NodeId("a"), host="127.0.0.1", port=1, address="")


def test_a_prepared_node_has_what_its_daemon_needs(made: Path) -> None:
    spec = prepare(load_node(made))
    again = DaemonSpec.load(made)
    assert again == spec
    assert spec.secure
    assert [link.peer for link in spec.links] == ["b"]
    assert set(spec.core.known_keys) == {"a", "b"}
    data = load_data(made / "data.safetensors").skills["colours"]
    assert len(data.train_y) + len(data.test_y) == 300, "no row is set aside unasked"
    assert spec.core.data[0].samples == len(data.train_y)
    assert (made / "public.toml").read_text().strip() == public_line(load_node(made))


def test_data_that_change_get_another_number(made: Path) -> None:
    assert prepare(load_node(made)).core.data[0].seq == 1
    assert prepare(load_node(made)).core.data[0].seq == 1
    rows(made, seed=1)
    assert prepare(load_node(made)).core.data[0].seq == 2


def test_a_deal_is_the_same_on_every_machine(tmp_path: Path) -> None:
    held = []
    for name in ("a", "b", "c"):
        folder = tmp_path / name
        init(folder, NodeId(name), host="127.0.0.1", port=7100, address="")
        (folder / "node.toml").write_text(
            f'name = "{name}"\nseed = 4\n[node]\nroles = ["{"owner" if name == "c" else "data"}"]\n'
            '[data.skills.d]\nsource = "wine"\nnodes = ["a", "b"]\nreference = 20\n'
        )
        prepare(load_node(folder))
        skills = load_data(folder / "data.safetensors").skills
        held += [np.concatenate([s.train_x, s.test_x]) for s in skills.values()]
    assert len(held) == 2, "the owner keeps none of the parts"
    together = np.concatenate(held)
    assert len(np.unique(together, axis=0)) == len(together), "no row is in two parts"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "", "no line for the neighbour 'b'; put in the line of its public.toml"),
        (lambda text: text.replace('"b"', '"bb"'), "neighbour 'b', did you mean 'bb'"),
        (lambda text: re.sub('control = "[^"]*", ', "", text), "b: control must be given"),
        (lambda text: re.sub('curve_key = "[^"]*", ', "", text), "b: curve_key must be given"),
        (lambda text: re.sub('key = "(..)', 'key = "', text), "CURVE key of 38 bytes, must be 40"),
        (lambda text: re.sub('public_key = "..', 'public_key = "', text), "31 bytes; allowed are"),
    ],
)
def test_what_is_wrong_with_the_others_lines_is_told(made: Path, change: Any, said: str) -> None:
    path = made / "peers.toml"
    path.write_text(change(path.read_text()))
    with pytest.raises(LocalError, match=said):
        prepare(load_node(made))


def test_an_own_line_with_other_keys_is_told(made: Path) -> None:
    path = made / "peers.toml"
    other = path.read_text()
    path.write_text(other + "\n" + public_line(load_node(made)))
    prepare(load_node(made))
    keys = public_line(load_node(made.parent / "b", {"name": "a"}))
    path.write_text(keys)
    (made / "node.toml").write_text('name = "a"')
    with pytest.raises(LocalError, match=r"the line of a has other keys than identity\.key"):
        prepare(load_node(made))


def test_a_node_runs_once(made: Path) -> None:
    node = load_node(made)
    assert not is_running(node)
    store = NodeStore(made)
    assert is_running(node)
    assert cli.main(["node", str(made)]) == 2
    store.close()
    assert not is_running(node)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("level=warning event=control.denied node=a peer=b reason=HANDSHAKE_FAILED_AUTH",
         "b refuses us: our keys are in no line"),
        ("event=control.denied node=a peer=b reason=HANDSHAKE_FAILED_NO_DETAIL",
         "no link to b: it has other keys than its line in our peers.toml"),
        ('event=control.stranger node=a key="x!=y z" address=10.0.0.9',
         "key x!=y z from 10.0.0.9 is in no line of our peers.toml"),
        ('event=control.stranger reason="handshake failed"', 'control.stranger reason="handshake'),
        ("half a 'line", "half a 'line"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_words(line: str, said: str) -> None:
    assert said in in_words(line)


# --- packets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one packet is wanted"),
        ('[scenario]\nname = "x"', r"'scenario' is not allowed; only \[\[packets\]\]"),
        (PACKET + 'owner = "b"', "owner: 'b' is not allowed; .* this one is a"),
        (PACKET + "after_s = 3", "after_s: 3.0 is not allowed"),
        (PACKET + "polcy = 1", "'polcy' is not allowed; known keys .*did you mean 'policy'"),
        (PACKET + 'policy = "radnom"', "policy: 'radnom' .*did you mean 'random'"),
        (PACKET + PACKET, "each name may stand once"),
        ("packets = 3", "packets: 3 is not allowed"),
    ],
)
def test_what_is_wrong_with_a_packet_is_told(
    made: Path, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ScenarioError, match=said):
        load_packets(tmp_path / "p.toml", load_node(made))


def handed_in(made: Path, text: str = PACKET) -> tuple[NodeFile, list[inbox.Parcel]]:
    (made / "p.toml").write_text(text)
    node = load_node(made)
    submit(node, load_packets(made / "p.toml", node))
    return node, inbox.look(made / inbox.INBOX)[0]


def test_a_packet_waits_signed_in_the_inbox(made: Path) -> None:
    node, (first,) = handed_in(made)
    check_mandate(first.header.mandate)
    assert first.header.mandate.owner.node == "a"
    first.payload().verify()
    (row,) = known_packets(node)
    assert (row["packet"], row["status"]) == ("painter", "handed in")
    _, both = handed_in(made)
    assert len({p.header.id for p in both}) == 2, "the same packet again is another packet"


def test_a_packet_goes_by_its_name_or_how_its_id_begins(made: Path) -> None:
    node, (parcel,) = handed_in(made)
    assert packet_of(node, "painter") == packet_of(node, parcel.header.id[:12]) == parcel.header.id
    with pytest.raises(ScenarioError, match=r"'painer' .*did you mean 'painter'"):
        packet_of(node, "painer")
    with pytest.raises(LocalError, match="is not home"):
        bring(node, parcel.header.id, made / "runs")


def test_commands_tell_what_they_did(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "p.toml").write_text(PACKET)
    asked = ["submit", str(made / "p.toml"), "--node", str(made), "--format", "json"]
    assert cli.main(asked) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert "a is not running; it takes them when it starts" in said.err
    assert cli.main(["ls", "--node", str(made)]) == 0
    assert row["id"] in capsys.readouterr().out
    assert cli.main(["node", "init", str(made), "--name", "a"]) == 2
    assert "has a node.toml already" in capsys.readouterr().err
    assert cli.main(["node", "init", str(made / "new"), "--name", "no good"]) == 2
    assert not (made / "new").exists()
    everywhere = ["node", "init", str(made / "new"), "--name", "n", "--host", "0.0.0.0"]
    assert cli.main(everywhere) == 2
    assert "the others cannot connect to 0.0.0.0" in capsys.readouterr().err
    assert cli.main([*everywhere, "--address", "n.example.org"]) == 0
    line = capsys.readouterr().out
    assert "tcp://n.example.org:7100" in line
    assert (made / "new" / "public.toml").read_text() == line
    assert cli.main(["node", str(made / "nowhere")]) == 2
