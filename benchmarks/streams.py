"""What split training sends and how long a step takes, live and simulated, beside the formulas.

Each of `examples/split` is run in the simulated world and live (a daemon a node, on this machine,
links as they are), and the packet's first visit is looked at: its bytes beside what the formulas
of `docs/methods/split.md` say, its steps and seconds. The weights after it are compared: the two
worlds compute the same.

    python benchmarks/streams.py            # half a minute on an idle machine
    python benchmarks/streams.py --quick    # split only

A live step is a round trip: activations leave a client's process for its daemon, cross the link to
the server's, go into its task, and the errors come back the same way; signed, checked and
acknowledged at each end. Read the seconds of a busy machine with care.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import Bar, finish, show

from aats.config import Scenario
from aats.config.load import load_scenario
from aats.learning.models import build
from aats.learning.segments import chain_of
from aats.oam.progress import progress
from aats.oam.view import RunView
from aats.run import Watch, run_live, run_simulated

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "split"
METHODS = "split", "splitfed", "rws"
FILES = {"split": "scenario.toml", "splitfed": "splitfed.toml", "rws": "rws.toml"}
ITEM_BYTES = 4
MAX_FRAMING = 1.5
"""Bar: bytes on the wire over those of the formula."""


def first_visit(method: str, world: str, folder: Path) -> tuple[Scenario, Mapping[str, Any]]:
    """Run an example; return it and the trace's line of the packet's first visit."""
    scenario = load_scenario(EXAMPLES / FILES[method])
    view, found = RunView(), list[Mapping[str, Any]]()

    def note(event: Mapping[str, Any]) -> None:
        if event["event"] == "visit.finished":
            found.append(event)

    with progress(view, "", quiet=True) as shown:
        watch = Watch(view, shown, note)
        if world == "sim":
            run_simulated(scenario, None, watch)
        else:
            asyncio.run(run_live(scenario, folder, watch))
    return scenario, found[0]


def formula(scenario: Scenario, visit: Mapping[str, Any]) -> float:
    """Return the bytes on links that a visit takes by the formula, without any framing.

    Labels take a byte each. On the star of the examples clients are two links apart and the
    packet's stop, in the middle, one from each.
    """
    packet = scenario.packets[0]
    model = chain_of(build(packet.model))
    sizes = [sum(p.numel() for p in block.parameters()) for block in model]
    widths = list(packet.model.config["hidden"])
    params, rows, clients = packet.method.params, visit["samples"], 4
    if packet.method.name == "rws":
        segments, rounds = params["segments"], params["rounds"]
        flow = sum(2 * w * rows * ITEM_BYTES + rows for w in widths[: segments - 1])
        handed = 2 * sum(sizes) * ITEM_BYTES * (rounds - 1) + 2 * sum(sizes) * ITEM_BYTES
        return 2 * flow + handed
    cut, epochs = params["cut"], params["epochs"]
    flow = 2 * widths[cut - 1] * rows * ITEM_BYTES + rows
    part = sum(sizes[:cut]) * ITEM_BYTES
    if packet.method.name == "splitfed":
        return flow + 2 * clients * epochs * part
    return flow + 2 * (clients * epochs - 1) * part + 2 * part


def measure(method: str, folder: Path) -> tuple[list[dict[str, Any]], list[Bar]]:
    """Return the rows and bars of one method."""
    rows, versions = [], []
    for world in ("sim", "live"):
        scenario, visit = first_visit(method, world, folder / method)
        wanted = formula(scenario, visit)
        versions.append(visit["version"])
        rows.append(
            {
                "method": method, "world": world, "steps": visit["steps"],
                "rows": visit["samples"], "bytes": visit["stream_bytes"], "formula": wanted,
                "framing": visit["stream_bytes"] / wanted - 1, "seconds": visit["seconds"],
                "ms_a_step": 1000 * visit["seconds"] / visit["steps"],
            }
        )  # fmt: skip
    bars = [
        Bar(f"{method}: bytes over the formula's", rows[0]["framing"] + 1, MAX_FRAMING, False),
        Bar(f"{method}: same weights live", float(versions[0] == versions[1]), 1.0),
    ]
    return rows, bars


def main() -> int:
    """Measure; print tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="split only")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS[:1] if options.quick else METHODS:
            found, held = measure(method, Path(folder))
            rows += found
            bars += held
    show("The first visit", rows)
    return finish("streams", rows, bars)


if __name__ == "__main__":
    sys.exit(main())
