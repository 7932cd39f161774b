"""Taking contributions out of the model of a run: three levels, and a signed record of it.

1. *subtract*: the sum without them. Exact for the latest contribution only: what was added later
   had adapted to what is gone, so that subtraction alone often hurts.
2. *repair*: then train the later ones a little further, each at its own node or all of them at
   one. Not exact either: what they learned from the one that is gone is not unlearned for certain.
3. *rebuild*: go back to the chain before them, and make the later visits again. Exact by making.
   For a model that is no chain it is the whole training again, without the node.

Levels 2 and 3 send a packet through the run's own scenario, in the world it ran in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from pathlib import Path
from typing import Any

from aats.compose import compose, first_payload, measure_on
from aats.config import Budget, NodeConfig, Scenario
from aats.config.scenario import PacketConfig
from aats.errors import DataError, LocalError, ModelError, ScenarioError, nearest
from aats.ids import NodeId, Version
from aats.learning.lora import Contribution, LoraModel
from aats.learning.stored import pack_module
from aats.ledger.file import write_ledger
from aats.ledger.record import check_chain, seal
from aats.lineage import Record, RecordKind
from aats.oam.progress import progress
from aats.oam.rundir import write_model
from aats.oam.view import RunView
from aats.options import World
from aats.packet import Cost, Header, Plugin
from aats.payload import MODEL, Payload
from aats.roles.owner import make_packet
from aats.unlearning.level import STEPS, Level
from aats.unlearning.past import Made, Past, sum_up

NEVER = 1.0 + 1e-6
"""A target that no metric reaches: the packet makes all its visits."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a person asked for."""

    what: str
    """A node, a contribution (`hop@node`), or the beginning of a ledger record's id."""
    run_dir: Path
    level: Level = Level.SUBTRACT
    packet: str = ""
    """Of a run with several."""
    at: NodeId = NodeId("")
    """The node that repairs all later contributions; "": each one's own does."""
    steps: int = STEPS
    """Steps of repair, shared out evenly."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What came of it."""

    packet: str
    gone: tuple[str, ...]
    """The contributions, or the node of a model that is no chain."""
    level: Level
    exact: bool
    """Whether the model is, to the bit, one that never had them."""
    says: str
    """How far that can be relied upon, in words."""
    model: Path
    version: Version
    record: str
    """Id of the signed record."""
    cost: Made
    since: Made
    """What the visits since the first of them cost, which full retraining would make again."""
    all: Made
    """What all visits cost."""
    stops: tuple[NodeId, ...] = ()
    """Where the packet of levels 2 and 3 worked."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Value by skill on rows that no node held, with them; empty without such rows."""
    after: Mapping[str, float] = field(default_factory=dict)


def forget(order: Order, *, quiet: bool = False) -> Forgotten:
    """Take contributions out; write the new model, the ledger with its record, and what else.

    Args:
        order: What to take out, and how.
        quiet: Show nothing of the packet's way.

    Raises:
        ScenarioError: If there is nothing of that name, or the level is none for this model.
        LedgerError: If the run's ledger does not verify.
        ModelError: If its model is not that of the ledger.
        LocalError: If the owner's key is not there, or a packet did not come home.
    """
    past = Past.read(order.run_dir, order.packet)
    key = past.key()
    started = time.perf_counter()
    job = _chain_job(past, order) if past.is_chain else _plain_job(past, order)
    payload, stops = job.start, tuple[NodeId, ...]()
    cost = Made(spent=Cost(seconds=time.perf_counter() - started))
    folder = _new_folder(past)
    home: Header | None = None
    if job.config is not None:
        folder.mkdir()
        start = folder / "start.safetensors"
        write_model(start, job.start)
        home, payload = _send(past, job, folder, start, quiet)
        stops = tuple(r.node for r in home.chain if r.steps)
        travelled = Cost(home.spent.hops, 0.0, home.spent.bytes, 0.0)
        cost = sum_up(home.chain, travelled)
        write_ledger(order.run_dir / "ledger" / f"{folder.name}.jsonl", home.chain)
    version = payload.manifest.version(MODEL)
    file = order.run_dir / "models" / f"{folder.name}.safetensors"
    before, after = _measured(past, past.payload, payload)
    last = past.head
    through = f"; packet {home.id}, record {home.lineage[:12]}" if home else ""
    record = seal(
        Record(
            packet=last.packet, kind=RecordKind.REMOVE, node=key.node,
            hop=last.hop + 1 + (home.hop if home else 0), epoch=last.epoch, parents=(last.id,),
            base=last.version, version=version, method=last.method, steps=cost.steps,
            samples=sum(r.samples for r in home.chain) if home else 0, seed=last.seed,
            metrics={f"{skill}.test": value for skill, value in after.items()},
            note=f"{order.level} {' '.join(job.gone)}{through}", at=time.time(),
            seconds=cost.spent.seconds, wire_bytes=last.wire_bytes + cost.spent.bytes,
            joules=cost.spent.joules,
        ),
        key,
    )  # fmt: skip
    chain = (*past.chain, record)
    check_chain(chain)
    write_model(file, payload)
    write_ledger(order.run_dir / "ledger" / f"{past.config.name}.jsonl", chain)
    exact = order.level is Level.REBUILD or version == job.clean
    return Forgotten(
        packet=past.config.name, gone=job.gone, level=order.level, exact=exact,
        says=_says(order.level, version == job.clean), model=file, version=version,
        record=record.id, cost=cost, since=past.visits(job.first), all=past.visits(),
        stops=stops, before=before, after=after,
    )  # fmt: skip


