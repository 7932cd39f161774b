"""The architecture `inl`: an encoder for each view, links between them, decoders at the end.

Views are wired as a graph without cycles whose last node, the *fusion*, holds the labels and the
main decoder. A view's encoder sees the node's own features and, side by side, the codes that come
in, by the names of their views. What it makes of them goes through a channel to the next nodes.
In one process the module takes stacked rows (`aats.roles.views`), so it is judged like any other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from aats.errors import ModelError, nearest
from aats.ids import NODE_ID
from aats.learning.inl.channels import CHANNELS, Channel, channel
from aats.learning.models import Config

FUSION = ""
"""Where codes end: the node with the labels."""
MAX_VIEWS = 64
MAX_LEVELS = 256
FUSIONS = ("concatenate", "attention")
HEADS = 4


@dataclass(frozen=True, slots=True)
class Wire:
    """One view's place in the graph."""

    view: str
    shape: tuple[int, ...]
    """Of its own features."""
    into: tuple[str, ...] = (FUSION,)
    """The views whose nodes get its code; `FUSION` for the fusion."""

    @property
    def features(self) -> int:
        """Its own features."""
        return math.prod(self.shape)


class Link(nn.Module):
    """A view's encoder and the channel its code leaves by: what the view's node trains."""

    def __init__(self, trunk: nn.Module, head: nn.Module, sending: Channel) -> None:
        super().__init__()
        self.trunk, self.head, self.channel = trunk, head, sending

    def forward(self, x: Tensor, codes: Sequence[Tensor] = ()) -> Tensor:
        """Return what goes into the channel.

        Args:
            x: [n, ...] own features.
            codes: [n, width] each, those that came in, by view.
        """
        return cast(Tensor, self.head(torch.cat([self.trunk(x), *codes], 1)))


class Concatenation(nn.Module):
    """The codes side by side, by view; an absent one is zeros."""

    def __init__(self, width: int, views: int) -> None:
        super().__init__()
        self.features = width * views

    def forward(self, codes: Tensor, there: Tensor) -> Tensor:
        """Return [n, views * width] for codes [n, views, width] and a mask [n, views]."""
        return (codes * there[..., None]).flatten(1)


