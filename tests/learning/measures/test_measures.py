"""Each measure's rule against a direct computation, and all of them together."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from aats.errors import ModelError
from aats.ids import NodeId
from aats.learning.measures.measure import Measure, Stack
from aats.learning.measures.options import Measures
from aats.learning.method import Carry, Guard, Plan, Stop, Work, passes
from aats.learning.models import build, initialise, predict
from aats.learning.modules import rows
from aats.learning.sequential import SequentialMethod
from aats.learning.sgd import sgd
from aats.learning.weights import initial_payload
from aats.payload import MODEL, Array
from aats.roles.data import NodeData, SkillData
from aats.testing import check_method
from aats.testing.methods import (
    CLASSES,
    MLP,
    NODE,
    SKILL,
    Walk,
    blobs,
    header_for,
    reference_for,
)

OPEN = Guard(1.0, inf)
DATA = blobs(90)
ALL = Measures(
    distil=0.3, ema=1.0, proximal=0.01, ewc=1.0, replay=0.5, replay_minimum=5, masked=True,
    sam=0.01, interpolate=0.7,
)  # fmt: skip


def model(seed: int = 0) -> nn.Module:
    made = build(MLP)
    initialise(made, seed)
    return made


def stop_with(state: dict[str, Array] | None = None, data: SkillData = DATA, seed: int = 1) -> Stop:
    return Stop(NODE, 3, seed, {SKILL: data}, {"visits": 3.0}, state=state or {})


def stack_on(net: nn.Module, measures: Measures, stop: Stop, steps: int = 4) -> Stack:
    return Stack(measures.start(), net, stop, Plan({SKILL: steps}, 16))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return rows(DATA.train_x[:16]), torch.from_numpy(DATA.train_y[:16])


def gradient(net: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def moved(net: nn.Module, by: float = 0.1) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by)


def loss_of(net: nn.Module, stack: Stack) -> torch.Tensor:
    work = Work(stack.stop, Plan({SKILL: 1}, 16), stack)
    value: torch.Tensor = work.loss(net, *batch(), SKILL)
    return value


def number(loss: torch.Tensor) -> float:
    return float(loss.detach())


def plain(net: nn.Module) -> torch.Tensor:
    x, y = batch()
    return cross_entropy(predict(net, x, SKILL), y)


def weights(packet: Walk) -> dict[str, np.ndarray]:
    return {n: np.array(a) for n, a in packet.payload.arrays(MODEL).items()}


def walk() -> Walk:
    return Walk(header_for(), initial_payload(MLP, 0, reference_for(blobs(60, 9))))


# --- rules ------------------------------------------------------------------------------------


def test_nothing_asked_is_cross_entropy_to_the_bit() -> None:
    net = model()
    work = Work(stop_with(), Plan({SKILL: 1}, 16))
    assert torch.equal(work.loss(net, *batch(), SKILL), plain(net))


def test_proximal_adds_half_mu_times_the_squared_distance() -> None:
    net = model()
    stack = stack_on(net, Measures(proximal=0.4), stop_with())
    moved(net)
    count = sum(p.numel() for p in net.parameters())
    found = loss_of(net, stack)
    assert number(found) == pytest.approx(number(plain(net)) + 0.2 * count * 0.01, rel=1e-5)
    for mine, base in zip(gradient(net, found), gradient(net, plain(net)), strict=True):
        torch.testing.assert_close(mine, base + 0.4 * 0.1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_mixes_in_the_received_models_prediction(temperature: float) -> None:
    net = model()
    teacher = copy.deepcopy(net)
    stack = stack_on(net, Measures(distil=0.3, temperature=temperature), stop_with())
    moved(net)
    x, _ = batch()
    soft = (predict(teacher, x, SKILL) / temperature).softmax(1)
    taught = -(soft * (predict(net, x, SKILL) / temperature).log_softmax(1)).sum(1).mean()
    wanted = 0.7 * plain(net) + 0.3 * temperature**2 * taught
    torch.testing.assert_close(loss_of(net, stack), wanted)
    assert stack.forwards == 16


def test_untrained_weights_teach_nothing() -> None:
    net = model()
    stack = stack_on(net, Measures(distil=0.9), replace(stop_with(), trained={"visits": 1.0}))
    assert torch.equal(loss_of(net, stack), plain(net))
    assert stack.forwards == 0


def test_masked_softmax_gives_absent_classes_no_gradient() -> None:
    kept = DATA.train_y != 2
    held = SkillData(
        SKILL, DATA.train_x[kept], DATA.train_y[kept], DATA.test_x, DATA.test_y, CLASSES, ""
    )
    net = model()
    stack = stack_on(net, Measures(masked=True), stop_with(data=held))
    work = Work(stack.stop, Plan({SKILL: 1}, 16), stack)
    x, y = rows(held.train_x[:16]), torch.from_numpy(held.train_y[:16])
    found = work.loss(net, x, y, SKILL)
    torch.testing.assert_close(found, cross_entropy(predict(net, x, SKILL)[:, :2], y))
    head = [*net.parameters()][-1]
    (slope,) = torch.autograd.grad(found, [head])
    assert slope[2] == 0
    assert slope[0] != 0


def test_calibrated_softmax_adds_the_frequencies_of_the_labels_trained_on() -> None:
    held = of_classes(0, 1).skills[SKILL]
    own = np.bincount(held.train_y, minlength=CLASSES) + 0.5
    net = model()
    stack = stack_on(net, Measures(calibrated=True), stop_with(data=held))
    work = Work(stack.stop, Plan({SKILL: 2}, 16), stack)
    x, y = rows(held.train_x[:16]), torch.from_numpy(held.train_y[:16])
    added = torch.full((16,), 2)
    for labels, counts in (
        (y, own + np.bincount(y, minlength=CLASSES)),
        (added, own + np.bincount(y, minlength=CLASSES) + 16 * np.eye(CLASSES)[2]),
    ):
        shares = torch.from_numpy(np.log(counts / counts.sum())).float()
        found = work.loss(net, x, labels, SKILL)
        torch.testing.assert_close(found, cross_entropy(predict(net, x, SKILL) + shares, labels))


def test_calibrated_a_model_does_not_learn_which_classes_a_node_has_most_of() -> None:
    held = blobs(400)
    kept = (held.train_y == 0) | (np.arange(len(held.train_y)) % 8 == 0)
    uneven = NodeData.of(replace(held, train_x=held.train_x[kept], train_y=held.train_y[kept]))
    drift = {}
    for calibrated in (False, True):
        packet = walk()
        for _ in range(6):
            packet.visit(
                SequentialMethod(lr=0.01), uneven, NODE, OPEN, Measures(calibrated=calibrated)
            )
        drift[calibrated] = weights(packet)[f"{MODEL}3.bias"]
    assert drift[False].argmax() == 0
    assert drift[True][0] < 0.5 * drift[False][0]


def test_sam_takes_the_gradient_up_the_slope() -> None:
    net, rho = model(), 0.1
    stack = stack_on(net, Measures(sam=rho), stop_with())
    found = gradient(net, loss_of(net, stack))
    slope = gradient(net, plain(net))
    norm = torch.stack([g.square().sum() for g in slope]).sum().sqrt()
    there = copy.deepcopy(net)
    with torch.no_grad():
        for p, g in zip(there.parameters(), slope, strict=True):
            p.add_(rho * g / norm)
    for mine, wanted in zip(found, gradient(there, plain(there)), strict=True):
        torch.testing.assert_close(mine, wanted)


def test_sam_sees_the_other_terms_up_the_slope_too() -> None:
    net = model()
    stack = stack_on(net, Measures(sam=0.1, proximal=2.0), stop_with())
    slope = gradient(net, plain(net))  # at the start the proximal term has none
    norm = torch.stack([g.square().sum() for g in slope]).sum().sqrt()
    there = copy.deepcopy(net)
    with torch.no_grad():
        for p, g in zip(there.parameters(), slope, strict=True):
            p.add_(0.1 * g / norm)
    for mine, base, g in zip(
        gradient(net, loss_of(net, stack)), gradient(there, plain(there)), slope, strict=True
    ):
        torch.testing.assert_close(mine, base + 2.0 * 0.1 * g / norm)


def test_interpolation_keeps_a_share_of_what_was_received() -> None:
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    stack = stack_on(net, Measures(interpolate=0.25), stop_with())
    moved(net, 0.4)
    assert stack.finish() == {}
    for p, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old + 0.1)


def test_interpolation_by_rows_counts_every_row_alike() -> None:
    state: dict[str, Array] = {}
    net, total, weighted = model(), 0, 0.0
    first = float([*net.parameters()][-1].detach()[0])
    for number, samples in enumerate((60, 90, 150)):
        data = blobs(samples, number)
        stack = stack_on(net, Measures(interpolate="seen"), stop_with(state, data))
        with torch.no_grad():
            [*net.parameters()][-1][0] = first + number  # what "training" made of it
        state = stack.finish()
        total += data.samples
        weighted += data.samples * (first + number)
    assert state["state.interpolate.seen"].tolist() == [total]
    assert float([*net.parameters()][-1].detach()[0]) == pytest.approx(weighted / total, rel=1e-5)


# --- consolidation ----------------------------------------------------------------------------


def squared_gradients(net: nn.Module) -> list[torch.Tensor]:
    total = [torch.zeros_like(p) for p in net.parameters()]
    for x, y in zip(DATA.train_x, DATA.train_y, strict=True):
        loss = cross_entropy(predict(net, rows(x[None]), SKILL), torch.tensor([y]))
        for t, g in zip(total, gradient(net, loss), strict=True):
            t += g.square() / DATA.samples
    return total


def test_importance_is_the_mean_squared_gradient_of_a_row_and_decays() -> None:
    net = model()
    options = Measures(ewc=10.0, ewc_decay=0.5, ewc_rows=1000)
    state = stack_on(net, options, stop_with()).finish()
    wanted = squared_gradients(net)
    names = [name for name, _ in net.named_parameters()]
    for name, f in zip(names, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(state[f"state.ewc.importance.{name}"]), f)
    again = stack_on(net, options, stop_with(state)).finish()
    for name, f in zip(names, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(again[f"state.ewc.importance.{name}"]), 1.5 * f)


def test_consolidation_pulls_each_weight_back_by_its_importance() -> None:
    net = model()
    options = Measures(ewc=10.0, ewc_rows=1000)
    state = stack_on(net, options, stop_with()).finish()
    stack = stack_on(net, options, stop_with(state))
    importance = squared_gradients(net)
    moved(net)
    found, base = gradient(net, loss_of(net, stack)), gradient(net, plain(net))
    for mine, g, f in zip(found, base, importance, strict=True):
        torch.testing.assert_close(mine, g + 10.0 * f * 0.1, rtol=1e-4, atol=1e-6)


def test_importance_in_8_bits_is_near_and_a_quarter_the_size() -> None:
    net = model()
    full = stack_on(net, Measures(ewc=1.0), stop_with()).finish()
    small = stack_on(net, Measures(ewc=1.0, ewc_bits=8), stop_with()).finish()
    for name, f in full.items():
        level, peak = small[name], small[name.replace("importance", "peak")]
        assert level.dtype == np.uint8
        np.testing.assert_allclose(
            np.sqrt((level / 255.0) ** 2 * peak), np.sqrt(f), atol=np.sqrt(peak[0]) / 500
        )


def test_importance_of_batches_has_the_size_of_that_of_rows_where_gradients_are_noise() -> None:
    torch.manual_seed(0)
    data = blobs(1500, wrong=0.67)
    net = model()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()  # every class alike: gradients of rows cancel but for the noise
    one = stack_on(net, Measures(ewc=1.0, ewc_rows=1200), stop_with(data=data)).finish()
    many = stack_on(
        net, Measures(ewc=1.0, ewc_rows=1200, ewc_batch=4), stop_with(data=data)
    ).finish()
    head = max(name for name in one if name.endswith("bias"))
    np.testing.assert_allclose(many[head], one[head], rtol=0.25)


# --- mean of weights --------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """Sets the weights at each step to a number: what a trajectory would be."""

    values: tuple[tuple[float, ...], ...]
    """By visit, by step."""

    def plan(self, stop: Stop) -> Plan | None:
        return Plan({SKILL: len(self.values[stop.hop])}, 16)

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        for value, _ in zip(self.values[work.stop.hop], work, strict=True):
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(value)
        return None


def shipped(values: tuple[tuple[float, ...], ...], measures: Measures) -> float:
    packet = walk()
    for number in range(len(values)):
        packet.visit(Steps(values), NodeData.of(DATA), NodeId(f"n{number}"), OPEN, measures)
    found = {float(v) for a in weights(packet).values() for v in np.unique(a)}
    assert max(found) - min(found) < 1e-6
    return found.pop()


def test_the_mean_over_visits_halves_by_hops() -> None:
    ends = (1.0, 2.0, 4.0)
    found = shipped(tuple((e,) for e in ends), Measures(ema=1.0))
    assert found == pytest.approx((1 / 4 * 1 + 1 / 2 * 2 + 1 * 4) / (1 / 4 + 1 / 2 + 1))


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.integers(1, 5)), min_size=1, max_size=3),
    st.floats(0.3, 5),
)
@settings(max_examples=15, deadline=None)
def test_the_length_of_a_visit_does_not_change_the_mean(
    visits: list[tuple[float, int]], half_life: float
) -> None:
    """The same weights at every step of a visit: its steps must not matter."""
    long = tuple((value,) * steps for value, steps in visits)
    short = tuple((value,) for value, _ in visits)
    wanted = shipped(short, Measures(ema=half_life))
    assert shipped(long, Measures(ema=half_life, ema_steps=True)) == pytest.approx(wanted, abs=1e-5)
    assert shipped(long, Measures(ema=half_life)) == pytest.approx(wanted, abs=1e-5)


def test_training_goes_on_from_the_raw_weights() -> None:
    mean, bare = walk(), walk()
    for number in range(3):
        node = NodeId(f"n{number}")
        result = mean.visit(SequentialMethod(), NodeData.of(DATA), node, OPEN, Measures(ema=2.0))
        bare.visit(SequentialMethod(), NodeData.of(DATA), node, OPEN)
    raw = mean.payload.arrays("state.ema.raw.")
    for name, wanted in weights(bare).items():
        np.testing.assert_array_equal(raw["state.ema.raw." + name.removeprefix(MODEL)], wanted)
        assert not np.array_equal(weights(mean)[name], wanted)
    local = [e.version for e in result.estimates]
    assert set(local) == {result.manifest.version(MODEL)}  # the mean is what was judged


# --- replay -----------------------------------------------------------------------------------


class Seen:
    """Keeps the minibatches it is given."""

    def __init__(self) -> None:
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []

    def plan(self, stop: Stop) -> Plan | None:
        return passes(stop, 1.0, 16)

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        self.batches = [(x, y) for _, x, y in work]
        return None


def of_classes(*classes: int, samples: int = 180) -> NodeData:
    whole = blobs(samples)
    train, test = np.isin(whole.train_y, classes), np.isin(whole.test_y, classes)
    return NodeData.of(SkillData(
        SKILL, whole.train_x[train], whole.train_y[train], whole.test_x[test],
        whole.test_y[test], CLASSES, whole.schema,
    ))  # fmt: skip


def test_earlier_classes_are_mixed_in_and_only_own_rows_are_counted() -> None:
    packet, seen = walk(), Seen()
    options = Measures(replay=0.5, replay_minimum=5)
    packet.visit(seen, of_classes(0), NodeId("a"), OPEN, options)
    assert {label for _, y in seen.batches for label in y} == {0}
    packet.visit(seen, of_classes(1), NodeId("b"), OPEN, options)
    assert packet.payload.arrays("state.replay.")[f"state.replay.classes.{SKILL}"].tolist() == [
        0,
        1,
    ]
    held = of_classes(2)
    result = packet.visit(seen, held, NodeId("c"), OPEN, options)
    real, labels = held.skills[SKILL].samples, np.concatenate([y for _, y in seen.batches])
    assert (labels == 2).sum() == real == result.samples
    assert len(labels) == 2 * real
    assert set(labels) == {0, 1, 2}
    assert result.labels_used[SKILL][2] == real
    drawn = np.concatenate([x for x, _ in seen.batches])[labels == 0]
    true = of_classes(0).skills[SKILL].train_x
    assert np.abs(drawn.mean(0) - true.mean(0)).max() < 1.0
    assert not any((x == true).all(1).any() for x in drawn)


def test_rows_made_up_cost_what_they_cost() -> None:
    flops = []
    for options in (Measures(), Measures(replay=0.5, replay_minimum=5)):
        packet = walk()
        packet.visit(SequentialMethod(), of_classes(0), NodeId("a"), OPEN, options)
        flops.append(
            packet.visit(SequentialMethod(), of_classes(1), NodeId("b"), OPEN, options).flops
        )
    assert flops[1] > 1.5 * flops[0]


@pytest.mark.parametrize("space", ["input", "feature"])
def test_a_class_below_the_minimum_does_not_leave(space: str) -> None:
    packet = walk()
    options = Measures(replay=0.5, replay_minimum=100, replay_space=space)
    data = of_classes(0, 1)
    packet.visit(SequentialMethod(), data, NODE, OPEN, options)
    assert len(packet.payload.arrays("state.replay.")[f"state.replay.count.{SKILL}"]) == 0


def test_feature_replay_is_a_loss_of_the_last_layer() -> None:
    packet = walk()
    options = Measures(replay=0.5, replay_minimum=5, replay_space="feature", replay_rank=3)
    packet.visit(SequentialMethod(lr=0.1), of_classes(0, 1), NodeId("a"), OPEN, options)
    bank = packet.payload.arrays("state.replay.")
    assert bank[f"state.replay.mean.{SKILL}"].shape == (2, 16)
    assert bank[f"state.replay.scatter.{SKILL}"].shape == (2, 3, 16)
    net = model()
    stop = stop_with(dict(bank), of_classes(2).skills[SKILL])
    stack = stack_on(net, options, stop)
    hidden = [p for name, p in net.named_parameters() if "3" not in name]
    replayed = loss_of(net, stack) - 0.5 * plain(net)
    for slope in torch.autograd.grad(replayed, hidden):
        assert float(slope.abs().max()) < 1e-6
    assert number(replayed) > 0


def test_replay_remembers_what_plain_training_forgets() -> None:
    def faint(data: NodeData) -> NodeData:
        held = data.skills[SKILL]
        return NodeData.of(
            replace(held, train_x=held.train_x * 0.2, test_x=held.test_x * 0.2)
        )  # clouds so near the origin that the last class seen takes it all

    found = []
    for options in (Measures(), Measures(replay=0.5, replay_minimum=5)):
        reference = reference_for(faint(of_classes(0, 1, 2)).skills[SKILL])
        packet = Walk(header_for(), initial_payload(MLP, 0, reference))
        for label in range(CLASSES):
            method = SequentialMethod(lr=0.1, epochs=10, batch_size=16, clip=0.0)
            data, node = faint(of_classes(label)), NodeId(f"n{label}")
            result = packet.visit(method, data, node, OPEN, options)
        found.append(next(e.value for e in result.estimates if e.source.value == "reference"))
    plain_value, replayed = found
    assert plain_value < 0.7
    assert replayed > 0.9


def test_private_replay_is_not_made_by_the_visits_seed() -> None:
    options = Measures(
        replay=0.5, replay_rank=0, replay_minimum=5, replay_epsilon=1.0, replay_clip=5.0
    )
    banks = []
    for _ in range(2):
        packet = walk()
        packet.visit(SequentialMethod(), of_classes(0), NODE, OPEN, options)
        banks.append({n: np.array(a) for n, a in packet.payload.arrays("state.replay.").items()})
    assert not np.array_equal(
        banks[0].get(f"state.replay.mean.{SKILL}"), banks[1].get(f"state.replay.mean.{SKILL}")
    )


def test_tokens_have_no_gaussian() -> None:
    data = SkillData.of(SKILL, np.zeros((40, 8), np.int64), np.arange(40) % 3)
    with pytest.raises(ModelError, match="rows of tokens have no Gaussian"):
        stack_on(model(), Measures(replay=0.5), stop_with(data=data))


# --- together ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        Measures(proximal=0.1), Measures(distil=0.5, temperature=2.0), Measures(ewc=10.0),
        Measures(ewc=10.0, ewc_bits=8, ewc_batch=8), Measures(ema=2.0),
        Measures(ema=2.0, ema_steps=True), Measures(interpolate=0.5),
        Measures(interpolate="seen"), Measures(replay=0.5), Measures(replay=0.5, replay_rank=0),
        Measures(replay=0.5, replay_space="feature"), Measures(masked=True), Measures(sam=0.05),
        Measures(calibrated=True), Measures(calibrated=True, replay=0.5), ALL,
    ],
    ids=lambda o: "+".join(o.names()),
)  # fmt: skip
def test_every_measure_conforms(options: Measures) -> None:
    check_method(SequentialMethod(), measures=options)


@pytest.mark.parametrize("name", ALL.names())
def test_a_damaged_state_is_told(name: str) -> None:
    packet = walk()
    packet.visit(SequentialMethod(), of_classes(0, 1), NODE, OPEN, ALL)
    state = {n: np.array(a) for n, a in packet.payload.arrays("state.").items()}
    own = [n for n in state if n.startswith(f"state.{name}.")]
    for tensor in own:
        with pytest.raises(ModelError):
            stack_on(model(), ALL, stop_with({**state, tensor: np.full((2, 5), np.nan)}))


@dataclass(frozen=True)
class Mine:
    """A user's loop that asks the work for its loss."""

    own_loss: bool = False

    def plan(self, stop: Stop) -> Plan | None:
        return passes(stop, epochs=2, batch_size=16)

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        def base(net: nn.Module, x: torch.Tensor, y: torch.Tensor, skill: str) -> torch.Tensor:
            value: torch.Tensor = 2 * work.criterion(predict(net, x, skill), x, y, skill)
            return value

        loss = work.composed(base) if self.own_loss else work.loss
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for skill, x, y in work:
            optimiser.zero_grad()
            loss(model, rows(x), torch.from_numpy(y), skill).backward()
            optimiser.step()
        return Carry({**work.stop.state, "state.mine": np.ones(2, np.float32)})


