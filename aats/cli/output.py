"""How commands put rows and events on stdout: as JSON, as JSON lines, or as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from aats.options import Format
from aats.text import printable


def emit(rows: Sequence[dict[str, Any]], output: Format, text: Iterable[str]) -> None:
    """Write rows as one JSON list, as JSON lines, or as the given lines of text."""
    match output:
        case Format.JSON:
            typer.echo(json.dumps(rows, indent=1))
        case Format.JSONL:
            for row in rows:
                typer.echo(json.dumps(row))
        case Format.TEXT:
            for line in text:
                typer.echo(printable(line))


def tell(line: str) -> None:
    """Write a line for a person to stderr."""
    typer.echo(printable(line), err=True)


def columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Yield rows as text with the columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


VERSION_LENGTH = 64
_QUIET = {"t", "node", "event", "packet", "scores", "skills", "epoch"}


def told(event: dict[str, Any], start: float) -> str:
    """Return one event of a packet as a line for a person; a decision with its best scores."""
    place = f"{event['t'] - start:9.3f} s  {event['node']:<12} {event['event']:<18} "
    if event["event"] == "decision":
        best = sorted(event.get("scores", {}).items(), key=lambda kv: -kv[1])[:4]
        scores = ", ".join(f"{node} {score:.3g}" for node, score in best)
        way = " > ".join(event.get("path", ())) or "stays"
        return f"{place}-> {event['chosen']} via {way}: {event['reason']}" + (
            f"  [{scores}]" if scores else ""
        )
    skills = [
        f"{skill} {found['value']:.3f} ({found['source']})"
        for skill, found in event.get("skills", {}).items()
    ]
    rest = [f"{k}={_short(v)}" for k, v in event.items() if k not in _QUIET and v != ""]
    return place + " ".join([*rest, *skills])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and len(value) == VERSION_LENGTH:
        return value[:12]  # as versions are shown everywhere
    return str(value)
