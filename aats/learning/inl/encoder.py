"""One view's part of the work, the same at a partner and, if it sees a view itself, at the leader.

All randomness follows from the visit's seed, the number of the step and the view, so both ends of
a link know its dither and one process can repeat what several nodes did.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.inl.channels import Channel, Sent
from aats.learning.inl.nets import InlNet, Link
from aats.learning.method import seed_of
from aats.learning.stream import Frame, Receive, Send
from aats.payload import Array
from aats.roles.data import Features, Labels, SkillData
from aats.roles.views import ABSENT, rows_of

Mask = npt.NDArray[np.bool_]
LINK = "link."
"""Prefix of a link's tensors in a frame."""
LARGEST = 1e6
"""Number that a partner is taken seriously with: far larger ones leave no weight finite."""
STALE = 16
"""Frames of earlier steps that are passed over in one wait; each may come just in time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What both sides of a vertical method go by; the methods' parameters say what it means."""

    weight: float = 0.0
    satellites: float = 0.0
    capacity: float = 0.0
    rho: float = 0.0
    drop: float = 0.0
    optimiser: str = "adam"
    lr: float = 1e-3
    coded: bool = False
    timeout_s: float = 10.0

    def optimiser_of(self, parameters: list[nn.Parameter], caution: float) -> torch.optim.Optimizer:
        """Return a fresh optimiser; `caution` is a factor on the learning rate."""
        if self.optimiser == "sgd":
            return torch.optim.SGD(parameters, self.lr * caution)
        return torch.optim.Adam(parameters, self.lr * caution)

    def price(self, link: Link) -> float:
        """Return the weight of a link's rate: fixed, or what its capacity has made of it."""
        return float(link.channel.multiplier) if self.capacity else self.weight

    def learn_price(self, link: Link, nats: Tensor) -> None:
        """Move a link's price towards the capacity, where there is one, by a minibatch's rates."""
        if self.capacity and len(nats):
            bits = float(nats.detach().mean()) / math.log(2)
            link.channel.learn_price(bits, self.capacity, self.rho)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A code that came over a link."""

    node: NodeId
    rows: Tensor
    """[rows there, width], a leaf of the graph: its gradient is what goes back."""
    code: Tensor
    """[n, width], zeros where the row is not there."""
    there: Mask
    """[n]."""


class Encoder:
    """A view's rows and its link.

    Args:
        net: The whole model's wiring.
        view: Which view.
        data: The node's; rows are found in its training and in its held-out part.
        ids: Of the samples that the leader will speak of, by their place in this list.
        settings: The method's.
        seed: The visit's.
    """

    def __init__(
        self, net: InlNet, view: str, data: SkillData, ids: Labels, settings: Settings, seed: int
    ) -> None:
        self.view, self.before, self.settings, self.seed = view, net.before(view), settings, seed
        self.link: Link = net.link(view)
        self.shape = net.wires[view].shape
        self._x = (data.train_x, data.test_x)
        self._split = len(data.train_y)
        self._rows = rows_of(np.concatenate([data.row_ids, data.held_out_ids]), ids)
        self.there: Mask = self._rows != ABSENT

    def raw(self, at: Labels, codes: Mapping[str, Arrived], step: int) -> tuple[Mask, Tensor]:
        """Return which of the samples are there, and what goes into the channel for those.

        Args:
            at: Places in the list of ids.
            codes: That came in; a view that sent none is zeros.
            step: Of the training, which drops links at random; -1: none is dropped.
        """
        there = self.there[at]
        x = torch.from_numpy(self._features(self._rows[at[there]]))
        incoming = []
        for name in self.before:
            if (arrived := codes.get(name)) is None:
                incoming.append(torch.zeros(len(x), self.link.channel.width))
                continue
            holds = arrived.there & self._kept(name, len(at), step)
            incoming.append(
                (arrived.code * torch.from_numpy(holds)[:, None])[torch.from_numpy(there)]
            )
        return there, self.link(x.reshape(len(x), *self.shape), incoming)

    def encode(self, at: Labels, codes: Mapping[str, Arrived], step: int) -> tuple[Mask, Sent]:
        """Return which samples are there and their codes in training."""
        there, raw = self.raw(at, codes, step)
        rng = noise_of(self.seed, step, self.view)
        return there, self.link.channel.send(raw, rng, self.settings.coded)

    def price(self) -> float:
        """Return the weight of this link's rate."""
        return self.settings.price(self.link)

    def learn_price(self, sent: Sent) -> None:
        """Move the price towards the capacity, where there is one."""
        self.settings.learn_price(self.link, sent.nats)

    def _kept(self, name: str, n: int, step: int) -> Mask:
        return kept(self.settings.drop if step >= 0 else 0.0, n, self.seed, step, name, self.view)

    def _features(self, rows: Labels) -> Features:
        train, test = self._x
        x = np.empty((len(rows), *train.shape[1:]), np.float32)
        is_train = rows < self._split
        x[is_train], x[~is_train] = train[rows[is_train]], test[rows[~is_train] - self._split]
        return x


