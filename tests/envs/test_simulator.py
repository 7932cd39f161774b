import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aats.learning.dynamics import Dynamics, moved
from aats.learning.probe import TRUSTED_ROWS
from aats.node.pace import FORWARD_SHARE, PROBE_SHARE, TRUST_SHARE
from aats.node.requests import RELAY_BYTES
from aats.routing.features import FEATURES, GLOBALS
from aats.routing.view import Kind
from aats.topology.drrt import HEADER_BYTES
from aats_envs.batch import Limits
from aats_envs.family import Family
from aats_envs.learner import PROBE_ROWS
from aats_envs.network import KnowledgeNetwork
from aats_envs.presets import PRESETS
from aats_envs.simulator import CONFIG, NOTICED_S, OVERHEAD_S, SPARE_S, Reward, Simulator
from aats_envs.source import FamilySource
from aats_envs.spaces import LOW_FEATURES, LOW_GLOBALS


def legal(sim: Simulator, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    mask = sim.seen.mask
    return np.where(mask, rng.random(mask.shape), -1.0).argmax(axis=1)


def test_it_runs_without_gymnasium() -> None:
    code = (
        "import sys; sys.modules['gymnasium'] = sys.modules['torch'] = None; import aats_envs;"
        "from aats_envs import simulator, source, episodes, from_scenario, to_scenario"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- any network, any legal walk --------------------------------------------------------------

families = st.builds(
    lambda base, nodes, mpvus, **more: replace(
        PRESETS[base], nodes=(nodes, nodes + 4), mpvus=(1, mpvus), budget=(1.2, 2.0), **more
    ),
    st.sampled_from(["train", "small", "noisy", "liars", "skewed", "healthcare"]),
    st.integers(8, 14),
    st.integers(1, 3),
    data_share=st.sampled_from([(0.5, 0.6), (1.0, 1.0)]),
    outages=st.sampled_from([(0.0, 0.0), (0.3, 0.6)]),
    bounded=st.sampled_from([0.0, 1.0]),
    graphs=st.sampled_from([("ring",), ("tree", "grid"), ("barabasi-albert",)]),
)


@given(family=families, seed=st.integers(0, 2**32), k=st.sampled_from([6, 12, 32]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_legal_walk_ends_at_home_and_shows_what_it_should(
    family: Family, seed: int, k: int
) -> None:
    sim = Simulator(FamilySource(family, 2), 4, k=k)
    rng, rows = np.random.default_rng(seed), np.arange(4)
    sim.reset(rows.tolist(), rng.integers(2**63, size=4).tolist())
    sim.look()
    left = np.ones(4, np.bool_)
    for _ in range(400):
        seen = sim.seen
        assert seen.mask.any(axis=1).all()
        assert not (seen.mask & (seen.rows < 0)).any()
        for values, low in ((seen.features, LOW_FEATURES), (seen.globals, LOW_GLOBALS)):
            assert ((values >= low) & (values <= 1)).all()
        before = sim.spent.copy()
        outcome = sim.step(legal(sim, rng))
        assert (sim.spent >= before).all()
        assert (sim.spent[:, 1] > before[:, 1])[~outcome.terminated].all()
        assert np.isfinite(outcome.reward).all()
        assert (sim.at == sim.net.home)[outcome.terminated].all()
        assert (sim.met | (sim.net.classes == 0)).all(axis=1)[outcome.success].all()
        # The way home that is quickest may be a link longer than the one reckoned with.
        assert (before[left, 0] < sim.net.budget[left, 0]).all()
        left &= ~outcome.terminated
        if not left.any():
            break
        sim.look()
    assert not left.any()


def test_rows_of_one_key_live_one_life_whoever_is_beside_them() -> None:
    sim = Simulator(FamilySource(PRESETS["train"], 4), 4)
    sim.reset([0, 1, 2, 3], [7, 8, 7, 7])
    rng = np.random.default_rng(0)
    for _ in range(20):
        sim.look()
        choice = legal(sim, rng)
        choice[2:] = choice[0]
        sim.step(choice)
        for name in ("spent", "models", "trusted", "belief", "memory", "visits", "used", "paid"):
            values = getattr(sim, name)
            assert np.array_equal(values[0], values[2], equal_nan=True), name
            assert np.array_equal(values[0], values[3], equal_nan=True), name
    assert not np.array_equal(sim.spent[0], sim.spent[1])


def test_an_episode_is_cut_off_at_its_limit() -> None:
    sim = Simulator(FamilySource(PRESETS["small"], 2), 2, max_steps=3)
    sim.reset([0, 1], [1, 2])
    cut = []
    for _ in range(3):
        sim.look()
        cut.append(sim.step(legal(sim, np.random.default_rng(0))).truncated.tolist())
    assert cut == [[False, False], [False, False], [True, True]]


# --- one small network, worked out by hand ----------------------------------------------------

HOME, NEAR, UNIT, FAR = range(4)
TRANSFER = np.array([[0, 2, 5, 3], [2, 0, 3, 5], [5, 3, 0, 8], [3, 5, 8, 0.0]])
LINKS = np.array([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 3], [1, 2, 3, 0]])
SURE = replace(
    Dynamics(**{f.name: f.default for f in fields(Dynamics)}),  # type: ignore[arg-type]
    **{f.name: 0.0 for f in fields(Dynamics) if f.name.endswith("noise")},
)


def by_hand(**more: Any) -> KnowledgeNetwork:
    rows = np.zeros((4, 1, 2))
    rows[NEAR], rows[FAR] = (40, 60), (200, 200)
    one = np.ones(4)
    network = KnowledgeNetwork(
        name="by hand", position=np.zeros((4, 2)), neighbours=LINKS == 1,
        transfer_s=TRANSFER, shown_transfer_s=TRANSFER, probe_s=TRANSFER / 10, links=LINKS,
        has_data=rows.sum((1, 2)) > 0, is_mpvu=np.arange(4) == UNIT, home=HOME,
        clean=rows, wrong=np.zeros_like(rows), shown=rows, shown_samples=rows.sum(2),
        shows_labels=rows.sum(2) > 0, quality=one, freshness_s=0 * one,
        probe_allowed=one > 0, samples_per_s=50 * one, shown_per_s=50 * one,
        joules_per_sample=0.5 * one, queue=np.array([0, 1.0, 0, 0]), down=np.full((4, 2), np.inf),
        classes=np.array([2]), target=np.array([0.99]), reference=np.array([64]),
        test=np.array([1000]), epochs=2.0, budget=np.array([40, np.inf, np.inf, np.inf]),
        size_bytes=9000.0, probe_bytes=7000.0, dynamics=(SURE,), fit_epochs=2.0,
    )  # fmt: skip
    return replace(network, **more)


class One:
    def __init__(self, network: KnowledgeNetwork) -> None:
        self.network, self.limits = network, Limits(4, 1, 1, 2)

    def draw(self, rng: np.random.Generator) -> KnowledgeNetwork:
        return self.network


def go(sim: Simulator, kind: Kind, node: int) -> Any:
    """Go there, as what `kind` says."""
    stop = {Kind.DATA: node, Kind.MPVU: 4, Kind.HOME: 5}[kind]
    action = np.flatnonzero(sim.seen.rows[0] == stop)
    outcome = sim.step(action[:1])
    sim.look()
    return outcome


def begun(network: KnowledgeNetwork, **more: Any) -> Simulator:
    sim = Simulator(One(network), 1, **more)
    sim.reset([0], [5])
    sim.look()
    return sim


WORK = 100 * 2.0 + 2 * FORWARD_SHARE * 64
"""Of a visit to the near node, in samples."""
VISIT_S = 2 + OVERHEAD_S + WORK / 50 * (1 + 1)


def test_a_visit_costs_and_teaches_what_the_formulas_say() -> None:
    sim = begun(by_hand(), probes=0)
    outcome = go(sim, Kind.DATA, NEAR)
    assert sim.at[0] == NEAR
    assert sim.spent[0].tolist() == pytest.approx([1, VISIT_S, 9000 + HEADER_BYTES, WORK / 2])
    start = np.full((1, 1, 2), float(SURE.start))
    law = Dynamics(**{f.name: np.array([[getattr(SURE, f.name)]]) for f in fields(Dynamics)})
    taught = moved(
        start, by_hand().clean[None, NEAR], np.zeros((1, 1)), np.zeros((1, 1)), law,
        np.ones((1, 1)), np.array([[2]]),
    )  # fmt: skip
    assert sim.models[0] == pytest.approx(taught[0])
    assert sim.used[0].tolist() == [[80, 120]]
    # Half of what is between data nodes and themselves is no way at all.
    unit_s = 2.5 + np.median([100, 400]) * 2 / 50
    gained = 0.995 * sim.trusted[0, 0] / 0.99 - _untrained(sim)
    assert outcome.reward[0] == pytest.approx(0.1 * (10 * gained - VISIT_S / unit_s))
    assert not outcome.terminated[0]


def _untrained(sim: Simulator) -> float:
    again = begun(sim.source.draw(np.random.default_rng()), probes=0)
    return float(again.trusted[0, 0] / 0.99)


def test_a_verdict_and_the_way_home_cost_what_the_formulas_say() -> None:
    sim = begun(by_hand(target=np.array([0.01])), probes=0)
    go(sim, Kind.DATA, NEAR)
    outcome = go(sim, Kind.MPVU, UNIT)
    verify_s = 3 + OVERHEAD_S + FORWARD_SHARE * 1000 / 50
    assert sim.spent[0, 1] == pytest.approx(VISIT_S + verify_s)
    assert sim.met.all()
    outcome = go(sim, Kind.HOME, HOME)
    assert outcome.success[0]
    assert outcome.terminated[0]
    assert sim.spent[0, [0, 1]].tolist() == pytest.approx([4, VISIT_S + verify_s + 5])
    unit_s = 2.5 + np.median([100, 400]) * 2 / 50
    # The potential is 1 before and 0 after, and comes back as a part of the prize.
    assert outcome.reward[0] == pytest.approx(0.1 * (-10 - 5 / unit_s + 2 + 10))


def test_a_probe_is_paid_in_seconds_and_bytes() -> None:
    sim = begun(by_hand(), probes=1)
    assert sim.probe_bytes[0] == 0  # a model that knows nothing gains anywhere
    go(sim, Kind.DATA, NEAR)
    asked = np.flatnonzero(sim.probed[0, :, 0])
    assert sim.seen.rows[0, asked].tolist() == [FAR]
    seconds = TRANSFER[NEAR, FAR] / 10 + OVERHEAD_S
    seconds += (PROBE_SHARE * PROBE_ROWS + TRUST_SHARE * min(64, TRUSTED_ROWS)) / 50
    assert sim.spent[0, 1] == pytest.approx(VISIT_S + seconds)
    assert sim.probe_bytes[0] == 2 * (2 * RELAY_BYTES + 7000)
    assert sim.spent[0, 2] == 9000 + HEADER_BYTES + sim.probe_bytes[0]
    assert sim.seen.features[0, asked[0], FEATURES.index("has_probe")] == 1
    paid = sim.spent[0, 1]
    go(sim, Kind.DATA, FAR)  # whose reward counts what the probe took, too
    visit_s = 5 + OVERHEAD_S + (400 * 2 + 2 * FORWARD_SHARE * 64) / 50
    assert sim.paid[0, 1] == pytest.approx(paid + visit_s)


@pytest.mark.parametrize(
    ("begin", "lost"),
    [
        (1.0, 1.0 + NOTICED_S + CONFIG.restart_s),  # cut off on its way
        (-0.5, -0.5 + NOTICED_S + CONFIG.retry_s),  # not noticed yet
        (-NOTICED_S, CONFIG.retry_s),
    ],
)
def test_who_went_down_a_moment_ago_costs_time_and_then_is_not_shown(
    begin: float, lost: float
) -> None:
    down = np.full((4, 2), np.inf)
    down[FAR] = begin, 60.0
    sim = begun(by_hand(), probes=0)
    sim.net.down[0] = down
    go(sim, Kind.DATA, FAR)
    assert sim.at[0] == HOME
    assert sim.spent[0].tolist() == [0, pytest.approx(lost), 0, 0]
    assert FAR not in sim.seen.rows[0]


def test_a_node_that_goes_down_is_shown_until_that_is_noticed_and_once_it_is_back() -> None:
    down = np.full((4, 2), np.inf)
    down[FAR] = 4.0, 9.0
    sim = begun(by_hand(down=down), probes=0)
    for at, is_seen in ((3.9, True), (4.5, True), (4 + NOTICED_S, False), (8.9, False), (9, True)):
        sim.spent[0, 1] = at
        sim.look()
        assert (FAR in sim.seen.rows[0]) == is_seen


@pytest.mark.parametrize(("end", "kept"), [(5.0, 5.0), (1000.0, 3.0 + SPARE_S)])
def test_a_visit_that_a_crash_cuts_short_begins_again(end: float, kept: float) -> None:
    down = np.full((4, 2), np.inf)
    down[NEAR] = 3.0, end  # arrived after 2 s
    sim = begun(by_hand(down=down), probes=0)
    go(sim, Kind.DATA, NEAR)
    assert sim.at[0] == NEAR
    assert sim.spent[0, 1] == pytest.approx(kept + VISIT_S - 2)


def test_an_illegal_choice_fails_at_home() -> None:
    sim = begun(by_hand(), probes=0, reward=Reward(failure=7.0))
    outcome = sim.step(np.array([31]))
    assert outcome.terminated[0]
    assert not outcome.success[0]
    assert outcome.reward[0] == pytest.approx(0.1 * (-10 * _untrained(sim) - 7.0))


def test_globals_tell_of_the_budget_and_the_phase() -> None:
    sim = begun(by_hand(budget=np.array([10, 100.0, np.inf, 0.0])), probes=0)
    told = dict(zip(GLOBALS, sim.seen.globals[0], strict=True))
    assert told["joules_used"] == 1
    assert told["is_return"] == 0
    go(sim, Kind.DATA, NEAR)
    told = dict(zip(GLOBALS, sim.seen.globals[0], strict=True))
    assert told["hops_used"] == pytest.approx(0.1)
    assert told["seconds_used"] == pytest.approx(VISIT_S / 100)
    assert told["bytes_used"] == 0
    assert told["is_return"] == 1  # no joules were left to spend
