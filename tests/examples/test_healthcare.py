import os
from pathlib import Path
from types import ModuleType

import pytest

from aats.config.load import load_scenario
from aats.oam.progress import progress
from aats.oam.view import RunView
from aats.run import Watch, run_simulated

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "healthcare"


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import pooled

    return pooled


def test_hospitals_are_many_unequal_and_partly_bad() -> None:
    scenario = load_scenario(FOLDER)
    hospitals = scenario.holders("oncology")
    held = [scenario.nodes[name].data.get("oncology") for name in hospitals]
    bad = [name for name, data in zip(hospitals, held, strict=True) if data and data.wrong_labels]
    assert len(hospitals) == 16
    assert len(bad) == 5
    assert not any(scenario.nodes[name].contributes_to for name in bad)
    assert len({scenario.nodes[name].samples_per_s for name in hospitals}) > 8
    assert len({data.share for data in held if data}) > 4


def test_both_packets_meet_their_requirement() -> None:
    scenario = load_scenario(FOLDER)
    view = RunView()
    with progress(view, "", quiet=True) as shown:
        home = run_simulated(scenario, None, Watch(view, shown))
    headers = {header.mandate.label: header for header, _ in home.values()}
    assert set(headers) == {"oncologist", "diabetologist"}
    assert all(header.requirement_met for header in headers.values())
    assert max(header.hop for header in headers.values()) < 130


def test_a_pooled_model_reaches_the_targets_with_slack(pooled: ModuleType) -> None:
    scenario = load_scenario(FOLDER)
    found = pooled.measure(scenario)
    wanted = {
        skill: max(t.value for p in scenario.packets for t in p.requirement if t.skill == skill)
        for skill in scenario.data.skills
    }
    for skill, target in wanted.items():
        assert found[skill, "contributing hospitals"] > target
    assert found["oncology", "every hospital"] < found["oncology", "contributing hospitals"]


def test_one_packet_learns_at_four_real_hospitals() -> None:
    root = Path(os.environ.get("AATS_DATA", FOLDER.parents[2] / "shared" / "data"))
    if not (root / "uci-heart").is_dir():
        pytest.skip("no UCI heart files: set AATS_DATA to the folder that holds uci-heart")
    scenario = load_scenario(FOLDER / "heart.toml", [f"data.root={root}"])
    view = RunView()
    with progress(view, "", quiet=True) as shown:
        ((header, _),) = run_simulated(scenario, None, Watch(view, shown)).values()
    assert header.requirement_met


def test_the_heart_scenario_says_where_its_files_come_from(tmp_path: Path) -> None:
    from aats.compose import compose
    from aats.errors import DataError

    scenario = load_scenario(FOLDER / "heart.toml", [f"data.root={tmp_path}"])
    with pytest.raises(DataError, match="UCI Machine Learning Repository"):
        compose(scenario)
