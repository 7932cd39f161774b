"""What a trace tells of a run."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from aats.config.load import load_scenario
from aats.ledger.file import verify_ledger
from aats.oam.plots import bad_nodes, layout
from aats.oam.progress import LiveTable, PlainLines, human_bytes, skills_line
from aats.oam.report import report
from aats.oam.rundir import new_run_dir, read_events, write_run
from aats.oam.view import RunView
from aats.run import Watch, run_simulated
from aats.text import printable

RING = Path(__file__).parents[2] / "examples" / "ring"


def event(t: float, node: str, name: str, **fields: Any) -> dict[str, Any]:
    """Return a trace event about the packet "p"."""
    return {"t": t, "node": node, "event": name, "packet": "p", **fields}


def skill(value: float, source: str = "reference", by: str = "b") -> dict[str, Any]:
    """Return the trace's word on one skill."""
    return {
        "s": {"metric": "accuracy", "value": value, "low": value - 0.1, "high": value + 0.1,
              "source": source, "by": by, "target": 0.9, "met": source == "mpvu"}
    }  # fmt: skip


STORY = [
    event(5.0, "a", "packet.submitted", label="one", kind="train", hop_budget=9,
          requirement={"s": 0.9}),
    event(6.0, "b", "packet.received", hop=1, epoch=0, sender="a", wire_bytes=10),
    event(7.0, "b", "visit.finished", hop=1, action="train", data_of="b", bytes=100.0,
          skills=skill(0.7)),
    event(8.0, "c", "packet.received", hop=2, epoch=0, sender="b", wire_bytes=10),
    event(9.0, "b", "packet.regenerated", hop=1, epoch=1),
    event(9.5, "c", "packet.received", hop=3, epoch=0, sender="d", wire_bytes=10),
    event(10.0, "d", "packet.received", hop=2, epoch=1, sender="b", wire_bytes=10),
    event(11.0, "d", "verdict", hop=2, bytes=200.0, skills=skill(0.95, "mpvu", "d")),
    event(12.0, "a", "packet.received", hop=3, epoch=1, sender="d", wire_bytes=10),
    event(12.0, "a", "packet.home", hop=3, met=True, hops=3, seconds=7.0, bytes=300.0,
          probe_bytes=50.0, skills=skill(0.95, "mpvu", "d")),
]  # fmt: skip


def told(events: list[dict[str, Any]]) -> RunView:
    """Return the view after these events."""
    view = RunView()
    for e in events:
        view.apply(e)
    return view


def test_a_packets_children_are_told_of_in_its_view() -> None:
    child = {"packet": "p~0-0-0"}
    view = told(
        [
            *STORY[:1],
            event(5.1, "a", "packet.forked", hop=0, children=["p~0-0-0", "p~0-0-1"], within_s=9.0),
            event(6.0, "b", "packet.received", hop=1, epoch=0, sender="a", wire_bytes=10) | child,
            event(7.0, "b", "visit.finished", action="train") | child,
            event(8.0, "a", "packet.back", hop=2) | child,
            event(9.0, "a", "packet.merged", hop=3, bytes=50.0, seconds=0.1, skills=skill(0.8),
                  merged=["p~0-0-0"], missing=["p~0-0-1"]),
        ]
    )  # fmt: skip
    (packet,) = view.packets.values()
    assert (packet.where, packet.rounds, packet.visits_of_children) == ("a", 1, 1)
    assert packet.skills["s"]["value"] == 0.8
    assert packet.doing == "merged 1 children"
    assert view.result(packet)["rounds"] == 1
    assert view.result(packet)["route"] == ["a"]


def test_a_regenerated_packet_s_route_is_that_of_the_living_copy() -> None:
    packet = told(STORY).packets["p"]
    assert packet.route == ["a", "b", "d", "a"]
    assert packet.regenerated == 1
    assert packet.stops == [(1, "b", "train"), (2, "d", "verify")]


def test_the_result_says_who_verified_what() -> None:
    view = told(STORY)
    result = view.result(view.packets["p"])
    assert result["status"] == "home"
    assert result["requirement_met"] is True
    assert result["skills"]["s"]["verified_by"] == "d"
    assert (result["hops"], result["bytes_moved"], result["probe_bytes"]) == (3, 300, 50)
    json.dumps(result)


