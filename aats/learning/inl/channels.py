"""Channels: what becomes of a code on its way from one node to the next.

A channel stands at the end of an encoder. In training it gives the code that the next node gets,
with a graph for the backward pass, and its rate: the KL divergence from the link's prior, which
is what ideal coding would take. At inference it gives real bytes.

- `levels`: `tanh`, then the nearest of learnt levels; straight through in the backward pass. The
  code is certain, so its KL is the surprise at it, which is what the range coder takes.
- `gaussian`: the encoder gives mean and deviation; the code is drawn (reparameterised). On the
  wire in training as floats; at inference the mean is quantised, entropy-coded under the prior.
- `dithered`: the code is the encoder's output, quantised with a learnt step and a dither that both
  ends know and the receiver takes off again (Schuchman 1964): the error is uniform and does not
  depend on the code. This is a uniform encoder distribution whose KL is what the coder takes.
- `exact`: the numbers as they are.

All that a channel learns belongs to the sender; `table` is what the receiver must know of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.inl.coder import TOTAL, Table, decode, encode, normal_cdf, table_of
from aats.payload import Array

CHANNELS = ("levels", "dithered", "gaussian", "exact")
LEAST = 1e-3
"""Of a deviation and of a step."""
FEWEST, MOST = 4, 256
"""Symbols on either side of the prior's centre."""
ROWS = 512
"""Coded at once: bounds the memory of the tables."""
Reals = npt.NDArray[np.float64]
Symbols = npt.NDArray[np.int64]
FORGET = 0.99
"""Of a running mean, a step."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A code in training."""

    code: Tensor
    """[n, width], with a graph back to the encoder."""
    nats: Tensor
    """[n]: KL from the prior, 0 for a channel that has none."""
    arrays: Mapping[str, Array]
    """What goes to the next node."""


