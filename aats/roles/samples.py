"""Samples in transit: node data as one payload of plain tensors, and back.

Used for what a node gives away by its own policy: a minibatch, a share of a test set, or its
data to the compute node it trusts. Tensors of skill i: `<i>.facts` (JSON bytes), `<i>.train_x`,
`<i>.train_y`, `<i>.test_x`, `<i>.test_y`; of a view also `<i>.ids` and `<i>.test_ids`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from aats.errors import DataError, WireError
from aats.payload import Array, Manifest, Payload, pack
from aats.roles.data import NodeData, SkillData

_PARTS = ("train_x", "train_y", "test_x", "test_y")
_IDS = ("ids", "test_ids")
_FACTS: dict[str, type] = {
    "skill": str, "num_classes": int, "schema": str, "quality": float, "freshness_s": float,
    "seq": int, "view": str, "show_labels": bool,
}  # fmt: skip
_SHOW = "show_labels"
MAX_CLASSES = 1 << 20


def pack_samples(data: NodeData) -> tuple[Manifest, bytes]:
    """Return data as a manifest and the bytes of its arena."""
    arrays: dict[str, Array] = {}
    for i, skill in enumerate(data.skills.values()):
        facts = {f: getattr(skill, f) for f in _FACTS if f != _SHOW} | {_SHOW: data.show_labels}
        arrays[f"{i}.facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        arrays |= {f"{i}.{part}": getattr(skill, part) for part in _PARTS}
        if skill.view:
            arrays |= {f"{i}.ids": skill.row_ids, f"{i}.test_ids": skill.held_out_ids}
    payload = pack(arrays)
    return payload.manifest, bytes(payload.arena)


def unpack_samples(manifest: Manifest, tensors: bytes, *, limit_bytes: int) -> NodeData:
    """Return the data in a manifest and its bytes, read-only views, everything checked.

    Raises:
        WireError: If the manifest is wrong, does not fit the bytes, or is not of samples.
    """
    manifest.check(limit_bytes=limit_bytes)
    if len(tensors) != manifest.total:
        raise WireError(f"samples: {len(tensors)} bytes, the manifest says {manifest.total}")
    arrays = Payload(manifest, memoryview(tensors).toreadonly()).arrays()
    count = sum(name.endswith(".facts") for name in arrays)
    facts = [_facts(arrays, i) for i in range(count)]
    wanted = sum(1 + len(_parts(f)) for f in facts)
    if len(arrays) != wanted:
        raise WireError(f"samples: {len(arrays)} tensors, {count} skills need {wanted}")
    skills = [_skill(arrays, i, f) for i, f in enumerate(facts)]
    return NodeData.of(*skills, show_labels=all(f[_SHOW] for f in facts))


def _facts(arrays: dict[str, Array], index: int) -> dict[str, Any]:
    place = f"samples: skill {index}"
    try:
        facts = json.loads(arrays[f"{index}.facts"].tobytes())
    except (KeyError, ValueError, RecursionError) as error:
        raise WireError(f"{place}: facts are missing or no JSON") from error
    if not isinstance(facts, dict) or set(facts) != set(_FACTS):
        raise WireError(f"{place}: facts must be {', '.join(_FACTS)}")
    for name, kind in _FACTS.items():
        allowed = (int, float) if kind is float else (kind,)
        if type(facts[name]) not in allowed:
            raise WireError(f"{place}: {name} must be of type {kind.__name__}")
    if not 0 <= facts["num_classes"] <= MAX_CLASSES:
        raise WireError(f"{place}: {facts['num_classes']} classes, allowed are 0-{MAX_CLASSES}")
    return facts


def _parts(facts: dict[str, Any]) -> tuple[str, ...]:
    return (*_PARTS, *_IDS) if facts["view"] else _PARTS


def _skill(arrays: dict[str, Array], index: int, facts: dict[str, Any]) -> SkillData:
    place = f"samples: skill {index}"
    parts: dict[str, Any] = {}
    for part in _parts(facts):
        array = arrays.get(f"{index}.{part}")
        dtypes = (np.float32, np.int64) if part.endswith("x") else (np.int64,)
        if array is None or array.dtype not in dtypes:
            raise WireError(
                f"{place}: {part} is missing, or rows are not f32 or i64, labels and ids i64"
            )
        parts[part] = array
    try:
        return SkillData(**parts, **{f: v for f, v in facts.items() if f != _SHOW})
    except DataError as error:
        raise WireError(f"{place}: {error}") from error


def training_part(skill: SkillData, size: int, seed: int) -> SkillData:
    """Return a minibatch of the training rows as data of its own, nothing held out."""
    x, y = skill.minibatch(size, seed)
    return replace(skill, train_x=x, train_y=y, test_x=x[:0], test_y=y[:0], ids=None, test_ids=None)


def held_out_part(skill: SkillData, size: int, seed: int) -> SkillData:
    """Return a stratified share of the held-out rows as data of its own, nothing to train on."""
    rows = skill.held_out_rows(size, seed)
    x, y = skill.test_x[rows], skill.test_y[rows]
    ids = skill.held_out_ids[rows] if skill.view else None
    return replace(skill, train_x=x[:0], train_y=y[:0], test_x=x, test_y=y, ids=None, test_ids=ids)