@pytest.mark.parametrize("own_loss", [False, True])
def test_a_users_own_method_takes_part_in_all_of_it(own_loss: bool) -> None:
    check_method(Mine(own_loss), measures=ALL)
    packet, bare = walk(), walk()
    packet.visit(Mine(own_loss), NodeData.of(DATA), NODE, OPEN, ALL)
    bare.visit(Mine(own_loss), NodeData.of(DATA), NODE, OPEN)
    assert (
        weights(packet)[f"{MODEL}1.weight"].tolist() != weights(bare)[f"{MODEL}1.weight"].tolist()
    )
    carried = {name.split(".")[1] for name in packet.payload.arrays("state.")}
    assert carried == {"mine", "ema", "ewc", "replay"}


class Deaf(Mine):
    """A loop with a loss of its own that knows nothing of measures."""

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        sgd(model, work, lr=0.1, loss=lambda m, x, y, s: cross_entropy(predict(m, x, s), y))
        return None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Measures(distil=0.5), "'distil' has no effect: the method does not use `work.loss`"),
        (Measures(proximal=0.5), "'proximal' has no effect"),
        (Measures(sam=0.5), "'sam' has no effect"),
        (Measures(masked=True), "'masked' has no effect"),
        (Measures(calibrated=True), "'calibrated' has no effect"),
    ],
)
def test_a_method_that_cannot_take_part_is_told(options: Measures, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        walk().visit(Deaf(), NodeData.of(DATA), NODE, OPEN, options)
    walk().visit(Deaf(), NodeData.of(DATA), NODE, OPEN, Measures(ema=1.0, replay=0.5))


def test_an_undone_visit_leaves_the_state_alone() -> None:
    packet = walk()
    packet.visit(SequentialMethod(), of_classes(0), NODE, OPEN, ALL)
    before = packet.payload.manifest
    strict = Guard(rollback_drop=-1.0)
    result = packet.visit(SequentialMethod(), of_classes(1), NodeId("b"), strict, ALL)
    assert result.action == "rolled-back"
    assert packet.payload.manifest == before


def test_weights_that_blow_up_are_rolled_back_not_measured() -> None:
    packet = walk()
    result = packet.visit(
        SequentialMethod(lr=1e30, clip=0.0), NodeData.of(DATA), NODE, Guard(), ALL
    )
    assert result.action == "rolled-back"
    assert not packet.payload.arrays("state.")


def test_a_measure_of_nothing_does_nothing() -> None:
    net = model()
    stack = Stack([Measure()], net, stop_with(), Plan({SKILL: 1}, 16))
    torch.testing.assert_close(loss_of(net, stack), plain(net))
    assert stack.finish() == {}
