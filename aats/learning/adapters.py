"""Chains of adapters at their two ends: as the library `peft` reads them, and begun from its.

In the network a chain is the thin layer of `aats.learning.lora`, whatever its base is: one form of
tensors for merges, records and forgetting, and a node needs no library besides that of the model.
Before and after, people who use `transformers` have `peft`, and that makes and reads its own files:

    FOLDER/base/             the frozen base, as `transformers` saves it
    FOLDER/                  the whole chain as one adapter
    FOLDER/3@n2/             each contribution as an adapter of its own

`peft` adds up the adapters that are active, so what is separate in the network stays so there. In
the other direction a packet may start from such a folder: what the adapter in it does is then part
of the base, and cannot be told from it. Only safetensors are read, nothing is fetched.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from aats.errors import MissingExtraError, ModelError
from aats.learning.hf import EXTRA, NextToken, build_hf
from aats.learning.lora import Contribution, LoraModel

BASE_FOLDER = "base"
WHOLE = "default"
"""As `peft` calls the adapter that stands in the folder itself."""
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
_BOOKKEEPING = ("_", "architectures", "dtype", "tie_", "torch_dtype", "transformers_version")
TRIED = 8
"""Tokens of the row on which a model from a folder is compared with that of the config."""


def write_adapters(model: LoraModel, folder: Path) -> list[Path]:
    """Write a chain as adapters of `peft`; return their folders, that of the whole chain first.

    Args:
        model: A chain on a language model of `transformers`.
        folder: Where to; made if it is not there. Its path becomes part of the files.

    Raises:
        MissingExtraError: If `peft` is not installed.
        ModelError: If the base is no such model, or the chain is empty.
    """
    if not isinstance(model.base, NextToken):
        raise ModelError("peft has adapters of transformers only: the base must be of type 'hf'")
    if not model.contributions:
        raise ModelError("the chain has no contributions to write")
    peft = _peft("writing adapters")
    base = cast(Any, copy.deepcopy(model.base.model))
    place = (folder / BASE_FOLDER).resolve()
    base.save_pretrained(place)
    base.name_or_path = str(place)
    parts = {WHOLE: model.contributions} | {_name(c): (c,) for c in model.contributions}
    adapted: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it sets fan_in_fan_out by the kind of layer, and says so
        for name, contributions in parts.items():
            rank, factors = _factors(model, contributions)
            config = peft.LoraConfig(
                r=rank, lora_alpha=rank, target_modules=[*factors], task_type="CAUSAL_LM"
            )
            if adapted is None:
                adapted = peft.get_peft_model(base, config, adapter_name=name)
            else:
                adapted.add_adapter(name, config)
            tensors = {
                f"base_model.model.{module}.lora_{which}.weight": matrix.contiguous()
                for module, pair in factors.items()
                for which, matrix in zip("AB", pair, strict=True)
            }
            peft.set_peft_model_state_dict(adapted, tensors, adapter_name=name)
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return [folder, *(folder / name for name in parts if name != WHOLE)]


def _name(contribution: Contribution) -> str:
    return str(contribution).replace(".", "-")  # torch allows no dots in a module's name


def _factors(
    model: LoraModel, contributions: Sequence[Contribution]
) -> tuple[int, dict[str, tuple[Tensor, Tensor]]]:
    """Return the rank of contributions side by side, and A [r, in] and B [out, r] by module.

    The factor on a contribution is in its B; one that has a smaller rank at some weight is
    filled up with zeros.
    """
    rank = sum(map(model.rank, contributions))
    inner = cast(NextToken, model.base).model
    factors = {}
    for target in model.targets:
        pairs = [(model.scale(c), model.pairs(c)[target]) for c in contributions]
        a = torch.cat([pair.a.detach() for _, pair in pairs])
        b = torch.cat([pair.b.detach() * scale for scale, pair in pairs], 1)
        a = nn.functional.pad(a, (0, 0, 0, rank - len(a)))
        b = nn.functional.pad(b, (0, rank - b.shape[1]))
        module = target.removeprefix("model.").rpartition(".")[0]
        is_linear = isinstance(inner.get_submodule(module), nn.Linear)
        # The others are Conv1D of GPT-2, whose weights are [in, out].
        factors[module] = (a, b) if is_linear else (b.T, a.T)
    return rank, factors


def read_pretrained(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a model that `transformers` saved, or of an adapter of `peft` on one.

    Args:
        folder: With a `config.json`, or with an `adapter_config.json` that names such a folder.
        config: Of the architecture `hf`, without the name; must describe the same model.

    Returns:
        By name as in the module that `build_hf` makes.

    Raises:
        MissingExtraError: If a library is not installed.
        ModelError: If the folder cannot be read, or its model is another than that of the config.
    """
    ours = cast(NextToken, build_hf(config))
    try:
        theirs = _adapted(folder) if (folder / ADAPTER_CONFIG).is_file() else _saved(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{folder}: no model that can be read: {error}") from error
    tensors = {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}
    try:
        ours.model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{folder}: {_difference(ours.model, theirs)}") from error
    row = torch.arange(TRIED)[None] % cast(Any, ours.model).config.vocab_size
    with torch.no_grad():
        here, there = (m.eval()(input_ids=row).logits.float() for m in (ours.model, theirs))
    if not torch.allclose(here, there, rtol=1e-3, atol=1e-4):
        raise ModelError(f"{folder}: {_difference(ours.model, theirs)}")
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _saved(folder: Path) -> Any:
    """Return the model that a folder holds."""
    import transformers

    return cast(Any, transformers).AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )


def _adapted(folder: Path) -> Any:
    """Return the base of an adapter with that adapter added to its weights."""
    peft = _peft("an adapter to start from")
    if not (folder / ADAPTER_FILE).is_file():
        raise ModelError(f"{folder}: there is no {ADAPTER_FILE}")
    config = peft.PeftConfig.from_pretrained(str(folder))
    base = folder / str(config.base_model_name_or_path)
    if config.peft_type != "LORA" or not base.is_dir():
        raise ModelError(
            f"{folder}: an adapter of type {config.peft_type} on "
            f"{config.base_model_name_or_path!r}; wanted is LORA, on a folder that is here"
        )
    adapted = peft.PeftModel.from_pretrained(_saved(base), str(folder), local_files_only=True)
    return adapted.merge_and_unload()


def _difference(ours: Any, theirs: Any) -> str:
    """Return in words in what two models' configs differ, bookkeeping left out."""
    mine, other = ours.config.to_dict(), theirs.config.to_dict()
    pairs = [
        f"{key} {mine.get(key)!r}, there {other[key]!r}"
        for key in sorted(other)
        if mine.get(key) != other[key] and not key.startswith(_BOOKKEEPING)
    ]
    return f"the packet's config describes another model: {'; '.join(pairs)}"


def _peft(feature: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(feature, EXTRA) from error
    return peft
