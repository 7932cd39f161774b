"""`aats ledger`: check the signed history of models, and change it by the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aats.cli.forget import forget
from aats.cli.output import emit
from aats.errors import LedgerError, ScenarioError
from aats.launch import FormatOption, guarded, new_app
from aats.options import Exit, Format

app = new_app()


@app.command()
@guarded
def verify(
    path: Annotated[Path, typer.Argument(help="A ledger file, or a run's folder.")],
    output: FormatOption = Format.TEXT,
) -> int:
    """Verify every record of a ledger offline: content, order, signatures."""
    from aats.ledger.file import verify_ledger

    folder = path / "ledger" if (path / "ledger").is_dir() else path
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ScenarioError("PATH", str(path), "a ledger file or a run's folder is wanted")
    rows: list[dict[str, Any]] = []
    for file in files:
        row: dict[str, Any] = {"file": str(file), "valid": True}
        try:
            found = verify_ledger(file)
            row |= {
                "records": found.records,
                "packets": list(found.packets),
                "heads": [{"record": head.id, "version": head.version} for head in found.heads],
            }
        except LedgerError as error:
            row |= {"valid": False, "error": str(error)}
        rows.append(row)
    emit(rows, output, map(_verdict, rows))
    return Exit.OK if all(row["valid"] for row in rows) else Exit.NOT_MET


app.command()(forget)


def _verdict(row: dict[str, Any]) -> str:
    if not row["valid"]:
        return f"INVALID  {row['error']}"
    versions = ", ".join(head["version"][:12] for head in row["heads"])
    return f"valid    {row['file']}: {row['records']} records, version {versions}"
