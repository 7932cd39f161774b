"""Chains on language models of `transformers`, as `peft` reads them and as it gives them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from aats.errors import MissingExtraError, ModelError
from aats.ids import NodeId
from aats.learning.adapters import read_pretrained, write_adapters
from aats.learning.hf import NextToken
from aats.learning.lora import Contribution, LoraModel, build_lora
from aats.learning.models import initialise
from aats.learning.stored import read_model
from aats.packet import Architecture
from aats.payload import MODEL

GPT2 = {
    "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 12,
    "vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16,
    "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 12,
    "vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
ROWS = torch.arange(30).reshape(3, 10) % 11
EXTRA = "the extra llm is not installed"
needs_extra = [
    pytest.mark.slow,  # the libraries take long to import
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]


def chain(config: dict[str, Any], targets: list[str]) -> LoraModel:
    """Return a chain of two contributions of unlike ranks that change the model."""
    model = build_lora({"base": {"name": "hf", **config}, "targets": targets})
    assert isinstance(model, LoraModel)
    initialise(model, 1)
    torch.manual_seed(0)
    for hop, node, rank in ((1, "n1.x", 2), (4, "n2", 3)):
        for pair in cast(Any, model.add(Contribution(hop, NodeId(node)), rank, hop)).children():
            torch.nn.init.normal_(pair.b, std=0.1)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return cast(torch.Tensor, model.eval()(input_ids=ROWS).logits)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model = LoraModel(NextToken(torch.nn.Linear(4, 2)), ["model.weight"], 8.0)
    model.add(Contribution(1, NodeId("n")), 1, 0)
    with pytest.raises(MissingExtraError, match=r"writing adapters needs the extra 'llm': pip"):
        write_adapters(model, tmp_path)


def test_a_folder_is_no_start_for_other_models(tmp_path: Path) -> None:
    plain = Architecture("mlp", {"features": 4, "classes": 2})
    for architecture in (plain, Architecture("lora", {"base": {"name": "mlp", **plain.config}})):
        with pytest.raises(ModelError, match="a folder; only the architecture 'hf' starts from"):
            read_model(tmp_path, architecture)


class TestWithPeft:
    pytestmark = needs_extra

    @pytest.fixture(autouse=True)
    def peft(self) -> Any:
        pytest.importorskip("transformers", reason=EXTRA)
        return pytest.importorskip("peft", reason=EXTRA)

    @pytest.mark.parametrize(
        ("config", "targets", "count"),
        [
            (GPT2, ["c_attn", "c_fc"], 4),
            (GPT2, ["*"], 9),
            (LLAMA, ["q_proj", "v_proj"], 4),
            (LLAMA, ["*"], 15),
        ],
    )
    def test_peft_computes_what_the_chain_does(
        self, config: dict[str, Any], targets: list[str], count: int, tmp_path: Path, peft: Any
    ) -> None:
        from transformers import AutoModelForCausalLM

        model = chain(config, targets)
        assert len(model.targets) == count
        folders = write_adapters(model, tmp_path / "out")
        assert [f.name for f in folders] == ["out", "1@n1-x", "4@n2"]

        def base() -> Any:
            return AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base")

        with torch.no_grad():
            torch.testing.assert_close(logits(base()), model.base(ROWS, every=True))
            every = model(ROWS, every=True)
            torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(base(), folders[0])),
                                       every)  # fmt: skip
            parts = peft.PeftModel.from_pretrained(base(), folders[1], adapter_name="first")
            with model.without(Contribution(4, NodeId("n2"))):
                first = model(ROWS, every=True)
            torch.testing.assert_close(logits(parts), first)
            parts.load_adapter(folders[2], adapter_name="second")
            parts.base_model.set_adapter(["first", "second"])
            torch.testing.assert_close(logits(parts), every)
        assert not torch.allclose(every, first)
        again = peft.AutoPeftModelForCausalLM.from_pretrained(folders[0])
        torch.testing.assert_close(logits(again), every)

    @pytest.mark.parametrize("config", [GPT2, LLAMA])
    def test_names_choose_the_weights_that_they_choose_in_peft(
        self, config: dict[str, Any], peft: Any
    ) -> None:
        for names in (["c_attn"], ["c_attn", "mlp.c_proj"]) if config is GPT2 else (["q_proj"],):
            model = chain(config, names)
            inner = cast(Any, model.base).model
            adapted = peft.get_peft_model(inner, peft.LoraConfig(target_modules=names))
            assert {*adapted.targeted_module_names} == {
                target.removeprefix("model.").removesuffix(".weight") for target in model.targets
            }

    def test_a_packet_starts_from_an_adapter_and_its_base(self, tmp_path: Path) -> None:
        model = chain(GPT2, ["*"])
        folders = write_adapters(model, tmp_path / "out")
        for place, wanted in ((folders[0], model), (tmp_path / "out" / "base", model.base)):
            architecture = Architecture("lora", {"base": {"name": "hf", **GPT2}})
            payload = read_model(place, architecture)
            assert all(t.name.startswith(f"{MODEL}base.model.") for t in payload.manifest.tensors)
            start = build_lora(architecture.config).eval()
            start.load_state_dict(
                {n.removeprefix(MODEL): torch.from_numpy(a.copy())
                 for n, a in payload.arrays(MODEL).items()}
            )  # fmt: skip
            with torch.no_grad():
                torch.testing.assert_close(start(ROWS), wanted(ROWS))

    def test_tied_weights_start_as_two(self, tmp_path: Path) -> None:
        import transformers

        config = transformers.AutoConfig.for_model(**GPT2)
        saved = transformers.AutoModelForCausalLM.from_config(config)
        saved.save_pretrained(tmp_path / "tied")
        tensors = read_pretrained(tmp_path / "tied", GPT2)
        torch.testing.assert_close(
            tensors["model.lm_head.weight"], tensors["model.transformer.wte.weight"]
        )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"n_embd": 32}, "describes another model: n_embd 32, there 16"),
            ({"n_head": 4}, "describes another model: n_head 4, there 2"),
            ({"activation_function": "relu"}, "activation_function 'relu', there 'gelu_new'"),
        ],
    )
    def test_a_config_of_another_model_is_told(
        self, change: dict[str, Any], said: str, tmp_path: Path
    ) -> None:
        write_adapters(chain(GPT2, ["c_attn"]), tmp_path)
        with pytest.raises(ModelError, match=said):
            read_pretrained(tmp_path / "base", {**GPT2, **change})

    def test_what_is_no_adapter_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no model that can be read"):
            read_pretrained(tmp_path, GPT2)
        model = chain(GPT2, ["c_attn"])
        write_adapters(model, tmp_path)
        config = tmp_path / "adapter_config.json"
        config.write_text(config.read_text().replace(str(tmp_path / "base"), "somewhere/gpt2"))
        with pytest.raises(ModelError, match="on 'somewhere/gpt2'; wanted is LORA, on a folder"):
            read_pretrained(tmp_path, GPT2)
        (tmp_path / "adapter_model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"there is no adapter_model\.safetensors"):
            read_pretrained(tmp_path, GPT2)
        for c in model.contributions:
            model.remove(c)
        with pytest.raises(ModelError, match="the chain has no contributions to write"):
            write_adapters(model, tmp_path)
