"""Models as files: an earlier run's `.safetensors`, or what the library `transformers` saved.

They are read as a packet's first weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from aats.errors import ModelError
from aats.learning.adapters import read_pretrained
from aats.learning.hf import NAME as HF
from aats.learning.lora import BASE, NAME
from aats.learning.modules import ModuleBackend
from aats.packet import Architecture
from aats.payload import MODEL, Array, Payload, pack

_NO_NUMPY = {torch.bfloat16: "bf16"}
"""Dtypes that NumPy lacks: they travel as raw bits."""


def read_model(path: Path, architecture: Architecture) -> Payload:
    """Return the `model.` tensors of a file in the architecture's order, checked.

    A file of the wrapped architecture will do for one that wraps it (`lora`): it is the base.

    Args:
        path: A `.safetensors` file as a run writes it, names as in the module; or for the
            architecture `hf` a folder (see `aats.learning.adapters.read_pretrained`).
        architecture: What the weights are of.

    Raises:
        ModelError: If the file cannot be read or its tensors do not fit the architecture.
    """
    try:
        found = _folder(path, architecture) if path.is_dir() else load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: no file of weights: {error}") from error
    if architecture.name == NAME and not any(name.startswith(BASE) for name in found):
        found = {BASE + name: tensor for name, tensor in found.items()}
    try:
        payload = _packed(found)
        model = ModuleBackend().load(architecture, payload)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return _packed({name: found[name] for name in model.module.state_dict()})


def _folder(path: Path, architecture: Architecture) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder of `transformers` or `peft`."""
    own = {"name": architecture.name, **architecture.config}
    base = own.get("base") if architecture.name == NAME else own
    if not isinstance(base, Mapping) or base.get("name") != HF:
        raise ModelError(f"{path}: a folder; only the architecture {HF!r} starts from one")
    return read_pretrained(path, {key: value for key, value in base.items() if key != "name"})


def pack_module(module: nn.Module) -> Payload:
    """Return a module's tensors as a payload's, names with the prefix `model.`."""
    return _packed({name: tensor.detach() for name, tensor in module.state_dict().items()})


def _packed(tensors: Mapping[str, torch.Tensor]) -> Payload:
    arrays: dict[str, Array] = {}
    dtypes: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.dtype in _NO_NUMPY:
            dtypes[MODEL + name] = _NO_NUMPY[tensor.dtype]
            arrays[MODEL + name] = tensor.view(torch.uint16).numpy()
        else:
            arrays[MODEL + name] = tensor.numpy()
    try:
        return pack(arrays, dtypes=dtypes)
    except KeyError as error:
        raise ModelError(f"tensors of dtype {error} cannot travel") from error
