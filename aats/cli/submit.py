"""`aats submit`: hand packets in at their owner's node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aats.cli.fetch import bring_home
from aats.cli.output import emit
from aats.launch import FormatOption, OutOption, guarded
from aats.options import Exit, Format


@guarded
def submit(
    path: Annotated[Path, typer.Argument(metavar="PACKET.toml", help="A file of [[packets]].")],
    node: Annotated[Path, typer.Option(help="The owner's directory.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow them until they are home, then fetch them.")
    ] = False,
    out: OutOption = Path("runs"),
    output: FormatOption = Format.TEXT,
) -> int:
    """Sign packets and hand them in at their owner's node; print their ids."""
    from aats import member
    from aats.config.node import load_node, load_packets

    owner = load_node(node)
    packets = member.submit(owner, load_packets(path, owner))
    if not member.is_running(owner):
        typer.echo(f"node {owner.name} is not running; it takes them when it starts", err=True)
    rows = [{"packet": p.header.mandate.label, "id": p.header.id} for p in packets]
    if not wait:
        emit(rows, output, (f"{row['id']}  {row['packet']}" for row in rows))
        return Exit.OK
    return bring_home(owner, [p.header.id for p in packets], out, output)
