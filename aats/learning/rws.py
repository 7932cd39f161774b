"""RWS, the random-walking snake: one model lies across the nodes of a random walk and moves on.

The sources name "RWS" without a word on how it works. This is our reading of the name:

- The model's layers are cut into consecutive segments. They lie on the last nodes of a random
  walk over the partners: the first segment on its newest node, the *head*, the last one on its
  oldest, the *tail*.
- In a round the head's data train the whole snake. A minibatch flows from the head through the
  body to the tail, which has the labels sent along and computes the loss; errors flow back the
  same way, and each node takes its own step. No activation passes through the packet's stop.
- Then the snake moves by one node: each segment is handed to the next node towards the head, a
  new head joins, the tail leaves. Its data train next.
- The packet stays where it is, sends the segments out at first, draws the walk, and gets the
  segments back at the end of the visit.

So each node needs memory for one segment only, and each one's rows train all of them. A walk is
drawn over all partners (each can reach each, over several links where it must); a node that is
in the body does not become the head. With one segment this is `sequential` along a random walk.

A node that dies breaks the round. Whoever had its segment in the round before still has what it
handed on, and hands it on again; the walk goes on without the dead.

Bytes of a round, w the sum of the activations' widths at the cuts, q the head's rows, N numbers
in the model, s bits a number: 2 w q s + N s, and the labels at each cut.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from aats.advert import Partner
from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.method import Carry, Plan, Stop, Work, passes, seed_of
from aats.learning.modules import rows
from aats.learning.segments import Segment, chain_of, joined, piece, put, weights_of
from aats.learning.sgd import sgd
from aats.learning.split import (
    IDLE_S,
    array,
    brings_rows,
    finish,
    minibatch,
    one_epoch,
    rows_allowed,
    small,
    total_of,
    whole,
)
from aats.learning.stream import Frame, Receive, Script, Send, read, spelled
from aats.node.streams import MAX_PARTNERS
from aats.packet import Header
from aats.payload import Array
from aats.roles.data import NodeData

MAX_CLASSES = 1 << 16
"""That a head may count rows of."""


@dataclass(frozen=True, slots=True)
class RwsMethod:
    """The random-walking snake.

    Raises:
        ValueError: On a number out of range.
    """

    rounds: int = 0
    """Heads in one visit; 0 for as many as there are partners."""
    segments: int = 3
    """Parts of the model, cut evenly between blocks; fewer where blocks or partners do not
    suffice."""
    batch_size: int = 32
    lr: float = 0.03
    decay: float = 0.9
    """Factor on the learning rate for each visit."""
    clip: float = 1.0
    """Largest gradient norm, of each segment by itself; 0 for none."""
    patience_s: float = 20.0
    """How long a neighbour in the body may take for a minibatch."""
    round_s: float = 120.0
    """How long a round may take."""

    def __post_init__(self) -> None:
        if self.segments < 1 or self.batch_size < 1 or self.rounds < 0:
            raise ValueError("segments and batch_size must be at least 1, rounds at least 0")
        if self.lr <= 0 or self.patience_s <= 0 or self.round_s <= 0:
            raise ValueError("lr, patience_s and round_s must be above 0")
        if not 0 < self.decay <= 1 or self.clip < 0:
            raise ValueError("decay must be in 0-1 (not 0), clip >= 0")

    def plan(self, stop: Stop) -> Plan | None:
        """Return one epoch over the stop's own rows."""
        return passes(stop, 1.0, self.batch_size)

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        """Train the whole model here: there is nobody to lie across."""
        sgd(model, work, lr=self._rate(work.stop), clip=self.clip)
        return None

    def _rate(self, stop: Stop) -> float:
        return self.lr * self.decay**stop.cycle * stop.caution

    # --- the packet's stop ---

    def lead(
        self, model: nn.Module, work: Work, partners: Sequence[Partner]
    ) -> Script[Carry | None]:
        """Lay the snake out, let it walk, take it in again."""
        nodes = [p.node for p in partners if brings_rows(p)]
        if work.plan.total:
            self.train(model, work)
        if not nodes:
            return None
        chain = chain_of(model)
        count = min(self.segments, len(chain), len(nodes))
        bounds = [int(part[0]) for part in np.array_split(range(len(chain)), count)]
        bounds.append(len(chain))
        parts = [joined(chain, a, b) for a, b in itertools.pairwise(bounds)]
        snake = Snake(nodes, parts, bounds, random.Random(work.stop.seed))
        snake.allowed = rows_allowed(partners, rounds := self.rounds or len(nodes))
        heads, lr = 0, self._rate(work.stop)
        for number in range(rounds):
            if not snake.step():
                break
            yield from self._lay(snake, number, lr)
            heads += yield from self._round(snake, number, work)
        yield from self._take_in(snake)
        for node in snake.nodes:
            yield Send(node, "stop")
        lost = f"; lost {', '.join(snake.lost)}" if snake.lost else ""
        return Carry(note=f"{count} segments, {heads} heads{lost}")

    def _lay(self, snake: Snake, number: int, lr: float) -> Script[None]:
        """Give every node of the body its place, and see to it that its segment comes there."""
        body, last = snake.body, len(snake.body) - 1
        for j, node in enumerate(body):  # before anybody is told to wait for anything
            if (source := snake.holder(j)) not in ("", node):
                where = {"segment": j, "round": number}
                yield Send(source, "hand", {"to": spelled(node)}, where)
        for j, node in enumerate(body):
            before, after = body[j - 1] if j else "", body[j + 1] if j < last else ""
            names = {"before": spelled(before), "after": spelled(after),
                     "from": spelled(snake.holder(j))}  # fmt: skip
            numbers = {
                "round": number, "segment": j, "start": snake.bounds[j],
                "stop": snake.bounds[j + 1], "has": float(snake.holder(j) == node), "lr": lr,
            }  # fmt: skip
            yield Send(node, "run", names, numbers)
            if not snake.holder(j):
                yield Send(node, f"segment/{j}/{number}", weights_of(snake.parts[j]))

    def _round(self, snake: Snake, number: int, work: Work) -> Script[int]:
        """Wait until every node of the body is through; return 1 for a round that held."""
        held = True
        for j, node in enumerate(list(snake.body)):
            frame = yield Receive(node, f"done/{number}", self.round_s)
            if frame is None:
                snake.lose(node)
                held = False
            elif frame.numbers.get("failed"):
                held = False
            elif not _count(work, frame, self.batch_size, snake.allowed):
                snake.lose(node)
                held = False
            else:
                snake.holders[j].append(node)
        return int(held)

    def _take_in(self, snake: Snake) -> Script[None]:
        """Get every segment back from the latest node that has it, or from one before that."""
        for j, part in enumerate(snake.parts):
            while source := snake.holder(j):
                where = {"segment": j, "round": -1}
                yield Send(source, "hand", {"to": spelled("")}, where)
                frame = yield Receive(source, f"segment/{j}/-1", self.patience_s)
                try:
                    if frame is not None:
                        put(part, frame.arrays)
                        break
                except ModelError:
                    pass
                snake.lose(source)

    # --- a partner ---

    def follow(self, opening: Frame, data: NodeData, header: Header, seed: int) -> Script[None]:
        """Hold segments, be head, body or tail, hand on."""
        held: dict[int, Segment] = {}
        order, leader, total = opening, opening.sender, total_of(header)
        left = self.rounds or MAX_PARTNERS
        while order.kind != "stop":
            j, number = whole(order, "segment"), int(order.numbers.get("round", 0))
            if order.kind == "hand" and j in held:
                to = NodeId(read(array(order, "to"))) or leader
                yield Send(to, f"segment/{j}/{number}", weights_of(held[j].module))
            elif order.kind == "run":
                counts = None
                try:
                    if not whole(order, "has"):
                        source = NodeId(read(array(order, "from"))) or leader
                        came = yield Receive(source, f"segment/{j}/{number}", self.patience_s)
                        if came is not None:
                            held[j] = self._segment(header, order, came)
                    if j in held:
                        held[j].lr = order.numbers.get("lr", 0.0)
                        place = Place(order, number, held[j], held[j].size / total)
                        left -= not place.before  # the owner signed for so many heads
                        if left >= 0:
                            counts = yield from self._run(place, data, header, seed)
                except (ModelError, RuntimeError, IndexError):
                    pass  # a neighbour's nonsense breaks the round, and not this node
                said = {"failed": float(counts is None)}
                yield Send(leader, f"done/{number}", counts or {}, said)
            heard = yield Receive(leader, None, IDLE_S)
            if heard is None:
                return
            order = heard

    def _segment(self, header: Header, order: Frame, came: Frame) -> Segment:
        start, stop = whole(order, "start"), whole(order, "stop")
        module = piece(header.mandate.architecture, start, stop)
        put(module, came.arrays)
        return Segment(module, clip=self.clip)

    def _run(
        self, place: Place, data: NodeData, header: Header, seed: int
    ) -> Script[dict[str, Array] | None]:
        """Do one round at this place; return what was trained on (the head), None if it broke."""
        if place.before:
            return (yield from self._body(place))
        if not data.show_labels:
            return None
        work = one_epoch(data, header, seed_of("round", seed, place.round), self.batch_size)
        for skill, x, y in work:
            frame = {"y": small(y), "skill": spelled(skill)}
            if not (yield from self._through(place, rows(x), frame)):
                return None
        if place.after:
            yield Send(place.after, f"forward/{place.round}", {}, {"end": 1.0})
        return {skill: counts.astype(np.int64) for skill, counts in work.labels.items()}

    def _body(self, place: Place) -> Script[dict[str, Array] | None]:
        while True:
            frame = yield Receive(place.before, f"forward/{place.round}", self.patience_s)
            if frame is None:
                return None
            if frame.numbers.get("end"):
                if place.after:
                    yield Send(place.after, frame.kind, {}, {"end": 1.0})
                return {}
            beside = {"y": array(frame, "y"), "skill": array(frame, "skill")}
            if not (yield from self._through(place, torch.from_numpy(minibatch(frame)[0]), beside)):
                return None

    def _through(self, place: Place, x: torch.Tensor, beside: dict[str, Array]) -> Script[bool]:
        """Pass a minibatch on and its error back; return whether the snake held."""
        segment, samples = place.segment, len(beside["y"]) * place.share
        if not place.after:
            labels = beside["y"].astype(np.int64)
            error = finish(segment, x, labels, read(beside["skill"]))
        else:
            frame = {"a": segment.forward(x).numpy(), **beside}
            yield Send(place.after, f"forward/{place.round}", frame, samples=samples / 3)
            answer = yield Receive(place.after, f"backward/{place.round}", self.patience_s)
            if answer is None:
                return False
            error = segment.backward(torch.from_numpy(array(answer, "e").copy()))
            samples *= 2 / 3
        if place.before:
            error_frame = {"e": error.numpy()}
            yield Send(place.before, f"backward/{place.round}", error_frame, samples=samples)
        return True


