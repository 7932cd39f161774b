"""The `aats` command: launch scenarios, look at runs, check ledgers, start new scenarios."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from aats.errors import DataError, LedgerError, ScenarioError, nearest
from aats.ids import NodeId, PacketId
from aats.launch import (
    EPILOG,
    FormatOption,
    OutOption,
    guarded,
    launch,
    new_app,
    run_app,
)
from aats.options import Exit, Format
from aats.plugins import load, names
from aats.unlearning.level import STEPS, Level

if TYPE_CHECKING:
    from aats.config.node import NodeFile
    from aats.oam.view import RunView
    from aats.unlearning.forget import Forgotten


class _DirectoryFirst(TyperGroup):
    """`aats node DIR` is `aats node run DIR`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that arguments name."""
        is_named = self.get_command(ctx, args[0]) is not None
        return super().resolve_command(ctx, args if is_named else ["run", *args])


app = new_app()
ledger = new_app()
node = new_app(cls=_DirectoryFirst)
policy = new_app()
app.add_typer(ledger, name="ledger", help="Check the signed history of models.")
app.add_typer(policy, name="policy", help="Train, judge and look at routing policies.")
app.add_typer(node, name="node", help="Run one node of a network that spans machines.")
app.command(epilog=EPILOG)(launch)


NodeOption = Annotated[Path | None, typer.Option(help="A node's directory.")]


def emit(rows: Sequence[dict[str, Any]], output: Format, text: Iterable[str]) -> None:
    """Write rows as one JSON list, as JSON lines, or as the given lines of text."""
    match output:
        case Format.JSON:
            typer.echo(json.dumps(rows, indent=1))
        case Format.JSONL:
            for row in rows:
                typer.echo(json.dumps(row))
        case Format.TEXT:
            for line in text:
                typer.echo(line)


def columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Yield rows as text with the columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


@app.callback(invoke_without_command=True)
def entry(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and exit.")
    ] = False,
) -> None:
    """AI packets that carry a model to the data and work out their own next stop."""
    if version:
        from aats import __version__

        typer.echo(f"aats {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(Exit.USAGE)


# --- runs ---------------------------------------------------------------------------------------


@app.command("ls")
@guarded
def list_runs(
    out: OutOption = Path("runs"),
    node: NodeOption = None,
    output: FormatOption = Format.TEXT,
) -> int:
    """List the runs in a folder, the newest first; with --node the packets that a node knows."""
    if node is not None:
        return _list_packets(node, output)
    rows, code = [], Exit.OK
    for run in _runs(out):
        try:
            rows.append(_run_row(run))
        except DataError as error:
            typer.echo(f"error: {error}", err=True)
            code = Exit.USAGE
    head = ("RUN", "PACKETS", "HOME", "MET", "SECONDS")
    cells = [
        (r["run"], str(r["packets"]), str(r["home"]), str(r["met"]), f"{r['seconds']:.1f}")
        for r in rows
    ]
    emit(rows, output, columns([head, *cells]) if rows else [f"no runs in {out}"])
    return code


def _list_packets(directory: Path, output: Format) -> int:
    from aats.config.node import load_node
    from aats.member import is_running, known_packets

    found = load_node(directory)
    rows = known_packets(found)
    head = ("PACKET", "ID", "OWNER", "STATUS", "WHERE", "HOP", "MET")
    cells = [[str(value) for value in row.values()] for row in rows]
    if not is_running(found):
        typer.echo(f"node {found.name} is not running", err=True)
    emit(rows, output, columns([head, *cells]) if rows else [f"no packets at {found.name}"])
    return Exit.OK


@app.command()
@guarded
def trace(
    packet: Annotated[str, typer.Argument(help="A packet's name, its id, or the id's beginning.")],
    run: Annotated[Path | None, typer.Option(help="A run's folder; the newest if unset.")] = None,
    out: OutOption = Path("runs"),
    output: FormatOption = Format.TEXT,
) -> None:
    """Show a packet's journey hop by hop: what was done, where it went next, and why."""
    folder = run or next(iter(_runs(out)), None)
    if folder is None:
        raise ScenarioError("--out", str(out), "a folder with runs is wanted")
    view = _view(folder)
    names = {one.label: one.id for one in view.packets.values() if one.label}
    found = [i for i in view.packets if packet == names.get(packet) == i or i.startswith(packet)]
    wanted = names.get(packet) or (found[0] if len(found) == 1 else None)
    if wanted is None:
        known = [*names, *view.packets]
        allowed = f"packets of {folder} are {', '.join(names or view.packets)}"
        raise ScenarioError("PACKET", packet, allowed, nearest(packet, known))
    rows = [event for event in _events(folder) if event.get("packet") == wanted]
    start = view.first_t or 0.0
    emit(rows, output, [_told(event, start) for event in rows])