def _says(level: Level, is_clean: bool) -> str:
    if is_clean:
        return "exact: nothing was added after it, and the model is the one before it, to the bit"
    if level is Level.REBUILD:
        return "exact: made again from before it, without it"
    return (
        "not exact unlearning: what was added later had adapted to what is gone, and may still "
        "tell of it; only level rebuild, or removal of the latest contribution, is exact"
    )


# --- what is to be done -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    gone: tuple[str, ...]
    first: Record
    """Of the first visit that is taken out."""
    start: Payload
    """The model without them, before any work."""
    clean: Version | None
    """Version of the model before the first of them."""
    config: PacketConfig | None = None
    """Of the packet to be sent; None if nothing is left to be done."""
    withdrawn: NodeId = NodeId("")


def _chain_job(past: Past, order: Order) -> _Job:
    gone = past.wanted(order.what)
    records = [past.added[Contribution(c.hop, c.node)] for c in gone]
    first = min(records, key=lambda r: r.hop)
    folded = [c for c in gone if c in past.folded]
    if folded and order.level is not Level.REBUILD:
        at = past.folded[folded[0]]
        raise ScenarioError(
            "--level", order.level.value,
            f"{folded[0]} was folded into the base at hop {at.hop} by {at.node} and can no longer "
            "be told apart: only rebuild is left",
        )  # fmt: skip
    model = past.model()
    before = [c for c in model.contributions if all(past.is_before(c, g) for g in gone)]
    later = [c for c in model.contributions if c not in before and c not in gone]
    withdrawn = order.what if order.what in past.scenario.nodes else ""
    if order.level is Level.REBUILD:
        start = _start_again(past) if folded else _without(model, [*gone, *later])
        if folded:
            later = [c for c in sorted({*past.folded, *model.contributions}) if c not in gone]
    else:
        start = _without(model, gone)
    job = _Job(tuple(map(str, gone)), first, start, first.base, withdrawn=NodeId(withdrawn))
    if not later or order.level is Level.SUBTRACT:
        return job
    stops = [c.node for c in later]
    params: dict[str, Any] = dict(past.config.method.params)
    if order.level is Level.REPAIR:
        stops = _repair_at(past, order, stops, {c.node for c in gone})
        params |= {
            "repair": [*map(str, later)],
            "repair_own": not order.at,
            "steps": ceil(order.steps / len(stops)),
        }
    else:
        params |= {"since": past.head.hop + 1}
    params |= {"visits": len(stops)}
    return replace(job, config=_errand(past, params, stops))


def _without(model: LoraModel, gone: Sequence[Contribution]) -> Payload:
    for c in gone:
        model.remove(c)
    return pack_module(model)


def _repair_at(
    past: Past, order: Order, own: Sequence[NodeId], gone: Collection[NodeId]
) -> list[NodeId]:
    if not order.at:
        return [*dict.fromkeys(own)]
    nodes = past.scenario.nodes
    if order.at not in nodes:
        raise ScenarioError("--at", order.at, f"nodes are {', '.join(nodes)}",
                            nearest(order.at, nodes))  # fmt: skip
    if NodeId(order.at) in gone:
        raise ScenarioError("--at", order.at, "a node that is not to be forgotten is wanted")
    return [order.at]


