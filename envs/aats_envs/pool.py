"""Layouts drawn in advance, each with a packet's size: what is too slow to draw at each reset."""

from __future__ import annotations

import math
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aats.errors import ScenarioError, nearest
from aats.ids import NodeId
from aats.learning.dynamics import Dynamics
from aats.learning.fit import Fit, load_fit
from aats.packet import Plugin
from aats.topology.generate import generate
from aats.topology.graphml import load_graphml
from aats.topology.network import Layout, LinkDefaults, Network, fill
from aats_envs.family import Counts, Family, Range, Task
from aats_envs.ways import Wires, ways

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DEGREE = 5.0
"""Mean links of a node of a random geometric graph."""
GRAPHS: dict[str, Callable[[int], dict[str, Any]]] = {
    "random-geometric": lambda n: {"radius": math.sqrt(DEGREE / (math.pi * n))},
    "barabasi-albert": lambda n: {"links": 2},
    "watts-strogatz": lambda n: {"neighbours": 4, "rewired": 0.2},
    "erdos-renyi": lambda n: {"probability": min(1.0, DEGREE / n)},
    "ring": lambda n: {},
    "tree": lambda n: {},
    "grid": lambda n: {"rows": math.isqrt(n), "columns": n // math.isqrt(n)},  # nearly n
}
"""The generators a family may name, and their parameters for n nodes."""
CONSTANTS = tuple(f.name for f in fields(Dynamics))


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """One layout and one packet's size on it."""

    name: str
    layout: Layout
    position: Floats
    neighbours: Bools
    transfer_s: Floats
    shown_s: Floats
    probe_s: Floats
    links: Ints
    step: float
    """Mean links to the nearest third of the nodes."""
    hop_s: float
    """Mean seconds of a link."""
    task: Task
    classes: int
    skills: int
    reference: int
    test: int
    size_bytes: float
    probe_bytes: float
    constants: Floats
    """[T, F] of each skill's fit, in the order of `CONSTANTS`."""
    fit_epochs: float
    """Of the visits those tell of."""


class Pool:
    """Grounds of a family, drawn from its own seed; the same family has the same pool.

    Args:
        family: The family.
        size: Number of grounds.

    Raises:
        ScenarioError: If the family names an unknown graph or fit, or its zoo is not there.
    """

    def __init__(self, family: Family, size: int = 256) -> None:
        for name in family.graphs:
            if name not in GRAPHS:
                allowed = f"known graphs are {', '.join(GRAPHS)}"
                raise ScenarioError("family.graphs", name, allowed, nearest(name, GRAPHS))
        zoo = read_zoo(family.zoo, family.nodes) if family.zoo else []
        fits = {name: load_fit(name) for task in family.tasks for name in task.fits}
        rng = np.random.default_rng([family.seed, 0x9001])
        self.grounds = tuple(
            _ground(family, zoo, fits, rng, f"{family.seed}/{i}") for i in range(size)
        )

    def __len__(self) -> int:
        return len(self.grounds)


def _ground(
    family: Family,
    zoo: list[tuple[str, Layout]],
    fits: dict[str, Fit],
    rng: np.random.Generator,
    seed: str,
) -> Ground:
    if zoo:
        name, layout = zoo[rng.integers(len(zoo))]
    else:
        name, layout = _generated(family, rng)
    layout = fill(layout, _links(family, rng), int(rng.integers(2**31)))
    task = family.tasks[rng.integers(len(family.tasks))]
    skills, reference = (_count(rng, span) for span in (task.skills, task.reference))
    model_bytes, row_bytes = _drawn(rng, task.model_bytes), _drawn(rng, task.row_bytes)
    learnt = [fits[task.fits[i % len(task.fits)]] for i in range(skills)]
    trusted = skills * reference * row_bytes
    size_bytes = float(round(model_bytes + trusted))
    probe_bytes = float(round(model_bytes * task.model_share + trusted))
    wires = Wires.of(Network.of(layout))
    found = ways(wires, size_bytes, probe_bytes)
    third = max(1, len(wires.joined) // 3)
    return Ground(
        name=name,
        layout=layout,
        position=np.array([site.position for site in layout.sites]),
        neighbours=wires.joined,
        transfer_s=found.transfer_s,
        shown_s=found.shown_s,
        probe_s=found.probe_s,
        links=found.links,
        step=float(np.sort(found.links, axis=1)[:, 1 : 1 + third].mean()),
        hop_s=float(found.transfer_s.sum() / found.links.sum()),
        task=task,
        classes=_count(rng, task.classes),
        skills=skills,
        reference=reference,
        test=_count(rng, task.test),
        size_bytes=size_bytes,
        probe_bytes=probe_bytes,
        constants=np.array(
            [[getattr(f.dynamics, name) for name in CONSTANTS] for f in learnt], np.float64
        ),
        fit_epochs=learnt[0].epochs,
    )


def _generated(family: Family, rng: np.random.Generator) -> tuple[str, Layout]:
    graph = family.graphs[rng.integers(len(family.graphs))]
    nodes = _count(rng, family.nodes)
    params = GRAPHS[graph](nodes)
    nodes = params["rows"] * params["columns"] if graph == "grid" else nodes
    names = [NodeId(f"n{i:03}") for i in range(nodes)]
    return f"{graph}-{nodes}", generate(Plugin(graph, params), names, int(rng.integers(2**31)))


def _links(family: Family, rng: np.random.Generator) -> LinkDefaults:
    return LinkDefaults(
        _drawn(rng, family.bandwidth_mbps), _drawn(rng, family.latency_ms), family.loss,
        family.link_spread,
    )  # fmt: skip


def _count(rng: np.random.Generator, span: Counts) -> int:
    return int(rng.integers(span[0], span[1] + 1))


def _drawn(rng: np.random.Generator, span: Range) -> float:
    low, high = span
    return float(low * (high / low) ** rng.random())


def read_zoo(zoo: str, nodes: Counts) -> list[tuple[str, Layout]]:
    """Return the layouts of a folder's or tarball's GraphML files, in order of name.

    Args:
        zoo: The folder or the .tar.gz.
        nodes: Fewest and most nodes of the largest part, which alone is kept.

    Raises:
        ScenarioError: If there is no such file, or none of that size.
    """
    with _unpacked(Path(zoo).expanduser()) as folder:
        found = [
            (path.stem, load_graphml(path, component="largest"))
            for path in sorted(folder.rglob("*.graphml"))
        ]
    fitting = [
        (name, layout) for name, layout in found if nodes[0] <= len(layout.sites) <= nodes[1]
    ]
    if not fitting:
        allowed = (
            f"a folder or .tar.gz with GraphML files of {nodes[0]}-{nodes[1]} nodes is wanted; "
            "the Internet Topology Zoo has them"
        )
        raise ScenarioError("family.zoo", zoo, allowed)
    return fitting


@contextmanager
def _unpacked(zoo: Path) -> Iterator[Path]:
    if not zoo.is_file():
        yield zoo
        return
    with tempfile.TemporaryDirectory() as folder, tarfile.open(zoo) as packed:
        packed.extractall(folder, filter="data")
        yield Path(folder)
