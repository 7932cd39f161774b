from __future__ import annotations

import json
import random
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aats import cli, launch
from aats.config import load_scenario
from aats.errors import AatsError, InfeasibleError, LedgerError, ScenarioError, WireError
from aats.identity import Identity
from aats.ids import NodeId, Version, new_packet_id
from aats.ledger.file import write_ledger
from aats.ledger.record import seal
from aats.lineage import Record, RecordKind
from aats.options import Format, LaunchOptions, World
from aats.plugins import names

PACKET = new_packet_id(1_700_000_000_000, random.Random(0))
MEASURED = {
    "metric": "accuracy", "value": 0.91, "low": 0.88, "high": 0.94, "source": "mpvu", "by": "c",
    "target": 0.9,
}  # fmt: skip
EVENTS: list[dict[str, Any]] = [
    {"t": 0.0, "node": "a", "event": "packet.submitted", "packet": PACKET, "label": "oncologist",
     "kind": "train", "requirement": {"tumours": 0.9}, "hop_budget": 9},
    {"t": 0.5, "node": "a", "event": "decision", "packet": PACKET, "hop": 0, "phase": "seek",
     "chosen": "b", "stop": "data", "path": ["b"], "reason": "most gain per cost",
     "scores": {"b": 0.42, "c": 0.1}, "probe_bytes": 0},
    {"t": 1.0, "node": "b", "event": "packet.received", "packet": PACKET, "hop": 1, "epoch": 0,
     "from": "a", "wire_bytes": 1000},
    {"t": 1.2, "node": "b", "event": "link.down", "peer": "c"},
    {"t": 2.0, "node": "b", "event": "visit.finished", "packet": PACKET, "hop": 1, "data_of": "b",
     "action": "train", "gain": 0.25, "steps": 8, "samples": 64, "seconds": 0.5, "bytes": 1000,
     "skills": {"tumours": MEASURED}},
    {"t": 3.5, "node": "a", "event": "packet.home", "packet": PACKET, "met": True, "hops": 2,
     "seconds": 3.5, "bytes": 2000, "probe_bytes": 0, "skills": {"tumours": MEASURED}},
]  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "ring-sim-1"
    (run / "ledger").mkdir(parents=True)
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in EVENTS))
    owner = Identity.from_seed(NodeId("a"), b"cli")
    version = Version("0" * 64)
    first = Record(PACKET, RecordKind.INIT, owner.node, 0, 0, (), version, version)
    write_ledger(run / "ledger" / "oncologist.jsonl", [seal(first, owner)])
    return run.parent


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[LaunchOptions]:
    """Stand in for the run itself: what was asked for is kept, every run succeeds."""
    seen: list[LaunchOptions] = []

    def execute(options: LaunchOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setitem(sys.modules, "aats.run", _run_module(execute))
    return seen


def _run_module(execute: Any) -> types.ModuleType:
    module = types.ModuleType("aats.run")
    module.execute = execute  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    "line",
    ["aats.launch", "aats", "aats submit", "aats advise", "aats node run", "aats ledger forget",
     "aats policy train"],
)  # fmt: skip
def test_help_is_quick_and_loads_nothing_heavy(line: str) -> None:
    module, *words = line.split()
    script = f"""
import resource, runpy, sys
sys.argv = [{module!r}, *{words!r}, "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    used = resource.getrusage(resource.RUSAGE_SELF)
    heavy = [m for m in ("torch", "zmq", "numpy", "networkx", "sklearn") if m in sys.modules]
    print(end.code, used.ru_utime + used.ru_stime, *heavy)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    code, cpu_s, *heavy = result.stdout.splitlines()[-1].split()
    assert code == "0"
    assert heavy == []
    assert float(cpu_s) < 0.5


def test_both_faces_understand_the_same_arguments(asked: list[LaunchOptions]) -> None:
    line = [
        "x.toml", "--world", "sim", "--policy", "random", "--seed", "4", "--set", "links.loss=0.1",
        "--set", "sim.loss=0", "--format", "jsonl", "--out", "o", "--insecure",
        "--nodes-per-process", "3",
    ]  # fmt: skip
    assert launch.main(line) == 0
    assert cli.main(["launch", *line]) == 0
    assert asked[0] == asked[1]
    assert asked[0] == LaunchOptions(
        Path("x.toml"), World.SIM, "random", (), 1, 4, ("links.loss=0.1", "sim.loss=0"),
        Format.JSONL, Path("o"), True, 3,
    )  # fmt: skip
    assert asked[0].overrides() == (
        "links.loss=0.1", "sim.loss=0", "scenario.seed=4", 'packets.*.policy="random"',
        "live.insecure=true", "live.nodes_per_process=3",
    )  # fmt: skip
    assert 'packets.*.policy="cycle"' in asked[0].overrides(policy="cycle", seed=9)
    assert "scenario.seed=9" in asked[0].overrides(policy="cycle", seed=9)


def test_compare_takes_a_list(asked: list[LaunchOptions]) -> None:
    assert launch.main(["x", "--compare", "random, minibatch", "--seeds", "5"]) == 0
    assert (asked[0].compare, asked[0].seeds) == (("random", "minibatch"), 5)


@pytest.mark.parametrize(
    "line",
    [
        [], ["x", "--world", "mars"], ["x", "--bogus"], ["x", "--seeds", "0"],
        ["x", "--seed", "-1"],
        ["x", "--policy", "a", "--compare", "b"], ["x", "--seeds", "2"],
        ["x", "--compare", "a,a"], ["x", "--format", "xml"], ["x", "y"],
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2(line: list[str], asked: list[LaunchOptions]) -> None:
    assert launch.main(line) == 2
    assert asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ScenarioError("f: a.b", 3, "must be 4"), 2),
        (InfeasibleError("no path"), 4),
        (LedgerError("record 3"), 3),
        (WireError("truncated"), 1),
        (KeyboardInterrupt(), 5),
        (ZeroDivisionError("ours"), 1),
    ],
)
def test_an_error_is_one_message_and_its_code(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def execute(options: LaunchOptions) -> int:
        raise error

    monkeypatch.setitem(sys.modules, "aats.run", _run_module(execute))
    assert launch.main(["x", "--format", "json"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("Traceback" in captured.err) == isinstance(error, ZeroDivisionError)
    if isinstance(error, AatsError):
        assert captured.err == f"error: {error}\n"


@pytest.mark.parametrize("code", [0, 3])
def test_the_runs_own_code_is_kept(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aats.run", _run_module(lambda options: code))
    assert launch.main(["x"]) == code


def test_runs_are_listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls", "--out", str(runs), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"run": "ring-sim-1", "packets": 1, "home": 1, "met": 1, "seconds": 3.5}
    ]
    assert cli.main(["ls", "--out", str(runs)]) == 0
    assert "ring-sim-1" in capsys.readouterr().out
    assert cli.main(["ls", "--out", str(runs / "none")]) == 0
    assert "no runs" in capsys.readouterr().out


@pytest.mark.parametrize("packet", ["oncologist", PACKET, PACKET[:9]])
def test_a_trace_tells_each_hop_and_why(
    packet: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["trace", packet, "--out", str(runs)]) == 0
    text = capsys.readouterr().out
    assert "-> b via b: most gain per cost  [b 0.42, c 0.1]" in text
    assert "tumours 0.910 (mpvu)" in text
    assert "link.down" not in text


def test_names_and_reasons_from_others_move_no_cursor(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs / "ring-sim-1" / "events.jsonl"
    bad = "\x1b[2J\r"
    events = [{**e, "label": bad, "reason": bad, "node": f"n{bad}"} for e in EVENTS]
    file.write_text("".join(json.dumps(e) + "\n" for e in events))
    assert cli.main(["trace", PACKET, "--out", str(runs)]) == 0
    assert cli.main(["trace", "nobody", "--out", str(runs)]) == 2
    said = capsys.readouterr()
    for line in (said.out + said.err).split("\n"):
        assert line.isprintable(), line
    assert "\\x1b[2J\\r" in said.out
    assert "\\x1b[2J\\r" in said.err


def test_a_trace_as_json_lines_is_the_events(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["trace", "oncologist", "--run", str(runs / "ring-sim-1"), "--format", "jsonl"]
    assert cli.main(line) == 0
    told = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert told == [event for event in EVENTS if "packet" in event]


@pytest.mark.parametrize(
    "line",
    [["trace", "oncologst"], ["trace", "oncologist", "--run", "nowhere"]],
)
def test_what_is_not_there_is_named(
    line: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*line, "--out", str(runs)]) == 2
    assert ("did you mean 'oncologist'" in capsys.readouterr().err) == (len(line) == 2)


@pytest.mark.parametrize(
    "line",
    ["{]", "[]", "7", '{"t": "x"}', '{"t": 1, "node": "a", "event": "packet.received"}',
     '{"t": 1, "node": "a", "event": "visit.finished", "packet": "p", "skills": 7}'],
)  # fmt: skip
def test_a_damaged_trace_is_named_and_hides_no_other(
    runs: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    damaged = runs / "ring-sim-2"
    damaged.mkdir()
    (damaged / "events.jsonl").write_text(line + "\n" + line + "\n")
    code = cli.main(["ls", "--out", str(runs)])
    said = capsys.readouterr()
    assert "ring-sim-1" in said.out
    assert "Traceback" not in said.err
    assert code == (2 if "ring-sim-2" in said.err else 0)
    assert cli.main(["trace", "x", "--run", str(damaged)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", "/proc/nowhere/at/all"]) == 2
    assert "/proc/nowhere/at/all" in capsys.readouterr().err


def test_a_ledger_is_verified_and_a_changed_one_is_not(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / "ring-sim-1"
    assert cli.main(["ledger", "verify", str(run)]) == 0
    assert "1 records" in capsys.readouterr().out
    file = run / "ledger" / "oncologist.jsonl"
    file.write_text(file.read_text().replace('"steps": 0', '"steps": 1'))
    assert cli.main(["ledger", "verify", str(file), "--format", "json"]) == 3
    (row,) = json.loads(capsys.readouterr().out)
    assert row["valid"] is False
    assert "oncologist.jsonl" in row["error"]
    assert cli.main(["ledger", "verify", str(runs / "none")]) == 2


@pytest.mark.parametrize("template", ["healthcare", "ring"])
def test_a_template_becomes_a_scenario_that_loads(tmp_path: Path, template: str) -> None:
    mine = tmp_path / "mine"
    assert cli.main(["new", str(mine), "--template", template]) == 0
    assert load_scenario(mine).packets
    assert cli.main(["new", str(mine), "--template", template]) == 2


def test_an_unknown_template_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", str(tmp_path / "x"), "--template", "rign"]) == 2
    assert "did you mean 'ring'" in capsys.readouterr().err


def test_policies_are_listed_with_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policy", "ls", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(names("aats.policies"))
    assert all(row["does"] for row in rows)


def test_the_doctor_finds_this_machine_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--format", "json"]) == 0
    assert all(row["ok"] for row in json.loads(capsys.readouterr().out))


def test_the_doctor_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AATS_DATA", "/no/such/folder")
    assert cli.main(["doctor"]) == 3
    assert "FAIL  data: /no/such/folder - set AATS_DATA" in capsys.readouterr().out


def test_version_and_bare_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("aats 0.")
    assert cli.main([]) == 2
    assert "Usage" in capsys.readouterr().out


def test_options_can_be_replaced_for_one_run_of_many() -> None:
    options = LaunchOptions(Path("x"), compare=("a", "b"), seeds=2)
    assert replace(options, seed=5).overrides(policy="a") == (
        "scenario.seed=5",
        'packets.*.policy="a"',
    )
