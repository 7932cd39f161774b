"""A receiving node as a process that a test may kill: JSON lines in and out.

receiver_process.py DIRECTORY [die-after-save]
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from aats import wire
from aats.ids import NodeId
from aats.node.events import CustodyRow, PacketReceived
from aats.store import NodeStore
from aats.transport.base import BulkEvent, TicketReady
from aats.transport.bulk import BulkLane
from aats.transport.keys import Directory

_lock = threading.Lock()


def say(**fields: Any) -> None:
    with _lock:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


def main(directory: Path, dies_after_save: bool) -> None:
    store = NodeStore(directory)
    offered: dict[str, CustodyRow] = {}

    def on_event(event: BulkEvent) -> None:
        if isinstance(event, TicketReady):
            say(ticket=event.data.hex())
        elif isinstance(event, PacketReceived):
            store.save(offered[str(event.key)])
            if dies_after_save:
                os._exit(9)
            say(held=str(event.key), wire_bytes=event.wire_bytes)
        else:
            say(fault=str(event))

    lane = BulkLane(NodeId("b"), "tcp://127.0.0.1:0", Directory(), store, on_event)
    lane.start()
    say(address=lane.address)
    for line in sys.stdin:
        row = wire.decode_row(bytes.fromhex(line))
        offered[str(row.key)] = row
        if row.key in [held.key for held in store.rows()]:
            say(held=str(row.key), wire_bytes=0)
        else:
            lane.expect(NodeId("a"), row.key, row.header.manifest)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "die-after-save" in sys.argv)
