"""One node of a network that spans machines and launches: `aats node`, `aats submit`, `aats fetch`.

A node's directory has its file (`node.toml`), its keys, the lines of the nodes that it trusts
(`peers.toml`), and all it knows. What the launcher does for a whole network is done here for one
node, by the same parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from aats.compose import PacketPlan, build_packets, compose, measure_on
from aats.config import Scenario
from aats.config.node import FILE, NodeFile, load_node
from aats.errors import LocalError, ScenarioError, nearest
from aats.identity import Identity
from aats.ids import NodeId, PacketId, trunk_of
from aats.lineage import RecordKind
from aats.live import POLL_S, Tail, TraceEvent
from aats.node import inbox
from aats.node.forkserver import ForkServer
from aats.node.host import WORDS_FILE
from aats.node.shard import FILE_NAME as DATA_FILE
from aats.node.shard import load_data, save_data
from aats.node.spec import (
    CURVE_FILE,
    EVENTS_FILE,
    IDENTITY_FILE,
    LOG_FILE,
    PEERS_FILE,
    DaemonSpec,
)
from aats.node.supervisor import Change, ProcessChanged, Supervisor
from aats.oam.rundir import new_run_dir, write_events, write_run
from aats.oam.view import Point, RunView
from aats.packet import Header
from aats.roles.data import NodeData, SkillData
from aats.topology.network import Link, Network, Site
from aats.transport.keys import CurveKeys, Directory, Endpoint

PUBLIC_FILE = "public.toml"
"""This node's own line, to be handed to the others."""
STORE_LOCK = "lock"
"""Held by the process that has the node's store open."""
PATIENCE_S = 10.0
"""Until a node that was asked to stop is killed."""
STEPS = {RecordKind.TRAIN: "train", RecordKind.ROLLED_BACK: "rolled-back",
         RecordKind.VERIFY: "verify", RecordKind.MERGE: "merge"}  # fmt: skip
"""Records that a report shows as stops."""
TEMPLATE = """\
# One node. Every key: docs/operations.md, "Past one machine".
name = {name}
listen = {listen}               # the address it binds
port = {port}                        # control lane; the bulk lane binds the next one
address = {address}              # by which the others reach it; "": the one it binds

[node]                             # as in a scenario
roles = ["data", "compute"]        # data, compute, mpvu, owner, transit

[neighbours]                       # each end of a link names the other; {peers} has their keys
# hospital-b = {{ bandwidth_mbps = 100, latency_ms = 5 }}

# [data.skills.diagnosis]          # as in a scenario: a source by name, or a file of your own
# source = {{ name = "file", file = "patients.csv", label = "outcome", classes = 2 }}
"""
PEERS_TEMPLATE = """\
# Who may take part: one line for each node of the network, as its own public.toml has it.
"""

Tell = Callable[[str], None]


# --- a node's directory -----------------------------------------------------------------------


def init(directory: Path, name: NodeId, *, host: str, port: int, address: str) -> str:
    """Make a node's directory: its file, its keys, an empty list of whom it trusts.

    Returns:
        The line by which the others know it.

    Raises:
        ScenarioError: If there is one already.
        LocalError: If it cannot be written.
    """
    file = directory / FILE
    if file.exists():
        raise ScenarioError("DIR", str(directory), f"it has a {FILE} already")
    text = TEMPLATE.format(
        name=json.dumps(name), listen=json.dumps(host), port=port, address=json.dumps(address),
        peers=PEERS_FILE,
    )  # fmt: skip
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        if not (directory / PEERS_FILE).exists():
            (directory / PEERS_FILE).write_text(PEERS_TEMPLATE, encoding="utf-8")
    except OSError as error:
        raise LocalError(f"{directory}: cannot write there: {error.strerror}") from error
    try:
        return public_line(load_node(directory))
    except ScenarioError:  # an address that cannot be
        file.unlink()
        raise


