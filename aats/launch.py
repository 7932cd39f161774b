"""`python -m aats.launch PATH`: start a network, send its packets, return what came home.

Nothing heavy is loaded before the arguments are understood: `--help` needs neither torch nor
zmq nor numpy.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from typer.core import TyperGroup

from aats.errors import AatsError, InfeasibleError, LedgerError, LocalError
from aats.options import Exit, Format, LaunchOptions, World
from aats.text import printable

P = ParamSpec("P")

EPILOG = (
    "Exit codes: 0 every requirement met; 1 internal fault; 2 bad input or usage; 3 finished, a "
    "requirement not met; 4 infeasible on this network; 5 interrupted."
)

FormatOption = Annotated[
    Format, typer.Option("--format", help="What goes to stdout; messages go to stderr.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder with the runs.")]


def guarded(command: Callable[P, int | None]) -> Callable[P, None]:
    """Return a command that ends with its exit code, an error as one message on stderr."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            code = Exit.INTERRUPTED
        except AatsError as error:
            typer.echo(f"error: {printable(str(error))}", err=True)
            code = _code(error)
        except (typer.Exit, typer.BadParameter):
            raise
        except BrokenPipeError:  # whoever read stdout has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.OK
        except Exception:  # noqa: BLE001  the program's top: say what broke and end
            typer.echo(f"internal fault, please report it:\n{traceback.format_exc()}", err=True)
            code = Exit.FAULT
        raise typer.Exit(int(code or Exit.OK))

    return run


def _code(error: AatsError) -> Exit:
    match error:
        case InfeasibleError():
            return Exit.INFEASIBLE
        case LocalError():
            return Exit.USAGE
        case LedgerError():
            return Exit.NOT_MET
        case _:
            return Exit.FAULT


@guarded
def launch(
    path: Annotated[
        Path, typer.Argument(help="A scenario file, or a folder with a scenario.toml.")
    ],
    world: Annotated[
        World, typer.Option(help="Daemons over ZeroMQ, or a simulated network.")
    ] = World.LIVE,
    policy: Annotated[
        str,
        typer.Option(
            help="Routing policy of every packet, or a trained one's .safetensors file, instead "
            "of the scenario's."
        ),
    ] = "",
    compare: Annotated[
        str, typer.Option(help="Policies to compare: names separated by commas.")
    ] = "",
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each policy under --compare, one a seed.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of everything, instead of the scenario's.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: links.loss=0.1"),
    ] = None,
    output: FormatOption = Format.TEXT,
    out: OutOption = Path("runs"),
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No keys and no encryption between nodes.")
    ] = False,
    nodes_per_process: Annotated[
        int | None, typer.Option(min=1, help="Live nodes that share one OS process.")
    ] = None,
) -> int:
    """Run a scenario: start its network, send its packets, show and store what comes of it."""
    compared = tuple(name.strip() for name in compare.split(",") if name.strip())
    if compare and policy:
        raise typer.BadParameter("--policy and --compare exclude each other")
    if seeds > 1 and not compared:
        raise typer.BadParameter("--seeds needs --compare")
    if len(set(compared)) < len(compared):
        raise typer.BadParameter(f"--compare {compare}: each policy may stand once")
    options = LaunchOptions(
        path, world, policy, compared, seeds, seed, tuple(settings or ()), output, out,
        insecure, nodes_per_process,
    )  # fmt: skip
    from aats.run import execute

    return int(execute(options))


def run_app(app: typer.Typer, arguments: Sequence[str] | None, program: str) -> int:
    """Run a command line and return its exit code."""
    try:
        app(None if arguments is None else list(arguments), prog_name=program)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return Exit.OK


def new_app(cls: type[TyperGroup] | None = None) -> typer.Typer:
    """Return an empty command line with this project's habits."""
    return typer.Typer(
        cls=cls,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the scenario, return the exit code."""
    app = new_app()
    app.command(epilog=EPILOG)(launch)
    return run_app(app, arguments, "python -m aats.launch")


if __name__ == "__main__":
    sys.exit(main())