def _errand(past: Past, params: Mapping[str, Any], stops: Sequence[NodeId]) -> PacketConfig:
    """Return a packet that makes these visits, whatever skill it has by then."""
    config, size = past.config, len(past.scenario.nodes)
    return replace(
        config,
        requirement=tuple(replace(t, value=NEVER) for t in config.requirement),
        method=Plugin(config.method.name, dict(params)),
        policy=Plugin("itinerary", {"stops": [*stops]}),
        rendezvous=None,
        budget=Budget(hops=float(2 * size * (len(stops) + 2))),
        deadline_s=inf,
        after_s=0.0,
    )


def _plain_job(past: Past, order: Order) -> _Job:
    if order.level is not Level.REBUILD:
        raise ScenarioError(
            "--level", order.level.value,
            f"method {past.config.method.name!r} keeps no contributions apart: only rebuild works",
        )  # fmt: skip
    nodes = past.scenario.nodes
    visits = [r for r in past.chain if r.kind is RecordKind.TRAIN and r.node == order.what]
    if order.what not in nodes or not visits:
        trained = dict.fromkeys(r.node for r in past.chain if r.kind is RecordKind.TRAIN)
        allowed = f"whole nodes only, of those it trained at: {', '.join(trained)}"
        raise ScenarioError("WHAT", order.what, allowed, nearest(order.what, nodes))
    config = replace(past.config, after_s=0.0)
    node = NodeId(order.what)
    start = _start_again(past)
    return _Job((node,), visits[0], start, None, config, node)


def _start_again(past: Past) -> Payload:
    """Return the model the packet left its owner with, made again."""
    payload = first_payload(past.scenario, past.number)
    if payload.manifest.version(MODEL) != past.chain[0].version:
        raise ModelError(
            f"{past.config.name}: its first weights cannot be made again (other versions of what "
            "makes them, or its file of weights has changed)"
        )
    return payload


# --- the packet that does it --------------------------------------------------------------------


def _new_folder(past: Past) -> Path:
    number = 1
    while (past.run_dir / "models" / f"{past.config.name}.forget-{number}.safetensors").exists():
        number += 1
    return past.run_dir / f"{past.config.name}.forget-{number}"


def _send(past: Past, job: _Job, folder: Path, start: Path, quiet: bool) -> tuple[Header, Payload]:
    assert job.config is not None
    scenario = past.scenario
    nodes: dict[NodeId, NodeConfig] = dict(scenario.nodes)
    if job.withdrawn:
        nodes[job.withdrawn] = replace(nodes[job.withdrawn], withdrawn=True)
    number = int(folder.name.rpartition("-")[2])
    config = replace(
        job.config, name=folder.name, weights=str(start.resolve()),
        seed=past.number * 1000 + number + len(scenario.packets),
    )  # fmt: skip
    errand = replace(scenario, nodes=nodes, packets=(config,), faults=())
    delivered = _run(errand, folder, past.world, quiet)
    if len(delivered) != 1:
        limit = scenario.scenario.limit_s
        raise LocalError(f"{folder}: the packet did not come home in {limit:g} s; see its trace")
    ((header, payload),) = delivered.values()
    check_chain(header.chain)
    return header, payload


def _run(
    scenario: Scenario, folder: Path, world: World, quiet: bool
) -> Mapping[Any, tuple[Header, Payload]]:
    from aats.run import Watch, run_live, run_simulated

    view = RunView()
    title = f"{folder.name}: {len(scenario.nodes)} nodes, world {world}"
    with progress(view, title, quiet=quiet) as shown:
        watch = Watch(view, shown)
        if world is World.SIM:
            return run_simulated(scenario, folder, watch)
        return asyncio.run(run_live(scenario, folder, watch))


# --- what it does to the skill ------------------------------------------------------------------


def _measured(past: Past, *payloads: Payload) -> list[dict[str, float]]:
    """Return models' values on rows that no node held; nothing where the data are not here."""
    config = past.config
    try:
        test = compose(past.scenario).test
    except DataError:
        return [{} for _ in payloads]
    out = []
    for payload in payloads:
        header, _ = make_packet(
            past.key(), config.model, config.requirement, created=0.0, payload=payload
        )
        found = measure_on(header, payload, test)
        out.append({skill: float(measured["value"]) for skill, measured in found.items()})
    return out
