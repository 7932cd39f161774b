"""A partner that sees a view and means harm costs its own view, not the visit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from aats.ids import NodeId
from aats.learning.inl.encoder import STALE, hear
from aats.learning.inl.following import facts_of
from aats.learning.inl.methods import InlMethod
from aats.learning.stream import Frame, Receive, Script, Send
from tests.learning.inl.views_of_digits import architecture, net, run, spread

Twist = Callable[[Send], Send]


def with_rogue(kind: str, twist: Twist) -> InlMethod:
    """Return a method whose partner with the noisy view says something else."""

    class Rogue(InlMethod):
        def follow(self, *given: Any) -> Script[None]:
            script, answer = InlMethod.follow(self, *given), None
            while True:
                try:
                    said = script.send(answer)
                except StopIteration:
                    return
                noisy = facts_of(given[0])["view"] == "noisy"
                if noisy and isinstance(said, Send) and said.kind == kind:
                    said = twist(said)
                answer = yield said

    return Rogue(timeout_s=1.0)


def filled(value: float, dtype: type) -> Twist:
    return lambda said: replace(
        said, arrays={n: np.full(a.shape, value, dtype) for n, a in said.arrays.items()}
    )


@pytest.mark.parametrize(
    ("kind", "twist"),
    [
        ("code", filled(3e38, np.float32)),
        ("weights", filled(3e38, np.float32)),
        ("weights", filled(1e300, np.float64)),
    ],
)
def test_numbers_that_would_leave_no_weight_finite_lose_their_view(kind: str, twist: Twist) -> None:
    model, found = architecture(channel="exact"), spread()
    module = net(model)
    result = run(with_rogue(kind, twist), model, module, found)
    assert result.carry is not None
    assert "noisy" in result.carry.note
    assert all(torch.isfinite(t).all() for t in module.state_dict().values())
    assert all(float(t.abs().max()) < 1e6 for t in module.state_dict().values() if t.numel())


def test_what_a_partner_tells_of_links_is_told_of_links_there_are_and_within_bounds() -> None:
    wild = {f"bits/view {i}/": 1.0 for i in range(300)} | {
        "a/next_hop/b": 1.0,
        "bits/left/": -1e308,
    }
    twist: Twist = lambda said: replace(said, numbers={**said.numbers, **wild, "nats": 1.7e308})  # noqa: E731
    model, found = architecture(channel="exact"), spread()
    result = run(with_rogue("payload", twist), model, net(model), found)
    assert result.carry is not None
    names = {f"{sort}.{view}" for sort in ("bits", "kl") for view in ("left", "noisy")}
    assert result.carry.trained.keys() == {"network_accuracy", *names}
    assert all(0 <= value <= 1e15 for value in result.carry.trained.values())


def test_nobody_is_waited_for_by_frames_of_earlier_steps() -> None:
    script = hear(NodeId("rogue"), "code", 7, 10.0)
    late = Frame(NodeId("rogue"), "code", {}, {"number": 6.0})
    waits = [next(script), *(script.send(late) for _ in range(STALE - 1))]
    assert waits == [Receive(NodeId("rogue"), "code", 10.0)] * STALE
    with pytest.raises(StopIteration):
        script.send(late)
