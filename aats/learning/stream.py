"""Work of one visit that several nodes do together: scripts that exchange frames of arrays.

A visit where the packet is *leads*; each partner *follows*. Both sides are generators: they yield
what they want to send and what they wait for, and know nothing of sockets, clocks or processes.
So one script runs in a worker process on live nodes, on the virtual clock of the simulated world,
and in line in a test (`aats.testing.streams.run_stream`).

    def lead(self, model, work, partners):
        for partner in partners:
            yield Send(partner.node, "weights", {"w": w})
        answer = yield Receive(partners[0].node, "sum", timeout_s=10.0)
        if answer is None:      # it is dead, or too slow: go on without it
            ...

Two sides' frames keep their order and none is lost unless that partner is; a partner that died
answers every `Receive` with None at once. No tensors library in here: arrays are NumPy's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import numpy as np

from aats.advert import Partner
from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.method import Carry, Method, Work
from aats.node.streams import MAX_FRAME_BYTES
from aats.node.tasks import Lost, Spoken, Told
from aats.packet import Header
from aats.payload import Array, Payload, pack
from aats.roles.data import NodeData

T = TypeVar("T")

MAX_WAITING = 1024
MAX_WAITING_BYTES = 2 * MAX_FRAME_BYTES
"""Frames of one sender that wait for a script to ask for them; whoever sends more is lost."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a frame and go on. The first one from the leader opens the partner's side."""

    to: NodeId
    """The leader, or any partner of the stream: partners may speak to each other."""
    kind: str
    """What it is, in the method's own words; up to 64 characters."""
    arrays: Mapping[str, Array] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    samples: float = 0.0
    """Work done since the last yield, in rows trained on with the whole model: on the virtual
    clock it takes that long before the frame leaves (live it has taken its time already)."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for a frame; yields the `Frame`, or None when time is up or the sender is lost."""

    sender: NodeId | None = None
    """None for any."""
    kind: str | None = None
    """None for any."""
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Frame:
    """What came. The arrays are read-only."""

    sender: NodeId
    kind: str
    arrays: Mapping[str, Array] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    wire_bytes: int = 0
    """What it took on each link, framing included."""


Script = Generator[Send | Receive, Frame | None, T]
"""One side of a stream; returns what came of it."""


@runtime_checkable
class StreamMethod(Method, Protocol):
    """A method whose visits several nodes may do together.

    `plan` and `train` are as in `Method`: what it does where it is alone.
    """

    def lead(self, model: Any, work: Work, partners: Sequence[Partner]) -> Script[Carry | None]:
        """Change the model in place together with the partners, as `Method.train` would.

        Rows that partners trained on are told to `work.count`, so that they are in the record.

        Args:
            model: What the architecture's builder made.
            work: The stop's own data (maybe none) and the visit's account.
            partners: Who may be asked, best first; each is free to stay silent.
        """
        ...

    def follow(self, opening: Frame, data: NodeData, header: Header, seed: int) -> Script[None]:
        """Do a partner's side until the script ends or the leader's does.

        Args:
            opening: The first frame from the leader.
            data: This node's own, all skills.
            header: The packet's mandate and numbers; no tensors belong to it here.
            seed: Of all randomness here; follows from the packet's, the hop and the node.
        """
        ...


