"""`aats ledger forget`: take a contribution out of a run's model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aats.cli.output import columns, emit
from aats.ids import NodeId
from aats.launch import FormatOption, guarded
from aats.options import Format
from aats.unlearning.level import STEPS, Level

if TYPE_CHECKING:
    from aats.unlearning.forget import Forgotten


@guarded
def forget(
    what: Annotated[
        str,
        typer.Argument(help="A node, a contribution (hop@node), or how a record's id begins."),
    ],
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run that is over.")],
    level: Annotated[
        Level, typer.Option(help="Subtract; then repair what came later; or rebuild it.")
    ] = Level.SUBTRACT,
    packet: Annotated[str, typer.Option(help="The packet, if the run had several.")] = "",
    at: Annotated[
        str, typer.Option(help="The node that repairs all; each contribution's own if unset.")
    ] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of repair, shared out evenly.")] = STEPS,
    output: FormatOption = Format.TEXT,
) -> None:
    """Take what a node contributed out of a run's model, and sign that in its ledger."""
    from aats.unlearning.forget import Order
    from aats.unlearning.forget import forget as carry_out

    found = carry_out(Order(what, run_dir, level, packet, NodeId(at), steps))
    emit([_plain_row(found)], output, _forgotten(found))


def _plain_row(found: Forgotten) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(found), default=str))  # type: ignore[no-any-return]


def _forgotten(found: Forgotten) -> Iterable[str]:
    yield f"forgot   {' '.join(found.gone)} of {found.packet}, level {found.level}: {found.says}"
    yield f"model    {found.model}, version {found.version[:12]}"
    yield f"record   {found.record[:12]}, signed, in the ledger of {found.packet}"
    if found.stops:
        yield f"route    {' > '.join(found.stops)}"
    for skill, value in found.after.items():
        yield f"skill    {skill} {found.before[skill]:.3f} -> {value:.3f} on rows no node held"
    rows = [("cost", "visits", "steps", "bytes", "seconds of work", "joules")]
    for name, made in (
        ("this", found.cost), ("the visits since", found.since), ("all visits", found.all)
    ):  # fmt: skip
        spent = made.spent
        rows.append(
            (name, str(made.visits), str(made.steps), f"{spent.bytes:.0f}",
             f"{spent.seconds:.3f}", f"{spent.joules:.3f}")
        )  # fmt: skip
    yield from columns(rows)