def _runs(out: Path) -> list[Path]:
    if not out.is_dir():
        return []
    found = [path for path in out.iterdir() if (path / "events.jsonl").is_file()]
    return sorted(found, key=lambda p: ((p / "events.jsonl").stat().st_mtime, p), reverse=True)


def _events(run: Path) -> Iterable[dict[str, Any]]:
    from aats.oam.rundir import read_events

    if not (run / "events.jsonl").is_file():
        raise ScenarioError("--run", str(run), "a run's folder with an events.jsonl is wanted")
    try:
        for event in read_events(run / "events.jsonl"):
            if not _is_event(event):
                raise ValueError(f"{json.dumps(event)[:60]} is no event")
            yield event
    except ValueError as broken:
        raise DataError(f"{run / 'events.jsonl'}: {broken}") from broken


def _is_event(event: object) -> bool:
    return (
        isinstance(event, dict)
        and isinstance(event.get("t"), int | float)
        and all(isinstance(event.get(name), str) for name in ("node", "event"))
    )


def _view(run: Path) -> RunView:
    from aats.oam.view import RunView

    view = RunView()
    for event in _events(run):
        try:
            view.apply(event)
        except (KeyError, TypeError, ValueError, AttributeError) as broken:
            what = json.dumps(event)[:60]
            raise DataError(f"{run / 'events.jsonl'}: {what}: {broken!r}") from broken
    return view


def _run_row(run: Path) -> dict[str, Any]:
    view = _view(run)
    packets = view.packets.values()
    return {
        "run": run.name,
        "packets": len(packets),
        "home": sum(p.status == "home" for p in packets),
        "met": sum(p.met for p in packets),
        "seconds": round(view.last_t - (view.first_t or 0.0), 3),
    }


VERSION_LENGTH = 64
_QUIET = {"t", "node", "event", "packet", "scores", "skills", "epoch"}


def _told(event: dict[str, Any], start: float) -> str:
    """Return one event of a packet as a line for a person; a decision with its best scores."""
    place = f"{event['t'] - start:9.3f} s  {event['node']:<12} {event['event']:<18} "
    if event["event"] == "decision":
        best = sorted(event.get("scores", {}).items(), key=lambda kv: -kv[1])[:4]
        scores = ", ".join(f"{node} {score:.3g}" for node, score in best)
        way = " > ".join(event.get("path", ())) or "stays"
        return f"{place}-> {event['chosen']} via {way}: {event['reason']}" + (
            f"  [{scores}]" if scores else ""
        )
    skills = [
        f"{skill} {found['value']:.3f} ({found['source']})"
        for skill, found in event.get("skills", {}).items()
    ]
    rest = [f"{k}={_short(v)}" for k, v in event.items() if k not in _QUIET and v != ""]
    return place + " ".join([*rest, *skills])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and len(value) == VERSION_LENGTH:
        return value[:12]  # as versions are shown everywhere
    return str(value)


# --- one node of a network that spans machines --------------------------------------------------

DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A node's directory.")]
HostOption = Annotated[str, typer.Option(help="Address to bind, instead of the file's.")]
PortOption = Annotated[
    int | None, typer.Option(min=1, max=65_534, help="Control port; the bulk lane has the next.")
]


@node.command("init")
@guarded
def init_node(
    directory: DirectoryArgument,
    name: Annotated[str, typer.Option(help="What the other nodes call it.")],
    host: Annotated[str, typer.Option(help="Address that it binds.")] = "127.0.0.1",
    port: PortOption = None,
    address: Annotated[str, typer.Option(help="By which the others reach it.")] = "",
) -> None:
    """Make a node's directory, file and keys; print the line that the other nodes need of it."""
    from aats.config.node import PORT
    from aats.ids import node_id
    from aats.member import init

    try:
        named = node_id(name)
    except ValueError as wrong:
        raise ScenarioError("--name", name, str(wrong)) from wrong
    typer.echo(init(directory, named, host=host, port=port or PORT, address=address))
    typer.echo(
        f"made {directory}; put that line into peers.toml of the others and theirs into its own, "
        f"then: aats node {directory}", err=True,
    )  # fmt: skip


