"""Bad input ends well: one message that names place, value and what is allowed, its exit code.

Through the real command line; nothing stands in for anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aats import cli, launch
from aats.options import Exit

RING = (Path(__file__).parent.parent / "examples/ring/scenario.toml").read_text("utf-8")
HEART = (Path(__file__).parent.parent / "examples/healthcare/heart.toml").read_text("utf-8")


class Outcome:
    """What a launch said and left behind."""

    def __init__(self, code: int, out: str, err: str, left: list[str]) -> None:
        self.code, self.out, self.err, self.left = code, out, err, left

    @property
    def message(self) -> str:
        """The one error message."""
        found = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(found) == 1, self.err
        assert "Traceback" not in self.err
        return found[0]


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def launched(
        text: str | None, *more: str, world: str = "sim", path: Path | None = None
    ) -> Outcome:
        if text is not None:
            (tmp_path / "scenario.toml").write_text(text, "utf-8")
        out = tmp_path / "runs"
        line = [str(path or tmp_path), "--world", world, "--out", str(out), *more]
        code = launch.main(line)
        said = capsys.readouterr()
        left = sorted(str(p.relative_to(out)) for p in out.rglob("*")) if out.is_dir() else []
        return Outcome(code, said.out, said.err, left)

    return launched


def changed(old: str, new: str, text: str = RING) -> str:
    assert old in text
    return text.replace(old, new)


PLACES = [
    # (what stands in the ring's scenario, what instead, what the message must say)
    ("seed = 1", "sed = 1", "scenario: 'sed' .* did you mean 'seed'"),
    ("wrong_labels = 0.4", "wrong_lables = 0.4", r"nodes\.n6\.data\.tumours: 'wrong_lables'.*mean"),
    ("nodes = 8", 'nodes = "eight"', r"topology\.generator\.nodes: 'eight' .* a whole number"),
    ("nodes = 8", "nodes = 100000000", r"topology\.generator: .*nodes must be 1-100000"),
    ("[links]", "[links", "line 11, column 7.* must be valid TOML"),
    ("value = 0.9", "value = 1.2", r"requirement\[0\]\.value: 1\.2 .* at most 1"),
    ('"minibatch"', '"minibach"', r"packets\[0\]\.policy: 'minibach'.* did you mean 'minibatch'"),
    ('"mlp"', '"mpl"', r"packets\[0\]\.model: 'mpl' .* did you mean 'mlp'"),
    ('"sequential"', '"sequencial"', r"packets\[0\]\.method: .* did you mean 'sequential'"),
    ('"breast-cancer"', '"brest-cancer"', r"tumours\.source: .* did you mean 'breast-cancer'"),
    ('"dirichlet"', '"dirichlett"', r"tumours\.partition: .* did you mean 'dirichlet'"),
    ("hidden = [16]", "hiden = [16]", r"packets\[0\]\.model: .*'hiden' is unknown.*'hidden'"),
    ("hidden = [16]", "hidden = [1000000000]", r"packets\[0\]\.model: .* a whole number 1-1048576"),
    ("features = 30", "features = 31", r"packets\[0\]\.model: .* do not fit the model"),
    ("lr = 0.1", "learning = 0.1", r"packets\[0\]\.method: .*learning.* known parameters"),
    ("lr = 0.1", 'lr = "fast"', r"packets\[0\]\.method: .*'fast' .* a number is wanted"),
    ("lr = 0.1", "lr = inf", r"toml: packets\[0\]\.method\.lr: inf .* a finite number is wanted"),
    ("lr = 0.1", "lr = nan", r"toml: packets\[0\]\.method\.lr: nan .* a finite number is wanted"),
    ("lr = 0.1", f"lr = {1 << 64}", r"method\.lr: 18446744073709551616 .* at most 64 bits"),
    ("lr = 0.1", "lr = 2026-01-01", r"packets\[0\]\.method\.lr: '2026-01-01' .* a string, number"),
    ("lr = 0.1", "measures = [{ rate = -inf }]", r"method\.measures\[0\]\.rate: -inf .* finite"),
    (
        'policy = "minibatch"',
        'policy = { name = "oort", a = inf }',
        r"packets\[0\]\.policy\.a: inf",
    ),
    ('policy = "minibatch"', 'rendezvous = { name = "fedavg", c = nan }', r"rendezvous\.c: nan"),
    ("hidden = [16]", "hidden = [inf]", r"packets\[0\]\.model\.hidden\[0\]: inf .* finite"),
    ("seed = 1", f"seed = {1 << 64}", r"scenario\.seed: 1844\d+ .* at most 64 bits"),
    ("alpha = 1.0", "alpha = nan", r"toml: .*tumours\.partition\.alpha: nan .* a finite number"),
    ('policy = "minibatch"', 'policy = { name = "minibatch", epsilon = 3.0 }', "epsilon within"),
    ('owner = "n0"', 'owner = "n99"', r"packets\[0\]\.owner: 'n99' .* known nodes are n0"),
    ('contributes_to = ["n4"]', 'contributes_to = ["n5"]', "'n5' .* known MPVUs are n4"),
    ("[nodes.n6]\n", "[nodes.n66]\n", "nodes: 'n66' .* did you mean 'n6'"),
]


@pytest.mark.parametrize(("old", "new", "said"), PLACES, ids=[new[:24] for _, new, _ in PLACES])
def test_a_wrong_scenario_is_told_by_place_value_and_what_is_allowed(
    run: Run,
    old: str,
    new: str,
    said: str,
) -> None:
    found = run(changed(old, new))
    assert found.code == Exit.USAGE
    assert re.search(said, found.message), found.message
    assert found.left == []
    assert found.out == ""


def test_a_name_that_would_be_a_destination_is_no_skill(run: Run) -> None:
    found = run(RING.replace("tumours", "target_node"))
    assert found.code == Exit.USAGE
    assert "no skill of that name" in found.message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('skill = "tumours"', 'skill = "fractures"', "nobody has data for skill 'fractures'"),
        ("hops = 60", "hops = 1", "4 hops from owner n0, the budget 1"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_runs(
    run: Run,
    old: str,
    new: str,
    said: str,
) -> None:
    found = run(changed(old, new))
    assert found.code == Exit.INFEASIBLE
    assert said in found.message
    assert found.left == []


def test_a_budget_that_is_too_small_comes_home_unmet(run: Run) -> None:
    found = run(changed("hops = 60", "hops = 4"), "--format", "json")
    assert found.code == Exit.NOT_MET
    (packet,) = json.loads(found.out)["packets"]
    assert packet["status"] == "home"
    assert packet["requirement_met"] is False


def test_visits_that_diverge_are_undone_and_the_ledger_says_so(run: Run, tmp_path: Path) -> None:
    found = run(changed("lr = 0.1", "lr = 1e30").replace("hops = 60", "hops = 12"))
    assert found.code == Exit.NOT_MET
    (ledger,) = (tmp_path / "runs").glob("*/ledger/*.jsonl")
    kinds = [json.loads(line).get("kind") for line in ledger.read_text("utf-8").splitlines()[1:]]
    assert "rolled-back" in kinds
    assert "train" not in kinds
    assert cli.main(["ledger", "verify", str(ledger.parent.parent)]) == Exit.OK


def test_data_that_is_not_there_is_named_with_where_to_get_it(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AATS_DATA", raising=False)
    found = run(HEART)
    assert found.code == Exit.USAGE
    assert "archive.ics.uci.edu" in found.message
    found = run(HEART, "--set", "data.root=/nowhere/at/all")
    assert "/nowhere/at/all" in found.message
    assert found.left == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--policy", "teleport"], "'teleport' .* known policies are alignment"),
        (["--compare", "cycle,teleport"], "'teleport' .* known policies are alignment"),
        (["--set", "links.los=0.1"], "'los' .* did you mean 'loss'"),
        (["--set", "links.loss=2"], r"links\.loss: 2\.0 .* at most 1"),
        (["--set", "nonsense"], "--set: 'nonsense' .* table.key=value"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere: cannot make a folder"),
        (["--out", "/dev/null"], "--out /dev/null: cannot make a folder"),
    ],
)
def test_a_wrong_option_is_told(run: Run, more: list[str], said: str) -> None:
    found = run(RING, *more)
    assert found.code == Exit.USAGE
    assert re.search(said, found.message), found.message
    assert found.left == []


@pytest.mark.parametrize("name", ["nowhere", "nowhere.toml", ""])
def test_a_path_without_a_scenario_is_told(run: Run, tmp_path: Path, name: str) -> None:
    found = run(None, path=tmp_path / name)
    assert found.code == Exit.USAGE
    assert "a scenario file or a folder with a scenario.toml is wanted" in found.message


def test_a_file_that_is_no_text_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00junk")
    assert "readable text" in run(None, path=tmp_path / "x.toml").message


def test_a_wrong_model_is_told_by_a_comparison_too(tmp_path: Path) -> None:
    """The runs of a comparison have processes of their own; an error must cross to here."""
    (tmp_path / "scenario.toml").write_text(changed("hidden = [16]", "hiden = [16]"), "utf-8")
    line = [sys.executable, "-m", "aats.launch", str(tmp_path), "--world", "sim",
            "--compare", "cycle,random", "--out", str(tmp_path / "runs")]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == Exit.USAGE, done.stderr
    assert "Traceback" not in done.stderr
    assert "'hiden' is unknown" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_port_in_use_is_told(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        if port > 65_000:
            pytest.skip("the system gave a port that no scenario may have")
        found = run(RING, "--set", f"live.base_port={port}", world="live")
    assert found.code == Exit.USAGE
    assert str(port) in found.message


@pytest.mark.slow
@pytest.mark.parametrize("world", ["sim", "live"])
def test_an_interrupted_run_ends_at_once_and_leaves_no_process(tmp_path: Path, world: str) -> None:
    text = changed("value = 0.9", "value = 1.0").replace("hops = 60", "hops = 100000")
    (tmp_path / "scenario.toml").write_text(text, "utf-8")
    line = [sys.executable, "-m", "aats.launch", str(tmp_path), "--world", world,
            "--format", "jsonl", "--out", str(tmp_path / "runs")]  # fmt: skip
    mark = f"AATS_TEST_MARK={tmp_path}"
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "AATS_TEST_MARK": str(tmp_path)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for event in process.stdout:
            if '"visit.finished"' in event:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == Exit.INTERRUPTED, err
    assert "Traceback" not in err
    assert not _marked(mark)


def _marked(mark: str) -> list[str]:
    """Return the processes that have inherited a mark in their environment, by command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found