def noise_of(seed: int, step: int, view: str) -> np.random.Generator:
    """Return the source of a view's noise or dither at one step."""
    return np.random.default_rng(seed_of("noise", seed, step, view))


def kept(drop: float, n: int, seed: int, step: int, view: str, into: str) -> Mask:
    """Return for each of n rows whether a link holds at this step; each fails by itself."""
    if not drop:
        return np.ones(n, np.bool_)
    rng = np.random.default_rng(seed_of("drop", seed, step, view, into))
    return rng.random(n) >= drop


def hear(
    node: NodeId, kind: str, number: int, timeout_s: float
) -> Generator[Send | Receive, Frame | None, Frame | None]:
    """Return a node's frame of this kind and number, None if it does not come; drops older ones."""
    for _ in range(STALE):
        frame = yield Receive(node, kind, timeout_s)
        if frame is None or frame.numbers.get("number") == number:
            return frame
    return None


def arrive(node: NodeId, taken: Tensor, there: Mask) -> Arrived:
    """Return a code of the rows that are there, detached from what made it, as one of all rows."""
    rows = taken.requires_grad_()
    return Arrived(node, rows, spread_out(rows, there), there)


def spread_out(rows: Tensor, there: Mask) -> Tensor:
    """Return rows [rows there, width] in their places among all, [n, width]; zeros elsewhere."""
    at = torch.from_numpy(np.flatnonzero(there))
    return torch.zeros(len(there), rows.shape[1]).index_put((at,), rows)


def packed(there: Mask) -> Array:
    """Return a mask as bytes for a frame."""
    return np.packbits(there)


def unpacked(array: Array | None, n: int) -> Mask:
    """Return the mask [n] in a frame's bytes.

    Raises:
        ModelError: If there are none, or they are not so many bits.
    """
    if array is None or array.dtype != np.uint8 or array.size != -(-n // 8):
        raise ModelError(f"a mask of {n} bits is wanted")
    return np.unpackbits(array.astype(np.uint8), count=n).astype(np.bool_)


def hear_code(
    node: NodeId, channel: Channel, there: Mask, rng: np.random.Generator, step: int,
    timeout_s: float,
) -> Generator[Send | Receive, Frame | None, Arrived | None]:  # fmt: skip
    """Return a code in training, None if it does not come or is none."""
    frame = yield from hear(node, "code", step, timeout_s)
    if frame is None:
        return None
    try:
        return arrive(node, finite(channel.take(frame.arrays, int(there.sum()), rng)), there)
    except ModelError:
        return None


def hear_errors(
    node: NodeId, shape: tuple[int, ...], step: int, timeout_s: float
) -> Generator[Send | Receive, Frame | None, Tensor | None]:
    """Return the error vectors for a code that was sent, None if they do not come or are none."""
    frame = yield from hear(node, "errors", step, timeout_s)
    errors = None if frame is None else frame.arrays.get("errors")
    if errors is None or errors.shape != shape or errors.dtype != np.float32:
        return None
    return torch.from_numpy(errors.copy()) if is_usable(errors) else None


def finite(code: Tensor) -> Tensor:
    """Return a code.

    Raises:
        ModelError: If it holds NaN, infinity or absurdly large numbers.
    """
    if not is_usable(code.detach().numpy()):
        raise ModelError("a code that is not finite")
    return code


def is_usable(array: Array) -> bool:
    """Return whether all numbers are finite, and none is absurdly large."""
    return bool((np.abs(array.astype(np.float64)) <= LARGEST).all())


def link_arrays(link: Link) -> dict[str, Array]:
    """Return a link's tensors for a frame."""
    return {LINK + n: t.detach().numpy().copy() for n, t in link.state_dict().items()}


def load_link(link: Link, arrays: Mapping[str, Array]) -> None:
    """Give a link the tensors of a frame, in place; storage, if it has none.

    Raises:
        ModelError: If one is missing, of a wrong shape, or not finite.
    """
    for name, tensor in link.state_dict().items():
        array = arrays.get(LINK + name)
        if array is None or array.shape != tuple(tensor.shape) or not is_usable(array):
            raise ModelError(
                f"link tensor {name!r}: a finite one of {list(tensor.shape)} is wanted"
            )
    if any(tensor.is_meta for tensor in link.state_dict().values()):
        link.to_empty(device="cpu")
    for name, tensor in link.state_dict().items():
        tensor.copy_(torch.from_numpy(np.array(arrays[LINK + name], np.float32)))