class Channel(nn.Module, ABC):
    """See the module's docstring. Parameters that must be positive are kept as square roots."""

    heads = 1
    """Numbers the encoder gives for each number of the code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("multiplier", torch.zeros(1))
        """The price of a nat on this link, where it has a capacity (`learn_price`)."""

    multiplier: Tensor

    @abstractmethod
    def send(self, raw: Tensor, rng: np.random.Generator, coded: bool) -> Sent:
        """Return the code of a minibatch in training.

        Args:
            raw: [n, heads * width] from the encoder.
            rng: Of noise or dither; the receiver has one of the same seed.
            coded: Whether real bytes go over the wire, where the channel can.
        """

    def take(self, arrays: Mapping[str, Array], n: int, rng: np.random.Generator) -> Tensor:
        """Return the code [n, width] that `send` made these arrays of.

        Raises:
            ModelError: If they are no such code.
        """
        code = arrays.get("code")
        if code is None or code.shape != (n, self.width) or code.dtype != np.float32:
            raise ModelError(f"a code of {n} x {self.width} numbers is wanted")
        return torch.from_numpy(code.copy())

    def deliver(self, raw: Tensor) -> Tensor:
        """Return the code [n, width] that arrives at inference."""
        return raw

    def noisy(self, raw: Tensor) -> Sent:
        """Return the code of a minibatch that stays in this process; draws by torch."""
        seed = int(torch.randint(1 << 62, (1,)).item())
        return self.send(raw, np.random.default_rng(seed), False)

    def pack(self, raw: Tensor) -> bytes:
        """Return the bytes by which the code travels at inference."""
        return self.deliver(raw).numpy().astype("<f4").tobytes()

    def unpack(self, data: bytes, n: int) -> Tensor:
        """Return the code [n, width] of `pack`'s bytes.

        Raises:
            ModelError: If there are too many or too few bytes, where that can be told.
        """
        if len(data) != 4 * n * self.width:
            raise ModelError(f"a code of {4 * n * self.width} bytes is wanted, not {len(data)}")
        return torch.from_numpy(np.frombuffer(data, "<f4").reshape(n, self.width).copy())

    def ideal_nats(self, raw: Tensor) -> Tensor:
        """Return [n]: what ideal coding would take at inference."""
        return torch.full((len(raw),), 32 * math.log(2) * self.width)

    def table(self) -> dict[str, Array]:
        """Return what the receiver must know to decode."""
        return {}

    def _copies(self, *names: str) -> dict[str, Array]:
        return {name: getattr(self, name).detach().numpy().copy() for name in names}

    def learn_price(self, bits: float, capacity: float, rho: float) -> None:
        """Move the price of the rate towards a capacity: up above it, down below, never under 0."""
        self.multiplier.add_(rho * (bits - capacity)).clamp_(min=0)

    def know(self, table: Mapping[str, Array]) -> None:
        """Take over a sender's table.

        Raises:
            ModelError: If it is no table of this channel.
        """
        mine = self.state_dict(keep_vars=True)
        with torch.no_grad():
            for name in self.table():
                given, shape = table.get(name), tuple(mine[name].shape)
                fits = given is not None and given.shape == shape and given.dtype == np.float32
                if given is None or not fits or not np.isfinite(given).all():
                    raise ModelError(f"the link's table lacks a finite {name!r} {list(shape)}")
                mine[name].copy_(torch.from_numpy(np.array(given, np.float32)))


class Exact(Channel):
    """Numbers as they are."""

    def send(self, raw: Tensor, rng: np.random.Generator, coded: bool) -> Sent:
        """Return the numbers."""
        return Sent(raw, torch.zeros(len(raw)), {"code": raw.detach().numpy()})


class Rated(Channel):
    """A channel with a normal prior for each number, and codes on a lattice at inference."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.centre = nn.Parameter(torch.zeros(width))
        self.spread_root = nn.Parameter(torch.ones(width))

    def spread(self) -> Tensor:
        """Return the prior's deviations."""
        return self.spread_root.square() + LEAST

    def mean(self, raw: Tensor) -> Tensor:
        """Return what is quantised."""
        return raw

    def quantise(self, mean: Tensor, dither: Reals | None = None) -> tuple[Symbols, Tensor]:
        """Return symbols [n, width] and the code they stand for.

        Args:
            mean: [n, width].
            dither: [n, width] in -0.5..0.5, in steps; none: 0.
        """
        z: Reals = np.zeros(1) if dither is None else dither
        step, middle, reach = self._lattice()
        at = np.rint(mean.detach().numpy().astype(np.float64) / step + z) - middle
        symbols = np.clip(at, -reach, reach).astype(np.int64) + reach
        return symbols, self._code(symbols, z)

    def cells(self, n: int, dither: Reals | None = None) -> Table:
        """Return the coder's table [n * width, symbols + 1] under the prior."""
        step, middle, reach = self._lattice()
        centre, spread = self._exactly("centre"), self._exactly("spread_root") ** 2 + LEAST
        z = np.zeros((n, self.width)) if dither is None else dither
        edge = np.arange(2 * reach + 2) - reach - 0.5
        cut = ((edge + (middle - z)[..., None]) * step[:, None] - centre[:, None]) / spread[:, None]
        cumulative = normal_cdf(cut.reshape(n * self.width, -1))
        cumulative[:, 0], cumulative[:, -1] = 0.0, 1.0
        return table_of(cumulative)

    def encode(self, symbols: Symbols, dither: Reals | None = None) -> list[bytes]:
        """Return the symbols as bytes, `ROWS` rows each."""
        out = []
        for start in range(0, len(symbols), ROWS):
            part = symbols[start : start + ROWS]
            z = None if dither is None else dither[start : start + ROWS]
            out.append(encode(part.reshape(-1), self.cells(len(part), z)))
        return out

    def decode(self, parts: list[bytes], n: int, dither: Reals | None = None) -> Tensor:
        """Return the code of `encode`'s bytes."""
        found = []
        for i, start in enumerate(range(0, n, ROWS)):
            rows = min(ROWS, n - start)
            z = None if dither is None else dither[start : start + ROWS]
            symbols = decode(parts[i], self.cells(rows, z), rows * self.width)
            found.append(
                self._code(symbols.reshape(rows, self.width), np.zeros(1) if z is None else z)
            )
        return torch.cat(found) if found else torch.zeros(0, self.width)

    def deliver(self, raw: Tensor) -> Tensor:
        """Return the mean on the lattice."""
        return self.quantise(self.mean(raw))[1]

    def pack(self, raw: Tensor) -> bytes:
        """Return the mean on the lattice, entropy-coded under the prior."""
        return _framed(self.encode(self.quantise(self.mean(raw))[0]))

    def unpack(self, data: bytes, n: int) -> Tensor:
        """Return what `pack` packed."""
        return self.decode(_unframed(data, -(-n // ROWS)), n)

    def _lattice(self) -> tuple[Reals, Reals, int]:
        """Return steps, the cells the centres are in, and how many cells there are to each side."""
        step = self._step_exactly()
        spread = self._exactly("spread_root") ** 2 + LEAST
        widest = float((5 * spread / step).max()) + 2
        return step, np.rint(self._exactly("centre") / step), int(min(MOST, max(FEWEST, widest)))

    def _code(self, symbols: Symbols, dither: Reals) -> Tensor:
        step, middle, reach = self._lattice()
        code = (symbols + (middle - reach) - dither) * step
        return torch.from_numpy(code.astype(np.float32))

    def _exactly(self, name: str) -> Reals:
        exactly: Reals = cast(Tensor, getattr(self, name)).detach().numpy().astype(np.float64)
        return exactly

    @abstractmethod
    def _step_exactly(self) -> Reals:
        """Return the lattice's steps, the same on every machine."""


class Gaussian(Rated):
    """Gaussian encoders; rate is the KL of two normal distributions."""

    heads = 2

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("noise", torch.ones(width))
        """Running mean of the deviations."""

    noise: Tensor

    def send(self, raw: Tensor, rng: np.random.Generator, coded: bool) -> Sent:
        """Return a draw; it travels as floats."""
        mean, deviation = self._split(raw)
        drawn = torch.from_numpy(rng.standard_normal(mean.shape, np.float32))
        code = mean + deviation * drawn
        with torch.no_grad():
            if len(raw):
                self.noise.mul_(FORGET).add_(deviation.mean(0), alpha=1 - FORGET)
        return Sent(code, self._nats(mean, deviation), {"code": code.detach().numpy()})

    def mean(self, raw: Tensor) -> Tensor:
        """Return the encoder's means."""
        return raw[:, : self.width]

    def ideal_nats(self, raw: Tensor) -> Tensor:
        """Return the KL of the encoder's distribution."""
        return self._nats(*self._split(raw))

    def table(self) -> dict[str, Array]:
        """Return prior and noise."""
        return self._copies("centre", "spread_root", "noise")

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        return raw[:, : self.width], nn.functional.softplus(raw[:, self.width :]) + LEAST

    def _nats(self, mean: Tensor, deviation: Tensor) -> Tensor:
        ratio = deviation / self.spread()
        off = (mean - self.centre) / self.spread()
        return (0.5 * (ratio.square() + off.square() - 1) - ratio.log()).sum(1)

    def _step_exactly(self) -> Reals:
        # A uniform error of this width has the deviation that the decoder was trained with.
        return self._exactly("noise") * 3.4641016151377544 + LEAST


class Dithered(Rated):
    """Subtractive dither with a learnt step; the rate is what the range coder takes."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.step_root = nn.Parameter(torch.ones(width))

    def step(self) -> Tensor:
        """Return the learnt steps."""
        return self.step_root.square() + LEAST

    def send(self, raw: Tensor, rng: np.random.Generator, coded: bool) -> Sent:
        """Return the dithered code; as real bytes if `coded`."""
        dither = self._dither(len(raw), rng)
        symbols, code = self.quantise(raw, dither)
        step = self.step()
        error = (code - raw.detach()) / step.detach()  # uniform in -0.5..0.5 steps
        sent = raw + step * error
        arrays: dict[str, Array] = {"code": code.numpy()}
        if coded:
            data = _framed(self.encode(symbols, dither))
            arrays = {"bytes": np.frombuffer(data, np.uint8), **self.table()}
        return Sent(sent, self._nats(sent), arrays)

    def take(self, arrays: Mapping[str, Array], n: int, rng: np.random.Generator) -> Tensor:
        """Return the code of bytes and the table they came with, or of floats."""
        if "bytes" not in arrays:
            return super().take(arrays, n, rng)
        self.know(arrays)
        parts = _unframed(arrays["bytes"].tobytes(), -(-n // ROWS))
        return self.decode(parts, n, self._dither(n, rng))

    def ideal_nats(self, raw: Tensor) -> Tensor:
        """Return what the prior says of the rounded code: no dither is needed at inference."""
        return self._nats(self.deliver(raw))

    def table(self) -> dict[str, Array]:
        """Return prior and steps."""
        return self._copies("centre", "spread_root", "step_root")

    def _dither(self, n: int, rng: np.random.Generator) -> Reals:
        return rng.random((n, self.width)) - 0.5

    def _nats(self, code: Tensor) -> Tensor:
        half, spread = self.step() / 2, self.spread()
        # By symmetry, cells are taken in the lower tail, where differences keep their digits.
        off = -(code - self.centre).abs()
        upper, lower = (off + half) / spread, (off - half) / spread
        mass = torch.special.ndtr(upper) - torch.special.ndtr(lower)
        nats: Tensor = -mass.clamp(min=1.0 / TOTAL).log().sum(1)
        return nats

    def _step_exactly(self) -> Reals:
        return self._exactly("step_root") ** 2 + LEAST


class Levels(Channel):
    """`tanh` and the nearest of learnt levels; the prior is how often each was used."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__(width)
        self.levels = levels
        even = torch.linspace(-1, 1, 2 * levels + 1)[1::2]
        self.points = nn.Parameter(even.repeat(width))
        """[width * levels], flat: it is no matrix of weights."""
        self.register_buffer("used", torch.full((width * levels,), 1.0 / levels))

    used: Tensor

    def send(self, raw: Tensor, rng: np.random.Generator, coded: bool) -> Sent:
        """Return the nearest levels; gradients go to the levels and straight through."""
        squashed = raw.tanh()
        symbols = self._nearest(squashed)
        nearest = self._points(symbols)
        code = nearest + squashed - squashed.detach()
        arrays: dict[str, Array] = {"code": nearest.detach().numpy()}
        if coded:
            data = self._bytes(symbols)
            arrays = {"bytes": np.frombuffer(data, np.uint8), **self.table()}
        with torch.no_grad():
            if len(raw):
                share = nn.functional.one_hot(symbols, self.levels).float().mean(0).reshape(-1)
                self.used.mul_(FORGET).add_(share, alpha=1 - FORGET)
        return Sent(code, self._nats(squashed), arrays)

    def take(self, arrays: Mapping[str, Array], n: int, rng: np.random.Generator) -> Tensor:
        """Return the code of bytes and the table they came with, or of floats."""
        if "bytes" not in arrays:
            return super().take(arrays, n, rng)
        self.know(arrays)
        return self.unpack(arrays["bytes"].tobytes(), n)

    def deliver(self, raw: Tensor) -> Tensor:
        """Return the nearest levels."""
        return self._points(self._nearest(raw.tanh()))

    def pack(self, raw: Tensor) -> bytes:
        """Return the numbers of the levels, entropy-coded."""
        return self._bytes(self._nearest(raw.tanh()))

    def unpack(self, data: bytes, n: int) -> Tensor:
        """Return what `pack` packed."""
        symbols = decode(data, np.tile(self._table(), (n, 1)), n * self.width)
        with torch.no_grad():
            return self._points(torch.from_numpy(symbols.reshape(n, self.width)))

    def ideal_nats(self, raw: Tensor) -> Tensor:
        """Return the surprise at the levels."""
        return self._nats(raw.tanh())

    def table(self) -> dict[str, Array]:
        """Return levels and how often each is used."""
        return self._copies("points", "used")

    def _nearest(self, squashed: Tensor) -> Tensor:
        points = self.points.detach().reshape(self.width, self.levels)
        near: Tensor = (squashed.detach()[..., None] - points).abs().argmin(2)
        return near

    def _nats(self, squashed: Tensor) -> Tensor:
        """Return [n], the surprise at the nearest levels; in the backward pass, at soft ones."""
        points = self.points.detach().reshape(self.width, self.levels)
        off = (squashed[..., None] - points).square()
        soft = (-off * self.levels**2).softmax(2)
        hard = nn.functional.one_hot(off.argmin(2), self.levels).float()
        share = self.used.reshape(self.width, self.levels).clamp(min=1.0 / TOTAL)
        nats: Tensor = -((hard + soft - soft.detach()) * share.log()).sum((1, 2))
        return nats

    def _points(self, symbols: Tensor) -> Tensor:
        points = self.points.reshape(self.width, self.levels)
        return points.expand(len(symbols), -1, -1).gather(2, symbols[..., None])[..., 0]

    def _bytes(self, symbols: Tensor) -> bytes:
        n = len(symbols)
        return encode(symbols.reshape(-1).numpy(), np.tile(self._table(), (n, 1)))

    def _table(self) -> Table:
        used = self.used.numpy().astype(np.float64).reshape(self.width, self.levels)
        total = np.cumsum(used, axis=1)
        return table_of(np.concatenate([np.zeros((self.width, 1)), total / total[:, -1:]], axis=1))


def channel(name: str, width: int, levels: int) -> Channel:
    """Return a new channel of one of `CHANNELS`."""
    match name:
        case "gaussian":
            return Gaussian(width)
        case "dithered":
            return Dithered(width)
        case "levels":
            return Levels(width, levels)
        case _:
            return Exact(width)


def _framed(parts: list[bytes]) -> bytes:
    """Return parts as one: all but the last with its length in four bytes before it."""
    head = b"".join(len(part).to_bytes(4, "big") + part for part in parts[:-1])
    return head + (parts[-1] if parts else b"")


def _unframed(data: bytes, count: int) -> list[bytes]:
    parts, at = [], 0
    for _ in range(count - 1):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at + 4 : end])
        at = end
    return [*parts, data[at:]]
