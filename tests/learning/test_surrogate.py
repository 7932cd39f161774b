"""The surrogate: learning by formula, the same bytes everywhere, and no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.datasets import classes as class_rows
from aats.learning.probe import probe
from aats.learning.surrogate import SurrogateMethod
from aats.learning.weights import initial_payload
from aats.packet import Architecture, EstimateSource, Target
from aats.roles.data import NodeData, SkillData
from aats.testing.methods import SKILL, Walk, header_for, reference_for

CLASSES = 5
KNOWLEDGE = [697424, 375266, 375376, 390004, 653660]
VERSION = "56a1b9282d14f43aaf2c344736e9abaa5d6d68cfb3bf586e38e72d7caafccbe8"
ARCHITECTURE = Architecture("surrogate", {"classes": {SKILL: CLASSES}})


def rows(samples: int, wrong: float = 0.0, classes: tuple[int, ...] = (0, 1, 2, 3, 4)) -> SkillData:
    all_rows = class_rows(CLASSES, 5 * samples)
    keep = np.isin(all_rows.y, classes)
    x, y = all_rows.x[keep][:samples], all_rows.y[keep][:samples].copy()
    flipped = np.random.default_rng(0).random(samples) < wrong
    y[flipped] = (y[flipped] + 1) % CLASSES
    return SkillData.of(SKILL, x, y, num_classes=CLASSES)


def walk() -> Walk:
    return Walk(
        header_for(ARCHITECTURE, requirement=[Target(SKILL, 0.9)]),
        initial_payload(ARCHITECTURE, 0, reference_for(rows(100))),
    )


def test_the_version_of_a_walk_never_changes() -> None:
    packet = walk()
    for i, classes in enumerate([(0, 1), (2, 3, 4), (0, 4)]):
        packet.visit(SurrogateMethod(), NodeData.of(rows(60, 0.1, classes)), NodeId(f"n{i}"))
    knowledge = packet.payload.arrays("model.")[f"model.knowledge.{SKILL}"]
    assert knowledge.tolist() == KNOWLEDGE
    assert packet.header.version == VERSION


def test_it_learns_forgets_and_is_harmed() -> None:
    packet = walk()
    learned = packet.visit(SurrogateMethod(), NodeData.of(rows(400)))
    assert learned.gain > 0.4
    assert learned.samples == 2 * rows(400).samples
    assert {e.source for e in learned.estimates} == {EstimateSource.LOCAL, EstimateSource.REFERENCE}
    forgot = packet.visit(SurrogateMethod(), NodeData.of(rows(400, 0.0, (0,))))
    assert forgot.loss_after > forgot.loss_before
    harmed = walk().visit(SurrogateMethod(), NodeData.of(rows(400, 0.9)))
    assert harmed.gain < learned.gain


def test_a_probe_finds_the_clean_node() -> None:
    payload = walk().payload
    clean = probe(ARCHITECTURE, payload, {SKILL: rows(200).minibatch(32, 0)})
    bad = probe(ARCHITECTURE, payload, {SKILL: rows(200, 0.9).minibatch(32, 0)})
    assert clean.gain > bad.gain
    assert clean.alignment > 0 > bad.alignment


def test_real_rows_are_refused_in_words() -> None:
    data = NodeData.of(SkillData.of(SKILL, np.ones((10, 4)), np.arange(10) % CLASSES))
    with pytest.raises(ModelError, match="use the data source 'classes'"):
        walk().visit(SurrogateMethod(), data)


def test_a_wrong_config_is_named() -> None:
    with pytest.raises(ModelError, match="allowed is"):
        initial_payload(Architecture("surrogate", {"classes": 5}), 0)


def test_it_runs_without_torch() -> None:
    code = (
        "import sys, runpy; w = runpy.run_path(sys.argv[1])['walk']();"
        "from aats.learning.surrogate import SurrogateMethod;"
        "import aats.roles.runner; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, __file__], check=False).returncode == 0
