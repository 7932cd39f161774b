"""`aats ledger forget` on runs made here, in the simulated world."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aats.cli import main
from aats.compose import compose
from aats.config.load import build
from aats.learning.lora import LoraModel
from aats.learning.modules import ModuleBackend
from aats.learning.stored import read_model
from aats.ledger.file import read_ledger, verify_ledger
from aats.lineage import Record, RecordKind
from aats.node.work import Work
from aats.oam.rundir import write_run
from aats.oam.view import RunView
from aats.packet import Architecture
from aats.payload import MODEL
from aats.simulate import simulate

BASE = {"name": "mlp", "features": 64, "hidden": [8], "classes": 10}
CHAIN = Architecture("lora", {"base": BASE})
Answer = Callable[..., tuple[int, dict[str, Any]]]


def tables(**packet: Any) -> dict[str, Any]:
    return {
        "scenario": {"seed": 3, "name": "short"},
        "topology": {"generator": {"name": "ring", "nodes": 5}},
        "node": {"contributes_to": ["n4"]},
        "nodes": {"n0": {"roles": ["owner"]}, "n4": {"roles": ["mpvu"]}},
        "data": {"skills": {"digits": {"source": "digits", "reference": 40}}},
        "packets": [
            {
                "name": "reader",
                "owner": "n0",
                "requirement": [{"skill": "digits", "value": 0.99}],
                "model": {"name": "lora", "base": BASE},
                "method": {"name": "lora", "visits": 3, "max_steps": 8, "rollback_drop": 1.0},
                "policy": {"name": "itinerary", "stops": ["n1", "n2", "n3"]},
                "budget": {"hops": 40},
                **packet,
            }
        ],
    }


def made(folder: Path, **packet: Any) -> Path:
    """Run a scenario and write what a run leaves."""
    scenario = build(tables(**packet))
    view, plan = RunView(), compose(scenario)
    delivered = simulate(scenario, plan, view.apply)
    folder.mkdir()
    (folder / "events.jsonl").touch()
    write_run(folder, scenario, view, delivered, {}, {"world": "sim"})
    return folder


@pytest.fixture(scope="module")
def chain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("runs") / "chain")


@pytest.fixture
def run_dir(chain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain_run, tmp_path / "run"))


@pytest.fixture
def forget(capsys: pytest.CaptureFixture[str]) -> Answer:
    def call(what: str, run_dir: Path, *options: str) -> tuple[int, dict[str, Any]]:
        code = main(["ledger", "forget", what, str(run_dir), "--format", "json", *options])
        out, err = capsys.readouterr()
        return code, json.loads(out)[0] if code == 0 else {"error": err}

    return call


def records(run_dir: Path, name: str = "reader") -> tuple[Record, ...]:
    return read_ledger(run_dir / "ledger" / f"{name}.jsonl")


def contributions(found: dict[str, Any]) -> list[str]:
    payload = read_model(Path(found["model"]), CHAIN)
    assert payload.manifest.version(MODEL) == found["version"]
    module = ModuleBackend().load(CHAIN, payload).module
    assert isinstance(module, LoraModel)
    return [*map(str, module.contributions)]


def test_the_last_one_gone_is_the_checkpoint_before_it(run_dir: Path, forget: Answer) -> None:
    trained = [r for r in records(run_dir) if r.kind is RecordKind.TRAIN]
    code, found = forget("n3", run_dir)
    assert code == 0
    assert found["exact"]
    assert found["version"] == trained[-1].base
    assert contributions(found) == ["1@n1", "2@n2"]
    assert found["cost"]["steps"] == 0


def test_an_earlier_one_is_subtracted_and_that_is_said_not_to_be_exact(
    run_dir: Path, forget: Answer
) -> None:
    code, found = forget("1@n1", run_dir)
    assert code == 0
    assert not found["exact"]
    assert found["says"].startswith("not exact unlearning")
    assert contributions(found) == ["2@n2", "3@n3"]
    assert found["since"]["visits"] == 2
    last = records(run_dir)[-1]
    assert (last.kind, last.node, last.note) == (RecordKind.REMOVE, "n0", "subtract 1@n1")
    assert last.version == found["version"]
    assert main(["ledger", "verify", str(run_dir)]) == 0


def test_the_order_of_two_removals_does_not_matter(
    run_dir: Path, tmp_path: Path, forget: Answer
) -> None:
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))
    first = [forget(what, run_dir)[1] for what in ("n1", "n2")]
    second = [forget(what, other)[1] for what in ("n2", "n1")]
    assert first[-1]["version"] == second[-1]["version"]
    assert first[0]["version"] != second[0]["version"]
    assert [r.kind for r in records(run_dir)[-2:]] == [RecordKind.REMOVE] * 2
    verify_ledger(run_dir / "ledger" / "reader.jsonl")


@pytest.mark.parametrize("at", ["", "n3"])
def test_repair_trains_the_later_ones_through_a_packet(
    run_dir: Path, forget: Answer, at: str
) -> None:
    code, found = forget("n1", run_dir, "--level", "repair", "--steps", "6", "--at", at)
    assert code == 0
    assert contributions(found) == ["2@n2", "3@n3"]
    assert found["stops"] == ([at] if at else ["n2", "n3"])
    assert found["cost"]["steps"] == 6
    assert found["cost"]["spent"]["bytes"] > 0
    assert not found["exact"]
    sent = records(run_dir, "reader.forget-1")
    assert [r.note for r in sent if r.steps][-1] == f"repaired {'2@n2 3@n3' if at else '3@n3'}"
    assert sent[-1].version == records(run_dir)[-1].version
    assert RecordKind.VERIFY in [r.kind for r in sent]


def test_rebuild_makes_the_later_visits_again_from_before(run_dir: Path, forget: Answer) -> None:
    was = [r for r in records(run_dir) if r.kind is RecordKind.TRAIN]
    code, found = forget("2@n2", run_dir, "--level", "rebuild")
    assert code == 0
    assert found["exact"]
    assert found["stops"] == ["n3"]
    first, again = contributions(found)
    assert first == "1@n1"
    assert again.endswith("@n3")
    assert again != "3@n3"
    assert records(run_dir, "reader.forget-1")[0].version == was[1].base
    code, more = forget(again, run_dir)
    assert code == 0
    assert more["version"] == was[1].base


def test_what_was_repaired_knows_of_its_fellows_and_is_made_again(
    run_dir: Path, forget: Answer
) -> None:
    assert forget("n1", run_dir, "--level", "repair", "--steps", "6")[0] == 0
    code, found = forget("n3", run_dir, "--level", "rebuild")
    assert code == 0
    assert found["stops"] == ["n2"]
    assert [c.partition("@")[2] for c in contributions(found)] == ["n2"]


def test_after_a_fork_a_round_is_made_again_from_where_it_began(
    tmp_path: Path, forget: Answer
) -> None:
    run_dir = made(
        tmp_path / "run", policy="cycle", rendezvous={"name": "fedavg"},
        method={"name": "lora", "lr": 0.3, "max_steps": 4},
        requirement=[{"skill": "digits", "value": 0.15, "verifier": "any"}],
    )  # fmt: skip
    trunk = next(r for r in records(run_dir) if r.kind is RecordKind.FORK)
    code, found = forget("n2", run_dir, "--level", "rebuild")
    assert code == 0
    assert records(run_dir, "reader.forget-1")[0].version == trunk.version
    assert "n2" not in found["stops"]
    assert {c.partition("@")[2] for c in contributions(found)} == {"n1", "n3"}


def test_what_was_folded_can_only_be_built_anew(tmp_path: Path, forget: Answer) -> None:
    method = {"name": "lora", "visits": 3, "max_steps": 4, "rank_budget": 8, "rollback_drop": 1.0}
    run_dir = made(tmp_path / "run", method=method)
    code, found = forget("n1", run_dir)
    assert code == 2
    assert "1@n1 was folded into the base at hop 3 by n3" in found["error"]
    code, found = forget("n1", run_dir, "--level", "rebuild")
    assert code == 0
    assert found["stops"] == ["n2", "n3"]
    assert [c.partition("@")[2] for c in contributions(found)] == ["n2", "n3"]


def test_a_model_that_is_no_chain_can_only_be_built_anew(tmp_path: Path, forget: Answer) -> None:
    model = {"name": "mlp", "features": 64, "hidden": [8], "classes": 10}
    method = {"name": "sequential", "visits": 3, "max_steps": 4}
    run_dir = made(tmp_path / "run", model=model, method=method)
    for level in ("subtract", "repair"):
        code, found = forget("n2", run_dir, "--level", level)
        assert code == 2
        assert "'sequential' keeps no contributions apart: only rebuild works" in found["error"]
    code, found = forget("n2", run_dir, "--level", "rebuild")
    assert code == 0
    assert "n2" not in found["stops"]
    assert found["cost"]["visits"] >= 2


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("n9", (), "contributions are 1@n1, 2@n2, 3@n3"),
        ("1@n1", ("--level", "repair", "--at", "n9"), "nodes are n0"),
        ("n1", ("--level", "repair", "--at", "n1"), "a node that is not to be forgotten"),
        ("n1", ("--packet", "writer"), "packets are reader"),
    ],
)
def test_a_wrong_wish_is_named(
    run_dir: Path, forget: Answer, what: str, options: tuple[str, ...], message: str
) -> None:
    code, found = forget(what, run_dir, *options)
    assert code == 2
    assert message in found["error"]


def test_a_record_names_a_contribution_too(run_dir: Path, forget: Answer) -> None:
    second = next(r for r in records(run_dir) if r.note.startswith("added 2@n2"))
    assert forget(second.id[:12], run_dir)[1]["gone"] == ["2@n2"]


@pytest.mark.parametrize(
    "note",
    ["added 1@n1 of rank 1", "added rubbish of rank 1", "folded 1@n1 rubbish into the base",
     "repaired rubbish"],
)  # fmt: skip
def test_what_other_nodes_write_of_a_contribution_hides_nothing(
    note: str, tmp_path: Path, forget: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Work.record

    def lying(self: Work, header: Any, kind: RecordKind, *given: Any, **more: Any) -> Record:
        more |= {"note": note} if kind is RecordKind.VERIFY else {}
        return record(self, header, kind, *given, **more)

    monkeypatch.setattr(Work, "record", lying)
    run_dir = made(tmp_path / "run")
    first = next(r for r in records(run_dir) if r.kind is RecordKind.TRAIN)
    code, found = forget(first.id[:12], run_dir)
    assert code == 0, found
    assert found["gone"] == ["1@n1"]
    assert contributions(found) == ["2@n2", "3@n3"]


def test_nothing_is_done_to_a_run_whose_ledger_or_model_was_changed(
    run_dir: Path, forget: Answer
) -> None:
    model = run_dir / "models" / "reader.safetensors"
    bits = model.read_bytes()
    model.write_bytes(bits[:-1] + bytes([bits[-1] ^ 1]))
    code, found = forget("n1", run_dir)
    assert code == 2
    assert "is not that of reader.safetensors" in found["error"]
    model.write_bytes(bits)
    ledger = run_dir / "ledger" / "reader.jsonl"
    ledger.write_text(ledger.read_text().replace("added 1@n1", "added 1@n2"))
    code, found = forget("n1", run_dir)
    assert code == 3
    assert not (run_dir / "models" / "reader.forget-1.safetensors").exists()


def test_a_person_is_told_what_it_cost_and_that_it_is_not_exact(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ledger", "forget", "n2", str(run_dir)]) == 0
    told = capsys.readouterr().out
    assert "forgot   2@n2 of reader, level subtract: not exact unlearning" in told
    assert "on rows no node held" in told
    cost = {line.split("  ")[0]: line.split()[-5:] for line in told.splitlines()[-3:]}
    assert cost["this"][:3] == ["0", "0", "0"]
    assert cost["the visits since"][0] == "1"
    assert cost["all visits"][0] == "3"
