"""`aats fetch`: wait for a packet at its owner's node, and write what came home."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aats.cli.output import emit, tell, told
from aats.ids import PacketId
from aats.launch import FormatOption, OutOption, guarded
from aats.options import Exit, Format

if TYPE_CHECKING:
    from aats.config.node import NodeFile


@guarded
def fetch(
    packet: Annotated[str, typer.Argument(help="A packet's name, its id, or the id's beginning.")],
    node: Annotated[Path, typer.Option(help="The owner's directory.")],
    out: OutOption = Path("runs"),
    output: FormatOption = Format.TEXT,
) -> int:
    """Wait until a packet is home; write its model, its ledger and a report."""
    from aats import member
    from aats.config.node import load_node

    owner = load_node(node)
    return bring_home(owner, [member.packet_of(owner, packet)], out, output)


def bring_home(owner: NodeFile, packets: Sequence[PacketId], out: Path, output: Format) -> int:
    """Follow packets until they are home, one after the other; write and tell what came of each."""
    from aats import member

    rows: list[dict[str, Any]] = []
    for packet in packets:
        start = 0.0
        for event in member.follow(owner, packet):
            start = start or event["t"]
            tell(told(event, start))
        run_dir, result = member.bring(owner, packet, out)
        rows += [{**row, "run_dir": str(run_dir)} for row in result["packets"]]
    emit(rows, output, [line for row in rows for line in _came_home(row)])
    return Exit.OK if all(row["requirement_met"] for row in rows) else Exit.NOT_MET


def _came_home(row: dict[str, Any]) -> Iterable[str]:
    yield f"{row['label']}: requirement {'met' if row['requirement_met'] else 'NOT met'}, home"
    for skill, found in row["skills"].items():
        low, high = found["interval"]
        by = f"verified by {found['verified_by']}" if found["verified_by"] else "not verified"
        yield (
            f"  {skill:<14} {found['metric']} {found['value']:.3f} [{low:.3f}, {high:.3f}], "
            f"target {found['target']:.2f}, {by}"
        )
    yield f"  stops: {' > '.join(row['route'])}"
    yield f"run: {row['run_dir']}"
