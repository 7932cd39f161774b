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
    velocity: dict[str, torch.Tensor] | None = None,
) -> None:
    """Take every step of the work on the parameters that require a gradient.

    Args:
        model: Changed in place.
        work: Where the minibatches come from.
        lr: Learning rate.
        momentum: Heavy ball, starting at rest at each stop unless `velocity` says otherwise.
        clip: Largest norm of a gradient; 0 for none.
        loss: What to minimise; None for `work.loss`. One of your own takes part in the
            mandate's measures as `work.composed(mine)`.
        velocity: By name of the parameter, where momentum starts; holds where it ends.
    """
    loss = loss or work.loss
    model.train()
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    velocity = {} if velocity is None else velocity
    for skill, x, y in work:
        model.zero_grad(set_to_none=True)
        loss(model, rows(x), torch.from_numpy(y), skill).backward()
        moved = {name: p for name, p in params.items() if p.grad is not None}
        if clip:
            nn.utils.clip_grad_norm_(moved.values(), clip)
        with torch.no_grad():
            for name, p in moved.items():
                assert p.grad is not None
                step = p.grad
                if momentum:
                    old = velocity.get(name)
                    step = step.clone() if old is None else old.mul_(momentum).add_(step)
                    velocity[name] = step
                p.sub_(step, alpha=lr)
    model.zero_grad(set_to_none=True)
