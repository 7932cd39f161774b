"""Whole scenarios in the simulated world: real data, real training, faults, one seed one trace."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aats.compose import build_world
from aats.config import Scenario
from aats.config.load import build
from aats.ledger.record import check_chain
from aats.run import run_simulated
from aats.sim.network import SimulatedWorld

TABLES: dict[str, Any] = {
    "scenario": {"name": "small", "seed": 3},
    "topology": {"generator": {"name": "ring", "nodes": 6}},
    "node": {"contributes_to": ["n3"]},
    "nodes": {
        "n0": {"roles": ["owner"], "contributes_to": []},
        "n3": {"roles": ["mpvu"], "contributes_to": []},
        "n4": {"roles": ["data"], "samples_per_s": 0, "delegate": "n5"},
    },
    "data": {
        "skills": {
            "blobs": {"source": {"name": "synthetic", "samples": 600, "spread": 0.5}},
        }
    },
    "packets": [
        {
            "name": "learner",
            "owner": "n0",
            "requirement": [{"skill": "blobs", "value": 0.9}],
            "model": {"name": "logistic", "features": 8, "classes": 2},
            "method": {"name": "sequential"},
            "policy": "least-visited",
        }
    ],
}


def scenario(**more: Any) -> Scenario:
    return build({**TABLES, **more})


def run(world: SimulatedWorld) -> SimulatedWorld:
    world.start()
    assert world.run(600.0, lambda: bool(world.deliveries)), "the packet did not come home"
    return world


def named(lines: list[str], name: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in lines]
    return [event for event in events if event["event"] == name]


def test_a_scenario_runs_home_with_a_verified_model() -> None:
    world = run(build_world(scenario()))
    header = world.deliveries[0].header
    assert header.requirement_met
    check_chain(header.chain)
    world.deliveries[0].payload.verify()
    assert header.spent.bytes > header.manifest.total
    visits = named(world.lines, "visit.finished")
    assert {v["node"] for v in visits} <= {"n1", "n2", "n5"}


SCRIPT = """
import hashlib, sys
sys.path.insert(0, {folder!r})
from test_scenario_world import build_world, run, scenario
world = run(build_world(scenario()))
print(hashlib.blake2b("\\n".join(world.lines).encode()).hexdigest())
"""


@pytest.mark.slow
def test_one_seed_gives_one_trace_whatever_the_hash_seed() -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(folder=str(Path(__file__).parent))],
            capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert len(digests.pop()) == 2 * hashlib.blake2b().digest_size


def test_one_seed_gives_one_trace() -> None:
    traces = ["\n".join(run(build_world(scenario())).lines) for _ in range(2)]
    assert traces[0] == traces[1]


class Quiet:
    """Watches a run and says nothing."""

    def say(self, what: str) -> None:
        pass

    def event(self, event: dict[str, Any]) -> None:
        pass


def faulty(folder: Path, *faults: dict[str, Any]) -> list[str]:
    """The trace of a long run in which things go wrong, and the packet comes home nevertheless."""
    wish = {
        **TABLES["packets"][0],
        "requirement": [{"skill": "blobs", "value": 1.0}],
        "budget": {"hops": 20},
    }
    broken = scenario(packets=[wish], faults=list(faults))
    delivered = run_simulated(broken, folder, Quiet())  # type: ignore[arg-type]
    assert len(delivered) == 1
    return (folder / "events.jsonl").read_text().splitlines()


def test_a_crash_at_an_event_and_its_restart(tmp_path: Path) -> None:
    lines = faulty(
        tmp_path,
        {"kind": "crash", "on": "visit.started", "count": 2, "after_s": 0.01, "for_s": 2.0},
    )
    (down,), (up,) = named(lines, "node.crashed"), named(lines, "node.restarted")
    second = named(lines, "visit.started")[1]
    assert (down["node"], down["t"]) == (second["node"], second["t"] + 0.01)
    assert (up["node"], up["t"]) == (down["node"], down["t"] + 2.0)


def test_a_partition_holds_a_packet_up_until_it_heals(tmp_path: Path) -> None:
    lines = faulty(tmp_path, {"kind": "partition", "nodes": ["n0"], "after_s": 0.4, "for_s": 30.0})
    assert named(lines, "packet.home")[0]["t"] > 30.4


def test_links_that_lose_or_are_cut_only_delay(tmp_path: Path) -> None:
    lines = faulty(
        tmp_path,
        {"kind": "loss", "loss": 0.3, "for_s": 30.0},
        {"kind": "loss", "loss": 1.0, "link": ["n0", "n1"]},
    )
    moves = [{m["node"], m["to"]} for m in named(lines, "packet.moved")]
    assert moves
    assert {"n0", "n1"} not in moves


def test_crash_and_restart_by_the_clock(tmp_path: Path) -> None:
    lines = faulty(
        tmp_path,
        {"kind": "crash", "node": "n1", "after_s": 0.1},
        {"kind": "crash", "node": "n2", "after_s": 0.1},
        {"kind": "restart", "node": "n1", "after_s": 0.6},
    )
    assert [e["t"] for e in named(lines, "node.crashed")] == [0.1, 0.1]
    assert [e["t"] for e in named(lines, "node.restarted")] == [0.6]