def public_line(node: NodeFile) -> str:
    """Return the line by which the others know this node, and write it into its directory.

    Makes the node's keys if it has none.

    Raises:
        LocalError: If a key file cannot be read or written.
    """
    identity, curve = _keys(node)
    host = node.address or node.listen
    own = asdict(
        Endpoint(node.name, f"tcp://{host}:{node.port}", f"tcp://{host}:{node.port + 1}")
    ) | {"curve_key": curve.public.decode("ascii"), "public_key": identity.public_key.hex()}
    name = json.dumps(own.pop("node"))
    line = f"{name} = {{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in own.items())} }}"
    (node.folder / PUBLIC_FILE).write_text(line + "\n", encoding="utf-8")
    return line


def _keys(node: NodeFile) -> tuple[Identity, CurveKeys]:
    node.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity, curve = node.folder / IDENTITY_FILE, node.folder / CURVE_FILE
    if not identity.exists():
        Identity.generate(node.name).save(identity)
    if not curve.exists():
        CurveKeys.generate().save(curve)
    return Identity.load(node.name, identity), CurveKeys.load(curve)


def prepare(node: NodeFile) -> DaemonSpec:
    """Write what the node's daemon needs into its directory; return how it is to be run.

    Raises:
        LocalError: If a key, a neighbour's line or the data are missing or wrong; says which.
    """
    public_line(node)
    identity, curve = _keys(node)
    peers = _peers(node, identity, curve)
    plan = compose(node.scenario()).nodes[node.name]
    data = _numbered(plan.data, node.folder / DATA_FILE)
    save_data(node.folder / DATA_FILE, data)
    spec = DaemonSpec(
        directory=node.folder,
        core=replace(plan.core, data=data.adverts(node.node.delegate), known_keys=peers),
        control=f"tcp://{node.listen}:{node.port}",
        bulk=f"tcp://{node.listen}:{node.port + 1}",
        links=plan.links,
        secure=not node.insecure,
        custody=node.custody,
        work=replace(plan.work, secret=_secret(identity)),
        leave_s=node.leave_s,
    )
    spec.save()
    return spec


def _peers(node: NodeFile, identity: Identity, curve: CurveKeys) -> dict[NodeId, bytes]:
    """Return the keys of all that may take part; check the lines of those we have a link to."""
    path = node.folder / PEERS_FILE
    directory = Directory.load(path) if path.exists() else Directory()
    names = [endpoint.node for endpoint in directory]
    for peer in node.neighbours:
        if peer not in directory:
            raise LocalError(
                f"{path}: no line for the neighbour {peer!r}{nearest(peer, names)}; put in the "
                f"line of its {PUBLIC_FILE}, which it prints when it is made"
            )
        wanted = ("control", "bulk", *(() if node.insecure else ("curve_key",)))
        if missing := [key for key in wanted if not getattr(directory.get(peer), key)]:
            raise LocalError(f"{path}: {peer}: {' and '.join(missing)} must be given")
    for endpoint in directory:
        if len(endpoint.public_key) != len(identity.public_key):
            found = len(endpoint.public_key)
            raise LocalError(
                f"{path}: {endpoint.node}.public_key: {found} bytes; allowed are "
                f"{len(identity.public_key)}, as hex digits"
            )
    own = Endpoint(node.name, "", "", curve.public, identity.public_key)
    if node.name in directory:
        told = directory.get(node.name)
        if (told.curve_key, told.public_key) != (own.curve_key, own.public_key):
            raise LocalError(
                f"{path}: the line of {node.name} has other keys than {IDENTITY_FILE} and "
                f"{CURVE_FILE} beside it: it is of another node of that name, or of older keys"
            )
    if not path.exists():
        path.write_text(PEERS_TEMPLATE, encoding="utf-8")
    return {e.node: e.public_key for e in directory} | {node.name: identity.public_key}


