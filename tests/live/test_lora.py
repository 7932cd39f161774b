"""A chain of adapters on live nodes: kill -9 costs no contribution, and one can be forgotten."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aats.cli import main
from aats.learning.lora import CHAIN, Contribution, owner_of
from aats.ledger.file import read_ledger
from aats.ledger.record import check_chain
from aats.lineage import RecordKind
from aats.live import LiveNode
from aats.node.fault import FaultPoint, Moment
from aats.packet import Architecture, Plugin
from aats.payload import MODEL, Payload

if TYPE_CHECKING:
    from conftest import Network

WRAPPED = Architecture(
    "lora", {"base": {"name": "mlp", "features": 1, "hidden": [8], "classes": 4}}
)
SCENARIO = """
[scenario]
name = "live"
seed = 3
[topology]
generator = { name = "ring", nodes = 4 }
[nodes.n0]
roles = ["owner"]
[data.skills.digits]
source = "digits"
reference = 40
[live]
nodes_per_process = 4
shaping = false
[[packets]]
name = "reader"
owner = "n0"
requirement = [{ skill = "digits", value = 0.99, verifier = "any" }]
model = { name = "lora", base = { name = "mlp", features = 64, hidden = [8], classes = 10 } }
method = { name = "lora", visits = 3, max_steps = 4, rollback_drop = 1.0 }
policy = { name = "itinerary", stops = ["n1", "n2", "n3"] }
budget = { hops = 20 }
"""


def contributions(payload: Payload) -> set[Contribution]:
    names = (t.name.removeprefix(MODEL) for t in payload.manifest.tensors)
    return {owner_of(name)[0] for name in names if name.startswith(CHAIN)}


def test_every_contribution_is_there_once_though_nodes_are_killed(
    network: Network, make_ring: Callable[..., list[LiveNode]]
) -> None:
    deaths = [
        FaultPoint(Moment.WORKING, 1), FaultPoint(Moment.WORKED, 2),
        FaultPoint(Moment.RECEIVING, 3), FaultPoint(Moment.SENDING, 4),
    ]  # fmt: skip
    run = network.run(
        make_ring(4, deaths=deaths), architecture=WRAPPED,
        method=Plugin("lora", {"lr": 0.1, "visits": 5, "max_steps": 3}), target=1.0, hops=20,
    )  # fmt: skip
    died = run.of("node.died")
    assert len(died) >= len(deaths) - 1
    assert {e["code"] for e in died} == {-signal.SIGKILL}
    (delivered,) = run.delivered
    header = delivered.header
    check_chain(header.chain)
    delivered.payload().verify()
    trained = [r for r in header.chain if r.kind is RecordKind.TRAIN]
    assert {Contribution(r.hop, r.node) for r in trained} == contributions(delivered.payload())
    assert len(trained) == 5


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_a_live_run_learned_at_one_node_is_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    main(["launch", str(tmp_path), "--out", str(tmp_path), "--format", "json"])
    run_dir = json.loads(capsys.readouterr().out)["run_dir"]
    code = main(["ledger", "forget", "n1", run_dir, "--level", "repair", "--steps", "4",
                 "--format", "json"])  # fmt: skip
    (found,) = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["gone"] == ["1@n1"]
    assert found["stops"] == ["n2", "n3"]
    assert found["cost"]["spent"]["joules"] > 0
    last = read_ledger(Path(run_dir) / "ledger" / "reader.jsonl")[-1]
    assert (last.kind, last.version) == (RecordKind.REMOVE, found["version"])
    assert main(["ledger", "verify", run_dir]) == 0
