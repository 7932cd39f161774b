"""Causal models of text: each token is predicted from those before it.

Rows are token ids [n, length], a row's label is the token that follows it. So a text model is
judged as any classifier over its vocabulary, on rows that share nothing; but it is *trained* on
every token of a row, each a label of what stands before it (`lessons`).

The architecture `language` is a small one that needs nothing besides torch; `hf` is any of the
library `transformers` (see `aats.learning.hf`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.models import MAX_LAYERS, Config, predict
from aats.learning.text import BYTES

NAME = "language"


class LanguageModel(nn.Module):
    """A causal model; what a subclass adds is `logits`."""

    reads_text = True

    def logits(self, x: Tensor, last: bool) -> Tensor:
        """Return the logits [n, length, vocabulary] of what follows each token of rows [n, length].

        Args:
            x: Token ids, int64.
            last: Whether those of the last place will do: [n, 1, vocabulary].
        """
        raise NotImplementedError

    def forward(self, x: Tensor, every: bool = False) -> Tensor:
        """Return the logits [n, vocabulary] of the token after each row; of all places if asked."""
        logits = self.logits(x.long(), not every)
        return logits if every else logits[:, -1]


def reads_text(model: nn.Module) -> bool:
    """Return whether a module is a model of text, or a chain of adapters on one."""
    return bool(getattr(model, "reads_text", False))


def lessons(model: nn.Module, x: Tensor, y: Tensor, skill: str) -> tuple[Tensor, Tensor]:
    """Return the logits [m, classes] of all that rows teach, and the labels [m].

    Of a classifier a row teaches its label; of a model of text, every token but the first, too.
    """
    if not reads_text(model):
        return predict(model, x, skill), y
    following = torch.cat([x[:, 1:].long(), y[:, None]], 1)
    return everywhere(model, x), following.flatten()


def everywhere(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits [n * length, vocabulary] of a model of text after every token of rows."""
    return cast(Tensor, model(x, every=True)).flatten(0, 1)


class Layer(nn.Module):
    """Causal self-attention and a network for each token, normalised before (pre-norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up_norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden values [n, length, width] after this layer."""
        z: Tensor = self.norm(x)
        q, k, v = (f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for f in (self.query, self.key, self.value))  # fmt: skip
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + cast(Tensor, self.down(nn.functional.gelu(self.up(self.up_norm(x)))))


class SmallLanguageModel(LanguageModel):
    """A small causal transformer with learnt places."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.place = nn.Embedding(length, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        layers = {f"layer{i}": (f"layers.{i}",) for i in range(depth)}
        self.blocks = {"embedding": ("token", "place"), **layers, "head": ("norm", "head")}

    def logits(self, x: Tensor, last: bool) -> Tensor:
        """See `LanguageModel.logits`."""
        hidden = self.token(x) + self.place(torch.arange(x.shape[1], device=x.device))
        for layer in self.layers:
            hidden = layer(hidden)
        return cast(Tensor, self.head(self.norm(hidden[:, -1:] if last else hidden)))


def build_language(config: Mapping[str, Any]) -> nn.Module:
    """Return a small causal transformer that predicts the next token.

    Config: `length` (longest row), `vocabulary` (256: bytes), `width` (64), `heads` (4), `depth`
    (2).
    """
    c = Config(NAME, config, "length", "vocabulary", "width", "heads", "depth")
    width, heads, depth = c.size("width", 64), c.size("heads", 4), c.size("depth", 2)
    if width % heads:
        raise ModelError(
            f"architecture {NAME!r}: config 'width' is {width}, allowed is a multiple of heads, "
            f"{heads}"
        )
    if depth > MAX_LAYERS:
        raise ModelError(
            f"architecture {NAME!r}: config 'depth' is {depth}, allowed is 1-{MAX_LAYERS}"
        )
    return SmallLanguageModel(
        c.size("vocabulary", BYTES, low=2), c.size("length"), width, heads, depth
    )
