"""Small views of digits, and a visit to them, for tests of learning on several nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aats.ids import NodeId
from aats.learning.datasets import digits
from aats.learning.inl.nets import InlNet
from aats.learning.method import Plan, Stop, Work
from aats.learning.models import build, initialise
from aats.learning.partition import Spread
from aats.learning.views import View, spread_seen
from aats.packet import Architecture, Header, Plugin, Target
from aats.roles.data import NodeData
from aats.testing.methods import header_for
from aats.testing.streams import StreamRun, run_stream

SKILL, HOME = "digits", NodeId("home")
LEFT = View("left", Plugin("occlude", {"side": "left"}), labels=False)
NOISY = View("noisy", Plugin("noise", {"sd": 0.3}), labels=False)
WHOLE = View("whole", Plugin("crop", {"height": 2}), labels=False)
LABELS = View("labels", Plugin("nothing"))
TWO: Mapping[str, View] = {"clinic": LEFT, "lab": NOISY, HOME: LABELS}


def spread(views: Mapping[str, View] = TWO, rows: int = 400) -> Spread:
    """Return digits as seen by the nodes."""
    return spread_seen(SKILL, digits().take(np.arange(rows)), views, reference=32)


def architecture(into: Mapping[str, Any] | None = None, **config: Any) -> Architecture:
    """Return a small model of the views left and noisy, and of those `into` names besides."""
    shapes = {"left": [64], "noisy": [64], "whole": [16]}
    wires = {"left": "", "noisy": "", **(into or {})}
    views = {v: {"shape": shapes[v], "hidden": [16], "into": w} for v, w in wires.items()}
    return Architecture(
        "inl", {"views": views, "classes": 10, "code": 4, "decoder": [12], **config}
    )


def net(model: Architecture, seed: int = 1) -> InlNet:
    """Return a fresh model."""
    made = build(model)
    assert isinstance(made, InlNet)
    initialise(made, seed)
    return made


def header(model: Architecture) -> Header:
    """Return a packet's header."""
    return header_for(model, requirement=(Target(SKILL, 0.9),))


def work(data: NodeData, plan: Plan, seed: int = 7) -> Work:
    """Return a visit's work at home."""
    return Work(Stop(HOME, 0, seed, data.skills, {"cycle": 0.0}), plan)


def run(
    method: Any, model: Architecture, module: InlNet, found: Spread, steps: int = 0, **options: Any
) -> StreamRun:
    """Let a method lead at home; everybody else follows."""
    home = NodeData.of(found.nodes[HOME])
    stop = Stop(HOME, 0, 7, home.skills, {"cycle": 0.0})
    plan = Plan({SKILL: steps}, method.batch_size) if steps else method.plan(stop)
    assert plan is not None
    others = {n: NodeData.of(d) for n, d in found.nodes.items() if n != HOME}
    return run_stream(method, module, Work(stop, plan), others, header=header(model), **options)


def accuracy(module: InlNet, found: Spread) -> float:
    """Return the accuracy on the test set, all views stacked in this process."""
    import torch

    module.eval()
    x, y = found.test
    with torch.no_grad():
        return float((module(torch.from_numpy(x)).argmax(1).numpy() == y).mean())
