"""Split learning: clients run the first blocks on their rows, the packet's stop runs the rest.

*split* (horizontal split learning, HSL). The packet sits at a compute node, or at its owner, with
the server part. Clients take turns: one passes over its rows, a minibatch's activations and
labels go up to the server, the activations' errors come down, both sides take their step. Then
its part of the weights goes on to the next client, directly. After the last turn it comes back
to the packet. With one client this is `sequential`, computed at two places.

*splitfed* (SplitFed; Thapa et al. 2022). All clients work at once, each with a copy of the client
part; the server takes their minibatches in turns, in a fixed order; after each epoch the client
parts are averaged by rows at the packet.

A client that dies, refuses or stays silent is left out from then on. In *split* its weights are
gone with it; the client before it still has what it handed on, and hands it to the next.

Bytes of an epoch, p the width of the activations, q rows in all, n numbers in the client part,
J clients, s bits a number: split 2 p q s + n J s, splitfed 2 p q s + 2 n J s, and the labels.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from aats.advert import Partner
from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.method import Carry, Plan, Stop, Work, passes, seed_of
from aats.learning.models import predict
from aats.learning.modules import rows
from aats.learning.segments import AUTO, Segment, chain_of, cut_at, joined, piece, put, weights_of
from aats.learning.sgd import sgd
from aats.learning.stream import Frame, Receive, Script, Send, read, spelled
from aats.packet import Header
from aats.payload import Array
from aats.roles.data import Labels, NodeData

KEEP = "."
"""Instead of a node's name: keep the weights, you have the next turn, too."""
IDLE_S = 600.0
"""A client waits so long for its next order; its node tells it at once if the leader is gone."""


@dataclass(frozen=True, slots=True)
class Split:
    """What both methods share: their parameters, and a client's side.

    Raises:
        ValueError: On a number out of range.
    """

    epochs: int = 1
    """Passes over the rows of every client in one visit."""
    batch_size: int = 32
    lr: float = 0.03
    decay: float = 0.9
    """Factor on the learning rate for each cycle (visits in which all had their turn)."""
    clip: float = 1.0
    """Largest gradient norm, of each part by itself; 0 for none."""
    cut: str | int = AUTO
    """Where the model is cut: blocks of the client part, the name of the server's first block, or
    "auto": as many blocks as fit in the memory that the weakest client advertises."""
    patience_s: float = 20.0
    """How long a client may take for a minibatch, or to hand weights on."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0 or self.patience_s <= 0:
            raise ValueError("epochs and batch_size must be at least 1, lr and patience_s above 0")
        if not 0 < self.decay <= 1 or self.clip < 0:
            raise ValueError("decay must be in 0-1 (not 0), clip >= 0")

    def plan(self, stop: Stop) -> Plan | None:
        """Return one epoch over the stop's own rows, which no cut concerns."""
        return passes(stop, self.epochs, self.batch_size)

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        """Train the whole model here: there is nobody to share it with."""
        sgd(model, work, lr=self._rate(work.stop), clip=self.clip)
        return None

    def _rate(self, stop: Stop) -> float:
        return self.lr * self.decay**stop.cycle * stop.caution

    def follow(self, opening: Frame, data: NodeData, header: Header, seed: int) -> Script[None]:
        """Be a client: take a turn at each order, with the weights that come for it."""
        leader, order, left = opening.sender, opening, self.epochs
        front: Segment | None = None
        if not data.show_labels:
            raise ModelError("this node keeps its labels, and split learning sends them")
        while order.kind != "stop":
            turn, to = whole(order, "turn"), NodeId(read(array(order, "to")))
            if order.kind == "order":
                latest = front
                if not whole(order, "kept"):
                    source = NodeId(read(array(order, "from"))) or leader
                    came = yield Receive(source, f"weights/{turn}", self.patience_s)
                    latest = self._front(header, order, came)
                if latest is None or not left:
                    yield Send(leader, "failed")
                else:
                    front, left = latest, left - 1  # the owner signed for so many passes
                    front.lr = order.numbers.get("lr", 0.0)
                    epoch = whole(order, "epoch")
                    own = seed if epoch == 0 else seed_of("epoch", seed, epoch)
                    if not (yield from self._pass(front, data, header, own, leader)):
                        return
                    yield Send(leader, "done")
                    if to != KEEP:
                        weights = weights_of(front.module)
                        yield Send(to or leader, f"weights/{turn + 1}", weights)
            elif order.kind == "hand" and front is not None:
                yield Send(to or leader, f"weights/{turn}", weights_of(front.module))
            heard = yield Receive(leader, None, IDLE_S)
            if heard is None:
                return
            order = heard

    def _front(self, header: Header, order: Frame, came: Frame | None) -> Segment | None:
        """Return the client part with the weights that came, None if they are none of it."""
        module = piece(header.mandate.architecture, 0, whole(order, "cut"))
        try:
            put(module, came.arrays if came else {})
        except ModelError:
            return None
        return Segment(module, clip=self.clip)

    def _pass(
        self, front: Segment, data: NodeData, header: Header, seed: int, leader: NodeId
    ) -> Script[bool]:
        """Pass over this node's rows once; return whether the server kept up."""
        share = front.size / total_of(header)
        for skill, x, y in one_epoch(data, header, seed, self.batch_size):
            a = front.forward(rows(x)).numpy()
            frame = {"a": a, "y": small(y)}
            yield Send(leader, f"activations/{skill}", frame, samples=len(y) * share)
            answer = yield Receive(leader, "errors", self.patience_s)
            if answer is None:
                return False
            front.backward(torch.from_numpy(array(answer, "e").copy()))
        return True


