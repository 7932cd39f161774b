"""A trained policy as one small safetensors file: weights, and what one must know to use them.

Tensors as `aats_agents.scorer.shapes` names them, float32; under the metadata key "aats.policy"
a JSON object of `_About`'s fields. Nothing in a file is ever executed; a file that was made for
other observations, or that is damaged, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import blake3
import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from aats.errors import ScenarioError
from aats.routing.features import FEATURES, GLOBALS, OBSERVATION_VERSION
from aats_agents.prior import MAX_WEIGHT, PRIOR_WEIGHTS, Prior
from aats_agents.scorer import MAX_HIDDEN, Scorer, Weights, shapes

FORMAT = 1
"""Of the file; rises when an older reader could not tell what it says."""
SUFFIX = ".safetensors"
MAX_BYTES = 1 << 20
"""Of a file; a network of the usual size has 30 kB."""
MAX_PROBES = 32
KEY = "aats.policy"

Range = tuple[float, float]


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a policy comes from: enough to make it again."""

    algorithm: str = ""
    """"ppo", "dqn", or "" for the prior alone."""
    world: str = ""
    """The preset or the scenario it was trained on."""
    world_digest: str = ""
    """BLAKE3 of what that says, 64 hex digits."""
    seed: int = 0
    steps: int = 0
    """Decisions trained on."""
    metrics: dict[str, float] = {}
    """What an evaluation on held-out networks found, e.g. success and cost."""
    command: str = ""
    """The exact command line."""


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy and all that is known of it."""

    weights: Weights
    prior: Prior | None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Of features (at legal data nodes) and globals, by name: lowest and highest in training."""
    probes: int = 0
    """Nodes it asks at each stop, at most."""
    fallback: str = "minibatch"
    """The policy that decides where this one was not trained."""
    training: Training = Training()

    @property
    def scorer(self) -> Scorer:
        """The network and its prior."""
        return Scorer(self.weights, self.prior)

    @property
    def digest(self) -> str:
        """BLAKE3 over everything it says, 64 hex digits."""
        return _digest(self.weights, _about(self))


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    observation_version: int
    features: tuple[str, ...]
    globals: tuple[str, ...]
    prior: dict[str, float] | None
    ranges: dict[str, Range]
    probes: int
    fallback: str
    training: Training
    digest: str = ""


def _about(policy: PolicyFile) -> _About:
    return _About(
        format=FORMAT,
        observation_version=OBSERVATION_VERSION,
        features=FEATURES,
        globals=GLOBALS,
        prior=None if policy.prior is None else asdict(policy.prior),
        ranges={name: (float(low), float(high)) for name, (low, high) in policy.ranges.items()},
        probes=policy.probes,
        fallback=policy.fallback,
        training=policy.training,
    )


def _digest(weights: Weights, about: _About) -> str:
    hasher = blake3.blake3(_json(msgspec.structs.replace(about, digest="")))
    for name in sorted(weights):
        hasher.update(f"{name}{weights[name].shape}".encode())
        hasher.update(np.ascontiguousarray(weights[name], "<f4").tobytes())
    return hasher.hexdigest()


def _json(about: _About) -> bytes:
    return msgspec.json.encode(about, order="deterministic")


def pack(policy: PolicyFile) -> bytes:
    """Return a policy as the bytes of its file: equal policies, equal bytes.

    Raises:
        ScenarioError: If it is one that would be refused.
    """
    tensors = {
        name: np.ascontiguousarray(policy.weights[name], np.float32)
        for name in sorted(policy.weights)
    }
    about = msgspec.structs.replace(_about(policy), digest=policy.digest)
    data: bytes = save_tensors(tensors, metadata={KEY: _json(about).decode()})
    unpack(data, "policy")
    return data


def unpack(data: bytes, place: str) -> PolicyFile:
    """Return the policy in the bytes of a file.

    Args:
        data: The whole file.
        place: What error messages call it.

    Raises:
        ScenarioError: If anything in it is not as it must be; says what and what is allowed.
    """
    if len(data) > MAX_BYTES:
        raise ScenarioError(place, f"{len(data)} bytes", f"at most {MAX_BYTES} are")
    try:
        weights = load_tensors(data)
        about = _read(data)
    except (SafetensorError, msgspec.DecodeError, KeyError, ValueError, TypeError) as error:
        allowed = f"a policy file is wanted, as `aats policy train` writes it ({error})"
        raise ScenarioError(place, f"{len(data)} bytes", allowed) from error
    _check(about, place)
    _check_weights(weights, place)
    prior = _prior(about, place)
    digest = _digest(weights, about)
    if about.digest != digest:
        raise ScenarioError(f"{place}: digest", about.digest, f"its contents have {digest}")
    return PolicyFile(weights, prior, about.ranges, about.probes, about.fallback, about.training)


