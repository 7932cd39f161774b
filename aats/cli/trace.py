"""`aats trace`: a packet's journey hop by hop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aats.cli.output import emit, told
from aats.cli.runs import events_of, runs_in, view_of
from aats.errors import ScenarioError, nearest
from aats.launch import FormatOption, OutOption, guarded
from aats.options import Format


@guarded
def trace(
    packet: Annotated[str, typer.Argument(help="A packet's name, its id, or the id's beginning.")],
    run: Annotated[Path | None, typer.Option(help="A run's folder; the newest if unset.")] = None,
    out: OutOption = Path("runs"),
    output: FormatOption = Format.TEXT,
) -> None:
    """Show a packet's journey hop by hop: what was done, where it went next, and why."""
    folder = run or next(iter(runs_in(out)), None)
    if folder is None:
        raise ScenarioError("--out", str(out), "a folder with runs is wanted")
    view = view_of(folder)
    names = {one.label: one.id for one in view.packets.values() if one.label}
    found = [i for i in view.packets if packet == names.get(packet) == i or i.startswith(packet)]
    wanted = names.get(packet) or (found[0] if len(found) == 1 else None)
    if wanted is None:
        known = [*names, *view.packets]
        allowed = f"packets of {folder} are {', '.join(names or view.packets)}"
        raise ScenarioError("PACKET", packet, allowed, nearest(packet, known))
    rows = [event for event in events_of(folder) if event.get("packet") == wanted]
    start = view.first_t or 0.0
    emit(rows, output, [told(event, start) for event in rows])
