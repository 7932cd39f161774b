"""Transformers from a config: the architecture `hf`, of the optional library `transformers`.

    model = { name = "hf", model_type = "gpt2", n_layer = 2, n_head = 2, n_embd = 64, ... }

Only the config travels; the class is one of the installed library's own causal language models.
Nothing is fetched, no code is loaded from the wire or a hub, and the weights are the packet's.
See `aats.learning.language` for what rows and labels are. Wrapped by `lora` it grows adapters that
`peft` reads (`aats.learning.adapters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from aats.errors import MissingExtraError, ModelError
from aats.learning.language import LanguageModel
from aats.learning.models import MAX_LAYERS, MAX_MATRIX, MAX_WIDTH

NAME = "hf"
EXTRA = "llm"
TYPES = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2")
"""Model types allowed: causal language models whose code is part of the library itself."""
_DEPTHS = ("n_layer", "num_hidden_layers")


class NextToken(LanguageModel):
    """A causal language model of the library."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def logits(self, x: Tensor, last: bool) -> Tensor:
        """See `LanguageModel.logits`."""
        out = self.model(input_ids=x, use_cache=False, logits_to_keep=int(last))
        return cast(Tensor, out.logits)


def build_hf(config: Mapping[str, Any]) -> nn.Module:
    """Return a causal language model of the library `transformers`, weights at random.

    Config: `model_type` (one of `TYPES`), and the numbers and words of that type's config, e.g.
    `n_layer`, `n_embd`, `vocab_size`. Needs the extra `llm`.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"architecture {NAME!r}", EXTRA) from error
    library = cast(Any, transformers)  # its types are partial
    kind = config.get("model_type")
    if kind not in TYPES:
        raise ModelError(
            f"architecture {NAME!r}: config 'model_type' is {kind!r}, "
            f"allowed are {', '.join(TYPES)}"
        )
    _check(config)
    known = library.AutoConfig.for_model(kind).to_dict()
    for key in config:
        if key not in known:
            raise ModelError(f"architecture {NAME!r}: config {key!r} is unknown to {kind}")
    try:
        settled = library.AutoConfig.for_model(**config)
        settled.tie_word_embeddings = False  # each tensor travels under one name
        model = library.AutoModelForCausalLM.from_config(settled, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ModelError(f"architecture {NAME!r}: {kind}: {error}") from error
    return NextToken(model)


def _check(config: Mapping[str, Any]) -> None:
    """Check that a stranger's config is plain, and constructs nothing of an absurd size."""
    numbers = []
    for key, value in config.items():
        if isinstance(value, bool | str | float):
            continue
        if not isinstance(value, int) or not -MAX_WIDTH <= value <= MAX_WIDTH:
            raise ModelError(
                f"architecture {NAME!r}: config {key!r} is {value!r}, allowed are plain values "
                f"and whole numbers up to {MAX_WIDTH}"
            )
        numbers.append(value)
        if key in _DEPTHS and not 1 <= value <= MAX_LAYERS:
            raise ModelError(
                f"architecture {NAME!r}: config {key!r} is {value}, allowed is 1-{MAX_LAYERS}"
            )
    largest = sorted(numbers, reverse=True)[:2]
    if len(largest) == 2 and largest[0] * largest[1] > MAX_MATRIX:
        raise ModelError(
            f"architecture {NAME!r}: a matrix of {largest[0]} x {largest[1]}, "
            f"allowed are {MAX_MATRIX} elements"
        )
