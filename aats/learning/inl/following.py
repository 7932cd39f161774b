"""A partner's side: it encodes its view when asked, and learns from the errors that come back."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Generator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from aats.errors import DataError, ModelError
from aats.ids import NodeId
from aats.learning.inl.encoder import (
    Arrived,
    Encoder,
    Mask,
    Settings,
    arrive,
    finite,
    hear,
    hear_code,
    hear_errors,
    link_arrays,
    load_link,
    noise_of,
    packed,
    unpacked,
)
from aats.learning.inl.nets import InlNet, Link
from aats.learning.models import build
from aats.learning.stream import Frame, Receive, Script, Send
from aats.packet import Architecture, Header
from aats.payload import Array
from aats.roles.data import Labels, NodeData

PATIENCE = 20
"""Times the time-out, that a partner waits for a leader that may itself be waiting for others."""

MAX_BITS = 1e15
"""That a partner's word is taken for."""
Account = dict[str, float]
"""What links carried for one question: "bits/left/middle" real bits, "ideal/..." as KL."""
Asking = Generator[Send | Receive, Frame | None, dict[str, Arrived]]


def facts_of(frame: Frame) -> dict[str, Any]:
    """Return the JSON that a frame brings under "facts"."""
    return cast("dict[str, Any]", json.loads(frame.arrays["facts"].tobytes()))


def facts(**values: Any) -> Array:
    """Return values as JSON bytes for a frame."""
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def follow(settings: Settings, opening: Frame, data: NodeData, header: Header) -> Script[None]:
    """Encode one view for the leader until it has no more questions.

    Raises:
        ModelError: If the packet's model has no views, or the opening does not fit it.
        DataError: If this node has no such view.
    """
    leader, told = opening.sender, facts_of(opening)
    view, held = told["view"], data.skills.get(told["skill"])
    if held is None or held.view != view:
        raise DataError(f"no view {view!r} of skill {told['skill']!r} here")
    net = outline(header.mandate.architecture)
    load_link(net.link(view), opening.arrays)
    for before in net.before(view):
        net.link(before).channel.to_empty(device="cpu")
    ids = np.array(opening.arrays["ids"], np.int64)
    encoder = Encoder(net, view, held, ids, settings, told["seed"])
    yield Send(leader, "ready", {"there": packed(encoder.there)})
    start = yield Receive(leader, "start", PATIENCE * settings.timeout_s)
    if start is not None:
        yield from Follower(net, encoder, leader, start, len(ids), told["caution"]).run()


def outline(architecture: Architecture) -> InlNet:
    """Return the packet's model without storage: a stranger's config costs no memory.

    Raises:
        ModelError: If it has no views.
    """
    with torch.device("meta"):
        net = build(architecture)
    if not isinstance(net, InlNet):
        raise ModelError(f"architecture {architecture.name!r} has no views; 'inl' has")
    return net