@dataclass(slots=True)
class Server:
    """The server part at the packet's stop, and what it keeps count of."""

    front: nn.Sequential
    """The client part as last seen here."""
    back: Segment
    cut: int
    work: Work
    share: float
    """Of the whole model's parameters."""
    clients: list[NodeId]
    """Those that are still with us, in order."""
    allowed: Counter[tuple[NodeId, str]]
    """Rows that each may still bring, by skill."""
    lost: list[NodeId] = field(default_factory=list)

    def step(self, sender: NodeId, frame: Frame) -> Send | None:
        """Train on a minibatch; return its errors, None if it is none that can be used."""
        skill = frame.kind.partition("/")[2]
        try:
            a, y = minibatch(frame)
            if len(y) > self.allowed[sender, skill]:
                return None
            self.allowed[sender, skill] -= len(y)
            error = finish(self.back, torch.from_numpy(a), y, skill)
        except (ModelError, RuntimeError, IndexError):
            return None
        self.work.count(skill, 1, len(y), y)
        spent = len(y) * self.share
        return Send(sender, "errors", {"e": error.numpy()}, samples=spent)

    def lose(self, node: NodeId) -> None:
        """Go on without a client."""
        self.clients.remove(node)
        self.lost.append(node)

    def take(self, frame: Frame | None) -> bool:
        """Take weights of the client part in; return whether they were fit for it."""
        try:
            if frame is not None:
                put(self.front, frame.arrays)
        except ModelError:
            return False
        return frame is not None

    def carry(self) -> Carry:
        """Return what the ledger shall know."""
        lost = f"; lost {', '.join(self.lost)}" if self.lost else ""
        return Carry(note=f"{len(self.clients)} clients, cut at block {self.cut}{lost}")


