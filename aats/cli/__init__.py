"""The `aats` command: one file for each command, put together here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from aats.cli import (
    adapters,
    advise,
    doctor,
    fetch,
    ledger,
    listing,
    new,
    node,
    policy,
    submit,
    trace,
)
from aats.launch import EPILOG, guarded, launch, new_app, run_app
from aats.options import Exit
from aats.plugins import load, names

app = new_app()


@app.callback(invoke_without_command=True)
def entry(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and exit.")
    ] = False,
) -> None:
    """AI packets that carry a model to the data and work out their own next stop."""
    if version:
        from aats import __version__

        typer.echo(f"aats {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(Exit.USAGE)


def _add_own() -> None:
    app.command(epilog=EPILOG)(launch)
    app.command("ls")(listing.list_runs)
    app.command()(trace.trace)
    app.command()(submit.submit)
    app.command()(fetch.fetch)
    app.command()(adapters.adapters)
    app.command()(advise.advise)
    app.command()(new.new)
    app.command()(doctor.doctor)
    app.add_typer(ledger.app, name="ledger", help="Check the signed history of models.")
    app.add_typer(policy.app, name="policy", help="Train, judge and look at routing policies.")
    app.add_typer(node.app, name="node", help="Run one node of a network that spans machines.")


def _add_installed() -> None:
    """Add the commands that installed distributions bring: Typer apps of `aats.commands`.

    One of the name of a group here adds to that group. What they raise ends as it does here.
    """
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    for name in names("aats.commands"):
        added: typer.Typer = load("aats.commands", name)
        for command in added.registered_commands:
            if command.callback is not None:
                command.callback = guarded(command.callback)
        if (own := groups.get(name)) is not None:
            own.registered_commands += added.registered_commands
        else:
            app.add_typer(added, name=name)


_add_own()
_add_installed()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `aats` command and return its exit code."""
    return run_app(app, arguments, "aats")
