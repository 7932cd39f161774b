"""The example of forgetting ends as its file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from aats.compose import compose
from aats.config.load import load_scenario
from aats.simulate import simulate

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "forgetting"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_replay_and_statistics_reach_what_plain_training_does_not() -> None:
    scenario = load_scenario(FOLDER)
    homes = simulate(scenario, compose(scenario), lambda event: None)
    met = {header.mandate.label: header.requirement_met for header, _ in homes.values()}
    assert met == {"plain": False, "teacher": False, "replay": True, "statistics": True}
