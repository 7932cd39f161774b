"""The examples of split learning run to their requirement in the simulated world."""

from pathlib import Path

import pytest

from aats.config.load import load_scenario
from aats.oam.progress import progress
from aats.oam.view import RunView
from aats.run import Watch, run_simulated

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "split"


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(f.name for f in FOLDER.glob("*.toml")))
def test_the_requirement_is_met(file: str) -> None:
    scenario = load_scenario(FOLDER / file)
    view = RunView()
    with progress(view, "", quiet=True) as shown:
        home = run_simulated(scenario, None, Watch(view, shown))
    ((header, _),) = home.values()
    assert header.requirement_met
    assert not any(scenario.nodes[e.node].data for e in header.journal if e.node == "n0")
    assert header.spent.bytes > 1e6
