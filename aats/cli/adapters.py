"""`aats adapters`: write what a chain learned as adapters that `peft` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aats.cli.output import columns, emit
from aats.errors import ScenarioError
from aats.launch import FormatOption, guarded
from aats.options import Format


@guarded
def adapters(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run that is over.")],
    folder: Annotated[Path, typer.Argument(help="Where to; a new folder.")],
    packet: Annotated[str, typer.Option(help="The packet, if the run had several.")] = "",
    output: FormatOption = Format.TEXT,
) -> None:
    """Write a chain of adapters on a transformer as folders that `peft` loads.

    The folder is the whole chain as one adapter; in it are the base and each contribution.
    """
    from aats.learning.adapters import write_adapters
    from aats.unlearning.past import Past

    past = Past.read(run_dir, packet)
    if not past.is_chain:
        raise ScenarioError("RUN_DIR", str(run_dir), "a packet of the method lora is wanted")
    if folder.exists():
        raise ScenarioError("FOLDER", str(folder), "it is there already")
    rows: list[dict[str, Any]] = [
        {"folder": str(place), "bytes": sum(f.stat().st_size for f in place.glob("*.safetensors"))}
        for place in write_adapters(past.model(), folder)
    ]
    emit(rows, output, columns([(row["folder"], f"{row['bytes']} bytes") for row in rows]))
