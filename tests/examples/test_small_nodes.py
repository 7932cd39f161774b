"""The example of small nodes: both packets get home, having learned at large and small nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from aats.compose import compose
from aats.config.load import load_scenario
from aats.simulate import simulate

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "small_nodes"


@pytest.mark.slow
def test_packets_too_large_for_half_of_the_nodes_meet_their_requirement() -> None:
    scenario = load_scenario(FOLDER)
    homes = simulate(scenario, compose(scenario), lambda event: None)
    headers = {header.mandate.label: header for header, _ in homes.values()}
    assert {name: header.requirement_met for name, header in headers.items()} == {
        "slices": True, "words": True,
    }  # fmt: skip
    for header in headers.values():
        trained = [e.node for e in header.journal if e.samples]
        assert {"n1", "n2"} <= set(trained)
    assert headers["slices"].trained["ratio"] == 0.5
