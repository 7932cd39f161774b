"""The examples of one's own daemon, policy and method run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=55,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_program_of_ones_own_becomes_a_node() -> None:
    assert "requirement met: True" in _run("custom_daemon.py")


@pytest.mark.slow
def test_a_policy_of_ones_own_leads_a_packet() -> None:
    first, *_ = _run("custom_policy.py").splitlines()
    assert first.startswith("goes to large: ")


@pytest.mark.slow
def test_a_method_of_ones_own_is_checked_and_carried_by_a_packet() -> None:
    first, *visits, home, last = _run("custom_method.py").splitlines()
    assert first.split()[:2] == ["init", "owner"]
    assert any("went up" in line for line in visits)
    assert home.split()[:2] == ["home", "owner"]
    assert last.endswith("met: True")


def test_a_node_of_ones_own_takes_forty_lines() -> None:
    source = (EXAMPLES / "custom_daemon.py").read_text("utf-8")
    body = source[source.index("async def main") :].splitlines()
    code = [line for line in body if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(code) <= 40