class Follower:
    """Does what the leader asks: steps of training, codes at inference, its weights back."""

    def __init__(
        self, net: InlNet, encoder: Encoder, leader: NodeId, start: Frame, n: int, caution: float
    ) -> None:
        told = facts_of(start)
        self.encoder, self.leader, self.settings = encoder, leader, encoder.settings
        self.channels = {view: net.link(view).channel for view in told["before"]}
        self.before = {view: NodeId(node) or leader for view, node in told["before"].items()}
        """Who sends codes, by view, while they live."""
        self.after = [NodeId(node) or leader for node in told["after"]]
        """Who gets our code, while they live."""
        self.there: dict[str, Mask] = {
            view: unpacked(start.arrays[f"there.{view}"], n) for view in told["before"]
        }
        self.links = accounts(net)
        link = encoder.link
        self.optimiser = self.settings.optimiser_of(list(link.parameters()), caution)
        self.share = told["share"]

    def run(self) -> Script[None]:
        """Serve until the leader is silent."""
        while True:
            ask = yield Receive(self.leader, None, PATIENCE * self.settings.timeout_s)
            if ask is None:
                return
            if ask.kind == "rows":
                yield from self._train(ask)
            elif ask.kind == "settle":
                yield from self._settle(bool(ask.numbers["weights"]))
            elif ask.kind == "ask":
                yield from self._answer(ask)

    def _train(self, ask: Frame) -> Script[None]:
        step, at = int(ask.numbers["number"]), ask.arrays["at"].astype(np.int64)
        codes = yield from self._codes(at, step)
        there, sent = self.encoder.encode(at, codes, step)
        for node in self.after:
            yield Send(node, "code", sent.arrays, {"number": step}, self.share * len(there))
        error = torch.zeros_like(sent.code)
        for node in list(self.after):
            patience_s = PATIENCE * self.settings.timeout_s
            back = yield from hear_errors(node, tuple(error.shape), step, patience_s)
            if back is None:
                self.after.remove(node)
            else:
                error = error + back
        if not self.after:
            # Nobody says what the code was good for, and its price alone would undo it. Those
            # before learn from an empty frame that they need not wait here.
            for arrived in codes.values():
                yield Send(arrived.node, "errors", {}, {"number": step})
            return
        self.optimiser.zero_grad(set_to_none=True)
        backward(sent.code, error, sent.nats, self.encoder.price() / len(at))
        for arrived in codes.values():
            yield Send(arrived.node, "errors", {"errors": errors_of(arrived)}, {"number": step})
        self.optimiser.step()
        self.encoder.learn_price(sent)

    def _codes(self, at: Labels, step: int) -> Asking:
        """Wait for the codes of the views before; whose does not come is not waited for again."""
        codes = {}
        for view, node in list(self.before.items()):
            arrived = yield from hear_code(
                node, self.channels[view], self.there[view][at],
                noise_of(self.encoder.seed, step, view), step, self.settings.timeout_s,
            )  # fmt: skip
            if arrived is None:
                del self.before[view]
            else:
                codes[view] = arrived
        return codes

    def _settle(self, weights: bool) -> Script[None]:
        """Send what was learnt to the leader, and to the others what they must know to decode."""
        if weights:
            yield Send(self.leader, "weights", link_arrays(self.encoder.link))
        for node in self.after:
            if node != self.leader:
                yield Send(node, "table", self.encoder.link.channel.table())
        for view, node in list(self.before.items()):
            table = yield Receive(node, "table", self.settings.timeout_s)
            if table is None:
                del self.before[view]
            else:
                self.channels[view].know(table.arrays)

    def _answer(self, ask: Frame) -> Script[None]:
        number, at = int(ask.numbers["number"]), ask.arrays["at"].astype(np.int64)
        codes: dict[str, Arrived] = {}
        account: Account = {}
        for view, node in list(self.before.items()):
            arrived = yield from hear_payload(
                node, self.channels[view], self.there[view][at], number, self.settings.timeout_s,
                account, (view, self.encoder.view), self.links,
            )  # fmt: skip
            if arrived is None:
                del self.before[view]
            else:
                codes[view] = arrived
        with torch.no_grad():
            there, raw = self.encoder.raw(at, codes, -1)
            data = self.encoder.link.channel.pack(raw)
            ideal = float(self.encoder.link.channel.ideal_nats(raw).sum())
        numbers = {"number": number, "nats": ideal, **account}
        for node in self.after:
            yield Send(
                node, "payload", {"bytes": np.frombuffer(data, np.uint8)}, numbers,
                self.share * len(there) / 3,
            )  # fmt: skip


def backward(code: Tensor, error: Tensor, nats: Tensor, price: float) -> None:
    """Carry errors on a code, and the price of its rate, back into the graph they came from."""
    if nats.requires_grad:
        torch.autograd.backward([code, nats], [error, torch.full_like(nats, price)])
    else:
        torch.autograd.backward([code], [error])


def errors_of(arrived: Arrived) -> Array:
    """Return the error vectors of the rows that came, zero where nothing depended on them."""
    grad = arrived.rows.grad
    return (torch.zeros_like(arrived.rows) if grad is None else grad).detach().numpy()


def hear_payload(
    node: NodeId, channel: Any, there: Mask, number: int, timeout_s: float,
    account: Account, link: tuple[str, str], links: Collection[str],
) -> Generator[Send | Receive, Frame | None, Arrived | None]:  # fmt: skip
    """Return a code at inference, None if it does not come or is none.

    Args:
        node: Who sends it.
        channel: Of the link.
        there: [n] which rows it has.
        number: Of the question.
        timeout_s: How long to wait.
        account: Takes up what this link carried, and what the frame tells of those behind it.
        link: Whose code goes to whom, by view.
        links: What may be told of, by the name of its account (`accounts`).
    """
    frame = yield from hear(node, "payload", number, timeout_s)
    if frame is None:
        return None
    if "bytes" not in frame.arrays:
        return None
    data = frame.arrays["bytes"].tobytes()
    try:
        code = finite(channel.unpack(data, int(there.sum())))
    except ModelError:
        return None
    account |= {k: bits_of(v) for k, v in frame.numbers.items() if k in links}
    at = "/".join(link)
    account[f"bits/{at}"] = 8.0 * len(data)
    account[f"ideal/{at}"] = bits_of(frame.numbers.get("nats", 0.0) / math.log(2))
    return arrive(node, code, there)


def bits_of(told: float) -> float:
    """Return what a partner says of bits, within what can be."""
    return min(max(0.0, told), MAX_BITS)


def accounts(net: InlNet) -> frozenset[str]:
    """Return the names of what is told of a model's links: "bits/left/middle", "ideal/..."."""
    return frozenset(
        f"{sort}/{view}/{into}"
        for sort in ("bits", "ideal")
        for view, wire in net.wires.items()
        for into in wire.into
    )


def shares(net: InlNet) -> Mapping[str, float]:
    """Return the share of the model's parameters that each view's link has."""
    total = sum(p.numel() for p in net.parameters())
    return {v: _size(net.link(v)) / total for v in net.wires}


def _size(link: Link) -> int:
    return sum(p.numel() for p in link.parameters())
