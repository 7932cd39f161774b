from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aats.errors import MissingExtraError, ModelError
from aats.ids import NodeId
from aats.learning.hf import TYPES, build_hf
from aats.learning.language import everywhere
from aats.learning.lora_method import LoraMethod
from aats.learning.modules import ModuleBackend
from aats.learning.weights import initial_payload
from aats.packet import Architecture, Target
from aats.roles.data import NodeData, SkillData
from aats.testing.methods import Walk, header_for

TEXT = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
LENGTH = 24
SKILL = "next-letter"


def config_of(vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 48, "n_positions": 32,
        "vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"needs the extra 'llm': pip install"):
        build_hf(config_of(65))


@pytest.mark.slow  # the library takes long to import
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "'model_type' is 'bert', allowed are gpt2"),
        ({"model_type": None}, "'model_type' is None"),
        ({"n_layer": 257}, "'n_layer' is 257, allowed is 1-256"),
        ({"n_embd": 1 << 21}, "'n_embd' is 2097152, allowed are plain values"),
        ({"auto_map": {"AutoConfig": "evil.py"}}, "'auto_map' is"),
        ({"attn": "x"}, "'attn' is unknown to gpt2"),
        ({"n_head": 5}, "gpt2: "),
    ],
)
def test_a_wrong_config_is_named(change: dict[str, Any], message: str) -> None:
    pytest.importorskip("transformers", reason="the extra llm is not installed")
    with pytest.raises(ModelError, match=message):
        build_hf({**config_of(65), **change})


SMALL: dict[str, Any] = {
    "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16,
    "max_position_embeddings": LENGTH,
}  # fmt: skip
WIDE = {**SMALL, "intermediate_size": 24}
GROUPED = {**WIDE, "num_key_value_heads": 1}
OF_TYPE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": LENGTH},
    "gpt_neox": WIDE,
    "llama": GROUPED,
    "mistral": {**GROUPED, "pad_token_id": 0},
    "opt": {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16, "pad_token_id": 0},
    "qwen2": GROUPED,
}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_travels_and_tells_what_follows_each_token(kind: str) -> None:
    pytest.importorskip("transformers", reason="the extra llm is not installed")
    names = {"model_type": kind, "vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
    architecture = Architecture("lora", {"base": {"name": "hf", **names, **OF_TYPE[kind]}})
    model = ModuleBackend().load(architecture, initial_payload(architecture, 1)).module.eval()
    x = torch.arange(2 * LENGTH).reshape(2, LENGTH) % 11
    changed = x.clone()
    changed[:, -1] = 0
    with torch.no_grad():
        every = everywhere(model, x).unflatten(0, (2, LENGTH))
        torch.testing.assert_close(every[:, -1], model(x))
        other = everywhere(model, changed).unflatten(0, (2, LENGTH))
        torch.testing.assert_close(every[:, :-1], other[:, :-1])


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_adapters_of_a_language_model_learn_shakespeare_from_node_to_node() -> None:
    pytest.importorskip("transformers", reason="the extra llm is not installed")
    if not TEXT.exists():
        pytest.skip(f"{TEXT} is not there")
    text = np.frombuffer(TEXT.read_bytes(), np.uint8)
    letters, tokens = np.unique(text, return_inverse=True)
    tokens = tokens.astype(np.int64)
    base = {"name": "hf", **config_of(len(letters))}
    architecture = Architecture("lora", {"base": base, "alpha": 16})

    def data(seed: int, rows: int = 1500) -> SkillData:
        start = np.random.default_rng(seed).integers(0, len(tokens) - LENGTH - 1, rows)
        x = np.stack([tokens[i : i + LENGTH] for i in start])
        return SkillData.of(SKILL, x, tokens[start + LENGTH], num_classes=len(letters))

    trusted = data(99, 400)
    header = header_for(architecture, requirement=[Target(SKILL, 0.9)])
    reference = {SKILL: (trusted.train_x, trusted.train_y)}
    walk = Walk(header, initial_payload(architecture, 1, reference))
    method = LoraMethod(epochs=3, lr=0.3, rank_min=8, rank_max=8)
    losses = []
    for i in range(3):
        result = walk.visit(method, NodeData.of(data(i)), NodeId(f"n{i}"))
        assert result.action == "train"
        losses += [result.loss_before, result.loss_after]
    assert losses[0] > np.log(len(letters))  # no better than guessing
    share = np.bincount(tokens) / len(tokens)
    assert losses[-1] < -(share * np.log(share)).sum() - 0.2  # more than the letters' frequencies
