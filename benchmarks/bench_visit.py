"""The whole of a visit with no-op training: three daemons, default security, real processes.

A visit: the node has the packet durably, loads the model in a worker process, touches every
tensor (otherwise nothing would have to travel: unchanged tensors are not sent twice), judges
and hashes it, decides, offers, transfers, and the next node has it durably. Figures are medians
over visits. Start-up is counted from the start of the command to the start of the first visit.

Each size runs in a command of its own. The peers' figures are published reference values,
measured on another day on this kind of machine under load; they are not measured here.

    python benchmarks/bench_visit.py --sizes 1,25,100
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import Bar, finish, show

from aats.advert import ComputeAdvert, LinkAdvert, Role
from aats.ids import NodeId
from aats.learning.weights import initial_payload
from aats.live import LiveNode, LiveOptions, LiveWorld, TraceEvent
from aats.node.desk import CoreConfig
from aats.node.forkserver import ForkServer
from aats.packet import Architecture, Cost, Header, Plugin, Target
from aats.payload import Payload
from aats.roles.data import NodeData, SkillData
from aats.roles.owner import make_packet

SKILL = "noise"
WIDTHS = {1: [256] * 5, 25: [1024] * 7, 100: [2048] * 7}
"""Hidden layers of the multilayer perceptron of about so many MB (10^6 bytes)."""
TIMED, WEIGHED = 10, 4
"""Visits whose time counts, and visits while memory is sampled, which costs time."""
NAMES = [NodeId(n) for n in ("a", "b", "c")]
PEERS = [
    {"who": "NVFlare cyclic (reference)", "MB": 1, "s/visit": 1.9, "bytes/model": 2.0},
    {"who": "Flower (reference)", "MB": 1, "s/visit": 10.5, "bytes/model": 6.3},
    {"who": "p2pfl (reference)", "MB": 1, "s/visit": 2.1, "bytes/model": 2.0},
    {"who": "NVFlare cyclic (reference)", "MB": 25, "s/visit": 2.2, "bytes/model": 2.0},
    {"who": "Flower (reference)", "MB": 25, "s/visit": 16.1, "bytes/model": 6.0},
    {"who": "p2pfl (reference)", "MB": 25, "s/visit": 4.0, "bytes/model": 2.1},
    {"who": "NVFlare cyclic (reference)", "MB": 100, "s/visit": 2.8, "bytes/model": 2.0},
    {"who": "Flower (reference)", "MB": 100, "s/visit": 39.4, "bytes/model": 6.1},
    {"who": "p2pfl (reference)", "MB": 100, "s/visit": 35.0, "bytes/model": 2.0},
]
"""Published reference values. To the first visit: NVFlare 21 s, p2pfl 33 s, Flower 36 s."""
BEST_PEER_S = {1: 1.9, 25: 2.2, 100: 2.8}
TOUCH = """[aats.methods]
touch = touch:Touch
"""


def nodes() -> list[LiveNode]:
    """Return three data nodes, each a neighbour of the two others."""
    rows = np.random.default_rng(0).normal(size=(20, 8))
    data = NodeData.of(SkillData.of(SKILL, rows, np.arange(20) % 2, num_classes=2))
    roles = (Role.DATA, Role.COMPUTE, Role.OWNER)
    return [
        LiveNode(
            CoreConfig(name, roles, data.adverts(), ComputeAdvert(1000.0)),
            data,
            tuple(LinkAdvert(peer, 1e10, 1e-4) for peer in NAMES if peer != name),
        )
        for name in NAMES
    ]


def architecture_of(size_mb: int) -> Architecture:
    """Return a model of about so many MB."""
    return Architecture("mlp", {"features": 8, "hidden": WIDTHS[size_mb], "classes": 2})


def header_of(world: LiveWorld, size_mb: int, payload: Payload) -> Header:
    """Return the header of a packet that travels until its hops are used up."""
    header, _ = make_packet(
        world.identity(NAMES[0]),
        architecture_of(size_mb),
        (Target(SKILL, 1.0),),
        created=time.time(),
        method=Plugin("touch"),
        policy=Plugin("cycle"),
        budget=Cost(TIMED + WEIGHED + 4, 1e9, 1e18, 1e18),
        payload=payload,
    )
    return header


class Scales:
    """Weighs this process and all below it: CPU seconds, and peak PSS in MB."""

    def __init__(self) -> None:
        self._me = psutil.Process()
        self._stop = threading.Event()
        self.peak_mb = 0.0

    def cpu_s(self) -> float:
        """Return the CPU seconds of all processes, ended ones included."""
        times = [p.cpu_times() for p in self._me.children(recursive=True)]
        return sum(t.user + t.system + t.children_user + t.children_system for t in times)

    def start(self) -> None:
        """Sample memory from now on."""
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> None:
        """Sample no more."""
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            total = 0.0
            for process in self._me.children(recursive=True):
                try:
                    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text("ascii")
                except OSError:
                    continue
                total += sum(
                    int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:"
                )
            self.peak_mb = max(self.peak_mb, total / 1000)


async def measure(size_mb: int, run_dir: Path) -> dict[str, Any]:
    """Run one packet and return its row."""
    started = psutil.Process().create_time()
    server, scales = ForkServer.spawn("daemon"), Scales()
    first_visit, cpu_s, received = 0.0, [0.0, 0.0], list[TraceEvent]()
    building = asyncio.create_task(asyncio.to_thread(initial_payload, architecture_of(size_mb), 0))
    async with LiveWorld(nodes(), run_dir, LiveOptions(), server=server) as world:
        up = time.time()
        payload = await building
        world.submit(header_of(world, size_mb, payload), payload)
        async for event in world.events(300):
            if event["event"] == "visit.started" and not first_visit:
                first_visit = event["t"]
            if event["event"] != "packet.received":
                continue
            received.append(event)
            if len(received) == 1:
                cpu_s[0] = scales.cpu_s()
            if len(received) == 1 + TIMED:
                cpu_s[1] = scales.cpu_s()
                scales.start()
        scales.stop()
        assert world.ended == "home", f"{world.ended}: {world.waiting_for}"
    await server.close()
    model = payload.manifest.total
    timed = received[: 1 + TIMED]
    seconds = [b["t"] - a["t"] for a, b in itertools.pairwise(timed)]
    return {
        "who": "AATS",
        "MB": size_mb,
        "s/visit": statistics.median(seconds),
        "bytes/model": statistics.median(e["wire_bytes"] for e in timed[1:]) / model,
        "CPU s/visit": (cpu_s[1] - cpu_s[0]) / TIMED,
        "all up s": up - started,
        "first visit s": first_visit - started,
        "peak PSS MB": scales.peak_mb,
        "model bytes": model,
        "worst s": max(seconds),
    }


def one(size_mb: int) -> dict[str, Any]:
    """Measure one size in a command of its own."""
    with tempfile.TemporaryDirectory(prefix="aats-visit-") as folder:
        plugins = Path(folder) / "aats_bench-1.dist-info"
        plugins.mkdir()
        (plugins / "entry_points.txt").write_text(TOUCH, encoding="utf-8")
        (plugins / "METADATA").write_text("Name: aats-bench\nVersion: 1\n", encoding="utf-8")
        path = os.pathsep.join(
            [folder, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        )
        command = [sys.executable, __file__, "--run-dir", f"{folder}/run", "--sizes", str(size_mb)]
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            check=True,
        )
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1,25,100", help="MB, of 1, 25 and 100")
    parser.add_argument("--run-dir", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(s) for s in options.sizes.split(",")]
    if options.run_dir:
        print(json.dumps(asyncio.run(measure(sizes[0], Path(options.run_dir)))))
        return 0
    rows = [one(size) for size in sizes]
    show("One visit, everything included", [*rows, *(p for p in PEERS if p["MB"] in sizes)])
    bars = []
    for row in rows:
        size = row["MB"]
        bars += [
            Bar(f"{size} MB: s/visit", row["s/visit"], BEST_PEER_S[size] / 10, at_least=False),
            Bar(f"{size} MB: bytes/model", row["bytes/model"], 1.05, at_least=False),
            Bar(f"{size} MB: first visit s", row["first visit s"], 10.0, at_least=False),
        ]
    return finish("visit", [*rows, *PEERS], bars)


if __name__ == "__main__":
    sys.exit(main())