@node.command("run")
@guarded
def run_node(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="Its directory, or its file.")],
    host: HostOption = "",
    port: PortOption = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No encryption, no authentication between nodes.")
    ] = False,
) -> None:
    """Run a node in the foreground; Ctrl-C stops it, and it goes on when it is started again."""
    from aats.config.node import load_node
    from aats.member import run

    told = {"listen": host or None, "port": port, "insecure": insecure or None}
    found = load_node(path, {key: value for key, value in told.items() if value is not None})
    start = time.time()

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    def seen(event: dict[str, Any]) -> None:
        if event["event"] in SHOWN:
            tell(_told(event, start))

    run(found, tell, seen)


SHOWN = {
    "link.up", "link.down", "packet.submitted", "packet.received", "packet.moved", "packet.home",
    "packet.refused", "offer.refused", "packet.regenerated", "visit.finished", "visit.failed",
    "verdict", "advert.rejected", "message.rejected", "node.fault", "custody.lost",
}  # fmt: skip
"""Events of a node that whoever runs it sees."""


@app.command()
@guarded
def submit(
    path: Annotated[Path, typer.Argument(metavar="PACKET.toml", help="A file of [[packets]].")],
    node: Annotated[Path, typer.Option(help="The owner's directory.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow them until they are home, then fetch them.")
    ] = False,
    out: OutOption = Path("runs"),
    output: FormatOption = Format.TEXT,
) -> int:
    """Sign packets and hand them in at their owner's node; print their ids."""
    from aats import member
    from aats.config.node import load_node, load_packets

    owner = load_node(node)
    packets = member.submit(owner, load_packets(path, owner))
    if not member.is_running(owner):
        typer.echo(f"node {owner.name} is not running; it takes them when it starts", err=True)
    rows = [{"packet": p.header.mandate.label, "id": p.header.id} for p in packets]
    if not wait:
        emit(rows, output, (f"{row['id']}  {row['packet']}" for row in rows))
        return Exit.OK
    return _fetch(owner, [p.header.id for p in packets], out, output)


@app.command()
@guarded
def fetch(
    packet: Annotated[str, typer.Argument(help="A packet's name, its id, or the id's beginning.")],
    node: Annotated[Path, typer.Option(help="The owner's directory.")],
    out: OutOption = Path("runs"),
    output: FormatOption = Format.TEXT,
) -> int:
    """Wait until a packet is home; write its model, its ledger and a report."""
    from aats import member
    from aats.config.node import load_node

    owner = load_node(node)
    return _fetch(owner, [member.packet_of(owner, packet)], out, output)


def _fetch(owner: NodeFile, packets: Sequence[PacketId], out: Path, output: Format) -> int:
    """Follow packets until they are home, one after the other; write and tell what came of each."""
    from aats import member

    rows: list[dict[str, Any]] = []
    for packet in packets:
        start = 0.0
        for event in member.follow(owner, packet):
            start = start or event["t"]
            typer.echo(_told(event, start), err=True)
        run_dir, result = member.bring(owner, packet, out)
        rows += [{**row, "run_dir": str(run_dir)} for row in result["packets"]]
    emit(rows, output, [line for row in rows for line in _came_home(row)])
    return Exit.OK if all(row["requirement_met"] for row in rows) else Exit.NOT_MET


def _came_home(row: dict[str, Any]) -> Iterable[str]:
    yield f"{row['label']}: requirement {'met' if row['requirement_met'] else 'NOT met'}, home"
    for skill, found in row["skills"].items():
        low, high = found["interval"]
        by = f"verified by {found['verified_by']}" if found["verified_by"] else "not verified"
        yield (
            f"  {skill:<14} {found['metric']} {found['value']:.3f} [{low:.3f}, {high:.3f}], "
            f"target {found['target']:.2f}, {by}"
        )
    yield f"  stops: {' > '.join(row['route'])}"
    yield f"run: {row['run_dir']}"


# --- ledgers ------------------------------------------------------------------------------------


