"""Architectures by name: the built-in ones, those of entry points, and those of this process.

A builder takes the config of an `Architecture` and returns a module. A module for more than one
skill has `forward(x, skill)`; any other has `forward(x)`. Outputs are logits [n, classes], or
[n] or [n, 1] for the log-odds of class 1.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from aats import plugins
from aats.errors import ModelError, UnknownPluginError, nearest
from aats.packet import Architecture

GROUP = "aats.models"
Builder = Callable[[Mapping[str, Any]], nn.Module]
_LOCAL: dict[str, Builder] = {}

MAX_WIDTH = 1 << 20
MAX_LAYERS = 256
MAX_MATRIX = 1 << 40
"""Bounds on what a stranger's config can make a builder construct. No matrix has so many
elements that counting them overflows: a config is judged on a module without storage."""


def local(name: str, builder: Builder) -> None:
    """Make an architecture known by name in this process only, without an entry point."""
    _LOCAL[name] = builder


def build(architecture: Architecture) -> nn.Module:
    """Return a new module; its weights are whatever the builder made of them.

    Raises:
        ModelError: If no such architecture is installed or local, or its config is wrong.
    """
    builder = _LOCAL.get(architecture.name)
    if builder is None:
        try:
            builder = cast(Builder, plugins.load(GROUP, architecture.name))
        except UnknownPluginError as error:
            known = sorted({*error.known, *_LOCAL})
            raise ModelError(
                f"unknown architecture {architecture.name!r}; known: {', '.join(known)}"
                f"{nearest(architecture.name, known)}"
            ) from None
    return builder(architecture.config)


def predict(model: nn.Module, x: Tensor, skill: str) -> Tensor:
    """Return the logits [n, classes] of any kind of module for one skill's rows."""
    skilled = "skill" in inspect.signature(model.forward).parameters
    out = cast(Tensor, model(x, skill=skill) if skilled else model(x))
    if out.ndim == 1 or out.shape[-1] == 1:
        odds = out.reshape(-1, 1)
        return torch.cat([torch.zeros_like(odds), odds], 1)
    return out


def initialise(model: nn.Module, seed: int) -> None:
    """Set weights by He et al. (2015) and biases to zero; other vectors stay as built.

    A model with one matrix is linear and starts at zero, the usual start of a convex problem.
    Drawn by NumPy, whose normal draws are the same on every machine.
    """
    rng = np.random.default_rng(seed)
    is_linear = sum(weight.ndim >= 2 for weight in model.parameters()) == 1
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_linear or (weight.ndim < 2 and name.endswith("bias")):
                weight.zero_()
            elif weight.ndim >= 2:
                std = np.float32(math.sqrt(2.0 / math.prod(weight.shape[1:])))
                drawn = rng.standard_normal(tuple(weight.shape), np.float32) * std
                weight.copy_(torch.from_numpy(drawn))