@dataclass(frozen=True, slots=True)
class SplitMethod(Split):
    """Horizontal split learning: the client part goes round, from client to client."""

    def lead(
        self, model: nn.Module, work: Work, partners: Sequence[Partner]
    ) -> Script[Carry | None]:
        """Serve each client's turn; the client part is back in the model at the end."""
        lr = self._rate(work.stop)
        server = serve(self, model, work, partners, lr)
        turns = deque((epoch, node) for epoch in range(self.epochs) for node in server.clients)
        turn, had, sent_to = 0, list[NodeId](), NodeId("")
        # `had`: who has had the weights, the latest last; that one sent them on to `sent_to`.
        while turns:
            epoch, node = turns.popleft()
            if node not in server.clients:
                continue
            after = next((n for _, n in turns if n in server.clients), NodeId(""))
            has = had[-1] if had else NodeId("")
            numbers = {"turn": turn, "epoch": epoch, "cut": server.cut, "lr": lr}
            numbers["kept"] = float(has == node)
            names = {"to": spelled(KEEP if after == node else after), "from": spelled(has)}
            yield Send(node, "order", names, numbers)
            if not has:
                yield Send(node, f"weights/{turn}", weights_of(server.front))
            elif node not in (has, sent_to):
                yield Send(has, "hand", {"to": spelled(node)}, {"turn": turn})
            end = yield from self._turn(server, node)
            turn += 1
            if end == "done":
                had, sent_to = [*(n for n in had if n != node), node], after
                continue
            sent_to = NodeId(KEEP)
            if end == "failed" and has:  # what it was to be handed never came
                had.remove(has)
                turns.appendleft((epoch, node))
            else:
                server.lose(node)
                had = [n for n in had if n != node]
        if had and sent_to:
            yield Send(had[-1], "hand", {"to": spelled("")}, {"turn": turn})
        if had and not server.take((yield Receive(had[-1], f"weights/{turn}", self.patience_s))):
            server.lose(had[-1])
        for node in server.clients:
            yield Send(node, "stop")
        return server.carry()

    def _turn(self, server: Server, node: NodeId) -> Script[str]:
        """Serve one client until it has passed over its rows; return how its turn ended."""
        patience_s = 2 * self.patience_s  # at first, for it may wait for weights
        while True:
            frame = yield Receive(node, None, patience_s)
            if frame is None or frame.kind in ("done", "failed"):
                return frame.kind if frame else "lost"
            errors = server.step(node, frame)
            if errors is None:
                return "lost"
            yield errors
            patience_s = self.patience_s


@dataclass(frozen=True, slots=True)
class SplitFedMethod(Split):
    """SplitFed: clients at once, their parts averaged after each epoch."""

    def lead(
        self, model: nn.Module, work: Work, partners: Sequence[Partner]
    ) -> Script[Carry | None]:
        """Serve all clients in turns, minibatch by minibatch; average their parts."""
        lr = self._rate(work.stop)
        server = serve(self, model, work, partners, lr)
        for epoch in range(self.epochs):
            turn = 2 * epoch
            numbers = {"turn": turn, "epoch": epoch, "cut": server.cut, "lr": lr, "kept": 0}
            weights = weights_of(server.front)
            for node in server.clients:
                yield Send(node, "order", {"to": spelled(""), "from": spelled("")}, numbers)
                yield Send(node, f"weights/{turn}", weights)
            samples = yield from self._serve_all(server)
            parts: list[tuple[int, Mapping[str, Array]]] = []
            for node in list(server.clients):
                frame = yield Receive(node, f"weights/{turn + 1}", self.patience_s)
                if server.take(frame) and frame is not None:
                    parts.append((samples[node], frame.arrays))
                else:
                    server.lose(node)
            put(server.front, average(parts) if parts else weights)
        for node in server.clients:
            yield Send(node, "stop")
        return server.carry()

    def _serve_all(self, server: Server) -> Script[dict[NodeId, int]]:
        """Serve one epoch; return the rows each client trained on."""
        samples = dict.fromkeys(server.clients, 0)
        active = list(server.clients)
        while active:
            for node in list(active):
                frame = yield Receive(node, None, self.patience_s)
                if frame is not None and frame.kind == "done":
                    active.remove(node)
                    continue
                before = server.work.samples
                errors = server.step(node, frame) if frame is not None else None
                if errors is None:
                    active.remove(node)
                    server.lose(node)
                    continue
                samples[node] += server.work.samples - before
                yield errors
        return samples


class _Given(nn.Module):
    """Logits that are there already, for whoever reads them off a module."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return them, whatever `x` is."""
        del x
        return self._logits


def finish(last: Segment, x: torch.Tensor, y: Labels, skill: str) -> torch.Tensor:
    """Train a model's last segment on a minibatch; return the error of its input.

    Raises:
        ModelError: If the loss is not finite, which would leave no weight finite.
    """
    last.forward(x)
    logits = predict(_Given(last.output), torch.empty(0), skill)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(y))
    if not torch.isfinite(loss):
        raise ModelError("the loss of a minibatch is not finite")
    return last.finish(loss)