@ledger.command()
@guarded
def verify(
    path: Annotated[Path, typer.Argument(help="A ledger file, or a run's folder.")],
    output: FormatOption = Format.TEXT,
) -> int:
    """Verify every record of a ledger offline: content, order, signatures."""
    from aats.ledger.file import verify_ledger

    folder = path / "ledger" if (path / "ledger").is_dir() else path
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ScenarioError("PATH", str(path), "a ledger file or a run's folder is wanted")
    rows: list[dict[str, Any]] = []
    for file in files:
        row: dict[str, Any] = {"file": str(file), "valid": True}
        try:
            found = verify_ledger(file)
            row |= {
                "records": found.records,
                "packets": list(found.packets),
                "heads": [{"record": head.id, "version": head.version} for head in found.heads],
            }
        except LedgerError as error:
            row |= {"valid": False, "error": str(error)}
        rows.append(row)
    emit(rows, output, map(_verdict, rows))
    return Exit.OK if all(row["valid"] for row in rows) else Exit.NOT_MET


@ledger.command()
@guarded
def forget(
    what: Annotated[
        str,
        typer.Argument(help="A node, a contribution (hop@node), or how a record's id begins."),
    ],
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run that is over.")],
    level: Annotated[
        Level, typer.Option(help="Subtract; then repair what came later; or rebuild it.")
    ] = Level.SUBTRACT,
    packet: Annotated[str, typer.Option(help="The packet, if the run had several.")] = "",
    at: Annotated[
        str, typer.Option(help="The node that repairs all; each contribution's own if unset.")
    ] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of repair, shared out evenly.")] = STEPS,
    output: FormatOption = Format.TEXT,
) -> None:
    """Take what a node contributed out of a run's model, and sign that in its ledger."""
    from aats.unlearning.forget import Order
    from aats.unlearning.forget import forget as carry_out

    found = carry_out(Order(what, run_dir, level, packet, NodeId(at), steps))
    emit([_plain_row(found)], output, _forgotten(found))


def _plain_row(found: Forgotten) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(found), default=str))  # type: ignore[no-any-return]


def _forgotten(found: Forgotten) -> Iterable[str]:
    yield f"forgot   {' '.join(found.gone)} of {found.packet}, level {found.level}: {found.says}"
    yield f"model    {found.model}, version {found.version[:12]}"
    yield f"record   {found.record[:12]}, signed, in the ledger of {found.packet}"
    if found.stops:
        yield f"route    {' > '.join(found.stops)}"
    for skill, value in found.after.items():
        yield f"skill    {skill} {found.before[skill]:.3f} -> {value:.3f} on rows no node held"
    rows = [("cost", "visits", "steps", "bytes", "seconds of work", "joules")]
    for name, made in (
        ("this", found.cost), ("the visits since", found.since), ("all visits", found.all)
    ):  # fmt: skip
        spent = made.spent
        rows.append(
            (name, str(made.visits), str(made.steps), f"{spent.bytes:.0f}",
             f"{spent.seconds:.3f}", f"{spent.joules:.3f}")
        )  # fmt: skip
    yield from columns(rows)


def _verdict(row: dict[str, Any]) -> str:
    if not row["valid"]:
        return f"INVALID  {row['error']}"
    versions = ", ".join(head["version"][:12] for head in row["heads"])
    return f"valid    {row['file']}: {row['records']} records, version {versions}"


# --- scenarios ----------------------------------------------------------------------------------


@app.command()
@guarded
def advise(
    path: Annotated[Path, typer.Argument(help="A scenario: a TOML file or its folder.")],
    packet: Annotated[str, typer.Option(help="A packet's name; all if unset.")] = "",
    removable: Annotated[
        bool, typer.Option("--removable", help="What a node adds must be removable later.")
    ] = False,
    bits: Annotated[
        float, typer.Option("--bits-per-sample", min=0, help="What links carry; 0: no limit.")
    ] = 0.0,
    output: FormatOption = Format.TEXT,
) -> None:
    """Say which way of learning suits a packet, and why, from data, adverts and mandate."""
    from aats.advise import setting_for
    from aats.config import load_scenario
    from aats.control.method import recommend

    scenario = load_scenario(path)
    labels = [config.name for config in scenario.packets]
    if packet and packet not in labels:
        allowed = f"packets of {path} are {', '.join(labels)}"
        raise ScenarioError("--packet", packet, allowed, nearest(packet, labels))
    known: dict[str, float | bool] = {"removable": removable}
    if bits:
        known["bits_per_sample"] = bits
    rows: list[dict[str, Any]] = []
    for number, label in enumerate(labels):
        if packet in ("", label):
            setting = setting_for(scenario, number, **known)
            found = recommend(setting)
            # What nothing bounds is left out: JSON has no infinity.
            told = {k: v for k, v in asdict(setting).items() if v != float("inf")}
            rows.append({"packet": label, "take": found.name, **asdict(found), "setting": told})
    emit(rows, output, [line for row in rows for line in _advised(row)])


