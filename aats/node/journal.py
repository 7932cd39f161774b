"""What a live node tells: trace events for machines (`events.jsonl`), a log for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import structlog

from aats.clock import Clock
from aats.ids import NodeId
from aats.node.spec import EVENTS_FILE, LOG_FILE
from aats.text import printable

PROVOKED = frozenset(
    {"advert.rejected", "message.rejected", "message.unsendable", "offer.refused",
     "samples.refused", "stream.refused", "stream.joined", "stream.lost"}
)  # fmt: skip
"""Events that a peer can cause as often as it likes."""
BURST = 100
"""Of each of them, told of one peer in `BURST_S`; what is left out is counted."""
BURST_S = 10.0


class Journal:
    """A node's two files. Each line is written at once: a killed node has told all it did."""

    def __init__(self, directory: Path, node: NodeId, clock: Clock) -> None:
        self._directory, self._node, self._clock = directory, node, clock
        self._told: Counter[tuple[str, str]] = Counter()
        self._told_since = 0.0

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
                lambda _logger, _method, line: printable(str(line)),
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
        """Write one line of the trace; of what a peer provokes, not without end."""
        now = self._clock.now()
        if event in PROVOKED and self._is_too_often(event, str(fields.get("sender", "")), now):
            return
        self._write({"t": now, "node": self._node, "event": event, **fields})

    def _is_too_often(self, event: str, peer: str, now: float) -> bool:
        if now - self._told_since > BURST_S:
            for (name, who), count in self._told.items():
                if count > BURST:
                    self.log.warning("trace.left-out", what=name, peer=who, lines=count - BURST)
            self._told.clear()
            self._told_since = now
        self._told[event, peer] += 1
        return self._told[event, peer] > BURST

    def _write(self, line: Mapping[str, Any]) -> None:
        self._events.write(json.dumps(line, separators=(",", ":"), default=float).encode() + b"\n")

    def fault(self, error: BaseException) -> None:
        """Write down what ends the node, with its traceback."""
        self.trace("node.fault", {"reason": repr(error)[:500]})
        self.log.error("node.fault", exc_info=error)
