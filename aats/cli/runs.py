"""The runs in a folder, and what their traces tell."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aats.errors import DataError, ScenarioError

if TYPE_CHECKING:
    from aats.oam.view import RunView


def runs_in(out: Path) -> list[Path]:
    """Return the folders of the runs in a folder, the newest first."""
    if not out.is_dir():
        return []
    found = [path for path in out.iterdir() if (path / "events.jsonl").is_file()]
    return sorted(found, key=lambda p: ((p / "events.jsonl").stat().st_mtime, p), reverse=True)


def events_of(run: Path) -> Iterable[dict[str, Any]]:
    """Yield the events of a run.

    Raises:
        ScenarioError: If the folder has none.
        DataError: If a line is no event; says which.
    """
    from aats.oam.rundir import read_events

    if not (run / "events.jsonl").is_file():
        raise ScenarioError("--run", str(run), "a run's folder with an events.jsonl is wanted")
    try:
        for event in read_events(run / "events.jsonl"):
            if not _is_event(event):
                raise ValueError(f"{json.dumps(event)[:60]} is no event")
            yield event
    except ValueError as broken:
        raise DataError(f"{run / 'events.jsonl'}: {broken}") from broken


def _is_event(event: object) -> bool:
    return (
        isinstance(event, dict)
        and isinstance(event.get("t"), int | float)
        and all(isinstance(event.get(name), str) for name in ("node", "event"))
    )


def view_of(run: Path) -> RunView:
    """Return what the events of a run add up to.

    Raises:
        ScenarioError: If the folder has none.
        DataError: If an event makes no sense; says which.
    """
    from aats.oam.view import RunView

    view = RunView()
    for event in events_of(run):
        try:
            view.apply(event)
        except (KeyError, TypeError, ValueError, AttributeError) as broken:
            what = json.dumps(event)[:60]
            raise DataError(f"{run / 'events.jsonl'}: {what}: {broken!r}") from broken
    return view
