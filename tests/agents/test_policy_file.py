from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from aats.errors import ScenarioError
from aats.routing.carried import joined, pieces
from aats.routing.features import FEATURES, OBSERVATION_VERSION
from aats_agents import policy_file
from aats_agents.policy_file import (
    KEY,
    MAX_BYTES,
    PolicyFile,
    Training,
    load,
    pack,
    save,
    unpack,
)
from aats_agents.prior import Prior
from tests.agents.rl_samples import random_batch, random_weights

TRAINING = Training("ppo", "preset:mixed", "ab" * 32, 7, 100_000, {"success": 0.98}, "aats policy")
POLICY = PolicyFile(
    random_weights(1), Prior(), {"log_samples": (0.1, 0.6)}, 3, "minibatch", TRAINING
)


def about(data: bytes) -> dict[str, Any]:
    size = struct.unpack("<Q", data[:8])[0]
    found: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][KEY])
    return found


def with_about(**changes: Any) -> bytes:
    data = pack(POLICY)
    return save_tensors(load_tensors(data), metadata={KEY: json.dumps(about(data) | changes)})


def with_tensor(name: str, tensor: np.ndarray[Any, Any] | None) -> bytes:
    data = pack(POLICY)
    tensors = {k: v for k, v in (load_tensors(data) | {name: tensor}).items() if v is not None}
    return save_tensors(tensors, metadata={KEY: json.dumps(about(data))})


def same(one: PolicyFile, other: PolicyFile) -> bool:
    weights = one.weights.keys() == other.weights.keys() and all(
        np.array_equal(one.weights[k], other.weights[k]) for k in one.weights
    )
    return weights and replace(one, weights={}) == replace(other, weights={})


@pytest.mark.parametrize("policy", [POLICY, PolicyFile(random_weights(2, 8, attention=True), None)])
def test_what_is_written_is_what_is_read(policy: PolicyFile, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "p.safetensors"
    save(policy, path)
    found = load(path)
    assert same(found, policy)
    assert found.digest == policy.digest == about(path.read_bytes())["digest"]
    assert pack(found) == path.read_bytes()
    batch = random_batch(1, 5)
    np.testing.assert_array_equal(found.scorer.logits(*batch), policy.scorer.logits(*batch))


def test_a_policy_of_the_usual_size_is_small_enough_to_travel() -> None:
    data = pack(replace(POLICY, weights=random_weights(3, 32)))
    assert len(data) < 40_000
    assert joined(pieces(data)) == data


CHANGED = ["is_data", "need_supplied", *FEATURES[2:]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a policy file is wanted"),
        (b"PK\x03\x04" + b"\0" * 100, "a policy file is wanted"),
        (save_tensors(random_weights(1)), "a policy file is wanted"),
        (bytes(MAX_BYTES + 1), f"at most {MAX_BYTES}"),
        (with_about(format=2), r"format: 2 is not allowed; must be 1"),
        (
            with_about(observation_version=1),
            rf"observation_version: 1 is not .* version {OBSERVATION_VERSION}",
        ),
        (with_about(features=CHANGED), r"features\[1\]: 'need_supplied' .* must be 'is_mpvu'"),
        (with_about(features=FEATURES[:-1]), r"features\[\d+\]: None .* must be"),
        (with_about(globals=["gap"]), r"globals\[0\]"),
        (with_about(colour="red"), "colour"),
        (with_about(training={"colour": "red"}), "colour"),
        (with_about(probes=1000), "probes: 1000 is not allowed; 0 to 32"),
        (with_about(probes="3"), "Expected `int`"),
        (with_about(ranges={"size": (0, 1)}), "ranges: 'size'"),
        (with_about(ranges={"log_samples": (1, 0)}), "ranges.log_samples"),
        (with_about(prior={"cost": 1.0}), "prior: "),
        (with_about(prior=dict.fromkeys(policy_file.PRIOR_WEIGHTS, -1.0)), "prior: .*above 0"),
        (with_about(fallback="random"), "digest"),
        (with_tensor("score.1.bias", np.full(1, np.nan, np.float32)), "score.1.bias: nan is"),
        (with_tensor("score.1.bias", np.full(1, 2e6, np.float32)), "score.1.bias: 2000000.0 is"),
        (with_tensor("score.1.bias", np.zeros(2, np.float32)), r"score.1.bias: \(2,\) .* \(1,\)"),
        (with_tensor("score.1.bias", np.zeros(1, np.float64)), "score.1.bias: 'float64'"),
        (with_tensor("score.1.bias", None), "score.1.bias: None"),
        (with_tensor("score.1.bias", np.ones(1, np.float32)), "digest"),
        (with_tensor("extra", np.zeros(1, np.float32)), "extra.*tensors are"),
        (with_tensor("encode.0.bias", np.zeros(513, np.float32)), r"encode.0.bias: \(513,\)"),
        (with_tensor("encode.0.bias", None), "encode.0.bias: None"),
    ],
)
def test_what_is_no_policy_of_this_version_is_refused(
    data: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(data)
    with pytest.raises(ScenarioError, match=message) as refused:
        load(path)
    assert str(path) in str(refused.value)


GOOD = pack(POLICY)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_byte_that_changed_is_noticed(place: int, change: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= change
    try:
        found = unpack(bytes(data), "p")
    except ScenarioError:
        return
    assert pack(found) == GOOD  # white space of the header, or its like


@given(st.binary(max_size=300), st.integers(0, 40))
def test_bytes_of_a_stranger_are_refused_and_nothing_else(data: bytes, start: int) -> None:
    with pytest.raises(ScenarioError):
        unpack(GOOD[:start] + data, "p")


def test_a_policy_that_would_be_refused_is_not_written(tmp_path: Path) -> None:
    broken = replace(POLICY, weights=dict(POLICY.weights) | {"score.1.bias": np.array([np.inf])})
    with pytest.raises(ScenarioError, match="inf is not allowed"):
        save(broken, tmp_path / "p.safetensors")
    assert not (tmp_path / "p.safetensors").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"absent\.safetensors.*No such file"):
        load(tmp_path / "absent.safetensors")
