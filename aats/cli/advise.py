"""`aats advise`: which way of learning suits a packet, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from aats.cli.output import emit
from aats.errors import ScenarioError, nearest
from aats.launch import FormatOption, guarded
from aats.options import Format


@guarded
def advise(
    path: Annotated[Path, typer.Argument(help="A scenario: a TOML file or its folder.")],
    packet: Annotated[str, typer.Option(help="A packet's name; all if unset.")] = "",
    removable: Annotated[
        bool, typer.Option("--removable", help="What a node adds must be removable later.")
    ] = False,
    bits: Annotated[
        float, typer.Option("--bits-per-sample", min=0, help="What links carry; 0: no limit.")
    ] = 0.0,
    output: FormatOption = Format.TEXT,
) -> None:
    """Say which way of learning suits a packet, and why, from data, adverts and mandate."""
    from aats.advise import setting_for
    from aats.config import load_scenario
    from aats.control.method import recommend

    scenario = load_scenario(path)
    labels = [config.name for config in scenario.packets]
    if packet and packet not in labels:
        allowed = f"packets of {path} are {', '.join(labels)}"
        raise ScenarioError("--packet", packet, allowed, nearest(packet, labels))
    known: dict[str, float | bool] = {"removable": removable}
    if bits:
        known["bits_per_sample"] = bits
    rows: list[dict[str, Any]] = []
    for number, label in enumerate(labels):
        if packet in ("", label):
            setting = setting_for(scenario, number, **known)
            found = recommend(setting)
            # What nothing bounds is left out: JSON has no infinity.
            told = {k: v for k, v in asdict(setting).items() if v != float("inf")}
            rows.append({"packet": label, "take": found.name, **asdict(found), "setting": told})
    emit(rows, output, [line for row in rows for line in _advised(row)])


def _advised(row: dict[str, Any]) -> Iterable[str]:
    s = row["setting"]
    yield (
        f"{row['packet']}: {s['nodes']} nodes with data, model {s['model_bytes'] / 1e6:.3g} MB, "
        f"label skew {s['skew']:.2f}, {s['local_steps']:.0f} steps a visit"
    )
    yield f"take     {row['take']}"
    for reason in row["reasons"]:
        yield f"because  {reason}"
    params = [f"{key} = {json.dumps(value)}" for key, value in row["method"]["params"].items()]
    named = ", ".join([f'name = "{row["method"]["name"]}"', *params])
    yield f"write    method = {{ {named} }}"
    if row["rendezvous"]:
        yield f'write    rendezvous = "{row["rendezvous"]["name"]}"'
