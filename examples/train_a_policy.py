"""Train a routing policy for a network of your own, let packets carry it, compare.

    python examples/train_a_policy.py                   # a ring of eight nodes, a few minutes
    python examples/train_a_policy.py my/scenario.toml 500000

It learns in the environment of that scenario, where small models learn by the nodes' rows, and is
compared in the simulated world, where the scenario's own are trained.
Needs: pip install 'aats-network[rl]'.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def aats(*arguments: str) -> None:
    """Run a command as one would type it, and show it."""
    print("\n$ aats", *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", "aats", *arguments], check=False)
    if done.returncode not in (0, 3):  # 3: a packet came home without all of its requirement
        sys.exit(done.returncode)


def main(scenario: Path, steps: int, folder: Path) -> None:
    """Train, look at what was learned, send packets that carry it, compare with heuristics."""
    policy = folder / "mine.safetensors"
    learn = ("--steps", str(steps), "--envs", "64", "--out", str(policy))
    aats("policy", "train", "--scenario", str(scenario), *learn)
    aats("policy", "show", str(policy))
    travel = ("launch", str(scenario), "--world", "sim", "--out", str(folder))
    aats(*travel, "--policy", str(policy))
    aats(*travel, "--compare", f"random,minibatch,greedy-prior,{policy}", "--seeds", "10")


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "ring"
    decisions = int(sys.argv[2]) if len(sys.argv) > 2 else 50_000
    with tempfile.TemporaryDirectory() as place:
        main(chosen, decisions, Path(place))
