"""Models of other widths inside a model: slices for small nodes, and growth.

A narrow model is the first ceil(r c) channels of every hidden layer of an `nn.Sequential`
(HeteroFL; Diao et al., ICLR 2021). What it learned is added to the wide model in place as a
*difference*, so that slicing and expanding without training in between changes no bit. A layer that
reads fewer channels is scaled by sqrt(c / ceil(r c)), which keeps the variance of what it makes of
independent weights; where a norm follows, it does that, and nothing is scaled.

Growing (Net2Net; Chen et al., ICLR 2016) copies channels and shares out what they feed.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from aats.errors import ModelError

_PLAIN = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Identity, nn.Dropout,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Unflatten,
)  # fmt: skip
"""Layers without weights, which take any number of channels."""
_NORMS = (nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
_Matrix = nn.Linear | nn.Conv2d


@dataclass(frozen=True, slots=True)
class _Cut:
    """How one layer of the narrow model lies in the wide one."""

    name: str
    channels: int
    """Kept of those it makes."""
    inputs: int
    """Kept of those it reads; 0 for a norm."""
    scale: float
    """Factor on its weight in the narrow model."""


class Slice:
    """A narrow model in a wide one.

    Args:
        wide: An `nn.Sequential` of linear and convolutional layers, norms, and layers without
            weights.
        ratio: Share of the channels of each hidden layer, in 0-1 (not 0).

    Raises:
        ModelError: If the model has a layer that cannot be sliced, or a norm whose groups the
            narrow width does not keep whole.
    """

    def __init__(self, wide: nn.Module, ratio: float) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio is {ratio}, allowed is 0-1 (not 0)")
        self._wide = _sequential(wide)
        self._cuts = _cuts(self._wide, ratio)
        self.narrow = copy.deepcopy(self._wide)
        """The narrow model, with copies of the weights; to be trained."""
        for cut in self._cuts:
            _shrink(self.narrow, cut)
        self._before = {n: p.detach().clone() for n, p in self.narrow.named_parameters()}

    def expand(self) -> None:
        """Add what the narrow model has learned to the wide one, in place."""
        wide = dict(self._wide.named_parameters())
        scales = {f"{cut.name}.weight": cut.scale for cut in self._cuts}
        with torch.no_grad():
            for name, p in self.narrow.named_parameters():
                learned = (p - self._before[name]) / scales.get(name, 1.0)
                place = wide[name][tuple(slice(n) for n in p.shape)]
                place.copy_(torch.where(learned == 0, place, place + learned))


def grow(model: nn.Module, factor: int = 2) -> nn.Sequential:
    """Return a model with `factor` times the hidden channels that computes the same.

    Copies of a channel learn the same until something tells them apart: dropout, or noise on
    their weights.

    Args:
        model: As for `Slice`; norms over all channels (LayerNorm, one group) are allowed, and
            groups are multiplied with the channels.
        factor: Copies of each hidden channel, at least 1.

    Raises:
        ModelError: If the model has a layer that cannot be widened.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}, allowed is at least 1")
    wide = copy.deepcopy(_sequential(model))
    layers = [layer for _, layer in _named_layers(wide)]
    last = [layer for layer in layers if isinstance(layer, _Matrix)][-1]
    made = 0  # channels of the layer before, as it was
    for layer in layers:
        if isinstance(layer, _Matrix):
            spread = _reads(layer) // made if made else 0
            made = layer.weight.shape[0]
            _grow_matrix(layer, factor, spread, is_last=layer is last)
        elif isinstance(layer, _NORMS):
            _grow_norm(layer, factor)
    return wide


def ratio_for(wanted_bytes: float, model_bytes: float, ratios: Sequence[float]) -> float:
    """Return the largest ratio whose model fits into so many bytes; the smallest if none does.

    The weights between hidden layers shrink with the square of the ratio, so this is careful: it
    reckons with the ratio itself.
    """
    fitting = [r for r in ratios if r * model_bytes <= wanted_bytes]
    return max(fitting, default=min(ratios))


def _sequential(model: nn.Module) -> nn.Sequential:
    if not isinstance(model, nn.Sequential):
        raise ModelError(f"widths: {type(model).__name__} cannot be sliced, only nn.Sequential")
    return model