class Player(Generic[T]):
    """Plays one script: hands it what it waits for, gathers what it sends.

    Whoever drives it calls `start`, then `hear`, `lose` and `time_out` as things happen; each
    returns the frames that the script has sent meanwhile. It then waits (`waiting`) or has ended
    (`ended`, `result`).

    Args:
        script: The generator, not started.
        others: All who may speak to it.
        leader: Without whom all is lost; "" for the leader's own side.
    """

    def __init__(
        self, script: Script[T], others: Iterable[NodeId], leader: NodeId = NodeId("")
    ) -> None:
        self._script = script
        self._others = set(others)
        self._leader = leader
        self._inbox: deque[Frame] = deque()
        self._flooding: set[NodeId] = set()
        self.waiting: Receive | None = None
        """What the script waits for now."""
        self.ended = False
        self.result: T | None = None
        """What the script returned."""

    def start(self) -> list[Send]:
        """Run to the first wait."""
        return self._go(None)

    def hear(self, frame: Frame) -> list[Send]:
        """Take a frame; of a sender that was lost, it is taken back among the living."""
        sender = frame.sender
        if sender in self._flooding:
            return []
        held = [*(waiting for waiting in self._inbox if waiting.sender == sender), frame]
        size = sum(array.nbytes for one in held for array in one.arrays.values())
        if len(held) > MAX_WAITING or size > MAX_WAITING_BYTES:
            self._flooding.add(sender)
            return self.lose(sender)
        self._others.add(sender)
        self._inbox.append(frame)
        return self._look()

    def lose(self, node: NodeId) -> list[Send]:
        """Take note that a node will say no more."""
        self._others.discard(node)
        if node == self._leader:
            self._others.clear()
        return self._look()

    def take(self, told: Told) -> list[Send]:
        """Take in what a core tells the task: a frame, or a loss."""
        if isinstance(told, Lost):
            return self.lose(told.node)
        return self.hear(frame_of(told))

    def time_out(self) -> list[Send]:
        """Tell the script that its wait is over."""
        assert self.waiting is not None, "only a script that waits can wait too long"
        return self._go(None)

    def close(self) -> None:
        """Stop the script."""
        self._script.close()
        self.ended, self.waiting = True, None

    def _look(self) -> list[Send]:
        wanted = self.waiting
        if wanted is None:
            return []
        frame = self._take(wanted)
        if frame is None and not self._is_hopeless(wanted):
            return []
        return self._go(frame)

    def _take(self, wanted: Receive) -> Frame | None:
        for frame in self._inbox:
            if wanted.sender in (None, frame.sender) and wanted.kind in (None, frame.kind):
                self._inbox.remove(frame)
                return frame
        return None

    def _is_hopeless(self, wanted: Receive) -> bool:
        return not self._others if wanted.sender is None else wanted.sender not in self._others

    def outcome(self) -> T:
        """Return the result of a script that has ended."""
        assert self.ended, "the script has not ended"
        return cast("T", self.result)

    def _go(self, answer: Frame | None) -> list[Send]:
        sent: list[Send] = []
        self.waiting = None
        try:
            while True:
                step = self._script.send(answer)
                if isinstance(step, Send):
                    sent.append(step)
                    answer = None
                    continue
                answer = self._take(step)
                if answer is None and not self._is_hopeless(step):
                    self.waiting = step
                    return sent
        except StopIteration as end:
            self.ended, self.result = True, end.value
            return sent


def alone(player: Player[T]) -> T:
    """Play a script that has nobody to speak to; return its result."""
    player.start()
    while not player.ended:
        player.time_out()
    return player.outcome()


def spoken_of(send: Send, joules: float = 0.0) -> Spoken:
    """Return what a script sends as a task gives it to its core.

    Raises:
        ModelError: If it is larger than a frame may be.
    """
    payload = pack({name: np.ascontiguousarray(array) for name, array in send.arrays.items()})
    if payload.manifest.total > MAX_FRAME_BYTES:
        raise ModelError(
            f"frame {send.kind!r} of {payload.manifest.total} bytes, "
            f"allowed are {MAX_FRAME_BYTES}: send it in pieces"
        )
    numbers = {name: float(value) for name, value in send.numbers.items()}
    return Spoken(
        send.to, send.kind, payload.manifest, bytes(payload.arena), numbers, joules=joules
    )


def frame_of(spoken: Spoken) -> Frame:
    """Return what came for a task as its script gets it."""
    arrays = Payload(spoken.manifest, memoryview(spoken.tensors)).arrays()
    return Frame(spoken.node, spoken.kind, arrays, spoken.numbers, spoken.wire_bytes)


def spelled(text: str) -> Array:
    """Return a short text as an array of a frame."""
    return np.frombuffer(text.encode(), np.uint8)


def read(array: Array) -> str:
    """Return the text that `spelled` wrote.

    Raises:
        ModelError: If it is none.
    """
    try:
        return array.astype(np.uint8).tobytes().decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"a frame with a text that is none: {error}") from error
