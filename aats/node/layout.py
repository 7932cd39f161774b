"""Nodes on one machine before they run: directories, keys, addresses that are kept for them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aats.advert import LinkAdvert
from aats.errors import LocalError
from aats.identity import Identity
from aats.ids import NodeId
from aats.node.desk import CoreConfig
from aats.node.fault import FaultPoint
from aats.node.shard import FILE_NAME, save_data
from aats.node.spec import CURVE_FILE, IDENTITY_FILE, PEERS_FILE, DaemonSpec, WorkSettings
from aats.roles.data import NodeData
from aats.transport.keys import CurveKeys, Directory, Endpoint


@dataclass(frozen=True, slots=True)
class LiveNode:
    """One node of a network. Its keys and addresses are made for it."""

    core: CoreConfig
    data: NodeData = NodeData()
    links: tuple[LinkAdvert, ...] = ()
    """Each given at both ends."""
    work: WorkSettings = WorkSettings()
    deaths: tuple[FaultPoint, ...] = ()
    """Where it is to kill itself, for tests of custody."""

    @property
    def name(self) -> NodeId:
        """The node's name."""
        return self.core.node


class Layout:
    """Directories, keys and addresses of nodes on one machine.

    Keys are made at once. `write` fills `root/<name>` and reserves the ports, which stay
    reserved until `close`.

    Args:
        nodes: What each is made of.
        root: Gets a directory for each node; one that is there already is replaced.
        host: Address that the nodes bind.
        base_port: Node i binds control on base_port + 2 i and bulk on the next; 0: free ports.
        insecure: No encryption between nodes.
        shaping: Delay and pace links and tasks to their figures.
        custody: What a packet in custody survives: death of the process, or of the host.
    """

    def __init__(
        self,
        nodes: Iterable[LiveNode],
        root: Path,
        *,
        host: str = "127.0.0.1",
        base_port: int = 0,
        insecure: bool = False,
        shaping: bool = False,
        custody: Literal["process", "host"] = "process",
    ) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.identities = {name: Identity.generate(name) for name in self.nodes}
        self._root, self._host, self._base_port = root, host, base_port
        self._insecure, self._shaping = insecure, shaping
        self._custody: Literal["process", "host"] = custody
        self._reserved = contextlib.ExitStack()

    def directory(self, node: NodeId) -> Path:
        """Return a node's directory."""
        return self._root / node

    def write(self) -> dict[NodeId, DaemonSpec]:
        """Write what each node needs into its directory; return how each is to be run.

        Raises:
            LocalError: If a configured port is in use; names it.
        """
        curves = {name: CurveKeys.generate() for name in self.nodes}
        endpoints = self._endpoints(curves)
        keys = {e.node: e.public_key for e in endpoints}
        specs = {}
        for (name, node), endpoint in zip(self.nodes.items(), endpoints, strict=True):
            directory = self.directory(name)
            if directory.exists():
                shutil.rmtree(directory)
            directory.mkdir(mode=0o700, parents=True)
            self.identities[name].save(directory / IDENTITY_FILE)
            curves[name].save(directory / CURVE_FILE)
            Directory(endpoints).save(directory / PEERS_FILE)
            save_data(directory / FILE_NAME, node.data)
            specs[name] = DaemonSpec(
                directory=directory.resolve(),
                core=replace(node.core, known_keys=keys),
                control=endpoint.control,
                bulk=endpoint.bulk,
                links=node.links,
                secure=not self._insecure,
                custody=self._custody,
                work=node.work,
                shaping=self._shaping,
                deaths=node.deaths,
            )
            specs[name].save()
        return specs

    def close(self) -> None:
        """Give the ports up."""
        self._reserved.close()

    def _endpoints(self, curves: dict[NodeId, CurveKeys]) -> list[Endpoint]:
        ports = self._ports()
        return [
            Endpoint(
                name,
                f"tcp://{self._host}:{next(ports)}",
                f"tcp://{self._host}:{next(ports)}",
                b"" if self._insecure else curves[name].public,
                self.identities[name].public_key,
            )
            for name in self.nodes
        ]

    def _ports(self) -> Iterator[int]:
        """Yield ports that nobody else can take until `close`.

        A reserved port is bound and does not listen, which keeps others away and lets the node
        bind and listen, again after each restart (both sides have SO_REUSEADDR).
        """
        wanted = itertools.count(self._base_port) if self._base_port else itertools.repeat(0)
        for port in wanted:
            reserved = self._reserved.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                reserved.bind((self._host, port))
            except OSError as e:
                raise LocalError(
                    f"{self._host}:{port}: {e.strerror}; choose another live.base_port, "
                    "or 0 for free ports"
                ) from e
            yield reserved.getsockname()[1]
