"""What a node writes down, and that nobody can make it write without end."""

from __future__ import annotations

import json
from pathlib import Path

from aats.ids import NodeId
from aats.node.journal import BURST, BURST_S, Journal
from aats.node.spec import EVENTS_FILE, LOG_FILE


class Hand:
    """A clock that is moved by hand."""

    at = 1000.0

    def now(self) -> float:
        return self.at


def events(directory: Path) -> list[str]:
    return [json.loads(x)["event"] for x in (directory / EVENTS_FILE).read_text().splitlines()]


def test_each_event_is_one_line(tmp_path: Path) -> None:
    with Journal(tmp_path, NodeId("a"), Hand()) as journal:
        journal.trace("node.up", {"incarnation": 1})
    (line,) = (tmp_path / EVENTS_FILE).read_text().splitlines()
    assert json.loads(line) == {"t": 1000.0, "node": "a", "event": "node.up", "incarnation": 1}


def test_what_a_peer_provokes_is_told_no_more_than_so_often(tmp_path: Path) -> None:
    clock = Hand()
    with Journal(tmp_path, NodeId("a"), clock) as journal:
        for _ in range(5 * BURST):
            journal.trace("message.rejected", {"sender": "b", "reason": "junk"})
            journal.trace("visit.started", {})
        journal.trace("message.rejected", {"sender": "c", "reason": "junk"})
        clock.at += BURST_S + 1
        journal.trace("message.rejected", {"sender": "b", "reason": "junk"})
    assert events(tmp_path).count("message.rejected") == BURST + 2
    assert events(tmp_path).count("visit.started") == 5 * BURST
    assert f"lines={4 * BURST}" in (tmp_path / LOG_FILE).read_text()


def test_what_others_say_forges_no_line_and_moves_no_cursor(tmp_path: Path) -> None:
    with Journal(tmp_path, NodeId("a"), Hand()) as journal:
        journal.log.warning("control.denied", reason="no\r\x1b[2Klevel=error\nevent=x\u2028\x85y")
        try:
            raise ValueError("two\nlines\x1b[31m")
        except ValueError as error:
            journal.fault(error)
    lines = (tmp_path / LOG_FILE).read_text().split("\n")
    assert [line.isprintable() for line in lines] == [True, True, True]
    assert "no\\r\\x1b[2Klevel=error\\nevent=x\\u2028\\x85y" in lines[0]
    assert all(line.isascii() for line in (tmp_path / EVENTS_FILE).read_text().split("\n"))