class Config:
    """Reads a builder's config; what it does not know, or finds out of range, is an error."""

    def __init__(self, name: str, config: Mapping[str, Any], *known: str) -> None:
        self._name, self._config = name, config
        for key in config:
            if key not in known:
                raise ModelError(
                    f"architecture {name!r}: config {key!r} is unknown; "
                    f"known: {', '.join(known)}{nearest(str(key), known)}"
                )

    def size(self, key: str, default: int | None = None, *, low: int = 1) -> int:
        """Return a whole number between `low` and `MAX_WIDTH`."""
        return self._size(key, self._config.get(key, default), low)

    def sizes(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return a list of at most `MAX_LAYERS` whole numbers; one number stands for a list."""
        value = self._config.get(key, default)
        listed = [value] if isinstance(value, int) else value
        if not isinstance(listed, list | tuple) or len(listed) > MAX_LAYERS:
            raise self._wrong(key, value, f"up to {MAX_LAYERS} whole numbers")
        return tuple(self._size(key, v, 1) for v in listed)

    def table(self, key: str) -> dict[str, int]:
        """Return a table of 1 to `MAX_LAYERS` names with a whole number each."""
        value = self._config.get(key)
        if not isinstance(value, Mapping) or not 0 < len(value) <= MAX_LAYERS:
            raise self._wrong(key, value, f"a table of 1-{MAX_LAYERS} names and whole numbers")
        return {str(k): self._size(f"{key}.{k}", v, 1) for k, v in value.items()}

    def matrix(self, *sizes: int) -> None:
        """Check that a matrix is not of an absurd size."""
        if math.prod(sizes) > MAX_MATRIX:
            raise ModelError(
                f"architecture {self._name!r}: a matrix of {' x '.join(map(str, sizes))}, "
                f"allowed are {MAX_MATRIX} elements"
            )

    def _size(self, key: str, value: object, low: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= MAX_WIDTH:
            raise self._wrong(key, value, f"a whole number {low}-{MAX_WIDTH}")
        return value

    def _wrong(self, key: str, value: object, allowed: str) -> ModelError:
        return ModelError(
            f"architecture {self._name!r}: config {key!r} is {value!r}, allowed is {allowed}"
        )


def build_logistic(config: Mapping[str, Any]) -> nn.Module:
    """Return logistic regression: one log-odds output for 2 classes, else softmax.

    Config: `features`, `classes` (2).
    """
    c = Config("logistic", config, "features", "classes")
    classes = c.size("classes", 2, low=2)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(c.size("features"), 1 if classes == 2 else classes)
    )


def build_mlp(config: Mapping[str, Any]) -> nn.Module:
    """Return a multilayer perceptron with ReLU.

    Config: `features`, `hidden` (64; a number or a list), `classes`.
    """
    c = Config("mlp", config, "features", "hidden", "classes")
    widths = (c.size("features"), *c.sizes("hidden", (64,)))
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], c.size("classes", low=2)))


def build_cnn(config: Mapping[str, Any]) -> nn.Module:
    """Return a small convolutional network with GroupNorm.

    GroupNorm keeps no running statistics, which would follow the last node visited.
    Config: `channels` (1), `side` (of the square image), `widths` ([16, 32]; each halves the
    side), `classes`. Rows are [channels, side, side] or flat.
    """
    c = Config("cnn", config, "channels", "side", "widths", "classes")
    channels, side = c.size("channels", 1), c.size("side")
    widths = c.sizes("widths", (16, 32))
    if side >> len(widths) < 1:
        raise ModelError(f"architecture 'cnn': side {side} cannot be halved {len(widths)} times")
    layers: list[nn.Module] = [nn.Flatten(), nn.Unflatten(1, (channels, side, side))]
    for a, b in zip((channels, *widths), widths, strict=False):
        c.matrix(a, b, 9)
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(math.gcd(4, b), b), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    features = (widths[-1] if widths else channels) * (side >> len(widths)) ** 2
    classes = c.size("classes", low=2)
    c.matrix(features, classes)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))


class Departments(nn.Module):
    """A shared trunk with an adapter in front and a head behind for each department (skill).

    The feature widths of departments differ; what they share is the trunk.
    """

    def __init__(
        self, features: Mapping[str, int], classes: Mapping[str, int], width: int, depth: int
    ) -> None:
        super().__init__()
        self.skills = tuple(features)
        self.adapters = nn.ModuleDict({_key(s): nn.Linear(n, width) for s, n in features.items()})
        self.trunk = nn.Sequential(
            *(m for _ in range(depth) for m in (nn.ReLU(), nn.Linear(width, width))), nn.ReLU()
        )
        self.heads = nn.ModuleDict({_key(s): nn.Linear(width, classes[s]) for s in features})

    def forward(self, x: Tensor, skill: str) -> Tensor:
        """Return the logits of one department's rows.

        Raises:
            ModelError: If the model has no such department.
        """
        if skill not in self.skills:
            raise ModelError(f"the model has no skill {skill!r}; it has {', '.join(self.skills)}")
        key = _key(skill)
        return cast(Tensor, self.heads[key](self.trunk(self.adapters[key](x.flatten(1)))))


def _key(skill: str) -> str:
    # Module names may not contain dots, nor shadow a method of ModuleDict such as `keys`.
    return "skill_" + skill.replace(".", "__")


def build_departments(config: Mapping[str, Any]) -> nn.Module:
    """Return a `Departments` model.

    Config: `features` ({department: width}), `classes` ({department: number}), `width` (32),
    `depth` (1) of the trunk.
    """
    c = Config("departments", config, "features", "classes", "width", "depth")
    features, classes = c.table("features"), c.table("classes")
    if set(features) != set(classes):
        raise ModelError(
            f"architecture 'departments': features are of {sorted(features)}, "
            f"classes of {sorted(classes)}; they must be the same departments"
        )
    depth = c.size("depth", 1, low=0)
    if depth > MAX_LAYERS:
        raise ModelError(f"architecture 'departments': depth {depth}, allowed is 0-{MAX_LAYERS}")
    return Departments(features, classes, c.size("width", 32), depth)


class TokenClassifier(nn.Module):
    """A transformer encoder over token sequences, mean-pooled into a linear head."""

    def __init__(
        self, vocabulary: int, length: int, width: int, heads: int, depth: int, classes: int
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)
        layers = {f"layer{i}": (f"encoder.layers.{i}",) for i in range(depth)}
        self.blocks = {"embedding": ("token", "position"), **layers, "head": ("head",)}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of token rows [n, length]."""
        places = torch.arange(x.shape[1], device=x.device)
        hidden = self.encoder(self.token(x) + self.position(places))
        return cast(Tensor, self.head(hidden.mean(1)))


def build_transformer(config: Mapping[str, Any]) -> nn.Module:
    """Return a tiny transformer for token rows.

    Config: `vocabulary`, `length` (longest row), `width` (32), `heads` (4), `depth` (2),
    `classes`.
    """
    c = Config("transformer", config, "vocabulary", "length", "width", "heads", "depth", "classes")
    width, heads, depth = c.size("width", 32), c.size("heads", 4), c.size("depth", 2)
    if width % heads or depth > MAX_LAYERS:
        raise ModelError(
            f"architecture 'transformer': width {width} must be a multiple of heads {heads}, "
            f"and depth {depth} at most {MAX_LAYERS}"
        )
    return TokenClassifier(
        c.size("vocabulary"), c.size("length"), width, heads, depth, c.size("classes", low=2)
    )
