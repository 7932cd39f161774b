"""What a live node tells: trace events for machines (`events.jsonl`), a log for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import structlog

from aats.clock import Clock
from aats.ids import NodeId
from aats.node.spec import EVENTS_FILE, LOG_FILE


class Journal:
    """A node's two files. Each line is written at once: a killed node has told all it did."""

    def __init__(self, directory: Path, node: NodeId, clock: Clock) -> None:
        self._directory, self._node, self._clock = directory, node, clock

    def __enter__(self) -> Self:
        self._events: IO[bytes] = (self._directory / EVENTS_FILE).open("ab", buffering=0)
        self._words = (self._directory / LOG_FILE).open("a", encoding="utf-8", buffering=1)
        self.log = structlog.wrap_logger(
            structlog.WriteLogger(self._words),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.format_exc_info,
                structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
            ],
            node=self._node,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._events.close()
        self._words.close()

    def trace(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one line of the trace."""
        line = {"t": self._clock.now(), "node": self._node, "event": event, **fields}
        self._events.write(json.dumps(line, separators=(",", ":"), default=float).encode() + b"\n")

    def fault(self, error: BaseException) -> None:
        """Write down what ends the node, with its traceback."""
        self.trace("node.fault", {"reason": repr(error)[:500]})
        self.log.error("node.fault", exc_info=error)