def _numbered(data: NodeData, path: Path) -> NodeData:
    """Return the data under the numbers of those written before, a new one where they differ."""
    before = load_data(path).skills

    def numbered(skill: SkillData) -> SkillData:
        old = before.get(skill.skill)
        if old is None:
            return skill
        same = all(
            np.array_equal(getattr(skill, part), getattr(old, part))
            for part in ("train_x", "train_y", "test_x", "test_y")
        )
        return replace(skill, seq=old.seq + (not same))

    return NodeData.of(*map(numbered, data.skills.values()), show_labels=data.show_labels)


def _secret(identity: Identity) -> int:
    """Return the seed of what the node draws for itself: its key's, so that nobody can tell it."""
    return int.from_bytes(identity.sign(b"aats 1 seed of a node's own work")[:7], "little")


def is_running(node: NodeFile) -> bool:
    """Return whether a process has the node's store open."""
    try:
        with (node.folder / STORE_LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


# --- running it -------------------------------------------------------------------------------


def run(node: NodeFile, tell: Tell, seen: Callable[[TraceEvent], None]) -> None:
    """Run the node in the foreground until SIGINT or SIGTERM; what dies is started again.

    Told to stop, the node takes nothing more, finishes and hands on what is under way, for
    `leave_s` at most; told twice, it stops at once. What it still holds stays in its directory,
    and goes on when it is started again.

    Args:
        node: The node.
        tell: Takes a line for a person.
        seen: Takes every event of the node's trace from now on.

    Raises:
        LocalError: If it cannot start, or dies too often; says why.
    """
    if is_running(node):
        raise LocalError(f"{node.folder}: another process runs this node")
    asyncio.run(_run(prepare(node), tell, seen))


async def _run(spec: DaemonSpec, tell: Tell, seen: Callable[[TraceEvent], None]) -> None:
    stop, stop_now, up = asyncio.Event(), asyncio.Event(), asyncio.Event()
    ended: list[ProcessChanged] = []
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (stop_now if stop.is_set() else stop).set())

    def changed(news: ProcessChanged) -> None:
        if news.change is Change.DIED:
            tell(f"{news.name} died ({news.code}); it starts again in {news.restart_in_s:g} s")
        if news.change is Change.GIVEN_UP or (news.change is Change.DIED and not up.is_set()):
            ended.append(news)

    events, log = Tail(spec.directory / EVENTS_FILE), _Log(spec.directory / LOG_FILE)
    events.skip()

    def show() -> None:
        for event in events.read():
            if event["event"] == "node.up":
                up.set()
                tell(f"{spec.node} listens on {spec.control}, bulk {spec.bulk}")
            seen(event)
        for line in log.read():
            tell(line)

    server = ForkServer.spawn("daemon")
    try:
        supervisor = Supervisor(server, changed)
        await server.ready()
        supervisor.start(spec.node, json.dumps([str(spec.directory)]))
        while not (stop.is_set() or ended):
            show()
            await _pause(stop)
        if not ended:
            tell(f"{spec.node} leaves within {spec.leave_s:g} s; told again, it stops at once")
            patience_s = spec.leave_s + PATIENCE_S
            leaving = asyncio.create_task(
                supervisor.stop(patience_s=patience_s, ask=signal.SIGUSR2)
            )
            while not (leaving.done() or stop_now.is_set()):
                show()
                await _pause(stop_now)
            leaving.cancel()
            show()
            tell(f"{spec.node} stops; what it still holds goes on when it starts again")
        await supervisor.stop(patience_s=PATIENCE_S)
    finally:
        await server.close()
    if ended:
        raise LocalError(f"{spec.node} cannot run: {_last_words(spec.directory / WORDS_FILE)}")


async def _pause(stop: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), POLL_S)


def _last_words(path: Path) -> str:
    lines = path.read_text("utf-8", "replace").split("\n") if path.exists() else []
    said = [line for line in lines if line.strip()]
    return said[-1].removeprefix("aats.errors.LocalError: ") if said else f"see {path}"


