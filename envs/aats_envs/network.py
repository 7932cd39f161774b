"""One knowledge network as one packet will live on it, in arrays: what is drawn at a reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from aats.learning.dynamics import Dynamics
from aats.topology.network import Layout

if TYPE_CHECKING:
    from aats_envs.rows import Deal

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class KnowledgeNetwork:
    """A network of N nodes and one packet's wish of T targets, each of up to C classes.

    Seconds between nodes are those of the cheapest path for this packet's size (a diagonal of
    zeros); infinity between parts that do not hang together. What a node has and what it
    advertises are two things: adverts may be stale or lie.
    """

    name: str
    """Where it comes from, e.g. "waxman-24" or "Abilene"; for people and reports."""
    position: Floats
    """[N, 2] in the unit square, for drawing."""
    neighbours: Bools
    """[N, N] who is linked to whom, for drawing."""

    transfer_s: Floats
    """[N, N] to move the packet, hand-over included."""
    shown_transfer_s: Floats
    """[N, N] the same as nodes reckon it from adverts, without the hand-over."""
    probe_s: Floats
    """[N, N] from a question until the answer is back, the work there not counted."""
    links: Ints
    """[N, N] links of that path."""

    has_data: Bools
    """[N] nodes that a packet of this wish may visit for their data."""
    is_mpvu: Bools
    """[N]"""
    home: int
    """The owner: where the packet starts and ends."""

    clean: Floats
    """[N, T, C] training rows by class whose label is right."""
    wrong: Floats
    """[N, T, C] training rows by class *as labelled* whose label is wrong."""
    shown: Floats
    """[N, T, C] the advertised histogram; zeros where it is withheld."""
    shown_samples: Floats
    """[N, T] the advertised number of rows."""
    shows_labels: Bools
    """[N, T]"""
    quality: Floats
    """[N] advertised, 0-1."""
    freshness_s: Floats
    """[N] age of the newest sample."""
    probe_allowed: Bools
    """[N]"""

    samples_per_s: Floats
    """[N] true speed of training."""
    shown_per_s: Floats
    """[N] the advertised one."""
    joules_per_sample: Floats
    """[N]"""
    queue: Floats
    """[N] visits waiting on average, as advertised."""
    down: Floats
    """[N, 2] seconds from and until which the node cannot be reached; infinities for never."""

    classes: Ints
    """[T]"""
    target: Floats
    """[T] accuracy required, as an MPVU measures it."""
    reference: Ints
    """[T] rows of the trusted set that the packet carries."""
    test: Ints
    """[T] rows of an MPVU's test set."""
    epochs: float
    """Passes over a node's rows at a visit."""
    budget: Floats
    """[4] hops, seconds, bytes, joules; infinity for as much as needed."""
    size_bytes: float
    """Of the packet."""
    probe_bytes: float
    """Of a probe's question: the model and the trusted set."""
    dynamics: tuple[Dynamics, ...]
    """[T] how the model learns and forgets each skill."""

    layout: Layout = Layout((), ())
    """The same nodes and links by name, with the links' figures: what a scenario is made of."""
    skills: tuple[str, ...] = ()
    """[T] their names."""
    fit_epochs: float = 2.0
    """Passes of the visits that `dynamics` tells of: those here count `epochs / fit_epochs`."""
    rows: Deal | None = None
    """What `clean` and `wrong` count, where models learn by rows."""

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.position)
