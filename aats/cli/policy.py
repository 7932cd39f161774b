"""`aats policy`: the routing policies that are installed; agents add commands of their own."""

from __future__ import annotations

from aats.cli.output import columns, emit
from aats.launch import FormatOption, guarded, new_app
from aats.options import Format
from aats.plugins import load, names

app = new_app()


@app.command("ls")
@guarded
def list_policies(output: FormatOption = Format.TEXT) -> None:
    """List the routing policies that are installed."""
    rows = [
        {"name": name, "does": (load("aats.policies", name).__doc__ or "").partition("\n")[0]}
        for name in names("aats.policies")
    ]
    emit(rows, output, columns([(row["name"], row["does"]) for row in rows]))
