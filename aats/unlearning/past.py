"""What a run left behind of one packet: its verified history, its model, who contributed what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aats.compose import simulated_identity
from aats.config import Scenario
from aats.config.load import load_scenario
from aats.config.scenario import PacketConfig
from aats.errors import LedgerError, LocalError, ModelError, ScenarioError, nearest
from aats.identity import Identity
from aats.learning.lora import NAME as LORA
from aats.learning.lora import Contribution, LoraModel
from aats.learning.modules import ModuleBackend
from aats.learning.stored import read_model
from aats.ledger.file import read_ledger, verify_ledger
from aats.ledger.record import heads
from aats.lineage import Record, RecordKind
from aats.node.spec import IDENTITY_FILE
from aats.options import World
from aats.packet import Architecture, Cost
from aats.payload import MODEL, Payload

_ADDED = re.compile(r"added (\S+) of rank [0-9]+")
_FOLDED = re.compile(r"folded (.+) into the base")
_REPAIRED = re.compile(r"repaired (.+)")
_VISITS = RecordKind.TRAIN, RecordKind.ROLLED_BACK
RECORD_DIGITS = 8
"""Digits of a record's id that will do to name it."""


@dataclass(frozen=True, slots=True)
class Made:
    """What some visits cost."""

    visits: int = 0
    steps: int = 0
    spent: Cost = Cost()
    """Hops count links; seconds are those of the work alone."""


@dataclass(frozen=True, slots=True)
class Past:
    """One packet of a run that is over.

    Attributes:
        run_dir: The run's folder.
        world: Where it ran.
        scenario: As it was resolved.
        config: The packet's.
        number: Its place in the scenario.
        chain: Its verified history.
        every: With the histories of the packets sent to repair or rebuild it.
        payload: The model of the history's head.
        added: By contribution, the record of the visit that added it.
        folded: By contribution, the record of the visit that folded it into the base.
        repaired: Contributions that were trained again after another one was taken out.
    """

    run_dir: Path
    world: World
    scenario: Scenario
    config: PacketConfig
    number: int
    chain: tuple[Record, ...]
    every: tuple[Record, ...]
    payload: Payload
    added: dict[Contribution, Record]
    folded: dict[Contribution, Record]
    repaired: set[Contribution]

    @classmethod
    def read(cls, run_dir: Path, packet: str = "") -> Past:
        """Return the past of a packet, its ledger verified and its model found.

        Args:
            run_dir: As `aats launch` writes it.
            packet: Its name; "" where the run had one only.

        Raises:
            ScenarioError: If it is no run's folder or has no such packet.
            LedgerError: If a ledger does not verify, its history forks, or does not tell who added
                what the model holds.
            ModelError: If no model there is that of the ledger.
        """
        world = _world(run_dir)
        scenario = load_scenario(run_dir)
        known = [p.name for p in scenario.packets]
        name = packet or (known[0] if len(known) == 1 else "")
        if name not in known:
            raise ScenarioError("--packet", packet or None, f"packets are {', '.join(known)}",
                                nearest(name, known))  # fmt: skip
        number = known.index(name)
        config = scenario.packets[number]
        chain = _verified(run_dir / "ledger" / f"{name}.jsonl")
        later = sorted((run_dir / "ledger").glob(f"{name}.forget-*.jsonl"))
        every = (*chain, *(record for file in later for record in _verified(file)))
        payload = _model_of(run_dir, name, config.model, chain[-1])
        past = cls(run_dir, world, scenario, config, number, chain, every, payload, {}, {}, set())
        for record in every:
            if found := _ADDED.match(record.note):
                mine = {c: record for c in named(found[1]) if past._is_by(record, c)}
                past.added.update(mine)
            if found := _FOLDED.search(record.note):
                past.folded.update(dict.fromkeys(named(found[1]), record))
            if found := _REPAIRED.fullmatch(record.note):
                past.repaired.update(named(found[1]))
        past._check_added()
        return past

    def _is_by(self, record: Record, contribution: Contribution) -> bool:
        """Return whether a record is by who can have added this: the node, or its delegate."""
        node = self.scenario.nodes.get(contribution.node)
        return record.node == contribution.node or (
            node is not None and node.delegate == record.node
        )

    def _check_added(self) -> None:
        for c in self.model().contributions if self.is_chain else ():
            self.folded.pop(c, None)  # it is there, whatever some note says
            if Contribution(c.hop, c.node) not in self.added:
                raise LedgerError(f"{self.config.name}: no record tells who added {c}")

    @property
    def head(self) -> Record:
        """The last record."""
        return self.chain[-1]

    @property
    def is_chain(self) -> bool:
        """Whether nothing but contributions changed the model: it is a LoRA chain."""
        return self.config.model.name == LORA and self.config.method.name == "lora"

    def model(self) -> LoraModel:
        """Return the model, of a LoRA chain."""
        found = ModuleBackend().load(self.config.model, self.payload).module
        assert isinstance(found, LoraModel)
        return found

    def is_before(self, one: Contribution, other: Contribution) -> bool:
        """Return whether a contribution was made, and left since, without knowledge of another.

        On branches of one fork neither is before the other.
        """
        first, second = (self.added[Contribution(c.hop, c.node)] for c in (one, other))
        if one in self.repaired:
            return False
        if first.packet != second.packet:
            return one < other
        return first.id in self._ancestors(second)

    def _ancestors(self, record: Record) -> set[str]:
        known = {r.id: r for r in self.every}
        found: set[str] = set()
        left = list(record.parents)
        while left:
            name = left.pop()
            if name not in found and name in known:
                found.add(name)
                left += known[name].parents
        return found

    def wanted(self, what: str) -> tuple[Contribution, ...]:
        """Return the contributions that a person names, the oldest first.

        Args:
            what: A node, a contribution (`hop@node`), or the beginning of a record's id.

        Raises:
            ScenarioError: If there is none, naming those there are.
        """
        held = {*self.model().contributions, *self.folded}
        by_record = {c: r.id for c, r in self.added.items()}
        chosen = [
            c for c in sorted(held)
            if what in (c.node, str(c))
            or (len(what) >= RECORD_DIGITS and by_record.get(c, "").startswith(what))
        ]  # fmt: skip
        if not chosen:
            known = [*map(str, sorted(held))]
            raise ScenarioError("WHAT", what, f"contributions are {', '.join(known) or 'none'}",
                                nearest(what, known))  # fmt: skip
        return tuple(chosen)

    def key(self) -> Identity:
        """Return the owner's key.

        Raises:
            LocalError: If it is not in the run's folder or not the one the history began with.
        """
        owner = self.config.owner
        if self.world is World.SIM:
            key = simulated_identity(self.scenario, owner)
        else:
            key = Identity.load(owner, self.run_dir / "nodes" / owner / IDENTITY_FILE)
        if key.public_key != self.chain[0].public_key:
            raise LocalError(f"{self.config.name}: the key of {owner} is not the one of its ledger")
        return key

    def visits(self, after: Record | None = None) -> Made:
        """Return what the visits of the run cost, all of them or those after a record."""
        from_hop, start = (after.hop, after.wire_bytes) if after else (-1, 0.0)
        made = [r for r in self.chain if r.kind in _VISITS and r.hop > from_hop]
        last = max((r for r in self.chain if r.kind is not RecordKind.REMOVE), key=lambda r: r.hop)
        return sum_up(made, Cost(last.hop - max(0, from_hop), 0.0, last.wire_bytes - start, 0.0))


