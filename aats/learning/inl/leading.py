"""The leader's side: it holds the labels and the decoders, and asks the views' nodes for codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from aats.advert import Partner
from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.inl.channels import Sent
from aats.learning.inl.encoder import (
    Arrived,
    Encoder,
    Mask,
    Settings,
    arrive,
    hear_code,
    hear_errors,
    kept,
    link_arrays,
    load_link,
    noise_of,
    packed,
    unpacked,
)
from aats.learning.inl.following import (
    Account,
    accounts,
    backward,
    errors_of,
    facts,
    hear_payload,
    shares,
)
from aats.learning.inl.nets import FUSION, InlNet
from aats.learning.stream import Receive, Script, Send
from aats.payload import Array
from aats.roles.data import Labels, SkillData

ASKED = 512
"""Samples asked for at once at inference."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the views' nodes together say of samples."""

    logits: Tensor
    """[n, classes]."""
    there: Mask
    """[n, direct views]: whose code came."""
    bits: Mapping[str, float] = field(default_factory=dict)
    """By view, bits that its codes took, all samples and links together: real payload."""
    ideal_bits: Mapping[str, float] = field(default_factory=dict)
    """The same by ideal coding (KL)."""


class Meeting:
    """The views' nodes around a leader.

    Args:
        net: The model; the leader's own.
        settings: The method's.
        skill: Whose samples.
        data: The leader's: labels, and maybe a view of its own.
        ids: Of the samples that will be spoken of, by their place in this list.
        partners: Who may be asked; of several with one view the first.
        seed: The visit's.
    """

    def __init__(
        self,
        net: InlNet,
        settings: Settings,
        skill: str,
        data: SkillData,
        ids: Labels,
        partners: Sequence[Partner],
        seed: int,
    ) -> None:
        self.net, self.settings, self.skill, self.ids, self.seed = net, settings, skill, ids, seed
        self.own = None
        if data.view in net.wires:
            self.own = Encoder(net, data.view, data, ids, settings, seed)
        self.nodes: dict[str, NodeId] = {}
        """The node of each view, while it lives."""
        for partner in partners:
            for advert in partner.data:
                is_wanted = advert.skill == skill and advert.view in net.wires
                if is_wanted and (self.own is None or advert.view != self.own.view):
                    self.nodes.setdefault(advert.view, partner.node)
        self.there: dict[str, Mask] = {}
        self.lost: list[str] = []
        """The views whose node fell silent."""
        self._share = shares(net)
        self._arrived: dict[str, Arrived] = {}
        self._own_step: tuple[Sent, Arrived] | None = None
        self._place = np.int16 if len(ids) < 1 << 15 else np.int32

    @property
    def is_alone(self) -> bool:
        """Whether no view is left to learn from."""
        return not self.nodes and self.own is None

    def open(self, caution: float = 1.0) -> Script[None]:
        """Give each partner its encoder, learn which samples it has, and tell who is next to whom.

        Args:
            caution: A factor on the learning rate.
        """
        for view, node in self.nodes.items():
            told = facts(
                view=view, skill=self.skill, seed=self.seed, caution=caution,
                before=list(self.net.before(view)),
            )  # fmt: skip
            link = link_arrays(self.net.link(view))
            yield Send(node, "open", {"facts": told, "ids": self.ids, **link})
        for view, node in list(self.nodes.items()):
            ready = yield Receive(node, "ready", self.settings.timeout_s)
            try:
                if ready is None:
                    raise ModelError(f"{node} is silent")
                self.there[view] = unpacked(ready.arrays.get("there"), len(self.ids))
            except ModelError:
                self._lose(view)
        if self.own is not None:
            self.there[self.own.view] = self.own.there
        for view, node in self.nodes.items():
            before = {v: self._at_node(v) for v in self.net.before(view) if v in self.there}
            after = dict.fromkeys(
                self._at_node(v) for v in self.net.wires[view].into if not v or v in self.there
            )
            there = {f"there.{v}": packed(self.there[v]) for v in before}
            told = facts(before=before, after=[*after], share=self._share[view])
            yield Send(node, "start", {"facts": told, **there})

    def step(self, number: int, at: Labels) -> Script[tuple[dict[str, Tensor], Tensor]]:
        """Ask for the codes of a minibatch; return those of the direct views and who is there.

        Args:
            number: Of the step.
            at: Places of the samples in the list of ids.

        Returns:
            Codes [n, width] by view, and a mask [n, direct views] with some links dropped.
        """
        for node in self.nodes.values():
            yield Send(node, "rows", {"at": at.astype(self._place)}, {"number": number})
        self._arrived, self._own_step = {}, None
        codes: dict[str, Arrived] = {}
        for view in self.net.order:
            if self.own is not None and view == self.own.view:
                there, sent = self.own.encode(at, codes, number)
                codes[view] = arrive(NodeId(""), sent.code.detach(), there)
                self._own_step = sent, codes[view]
                for _, node in self._after():
                    yield Send(node, "code", sent.arrays, {"number": number})
            elif view in self.nodes and self._comes_here(view):
                arrived = yield from hear_code(
                    self.nodes[view], self.net.link(view).channel, self.there[view][at],
                    noise_of(self.seed, number, view), number, self.settings.timeout_s,
                )  # fmt: skip
                if arrived is None:
                    self._lose(view)
                else:
                    codes[view] = self._arrived[view] = arrived
        return self._direct(codes, len(at), number)

    def reply(self, number: int) -> Script[None]:
        """Send each partner its slice of the error, after the backward pass of the loss.

        What went into the leader's own view goes back last: its error is not whole before those
        that got the leader's code have sent theirs.
        """
        own = self.own.view if self.own is not None else None
        for view, arrived in self._arrived.items():
            if own not in self.net.wires[view].into:
                yield from self._send_back(view, arrived, number)
        if self.own is None or self._own_step is None:
            return
        sent, arrived = self._own_step
        error = torch.from_numpy(errors_of(arrived))
        for view, node in self._after():
            shape = tuple(error.shape)
            back = yield from hear_errors(node, shape, number, self.settings.timeout_s)
            if back is None:
                self._lose(view)
            else:
                error = error + back
        backward(sent.code, error, sent.nats, self.own.price() / len(arrived.there))
        for view, arrived in self._arrived.items():
            if own in self.net.wires[view].into:
                yield from self._send_back(view, arrived, number)
        self.own.learn_price(sent)

    def _send_back(self, view: str, arrived: Arrived, number: int) -> Script[None]:
        if view in self.nodes:
            back: dict[str, Array] = {"errors": errors_of(arrived)}
            yield Send(arrived.node, "errors", back, {"number": number})

    def _after(self) -> list[tuple[str, NodeId]]:
        """Return the views, and their nodes, that get the leader's own code."""
        assert self.own is not None
        into = self.net.wires[self.own.view].into
        return [(view, self.nodes[view]) for view in into if view in self.nodes]

    def settle(self, weights: bool) -> Script[None]:
        """Take home what the partners learnt; whoever does not send it is as it was.

        Args:
            weights: Whether anything was learnt.
        """
        for node in self.nodes.values():
            yield Send(node, "settle", {}, {"weights": float(weights)})
        if self.own is not None:
            for _, node in self._after():
                yield Send(node, "table", self.own.link.channel.table())
        for view, node in list(self.nodes.items()) if weights else []:
            frame = yield Receive(node, "weights", self.settings.timeout_s)
            try:
                if frame is None:
                    raise ModelError(f"{node} sent no weights")
                load_link(self.net.link(view), frame.arrays)
            except ModelError:
                self._lose(view)

    def answer(self, at: Labels) -> Script[Answers]:
        """Return what all views together say of samples, from real payloads.

        Args:
            at: Places of the samples in the list of ids.
        """
        self.net.eval()
        logits, masks = [torch.zeros(0, self.net.classes)], [np.zeros((0, len(self.net.direct)))]
        bits: dict[str, float] = {}
        ideal_bits: dict[str, float] = {}
        for number, start in enumerate(range(0, len(at), ASKED)):
            part = at[start : start + ASKED]
            for node in self.nodes.values():
                yield Send(node, "ask", {"at": part.astype(self._place)}, {"number": number})
            codes: dict[str, Arrived] = {}
            account: Account = {}
            for view in self.net.order:
                if self.own is not None and view == self.own.view:
                    sending = self.own.link.channel
                    with torch.no_grad():
                        there, raw = self.own.raw(part, codes, -1)
                        codes[view] = arrive(NodeId(""), sending.deliver(raw), there)
                        ideal = float(sending.ideal_nats(raw).sum())
                        data = np.frombuffer(sending.pack(raw), np.uint8)
                    for _, node in self._after():
                        told = {"number": float(number), "nats": ideal}
                        yield Send(node, "payload", {"bytes": data}, told)
                elif view in self.nodes and self._comes_here(view):
                    arrived = yield from hear_payload(
                        self.nodes[view], self.net.link(view).channel, self.there[view][part],
                        number, self.settings.timeout_s, account, (view, FUSION),
                        accounts(self.net),
                    )  # fmt: skip
                    if arrived is None:
                        self._lose(view)
                        continue
                    codes[view] = arrived
            for name, value in account.items():
                sort, view, _ = name.split("/")
                counts = bits if sort == "bits" else ideal_bits
                counts[view] = counts.get(view, 0.0) + value
            with torch.no_grad():
                direct, there_here = self._direct(codes, len(part), -1)
                logits.append(self.net.answer(direct, there_here))
            masks.append(there_here.numpy())
        there_all = np.concatenate(masks).astype(np.bool_)
        return Answers(torch.cat(logits), there_all, bits, ideal_bits)

    def _direct(
        self, codes: Mapping[str, Arrived], n: int, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        drop = self.settings.drop if step >= 0 else 0.0
        out, masks = {}, []
        for view in self.net.direct:
            arrived = codes.get(view)
            if arrived is None:
                out[view] = torch.zeros(n, self.net.link(view).channel.width)
                masks.append(np.zeros(n, np.bool_))
                continue
            out[view] = arrived.code
            masks.append(arrived.there & kept(drop, n, self.seed, step, view, FUSION))
        there = np.stack(masks, 1)
        # A row whose links all failed teaches nothing: it keeps what there is.
        none = ~there.any(1)
        for i, view in enumerate(self.net.direct):
            if view in codes:
                there[none, i] = codes[view].there[none]
        return out, torch.from_numpy(there.astype(np.float32))

    def _comes_here(self, view: str) -> bool:
        into = self.net.wires[view].into
        return FUSION in into or (self.own is not None and self.own.view in into)

    def _at_node(self, view: str) -> str:
        """Return the node of a view; "" for the leader's."""
        return self.nodes.get(view, NodeId(""))

    def _lose(self, view: str) -> None:
        if self.nodes.pop(view, None) is not None:
            self.lost.append(view)
