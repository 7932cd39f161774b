from pathlib import Path

import pytest

from aats.config.load import load_scenario
from aats.lineage import RecordKind
from aats.oam.progress import Quiet
from aats.oam.view import RunView
from aats.run import Watch, run_simulated

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "federated"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_a_packet_that_forks_learns_all_digits(path: Path) -> None:
    view = RunView()
    home = run_simulated(load_scenario(path), None, Watch(view, Quiet(view, None)))  # type: ignore[arg-type]
    ((header, _),) = home.values()
    assert header.requirement_met
    assert any(record.kind is RecordKind.MERGE for record in header.chain)
