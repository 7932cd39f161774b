"""One loop of minibatch SGD for methods that want no loop of their own."""

from __future__ import annotations

import torch
from torch import nn

from aats.learning.method import Loss, Work
from aats.learning.modules import rows


def sgd(
    model: nn.Module,
    work: Work,
    *,
    lr: float,
    momentum: float = 0.0,
    clip: float = 0.0,
    loss: Loss | None = None,
) -> None:
    """Take every step of the work on the parameters that require a gradient.

    Args:
        model: Changed in place.
        work: Where the minibatches come from.
        lr: Learning rate.
        momentum: Heavy ball, starting at rest at each stop.
        clip: Largest norm of a gradient; 0 for none.
        loss: What to minimise; None for `work.loss`. One of your own takes part in the
            mandate's measures as `work.composed(mine)`.
    """
    loss = loss or work.loss
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    velocity: dict[nn.Parameter, torch.Tensor] = {}
    for skill, x, y in work:
        model.zero_grad(set_to_none=True)
        loss(model, rows(x), torch.from_numpy(y), skill).backward()
        moved = [p for p in params if p.grad is not None]
        if clip:
            nn.utils.clip_grad_norm_(moved, clip)
        with torch.no_grad():
            for p in moved:
                assert p.grad is not None
                step = p.grad
                if momentum:
                    step = velocity[p] = (
                        velocity[p].mul_(momentum).add_(step) if p in velocity else step.clone()
                    )
                p.sub_(step, alpha=lr)
    model.zero_grad(set_to_none=True)