REFUSALS = {
    ("control.denied", "HANDSHAKE_FAILED_AUTH"): "{peer} refuses us: our keys are in no line of "
    "its peers.toml; it must have the line of our public.toml",
    ("control.denied", ""): "no link to {peer}: it has other keys than its line in our peers.toml "
    "({reason})",
    ("control.stranger", ""): "refused a stranger: key {key} from {address} is in no line of our "
    "peers.toml",
    ("control.spoofed", ""): "refused {peer}, who says that it is {claimed}",
}
"""What lines of a node's log mean to whoever runs it, by event and reason."""


class _Log:
    """Reads a node's growing log, from now on, in words."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = path.stat().st_size if path.exists() else 0

    def read(self) -> Iterator[str]:
        """Yield the lines that came since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._place)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            yield in_words(line)


def in_words(line: str) -> str:
    """Return a line of a node's log for a person; one that needs no words is left as it is."""
    try:
        fields = dict(word.partition("=")[::2] for word in shlex.split(line))
    except ValueError:
        return line
    event, reason = fields.get("event", ""), fields.get("reason", "")
    text = REFUSALS.get((event, reason)) or REFUSALS.get((event, ""))
    try:
        return text.format(**fields) if text else line
    except KeyError:  # a stranger without a key, say
        return line


# --- packets ----------------------------------------------------------------------------------


def submit(node: NodeFile, scenario: Scenario) -> list[PacketPlan]:
    """Sign packets and put them into the node's inbox; a node that is down finds them there.

    Args:
        node: The owner.
        scenario: What `load_packets` made of the packets' file.

    Raises:
        LocalError: If a key file cannot be read, or a packet cannot be made.
    """
    identity, _ = _keys(node)
    now = time.time()
    packets = build_packets(
        scenario, compose(scenario), lambda _: identity, now, id_ms=int(now * 1000)
    )
    for packet in packets:
        inbox.put(node.folder / inbox.INBOX, packet.header, packet.payload)
    return packets


def follow(node: NodeFile, packet: PacketId) -> Iterator[TraceEvent]:
    """Yield what the node sees of a packet, from its first event on, until it is home.

    Raises:
        LocalError: If the node did not take the packet; says why.
    """
    events, home = Tail(node.folder / EVENTS_FILE), False
    refused = node.folder / inbox.INBOX / f"{packet}.broken"
    while not home:
        home = _home(node, packet) is not None
        for event in events.read():
            if trunk_of(event.get("packet", PacketId(""))) == packet:
                yield event
        if refused.exists():
            raise LocalError(f"{node.name} did not take packet {packet}; {LOG_FILE} says why")
        if not home:
            time.sleep(POLL_S)


def _home(node: NodeFile, packet: PacketId) -> inbox.Parcel | None:
    parcels = inbox.look(node.folder / inbox.HOME)[0]
    return next((p for p in parcels if p.header.id == packet), None)


def known_packets(node: NodeFile) -> list[dict[str, Any]]:
    """Return what the node knows of each packet, in the order in which it first saw them.

    Each is a table with packet, id, owner, status, where, hop, met; of packets of other owners a
    node knows only what they did here.
    """
    view, seen = RunView(), {}
    for event in Tail(node.folder / EVENTS_FILE).read():
        view.apply(event)
        if event["event"] == "packet.seen":
            seen[event["packet"]] = event
    rows = []
    for p in view.packets.values():
        at: Mapping[str, Any] = seen.get(p.id, {})
        ours = p.owner == node.name
        last = ours and p.status != "home" and at.get("hop", -1) >= p.hop
        rows.append(
            {
                "packet": p.name, "id": p.id, "owner": p.owner or "another node",
                "status": p.status if ours else "passed here",
                "where": at["at"] if last else p.where, "hop": at["hop"] if last else p.hop,
                "met": p.met,
            }
        )  # fmt: skip
    taken = {row["id"] for row in rows}
    for parcel in inbox.look(node.folder / inbox.INBOX)[0]:
        if parcel.header.id not in taken:
            label = parcel.header.mandate.label
            rows.append(
                {"packet": label, "id": parcel.header.id, "owner": node.name,
                 "status": "handed in", "where": node.name, "hop": 0, "met": False}
            )  # fmt: skip
    return rows


