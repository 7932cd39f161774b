import os
from pathlib import Path
from types import ModuleType

import pytest

from aats.learning.heart import read_heart

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED_FEDAVG_SEED_42 = (
    0.7596153846153846, 0.6966292134831461, 0.6875, 0.6222222222222222, 0.7519685039370079,
)  # fmt: skip
"""FLamby's heart_seed42.csv, method FedAvg100: the four hospitals and the Pooled Test."""


@pytest.fixture
def fed_heart(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fed_heart

    return fed_heart


@pytest.fixture
def root() -> Path:
    data = Path(os.environ.get("AATS_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "uci-heart").is_dir():
        pytest.skip("no UCI heart files: set AATS_DATA to the folder that holds uci-heart")
    return data


def test_fedavg_gives_flambys_published_figures_to_the_last_digit(
    fed_heart: ModuleType, root: Path
) -> None:
    data = fed_heart.Hospitals.of(read_heart(str(root)))
    model, work = fed_heart.train_fedavg(data.train, 42)
    scores = data.scores(model)
    sites = [scores[name] / 100 for name in fed_heart.HOSPITALS]
    assert (*sites, scores["Pooled Test"] / 100) == pytest.approx(PUBLISHED_FEDAVG_SEED_42, abs=0)
    assert (work.updates, work.transfers) == (6000, 120)


@pytest.mark.parametrize("seed", [42, 43])
def test_a_packet_trains_bit_for_bit_as_one_process_does(
    fed_heart: ModuleType, root: Path, seed: int
) -> None:
    data = fed_heart.Hospitals.of(read_heart(str(root)))
    packet = fed_heart.run_packet(root, seed)
    assert [hop for hop, _ in packet.visits] == list(range(1, 17))
    for cycle in range(4):
        names = {name for _, name in packet.visits[4 * cycle : 4 * cycle + 4]}
        assert names == set(fed_heart.HOSPITALS)
    assert fed_heart.difference(packet.weights, fed_heart.replay(packet, data.train)) == 0.0
    assert (packet.work.updates, packet.work.transfers) == (976, 17)


@pytest.mark.slow
def test_a_live_packet_trains_bit_for_bit_as_one_process_does(
    fed_heart: ModuleType, root: Path
) -> None:
    data = fed_heart.Hospitals.of(read_heart(str(root)))
    packet = fed_heart.run_packet(root, 42, world="live")
    assert fed_heart.difference(packet.weights, fed_heart.replay(packet, data.train)) == 0.0
    assert data.scores(packet.model)["Pooled Test"] >= 77.0
