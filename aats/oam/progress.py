"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aats.ids import PacketId, trunk_of
from aats.oam.view import Event, PacketView, RunView
from aats.text import printable

TELLING = {
    "packet.submitted", "visit.finished", "visit.failed", "verdict", "packet.home",
    "packet.forked", "packet.merged", "merge.failed", "packet.regenerated",
    "packet.refused", "packet.rerouted", "node.restarted", "node.died",
    "node.given-up",
}  # fmt: skip
"""Events worth a plain line."""


class Progress(Protocol):
    """Shows a run as its events come in."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def event(self, event: Event) -> None:
        """Show what changed; the view has taken the event in already."""
        ...

    def say(self, text: str) -> None:
        """Say what is being done or waited for."""
        ...


def human_bytes(size: float) -> str:
    """Return a size in words: 1536 -> "1.5 kB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("not reached")


def skills_line(packet: PacketView) -> str:
    """Return a packet's skills against their targets: "oncology 0.94/0.95 (mpvu)"."""
    parts = []
    for skill, target in packet.requirement.items():
        found = packet.skills.get(skill)
        value = f"{found['value']:.3f}" if found else "-"
        mark = " ok" if found and found["met"] else ""
        parts.append(f"{skill} {value}/{target:.2f}{mark}")
    return "  ".join(parts)


class LiveTable:
    """One line per packet, redrawn in place."""

    def __init__(self, view: RunView, title: str) -> None:
        self._view, self._title, self._note = view, title, "starting"
        self._live = Live(self._table(), console=Console(stderr=True), refresh_per_second=8)

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.update(self._table())
        self._live.__exit__(kind, error, trace)

    def event(self, event: Event) -> None:
        """Redraw (Rich limits the rate)."""
        self._note = ""
        self._live.update(self._table())

    def say(self, text: str) -> None:
        """Put the text under the table."""
        self._note = text
        self._live.update(self._table())

    def _table(self) -> Table:
        table = Table(title=self._title, title_justify="left", caption=self._note or None,
                      caption_justify="left")  # fmt: skip
        for column in ("packet", "where", "hop", "skills / targets", "moved", "now"):
            table.add_column(column, overflow="fold")
        for p in self._view.packets.values():
            budget = f"/{p.hop_budget:.0f}" if p.hop_budget else ""
            style = "green" if p.met else ("yellow" if p.status == "home" else "")
            cells = (p.name, p.where, f"{p.hop}{budget}", skills_line(p), human_bytes(p.bytes),
                     p.doing)  # fmt: skip
            table.add_row(*(Text(printable(cell)) for cell in cells), style=style)
        return table


class PlainLines:
    """One line per thing that happened, for logs and pipes."""

    def __init__(self, view: RunView, stream: TextIO) -> None:
        self._view, self._stream = view, stream

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def event(self, event: Event) -> None:
        """Write a line if the event is worth one."""
        if event["event"] not in TELLING:
            return
        packet = self._view.packets.get(trunk_of(event.get("packet", PacketId(""))))
        if packet is None:
            self.say(f"{event['event']} {event['node']}")
            return
        at = event["t"] - (self._view.first_t or 0.0)
        self.say(
            f"{at:8.2f} s  {packet.name:<16} hop {packet.hop:>3}  {event['node']:<16} "
            f"{event['event']:<18} {skills_line(packet)}  {human_bytes(packet.bytes)}"
            f"  {packet.doing}"
        )

    def say(self, text: str) -> None:
        """Write the line at once."""
        self._stream.write(printable(text).rstrip() + "\n")
        self._stream.flush()


class Quiet(PlainLines):
    """Shows nothing."""

    def event(self, event: Event) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""


def progress(view: RunView, title: str, *, quiet: bool = False) -> Progress:
    """Return the display that fits where stderr goes (stdout is for results)."""
    if quiet:
        return Quiet(view, sys.stderr)
    if sys.stderr.isatty():
        return LiveTable(view, title)
    return PlainLines(view, sys.stderr)