def packet_of(node: NodeFile, wanted: str) -> PacketId:
    """Return the id of one of the node's own packets, by name (the latest) or how its id begins.

    Raises:
        ScenarioError: If there is none, or more than one.
    """
    own = [row for row in known_packets(node) if row["owner"] == node.name]
    named = [row["id"] for row in own if row["packet"] == wanted]
    found = named[-1:] or [row["id"] for row in own if row["id"].startswith(wanted)]
    if len(found) != 1:
        names = [row["packet"] for row in own]
        allowed = f"packets of {node.name} are {', '.join(dict.fromkeys(names)) or 'none'}"
        raise ScenarioError("PACKET", wanted, allowed, nearest(wanted, names))
    return PacketId(found[0])


def bring(node: NodeFile, packet: PacketId, out: Path) -> tuple[Path, dict[str, Any]]:
    """Write what came home with a packet as a run's folder; return it and the packet's result.

    Raises:
        LocalError: If it is not home, or the folder cannot be made.
    """
    parcel = _home(node, packet)
    if parcel is None:
        raise LocalError(f"packet {packet} is not home")
    header, payload = parcel.header, parcel.payload()
    events = [e for e in Tail(node.folder / EVENTS_FILE).read() if e.get("packet") == packet]
    view = _seen_from_home(header, events)
    scenario = node.scenario()
    told = view.packets[packet]
    told.tested = measure_on(header, payload, compose(scenario).test)
    run_dir = new_run_dir(out, header.mandate.label or packet, "live")
    write_events(run_dir / EVENTS_FILE, events)
    result = {"run_dir": str(run_dir), "packets": [view.result(told)]}
    facts = {"run": run_dir.name, "owner": node.name, "packet": packet}
    write_run(run_dir, _map(scenario, told.route), view, {packet: (header, payload)}, facts, result)
    (run_dir / "scenario.toml").unlink()  # a part of a network is nothing to launch
    return run_dir, result


def _seen_from_home(header: Header, events: list[TraceEvent]) -> RunView:
    """Return a packet's journey as its owner can know it: own events, and the signed records."""
    view = RunView()
    for event in events:
        if event["event"] != "packet.home":
            view.apply(event)
    packet = view.packets[header.id]
    packet.stops, packet.curve, packet.decisions = [], [], []
    for record in header.chain:
        if record.branch:
            packet.visits_of_children += record.kind is RecordKind.TRAIN
            continue
        packet.hold(record.hop, record.node)
        if record.kind in STEPS:
            packet.stops.append((record.hop, record.node, STEPS[record.kind]))
            packet.rolled_back += record.kind is RecordKind.ROLLED_BACK
        for target in header.mandate.requirement:
            for source in ("reference", "mpvu"):
                value = record.metrics.get(f"{target.skill}.{target.metric}.{source}")
                if value is not None:
                    at = (record.hop, record.wire_bytes, record.at)
                    packet.curve.append(Point(*at, target.skill, value, source))
    for event in events:
        if event["event"] == "packet.home":
            view.apply(event)
    return view


def _map(scenario: Scenario, route: list[str]) -> Scenario:
    """Return the node's part of the network with the stops of a packet, for a report's map."""
    known = dict.fromkeys([*(site.name for site in scenario.network.sites), *map(NodeId, route)])
    angles = np.linspace(0, 2 * np.pi, len(known), endpoint=False)
    sites = tuple(
        Site(name, position=(0.5 + 0.5 * float(np.cos(a)), 0.5 + 0.5 * float(np.sin(a))))
        for name, a in zip(known, angles, strict=True)
    )
    links: tuple[Link, ...] = scenario.network.links
    told = (
        "As its owner knows it: the map has the owner, its neighbours and the stops of the signed "
        "records, an arrow from each to the next; nodes only passed through are not in it. Why it "
        "went where it went is in the trace of each node."
    )
    about = replace(scenario.scenario, description=told)
    return replace(scenario, scenario=about, network=Network(sites, links))
