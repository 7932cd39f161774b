from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aats.compose import build_world, compose
from aats.config import Scenario, build, load_scenario
from aats.errors import ScenarioError
from aats.learning.calibrate import TASKS
from aats.node.pace import FORWARD_SHARE, PROBE_SHARE, TRUST_SHARE
from aats.node.tasks import VerifyResult, VerifyTask, VisitResult, VisitTask
from aats.packet import Plugin
from aats.roles.runner import run_task
from aats_envs.draw import draw
from aats_envs.family import Family
from aats_envs.from_scenario import RealTask, from_scenario, reseeded
from aats_envs.network import KnowledgeNetwork
from aats_envs.pool import Pool
from aats_envs.presets import PRESETS, with_data
from aats_envs.to_scenario import DATA, advertised, to_scenario

HEALTHCARE = Path(__file__).parents[2] / "examples" / "healthcare" / "scenario.toml"
CLEAR = replace(
    PRESETS["digits"], nodes=(10, 14), queue=0.0, stale=(0.0, 0.0), withheld=(0.3, 0.3),
    refused=(0.3, 0.3), honest=(0.5, 0.5),
)  # fmt: skip


def drawn(family: Family, seed: int = 0) -> KnowledgeNetwork:
    return draw(family, Pool(family, 2), np.random.default_rng(seed))


@pytest.fixture(scope="module")
def healthcare() -> list[tuple[KnowledgeNetwork, RealTask]]:
    return from_scenario(load_scenario(HEALTHCARE))


def test_the_hospitals_are_as_the_scenario_says(
    healthcare: list[tuple[KnowledgeNetwork, RealTask]],
) -> None:
    (net, task), (other, _) = healthcare
    at = {name: i for i, name in enumerate(task.names)}
    assert net.name == "healthcare/oncologist"
    assert net.skills == ("oncology", "diabetes")
    assert other.skills == ("diabetes", "oncology")
    assert (net.clean[:, 0] == other.clean[:, 1]).all()
    assert net.home == at["kingston"]
    assert np.flatnonzero(net.is_mpvu).tolist() == [at["ministry"]]
    assert net.has_data.sum() == 16
    assert net.budget.tolist() == [120, np.inf, np.inf, np.inf]
    assert net.target.tolist() == [0.91, 0.6]
    assert net.reference.tolist() == [60, 80]
    assert not net.shows_labels[at["toronto"]].any()
    assert net.shows_labels[at["montreal"]].all()
    assert not net.probe_allowed[at["london"]]
    assert net.quality[at["edmonton"]] == 1
    assert net.freshness_s[at["regina"]] == 94_608_000
    wrong, held = net.wrong.sum(2), (net.clean + net.wrong).sum(2)
    assert (wrong[at["edmonton"]] / held[at["edmonton"]]).mean() == pytest.approx(0.35, abs=0.1)
    assert wrong[at["halifax"]].tolist() == [0, 0]
    assert (net.shown_samples == held).all()


def test_a_delegates_data_are_worked_on_where_it_is(
    healthcare: list[tuple[KnowledgeNetwork, RealTask]],
) -> None:
    net, task = healthcare[0]
    here, there = task.names.index("kelowna"), task.names.index("vancouver")
    assert task.works_at[here] == there
    assert net.samples_per_s[here] == net.samples_per_s[there] == 600
    assert net.transfer_s[here, there] == net.links[here, there] == 0
    assert (net.transfer_s[:, here] == net.transfer_s[:, there]).all()
    assert not np.array_equal(net.clean[here], net.clean[there])
    assert "kelowna" in task.contexts[there].entrusted


def test_a_task_can_be_done_in_earnest(
    healthcare: list[tuple[KnowledgeNetwork, RealTask]],
) -> None:
    net, task = healthcare[0]
    header, payload = task.packet.header, task.packet.payload
    here = task.names.index("kelowna")
    worker = replace(task.contexts[task.works_at[here]], payload=payload)
    done = run_task(VisitTask(header, task.names[here]), worker)
    assert isinstance(done, VisitResult)
    rows = (net.clean[here] + net.wrong[here]).sum()
    assert done.samples == pytest.approx(rows * net.epochs, rel=0.2)
    unit = replace(task.contexts[int(np.flatnonzero(net.is_mpvu)[0])], payload=payload)
    verdict = run_task(VerifyTask(header), unit)
    assert isinstance(verdict, VerifyResult)
    assert [e.n for e in verdict.estimates] == net.test.tolist()


