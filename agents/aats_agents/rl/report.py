"""What a person sees while a policy is trained: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from aats_agents.rl.curve import Point
from aats_agents.rl.train import Report


@contextmanager
def shown(steps: int) -> Iterator[Report]:
    """Yield what is to be told of a training of so many steps."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} decisions"),
            BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=steps)

            def move(done: int, point: Point | None) -> None:
                bar.update(task, completed=done)
                if point is not None:
                    bar.update(task, description=_told(point))

            yield move
    else:

        def say(done: int, point: Point | None) -> None:
            if point is not None:
                sys.stderr.write(f"{done}/{steps} decisions: {_told(point)}\n")
                sys.stderr.flush()

        yield say


def _told(point: Point) -> str:
    return f"success {point.success:.3f}, cost {point.cost:.2f}, {point.hops:.1f} hops"
