from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
from stable_baselines3.common.vec_env import VecEnv

from aats import cli
from aats.errors import DataError
from aats_agents.policy_file import PolicyFile, load, save
from aats_agents.prior import Prior
from tests.agents.rl.toy import ToyVecEnv
from tests.agents.rl_samples import random_weights


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Put the toy in the place of the real environments; yield what they were asked for."""
    asked: list[dict[str, Any]] = []

    def make(num_envs: int, **options: Any) -> VecEnv:
        asked.append(options)
        return ToyVecEnv(num_envs, options["seed"])

    module = ModuleType("aats_envs.sb3")
    module.KnowledgeVecEnv = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aats_envs.sb3", module)
    before = torch.get_num_threads()
    yield asked
    torch.set_num_threads(before)


def train(out: Path, *options: str) -> int:
    return cli.main(["policy", "train", "--out", str(out), "--envs", "8", *options])


def test_help_loads_nothing_of_what_training_needs() -> None:
    script = (
        "import sys; from aats.cli import main; code = main(['--help']); "
        "print(code, *{'torch', 'gymnasium', 'numpy', 'stable_baselines3'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "0"
    assert "policy" in found.stdout


def test_the_policy_commands_stand_beside_the_networks_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["policy", "--help"]) == 0
    said = capsys.readouterr().out
    for name in ("ls", "train", "eval", "calibrate", "show"):
        assert f"\n  {name} " in said


def test_a_policy_is_trained_from_the_command_line(
    asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "p.safetensors"
    options = ("--preset", "small", "--steps", "256", "--probes", "2", "--seed", "4")
    assert train(out, *options) == 0
    said = capsys.readouterr()
    assert "0/256 decisions: success" in said.err
    assert "256/256 decisions: success" in said.err
    assert f"--policy {out}" in said.out
    policy = load(out)
    assert policy.training.world == "preset:small"
    assert len(policy.training.world_digest) == 64
    assert (policy.training.seed, policy.training.steps, policy.probes) == (4, 256, 2)
    assert {(o["preset"], o["scenario"], o["probes"]) for o in asked} == {("small", None, 2)}
    nothing = ("--preset", "small", "--steps", "0", "--no-prior")
    assert train(tmp_path / "q.safetensors", *nothing) == 0
    assert load(tmp_path / "q.safetensors").prior is None


def test_a_scenario_can_be_trained_on(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    assert train(out, "--scenario", "examples/ring", "--steps", "0") == 0
    assert load(out).training.world == "scenario:ring"
    assert asked[0]["scenario"] == Path("examples/ring")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "one of --preset and --scenario"),
        (("--preset", "small", "--scenario", "x"), "one of --preset and --scenario"),
        (("--preset", "smal"), "did you mean 'small'"),
        (("--preset", "small", "--fallback", "rl"), "--fallback: 'rl'"),
        (("--preset", "small", "--resume"), "there is no such checkpoint"),
        (("--scenario", "no/such/place"), "no/such/place"),
    ],
)
def test_what_cannot_be_trained_is_told(
    options: tuple[str, ...], message: str, asked: list[dict[str, Any]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train(tmp_path / "p.safetensors", *options) == 2
    assert message in capsys.readouterr().err


def test_a_file_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.safetensors"
    policy = PolicyFile(random_weights(1), Prior(), {"log_size": (0.25, 0.5)}, 3)
    save(policy, path)
    assert cli.main(["policy", "show", str(path)]) == 0
    said = capsys.readouterr().out
    assert policy.digest in said
    assert "log_size 0.25..0.50" in said
    prior = Prior()
    assert f"cost {prior.cost:.3g}, need {prior.need:.3g}" in said
    assert cli.main(["policy", "show", str(tmp_path / "absent")]) == 2


def test_without_the_extra_its_name_is_told(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['sb3_contrib'] = None; from aats.cli import main; "
        f"sys.exit(main(['policy', 'train', '--preset', 'small', '--out', '{tmp_path}/p']))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert "pip install 'aats-network[rl]'" in found.stderr


def test_commands_of_other_modules_have_their_own_arguments_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def eval_command(name: str, times: int = 1) -> int:
        """Judge."""
        if name == "broken":
            raise DataError("it is broken")
        typer.echo(f"{name} {times}")
        return 3

    module = ModuleType("aats_agents.evaluate")
    module.eval_command = eval_command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aats_agents.evaluate", module)
    assert cli.main(["policy", "eval", "a", "--times", "2"]) == 3
    assert "a 2" in capsys.readouterr().out
    assert cli.main(["policy", "eval", "broken"]) == 2
    assert "error: it is broken" in capsys.readouterr().err
    assert cli.main(["policy", "eval", "a", "--colour", "2"]) == 2
    assert cli.main(["policy", "eval", "--help"]) == 0
    assert "--times" in capsys.readouterr().out
