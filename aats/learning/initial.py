"""Whether a model's initial weights let the signal through its blocks.

Between two inputs the hidden values of a network must differ, or nothing can be learnt from them.
Where every layer shrinks that difference and most layers are frozen, training stays at chance:
PyTorch's default initialisation keeps less than an eighth of it over VGG-11, He et al. (2015) a
third or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.blocks import Block, modules_of
from aats.learning.models import predict

KEPT = 1 / 8
"""Least share of the first block's deviation between rows that must reach the last block.
PyTorch's default keeps 0.03-0.12 of it over VGG-11, He's initialisation 0.16-1.1 (20 seeds each,
widths 2-8, 28 and 8 pixels)."""


def deviations(
    model: nn.Module, blocks: Sequence[Block], x: Tensor, skill: str
) -> dict[str, float]:
    """Return for each block that ran the mean deviation of its outputs between rows.

    Args:
        model: The model; put in eval mode.
        blocks: Its blocks in forward order.
        x: Two rows at least.
        skill: Whose rows.
    """
    found: dict[str, float] = {}

    def taking(name: str) -> Any:
        def take(module: nn.Module, args: Any, out: Any) -> None:
            values = out[0] if isinstance(out, tuple) else out
            found[name] = float(values.float().flatten(1).std(0).mean())

        return take

    hooks = [
        modules[-1].register_forward_hook(taking(block.name))
        for block in blocks
        if (modules := modules_of(model, block))
    ]
    try:
        with torch.no_grad():
            predict(model.eval(), x, skill)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def shrinks(model: nn.Module, blocks: Sequence[Block], x: Tensor, skill: str) -> str:
    """Return why the initial weights will not do, "" if they will; see `deviations`."""
    found = deviations(model, blocks, x, skill)
    inner = [found[block.name] for block in blocks[:-1] if block.name in found]
    if len(inner) < 2 or inner[0] == 0 or inner[-1] >= KEPT * inner[0]:
        return ""
    return (
        f"the initial weights let {inner[-1] / inner[0]:.2g} of the signal through to the last "
        f"block, needed is {KEPT:g}: frozen blocks would stay as blind as they are"
    )


def check_signal(model: nn.Module, blocks: Sequence[Block], x: Tensor, skill: str) -> None:
    """Check that the initial weights let the signal through.

    Raises:
        ModelError: With the share that gets through, and what to do.
    """
    if reason := shrinks(model, blocks, x, skill):
        raise ModelError(
            f"{reason}. Initialise by He et al. (aats.learning.models.initialise), or let the "
            f'method do so: initial = "repair"'
        )
