from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aats.errors import LocalError, ScenarioError, UnknownPluginError
from aats.packet import Plugin
from aats_agents.command import app
from aats_agents.evaluate.case import Journey, cases_of
from aats_agents.evaluate.report import FAILURE, bootstrap_mean, plot, summarise
from aats_agents.evaluate.specs import Spec, spec_of


def journey(policy: str, seed: int, seconds: float, *, success: bool = True) -> Journey:
    return Journey(policy, "f", seed, seconds, 0.5, 10, 1e3, success, 0.0)


SPECS = [Spec(name, Plugin(name)) for name in ("random", "minibatch", "rl", "oracle")]


def runs(**seconds: list[float]) -> list[Journey]:
    return [journey(name, i, s) for name, all_s in seconds.items() for i, s in enumerate(all_s)]


def test_ratios_are_paired_and_the_gap_is_between_best_heuristic_and_oracle() -> None:
    found = summarise(
        runs(random=[40, 80], minibatch=[16, 4], rl=[8, 2], oracle=[4, 1]), SPECS
    )["f"]  # fmt: skip
    assert found["best_heuristic"] == "minibatch"
    policies = found["policies"]
    assert policies["rl"]["charged"]["ratio"] == pytest.approx(0.5)
    assert policies["rl"]["charged"]["ci95"] == pytest.approx([0.5, 0.5])
    assert policies["rl"]["gap_closed"]["share"] == pytest.approx(0.5)
    assert policies["oracle"]["gap_closed"]["share"] == pytest.approx(1.0)
    assert policies["random"]["gap_closed"]["share"] < 0
    assert policies["random"]["charged"]["ratio"] == pytest.approx(math.sqrt(2.5 * 20))


def test_a_failure_is_charged_and_left_out_where_both_must_succeed() -> None:
    journeys = [*runs(random=[10, 10], minibatch=[10, 10], oracle=[1, 1]),
                journey("rl", 0, 5.0), journey("rl", 1, 1.0, success=False)]  # fmt: skip
    mine = summarise(journeys, SPECS)["f"]["policies"]["rl"]
    assert mine["both_succeed"] == {"ratio": 0.5, "ci95": [0.5, 0.5], "n": 1}
    charged = (1.0 + 0.5 * FAILURE) / 10
    assert mine["charged"]["ratio"] == pytest.approx(math.sqrt(0.5 * charged))
    assert mine["success"] == 0.5


def test_the_bootstrap_covers_the_mean() -> None:
    mean, low, high = bootstrap_mean([1.0, 2.0, 3.0, 4.0])
    assert low < mean == 2.5 < high
    assert math.isnan(bootstrap_mean([])[0])


def test_a_plot_names_every_policy() -> None:
    summary = summarise(runs(random=[4, 8], minibatch=[1, 2], rl=[1, 2], oracle=[1, 1]), SPECS)
    axes = plot(summary).axes[0]
    assert {label.get_text() for label in axes.get_yticklabels()} == {s.name for s in SPECS}


def test_policies_are_named_with_parameters() -> None:
    spec = spec_of("minibatch:probes=5,epsilon=0.2")
    assert spec.plugin == Plugin("minibatch", {"probes": 5, "epsilon": 0.2})
    assert spec.is_heuristic
    assert spec_of("cycle:order=shuffled").plugin.params == {"order": "shuffled"}
    assert spec_of("rl").is_learned
    assert not spec_of("oracle").is_heuristic


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("minibach", UnknownPluginError),
        ("minibatch:probes", ScenarioError),
        ("minibatch:probs=3", LocalError),
        ("nowhere/mine.safetensors", ScenarioError),
    ],
)
def test_a_policy_that_is_none_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        spec_of(text)


def test_a_world_that_is_none_is_refused() -> None:
    with pytest.raises(ScenarioError, match="one of small, train"):
        cases_of(["smal"], range(1))


def test_the_command_compares_and_keeps_what_it_found(tmp_path: Path) -> None:
    arguments = ["eval", "small", "--seeds", "2", "--jobs", "1", "--policies",
                 "random,greedy-prior,oracle", "--json", "--out", str(tmp_path)]  # fmt: skip
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    kept = json.loads((tmp_path / "eval.json").read_text())
    assert json.loads(ran.stdout)["families"] == kept["families"]
    assert len(kept["journeys"]) == 6
    policies = kept["families"]["small"]["policies"]
    assert policies["oracle"]["charged"]["ratio"] < 1 <= policies["random"]["charged"]["ratio"]
    assert (tmp_path / "eval.svg").read_text().startswith("<svg")