def small(**data: object) -> Scenario:
    skill = {"source": {"name": "classes", "number": 4, "samples": 800}, **data}
    return build({
        "scenario": {"seed": 3},
        "topology": {"generator": {"name": "ring", "nodes": 6}},
        "nodes": {
            "n0": {"roles": ["owner"]},
            "n1": {"roles": ["mpvu"]},
            "n2": {"contributes_to": ["n1"], "data": {"it": {"wrong_labels": 0.4}}},
            "n3": {"contributes_to": ["n1"]},
        },
        "data": {"skills": {"it": skill}},
        "packets": [{
            "name": "p", "owner": "n0", "requirement": [{"skill": "it", "value": 0.8}],
            "model": {"name": "surrogate", "classes": {"it": 4}}, "method": "surrogate",
        }],
        "faults": [{"kind": "crash", "node": "n4", "after_s": 5.0, "for_s": 2.0}],
    }, name="small")  # fmt: skip


def test_what_is_wrong_is_known_to_the_row() -> None:
    ((net, task),) = from_scenario(small(partition={"name": "dirichlet", "alpha": 0.5}))
    for i, context in enumerate(task.contexts):
        for held in context.data.skills.values():
            true = held.train_x[:, 0].astype(int)
            for clean, rows in ((True, net.clean[i, 0]), (False, net.wrong[i, 0])):
                mine = held.train_y[(true == held.train_y) == clean]
                assert np.bincount(mine, minlength=4).tolist() == rows.tolist()
    assert net.wrong[2].sum() > 0
    assert net.down[4].tolist() == [5, 7]
    assert np.isinf(net.down[[0, 1, 2, 3, 5]]).all()


def test_another_seed_is_another_deal_on_the_same_links() -> None:
    scenario = small()
    ((one, _),), ((again, _),), ((other, _),) = (
        from_scenario(reseeded(scenario, seed)) for seed in (3, 3, 4)
    )
    assert (one.clean == again.clean).all()
    assert (one.clean != other.clean).any()
    assert (one.transfer_s == other.transfer_s).all()


def test_a_source_without_a_fit_needs_one_named() -> None:
    scenario = small(source={"name": "synthetic", "classes": 4})
    scenario = replace(scenario, packets=(replace(
        scenario.packets[0],
        model=replace(scenario.packets[0].model, name="mlp", config={"features": 8, "classes": 4}),
        method=replace(scenario.packets[0].method, name="sequential"),
    ),))  # fmt: skip
    with pytest.raises(ScenarioError, match="name a fit"):
        from_scenario(scenario)
    ((net, _),) = from_scenario(scenario, fits={"it": "digits"})
    assert net.dynamics[0].start == 0.25


@pytest.mark.parametrize(
    ("family", "task"), [(CLEAR, "digits"), (PRESETS["healthcare"], "departments")]
)
def test_a_drawn_network_survives_being_a_scenario(family: Family, task: str) -> None:
    net = drawn(family)
    scenario = to_scenario(net, task, seed=5)
    again = build(tomllib.loads(scenario.to_toml()))
    assert replace(again, folder=scenario.folder) == scenario
    ((back, _),) = from_scenario(scenario)
    for name in ("home", "epochs"):
        assert getattr(back, name) == getattr(net, name)
    for name in ("has_data", "is_mpvu", "target", "reference", "classes", "budget"):
        assert np.array_equal(getattr(back, name), getattr(net, name)), name
    held = net.has_data
    for name in ("probe_allowed", "quality", "freshness_s", "samples_per_s", "joules_per_sample"):
        values = getattr(back, name)[held]
        wanted = getattr(net, name)[held]
        if name == "samples_per_s":
            wanted = wanted / (1 + net.queue[held])
        assert np.allclose(values, wanted), name
    rows, real = (x.clean.sum(2) + x.wrong.sum(2) for x in (net, back))
    assert np.array_equal(rows, real)
    assert np.abs(net.clean - back.clean).sum() < 0.05 * rows.sum()
    assert back.wrong.sum() == pytest.approx(net.wrong.sum(), rel=0.1)
    # A byte more may tip a near tie of two ways.
    assert np.mean(np.isclose(back.transfer_s, net.transfer_s, rtol=0.05)) > 0.95
    assert np.mean(back.links == net.links) > 0.95
    assert back.size_bytes == pytest.approx(net.size_bytes, rel=0.05)
    assert (back.test >= 0.3 * net.test).all()


@pytest.mark.parametrize("task", DATA)
def test_training_is_as_the_constants_were_fitted_on(task: str) -> None:
    fitted, data = TASKS[task](), DATA[task]
    family = PRESETS["digits" if task == "digits" else "healthcare"]
    method = {"epochs": family.tasks[0].epochs, **data.method}
    assert method == {**fitted.method.params}
    assert data.skills == tuple(fitted.skills)
    assert data.sources == tuple(plan.source.name for plan in fitted.skills.values())
    model = data.model(len(data.skills), 16)
    assert model.pop("name") == fitted.architecture.name
    assert model.keys() == fitted.architecture.config.keys()


def test_a_network_of_other_classes_is_refused() -> None:
    with pytest.raises(ScenarioError, match="up to 2 skills of 2 classes"):
        to_scenario(drawn(CLEAR), "departments")
    with pytest.raises(ScenarioError, match="did you mean 'digits'"):
        to_scenario(drawn(CLEAR), "digit")