class Place:
    """Where a node lies in the snake for a round.

    Args:
        order: The leader's.
        number: Of the round.
        segment: What lies here.
        share: Of the model's parameters.
    """

    def __init__(self, order: Frame, number: int, segment: Segment, share: float) -> None:
        self.round, self.segment, self.share = number, segment, share
        self.before = NodeId(read(array(order, "before")))
        """The node towards the head, "" for the head."""
        self.after = NodeId(read(array(order, "after")))
        """The node towards the tail, "" for the tail."""


@dataclass(slots=True)
class Snake:
    """Where the segments are, as the packet's stop knows it."""

    nodes: list[NodeId]
    """Those that are still with us."""
    parts: list[nn.Sequential]
    """The segments of the packet's own model."""
    bounds: list[int]
    """First block of each segment, and the number of blocks."""
    rng: random.Random
    body: list[NodeId] = field(default_factory=list)
    """The head first."""
    holders: list[list[NodeId]] = field(default_factory=list)
    """Of each segment, who has held it, the latest last."""
    lost: list[NodeId] = field(default_factory=list)
    allowed: Counter[tuple[NodeId, str]] = field(default_factory=Counter)
    """Rows that each may still say it has trained on, by skill."""

    def __post_init__(self) -> None:
        self.holders = [[] for _ in self.parts]

    def step(self) -> bool:
        """Move by one node; return False if too few are left."""
        count = len(self.parts)
        if len(self.nodes) < count:
            return False
        if not self.body:
            self.body = self.rng.sample(self.nodes, count)
            return True
        rest = [node for node in self.body if node in self.nodes]
        if len(rest) == count and (count > 1 or len(self.nodes) > 1):
            rest.pop()
        while len(rest) < count:
            free = [n for n in self.nodes if n not in rest and n not in self.body]
            free = free or [n for n in self.nodes if n not in rest]
            rest.insert(0, self.rng.choice(free))
        self.body = rest
        return True

    def holder(self, segment: int) -> NodeId:
        """Return who had a segment last and is still with us; "" for the packet's stop."""
        return next((n for n in reversed(self.holders[segment]) if n in self.nodes), NodeId(""))

    def lose(self, node: NodeId) -> None:
        """Go on without a node."""
        if node in self.nodes:
            self.nodes.remove(node)
            self.lost.append(node)


def _count(work: Work, frame: Frame, batch_size: int, allowed: Counter[tuple[NodeId, str]]) -> bool:
    """Count what a head says it has trained on: rows of each class, a step for each minibatch.

    Returns:
        False if it is more than it can have, or no counts at all.
    """
    for skill, counts in frame.arrays.items():
        left = allowed[frame.sender, skill]
        if counts.dtype != np.int64 or counts.ndim != 1 or not 0 < counts.size <= MAX_CLASSES:
            return False
        if counts.min() < 0 or counts.max() > left or counts.sum() > left:
            return False
        allowed[frame.sender, skill] -= int(counts.sum())
        labels = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
        work.count(skill, math.ceil(len(labels) / batch_size), len(labels), labels)
    return True
