"""The environment shows a packet what a node's daemon would: bit for bit, from either side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import aats.node.decision
from aats.compose import build_world
from aats.config import build
from aats.ids import NodeId, PacketId, Version
from aats.lineage import Record, RecordKind
from aats.messages import ProbeScores
from aats.packet import (
    Architecture,
    Cost,
    EstimateSource,
    Header,
    Mandate,
    Owner,
    PacketKind,
    Plugin,
    ProbeEntry,
    SkillEstimate,
    Target,
    VisitEntry,
)
from aats.payload import Manifest
from aats.routing.observe import journey_of, observe, stops_of
from aats.routing.policy import Observation
from aats.routing.view import Journey, Kind, Stops, look
from aats.topology.drrt import HURT_GAIN, PROBE_SAMPLES
from aats.topology.stops import Candidate, StopKind, Topology
from aats_envs.presets import preset
from aats_envs.simulator import NOTICED_S, Simulator
from aats_envs.source import FamilySource

INF = float("inf")
NO_PROBES: Mapping[NodeId, ProbeScores] = {}

# --- what a node has seen, in a batch ---------------------------------------------------------


@dataclass
class Decision:
    header: Header
    topology: Topology
    now: float
    probes: Mapping[NodeId, ProbeScores]
    seen: Observation


def decisions(monkeypatch: pytest.MonkeyPatch, skills: int) -> list[Decision]:
    """Everything that the nodes of a simulated world showed a packet."""
    taken: list[Decision] = []

    def watched(header: Header, topology: Topology, now: float, **more: Any) -> Observation:
        seen = observe(header, topology, now, **more)
        taken.append(Decision(header, topology, now, dict(more["probes"]), seen))
        return seen

    names = [f"s{i}" for i in range(skills)]
    monkeypatch.setattr(aats.node.decision, "observe", watched)
    world = build_world(build({
        "scenario": {"seed": 3},
        "topology": {"generator": {"name": "ring", "nodes": 6 + skills}},
        "node": {"contributes_to": ["n1"], "samples_per_s": 300.0},
        "nodes": {
            "n0": {"roles": ["owner"]},
            "n1": {"roles": ["mpvu"], "contributes_to": []},
            "n2": {"show_labels": False, "data": {"s0": {"wrong_labels": 0.4}}},
        },
        "data": {"skills": {
            name: {"source": {"name": "classes", "number": 3 + i, "samples": 4000},
                   "partition": {"name": "dirichlet", "alpha": 0.5}}
            for i, name in enumerate(names)
        }},
        "packets": [{
            "name": "p", "owner": "n0", "policy": "minibatch", "method": "surrogate",
            "requirement": [{"skill": name, "value": 0.9} for name in names],
            "budget": {"hops": 60},
            "model": {"name": "surrogate",
                      "classes": {name: 3 + i for i, name in enumerate(names)}},
        }],
    }, name="parity"))  # fmt: skip
    world.start()
    world.run(600.0, lambda: bool(world.deliveries))
    return taken


def stacked(parts: Sequence[Any]) -> Any:
    """Journeys, or stops, in one batch, each field padded to the largest."""
    kind = type(parts[0])
    found = {}
    for field in fields(kind):
        values = [getattr(part, field.name) for part in parts]
        shape = np.max([value.shape for value in values], axis=0) if values[0].ndim else ()
        empty = Kind.NONE if field.name == "kind" else 0
        out = np.full((len(parts), *shape), empty, values[0].dtype)
        for i, value in enumerate(values):
            out[i, *(slice(n) for n in value.shape)] = value
        found[field.name] = out
    return kind(**found)


def test_a_batch_of_a_worlds_decisions_looks_as_each_did(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = decisions(monkeypatch, 1) + decisions(monkeypatch, 3)
    assert {str(d.seen.phase) for d in taken} >= {"seek", "verify", "return"}
    assert any(d.probes for d in taken)
    assert any(e.action == "verify" for d in taken for e in d.header.journal)
    journeys, stops = [], []
    for d in taken:
        journeys.append(journey_of(d.header, d.now, d.topology.candidates))
        stops.append(stops_of(d.header, d.topology.candidates, d.probes, journeys[-1]))
    batch: tuple[Stops, Journey] = stacked(stops), stacked(journeys)
    seen = look(*batch, 32)
    for i, d in enumerate(taken):
        assert seen.features[i].tobytes() == d.seen.features.tobytes()
        assert seen.globals[i].tobytes() == d.seen.globals.tobytes()
        assert np.array_equal(seen.mask[i], d.seen.mask)


# --- what the simulator shows, from a header --------------------------------------------------


@dataclass
class Diary:
    """What a packet's header would tell of one row, kept by what the row is seen to do."""

    journal: list[VisitEntry]
    skills: dict[tuple[int, EstimateSource], tuple[float, int]]
    """Value and version by skill and source."""
    measured: dict[int, list[float]]
    """By version, what the trusted rows told."""
    version: int = 0