def _named_layers(model: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Return the layers in forward order, those of nested sequences in their place."""
    found: list[tuple[str, nn.Module]] = []
    for name, layer in model.named_children():
        if isinstance(layer, nn.Sequential):
            found += [(f"{name}.{inner}", deep) for inner, deep in _named_layers(layer)]
        elif isinstance(layer, (_Matrix, *_NORMS, *_PLAIN)):
            found.append((name, layer))
        else:
            raise ModelError(f"widths: layer {name!r}, {type(layer).__name__}, cannot be sliced")
    return found


def _cuts(model: nn.Sequential, ratio: float) -> list[_Cut]:
    layers = _named_layers(model)
    matrices = [name for name, layer in layers if isinstance(layer, _Matrix)]
    cuts: list[_Cut] = []
    made = kept = 0  # channels of the layer before: in the wide model, in the narrow one
    followers = [layer for _, layer in layers[1:]]
    for (name, layer), follower in itertools.zip_longest(layers, followers):
        if isinstance(layer, _Matrix):
            inputs, outputs = _reads(layer), layer.weight.shape[0]
            spread = inputs // made if made else 1  # pixels a channel has after flattening
            reads = kept * spread if made else inputs
            is_normed = isinstance(follower, _NORMS)
            scale = 1.0 if is_normed or not made else math.sqrt(made / kept)
            made, kept = outputs, outputs
            if name != matrices[-1]:
                kept = math.ceil(ratio * outputs)
            cuts.append(_Cut(name, kept, reads, scale))
        elif isinstance(layer, _NORMS):
            cuts.append(_Cut(name, kept, 0, 1.0))
    return cuts


def _reads(layer: _Matrix) -> int:
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        raise ModelError(f"widths: a convolution in {layer.groups} groups cannot be sliced")
    return layer.weight.shape[1]


def _shrink(model: nn.Sequential, cut: _Cut) -> None:
    layer = model.get_submodule(cut.name)
    for name, p in layer.named_parameters(recurse=False):
        part = p.detach()[: cut.channels]
        if name == "weight" and cut.inputs:
            part = part[:, : cut.inputs] * cut.scale
        setattr(layer, name, nn.Parameter(part.clone()))
    match layer:
        case nn.Linear():
            layer.in_features, layer.out_features = cut.inputs, cut.channels
        case nn.Conv2d():
            layer.in_channels, layer.out_channels = cut.inputs, cut.channels
        case nn.GroupNorm():
            size = layer.num_channels // layer.num_groups
            if layer.num_groups > 1 and cut.channels % size:
                raise ModelError(
                    f"widths: {cut.channels} channels of {cut.name!r} are no whole number of "
                    f"groups of {size}"
                )
            layer.num_groups = max(1, cut.channels // size) if layer.num_groups > 1 else 1
            layer.num_channels = cut.channels
        case nn.LayerNorm():
            layer.normalized_shape = (cut.channels,)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            layer.num_features = cut.channels
            for name, buffer in layer.named_buffers(recurse=False):
                if buffer.ndim:
                    setattr(layer, name, buffer[: cut.channels].clone())


def _repeat(tensor: Tensor, factor: int, dim: int) -> Tensor:
    """Return each entry `factor` times in a row, so that a channel's copies keep together."""
    return tensor.detach().repeat_interleave(factor, dim)


def _grow_matrix(layer: _Matrix, factor: int, spread: int, *, is_last: bool) -> None:
    """Widen a layer; `spread` is the inputs for each channel before it, 0 for the first layer."""
    weight = layer.weight.detach()
    if spread:
        parts = weight.reshape(len(weight), -1, spread, *weight.shape[2:])
        shape = (len(weight), weight.shape[1] * factor, *weight.shape[2:])
        weight = _repeat(parts, factor, 1).reshape(shape) / factor
    if not is_last:
        weight = _repeat(weight, factor, 0)
        if layer.bias is not None:
            layer.bias = nn.Parameter(_repeat(layer.bias, factor, 0))
    layer.weight = nn.Parameter(weight.clone())
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    else:
        layer.out_channels, layer.in_channels = weight.shape[:2]


def _grow_norm(layer: nn.Module, factor: int) -> None:
    for name, p in layer.named_parameters(recurse=False):
        setattr(layer, name, nn.Parameter(_repeat(p, factor, 0)))
    match layer:
        case nn.GroupNorm():
            layer.num_channels *= factor
        case nn.LayerNorm():
            layer.normalized_shape = (int(np.prod(layer.normalized_shape)) * factor,)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            layer.num_features *= factor
            for name, buffer in layer.named_buffers(recurse=False):
                if buffer.ndim:
                    setattr(layer, name, _repeat(buffer, factor, 0))
