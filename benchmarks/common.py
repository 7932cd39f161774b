"""What every benchmark prints: the machine, a table for people, one JSON line for programs.

The last line of a benchmark's output is `{"benchmark", "machine", "rows", "bars"}`; its exit
status is 0 if every bar holds and 1 if one does not.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
_VERSIONS = ("torch", "numpy", "pyzmq", "blake3", "cryptography", "grpcio")


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit that a measured value must keep."""

    name: str
    value: float
    limit: float
    at_least: bool = True
    """Whether the limit is the smallest or the largest allowed value."""

    @property
    def holds(self) -> bool:
        """Whether the value keeps the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, memory, load, versions."""
    versions = {}
    for name in _VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": [round(x, 2) for x in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table; floats with four significant digits."""
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        is_number = any(isinstance(row.get(name), int | float) for row in rows)
        table.add_column(name, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(_text(row.get(name, "")) for name in columns))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(benchmark: str, rows: Sequence[Row], bars: Sequence[Bar]) -> int:
    """Print the bars and the JSON line; return the exit status."""
    if bars:
        show(
            "Bars",
            [
                {
                    "bar": bar.name,
                    "measured": bar.value,
                    "limit": f"{'>=' if bar.at_least else '<='} {bar.limit:g}",
                    "holds": "yes" if bar.holds else "NO",
                }
                for bar in bars
            ],
        )
    out = {
        "benchmark": benchmark,
        "machine": machine(),
        "rows": [dict(row) for row in rows],
        "bars": {
            bar.name: {
                "value": bar.value,
                "bar": bar.limit,
                "at_least": bar.at_least,
                "holds": bar.holds,
            }
            for bar in bars
        },
    }
    print(json.dumps(out))
    return 0 if all(bar.holds for bar in bars) else 1
