"""The state of a run as its trace tells it: one `PacketView` per packet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aats.ids import trunk_of

Event = Mapping[str, Any]
"""One line of `events.jsonl`: `t` (seconds), `node`, `event`, and fields of its own."""


@dataclass(slots=True)
class Point:
    """A skill's value at one moment of a packet's journey."""

    hop: int
    bytes: float
    t: float
    skill: str
    value: float
    source: str


@dataclass(slots=True)
class PacketView:
    """One packet as it is known so far."""

    id: str
    label: str = ""
    kind: str = "train"
    owner: str = ""
    status: str = "on its way"
    """"on its way", "home"."""
    where: str = ""
    doing: str = ""
    """What it does or waits for, in words."""
    hop: int = 0
    epoch: int = 0
    hop_budget: float = 0.0
    stops: list[tuple[int, str, str]] = field(default_factory=list)
    """(hop, node, what for) of every visit, in order."""
    skills: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per skill: metric, value, low, high, source, by, target, met."""
    requirement: dict[str, float] = field(default_factory=dict)
    bytes: float = 0.0
    probe_bytes: float = 0.0
    seconds: float = 0.0
    hops: float = 0.0
    met: bool = False
    curve: list[Point] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    tested: dict[str, dict[str, float | int]] = field(default_factory=dict)
    """Per skill: value and n on rows that no node held, measured after the run."""
    regenerated: int = 0
    rolled_back: int = 0
    refusals: int = 0
    rounds: int = 0
    """Merges of children so far."""
    visits_of_children: int = 0
    away: int = 0
    """Children on their way."""
    _at: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Label, or the head of the id."""
        return self.label or self.id[:8]

    @property
    def route(self) -> list[str]:
        """Nodes that held the packet, in hop order, each hop's last custodian."""
        return [self._at[hop] for hop in sorted(self._at)]

    def hold(self, hop: int, node: str) -> None:
        """Note who holds the packet at a hop; a regenerated one forgets later hops."""
        self._at[hop] = node
        for later in [h for h in self._at if h > hop]:
            del self._at[later]
        self.stops = [s for s in self.stops if s[0] <= hop]
        self.where, self.hop = node, hop


