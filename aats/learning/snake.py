"""Snake learning: each visit trains the first, the last and one middle block (Yu et al. 2024).

A cycle is one pass in which every middle block is trained once, each at some node; where it
stands travels in the packet's numbers. What is frozen holds neither gradients nor moments, and as
its bytes do not change it is not sent again to a node that holds them. The optimiser's moments
belong to a node and a block: each visit begins without any.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.blocks import Block, Named, blocks_of, size_of
from aats.learning.divergence import divergence, is_edges, statistics
from aats.learning.initial import check_signal, shrinks
from aats.learning.memory import training_bytes
from aats.learning.method import Carry, Loss, Plan, Stop, Work, passes
from aats.learning.models import initialise, predict
from aats.learning.modules import ModuleBackend, rows
from aats.learning.optimisers import Adam, Optimiser, Sgd
from aats.learning.partial import Partial
from aats.learning.weights import kept, reference_of, write
from aats.packet import Architecture
from aats.payload import STATE, Payload
from aats.roles.data import Features

SIGNAL_ROWS = 64
"""Rows on which the initial weights are judged."""
_STATE = f"{STATE}snake."
_CYCLE, _DONE, _MET = "snake.cycle", "snake.done.", "snake.met."
_BLOCK, _TAUGHT, _DIVERGENCE = "snake.block", "snake.taught", "snake.divergence"
"""Of the last visit, for who looks on: the block trained (0 is the first), whether the received
model taught, the divergence of the data."""
_WORD = 48
"""Blocks whose state one number holds; a float is exact up to 2^53."""


@dataclass(frozen=True, slots=True)
class SnakeMethod:
    """First, last and one middle block at each visit; the rest is frozen.

    Raises:
        ValueError: On a value out of range.
    """

    epochs: float = 1.0
    """Passes over the node's rows at a visit."""
    batch_size: int = 32
    lr: float = 0.05
    decay: float = 0.97
    """Factor on the learning rate for each cycle; within a cycle it stays the same."""
    optimiser: str = "sgd"
    """"sgd" with momentum, or "adam"."""
    momentum: float = 0.9
    clip: float = 1.0
    """Largest gradient norm; 0 for none."""
    max_steps: int = 0
    """Most steps at a visit; 0 for no bound."""
    order: str = "shallow-to-deep"
    """Of the middle blocks in a cycle: "shallow-to-deep", "deep-to-shallow" or "random"."""
    assign: str = "order"
    """Which block a visit gets: "order", the next one; "fit", one among those left in this cycle
    by the node's speed, memory and link: a slow or small node gets a cheap one."""
    blocks: Named = ()
    """The model's blocks by name, where its own will not do (`aats.learning.blocks`)."""
    distil: str = "auto"
    """Whether the received model is a second teacher: "always" (once it is trained), "never", or
    "auto": where the data differ from the previous node's by more than `tau`. A node that keeps
    its labels' counts to itself is compared with none, so there "auto" is "never"."""
    tau: float = 0.05
    """Jensen-Shannon divergence in bits, 0-1, of labels or of features, whichever is larger. Nodes
    dealt 500 rows of ten classes evenly are 0.003-0.02 apart, by Dirichlet(2) 0.05-0.26."""
    distil_weight: float = 0.5
    """Factor on the cross-entropy against the received model's prediction."""
    temperature: float = 2.0
    """Of both predictions in it."""
    frozen_bits: int = 0
    """8: the frozen rest works from an 8-bit copy, made anew at each visit. 0: as it is."""
    mixed: bool = False
    """Compute in bfloat16, with float32 masters of what is trained."""
    initial: str = "check"
    """What to do where the initial weights let no signal through: "check" refuses them, "repair"
    draws them by He et al., "any" takes them."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1 or self.lr <= 0 or self.max_steps < 0:
            raise ValueError("epochs and lr must be above 0, batch_size >= 1, max_steps >= 0")
        if not 0 < self.decay <= 1 or not 0 <= self.momentum < 1 or self.clip < 0:
            raise ValueError("decay must be in 0-1 (not 0), momentum in 0-1 (not 1), clip >= 0")
        if not 0 <= self.tau <= 1 or self.distil_weight < 0 or self.temperature <= 0:
            raise ValueError("tau must be in 0-1, distil_weight >= 0, temperature above 0")
        if self.frozen_bits not in (0, 8):
            raise ValueError(f"frozen_bits is {self.frozen_bits}, allowed are 0 and 8")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, allowed are {', '.join(allowed)}")

    def prepare(self, architecture: Architecture, payload: Payload, seed: int) -> Payload:
        """Judge the initial weights on the reference set; see `initial`.

        Without a reference set they are judged at the first stop.

        Raises:
            ModelError: If they let no signal through and are not to be repaired.
        """
        backend = ModuleBackend()
        arena = memoryview(bytearray(payload.manifest.total))
        frozen = Payload(payload.manifest, payload.arena.toreadonly())
        for skill, (x, _) in reference_of(payload).items():
            with backend.scope(seed):
                loaded = backend.load(architecture, frozen)
                if self._is_repaired(loaded.module, x, skill, seed):
                    tensors = backend.tensors(loaded, payload)
                    manifest = write(payload, tensors, kept(payload, STATE), lambda _: arena)
                    return Payload(manifest, arena)
        return payload

    def plan(self, stop: Stop) -> Plan | None:
        """Return `epochs` passes over every wanted skill the node has."""
        return passes(stop, self.epochs, self.batch_size, max_steps=self.max_steps)

    def train(self, model: nn.Module, work: Work) -> Carry:
        """Train the first, the last and one middle block.

        Raises:
            ModelError: If the model has no middle block, the numbers that travel make no sense,
                no block left fits the node's memory, or the initial weights will not do.
        """
        stop = work.stop
        blocks = blocks_of(model, self.blocks)
        if len(blocks) < 3:
            raise ModelError(f"snake needs a first, a middle and a last block, not {len(blocks)}")
        place = Place.of(stop.trained, len(blocks) - 2)
        is_fresh = _CYCLE not in stop.trained
        if is_fresh:
            skill, data = next(iter(stop.data.items()))
            self._is_repaired(model, data.train_x, skill, stop.seed)
        met = Met.of(stop)
        chosen = self._assign(model, blocks, place, met, stop)
        edges = {n.removeprefix(_STATE): a for n, a in stop.state.items() if n.startswith(_STATE)}
        ours = statistics(stop.data, edges) if stop.show_labels else {}
        apart = divergence(ours, edges)
        differ = apart is not None and apart > self.tau
        teaches = not is_fresh and (self.distil == "always" or (self.distil == "auto" and differ))
        trained = (blocks[0], blocks[1 + chosen], blocks[-1])
        part = Partial(model, trained, blocks, frozen_bits=self.frozen_bits, mixed=self.mixed)
        with part:
            self._descend(part, work, self._loss(part, work, teaches), place.cycle)
        others = {n: a for n, a in stop.state.items() if not n.startswith(_STATE)}
        kept_edges = {n: a for n, a in edges.items() if is_edges(n)}
        return Carry(
            others | {_STATE + name: array for name, array in (kept_edges | ours).items()},
            place.after(chosen).numbers
            | met.numbers
            | {_BLOCK: float(1 + chosen), _TAUGHT: float(teaches)}
            | ({} if apart is None else {_DIVERGENCE: apart}),
        )

    def _is_repaired(self, model: nn.Module, x: Features, skill: str, seed: int) -> bool:
        if self.initial == "any" or len(x) < 2:
            return False
        blocks, some = blocks_of(model, self.blocks), rows(x[:SIGNAL_ROWS])
        if self.initial == "check":
            check_signal(model, blocks, some, skill)
            return False
        if not shrinks(model, blocks, some, skill):
            return False
        initialise(model, seed)
        return True

    def _assign(
        self, model: nn.Module, blocks: Sequence[Block], place: Place, met: Met, stop: Stop
    ) -> int:
        """Return the number of the middle block to train."""
        left = sorted(place.left, reverse=self.order == "deep-to-shallow")
        if self.order == "random":
            random.Random(stop.seed).shuffle(left)
        if self.assign == "order":
            return left[0]
        ends = size_of(model, blocks[0]) + size_of(model, blocks[-1])
        sizes = {i: size_of(model, blocks[1 + i]) for i in left}
        total = sum(size_of(model, block) for block in blocks)
        needed = {
            i: training_bytes(total, ends + n, optimiser=self.optimiser, mixed=self.mixed)
            for i, n in sizes.items()
        }
        room = stop.compute.memory_bytes
        fitting = [i for i in left if not room or needed[i] <= room]
        if not fitting:
            raise ModelError(
                f"training any block left in this cycle takes {min(needed.values())} bytes, "
                f"{stop.node} has {room}"
            )
        by_cost = sorted(fitting, key=lambda i: sizes[i])
        return by_cost[min(int(met.standing * len(by_cost)), len(by_cost) - 1)]

    def _loss(self, part: Partial, work: Work, teaches: bool) -> Loss:
        received = part.received() if teaches else {}

        def base(model: nn.Module, x: Tensor, y: Tensor, skill: str) -> Tensor:
            if not teaches:
                return cast(Tensor, work.criterion(predict(model, x, skill), x, y, skill))
            with torch.no_grad(), part.holding(received) as teacher:
                wanted = (predict(teacher, x, skill) / self.temperature).softmax(1)
            logits = predict(model, x, skill)
            taught = nn.functional.cross_entropy(logits / self.temperature, wanted)
            own = cast(Tensor, work.criterion(logits, x, y, skill))
            return own + self.distil_weight * taught

        return work.composed(base)

    def _descend(self, part: Partial, work: Work, loss: Loss, cycle: int) -> None:
        optimiser: Optimiser = Adam() if self.optimiser == "adam" else Sgd(self.momentum)
        lr = self.lr * self.decay**cycle * work.stop.caution
        for skill, x, y in work:
            part.model.zero_grad(set_to_none=True)
            loss(part.model, rows(x), torch.from_numpy(y), skill).backward()
            moved = [p for p in part.trained.values() if p.grad is not None]
            if self.clip:
                nn.utils.clip_grad_norm_(moved, self.clip)
            with torch.no_grad():
                for p in moved:
                    assert p.grad is not None
                    optimiser.step(p, part.master(p), p.grad, lr)
                    part.stepped(p)


_CHOICES = {
    "optimiser": ("sgd", "adam"),
    "order": ("shallow-to-deep", "deep-to-shallow", "random"),
    "assign": ("order", "fit"),
    "distil": ("auto", "always", "never"),
    "initial": ("check", "repair", "any"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a packet stands: the cycle, and the middle blocks trained in it so far."""

    count: int
    """Of all middle blocks."""
    cycle: int = 0
    done: frozenset[int] = frozenset()

    @classmethod
    def of(cls, numbers: Mapping[str, float], count: int) -> Place:
        """Return the place that a packet's numbers tell.

        Raises:
            ModelError: If one is no whole number of a sensible size.
        """
        words = [_whole(numbers, f"{_DONE}{i}") for i in range(-(-count // _WORD))]
        done = {i for i in range(count) if words[i // _WORD] >> i % _WORD & 1}
        return cls(count, _whole(numbers, _CYCLE), frozenset(done if len(done) < count else ()))

    @property
    def left(self) -> list[int]:
        """The middle blocks still to be trained in this cycle, shallow to deep."""
        return [i for i in range(self.count) if i not in self.done]

    @property
    def numbers(self) -> dict[str, float]:
        """What travels."""
        words = [0] * -(-self.count // _WORD)
        for i in self.done:
            words[i // _WORD] |= 1 << i % _WORD
        return {_CYCLE: float(self.cycle)} | {f"{_DONE}{i}": float(w) for i, w in enumerate(words)}

    def after(self, block: int) -> Place:
        """Return the place after a visit that trained a block."""
        done = self.done | {block}
        if len(done) < self.count:
            return Place(self.count, self.cycle, done)
        return Place(self.count, self.cycle + 1)


@dataclass(frozen=True, slots=True)
class Met:
    """What nodes the packet has met, this one too: their mean speed and link."""

    nodes: int
    speed: float
    bandwidth_bps: float
    standing: float
    """Of this node among them, 0-1, by the worse of both: 0.5 at the mean or unknown."""

    @classmethod
    def of(cls, stop: Stop) -> Met:
        """Return those met before with this one counted."""
        before = _whole(stop.trained, f"{_MET}nodes")
        speed, speed_share = _among(stop, "speed", stop.compute.samples_per_s, before)
        bandwidth, bandwidth_share = _among(stop, "bandwidth", stop.bandwidth_bps, before)
        return cls(before + 1, speed, bandwidth, min(speed_share, bandwidth_share))

    @property
    def numbers(self) -> dict[str, float]:
        """What travels."""
        return {
            f"{_MET}nodes": float(self.nodes),
            f"{_MET}speed": self.speed,
            f"{_MET}bandwidth": self.bandwidth_bps,
        }


def _among(stop: Stop, name: str, value: float, before: int) -> tuple[float, float]:
    """Return the mean of a figure, this node's counted, and this node's share against it."""
    old = max(0.0, stop.trained.get(_MET + name, 0.0))
    mean = old + (value - old) / (before + 1)
    return mean, value / (value + mean) if value > 0 else 0.5


def _whole(numbers: Mapping[str, float], name: str) -> int:
    value = numbers.get(name, 0.0)
    if not (0 <= value < 1 << _WORD and value == int(value)):
        raise ModelError(f"number {name!r} is {value!r}, must be a whole number below 2^{_WORD}")
    return int(value)
