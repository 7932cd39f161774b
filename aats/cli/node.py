"""`aats node`: make the directory of one node of a network that spans machines; run it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aats.cli.output import tell, told
from aats.errors import ScenarioError
from aats.launch import guarded, new_app


class _DirectoryFirst(TyperGroup):
    """`aats node DIR` is `aats node run DIR`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that arguments name."""
        is_named = self.get_command(ctx, args[0]) is not None
        return super().resolve_command(ctx, args if is_named else ["run", *args])


app = new_app(cls=_DirectoryFirst)

PortOption = Annotated[
    int | None, typer.Option(min=1, max=65_534, help="Control port; the bulk lane has the next.")
]


@app.command("init")
@guarded
def init_node(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A node's directory.")],
    name: Annotated[str, typer.Option(help="What the other nodes call it.")],
    host: Annotated[str, typer.Option(help="Address that it binds.")] = "127.0.0.1",
    port: PortOption = None,
    address: Annotated[str, typer.Option(help="By which the others reach it.")] = "",
) -> None:
    """Make a node's directory, file and keys; print the line that the other nodes need of it."""
    from aats.config.node import PORT
    from aats.ids import node_id
    from aats.member import init

    try:
        named = node_id(name)
    except ValueError as wrong:
        raise ScenarioError("--name", name, str(wrong)) from wrong
    typer.echo(init(directory, named, host=host, port=port or PORT, address=address))
    typer.echo(
        f"made {directory}; put that line into peers.toml of the others and theirs into its own, "
        f"then: aats node {directory}", err=True,
    )  # fmt: skip


@app.command("run")
@guarded
def run_node(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="Its directory, or its file.")],
    host: Annotated[str, typer.Option(help="Address to bind, instead of the file's.")] = "",
    port: PortOption = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No encryption, no authentication between nodes.")
    ] = False,
) -> None:
    """Run a node in the foreground; Ctrl-C lets it finish and hand on, twice stops it at once."""
    from aats.config.node import load_node
    from aats.member import run

    given = {"listen": host or None, "port": port, "insecure": insecure or None}
    found = load_node(path, {key: value for key, value in given.items() if value is not None})
    start = time.time()

    def seen(event: dict[str, Any]) -> None:
        if event["event"] in SHOWN:
            tell(told(event, start))

    run(found, tell, seen)


SHOWN = {
    "link.up", "link.down", "packet.submitted", "packet.received", "packet.moved", "packet.home",
    "packet.refused", "offer.refused", "packet.regenerated", "visit.finished", "visit.failed",
    "verdict", "node.leaving", "advert.rejected", "message.rejected", "node.fault", "custody.lost",
}  # fmt: skip
"""Events of a node that whoever runs it sees."""
