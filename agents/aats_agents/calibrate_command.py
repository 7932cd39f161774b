"""`aats policy calibrate`: fit the constants of learning to a scenario's models and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from aats.calibration import calibrate_scenario
from aats.config import load_scenario
from aats.learning.fit import Fit
from aats.options import Exit

COLUMNS = {
    "r2": "R2", "rho": "rho", "captured": "captured", "open_loop_r2": "walk R2",
    "open_loop_mae": "walk error",
}  # fmt: skip
"""Fields of a `Prediction` by their heading."""


def calibrate_command(
    scenario: Annotated[Path, typer.Option(help="Whose models and data.")],
    out: Annotated[Path, typer.Option(help="The fit's .json file; one a skill if several.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    hops: Annotated[int, typer.Option(min=200, help="Real visits to make, a model.")] = 3000,
) -> int:
    """Fit the laws of learning that environments go by to a scenario of your own."""
    if out.suffix != ".json":
        raise typer.BadParameter(f"{out}: a fit is a .json file", param_hint="--out")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"{out.parent} is no folder", param_hint="--out")
    plan = load_scenario(scenario)
    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("real visits", total=hops)
        fits = calibrate_scenario(
            plan, seed, hops, lambda made, of: shown.update(task, completed=made, total=of)
        )
    files = save_all(fits, out)
    Console().print(table_of(fits))
    for file in files:
        typer.echo(f"fit: {file}")
    return Exit.OK


def save_all(fits: dict[str, Fit], out: Path) -> list[Path]:
    """Write the fits and return their files: `out` itself for one, else with the skill's name."""
    files = []
    for skill, fit in fits.items():
        file = out if len(fits) == 1 else out.with_stem(f"{out.stem}-{skill}")
        fit.save(file)
        files.append(file)
    return files


def table_of(fits: dict[str, Fit]) -> Table:
    """Return the quality of fits as a table, on deals that were not fitted on."""
    table = Table(
        title="Real gains predicted, on deals not fitted on", title_justify="left", box=None,
        caption="accuracy: mean error of the accuracy that follows from knowledge",
    )  # fmt: skip
    table.add_column("skill")
    table.add_column("labels")
    for heading in (*COLUMNS.values(), "accuracy", "hops"):
        table.add_column(heading, justify="right")
    for skill, fit in fits.items():
        quality = fit.quality
        if quality is not None:
            for labels, found in (("known", quality.known), ("probed", quality.probed)):
                figures = [f"{getattr(found, column):.3f}" for column in COLUMNS]
                accuracy, hops = f"{quality.accuracy_mae:.3f}", str(quality.hops)
                table.add_row(skill, labels, *figures, accuracy, hops)
    return table
