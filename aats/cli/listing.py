"""`aats ls`: the runs in a folder, or the packets that a node knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aats.cli.output import columns, emit
from aats.cli.runs import runs_in, view_of
from aats.errors import DataError
from aats.launch import FormatOption, OutOption, guarded
from aats.options import Exit, Format


@guarded
def list_runs(
    out: OutOption = Path("runs"),
    node: Annotated[Path | None, typer.Option(help="A node's directory.")] = None,
    output: FormatOption = Format.TEXT,
) -> int:
    """List the runs in a folder, the newest first; with --node the packets that a node knows."""
    if node is not None:
        return _list_packets(node, output)
    rows, code = [], Exit.OK
    for run in runs_in(out):
        try:
            rows.append(_run_row(run))
        except DataError as error:
            typer.echo(f"error: {error}", err=True)
            code = Exit.USAGE
    head = ("RUN", "PACKETS", "HOME", "MET", "SECONDS")
    cells = [
        (r["run"], str(r["packets"]), str(r["home"]), str(r["met"]), f"{r['seconds']:.1f}")
        for r in rows
    ]
    emit(rows, output, columns([head, *cells]) if rows else [f"no runs in {out}"])
    return code


def _list_packets(directory: Path, output: Format) -> int:
    from aats.config.node import load_node
    from aats.member import is_running, known_packets

    found = load_node(directory)
    rows = known_packets(found)
    head = ("PACKET", "ID", "OWNER", "STATUS", "WHERE", "HOP", "MET")
    cells = [[str(value) for value in row.values()] for row in rows]
    if not is_running(found):
        typer.echo(f"node {found.name} is not running", err=True)
    emit(rows, output, columns([head, *cells]) if rows else [f"no packets at {found.name}"])
    return Exit.OK


def _run_row(run: Path) -> dict[str, Any]:
    view = view_of(run)
    packets = view.packets.values()
    return {
        "run": run.name,
        "packets": len(packets),
        "home": sum(p.status == "home" for p in packets),
        "met": sum(p.met for p in packets),
        "seconds": round(view.last_t - (view.first_t or 0.0), 3),
    }
