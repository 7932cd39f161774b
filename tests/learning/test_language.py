"""Models of text: what they see, what rows teach them, and what measures make of that."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.evaluate import inverse_perplexity
from aats.learning.language import build_language, everywhere, lessons
from aats.learning.lora import Contribution, LoraModel, build_lora
from aats.learning.lora_method import LoraMethod
from aats.learning.measures.options import Measures
from aats.learning.models import initialise
from aats.learning.sequential import SequentialMethod
from aats.learning.weights import initial_payload
from aats.packet import Architecture, Target
from aats.payload import MODEL, pack
from aats.roles.data import NodeData, SkillData
from aats.testing.methods import Walk, header_for

SKILL = "counting"
LENGTH = 12
SMALL = {"length": LENGTH, "vocabulary": 16, "width": 32}
BASE = {"name": "language", **SMALL}
PLAIN, LORA = Architecture("language", SMALL), Architecture("lora", {"base": BASE, "alpha": 16})


def counting(seed: int, step: int, rows: int = 150) -> SkillData:
    """Return sequences that count up by a step, modulo the vocabulary."""
    start = np.random.default_rng(seed).integers(0, 16, rows)
    x = (start[:, None] + step * np.arange(LENGTH + 1)) % 16
    return SkillData.of(SKILL, x[:, :-1], x[:, -1], num_classes=16)


def model() -> torch.nn.Module:
    made = build_language(SMALL)
    initialise(made, 3)
    return made.eval()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 5}, "'width' is 32, allowed is a multiple of heads, 5"),
        ({"vocabulary": 1}, "'vocabulary' is 1, allowed is a whole number 2-"),
        ({"length": None}, "'length' is None, allowed is"),
        ({"depth": 300}, "'depth' is 300, allowed is 1-256"),
        ({"layers": 2}, "'layers' is unknown"),
    ],
)
def test_a_wrong_config_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_language({**SMALL, **change})


def test_no_place_sees_what_follows_it() -> None:
    made, x = model(), torch.arange(LENGTH)[None] % 16
    other = x.clone()
    other[0, 7:] = 3
    with torch.no_grad():
        a, b = everywhere(made, x), everywhere(made, other)
        torch.testing.assert_close(a[:7], b[:7])
        assert not torch.allclose(a[8:], b[8:])
        torch.testing.assert_close(made(x), a[-1:])


def test_a_row_teaches_every_token_but_its_first() -> None:
    x, y = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([9, 8])
    logits, labels = lessons(model(), x, y, SKILL)
    assert labels.tolist() == [2, 3, 9, 5, 6, 8]
    assert logits.shape == (6, 16)
    plain = torch.nn.Sequential(torch.nn.Linear(3, 4))
    logits, labels = lessons(plain, x.float(), y, SKILL)
    assert logits.shape == (2, 4)
    assert labels is y


def test_a_chain_of_adapters_teaches_the_same() -> None:
    chain = build_lora({"base": BASE, "targets": ["query", "value"]})
    assert isinstance(chain, LoraModel)
    assert chain.targets == tuple(f"layers.{i}.{n}.weight" for i in (0, 1) for n in
                                  ("query", "value"))  # fmt: skip
    initialise(chain, 3)
    x = torch.arange(LENGTH)[None] % 16
    with torch.no_grad():
        before = everywhere(chain, x)
        torch.testing.assert_close(before, everywhere(chain.base, x))
        chain.add(Contribution(1, NodeId("n")), 2, 0)
        torch.nn.init.ones_(chain.pairs(chain.contributions[0])["layers.0.value.weight"].b)
        assert not torch.allclose(everywhere(chain, x), before)


def test_adapters_of_a_trained_model_learn_from_node_to_node() -> None:
    walk = Walk(header_for(PLAIN, requirement=[Target(SKILL, 0.9)]), initial_payload(PLAIN, 1))
    walk.visit(
        SequentialMethod(lr=0.3, momentum=0.9, epochs=4), NodeData.of(counting(0, 1)), NodeId("n0")
    )
    base = walk.payload.arrays(MODEL).items()
    start = pack({f"{MODEL}base.{n.removeprefix(MODEL)}": array.copy() for n, array in base})
    steps = counting(1, 2), counting(2, 3)
    chain = Walk(header_for(LORA, requirement=[Target(SKILL, 0.9)]), start)
    method = LoraMethod(epochs=12, lr=0.5, momentum=0.9)
    for number, data in enumerate(steps):
        result = chain.visit(method, NodeData.of(data), NodeId(f"n{number + 1}"))
        assert result.loss_after < result.loss_before - 1


@pytest.mark.parametrize("measures", [Measures(distil=0.5), Measures(masked=True)])
def test_measures_that_look_at_logits_see_those_of_every_token(measures: Measures) -> None:
    walk = Walk(header_for(PLAIN, requirement=[Target(SKILL, 0.9)]), initial_payload(PLAIN, 1))
    result = walk.visit(
        SequentialMethod(lr=0.1), NodeData.of(counting(0, 1)), NodeId("n"), measures=measures
    )
    assert result.action == "train"
    assert result.loss_after < result.loss_before


def test_inverse_perplexity_is_the_geometric_mean_of_the_labels_probabilities() -> None:
    p = np.array([[0.5, 0.5], [0.125, 0.875]])
    found = inverse_perplexity(np.log(p), np.array([0, 0]))
    assert found.value == pytest.approx(0.25)
    assert 0 < found.low < found.value < found.high <= 1
    guess = inverse_perplexity(np.log(np.full((5, 4), 0.25)), np.arange(5) % 4)
    assert (guess.low, guess.value, guess.high) == pytest.approx((0.25, 0.25, 0.25))
