"""Private text at several nodes: a chain of adapters learns it, is judged, and forgets a node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from aats.cli import main
from aats.compose import compose
from aats.config.load import load_scenario
from aats.ledger.file import read_ledger, verify_ledger
from aats.lineage import RecordKind
from aats.oam.rundir import write_run
from aats.oam.view import RunView
from aats.packet import EstimateSource, Header
from aats.simulate import simulate
from aats.unlearning.past import Past

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "language"
SMALL = (
    "data.skills.reading.source.length=8", "data.skills.reading.reference=64",
    "packets.0.requirement.0.metric=inverse-perplexity", "packets.0.requirement.0.value=0.9",
)  # fmt: skip
TINY = ["packets.0.model.length=8", "packets.0.model.width=16", "packets.0.model.depth=1"]
TINY_CHAIN = [
    'packets.0.model={ name = "lora", targets = ["query", "value", "head"], '
    'base = { name = "language", length = 8, width = 16, depth = 1 } }'
]
SHORT = ["packets.0.method.max_steps=15", "packets.0.method.visits=2"]
GPT2 = (
    'name = "hf", model_type = "gpt2", n_layer = 1, n_head = 2, n_embd = 32, n_positions = 8, '
    "vocab_size = 256, bos_token_id = 0, eos_token_id = 0"
)


def run(name: str, folder: Path, *settings: str) -> Header:
    """Run a file of the example in the simulated world; write what a run leaves."""
    scenario = load_scenario(FOLDER / name, list(settings))
    view = RunView()
    delivered = simulate(scenario, compose(scenario), view.apply)
    folder.mkdir()
    (folder / "events.jsonl").touch()
    write_run(folder, scenario, view, delivered, {}, {"world": "sim"})
    ((header, _),) = delivered.values()
    return header


def test_a_chain_of_adapters_on_text_is_verified_and_forgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = run("scenario.toml", tmp_path / "base", *SMALL, *TINY, *SHORT)
    (verdict,) = (s for s in base.skills if s.source is EstimateSource.MPVU)
    assert verdict.metric == "inverse-perplexity"
    assert 2 / 256 < verdict.low < verdict.value < verdict.high < 1
    weights = f"packets.0.weights={tmp_path / 'base' / 'models' / 'base.safetensors'}"
    chain = run("adapters.toml", tmp_path / "run", *SMALL, *TINY_CHAIN, *SHORT, weights)
    notes = [r.note for r in chain.chain if r.kind is RecordKind.TRAIN]
    assert [note.partition("@")[2] for note in notes] == ["desk of rank 8", "types of rank 8"]
    assert main(["ledger", "forget", "desk", str(tmp_path / "run"), "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [gone.partition("@")[2] for gone in found["gone"]] == ["desk"]
    (left,) = Past.read(tmp_path / "run").model().contributions
    assert left.node == "types"
    ledger = tmp_path / "run" / "ledger" / "reader.jsonl"
    verify_ledger(ledger)
    assert read_ledger(ledger)[-1].kind is RecordKind.REMOVE
    assert main(["adapters", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "the base must be of type 'hf'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_ends_as_its_page_says(tmp_path: Path) -> None:
    base = run("scenario.toml", tmp_path / "base")
    assert base.requirement_met
    weights = f"packets.0.weights={tmp_path / 'base' / 'models' / 'base.safetensors'}"
    chain = run("adapters.toml", tmp_path / "run", weights)
    assert chain.requirement_met
    before, after = (
        next(s.value for s in header.skills if s.source is EstimateSource.MPVU)
        for header in (base, chain)
    )
    assert after > before + 0.08


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # those of the libraries
def test_a_transformer_goes_from_the_network_into_peft(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra llm is not installed")
    peft = pytest.importorskip("peft", reason="the extra llm is not installed")
    run("scenario.toml", tmp_path / "base", *SMALL, *SHORT, f"packets.0.model={{ {GPT2} }}")
    weights = f"packets.0.weights={tmp_path / 'base' / 'models' / 'base.safetensors'}"
    model = f'packets.0.model={{ name = "lora", targets = ["c_attn"], base = {{ {GPT2} }} }}'
    run("adapters.toml", tmp_path / "run", *SMALL, *SHORT, model, weights)
    assert main(["adapters", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert main(["adapters", str(tmp_path / "run"), str(tmp_path / "out")]) == 2  # is there already
    adapted = cast(Any, peft).AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    chain = Past.read(tmp_path / "run").model().eval()
    assert len(chain.contributions) == 2
    x = torch.arange(24).reshape(3, 8)
    with torch.no_grad():
        every = chain(x, every=True)
        torch.testing.assert_close(adapted(input_ids=x).logits, every, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(every, chain.base(x, every=True), atol=1e-3)
