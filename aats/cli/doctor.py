"""`aats doctor`: whether this machine can run AATS."""

from __future__ import annotations

from aats.cli.output import emit
from aats.launch import FormatOption, guarded
from aats.options import Exit, Format


@guarded
def doctor(output: FormatOption = Format.TEXT) -> int:
    """Check that this machine can run AATS, and say what to do where it cannot."""
    from aats.doctor import examine

    rows = [
        {"check": c.name, "ok": c.ok, "found": c.found, "advice": "" if c.ok else c.advice}
        for c in examine()
    ]
    lines = (
        f"{'ok  ' if r['ok'] else 'FAIL'}  {r['check']}: {r['found']}"
        + (f" - {r['advice']}" if r["advice"] else "")
        for r in rows
    )
    emit(rows, output, lines)
    return Exit.OK if all(row["ok"] for row in rows) else Exit.NOT_MET