def test_a_packet_of_another_size_is_refused() -> None:
    net = drawn(CLEAR)
    with pytest.raises(ScenarioError, match="bytes"):
        to_scenario(replace(net, size_bytes=9e9))


@pytest.mark.parametrize("task", DATA)
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("zoo", "large")])
def test_every_family_can_be_had_with_real_data(name: str, task: str) -> None:
    net = drawn(with_data(PRESETS[name], task))
    ((back, _),) = from_scenario(to_scenario(net, task))
    assert back.size_bytes == pytest.approx(net.size_bytes, rel=0.1)
    assert (back.has_data == net.has_data).all()


def test_adverts_may_differ_from_what_a_node_holds() -> None:
    net = drawn(replace(CLEAR, liars=(0.5, 0.5), withheld=(0.0, 0.0)))
    plan = compose(to_scenario(net))
    told = advertised(net, plan)
    shown = [sum(d.samples for d in node.core.data) for node in told.nodes.values()]
    held = [sum(d.samples for d in node.core.data) for node in plan.nodes.values()]
    assert shown == net.shown_samples.sum(1).tolist()
    assert shown != held
    assert all(a.data is b.data for a, b in zip(told.nodes.values(), plan.nodes.values(),
                                                strict=True))  # fmt: skip


# --- the clock: what a policy learns here must be so in the simulated world ---------------------


def spans(net: KnowledgeNetwork, lines: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Return what moves, visits and probes took in the trace, and by the network."""
    at = {str(site.name): i for i, site in enumerate(net.layout.sites)}
    found: dict[str, list[tuple[float, float]]] = {
        "first": [],
        "move": [],
        "visit": [],
        "probe": [],
    }
    trusted = float(net.reference.sum())
    start = goal = None
    seen = {net.home}
    grown = 0 if net.size_bytes == net.probe_bytes else 4  # visits until all its states travel
    for event in map(json.loads, lines):
        name, t, here = event["event"], event["t"], at[event["node"]]
        if name in ("visit.finished", "verdict"):
            start = t, here
        if name == "visit.finished":
            rows = (net.clean[here] + net.wrong[here]).sum()
            work = rows * net.epochs + 2 * FORWARD_SHARE * trusted
            seconds = 0.01 + work / net.samples_per_s[here]
            found["visit"].append((event["seconds"], seconds))
            grown -= 1
        elif name == "probe.finished" and start and event["gain"] is not None:
            there = at[event["candidate"]]
            held = (net.clean[there] + net.wrong[there]).sum(1)
            drawn = np.minimum(held, 16 // (held > 0).sum()).sum()
            work = PROBE_SHARE * drawn + TRUST_SHARE * min(64, trusted)
            seconds = net.probe_s[start[1], there] + 0.01 + work / net.samples_per_s[there]
            found["probe"].append((t - start[0], seconds))
        elif name == "decision" and event["path"]:
            goal = t, here, at[event["path"][-1]], event["hop"] + len(event["path"])
            is_first = not seen & {at[node] for node in event["path"]}
            seen |= {at[node] for node in event["path"]}
        elif name == "packet.received" and goal and (here, event["hop"]) == goal[2:] and grown <= 0:
            kind = "first" if is_first else "move"
            found[kind].append((t - goal[0], net.transfer_s[goal[1], here]))
    return found


@pytest.mark.parametrize(
    ("task", "seeds"),
    [
        ("digits", 1),
        pytest.param("digits", 4, marks=pytest.mark.slow),
        pytest.param("departments", 2, marks=pytest.mark.slow),
    ],
)
def test_moves_visits_and_probes_take_what_the_simulated_world_says(task: str, seeds: int) -> None:
    roomy = replace(PRESETS["healthcare"], queue=0.0, nodes=(24, 28), budget=(4.0, 4.0))
    family = roomy if task == "departments" else CLEAR
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        net = drawn(replace(family, seed=seed), seed)
        scenario = to_scenario(net, task, seed=seed, policy=Plugin("minibatch"))
        world = build_world(scenario, advertised(net, compose(scenario)))
        world.start()
        assert world.run(1e5, lambda world=world: bool(world.deliveries))
        for kind, pairs in spans(net, world.lines).items():
            found.setdefault(kind, []).extend(pairs)
    # A move to where no copy of the packet is, and a probe, to a tenth each, but that a node may
    # still be at an older probe; a visit is as long as its batches come out even; where a node
    # has a copy, trusted rows are not sent again.
    for kind, single, all_of_them in (
        ("first", 0.1, 0.05), ("probe", 0.1, 0.1), ("visit", 0.2, 0.1), ("move", 0.35, 0.15)
    ):  # fmt: skip
        real, ours = np.array(found[kind]).T
        assert len(real) >= 1, kind
        assert np.mean(np.abs(ours / real - 1) <= single) >= 0.9, kind
        assert ours.sum() == pytest.approx(real.sum(), rel=all_of_them), kind
