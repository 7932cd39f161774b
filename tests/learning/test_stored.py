from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aats.config.load import load_scenario
from aats.errors import ModelError
from aats.learning.backend import backend_of
from aats.learning.lora import Contribution, LoraModel
from aats.learning.stored import read_model
from aats.learning.weights import initial_payload
from aats.oam.rundir import write_model
from aats.packet import Architecture
from aats.payload import MODEL, pack

BASE = {"name": "mlp", "features": 4, "hidden": [6], "classes": 3}
MLP = Architecture("mlp", {k: v for k, v in BASE.items() if k != "name"})
LORA = Architecture("lora", {"base": BASE})

SCENARIO = """
[topology]
edges = [["a", "b"]]
[nodes.a]
roles = ["owner"]
[data.skills.s]
source = "digits"
[[packets]]
name = "p"
owner = "a"
requirement = [{ skill = "s", value = 0.5, verifier = "any" }]
model = { name = "mlp", features = 64, classes = 10 }
weights = "old/model.safetensors"
seed = 7
"""


def test_a_written_model_is_read_again_with_its_version(tmp_path: Path) -> None:
    payload = initial_payload(MLP, 3)
    write_model(tmp_path / "m.safetensors", payload)
    assert read_model(tmp_path / "m.safetensors", MLP).manifest == payload.manifest


def test_a_chain_is_read_again_with_its_version(tmp_path: Path) -> None:
    model = backend_of(LORA).load(LORA, initial_payload(LORA, 3)).module
    assert isinstance(model, LoraModel)
    for hop in (2, 10):
        model.add(Contribution(hop, "n.1"), 2, hop)  # type: ignore[arg-type]
    payload = pack({MODEL + n: t.detach().numpy() for n, t in model.state_dict().items()})
    write_model(tmp_path / "m.safetensors", payload)
    again = read_model(tmp_path / "m.safetensors", LORA)
    assert again.manifest.version(MODEL) == payload.manifest.version(MODEL)


def test_plain_weights_are_the_base_of_a_chain(tmp_path: Path) -> None:
    write_model(tmp_path / "m.safetensors", initial_payload(MLP, 3))
    payload = initial_payload(LORA, 8, weights=tmp_path / "m.safetensors")
    plain = initial_payload(MLP, 3).arrays()
    for name, array in payload.arrays(MODEL).items():
        np.testing.assert_array_equal(array, plain[name.replace("base.", "", 1)])


def test_bfloat16_stays_what_it_is(tmp_path: Path) -> None:
    tensors = {n: torch.ones(s, dtype=torch.bfloat16)
               for n, s in (("1.weight", (3, 4)), ("1.bias", (3,)))}  # fmt: skip
    save_file(tensors, tmp_path / "m.safetensors")
    architecture = Architecture("logistic", {"features": 4, "classes": 3})
    payload = initial_payload(architecture, 0, weights=tmp_path / "m.safetensors")
    assert {t.dtype for t in payload.manifest.tensors} == {"bf16"}


def test_what_does_not_fit_names_the_file(tmp_path: Path) -> None:
    write_model(tmp_path / "m.safetensors", initial_payload(MLP, 3))
    other = Architecture("mlp", {"features": 5, "hidden": [6], "classes": 3})
    with pytest.raises(ModelError, match=r"m\.safetensors: .*'1\.weight' has shape"):
        read_model(tmp_path / "m.safetensors", other)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name in ("bad.safetensors", "lost.safetensors"):
        with pytest.raises(ModelError, match=rf"{name}: no file of weights"):
            read_model(tmp_path / name, MLP)


def test_a_scenario_names_the_file_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    scenario = load_scenario(tmp_path)
    assert scenario.packets[0].weights == str(tmp_path.resolve() / "old" / "model.safetensors")
    assert scenario.packets[0].seed == 7
