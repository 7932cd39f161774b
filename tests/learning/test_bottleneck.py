"""A stochastic code: its loss, its replay, and what it may not be used with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from aats.errors import ModelError, ScenarioError
from aats.ids import NodeId
from aats.learning.bottleneck import Bottleneck, BottleneckMethod, divergence
from aats.learning.measures.options import Measures
from aats.learning.method import Guard, Plan, Stop, Work, method_of
from aats.learning.models import build, initialise
from aats.learning.modules import rows
from aats.learning.weights import initial_payload
from aats.packet import Architecture, EstimateSource, Plugin
from aats.payload import STATE
from aats.roles.data import NodeData
from aats.testing import check_method
from aats.testing.methods import (
    CLASSES,
    FEATURES,
    MLP,
    NODE,
    SKILL,
    Walk,
    blobs,
    header_for,
    reference_for,
)

CODED = Architecture(
    "bottleneck", {"features": FEATURES, "hidden": [16], "code": 4, "classes": CLASSES}
)
DATA = blobs(90)
OPEN = Guard(1.0, float("inf"))


def model() -> Bottleneck:
    made = build(CODED)
    assert isinstance(made, Bottleneck)
    initialise(made, 0)
    return made


def test_it_conforms_also_with_measures() -> None:
    check_method(BottleneckMethod(), CODED)
    check_method(BottleneckMethod(), CODED, measures=Measures(
        distil=0.3, replay=0.5, replay_space="feature", replay_rank=4, proximal=0.01, ema=1.0,
        sam=0.01, masked=True,
    ))  # fmt: skip


def test_the_divergence_is_that_of_normal_distributions() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 4), torch.randn(5, 4)
    wanted = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(4), torch.ones(4))
    )  # fmt: skip
    torch.testing.assert_close(divergence(mean, log_variance), wanted.sum(1).mean())
    assert divergence(torch.zeros(3, 4), torch.zeros(3, 4)) == 0


def test_the_loss_is_cross_entropy_of_a_drawn_code_plus_beta_times_the_divergence() -> None:
    net, x, y = model(), rows(DATA.train_x[:8]), torch.from_numpy(DATA.train_y[:8])
    work = Work(Stop(NODE, 0, 1, {SKILL: DATA}), Plan({SKILL: 1}))
    torch.manual_seed(3)
    found = BottleneckMethod(beta=0.5).loss(work)(net, x, y, SKILL)
    torch.manual_seed(3)
    mean, log_variance = net.encode(x)
    code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    wanted = torch.nn.functional.cross_entropy(net.classify(code), y)
    torch.testing.assert_close(found, wanted + 0.5 * divergence(mean, log_variance))


def test_it_is_judged_by_its_mean_code_and_noisy_in_training() -> None:
    net, x = model(), rows(DATA.train_x[:8])
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
    torch.testing.assert_close(net(x), net.classify(net.encode(x)[0]))


def test_more_weight_leaves_less_in_the_code_and_it_learns() -> None:
    left = []
    for beta in (1e-3, 1.0):
        packet = Walk(header_for(CODED), initial_payload(CODED, 0, reference_for(blobs(60, 9))))
        method = BottleneckMethod(beta=beta, lr=0.1, epochs=10, batch_size=16)
        result = packet.visit(method, NodeData.of(DATA), NODE, OPEN)
        net = model()
        tensors = packet.payload.arrays("model.")
        net.load_state_dict({n.removeprefix("model."): torch.tensor(a) for n, a in tensors.items()})
        left.append(float(divergence(*net.encode(rows(DATA.train_x))).detach()))
        if beta < 1:
            value = [e.value for e in result.estimates if e.source is EstimateSource.REFERENCE]
            assert value[0] > 0.9
    assert left[1] < 0.5 * left[0]


def test_codes_are_what_is_replayed() -> None:
    packet = Walk(header_for(CODED), initial_payload(CODED, 0, reference_for(blobs(60, 9))))
    options = Measures(replay=0.5, replay_space="feature", replay_rank=0, replay_minimum=5)
    packet.visit(BottleneckMethod(), NodeData.of(DATA), NodeId("a"), OPEN, options)
    means = packet.payload.arrays(STATE)[f"{STATE}replay.mean.{SKILL}"]
    assert means.shape == (CLASSES, 4)
    assert np.isfinite(means).all()


def test_another_model_has_no_code() -> None:
    with pytest.raises(ModelError, match="architecture 'bottleneck'"):
        Walk(header_for(MLP), initial_payload(MLP, 0)).visit(
            BottleneckMethod(), NodeData.of(DATA), NODE, OPEN
        )


def test_nonsense_is_refused() -> None:
    with pytest.raises(ScenarioError, match="beta is -1"):
        method_of(Plugin("bottleneck", {"beta": -1.0}))
    with pytest.raises(ScenarioError, match="batch_size at least 1"):
        method_of(Plugin("bottleneck", {"batch_size": 0}))
    with pytest.raises(ModelError, match="code"):
        build(Architecture("bottleneck", {"features": 4, "code": 0, "classes": 2}))