def name(node: int) -> NodeId:
    return NodeId(f"n{node:03}")


def note(sim: Simulator, row: int, diary: Diary, before: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write down what the last step of a row did."""
    node, hop = int(sim.at[row]), int(sim.hop[row])
    skills = range(int((sim.net.classes[row] > 0).sum()))
    if sim.visits[row].sum() > before["visits"][row].sum():
        undone = sim.failed[row].sum() > before["failed"][row].sum()
        action = "rolled-back" if undone else "train"
        gain = float(sim.last_gain[row, node])
        diary.journal.append(VisitEntry(name(node), hop, action, gain, 100, 1))
        if not undone:
            diary.version += 1
            diary.measured[diary.version] = sim.trusted[row].tolist()
            for t in skills:
                value = float(sim.trusted[row, t])
                diary.skills[t, EstimateSource.REFERENCE] = value, diary.version
    elif sim.spent[row, 1] > before["spent"][row, 1] and sim.since[row] == 0 and sim.judged[row]:
        diary.journal.append(VisitEntry(name(node), hop, "verify", 0.0, 100, 1))
        for t in skills:
            diary.skills[t, EstimateSource.MPVU] = float(sim.belief[row, t]), diary.version


def header_of(sim: Simulator, row: int, diary: Diary) -> Header:
    net, t = sim.net, int((sim.net.classes[row] > 0).sum())
    skills = [f"s{i}" for i in range(t)]
    versions = {v: Version(f"v{v}") for v in range(diary.version + 1)}
    mandate = Mandate(
        id=PacketId("p"), kind=PacketKind.TRAIN, owner=Owner(name(int(net.home[row])), b""),
        created=0.0, deadline=INF, method=Plugin("any"), policy=Plugin("any"), seed=0,
        requirement=tuple(Target(s, float(net.target[row, i])) for i, s in enumerate(skills)),
        budget=Cost(*net.budget[row].tolist()), architecture=Architecture("any"),
    )  # fmt: skip
    return Header(
        mandate,
        hop=int(sim.hop[row]),
        spent=Cost(*sim.spent[row].tolist()),
        version=versions[diary.version],
        skills=tuple(
            SkillEstimate(skills[i], "accuracy", value, value, value, 100, NodeId("x"), source,
                          versions[version])
            for (i, source), (value, version) in diary.skills.items()
        ),
        chain=tuple(
            Record(mandate.id, RecordKind.TRAIN if v else RecordKind.INIT, NodeId("x"), 0, 0, (),
                   versions[max(0, v - 1)], versions[v],
                   metrics={f"{s}.accuracy.reference": values[i] for i, s in enumerate(skills)})
            for v, values in diary.measured.items()
        ),
        journal=tuple(diary.journal),
        labels_used={s: sim.used[row, i, : net.classes[row, i]].tolist()
                     for i, s in enumerate(skills)},
        manifest=Manifest((), int(net.size_bytes[row])),
    )  # fmt: skip


def topology_of(sim: Simulator, row: int, header: Header) -> Topology:
    """What `aats.topology.drrt` would cut for the packet in this row."""
    net, here = sim.net, int(sim.at[row])
    clock, speed = sim.spent[row, 1], net.shown_per_s[row]
    down = (net.down[row, :, 0] + NOTICED_S <= clock) & (clock < net.down[row, :, 1])
    seconds = np.where(down & (np.arange(net.limits.nodes) != here), INF,
                       net.shown_transfer_s[row, here])  # fmt: skip
    skills = [t.skill for t in header.mandate.requirement]

    def past(node: int, is_data: bool) -> dict[str, Any]:
        entries = [e for e in header.journal
                   if e.node == name(node) and (e.action != "verify") is is_data]  # fmt: skip
        if not entries:
            return {}
        bad = sum(e.action == "rolled-back" for e in entries)
        return {
            "visits": len(entries), "hops_since": header.hop - entries[-1].hop,
            "trust": (1 + len(entries) - bad) / (1 + len(entries)),
        }  # fmt: skip

    def plain(node: int, kind: StopKind) -> Candidate:
        return Candidate(
            name(node), kind, path=(name(node),) * int(net.links[row, here, node]),
            transfer_s=float(seconds[node]), compute_s=0.0, age_s=15.0, probe_allowed=False,
            verify_s=float(net.verify_s[row, node]), **past(node, is_data=False),
        )  # fmt: skip

    found = []
    for node in np.flatnonzero(net.has_data[row] & np.isfinite(seconds)).tolist():
        samples, memory = net.shown_samples[row, node], sim.memory[row, node]
        last = next((e for e in reversed(header.journal)
                     if e.node == name(node) and e.action != "verify"), None)  # fmt: skip
        probed = ProbeEntry(name(node), int(memory[4]), *memory[1:4].tolist(), 1)
        found.append(replace(
            plain(node, StopKind.DATA),
            compute_s=float(samples.sum() / speed[node] * (1 + net.queue[row, node])),
            probe_s=float(net.probe_s[row, here, node] + PROBE_SAMPLES / speed[node]),
            samples={s: samples[i] for i, s in enumerate(skills) if samples[i] > 0},
            labels={s: tuple(net.shown[row, node, i, : net.classes[row, i]].tolist())
                    for i, s in enumerate(skills)
                    if net.shows_labels[row, node, i] and samples[i] > 0},
            quality=float(net.quality[row, node]),
            freshness_s=float(net.freshness_s[row, node]),
            **({"visits": 0, "hops_since": -1, "trust": 1.0} | past(node, is_data=True)),
            last_gain=last.gain if last else 0.0,
            hurt=bool(last and (last.action == "rolled-back" or last.gain < HURT_GAIN)),
            probe_allowed=bool(net.probe_allowed[row, node]),
            probed=probed if memory[0] > 0 else None,
            hops_since_probe=header.hop - int(memory[4]) if memory[0] > 0 else -1,
        ))  # fmt: skip
    units = [m for m in net.mpvu_at[row].tolist() if m >= 0 and np.isfinite(seconds[m])]
    found += [plain(unit, StopKind.MPVU) for unit in units]
    found.append(plain(int(net.home[row]), StopKind.HOME))
    return Topology(name(here), tuple(found))


@pytest.mark.parametrize(("family", "k"), [("train", 32), ("train", 9), ("small", 12)])
def test_a_header_made_of_a_row_shows_what_the_row_sees(family: str, k: int) -> None:
    sim = Simulator(FamilySource(preset(family), 8), 6, k=k)
    rows = np.arange(6)
    sim.reset(rows.tolist(), [11, 12, 13, 14, 15, 16])
    diaries = [Diary([], {}, {0: sim.trusted[row].tolist()}) for row in rows]
    rng, stages, verdicts = np.random.default_rng(0), set(), 0
    for _ in range(25):
        headers = [header_of(sim, row, diaries[row]) for row in rows]
        topologies = [topology_of(sim, row, header) for row, header in enumerate(headers)]
        sim.look()
        for row, (header, topology) in enumerate(zip(headers, topologies, strict=True)):
            shown = sim.seen.rows[row]
            probes = {
                name(int(shown[i])): ProbeScores(*scores[1:].tolist(), 16)
                for i, scores in enumerate(sim.probed[row]) if scores[0] > 0
            }  # fmt: skip
            seen = observe(header, topology, 0.0, probes=probes, k=k)
            assert seen.phase == ("seek", "verify", "return")[sim.seen.stage[row]]
            stages.add(str(seen.phase))
            assert np.array_equal(seen.mask, sim.seen.mask[row])
            assert seen.globals.tobytes() == sim.seen.globals[row].tobytes()
            different = np.argwhere(seen.features != sim.seen.features[row])
            assert not len(different), different
        before = {key: getattr(sim, key).copy() for key in ("visits", "failed", "spent")}
        choice = np.where(sim.seen.mask, rng.random(sim.seen.mask.shape), -1).argmax(axis=1)
        outcome = sim.step(choice)
        verdicts += int(sim.judged.sum())
        for row in rows:
            note(sim, row, diaries[row], before)
            if outcome.terminated[row]:
                sim.reset([row], [int(rng.integers(2**63))])
                diaries[row] = Diary([], {}, {0: sim.trusted[row].tolist()})
    assert stages == {"seek", "verify", "return"}
    assert verdicts > 0
