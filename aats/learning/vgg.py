"""The VGG-11 layout (Simonyan and Zisserman 2015), scaled: eight convolutions, three full layers.

GroupNorm instead of BatchNorm: it keeps no running statistics, which would follow the last node
visited. As a plain `nn.Sequential` it has eleven blocks (`aats.learning.blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from aats.errors import ModelError
from aats.learning.models import Config

CHANNELS = (1, 2, 4, 4, 8, 8, 8, 8)
"""Of the eight convolutions, in widths of the first: 64 in VGG-11."""
POOLED = (0, 1, 3, 5, 7)
"""The convolutions that a halving of the side follows, in an image of 32 pixels."""
FULL = 8
"""The two hidden full layers, in the same unit; VGG's 4096 is for images of 224 pixels."""
GROUPS = 4
MAX_SIDE = 32


def build_vgg(config: Mapping[str, Any]) -> nn.Module:
    """Return a scaled VGG-11 with GroupNorm.

    An image whose side is no power of two is padded with zeros (28 to 32 pixels). Each halving
    needs a side of 2 at least; where the image is smaller than 32 pixels the first ones are left
    out, so that the last convolutions see one pixel in any case.

    Config: `channels` (1), `side` (of the square image, 2-32), `width` (8; channels of the first
    convolution, which all others are multiples of; 64 is VGG-11), `classes`. Rows are
    [channels, side, side] or flat.
    """
    c = Config("vgg", config, "channels", "side", "width", "classes")
    channels, side, width = c.size("channels", 1), c.size("side", low=2), c.size("width", 8)
    classes = c.size("classes", low=2)
    if side > MAX_SIDE:
        raise ModelError(f"architecture 'vgg': side {side}, allowed is 2-{MAX_SIDE}")
    c.matrix(FULL * width, max(FULL * width, classes), 9)
    c.matrix(channels, width, 9)
    halvings = math.ceil(math.log2(side))
    missing = (1 << halvings) - side
    widths = [width * times for times in CHANNELS]
    pooled = POOLED[len(POOLED) - halvings :]
    layers: list[nn.Module] = [nn.Flatten(), nn.Unflatten(1, (channels, side, side))]
    if missing:
        before, after = missing // 2, missing - missing // 2
        layers.append(nn.ZeroPad2d((before, after, before, after)))
    for i, (a, b) in enumerate(zip((channels, *widths), widths, strict=False)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(math.gcd(GROUPS, b), b), nn.ReLU()]
        if i in pooled:
            layers.append(nn.MaxPool2d(2))
    full = FULL * width
    layers += [nn.Flatten(), nn.Linear(full, full), nn.ReLU(), nn.Linear(full, full), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(full, classes))
