"""`aats advise`: what a scenario tells of a packet's task, and what is recommended for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aats import cli
from aats.advise import setting_for, slice_share
from aats.config.load import build
from aats.packet import Architecture

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = {"name": "logistic", "features": 64, "classes": 10}


def scenario(**packet: Any) -> dict[str, Any]:
    """Return five nodes of which each has one class in two, and a packet."""
    return {
        "topology": {"edges": [["o", n] for n in "abcde"]},
        "nodes": {"o": {"roles": ["owner"]}, "a": {"memory_mb": 3}, "b": {"memory_mb": 9}},
        "data": {"skills": {"digits": {
            "source": "digits", "held_out": 0.0, "test": 0.0, "reference": 0,
            "partition": {"name": "shards", "classes_per_node": 2},
        }}},
        "packets": [{
            "name": "reader", "owner": "o", "model": MODEL,
            "requirement": [{"skill": "digits", "value": 1.0, "verifier": "any"}],
            "method": {"name": "sequential", "equal_steps": 50, "visits": 15}, **packet,
        }],
    }  # fmt: skip


def test_a_scenario_tells_what_a_task_is_like() -> None:
    found = setting_for(build(scenario(budget={"hops": 99, "bytes": 5e6})), removable=True)
    assert (found.nodes, found.convex, found.local_steps) == (5, True, 50.0)
    assert found.model_bytes == 4 * (64 * 10 + 10)
    assert found.skew == pytest.approx(0.61, abs=0.02)
    assert (found.memory_bytes, found.budget_bytes) == (3e6, 5e6)
    assert found.passes == found.rounds == 3.0
    assert found.removable
    bounded = setting_for(build(scenario(budget={"hops": 10})))
    assert bounded.passes == 2.0


def test_the_slice_of_a_snake_is_the_largest_there_is() -> None:
    deep = Architecture("mlp", {"features": 4, "hidden": [8, 8, 8], "classes": 2})
    sizes = (4 * 8 + 8, 8 * 8 + 8, 8 * 8 + 8, 8 * 2 + 2)
    assert slice_share(deep) == (sizes[0] + sizes[1] + sizes[3]) / sum(sizes)
    assert slice_share(Architecture("logistic", {"features": 4, "classes": 2})) == 1.0


def advised(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    return cli.main(["advise", *words]), capsys.readouterr().out


def test_the_command_says_what_to_take_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = advised(str(EXAMPLES / "ring"), capsys=capsys)
    assert code == 0
    assert "take     sequential" in text
    assert "because  a label skew of 0.05" in text
    assert 'write    method = { name = "sequential" }' in text


def test_it_speaks_json_with_what_nothing_in_the_file_tells(
    capsys: pytest.CaptureFixture[str],
) -> None:
    views = str(EXAMPLES / "two_views")
    code, text = advised(views, "--bits-per-sample", "24", "--format", "json", capsys=capsys)
    assert code == 0
    (row,) = json.loads(text)
    assert (row["take"], row["rendezvous"]["name"]) == ("inl", "assemble")
    assert row["setting"]["bits_per_sample"] == 24.0
    _, text = advised(str(EXAMPLES / "ring"), "--removable", capsys=capsys)
    assert 'method = { name = "lora" }' in text


def test_an_unknown_packet_is_named_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["advise", str(EXAMPLES / "ring"), "--packet", "lerner"]) == 2
    assert "packets of" in (said := capsys.readouterr().err)
    assert "did you mean 'learner'" in said
