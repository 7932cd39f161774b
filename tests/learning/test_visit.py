"""A visit: bit-identical by seed, guarded, and it refuses what cannot be used."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning import models
from aats.learning.method import Guard
from aats.learning.noop import NoopMethod
from aats.learning.sequential import SequentialMethod
from aats.learning.visit import capped, visit_by
from aats.learning.weights import initial_payload
from aats.node.tasks import VisitTask
from aats.packet import Architecture, EstimateSource, Target
from aats.payload import MODEL, Payload, pack
from aats.roles.data import NodeData, SkillData
from aats.testing.methods import CLASSES, FEATURES, MLP, NODE, SKILL, Walk, blobs, header_for
from aats.testing.methods import reference_for as reference

DATA = NodeData.of(blobs(120))


def walk(seed: int = 0, architecture: Architecture = MLP) -> Walk:
    return Walk(
        header_for(architecture, seed=seed),
        initial_payload(architecture, seed, reference(blobs(60, 9))),
    )


def version(seed: int) -> str:
    packet = walk(seed)
    for node in ("a", "b", "a"):
        packet.visit(SequentialMethod(momentum=0.5), DATA, NodeId(node))
    return packet.header.version


def test_one_seed_gives_one_version() -> None:
    assert version(4) == version(4) != version(5)


@pytest.mark.slow
def test_one_seed_gives_one_version_in_any_process() -> None:
    code = f"import runpy; print(runpy.run_path({__file__!r})['version'](4))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert version(4) == other.stdout.strip()


def test_results_do_not_depend_on_threads_or_torchs_own_seed() -> None:
    wanted, threads = version(1), torch.get_num_threads()
    torch.manual_seed(123)
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    try:
        assert version(1) == wanted
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)


def test_a_visit_learns_and_reports_it() -> None:
    packet = walk()
    result = packet.visit(SequentialMethod(lr=0.1, epochs=5), DATA)
    assert result.action == "train"
    assert result.loss_after < result.loss_before
    assert result.gain > 0.2
    samples = DATA.skills[SKILL].samples
    assert (result.samples, result.steps) == (5 * samples, 15)
    assert result.flops > 6 * samples
    assert sum(result.labels_used[SKILL]) == result.samples
    sources = {e.source: e for e in result.estimates}
    assert set(sources) == {EstimateSource.REFERENCE, EstimateSource.LOCAL}
    for estimate in sources.values():
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.version == result.manifest.version(MODEL) == packet.header.version
    packet.payload.verify()
    assert packet.visit(SequentialMethod(), DATA).labels_used[SKILL] > result.labels_used[SKILL]


def test_a_private_arena_gives_what_a_read_only_one_gives() -> None:
    packet, private = walk(), initial_payload(MLP, 0, reference(blobs(60, 9)))
    before = bytes(packet.payload.arena)
    frozen = packet.payload.arena
    wanted = packet.visit(SequentialMethod(), DATA)
    assert bytes(frozen) == before
    result = visit_by(
        SequentialMethod(), Guard(), VisitTask(walk().header, NODE), private, DATA,
        node=NODE, allocate=lambda total: memoryview(bytearray(total)),
    )  # fmt: skip
    assert result.manifest == wanted.manifest


def test_reference_tensors_keep_their_digests_and_bytes() -> None:
    packet = walk()
    before = packet.payload.arrays("ref.")
    packet.visit(SequentialMethod(), DATA)
    after = packet.payload.arrays("ref.")
    assert all(np.array_equal(before[n], after[n]) for n in before)


def test_frozen_weights_keep_their_digest_and_trained_ones_do_not() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(FEATURES, FEATURES).requires_grad_(False)
            self.head = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.base(x).relu())
            return out

    models.local("half", lambda config: Half())
    packet = walk(0, Architecture("half"))
    before = {t.name: t.digest for t in packet.payload.manifest.tensors}
    packet.visit(SequentialMethod(), DATA)
    after = {t.name: t.digest for t in packet.payload.manifest.tensors}
    changed = {n for n in after if after[n] != before[n]}
    assert changed == {"model.head.weight", "model.head.bias"}
    packet.payload.verify()


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_divergence_is_undone_and_later_steps_are_shorter(with_reference: bool) -> None:
    packet = walk() if with_reference else Walk(header_for(), initial_payload(MLP, 0))
    before = packet.payload.manifest
    result = packet.visit(SequentialMethod(lr=1e6), DATA, guard=Guard())
    assert result.action == "rolled-back"
    assert "loss" in result.note
    assert result.manifest == before
    assert result.gain == 0.0
    assert result.trained["diverged"] == 1
    assert result.labels_used == {}
    assert all(e.version == before.version(MODEL) for e in result.estimates)


def test_weights_that_are_not_finite_are_undone() -> None:
    packet = walk()
    huge = NodeData.of(
        replace(DATA.skills[SKILL], train_x=DATA.skills[SKILL].train_x * np.float32(1e30))
    )
    result = packet.visit(SequentialMethod(clip=0.0), huge, guard=Guard())
    assert result.action == "rolled-back"
    assert "NaN" in result.note or "not finite" in result.note


def test_data_that_hurt_are_undone_but_are_no_divergence() -> None:
    packet = walk()
    packet.visit(SequentialMethod(lr=0.1, epochs=5), DATA)
    bad = NodeData.of(blobs(200, 3, wrong=1.0))
    result = packet.visit(SequentialMethod(lr=0.1, epochs=5), bad, guard=Guard())
    assert result.action == "rolled-back"
    assert result.trained["diverged"] == 0


def test_a_learning_rate_ten_times_too_large_recovers() -> None:
    def final(lr: float) -> float:
        packet = walk()
        for hop in range(24):
            node = hop % 4
            packet.visit(
                SequentialMethod(lr=lr, clip=0.0), NodeData.of(blobs(80, node)),
                NodeId(f"n{node}"), Guard(),
            )  # fmt: skip
        return next(e.value for e in packet.header.skills if e.source is EstimateSource.REFERENCE)

    assert final(3.0) >= final(0.3) - 0.02


def test_a_model_with_nan_is_refused() -> None:
    packet = walk()
    arrays = {n: a.copy() for n, a in packet.payload.arrays().items()}
    arrays["model.1.bias"].view(np.float32)[0] = np.nan
    packet.payload = pack(arrays)
    with pytest.raises(ModelError, match=r"'model\.1\.bias' has NaN"):
        packet.visit(SequentialMethod(), DATA)


def test_a_wrong_shape_names_tensor_shape_and_expected() -> None:
    packet = walk(0, Architecture("mlp", {"features": FEATURES, "hidden": [5], "classes": 3}))
    packet.header = header_for(MLP)
    with pytest.raises(ModelError, match=r"'1\.weight' has shape \[5, 8\], expected is \[16, 8\]"):
        packet.visit(SequentialMethod(), DATA)


def test_rows_of_another_width_are_refused_in_words() -> None:
    other = NodeData.of(SkillData.of(SKILL, np.zeros((10, 5)), np.arange(10) % 3))
    with pytest.raises(ModelError, match=r"rows of skill 'blobs', float32\[5\], do not fit"):
        walk().visit(SequentialMethod(), other)


def test_labels_beyond_the_models_classes_are_refused() -> None:
    other = NodeData.of(blobs(40, classes=5))
    with pytest.raises(ModelError, match="model has 3 classes"):
        walk().visit(SequentialMethod(), other)


def test_noop_moves_nothing_and_builds_no_model() -> None:
    payload = initial_payload(MLP, 0)
    packet = Walk(header_for(Architecture("no-such-model")), payload)
    result = packet.visit(NoopMethod(), DATA)
    assert result.manifest is payload.manifest
    assert (result.steps, result.estimates) == (0, ())
    judged = walk().visit(NoopMethod(), DATA)
    assert [e.source for e in judged.estimates] == [EstimateSource.REFERENCE]


def test_a_node_without_the_wanted_skill_trains_nothing() -> None:
    packet = walk()
    result = packet.visit(SequentialMethod(), NodeData.of(blobs(30, skill="other")))
    assert (result.steps, result.manifest) == (0, walk().payload.manifest)


def test_a_node_that_keeps_its_histogram_reports_labels_evenly() -> None:
    uneven = blobs(90)
    uneven = replace(uneven, train_y=np.zeros_like(uneven.train_y))
    used = walk().visit(SequentialMethod(), NodeData.of(uneven, show_labels=False)).labels_used
    assert used[SKILL] == [uneven.samples / 3] * 3


def test_bfloat16_weights_stay_bfloat16() -> None:
    packet = walk()
    arrays = packet.payload.arrays()
    half = {
        n: torch.from_numpy(a.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
        if n.startswith(MODEL)
        else a
        for n, a in arrays.items()
    }
    packet.payload = pack(half, dtypes=dict.fromkeys([n for n in half if MODEL in n], "bf16"))
    result = packet.visit(SequentialMethod(lr=0.1, epochs=5), DATA)
    assert {t.dtype for t in result.manifest.tensors if t.name.startswith(MODEL)} == {"bf16"}
    assert result.gain > 0.2
    packet.payload.verify()


def test_a_writable_arena_is_worked_on_in_place() -> None:
    from aats.learning.modules import ModuleBackend

    payload = initial_payload(MLP, 0)
    loaded = ModuleBackend().load(MLP, payload)
    address = payload.array(payload.manifest.tensors[0]).ctypes.data
    assert next(iter(loaded.module.parameters())).data_ptr() == address
    frozen = Payload(payload.manifest, payload.arena.toreadonly())
    copied = ModuleBackend().load(MLP, frozen)
    assert next(iter(copied.module.parameters())).data_ptr() != address


def test_capped_share_of_a_target() -> None:
    assert [capped(Target("s", 0.8), v) for v in (0.4, 0.8, 1.0)] == [0.5, 1.0, 1.0]