def named(text: str) -> list[Contribution]:
    """Return the contributions that a note names; what is none, a node may write as it likes."""
    found = []
    for word in text.split():
        try:
            found.append(Contribution.of(word))
        except ModelError:
            continue
    return found


def sum_up(records: Iterable[Record], travelled: Cost = Cost()) -> Made:
    """Return what visits cost, given what was spent on the way."""
    visits = [r for r in records if r.kind in _VISITS]
    work = Cost(0.0, sum(r.seconds for r in visits), 0.0, sum(r.joules for r in visits))
    return Made(len(visits), sum(r.steps for r in visits), travelled + work)


def _world(run_dir: Path) -> World:
    try:
        return World(json.loads((run_dir / "result.json").read_text(encoding="utf-8"))["world"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        allowed = "the folder of a run that is over is wanted"
        raise ScenarioError("RUN_DIR", str(run_dir), allowed) from error


def _verified(path: Path) -> tuple[Record, ...]:
    try:
        verify_ledger(path)
        chain = read_ledger(path)
    except OSError as error:
        raise ScenarioError("RUN_DIR", str(path), "a run has a ledger there") from error
    if len(heads(chain)) != 1:
        raise LedgerError(f"{path}: the history has {len(heads(chain))} heads, allowed is one")
    return chain


def _model_of(run_dir: Path, name: str, architecture: Architecture, head: Record) -> Payload:
    files = _models(run_dir, name)
    for path in files:
        payload = read_model(path, architecture)
        if payload.manifest.version(MODEL) == head.version:
            return payload
    found = ", ".join(path.name for path in files) or "no file"
    raise ModelError(
        f"{run_dir / 'models'}: version {head.version[:12]} of the ledger is not that of {found}"
    )


def _models(run_dir: Path, name: str) -> Sequence[Path]:
    folder = run_dir / "models"
    return [*sorted(folder.glob(f"{name}.forget-*.safetensors"), reverse=True),
            *folder.glob(f"{name}.safetensors")]  # fmt: skip
