"""What the benchmark of Snake reckons from journeys."""

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def snake(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import snake

    return snake


def test_every_way_is_compared_with_a_fedavg_of_its_split_and_its_loss(snake: Any) -> None:
    chosen = snake.ways(3, 5, 0.3)
    by_name = {way.name: way for way in chosen}
    assert len(by_name) == len(chosen)
    for way in chosen:
        rival = by_name[way.against]
        assert rival.rendezvous
        assert rival.alpha == way.alpha
        if "calibrated" in way.method:
            assert rival.method["calibrated"]


def test_accuracy_within_bytes_is_the_best_they_were_enough_for(snake: Any) -> None:
    journey = snake.Journey([0.1, 0.2, 0.4, 0.6, 0.8, 0.7], [10, 20, 30, 40, 50, 60])
    assert journey.final == pytest.approx(0.7)
    assert journey.rise == pytest.approx(0.7 - 0.7 / 3)
    assert journey.best_within(45) == 0.6
    assert journey.best_within(60) == 0.8
    assert journey.best_within(9) == 0.0
    assert journey.bytes_to(0.6) == 40
    assert journey.bytes_to(0.9) == float("inf")


def test_a_row_sets_each_seed_beside_its_rivals(snake: Any) -> None:
    def journeys(*finals: float) -> list[Any]:
        return [snake.Journey([f] * 6, [1e6 * n for n in range(1, 7)], [1] * 6) for f in finals]

    chosen = [snake.Way("fedavg", "star", {}), snake.Way("snake", "ring", {})]
    found = {"fedavg": journeys(0.8, 0.8), "snake": journeys(0.6, 0.8, 0.1)}
    rows = {row["way"]: row for row in snake.summary(chosen, found, [0.7])}
    assert rows["snake"]["of FedAvg"] == pytest.approx(0.7 / 0.8), "of the two seeds both have"
    assert rows["snake"]["final"] == pytest.approx(0.5)
    assert rows["fedavg"]["at equal bytes"] == 1
    assert rows["fedavg"]["MB to 70%"] == 1
    assert rows["snake"]["MB to 70%"] == "-"
