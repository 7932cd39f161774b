"""Runs a stream in this process: all sides in line, on a virtual clock, byte by byte counted.

run = run_stream(method, model, work, {"a": data_a, "b": data_b}, header=header)
assert run.carry is not None and run.bytes["lab", "a", "errors"] > 0
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aats.advert import ComputeAdvert, Partner
from aats.ids import NodeId
from aats.learning.method import Carry, Work, seed_of
from aats.learning.stream import Frame, Player, Send, StreamMethod
from aats.packet import Header
from aats.roles.data import NodeData
from aats.sim.kernel import Kernel, Timer

Count = Counter[tuple[NodeId, NodeId, str]]
"""By sender, receiver and kind."""


@dataclass(slots=True)
class StreamRun:
    """What came of a stream."""

    carry: Carry | None = None
    bytes: Count = field(default_factory=Counter)
    """Bytes of the arrays that were sent, without framing."""
    frames: Count = field(default_factory=Counter)
    seconds: float = 0.0
    """Virtual: only delays and waits for the dead take time."""

    @property
    def total(self) -> int:
        """Bytes of all arrays sent."""
        return sum(self.bytes.values())


class _World:
    def __init__(
        self, data: Mapping[str, NodeData], header: Header, method: StreamMethod, leader: NodeId,
        kill: Mapping[str, int], delay_s: Mapping[tuple[str, str], float],
    ) -> None:  # fmt: skip
        self.run = StreamRun()
        self.kernel = Kernel()
        self.players: dict[NodeId, Player[Any]] = {}
        self.dead: set[NodeId] = set()
        self._data, self._header, self._method, self._leader = data, header, method, leader
        self._left = dict(kill)
        self._delay_s = delay_s
        self._early: dict[NodeId, list[Frame]] = {}
        self._waits: dict[NodeId, Timer] = {}

    def done(self, node: NodeId, sent: list[Send]) -> None:
        for send in sent:
            self._send(node, send)
        player = self.players[node]
        if (old := self._waits.pop(node, None)) is not None:
            old.cancel()
        if player.waiting is not None:
            wait_s = player.waiting.timeout_s
            self._waits[node] = self.kernel.after(
                wait_s, lambda: self.done(node, player.time_out())
            )
        elif player.ended and node != self._leader:
            slowest = max((d for (who, _), d in self._delay_s.items() if who == node), default=0.0)
            self.kernel.after(slowest, lambda: self._tell_lost(node))  # what it said comes first

    def _send(self, node: NodeId, send: Send) -> None:
        if send.to not in (*self._data, self._leader):
            raise ValueError(f"{node} sends to {send.to!r}, which takes no part in the stream")
        arrays = {name: np.array(array) for name, array in send.arrays.items()}
        for array in arrays.values():
            array.flags.writeable = False
        size = sum(array.nbytes for array in arrays.values())
        what = node, send.to, send.kind
        self.run.bytes[what] += size
        self.run.frames[what] += 1
        frame = Frame(node, send.kind, arrays, dict(send.numbers), size)
        delay = self._delay_s.get((node, send.to), 0.0)
        self.kernel.after(delay, lambda: self._arrive(send.to, frame))

    def _arrive(self, node: NodeId, frame: Frame) -> None:
        if node in self.dead:
            return
        if self._left.get(node) == 0:
            self._die(node)
            return
        if node in self._left:
            self._left[node] -= 1
        if (player := self.players.get(node)) is not None:
            if not player.ended:
                self.done(node, player.hear(frame))
        elif frame.sender != self._leader:
            self._early.setdefault(node, []).append(frame)
        else:
            self._open(node, frame)

    def _open(self, node: NodeId, opening: Frame) -> None:
        header = self._header
        seed = seed_of("follow", header.mandate.seed, header.hop, node)
        others = {NodeId(n) for n in self._data} - {node} | {self._leader}
        player = Player(self._method.follow(opening, self._data[node], header, seed), others)
        self.players[node] = player
        self.done(node, player.start())
        for frame in self._early.pop(node, []):
            self._arrive(node, frame)

    def _die(self, node: NodeId) -> None:
        self.dead.add(node)
        if (wait := self._waits.pop(node, None)) is not None:
            wait.cancel()
        self._tell_lost(node)

    def _tell_lost(self, node: NodeId) -> None:
        for other, player in list(self.players.items()):
            if other != node and other not in self.dead and not player.ended:
                self.done(other, player.lose(node))


def run_stream(
    method: StreamMethod,
    model: Any,
    work: Work,
    data: Mapping[str, NodeData],
    *,
    header: Header,
    leader: str = "",
    compute: Mapping[str, ComputeAdvert] | None = None,
    kill: Mapping[str, int] | None = None,
    delay_s: Mapping[tuple[str, str], float] | None = None,
) -> StreamRun:
    """Let a method lead and its partners follow; return what was said and what came of it.

    Args:
        method: The method.
        model: Changed in place.
        work: The leader's.
        data: What each partner holds, in the order in which they are named to the leader.
        header: The packet's.
        leader: The leader's node; default: the work's stop.
        compute: What partners advertise of their means, where it matters.
        kill: A partner dies for good when it is sent its frame of this number (0: its opening).
        delay_s: Seconds from sender to receiver; 0 where not given.

    Raises:
        ValueError: If somebody sends to a node that takes no part.
        RuntimeError: If the leader neither ends nor waits for anything.
    """
    import torch

    head = NodeId(leader or work.stop.node)
    world = _World(data, header, method, head, kill or {}, delay_s or {})
    standard = ComputeAdvert(samples_per_s=1000.0)
    partners = [
        Partner(NodeId(node), held.adverts(), (compute or {}).get(node, standard))
        for node, held in data.items()
    ]
    torch.manual_seed(work.stop.seed)
    player = Player(method.lead(model, work, partners), [p.node for p in partners])
    world.players[head] = player
    world.done(head, player.start())
    while not player.ended:
        if not world.kernel.step():
            raise RuntimeError(f"{head} has not ended, and nothing will happen any more")
    world.run.carry, world.run.seconds = player.result, world.kernel.now
    return world.run
