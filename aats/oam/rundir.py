"""A run's directory: everything a run leaves behind, under names that say what they are.

scenario.toml    the resolved scenario: run it again with it
events.jsonl     the trace, one JSON object per line, in order of time
result.json      what `--format json` prints
metrics.csv      each skill of each packet at each measurement
ledger/          one file per packet: its signed history, checked by `aats ledger verify`
models/          one .safetensors file per packet: the weights that came home
plots/           the report's pictures as SVG
report.html      what happened, for people
nodes/           (live) each node's own files
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aats.config import Scenario
from aats.errors import (
    DataError,
    InfeasibleError,
    LocalError,
    MissingExtraError,
    ModelError,
    ScenarioError,
)
from aats.ids import PacketId
from aats.ledger.file import write_ledger
from aats.oam.plots import network_map, skill_curves, svg
from aats.oam.report import report
from aats.oam.view import Event, PacketView, RunView
from aats.packet import Header
from aats.payload import MODEL, Payload

_TORCH_DTYPE = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64",
    "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip


def new_run_dir(out: Path, name: str, world: str) -> Path:
    """Create and return `out/<name>-<world>-<time>`, with a number added if it exists.

    Raises:
        LocalError: If it cannot be made; says why.
    """
    stem = f"{name}-{world}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number in range(1000):
            path = out / (stem if number == 0 else f"{stem}-{number}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise LocalError(f"--out {out}: cannot make a folder there: {error.strerror}") from error
    raise LocalError(f"{out / stem}: a thousand runs in one second")


@contextlib.contextmanager
def tidied(run_dir: Path) -> Iterator[None]:
    """Return a scope that removes the run's folder if what was asked for turns out to be wrong."""
    try:
        yield
    except (ScenarioError, DataError, ModelError, InfeasibleError, MissingExtraError):
        shutil.rmtree(run_dir, ignore_errors=True)
        raise


def write_events(path: Path, events: Iterable[Event]) -> None:
    """Write events as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for event in events:
            file.write(json.dumps(event, separators=(",", ":")) + "\n")


def read_events(path: Path) -> Iterable[dict[str, Any]]:
    """Iterate over the events of a run; a last line cut off by a crash is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def write_metrics(path: Path, packets: Iterable[PacketView]) -> None:
    """Write each measured value as a row: packet, hop, t, bytes, skill, value, source, target."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("packet", "hop", "t_s", "bytes", "skill", "value", "source", "target"))
        for packet in packets:
            for p in packet.curve:
                writer.writerow((packet.name, p.hop, f"{p.t:.6f}", f"{p.bytes:.0f}", p.skill,
                                 f"{p.value:.6f}", p.source,
                                 packet.requirement.get(p.skill, "")))  # fmt: skip


def write_model(path: Path, payload: Payload) -> None:
    """Write the `model.` tensors as a .safetensors file, under their names in the module."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        t.name.removeprefix(MODEL): torch.from_numpy(payload.array(t).copy()).view(
            getattr(torch, _TORCH_DTYPE[t.dtype])
        )
        for t in payload.manifest.tensors
        if t.name.startswith(MODEL)
    }
    save_file(tensors, path, {"format": "pt"})


def write_run(
    run_dir: Path,
    scenario: Scenario,
    view: RunView,
    delivered: Mapping[PacketId, tuple[Header, Payload]],
    facts: Mapping[str, Any],
    result: Mapping[str, Any],
) -> None:
    """Write all but the trace, which is there already."""
    packets = list(view.packets.values())
    (run_dir / "scenario.toml").write_text(scenario.to_toml(), encoding="utf-8")
    (run_dir / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_metrics(run_dir / "metrics.csv", packets)
    for name in ("ledger", "models", "plots"):
        (run_dir / name).mkdir(exist_ok=True)
    for packet, (header, payload) in delivered.items():
        name = header.mandate.label or packet
        write_ledger(run_dir / "ledger" / f"{name}.jsonl", header.chain)
        write_model(run_dir / "models" / f"{name}.safetensors", payload)
    (run_dir / "plots" / "network.svg").write_text(svg(network_map(scenario, packets)))
    for view_of in packets:
        if view_of.curve:
            text = svg(skill_curves(view_of))
            (run_dir / "plots" / f"{view_of.name}.svg").write_text(text)
    (run_dir / "report.html").write_text(report(scenario, view, facts), encoding="utf-8")
