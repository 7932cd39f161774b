"""Methods `inl` and `vfl`: the nodes that see a sample's views learn together, where they are.

The leader holds the labels and the decoders. Each partner encodes its view, the codes travel to
the leader (or to the next node of a longer graph), and error vectors come back, each node's own
slice. In-Network Learning also has a decoder for each code alone, and a price on every bit (Zaidi
et al.; distributed variational information bottleneck); vertical federated learning has the main
loss only. The model is an `inl` architecture, which says which view goes where by which channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from aats.advert import Partner
from aats.errors import ModelError
from aats.learning.inl.encoder import Settings
from aats.learning.inl.following import follow
from aats.learning.inl.leading import Answers, Meeting
from aats.learning.inl.nets import InlNet
from aats.learning.method import Carry, Plan, Stop, Work, passes
from aats.learning.modules import rows
from aats.learning.stream import Frame, Script
from aats.packet import Header
from aats.roles.data import Labels, NodeData, SkillData

OPTIMISERS = ("adam", "sgd")


@dataclass(frozen=True, slots=True)
class VflMethod:
    """Vertical federated learning: the main decoder's loss alone, all codes at their full rate.

    Raises:
        ValueError: On a number out of range.
    """

    epochs: float = 1.0
    """Passes over the leader's rows at a visit."""
    batch_size: int = 64
    lr: float = 1e-3
    optimiser: str = "adam"
    """"adam" or "sgd"; each node has its own, fresh at each visit."""
    drop: float = 0.0
    """Share of links that fail in training, row by row, so that a dead encoder is survived."""
    coded: bool = False
    """Whether codes travel as real bytes in training, too, where the channel can."""
    measure: int = 256
    """Held-out samples answered over the network after training, to count real bits; 0: none."""
    timeout_s: float = 10.0
    """After which a node that says nothing counts as dead for this visit."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1 or self.lr <= 0 or self.timeout_s <= 0:
            raise ValueError("epochs, lr and timeout_s must be above 0, batch_size at least 1")
        if not 0 <= self.drop < 1 or self.measure < 0:
            raise ValueError("drop must be in 0-1 (not 1), measure at least 0")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser {self.optimiser!r}; allowed are {', '.join(OPTIMISERS)}")

    def settings(self) -> Settings:
        """Return what both sides go by."""
        return Settings(
            drop=self.drop, optimiser=self.optimiser, lr=self.lr, coded=self.coded,
            timeout_s=self.timeout_s,
        )  # fmt: skip

    def plan(self, stop: Stop) -> Plan | None:
        """Return `epochs` passes over the labelled rows."""
        labelled = {s: d for s, d in stop.data.items() if d.num_classes}
        return passes(replace(stop, data=labelled), self.epochs, self.batch_size)

    def train(self, model: Any, work: Work) -> Carry | None:
        """Train alone, where a node has whole samples: the views stacked."""
        return train_alone(self.settings(), model, work)

    def lead(self, model: Any, work: Work, partners: Sequence[Partner]) -> Script[Carry | None]:
        """Train with the nodes that have the views."""
        return lead(self.settings(), self.measure, model, work, partners)

    def follow(self, opening: Frame, data: NodeData, header: Header, seed: int) -> Script[None]:
        """Encode one view."""
        return follow(self.settings(), opening, data, header)


@dataclass(frozen=True, slots=True)
class InlMethod(VflMethod):
    """In-Network Learning: main and satellite decoders, and a price on what the links carry.

    Raises:
        ValueError: On a number out of range.
    """

    s: float = 0.01
    """Weight of the satellites' losses, and of the rates (in nats) where there is no capacity."""
    satellite: float = 1.0
    """Factor on the satellites' weight; 0: they do not learn."""
    capacity: float = 0.0
    """Bits a sample that each link shall carry; each then finds its own price. 0: the price is
    `s`."""
    rho: float = 2e-4
    """How fast a link's price follows: lambda <- max(0, lambda + rho (bits - capacity)), a step."""

    def __post_init__(self) -> None:
        VflMethod.__post_init__(self)
        if min(self.s, self.satellite, self.capacity, self.rho) < 0:
            raise ValueError("s, satellite, capacity and rho must be at least 0")

    def settings(self) -> Settings:
        """Return what both sides go by."""
        return replace(
            VflMethod.settings(self),
            weight=self.s,
            satellites=self.s * self.satellite,
            capacity=self.capacity,
            rho=self.rho,
        )


