"""What a hand-over and a probe take between any two nodes, as the simulated world would have it.

A packet goes the way that the map finds cheapest (`aats.topology.map`, ties included), and over
each link it is offered, accepted and sent; a probe's question and answer go the way that is
shortest for a small message. What is left out: headers grow by some 800 bytes with each visit
(here they have the mean size the nodes reckon with), and a node that holds a copy of the packet's
trusted rows is not sent them again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aats.ids import NodeId
from aats.node.desk import CoreConfig
from aats.sim.network import TRANSFER_BYTES
from aats.topology.drrt import HEADER_BYTES
from aats.topology.map import HOP_S, MAX_LOSS
from aats.topology.network import Network

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ACCEPT_BYTES = 100
ASK_BYTES = 650
"""Of a probe's question besides its tensors."""
REPLY_BYTES = 250
OFFER_TIMEOUT_S = CoreConfig(NodeId("any")).offer_timeout_s
EXACT = 1 + 1e-12
"""Two ways whose seconds differ by less than this factor are a tie."""


@dataclass(frozen=True, slots=True)
class Wires:
    """The links of a network in matrices; symmetric."""

    joined: Bools
    """[N, N]"""
    bandwidth_bps: Floats
    """[N, N]; 1 where there is no link."""
    latency_s: Floats
    """[N, N]"""
    loss: Floats
    """[N, N] share of control messages lost."""
    rank: Ints
    """[N] order of the nodes' names: decides between equal ways."""

    @classmethod
    def of(cls, network: Network) -> Wires:
        """Return the links of a network, nodes in its order."""
        names = network.names
        at = {name: i for i, name in enumerate(names)}
        n = len(names)
        joined = np.zeros((n, n), np.bool_)
        figures = np.zeros((3, n, n))
        figures[0] = 1.0
        for link in network.links:
            a, b = at[link.a], at[link.b]
            joined[a, b] = joined[b, a] = True
            values = link.bandwidth_bps, link.latency_s, min(link.loss, MAX_LOSS)
            figures[:, a, b] = figures[:, b, a] = values
        rank = np.empty(n, np.int64)
        rank[sorted(range(n), key=names.__getitem__)] = np.arange(n)
        return cls(joined, figures[0], figures[1], figures[2], rank)


@dataclass(frozen=True, slots=True)
class Ways:
    """Seconds and links between nodes; infinity, and N links, where there is no way."""

    transfer_s: Floats
    """[N, N]"""
    shown_s: Floats
    """[N, N] of a transfer as the map reckons it: what a packet sees."""
    probe_s: Floats
    """[N, N]"""
    links: Ints
    """[N, N]"""


def ways(wires: Wires, size_bytes: float, probe_bytes: float) -> Ways:
    """Return what a packet and its probes take.

    Args:
        wires: The links.
        size_bytes: Of the packet's tensors.
        probe_bytes: Of those that go along with a probe.
    """
    bits_s = 8 / wires.bandwidth_bps
    sure = 1 - wires.loss
    # Offer and acceptance may be lost, and are tried again after a while; bulk is sent again.
    again_s = OFFER_TIMEOUT_S * (1 / sure**2 - 1)
    control = (HEADER_BYTES + ACCEPT_BYTES) * bits_s
    move_s = 3 * wires.latency_s + control + (size_bytes + TRANSFER_BYTES) * bits_s / sure + again_s
    ask_s = 2 * wires.latency_s + (probe_bytes + ASK_BYTES + REPLY_BYTES) * bits_s

    def mapped(size: float) -> Floats:
        cost = HOP_S + (wires.latency_s + size * bits_s) / sure
        return np.where(wires.joined, cost, np.inf)

    packet, small = mapped(size_bytes + HEADER_BYTES), mapped(0.0)
    seconds, before = cheapest(packet, wires.rank)
    near, nearby = cheapest(small, wires.rank)
    n = len(seconds)
    links = _along(seconds, before, np.ones((n, n)))
    return Ways(
        _along(seconds, before, move_s),
        seconds,
        _along(near, nearby, ask_s),
        np.where(np.isfinite(links), links, n).astype(np.int64),
    )


def cheapest(cost: Floats, rank: Ints) -> tuple[Floats, Ints]:
    """Return the cost of the cheapest way and the node before its end, both [N, N].

    Of two equal ways that by the lower rank wins at each node.
    """
    n = len(cost)
    total = cost.copy()
    np.fill_diagonal(total, 0.0)
    for k in range(n):
        np.minimum(total, total[:, k, None] + total[None, k], out=total)
    before = np.empty((n, n), np.int64)
    by_rank = np.argsort(rank)
    ranked = cost[by_rank]
    for i in range(n):
        via = total[i, by_rank, None] + ranked
        before[i] = by_rank[np.argmax(via <= total[i] * EXACT, axis=0)]
    return total, before


def _along(total: Floats, before: Ints, each: Floats) -> Floats:
    """Return the sum of `each` over the links of the cheapest ways."""
    n = len(total)
    order = np.argsort(total, axis=1, kind="stable")
    start = np.arange(n)
    out = np.full((n, n), np.inf)
    out[start, start] = 0.0
    for step in range(n):
        end = order[:, step]
        here = np.isfinite(total[start, end]) & (end != start)
        i, j = start[here], end[here]
        k = before[i, j]
        out[i, j] = out[i, k] + each[k, j]
    return out
