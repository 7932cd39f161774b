"""The blocks of a model by name: what Snake learning trains one of, and where a model may be cut.

A block is a run of submodules that hold parameters, in forward order. Where they come from:

1. names given by whoever asks (a method's parameters);
2. the module's attribute `blocks`, a mapping from block names to submodules' names, if it has one;
3. the children in the order they were registered, which is taken for the forward order. Of an
   `nn.Sequential` each child with a weight matrix begins a block, and what follows without one
   (norms, activations, pooling) belongs to it; of any other module each child with parameters
   is a block, and an `nn.ModuleList` is one for each of its own.

Every parameter is in exactly one block. The blocks of an `nn.Sequential` cover all its children,
so that running them one after the other is running the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from aats.errors import ModelError, nearest

Named = Sequence[str | Sequence[str]]
"""Blocks in order: one submodule's name each, or several that make up one block."""


@dataclass(frozen=True, slots=True)
class Block:
    """A name, and the submodules (or parameters) it is made of, as the model names them."""

    name: str
    parts: tuple[str, ...]


def blocks_of(model: nn.Module, named: Named = ()) -> tuple[Block, ...]:
    """Return a model's blocks in forward order.

    Args:
        model: Any module.
        named: Blocks by name, instead of those the model has by itself.

    Raises:
        ModelError: If a block names what the model does not have, or a parameter is in no block
            or in two.
    """
    declared = getattr(model, "blocks", None)
    if named:
        lists = [(one,) if isinstance(one, str) else tuple(one) for one in named]
        found = [Block(parts[0] if parts else "", parts) for parts in lists]
    elif isinstance(declared, Mapping):
        found = [Block(name, tuple(parts)) for name, parts in declared.items()]
    elif isinstance(model, nn.Sequential):
        found = _consecutive(model)
    else:
        found = [Block(part, (part,)) for part in _children(model)]
    _check(model, found)
    return tuple(found)


def modules_of(model: nn.Module, block: Block) -> list[nn.Module]:
    """Return the submodules a block is made of, in order."""
    known = dict(model.named_modules())
    return [known[part] for part in block.parts if part in known]


def parameters_of(model: nn.Module, block: Block) -> dict[str, nn.Parameter]:
    """Return a block's parameters by their names in the model."""
    return {name: p for name, p in model.named_parameters() if _is_in(name, block.parts)}


def size_of(model: nn.Module, block: Block) -> int:
    """Return how many numbers a block's parameters have."""
    return sum(p.numel() for p in parameters_of(model, block).values())


def _consecutive(model: nn.Sequential) -> list[Block]:
    """Return the runs of children, each with one that has a weight matrix at its head."""
    runs: list[list[str]] = [[]]
    has_matrix = False
    for name, child in model.named_children():
        begins = any(p.ndim >= 2 for p in child.parameters())
        if begins and has_matrix:
            runs.append([])
        has_matrix = has_matrix or begins
        runs[-1].append(name)
    heads = [next((n for n in run if [*model.get_submodule(n).parameters()]), "") for run in runs]
    return [Block(head, tuple(run)) for head, run in zip(heads, runs, strict=True)]


def _children(model: nn.Module) -> list[str]:
    names: list[str] = []
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            names += [f"{name}.{inner}" for inner, _ in child.named_children()]
        elif [*child.parameters()]:
            names.append(name)
    return names


def _is_in(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _check(model: nn.Module, blocks: Sequence[Block]) -> None:
    known = [name for name, _ in (*model.named_modules(), *model.named_parameters()) if name]
    for part in (part for block in blocks for part in block.parts):
        if part not in known:
            raise ModelError(
                f"blocks: the model has no {part!r}; it has {', '.join(known[:20])}"
                f"{nearest(part, known)}"
            )
    for name, _ in model.named_parameters():
        holders = [block.name for block in blocks if _is_in(name, block.parts)]
        if len(holders) != 1:
            where = f"in {' and '.join(holders)}" if holders else "in no block"
            raise ModelError(f"blocks: {name!r} is {where}; a parameter is in exactly one")
