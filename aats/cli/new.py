"""`aats new`: a scenario of one's own from a template."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from aats.errors import ScenarioError, nearest
from aats.launch import guarded


@guarded
def new(
    name: Annotated[Path, typer.Argument(help="Folder to make.")],
    template: Annotated[str, typer.Option(help="What to start from.")] = "healthcare",
) -> None:
    """Start a scenario of your own from a template."""
    templates = _templates()
    if template not in templates:
        allowed = f"templates are {', '.join(templates)}"
        raise ScenarioError("--template", template, allowed, nearest(template, templates))
    if name.exists():
        raise ScenarioError("NAME", str(name), "must not be there yet")
    left_out = shutil.ignore_patterns("__pycache__", "runs")
    try:
        shutil.copytree(templates[template], name, ignore=left_out)
    except OSError as error:
        raise ScenarioError("NAME", str(name), f"cannot be made: {error.strerror}") from error
    typer.echo(f"made {name}; run it with: aats launch {name}")


def _templates() -> dict[str, Path]:
    """Return the bundled scenarios by name; in a checkout those of its examples folder."""
    package = Path(__file__).parents[1]
    roots = (package / "templates", package.parent / "examples")
    root = next((root for root in roots if root.is_dir()), roots[0])
    return {path.parent.name: path.parent for path in sorted(root.glob("*/scenario.toml"))}