def _prior(about: _About, place: str) -> Prior | None:
    if about.prior is None:
        return None
    for name in {*about.prior} ^ {*PRIOR_WEIGHTS}:
        allowed = f"weights are exactly {', '.join(PRIOR_WEIGHTS)}"
        raise ScenarioError(f"{place}: prior", name, allowed)
    try:
        return Prior(**about.prior)
    except ValueError as error:
        raise ScenarioError(f"{place}: prior", about.prior, str(error)) from error


def _read(data: bytes) -> _About:
    """Return what the file says of itself; safetensors has checked the header's bounds."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = msgspec.json.decode(data[8:end], type=dict[str, msgspec.Raw])
    metadata = msgspec.json.decode(header["__metadata__"], type=dict[str, str])
    return msgspec.json.decode(metadata[KEY], type=_About)


def _check(about: _About, place: str) -> None:
    if about.format != FORMAT:
        raise ScenarioError(f"{place}: format", about.format, f"must be {FORMAT}")
    if about.observation_version != OBSERVATION_VERSION:
        allowed = f"observations here are version {OBSERVATION_VERSION}: train it anew"
        raise ScenarioError(f"{place}: observation_version", about.observation_version, allowed)
    _check_columns(about.features, FEATURES, f"{place}: features")
    _check_columns(about.globals, GLOBALS, f"{place}: globals")
    if not 0 <= about.probes <= MAX_PROBES:
        raise ScenarioError(f"{place}: probes", about.probes, f"0 to {MAX_PROBES} are allowed")
    for name, (low, high) in about.ranges.items():
        if name not in FEATURES and name not in GLOBALS:
            raise ScenarioError(f"{place}: ranges", name, "must be a feature or a global")
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ScenarioError(f"{place}: ranges.{name}", (low, high), "lowest, highest is wanted")


def _check_columns(found: Sequence[str], known: Sequence[str], place: str) -> None:
    if tuple(found) == tuple(known):
        return
    for i in range(max(len(found), len(known))):
        one = found[i] if i < len(found) else None
        other = known[i] if i < len(known) else None
        if one != other:
            raise ScenarioError(f"{place}[{i}]", one, f"must be {other!r}: train it anew")


def _check_weights(weights: Mapping[str, npt.NDArray[Any]], place: str) -> None:
    bias = weights.get("encode.0.bias")
    if bias is None or bias.ndim != 1 or not 1 <= len(bias) <= MAX_HIDDEN:
        found = None if bias is None else bias.shape
        allowed = f"a vector of 1 to {MAX_HIDDEN} is wanted"
        raise ScenarioError(f"{place}: encode.0.bias", found, allowed)
    wanted = shapes(len(bias), attention="attention.weight" in weights)
    for name in sorted({*wanted, *weights}):
        at = f"{place}: {name}"
        if name not in wanted:
            raise ScenarioError(at, name, f"tensors are {', '.join(wanted)}")
        if name not in weights or weights[name].shape != wanted[name]:
            found = weights[name].shape if name in weights else None
            raise ScenarioError(at, found, f"the shape must be {wanted[name]}")
        if weights[name].dtype != np.float32:
            raise ScenarioError(at, str(weights[name].dtype), "must be float32")
        largest = float(np.abs(weights[name]).max())
        if not largest <= MAX_WEIGHT:
            raise ScenarioError(
                at, largest, f"numbers must be within -{MAX_WEIGHT:g}..{MAX_WEIGHT:g}"
            )


def save(policy: PolicyFile, path: Path) -> None:
    """Write a policy's file, its folder if need be."""
    data = pack(policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def load(path: Path) -> PolicyFile:
    """Return the policy in a file.

    Raises:
        ScenarioError: If it cannot be read or is no policy for this version; names the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        allowed = f"a readable policy file is wanted: {error.strerror}"
        raise ScenarioError("policy", str(path), allowed) from error
    return unpack(data, str(path))
