"""A model that grows by contributions: W = W0 + sum of alpha/r B_i A_i (LoRA chain).

Each visit adds one *contribution*: a pair of thin matrices for each target weight of a frozen
base (Hu et al., arXiv 2106.09685). The sum does not depend on the order, so a contribution can be
taken out again as long as it has not been folded into the base. The architecture `lora` wraps
any other one, convolutions (as their unfolded matrix) and attention included:

    model = { name = "lora", base = { name = "mlp", features = 64, classes = 10 }, alpha = 8 }

A contribution is called `hop@node`: where the ledger has the record of it.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from aats.errors import ModelError
from aats.ids import NODE_ID, NodeId
from aats.learning.language import reads_text
from aats.learning.models import MAX_LAYERS, Config, build
from aats.packet import Architecture

NAME = "lora"
BASE, CHAIN = "base.", "chain."
"""Prefixes in the state dict: the wrapped module's tensors, and `chain.<contribution>.<target>.a`
and `.b`, with slashes for the dots in names."""
ALPHA = 8.0
MAX_ALPHA = 1e6
MAX_RANK = 1024
MAX_PATTERN = 256
_CONTRIBUTION = re.compile(rf"(0|[1-9][0-9]{{0,8}})@({NODE_ID.pattern})(?:\+([1-9][0-9]?))?")


@dataclass(frozen=True, slots=True, order=True)
class Contribution:
    """Who added something, and when: `hop@node`, and `+n` for the n-th twin from another branch.

    The oldest is the smallest.
    """

    hop: int
    node: NodeId
    twin: int = 0

    @classmethod
    def of(cls, text: str) -> Contribution:
        """Return the contribution of a name.

        Raises:
            ModelError: If it is no such name.
        """
        found = _CONTRIBUTION.fullmatch(text)
        if found is None:
            raise ModelError(f"{text[:80]!r} is no contribution; wanted is hop@node, as in 3@n2")
        return cls(int(found[1]), NodeId(found[2]), int(found[3] or 0))

    def __str__(self) -> str:
        return f"{self.hop}@{self.node}" + (f"+{self.twin}" if self.twin else "")


def owner_of(name: str) -> tuple[Contribution, str, str]:
    """Return contribution, target and matrix of a tensor's name under `chain.`.

    Raises:
        ModelError: If it is no name of an adapter.
    """
    parts = name.removeprefix(CHAIN).split(".")
    if not name.startswith(CHAIN) or len(parts) != 3 or parts[2] not in ("a", "b"):
        raise ModelError(f"tensor {name[:80]!r} is no adapter's")
    return Contribution.of(_plain(parts[0])), _plain(parts[1]), parts[2]


def _escaped(name: str) -> str:
    return name.replace(".", "/")  # torch allows no dots in a module's name


def _plain(name: str) -> str:
    return name.replace("/", ".")


class Pair(nn.Module):
    """B A for one weight [out, ...]: `a` is [r, product of the rest], `b` [out, r]."""

    def __init__(self, out: int, rest: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(rank, rest))
        self.b = nn.Parameter(torch.zeros(out, rank))

    @property
    def rank(self) -> int:
        """The number r."""
        return self.a.shape[0]


class LoraModel(nn.Module):
    """A base module and the chain of what was contributed to it.

    The base is always in eval mode: the statistics of a BatchNorm belong to what is frozen.

    Args:
        base: The module wrapped.
        targets: Names of its weights that contributions change.
        alpha: A contribution of rank r counts alpha / r times.
    """

    def __init__(self, base: nn.Module, targets: Iterable[str], alpha: float) -> None:
        super().__init__()
        self.base, self.alpha = base, alpha
        self.chain = nn.ModuleDict()
        self._shapes = {name: tuple(base.get_parameter(name).shape) for name in targets}
        self._takes = frozenset(inspect.signature(base.forward).parameters)
        self.reads_text = reads_text(base)
        self._left_out: Contribution | None = None

    def forward(self, x: Tensor, skill: str = "", every: bool = False) -> Tensor:
        """Return the base's output with the weights that base and chain add up to."""
        given = {"skill": skill, "every": every}
        further = {name: value for name, value in given.items() if name in self._takes}
        if not self.chain:
            return cast(Tensor, self.base(x, **further))
        return cast(Tensor, functional_call(self.base, self.weights(), (x,), further))

    def train(self, mode: bool = True) -> LoraModel:
        """Set the mode of all but the base."""
        super().train(mode)
        self.base.eval()
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the weights that contributions change."""
        return tuple(self._shapes)

    @property
    def contributions(self) -> tuple[Contribution, ...]:
        """What the chain holds, the oldest first."""
        return tuple(sorted(Contribution.of(_plain(key)) for key in self.chain))

    def rank(self, contribution: Contribution) -> int:
        """Return the rank of a contribution: the largest of its matrices'."""
        return max(pair.rank for pair in self.pairs(contribution).values())

    def scale(self, contribution: Contribution) -> float:
        """Return the factor on B A of a contribution."""
        return self.alpha / self.rank(contribution)

    def weights(self) -> dict[str, Tensor]:
        """Return each target's weight with all contributions added, oldest first."""
        links = [(self.scale(c), self.pairs(c)) for c in self.contributions if c != self._left_out]
        if not links:
            return {name: self.base.get_parameter(name) for name in self._shapes}
        out = {}
        for name, shape in self._shapes.items():
            weight = self.base.get_parameter(name)
            a = torch.cat([pairs[name].a for _, pairs in links])
            b = torch.cat([pairs[name].b * scale for scale, pairs in links], 1)
            out[name] = weight + (b @ a).reshape(shape).to(weight.dtype)
        return out

    def part(self, contribution: Contribution) -> nn.Module:
        """Return the matrices of one contribution.

        Raises:
            ModelError: If it is not in the chain: it never was, or it was folded into the base.
        """
        key = _escaped(str(contribution))
        if key not in self.chain:
            held = ", ".join(map(str, self.contributions)) or "none"
            raise ModelError(f"contribution {contribution} is not in the chain; there are: {held}")
        return self.chain[key]

    def add(self, contribution: Contribution, rank: int, seed: int) -> nn.Module:
        """Add a contribution that changes nothing yet (A at random, B zero); return it.

        Args:
            contribution: Its name, not there yet.
            rank: Of its matrices; one for a weight that has not so many rows or columns is less.
            seed: Of A, drawn by NumPy, whose normal draws are the same on every machine.
        """
        added = self._make(contribution, dict.fromkeys(self._shapes, rank))
        rng = np.random.default_rng(seed)
        with torch.no_grad():
            for pair in self.pairs(contribution).values():
                drawn = rng.standard_normal(tuple(pair.a.shape), np.float32)
                pair.a.copy_(torch.from_numpy(drawn) / math.sqrt(pair.a.shape[1]))
        return added

    @contextmanager
    def without(self, contribution: Contribution) -> Iterator[None]:
        """Return a scope in which one contribution does not count; see `part` for what raises."""
        self.part(contribution)
        self._left_out = contribution
        try:
            yield
        finally:
            self._left_out = None

    def remove(self, contribution: Contribution) -> None:
        """Take a contribution out of the sum; see `part` for what it raises."""
        self.part(contribution)
        del self.chain[_escaped(str(contribution))]

    def fold(self, contribution: Contribution) -> None:
        """Add a contribution to the base for good: nobody can take it out any more."""
        scale = self.scale(contribution)
        with torch.no_grad():
            for name, pair in self.pairs(contribution).items():
                weight = self.base.get_parameter(name)
                weight.add_((pair.b * scale @ pair.a).reshape(weight.shape).to(weight.dtype))
        self.remove(contribution)

    def grow(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for the contributions a packet carries; see `aats.learning.modules.Growing`."""
        found: dict[Contribution, dict[str, int]] = {}
        for name in shapes:
            if not name.startswith(CHAIN):
                continue
            contribution, target, matrix = owner_of(name)
            if target not in self._shapes:
                raise ModelError(f"tensor {name!r}: the adapters have no target {target!r}")
            if matrix == "a":
                rank, limit = shapes[name][0] if shapes[name] else 0, self._limit(target)
                if not 1 <= rank <= limit:
                    raise ModelError(f"tensor {name!r}: rank {rank}, allowed is 1-{limit}")
                found.setdefault(contribution, {})[target] = rank
        for contribution in sorted(found):
            self._make(contribution, found[contribution])

    def _make(self, contribution: Contribution, ranks: Mapping[str, int]) -> nn.Module:
        if _escaped(str(contribution)) in self.chain:
            raise ModelError(f"contribution {contribution} is in the chain already")
        pairs = nn.ModuleDict()
        for name, shape in self._shapes.items():
            if name not in ranks:
                raise ModelError(f"contribution {contribution} has no adapter for {name!r}")
            rank = min(ranks[name], self._limit(name))
            pairs[_escaped(name)] = Pair(shape[0], math.prod(shape[1:]), rank)
        self.chain[_escaped(str(contribution))] = pairs
        return pairs

    def _limit(self, target: str) -> int:
        shape = self._shapes[target]
        return min(MAX_RANK, shape[0], math.prod(shape[1:]))

    def pairs(self, contribution: Contribution) -> dict[str, Pair]:
        """Return the matrices of one contribution by target; see `part` for what it raises."""
        pairs = cast(nn.ModuleDict, self.part(contribution))
        return {name: cast(Pair, pairs[_escaped(name)]) for name in self._shapes}


def build_lora(config: Mapping[str, Any]) -> nn.Module:
    """Return a `LoraModel` without contributions.

    Config: `base` (name and config of any other architecture), `targets` (patterns of weights or
    their modules, `["*"]`: every weight of two dimensions or more that is no embedding), `alpha`
    (8; a contribution of rank r counts alpha / r times).
    """
    Config(NAME, config, "base", "targets", "alpha")
    place = f"architecture {NAME!r}: config"
    base = config.get("base")
    if not isinstance(base, Mapping) or not isinstance(base.get("name"), str):
        raise ModelError(f"{place} 'base' is {base!r}, allowed is {{ name = ..., ... }}")
    if base["name"] == NAME:
        raise ModelError(f"{place} 'base' is {NAME!r} again, allowed is any other architecture")
    alpha = config.get("alpha", ALPHA)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= MAX_ALPHA:
        raise ModelError(f"{place} 'alpha' is {alpha!r}, allowed is a number in 0-{MAX_ALPHA:g}")
    module = build(Architecture(base["name"], {k: v for k, v in base.items() if k != "name"}))
    return LoraModel(module, _chosen(module, config.get("targets", ["*"]), place), float(alpha))


def _chosen(module: nn.Module, patterns: object, place: str) -> list[str]:
    """Return the weights that some pattern matches, by their own or their module's name.

    The end of a name from a dot on will do, as in `peft`: `c_attn` is that of every layer.
    """
    if not isinstance(patterns, list | tuple) or not 0 < len(patterns) <= MAX_LAYERS:
        raise ModelError(f"{place} 'targets' is {patterns!r}, allowed are 1-{MAX_LAYERS} patterns")
    embedded = {
        id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
    }
    known = [name for name, p in module.named_parameters() if p.ndim >= 2 and id(p) not in embedded]
    chosen = set()
    for pattern in patterns:
        if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
            raise ModelError(f"{place} 'targets' has {pattern!r}, allowed are patterns of names")
        matched = {n for n in known if _matches(n, pattern)}
        if not matched:
            raise ModelError(
                f"{place} 'targets': {pattern!r} matches no weight; there are: {', '.join(known)}"
            )
        chosen |= matched
    return [name for name in known if name in chosen]


def _matches(name: str, pattern: str) -> bool:
    module = name.rpartition(".")[0]
    return any(fnmatchcase(n, p) for n in (name, module) for p in (pattern, f"*.{pattern}"))