def lead(
    settings: Settings, measured: int, model: Any, work: Work, partners: Sequence[Partner]
) -> Script[Carry | None]:
    """Train with the nodes that have the views, then let them answer held-out samples."""
    net, skill = net_of(model), skill_of(work)
    data = work.stop.data[skill]
    held_out = data.held_out_rows(measured, 0)
    ids = np.concatenate([data.row_ids, data.held_out_ids[held_out]])
    meeting = Meeting(net, settings, skill, data, ids, partners, work.stop.seed)
    yield from meeting.open(work.stop.caution)
    if meeting.is_alone:
        return Carry(note="no node with a view answered")
    net.train()
    own = [net.fusion, net.decoder, *([net.satellites] if settings.satellites else [])]
    if meeting.own is not None:
        own.append(meeting.own.link)
    parameters = [p for module in own for p in module.parameters()]
    optimiser = settings.optimiser_of(parameters, work.stop.caution)
    for number, _ in enumerate(work):
        y = torch.from_numpy(data.train_y[work.drawn])
        codes, there = yield from meeting.step(number, work.drawn)
        if meeting.is_alone:
            break
        optimiser.zero_grad(set_to_none=True)
        loss = net.loss(codes, there, y, settings.satellites)
        loss.backward()  # type: ignore[no-untyped-call]
        yield from meeting.reply(number)
        optimiser.step()
    yield from meeting.settle(weights=True)
    trained: dict[str, float] = {}
    if len(held_out):
        answers = yield from meeting.answer(data.samples + np.arange(len(held_out)))
        trained = report(answers, data.test_y[held_out])
    lost = ", ".join(meeting.lost)
    return Carry(trained=trained, note=f"silent: {lost}" if lost else "")


def answers(
    settings: Settings, model: Any, skill: str, data: SkillData, ids: Labels,
    partners: Sequence[Partner], seed: int = 0,
) -> Script[Answers]:  # fmt: skip
    """Let the nodes that have the views answer samples; nothing is learnt.

    Args:
        settings: The method's.
        model: An `inl` module.
        skill: Whose samples.
        data: The leader's.
        ids: Of the samples.
        partners: Who may be asked.
        seed: Of the meeting.
    """
    meeting = Meeting(net_of(model), settings, skill, data, ids, partners, seed)
    yield from meeting.open()
    yield from meeting.settle(weights=False)
    return (yield from meeting.answer(np.arange(len(ids))))


def report(found: Answers, y: Labels) -> dict[str, float]:
    """Return accuracy, and bits a sample by view: real payload (`bits.`) and ideal (`kl.`)."""
    n = len(y)
    return {
        "network_accuracy": float((found.logits.argmax(1).numpy() == y).mean()),
        **{f"bits.{view}": bits / n for view, bits in found.bits.items()},
        **{f"kl.{view}": bits / n for view, bits in found.ideal_bits.items()},
    }


def train_alone(settings: Settings, model: Any, work: Work) -> Carry | None:
    """Train on whole samples, the views stacked, in one graph; a view alone teaches nothing."""
    net = net_of(model)
    if any(work.stop.data[skill].view for skill in work.plan.steps):
        return Carry(note="no partners for the other views")
    net.train()
    optimiser = settings.optimiser_of(list(net.parameters()), work.stop.caution)
    for _, x, y in work:
        optimiser.zero_grad(set_to_none=True)
        codes, nats = net.encode(rows(x))
        direct = {view: codes[view] for view in net.direct}
        loss = net.loss(
            direct, torch.ones(len(y), len(direct)), torch.from_numpy(y), settings.satellites
        )
        loss = loss + sum(settings.price(net.link(v)) * rate.mean() for v, rate in nats.items())
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        for view, rate in nats.items():
            settings.learn_price(net.link(view), rate)
    return None


def net_of(model: Any) -> InlNet:
    """Return the module, checked.

    Raises:
        ModelError: If it has no views.
    """
    if not isinstance(model, InlNet):
        raise ModelError(f"{type(model).__name__} has no views; architecture 'inl' has")
    return model


def skill_of(work: Work) -> str:
    """Return the one skill of the work.

    Raises:
        ModelError: If there are several, or no labels here.
    """
    if len(work.plan.steps) != 1:
        known = ", ".join(work.plan.steps) or "none"
        raise ModelError(f"skills whose labels are here: {known}; the leader needs those of one")
    return next(iter(work.plan.steps))