def test_an_own_estimate_is_no_verification() -> None:
    view = told(STORY[:3])
    result = view.result(view.packets["p"])
    assert result["skills"]["s"]["verified_by"] is None
    assert result["requirement_met"] is False


def test_lines_count_time_from_the_first_event() -> None:
    view, stream = RunView(), StringIO()
    with PlainLines(view, stream) as lines:
        for e in STORY:
            view.apply(e)
            lines.event(e)
    text = stream.getvalue().splitlines()
    assert text[0].lstrip().startswith("0.00 s  one")
    assert text[-1].lstrip().startswith("7.00 s  one")
    assert "s 0.950/0.90 ok" in text[-1]


@pytest.mark.parametrize("reason", ["[/x] [red]no", "no\x1b[2J\r\nforged"])
def test_reasons_from_others_are_shown_as_they_are(
    reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    view, stream = told(STORY[:2]), StringIO()
    bad = event(6.1, "b", "packet.refused", hop=1, by="c", reason=reason)
    view.apply(bad)
    with PlainLines(view, stream) as lines:
        lines.event(bad)
    assert printable(reason) in stream.getvalue()
    assert stream.getvalue().count("\n") == 1
    with LiveTable(view, "") as table:
        table.event(bad)
    shown = " ".join(capsys.readouterr().err.split())
    assert printable(reason).split()[0] in shown
    assert "\x1b[2J" not in shown


def test_words_for_sizes_and_skills() -> None:
    assert [human_bytes(n) for n in (0, 999, 1500, 2_500_000)] == ["0 B", "999 B", "1.5 kB",
                                                                   "2.5 MB"]  # fmt: skip
    assert skills_line(told(STORY[:1]).packets["p"]) == "s -/0.90"


@pytest.mark.parametrize("seed", [1])
def test_a_run_directory_holds_all_it_names(tmp_path: Path, seed: int) -> None:
    scenario = load_scenario(RING, [f"scenario.seed={seed}"])
    view = RunView()
    run_dir = new_run_dir(tmp_path, scenario.name, "sim")
    with PlainLines(view, StringIO()) as shown:
        delivered = run_simulated(scenario, run_dir, Watch(view, shown))
    write_run(run_dir, scenario, view, delivered, {"run": run_dir.name}, {"run_id": run_dir.name})
    names = {p.name for p in run_dir.iterdir()}
    assert names == {"scenario.toml", "events.jsonl", "result.json", "metrics.csv", "ledger",
                     "models", "plots", "report.html"}  # fmt: skip
    assert verify_ledger(run_dir / "ledger" / "learner.jsonl").records >= 3
    assert load_scenario(run_dir / "scenario.toml").digest() == scenario.digest()
    replayed = told(list(read_events(run_dir / "events.jsonl")))
    assert [replayed.result(p) for p in replayed.packets.values()] == [
        view.result(p) for p in view.packets.values()
    ]


def test_a_model_that_came_home_can_be_loaded_by_torch(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    scenario = load_scenario(RING)
    view = RunView()
    with PlainLines(view, StringIO()) as shown:
        delivered = run_simulated(scenario, None, Watch(view, shown))
    write_run(tmp_path, scenario, view, delivered, {}, {})
    ((_, payload),) = delivered.values()
    tensors = load_file(tmp_path / "models" / "learner.safetensors")
    arrays = payload.arrays("model.")
    assert set(tensors) == {name.removeprefix("model.") for name in arrays}
    for name, tensor in tensors.items():
        assert (tensor.numpy() == arrays[f"model.{name}"]).all()


def test_the_report_needs_nothing_from_anywhere_and_escapes_what_it_shows() -> None:
    scenario = load_scenario(RING, ["scenario.description=<script>alert(1)</script>"])
    story = [{**STORY[0], "node": "n0", "label": "<b>"}]
    page = report(scenario, told(story), {"run": "x"})
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;" in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_nodes_are_drawn_apart_and_the_bad_ones_known() -> None:
    scenario = load_scenario(RING)
    places = list(layout(scenario).values())
    assert len(set(places)) == len(scenario.nodes)
    assert bad_nodes(scenario) == {"n6"}
    apart = [
        abs(a[0] - b[0]) + abs(a[1] - b[1])
        for i, a in enumerate(places)
        for b in places[:i]
    ]  # fmt: skip
    assert min(apart) > 0.03