def serve(
    method: Split, model: nn.Module, work: Work, partners: Sequence[Partner], lr: float
) -> Server:
    """Cut the model, and train it on the stop's own rows first, whole, if there are any."""
    clients = [p for p in partners if brings_rows(p)]
    if work.plan.total:
        method.train(model, work)
    memory = min((p.compute.memory_bytes for p in clients), default=0)
    cut = cut_at(model, method.cut, memory)
    chain = chain_of(model)
    back = Segment(joined(chain, cut, len(chain)), lr=lr, clip=method.clip)
    share = back.size / max(1, sum(p.numel() for p in model.parameters()))
    allowed = rows_allowed(clients, method.epochs)
    return Server(joined(chain, 0, cut), back, cut, work, share, [p.node for p in clients], allowed)


def rows_allowed(partners: Sequence[Partner], passes: int) -> Counter[tuple[NodeId, str]]:
    """Return how many rows of each skill each node may bring in so many passes.

    That is twice what it advertises: its data may have grown.
    """
    return Counter(
        {(p.node, d.skill): 2 * passes * d.samples for p in partners for d in p.data if not d.view}
    )


def brings_rows(partner: Partner) -> bool:
    """Return whether a node has whole rows with labels that it shows."""
    return any(d.samples and d.labels and not d.view for d in partner.data)


def average(parts: Sequence[tuple[int, Mapping[str, Array]]]) -> dict[str, Array]:
    """Return the mean of weights, each weighted by its rows (equally if none has any)."""
    shares = np.array([max(0, samples) for samples, _ in parts], np.float64)
    shares = shares / shares.sum() if shares.sum() else np.full(len(parts), 1 / len(parts))
    mean = {}
    for name, first in parts[0][1].items():
        total = np.zeros(first.shape)
        for share, (_, arrays) in zip(shares, parts, strict=True):
            total += share * arrays[name].astype(np.float64)
        mean[name] = total.astype(first.dtype)
    return mean


def one_epoch(data: NodeData, header: Header, seed: int, batch_size: int) -> Work:
    """Return the minibatches of one pass over a node's rows of the wanted skills."""
    wanted = dict.fromkeys(target.skill for target in header.mandate.requirement)
    held = {s: data.skills[s] for s in wanted if s in data.skills and data.skills[s].samples}
    stop = Stop(NodeId(""), header.hop, seed, held)
    return Work(stop, passes(stop, 1.0, batch_size) or Plan({}))


def small(labels: Labels) -> Array:
    """Return labels in the smallest integers that hold them."""
    return labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.int32)


def minibatch(frame: Frame) -> tuple[Array, Labels]:
    """Return activations [n, ...] and labels [n] of a frame.

    Raises:
        ModelError: If they are none that a model can be trained on.
    """
    a, y = array(frame, "a"), array(frame, "y").astype(np.int64)
    if a.dtype != np.float32 or y.ndim != 1 or not len(y) or a.shape[:1] != y.shape:
        raise ModelError(f"activations {a.dtype}{list(a.shape)} with labels {list(y.shape)}")
    if not np.isfinite(a).all() or y.min() < 0:
        raise ModelError("activations that are not finite, or labels below 0")
    return a.copy(), y


def array(frame: Frame, name: str) -> Array:
    """Return one of a frame's arrays.

    Raises:
        ModelError: If it has none by this name.
    """
    if name not in frame.arrays:
        raise ModelError(f"a frame {frame.kind!r} without {name!r}")
    return frame.arrays[name]


def whole(frame: Frame, name: str) -> int:
    """Return one of a frame's numbers, as a whole one.

    Raises:
        ModelError: If it has none by this name.
    """
    if name not in frame.numbers:
        raise ModelError(f"a frame {frame.kind!r} without the number {name!r}")
    return int(frame.numbers[name])


def total_of(header: Header) -> int:
    """Return the numbers in all parameters of a packet's model."""
    return sum(p.numel() for p in piece(header.mandate.architecture, 0, None).parameters())
