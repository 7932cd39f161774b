"""Calibration: known constants are found again, files are checked, one seed gives one fit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

from aats.calibration import calibrate_scenario, tasks_of
from aats.config import load_scenario
from aats.errors import ScenarioError
from aats.learning.calibrate import digits_task, fit_dynamics, predicted, quality_of
from aats.learning.dynamics import Dynamics
from aats.learning.fit import BOUNDS, SHIPPED, Fit, load_fit
from aats.learning.partition import Part
from aats.learning.pilot import WALKS, Hops, SkillPlan, Task, pilot
from aats.packet import Architecture, Plugin
from aats_agents.calibrate_command import calibrate_command, save_all

LAW = {"tau": 30.0, "maturity": 1.0, "forget": 90.0, "retain": 300.0, "hold": 1.0, "harm": 0.4}
SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.json"))


def surrogate_task() -> Task:
    parts = tuple(Part(f"n{i}") for i in range(8))
    plan = SkillPlan(
        Plugin("classes", {"number": 5, "samples": 900}), Plugin("dirichlet", {"alpha": 1.0}), parts
    )
    return Task(
        "known", Architecture("surrogate", {"classes": {"it": 5}}), Plugin("surrogate", LAW),
        {"it": plan},
    )  # fmt: skip


@pytest.fixture(scope="module")
def walked() -> Hops:
    return pilot(surrogate_task(), seed=3, hops=400)["it"]


def test_pilot_hops_tell_the_truth_about_a_node(walked: Hops) -> None:
    assert set(walked.kind.tolist()) == set(range(len(WALKS)))
    assert walked.wrong.sum() > 0
    assert walked.visits.max() >= 2
    truth = Dynamics(**LAW)
    # The surrogate's own law, seen through 36 test rows a class that are right or not.
    np.testing.assert_allclose(predicted(walked, truth), walked.after, atol=0.02)


def test_known_constants_are_found_again(walked: Hops) -> None:
    found = fit_dynamics(walked, seed=0)
    assert found.tau == pytest.approx(LAW["tau"], rel=0.1)
    assert found.forget == pytest.approx(LAW["forget"], rel=0.2)
    assert found.harm == pytest.approx(LAW["harm"], rel=0.2)
    assert found.start == 0.2
    other = pilot(surrogate_task(), seed=4, hops=200)["it"]
    quality = quality_of(found, other)
    assert quality.known.r2 > 0.99
    assert quality.known.open_loop_r2 > 0.99
    assert quality.probed.rho > 0.6


def test_fresh_deals_are_not_those_fitted_on(walked: Hops) -> None:
    again, other = (pilot(surrogate_task(), seed=s, hops=60)["it"] for s in (3, 4))
    assert (again.clean == walked.clean[: len(again)]).all()
    assert (again.scores == walked.scores[: len(again)]).all()
    assert not (other.clean == walked.clean[: len(other)]).all()


def test_real_training_is_recorded_and_repeats() -> None:
    task = digits_task()
    small = replace(task.skills["digits"], parts=tuple(Part(f"n{i}") for i in range(3)))
    task = replace(task, skills={"digits": small})
    first, second = (pilot(task, seed=1, hops=1, stops=2)["digits"] for _ in range(2))
    for name in ("known", "after", "scores", "accuracy", "clean"):
        assert (getattr(first, name) == getattr(second, name)).all()
    assert first.known[0].mean() == pytest.approx(0.1, abs=0.03)
    assert first.after.mean() > first.known[0].mean()


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_shipped_fits_load_and_come_back_as_saved(name: str, tmp_path: Path) -> None:
    fit = load_fit(name)
    fit.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (SHIPPED / f"{name}.json").read_text()
    assert all(low <= getattr(fit.dynamics, key) <= high for key, (low, high) in BOUNDS.items())


def test_what_ships() -> None:
    assert SHIPPED_NAMES == ["classic", "departments-diabetes", "departments-oncology", "digits"]
    classic, digits = load_fit("classic"), load_fit("digits")
    assert classic.quality is None
    assert all(getattr(classic.dynamics, key) == getattr(Dynamics(), key) for key in BOUNDS)
    assert digits.quality is not None
    assert digits.quality.known.rho > 0.6
    assert digits.epochs == 2


def broken(tmp_path: Path, change: str) -> Path:
    found = json.loads((SHIPPED / "digits.json").read_text())
    match change:
        case "version":
            found["version"] = 99
        case "unknown":
            found["dynamics"]["taus"] = 1.0
        case "missing":
            del found["dynamics"]["hold"]
        case "range":
            found["dynamics"]["tau"] = -1.0
        case "nan":
            found["dynamics"]["tau"] = math.nan
        case "top":
            found["extra"] = 1
        case "quality":
            del found["quality"]["probed"]["rho"]
    path = tmp_path / "broken.json"
    path.write_text("{" if change == "json" else json.dumps(found))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("version", "this reads version 1"),
        ("unknown", r"dynamics.taus.*did you mean 'tau'"),
        ("missing", "dynamics.hold.*missing"),
        ("range", r"dynamics.tau.*-1.0.*1 to 5000"),
        ("nan", "dynamics.tau.*nan"),
        ("top", "extra.*known keys"),
        ("quality", "quality.probed.rho.*missing"),
        ("json", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        load_fit(broken(tmp_path, change))


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ScenarioError, match="did you mean 'digits'"):
        load_fit("digit")


SMALL = """
[scenario]
name = "small"

[topology]
generator = { name = "ring", nodes = 6 }

[data.skills.it]
source = { name = "classes", number = 3, samples = 600 }
partition = { name = "dirichlet", alpha = 1.0 }

[[packets]]
name = "p"
owner = "n0"
requirement = [{ skill = "it", value = 0.9, verifier = "any" }]
model = { name = "surrogate", classes = { it = 3 } }
method = "surrogate"
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_a_scenario_is_calibrated_on_its_own_data(small: Path) -> None:
    (task,) = tasks_of(load_scenario(small))
    assert task.architecture.name == task.method.name == "surrogate"
    assert [part.node for part in task.skills["it"].parts] == [f"n{i}" for i in range(6)]
    told: list[tuple[int, int]] = []
    fits = calibrate_scenario(
        load_scenario(small), 0, 200, lambda made, of: told.append((made, of))
    )
    assert fits["it"].skill == "it"
    assert fits["it"].quality is not None
    assert fits["it"].quality.known.r2 > 0.9
    assert told == sorted(told)
    assert told[-1] == (200, 200)


def test_a_scenario_without_training_is_refused(small: Path) -> None:
    with pytest.raises(ScenarioError, match="kind 'train'"):
        tasks_of(replace(load_scenario(small), packets=()))


def test_the_command_writes_what_can_be_loaded(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fit.json"
    assert calibrate_command(small, out, 0, 200) == 0
    shown = capsys.readouterr().out
    assert "walk R2" in shown
    assert f"fit: {out}" in shown
    assert load_fit(out).name == "small"
    with pytest.raises(typer.BadParameter, match=r"a fit is a \.json file"):
        calibrate_command(small, tmp_path / "fit.txt")


def test_several_skills_go_to_several_files(tmp_path: Path) -> None:
    fits: dict[str, Fit] = dict.fromkeys(("a", "b"), load_fit("digits"))
    files = save_all(fits, tmp_path / "fit.json")
    assert [file.name for file in files] == ["fit-a.json", "fit-b.json"]
    assert all(file.is_file() for file in files)
