"""Three nodes, each started by a command of its own from a directory of its own, on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from aats.config.node import load_node
from aats.identity import Identity
from aats.ids import NodeId
from aats.ledger.file import verify_ledger
from aats.live import Tail
from aats.member import public_line

SKILL, CLASSES = "colours", 4
NODES = {
    "owner": ('roles = ["owner"]', ("clinic",), "seed-1.npz"),
    "clinic": ('contributes_to = ["ministry"]', ("owner", "ministry"), "seed-2.npz"),
    "ministry": ('roles = ["mpvu"]', ("clinic",), ""),
}
PACKET = """
[[packets]]
name = "painter"
requirement = [{ skill = "colours", value = 0.8 }]
model = { name = "mlp", features = 2, hidden = [16], classes = 4 }
method = { name = "sequential", epochs = 8, lr = 0.3 }
policy = "least-visited"
budget = { hops = 40 }
"""


def rows(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, 400)
    centres = np.array([[0, 0], [0, 4], [4, 0], [4, 4]])
    np.savez(path, x=centres[y] + rng.normal(0, 0.3, (400, 2)), y=y)


def free_ports(count: int) -> list[int]:
    """Return ports of which each and the next are free."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            found.append(port)
    return found


class Place:
    """A folder with the directories of nodes, and the commands that run them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for (name, (settings, peers, file)), port in zip(NODES.items(), free_ports(3), strict=True):
            folder = root / name
            folder.mkdir()
            links = "".join(f"{peer} = {{}}\n" for peer in peers)
            text = f'name = "{name}"\nport = {port}\n[node]\n{settings}\n[neighbours]\n{links}'
            if file:
                rows(folder / file, int(file[5]))
                source = f'{{ name = "file", file = "{file}", classes = {CLASSES} }}'
                text += f"[data.skills.{SKILL}]\nsource = {source}\n"
            (folder / "node.toml").write_text(text)
        self.lines = {name: public_line(load_node(root / name)) for name in NODES}
        for name in NODES:
            (root / name / "peers.toml").write_text("\n".join(self.lines.values()))

    def start(self, name: str) -> None:
        """Start a node as a person would."""
        with (self.root / f"{name}.out").open("ab") as out:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "aats", "node", str(self.root / name)],
                stdout=out,
                stderr=out,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def stop(self, name: str, number: signal.Signals) -> int:
        """Send a signal to a node's command; return its exit code."""
        process = self.running.pop(name)
        process.send_signal(number)
        return process.wait(60)

    def daemon(self, name: str) -> int:
        """Return the process of a node's daemon: the child of the fork server of its command."""
        pid = self.running[name].pid
        for _ in range(2):
            (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pid = int(child)
        return pid

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command to its end."""
        line = [sys.executable, "-m", "aats", *words]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=200)

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        """Return what a node's trace has of an event."""
        return [e for e in Tail(self.root / name / "events.jsonl").read() if e["event"] == event]

    def said(self, name: str) -> str:
        """Return what a node's command said."""
        return (self.root / f"{name}.out").read_text()

    def until(self, what: Callable[[], object]) -> None:
        """Wait until something is so; the test's own limit ends a wait in vain."""
        while not what():
            for name, process in self.running.items():
                assert process.poll() is None, self.said(name)
            time.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    for process in found.running.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_packet_goes_through_nodes_that_were_started_apart(place: Place) -> None:
    (place.root / "packet.toml").write_text(PACKET)
    for name in NODES:
        place.start(name)
    done = place.command(
        "submit", str(place.root / "packet.toml"), "--node", str(place.root / "owner"), "--wait",
        "--out", str(place.root / "runs"), "--format", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["requirement_met"]
    assert result["skills"][SKILL]["verified_by"] == "ministry"
    assert result["skills"][SKILL]["independent"]["value"] > 0.8
    assert result["route"] == ["owner", "clinic", "ministry", "owner"]
    assert "clinic was never visited" in done.stderr
    run = Path(result["run_dir"])
    assert verify_ledger(run / "ledger" / "painter.jsonl").records >= 4
    assert all(np.isfinite(t).all() for t in load_file(run / "models/painter.safetensors").values())
    assert "ministry" in (run / "report.html").read_text()
    listed = place.command("ls", "--node", str(place.root / "owner"), "--format", "json")
    (row,) = json.loads(listed.stdout)
    assert (row["packet"], row["status"], row["met"]) == ("painter", "home", True)
    assert place.stop("ministry", signal.SIGINT) == 0
    assert "ministry stops" in place.said("ministry")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_is_killed_goes_on_when_it_is_started_again(place: Place) -> None:
    (place.root / "packet.toml").write_text(PACKET)
    place.start("clinic")
    place.start("owner")
    owner = str(place.root / "owner")
    handed = place.command("submit", str(place.root / "packet.toml"), "--node", owner)
    assert handed.returncode == 0, handed.stderr
    # The packet cannot be verified yet: the clinic has it, and dies with it.
    place.until(lambda: place.events("clinic", "visit.finished"))
    assert place.stop("clinic", signal.SIGKILL) == -signal.SIGKILL
    assert not place.events("owner", "packet.home")
    place.start("clinic")
    place.start("ministry")
    done = place.command(
        "fetch", "painter", "--node", owner, "--out", str(place.root / "runs"), "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["requirement_met"]
    os.kill(place.daemon("clinic"), signal.SIGKILL)
    place.until(lambda: len(place.events("clinic", "node.up")) == 3)
    assert "clinic died (-9); it starts again" in place.said("clinic")
    assert [e["incarnation"] for e in place.events("clinic", "node.up")] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_with_another_key_is_refused_and_told(place: Place) -> None:
    identity = place.root / "owner" / "identity.key"
    for key in (identity, place.root / "owner" / "curve.key"):
        key.unlink()
    Identity.generate(NodeId("owner")).save(identity)
    own = public_line(load_node(place.root / "owner"))
    lines = {**place.lines, "owner": own}
    (place.root / "owner" / "peers.toml").write_text("\n".join(lines.values()))
    place.start("owner")
    place.start("clinic")
    place.until(lambda: "clinic refuses us: our keys are in no line" in place.said("owner"))
    place.until(lambda: "is in no line of our peers.toml" in place.said("clinic"))
    assert not place.events("clinic", "link.up")
    assert not place.events("owner", "link.up")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_cannot_start_says_why(place: Place) -> None:
    node = load_node(place.root / "ministry")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", node.port))
        taken.listen()
        done = place.command("node", str(place.root / "ministry"))
    assert done.returncode == 2
    assert f"tcp://127.0.0.1:{node.port}: Address already in use" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_is_told_to_stop_finishes_and_hands_on(place: Place) -> None:
    (place.root / "packet.toml").write_text(PACKET)
    for name in NODES:
        place.start(name)
    owner = str(place.root / "owner")
    assert place.command("submit", str(place.root / "packet.toml"), "--node", owner).returncode == 0
    place.until(lambda: place.events("clinic", "visit.started"))
    assert place.stop("clinic", signal.SIGTERM) == 0
    assert place.events("clinic", "node.leaving")
    assert place.events("clinic", "visit.finished")
    assert place.events("clinic", "packet.moved")[-1]["to"] == "ministry"
    place.until(lambda: place.events("ministry", "verdict"))  # the way home is by the clinic
    place.start("clinic")
    done = place.command("fetch", "painter", "--node", owner, "--out", str(place.root / "runs"))
    assert done.returncode == 0, done.stderr
    assert not any(place.events(name, "packet.regenerated") for name in NODES)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_told_twice_a_node_stops_at_once(place: Place) -> None:
    (place.root / "packet.toml").write_text(PACKET)
    file = place.root / "clinic" / "node.toml"
    file.write_text("leave_s = 100000\n" + file.read_text())
    place.start("owner")
    place.start("clinic")
    owner = str(place.root / "owner")
    assert place.command("submit", str(place.root / "packet.toml"), "--node", owner).returncode == 0
    place.until(lambda: place.events("clinic", "visit.finished"))  # and no MPVU to go to
    place.running["clinic"].send_signal(signal.SIGINT)
    place.until(lambda: place.events("clinic", "node.leaving"))
    assert place.running["clinic"].poll() is None
    assert place.stop("clinic", signal.SIGINT) == 0
    assert "clinic stops; what it still holds goes on" in place.said("clinic")
