"""A trained policy named by its file: read once, by the owner, and carried by the packet."""

from __future__ import annotations

from pathlib import Path

from aats.errors import ScenarioError
from aats.packet import Plugin
from aats.routing.carried import MAX_BYTES, pieces

SUFFIX = ".safetensors"
POLICY = "rl"
"""The policy that decides by the weights it is given."""


def is_file(name: str) -> bool:
    """Return whether a policy's name is the path of a file."""
    return name.endswith(SUFFIX) or "/" in name or "\\" in name


def with_weights(policy: Plugin, folder: Path, place: str) -> Plugin:
    """Return the policy with its file's contents in place of the file's name.

    Args:
        policy: Its name is a path; returned as it is otherwise.
        folder: Where relative paths start.
        place: What error messages call it.

    Raises:
        ScenarioError: If the file cannot be read or is too large to travel.
    """
    if not is_file(policy.name):
        return policy
    path = folder / Path(policy.name).expanduser()
    try:
        with path.open("rb") as file:
            weights = pieces(file.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        allowed = f"a policy file of at most {MAX_BYTES} bytes is wanted: {error}"
        raise ScenarioError(place, str(path), allowed) from error
    return Plugin(POLICY, {**policy.params, "weights": list(weights)})