def _advised(row: dict[str, Any]) -> Iterable[str]:
    s = row["setting"]
    yield (
        f"{row['packet']}: {s['nodes']} nodes with data, model {s['model_bytes'] / 1e6:.3g} MB, "
        f"label skew {s['skew']:.2f}, {s['local_steps']:.0f} steps a visit"
    )
    yield f"take     {row['take']}"
    for reason in row["reasons"]:
        yield f"because  {reason}"
    params = [f"{key} = {json.dumps(value)}" for key, value in row["method"]["params"].items()]
    named = ", ".join([f'name = "{row["method"]["name"]}"', *params])
    yield f"write    method = {{ {named} }}"
    if row["rendezvous"]:
        yield f'write    rendezvous = "{row["rendezvous"]["name"]}"'


@app.command()
@guarded
def new(
    name: Annotated[Path, typer.Argument(help="Folder to make.")],
    template: Annotated[str, typer.Option(help="What to start from.")] = "healthcare",
) -> None:
    """Start a scenario of your own from a template."""
    templates = _templates()
    if template not in templates:
        allowed = f"templates are {', '.join(templates)}"
        raise ScenarioError("--template", template, allowed, nearest(template, templates))
    if name.exists():
        raise ScenarioError("NAME", str(name), "must not be there yet")
    left_out = shutil.ignore_patterns("__pycache__", "runs")
    try:
        shutil.copytree(templates[template], name, ignore=left_out)
    except OSError as error:
        raise ScenarioError("NAME", str(name), f"cannot be made: {error.strerror}") from error
    typer.echo(f"made {name}; run it with: aats launch {name}")


def _templates() -> dict[str, Path]:
    """Return the bundled scenarios by name; in a checkout those of its examples folder."""
    package = Path(__file__).parent
    roots = (package / "templates", package.parent / "examples")
    root = next((root for root in roots if root.is_dir()), roots[0])
    return {path.parent.name: path.parent for path in sorted(root.glob("*/scenario.toml"))}


# --- plug-ins and the machine -------------------------------------------------------------------


@policy.command("ls")
@guarded
def list_policies(output: FormatOption = Format.TEXT) -> None:
    """List the routing policies that are installed."""
    rows = [
        {"name": name, "does": (load("aats.policies", name).__doc__ or "").partition("\n")[0]}
        for name in names("aats.policies")
    ]
    emit(rows, output, columns([(row["name"], row["does"]) for row in rows]))


@app.command()
@guarded
def doctor(output: FormatOption = Format.TEXT) -> int:
    """Check that this machine can run AATS, and say what to do where it cannot."""
    from aats.doctor import examine

    rows = [
        {"check": c.name, "ok": c.ok, "found": c.found, "advice": "" if c.ok else c.advice}
        for c in examine()
    ]
    lines = (
        f"{'ok  ' if r['ok'] else 'FAIL'}  {r['check']}: {r['found']}"
        + (f" - {r['advice']}" if r["advice"] else "")
        for r in rows
    )
    emit(rows, output, lines)
    return Exit.OK if all(row["ok"] for row in rows) else Exit.NOT_MET


def mount() -> None:
    """Add the commands that installed distributions bring: Typer apps of `aats.commands`.

    One of the name of a group here adds to that group. What they raise ends as it does here.
    """
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    for name in names("aats.commands"):
        added: typer.Typer = load("aats.commands", name)
        for command in added.registered_commands:
            if command.callback is not None:
                command.callback = guarded(command.callback)
        if (own := groups.get(name)) is not None:
            own.registered_commands += added.registered_commands
        else:
            app.add_typer(added, name=name)


mount()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `aats` command and return its exit code."""
    return run_app(app, arguments, "aats")


if __name__ == "__main__":
    sys.exit(main())
