"""What a person asked `aats launch` for, and how a command ends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path


class Exit(IntEnum):
    """Exit codes: part of the interface, never renumbered."""

    OK = 0
    """Every requirement was met, every check held."""
    FAULT = 1
    """A fault of ours."""
    USAGE = 2
    """Bad input: arguments, a scenario, a missing file."""
    NOT_MET = 3
    """It ran to its end, and a requirement was not met or a check did not hold."""
    INFEASIBLE = 4
    """Refused before anything ran: the requirement cannot be met on this network."""
    INTERRUPTED = 5


class World(StrEnum):
    """Where the node cores run."""

    LIVE = "live"
    """Node daemons over ZeroMQ on this machine, on the wall clock."""
    SIM = "sim"
    """A simulated network on a virtual clock, in this process."""


class Format(StrEnum):
    """What goes to stdout; everything else goes to stderr."""

    TEXT = "text"
    """For people."""
    JSON = "json"
    """One JSON document at the end."""
    JSONL = "jsonl"
    """One JSON document a line, as it happens."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """The arguments of `aats launch`, which are those of `python -m aats.launch`."""

    path: Path
    """A scenario file, or a folder with a `scenario.toml`."""
    world: World = World.LIVE
    policy: str = ""
    """Instead of the scenario's, for every packet; "" for the scenario's."""
    compare: tuple[str, ...] = ()
    """Policies to run one after the other on the same scenario and seeds."""
    seeds: int = 1
    """Runs of each policy under --compare: the scenario's seed and the ones that follow it."""
    seed: int | None = None
    settings: tuple[str, ...] = ()
    """`table.key=value`, as `load_scenario` takes them."""
    format: Format = Format.TEXT
    out: Path = Path("runs")
    """Folder in which a run makes its own."""
    insecure: bool = False
    nodes_per_process: int | None = None

    def overrides(self, *, policy: str = "", seed: int | None = None) -> tuple[str, ...]:
        """Return every setting that goes over the scenario's own, the last one winning.

        Args:
            policy: Instead of `self.policy` (one of `compare`).
            seed: Instead of `self.seed`.
        """
        name, number = policy or self.policy, self.seed if seed is None else seed
        chosen = [*self.settings]
        if number is not None:
            chosen.append(f"scenario.seed={number}")
        if name:
            chosen.append(f"packets.*.policy={json.dumps(name)}")
        if self.insecure:
            chosen.append("live.insecure=true")
        if self.nodes_per_process is not None:
            chosen.append(f"live.nodes_per_process={self.nodes_per_process}")
        return tuple(chosen)