class RunView:
    """Folds trace events into packet views."""

    def __init__(self) -> None:
        self.packets: dict[str, PacketView] = {}
        self.first_t: float | None = None
        """Time of the first event; a live run's clock is Unix time."""
        self.last_t = 0.0

    def apply(self, event: Event) -> None:
        """Take in one event; those it does not know are no news."""
        if self.first_t is None:
            self.first_t = float(event["t"])
        self.last_t = max(self.last_t, float(event["t"]))
        name = event["event"]
        if "packet" in event:
            trunk = trunk_of(event["packet"])
            packet = self.packets.get(trunk)
            if packet is None:
                packet = self.packets[trunk] = PacketView(trunk)
            is_trunk = trunk == event["packet"]
            what = "_" if is_trunk else "_child_"
            handler = getattr(self, what + name.replace(".", "_"), None)
            if handler is not None:
                handler(packet, event)

    def _packet_submitted(self, packet: PacketView, event: Event) -> None:
        packet.label, packet.kind = event["label"], event["kind"]
        packet.owner = event["node"]
        packet.hop_budget = event.get("hop_budget", 0.0)
        packet.requirement = dict(event.get("requirement", {}))
        packet.hold(0, event["node"])
        packet.doing = "leaving"

    def _packet_received(self, packet: PacketView, event: Event) -> None:
        if event["epoch"] < packet.epoch:
            return
        packet.epoch = event["epoch"]
        packet.hold(event["hop"], event["node"])
        packet.hops = event["hop"]
        packet.doing = "arrived"

    def _visit_started(self, packet: PacketView, event: Event) -> None:
        packet.doing = "training"

    def _visit_finished(self, packet: PacketView, event: Event) -> None:
        packet.stops.append((event["hop"], event["data_of"], event["action"]))
        packet.doing = event["action"]
        packet.rolled_back += event["action"] == "rolled-back"
        self._measure(packet, event)

    def _verdict(self, packet: PacketView, event: Event) -> None:
        packet.stops.append((event["hop"], event["node"], "verify"))
        packet.doing = "verified"
        self._measure(packet, event)

    def _measure(self, packet: PacketView, event: Event) -> None:
        packet.bytes = event["bytes"]
        for skill, found in event["skills"].items():
            packet.skills[skill] = dict(found)
            packet.curve.append(
                Point(event["hop"], event["bytes"], event["t"], skill, found["value"],
                      found["source"])
            )  # fmt: skip

    def _packet_forked(self, packet: PacketView, event: Event) -> None:
        packet.away = len(event["children"])
        packet.doing = f"waits for {packet.away} children"

    def _packet_merged(self, packet: PacketView, event: Event) -> None:
        packet.rounds += 1
        packet.away, packet.hop = 0, event["hop"]
        packet.stops.append((event["hop"], event["node"], "merge"))
        packet.doing = f"merged {len(event['merged'])} children"
        self._measure(packet, event)

    def _child_packet_back(self, packet: PacketView, event: Event) -> None:
        packet.away -= 1
        packet.doing = f"waits for {packet.away} children"

    def _child_visit_finished(self, packet: PacketView, event: Event) -> None:
        packet.visits_of_children += 1
        packet.rolled_back += event["action"] == "rolled-back"

    def _child_visit_failed(self, packet: PacketView, event: Event) -> None:
        packet.refusals += 1

    def _child_packet_refused(self, packet: PacketView, event: Event) -> None:
        packet.refusals += 1

    def _child_packet_regenerated(self, packet: PacketView, event: Event) -> None:
        packet.regenerated += 1

    def _visit_failed(self, packet: PacketView, event: Event) -> None:
        packet.refusals += 1
        packet.stops.append((event["hop"], event["node"], "refused"))
        packet.doing = f"visit refused: {event['reason']}"

    def _packet_refused(self, packet: PacketView, event: Event) -> None:
        packet.refusals += 1
        packet.doing = f"{event['by']} refused: {event['reason']}"

    def _packet_rerouted(self, packet: PacketView, event: Event) -> None:
        packet.doing = f"re-routing: {event['why']}"

    def _packet_waiting(self, packet: PacketView, event: Event) -> None:
        packet.doing = f"waits for {event['why']}"

    def _packet_regenerated(self, packet: PacketView, event: Event) -> None:
        packet.regenerated += 1
        packet.epoch = max(packet.epoch, event["epoch"])
        packet.hold(event["hop"], event["node"])
        packet.doing = "taken up again from its spare"

    def _decision(self, packet: PacketView, event: Event) -> None:
        packet.decisions.append(dict(event))
        packet.probe_bytes = event["probe_bytes"]
        packet.doing = f"to {event['chosen']}" if event["path"] else packet.doing

    def _packet_home(self, packet: PacketView, event: Event) -> None:
        packet.status, packet.where, packet.doing = "home", event["node"], "home"
        packet.met = event["met"]
        packet.hops, packet.seconds = event["hops"], event["seconds"]
        packet.bytes, packet.probe_bytes = event["bytes"], event["probe_bytes"]
        packet.skills.update({k: dict(v) for k, v in event["skills"].items()})

    def result(self, packet: PacketView) -> dict[str, Any]:
        """Return one packet's outcome as plain JSON values."""
        return {
            "id": packet.id,
            "label": packet.label,
            "kind": packet.kind,
            "status": packet.status,
            "requirement_met": packet.met,
            "skills": {
                skill: {
                    "metric": s["metric"], "value": s["value"], "target": s["target"],
                    "verified_by": s["by"] if s["source"] == "mpvu" else None,
                    "interval": [s["low"], s["high"]],
                    "independent": packet.tested.get(skill),
                }
                for skill, s in sorted(packet.skills.items())
            },
            "hops": int(packet.hops),
            "bytes_moved": int(packet.bytes),
            "probe_bytes": int(packet.probe_bytes),
            "seconds": round(packet.seconds, 6),
            "route": packet.route,
            **({"rounds": packet.rounds, "visits_of_children": packet.visits_of_children}
               if packet.visits_of_children else {}),
        }  # fmt: skip