class Attention(nn.Module):
    """Cross-view attention: a learnt question asks the codes that are there, one token each."""

    def __init__(self, width: int, views: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.token = nn.Linear(width, features)
        self.place = nn.Embedding(views, features)
        self.question = nn.Embedding(1, features)
        self.attend = nn.MultiheadAttention(features, HEADS, batch_first=True)

    def forward(self, codes: Tensor, there: Tensor) -> Tensor:
        """Return [n, features] for codes [n, views, width] and a mask [n, views]."""
        tokens = self.token(codes) + self.place.weight
        question = self.question.weight.expand(len(codes), 1, -1)
        # The question is a token too: with no view there at all it still has something to ask.
        keys = torch.cat([question, tokens], 1)
        absent = torch.cat([torch.zeros(len(codes), 1, dtype=torch.bool), ~there.bool()], 1)
        found, _ = self.attend(question, keys, keys, key_padding_mask=absent, need_weights=False)
        return cast(Tensor, found[:, 0] + question[:, 0])


class InlNet(nn.Module):
    """See the module's docstring.

    Args:
        wires: One a view.
        links: By view.
        fusion: Takes codes and mask.
        decoder: From the fusion's features to logits.
        satellites: By view; a decoder of that code alone. Empty for none.
        classes: Of the labels.
    """

    def __init__(
        self,
        wires: Sequence[Wire],
        links: Mapping[str, Link],
        fusion: nn.Module,
        decoder: nn.Module,
        satellites: Mapping[str, nn.Module],
        classes: int,
    ) -> None:
        super().__init__()
        self.wires = {w.view: w for w in sorted(wires, key=lambda w: w.view)}
        self.order = ordered(wires)
        """The views, each after those it gets codes from."""
        self.direct = tuple(v for v, w in self.wires.items() if FUSION in w.into)
        """The views whose codes the fusion gets, by name."""
        self.classes = classes
        self.links = nn.ModuleDict({key(v): links[v] for v in self.wires})
        self.fusion, self.decoder = fusion, decoder
        self.satellites = nn.ModuleDict({key(v): satellites[v] for v in self.direct if satellites})

    def link(self, view: str) -> Link:
        """Return a view's link.

        Raises:
            ModelError: If there is no such view.
        """
        if view not in self.wires:
            raise ModelError(f"the model has no view {view!r}; it has {', '.join(self.wires)}")
        return cast(Link, self.links[key(view)])

    def before(self, view: str) -> tuple[str, ...]:
        """Return the views whose codes a view gets, by name."""
        return tuple(v for v, w in self.wires.items() if view in w.into)

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Return the views of stacked rows [n, total width], each in its shape.

        Raises:
            RuntimeError: If the rows are not of that width.
        """
        flat = x.reshape(len(x), -1)
        widths = [w.features for w in self.wires.values()]
        if flat.shape[1] != sum(widths):
            raise RuntimeError(f"rows of {flat.shape[1]} features; the views have {sum(widths)}")
        parts = torch.split(flat, widths, 1)
        return {
            w.view: part.reshape(-1, *w.shape)
            for w, part in zip(self.wires.values(), parts, strict=True)
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of stacked rows: as they would be if every code had travelled."""
        codes, _ = self.encode(x)
        return self.decode({v: codes[v] for v in self.direct}, torch.ones(len(x), len(self.direct)))

    def encode(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return codes [n, width] and rates in nats [n] of stacked rows, by view."""
        views, codes, nats = self.split(x), dict[str, Tensor](), dict[str, Tensor]()
        for view in self.order:
            link = self.link(view)
            raw = link(views[view], [codes[v] for v in self.before(view)])
            if self.training:
                sent = link.channel.noisy(raw)
                codes[view], nats[view] = sent.code, sent.nats
            else:
                codes[view], nats[view] = link.channel.deliver(raw), link.channel.ideal_nats(raw)
        return codes, nats

    def decode(self, codes: Mapping[str, Tensor], there: Tensor) -> Tensor:
        """Return the main decoder's logits [n, classes].

        Args:
            codes: Of the direct views, [n, width] each.
            there: [n, direct views]: 1 where that code is there.
        """
        stacked = torch.stack([codes[v] for v in self.direct], 1)
        return cast(Tensor, self.decoder(self.fusion(stacked, there)))

    def answer(self, codes: Mapping[str, Tensor], there: Tensor) -> Tensor:
        """Return logits from the codes that are there.

        Where only one is, its satellite answers, if there are satellites; where none is, all
        classes are equally likely.
        """
        logits = self.decode(codes, there)
        for i, view in enumerate(self.direct):
            alone = (there[:, i] > 0) & (there.sum(1) == 1)
            if len(self.satellites) and len(self.direct) > 1 and alone.any():
                logits = torch.where(
                    alone[:, None], self.satellites[key(view)](codes[view]), logits
                )
        return torch.where(there.sum(1)[:, None] > 0, logits, 0.0)

    def loss(
        self, codes: Mapping[str, Tensor], there: Tensor, y: Tensor, satellite: float
    ) -> Tensor:
        """Return the decoders' loss: the main one's and `satellite` times that of each satellite.

        Args:
            codes: Of the direct views, [n, width] each.
            there: [n, direct views]; a satellite learns from the rows whose code is there.
            y: [n] labels.
            satellite: Weight of the satellites; 0: they do not learn.
        """
        total = nn.functional.cross_entropy(self.decode(codes, there), y)
        for i, view in enumerate(self.direct):
            if satellite and len(self.satellites):
                each = nn.functional.cross_entropy(
                    self.satellites[key(view)](codes[view]), y, reduction="none"
                )
                total = total + satellite * (each * there[:, i]).sum() / len(y)
        return total


def key(view: str) -> str:
    """Return a view's name as a module's: without dots, and no method of ModuleDict."""
    return "view_" + view.replace(".", "__")


def ordered(wires: Sequence[Wire]) -> tuple[str, ...]:
    """Return the views, each after those it gets codes from, by name where that is open.

    Raises:
        ModelError: If there is no such order.
    """
    left = {w.view: w for w in sorted(wires, key=lambda w: w.view)}
    order: list[str] = []
    while left:
        free = [v for v in left if not any(v in w.into for w in left.values())]
        if not free:
            raise ModelError(f"architecture 'inl': views {', '.join(left)} go round in a circle")
        order += free
        left = {v: w for v, w in left.items() if v not in free}
    return tuple(order)


def build_inl(config: Mapping[str, Any]) -> nn.Module:
    """Return an encoder for each view of a sample, joined by channels, and their decoders.

    Config: `views` ({view: table}), `classes`, `code` (8; width of each code), `channel`
    ("levels", "dithered", "gaussian", "exact"), `levels` (4; of the channel of that name),
    `fusion` ("concatenate", "attention"), `tokens` (32; width of the attention), `decoder` ([64];
    hidden widths), `satellites` (true). A view's table: `shape` (of its rows), `encoder` ("mlp",
    "cnn"), `hidden` ([128]; widths of an mlp, channels of a cnn), `into` ([""]; the views that get
    its code, "" for the fusion).
    """
    c = Config(
        "inl", config, "views", "classes", "code", "channel", "levels", "fusion", "tokens",
        "decoder", "satellites",
    )  # fmt: skip
    tables = config.get("views")
    if not isinstance(tables, Mapping) or not 0 < len(tables) <= MAX_VIEWS:
        raise ModelError(f"architecture 'inl': views must be 1-{MAX_VIEWS} tables")
    width, classes = c.size("code", 8), c.size("classes", low=2)
    sort, levels = _one_of(config, "channel", CHANNELS), c.size("levels", 4, low=2)
    if levels > MAX_LEVELS:
        raise ModelError(f"architecture 'inl': {levels} levels, allowed are 2-{MAX_LEVELS}")
    wires = [_wire(str(name), table, tables) for name, table in tables.items()]
    if not any(FUSION in w.into for w in wires):
        raise ModelError("architecture 'inl': no view's code goes into the fusion (\"\")")
    links = {}
    for wire in wires:
        sending = channel(sort, width, levels)
        incoming = width * sum(wire.view in w.into for w in wires)
        links[wire.view] = _link(wire, tables[wire.view], incoming, sending)
    direct = [w.view for w in wires if FUSION in w.into]
    fusion: Concatenation | Attention
    if _one_of(config, "fusion", FUSIONS) == "attention":
        tokens = c.size("tokens", 32)
        if tokens % HEADS:
            raise ModelError(f"architecture 'inl': tokens {tokens} is no multiple of {HEADS}")
        fusion = Attention(width, len(direct), tokens)
    else:
        fusion = Concatenation(width, len(direct))
    hidden = c.sizes("decoder", (64,))
    satellites = {}
    if config.get("satellites", True):
        satellites = {v: _mlp(width, hidden, classes) for v in direct}
    decoder = _mlp(fusion.features, hidden, classes)
    return InlNet(wires, links, fusion, decoder, satellites, classes)


def _wire(name: str, table: Any, views: Mapping[str, Any]) -> Wire:
    place = f"inl: view {name!r}"
    if not NODE_ID.fullmatch(name) or not isinstance(table, Mapping):
        raise ModelError(f"architecture {place}: a table under a plain name is wanted")
    c = Config(place, table, "shape", "encoder", "hidden", "into")
    into = table.get("into", (FUSION,))
    into = (into,) if isinstance(into, str) else tuple(into)
    if not into or len(set(into)) < len(into):
        raise ModelError(f"architecture {place}: its code must go somewhere, once to each")
    for after in into:
        if after != FUSION and after not in views:
            known = [FUSION, *map(str, views)]
            raise ModelError(
                f"architecture {place}: into {after!r}; known are {known}{nearest(after, known)}"
            )
    shape = c.sizes("shape", ())
    if not shape:
        raise ModelError(f"architecture {place}: the shape of its rows is wanted")
    c.matrix(*shape)
    return Wire(name, shape, into)


def _link(wire: Wire, table: Mapping[str, Any], incoming: int, sending: Channel) -> Link:
    c = Config(f"inl: view {wire.view!r}", table, "shape", "encoder", "hidden", "into")
    out = sending.heads * sending.width
    if _one_of(table, "encoder", ("mlp", "cnn")) == "mlp":
        c.matrix(wire.features + incoming, out)
        return Link(
            nn.Flatten(), _mlp(wire.features + incoming, c.sizes("hidden", (128,)), out), sending
        )
    if len(wire.shape) != 3:
        raise ModelError(
            f"architecture inl: view {wire.view!r}: a cnn wants a shape [channels, height, width]"
        )
    widths = c.sizes("hidden", (8, 16))
    channels, high, wide = wire.shape
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((channels, *widths)):
        c.matrix(a, b, 9)
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(math.gcd(4, b), b), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    features = (widths or (channels,))[-1] * (high >> len(widths)) * (wide >> len(widths))
    if not features:
        raise ModelError(
            f"architecture inl: view {wire.view!r}: {high} x {wide} cannot be halved "
            f"{len(widths)} times"
        )
    c.matrix(features + incoming, out)
    return Link(nn.Sequential(*layers, nn.Flatten()), nn.Linear(features + incoming, out), sending)


def _mlp(features: int, hidden: Sequence[int], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((features, *hidden)):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((features, *hidden)[-1], out))


def _one_of(config: Mapping[str, Any], name: str, allowed: Sequence[str]) -> str:
    value = config.get(name, allowed[0])
    if value not in allowed:
        raise ModelError(
            f"architecture 'inl': config {name!r} is {value!r}, allowed are {', '.join(allowed)}"
        )
    return str(value)
