"""A node's own data as one file in its directory: safetensors, no pickle."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
from safetensors.numpy import save_file

from aats.errors import DataError
from aats.roles.data import NodeData, SkillData

FILE_NAME = "data.safetensors"
_PARTS = ("train_x", "train_y", "test_x", "test_y")
_IDS = ("ids", "test_ids")
"""Written where the samples have names."""
_FACTS = ("num_classes", "schema", "quality", "freshness_s", "seq", "view")


def save_data(path: Path, data: NodeData) -> None:
    """Write a node's data to `path`, readable by its owner only, in one atomic step."""
    tensors, facts = {}, {}
    for index, (name, skill) in enumerate(data.skills.items()):
        facts[name] = {fact: getattr(skill, fact) for fact in _FACTS}
        for part in _PARTS:
            tensors[f"{index}.{part}"] = getattr(skill, part)
        for part in _IDS:
            if (ids := getattr(skill, part)) is not None:
                tensors[f"{index}.{part}"] = ids
    metadata = {"skills": json.dumps(facts), "show_labels": json.dumps(data.show_labels)}
    temporary = path.with_suffix(".part")
    temporary.touch(mode=0o600)
    save_file(tensors, temporary, metadata)
    temporary.replace(path)


def load_data(path: Path) -> NodeData:
    """Return the data written to `path`; no data if there is no such file.

    Raises:
        DataError: If the file is not what `save_data` writes.
    """
    if not path.exists():
        return NodeData()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            facts, there = json.loads(metadata["skills"]), set(file.keys())
            skills = [
                SkillData(
                    name,
                    *(file.get_tensor(f"{i}.{part}") for part in _PARTS),
                    **fact | {p: file.get_tensor(f"{i}.{p}") for p in _IDS if f"{i}.{p}" in there},
                )
                for i, (name, fact) in enumerate(facts.items())
            ]
            return NodeData.of(*skills, show_labels=json.loads(metadata["show_labels"]))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as e:
        raise DataError(f"{path}: not a node's data file ({e})") from e
