"""Possible next stops of one packet: what a topology (DRRT) is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from aats.ids import NodeId
from aats.packet import ProbeEntry


class StopKind(StrEnum):
    """What a candidate stop would be visited for."""

    DATA = "data"
    MPVU = "mpvu"
    HOME = "home"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible next stop as the packet's topology (DRRT) shows it."""

    node: NodeId
    """Whose data, or which MPVU or owner."""
    kind: StopKind
    path: tuple[NodeId, ...]
    """Links to the stop, first link first; the last element is where the packet stops
    (`node`, or the compute node it trusts)."""
    transfer_s: float
    """Estimated seconds to move this packet there along the path."""
    compute_s: float
    """Estimated seconds of work there, its queue included."""
    probe_s: float = 0.0
    """Estimated seconds until a probe's answer is back."""
    verify_s: float = math.inf
    """Estimated seconds to move this packet on from there to the nearest MPVU."""
    samples: dict[str, int] = field(default_factory=dict)
    """Per wanted skill, training samples advertised."""
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Per wanted skill, the advertised histogram; a skill is absent where it is withheld."""
    quality: float = 1.0
    """Sample-weighted mean of the advertised quality."""
    freshness_s: float = 0.0
    age_s: float = 0.0
    """Of the advert."""
    visits: int = 0
    """By this packet, from its journal."""
    hops_since: int = -1
    """Hops since the last visit, -1 for never."""
    last_gain: float = 0.0
    hurt: bool = False
    """The last visit lowered trusted skill and the node's data have not changed since."""
    probe_allowed: bool = True
    probed: ProbeEntry | None = None
    """What the packet's last probe there found, unless the node's data changed since."""
    hops_since_probe: int = -1
    """Hops since then, -1 without one."""
    data_seq: int = 0
    trust: float = 1.0
    """0-1: the share of this packet's visits there that did not fail, one good one assumed."""


@dataclass(frozen=True, slots=True)
class Topology:
    """One packet's knowledge, resource and reachability topology (DRRT), cut from the map."""

    here: NodeId
    candidates: tuple[Candidate, ...]
