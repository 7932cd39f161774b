"""In-Network Learning against vertical federated learning at equal real bits a sample.

Two nodes see the same images, one with the left half black, the other with noise on them; a third
knows the labels. All three train by the methods' own scripts, the ones that live nodes run
(`tests/sim/test_views.py` shows that a network of nodes ends with the same weights).
Training goes in visits; of each run the model that is best on rows held out for that is kept, so
neither method is hurt by overfitting. Then test rows are answered over the links: bits are the
bytes of those payloads. Both methods quantise by learnt levels, trained with the quantiser in the
loop, and both entropy-code what they send, VFL by how often each level was used.

    python benchmarks/inl.py --root DIR --out DIR   # Fashion-MNIST, three seeds, minutes
    python benchmarks/inl.py --quick                # digits, one seed

`ideal` is the KL divergence from the links' priors. For Gaussian encoders it is what the papers
report; `real` is then the mean, quantised at a step as wide as the noise, and range-coded.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Bar, finish, show

from aats.advert import Partner
from aats.ids import NodeId
from aats.learning.datasets import Dataset, digits, fashion_mnist
from aats.learning.inl.leading import Answers
from aats.learning.inl.methods import InlMethod, VflMethod, answers
from aats.learning.inl.nets import InlNet
from aats.learning.method import Plan, Stop, Work
from aats.learning.models import build, initialise
from aats.learning.stream import Frame, Script
from aats.learning.views import View, spread_seen
from aats.packet import Architecture, Header, Plugin, Target
from aats.roles.data import Labels, NodeData, SkillData
from aats.testing.methods import header_for
from aats.testing.streams import run_stream

SKILL, HOME = "images", NodeId("home")
WITHIN, RATIO, CLAIM = 0.003, 0.75, 1 / 3
"""Accuracy that counts as equal; the bar on the share of VFL's bits; the claim of the authors."""


@dataclass(frozen=True)
class Setup:
    """One size of the comparison."""

    data: Dataset
    noise: float
    rows: int
    validation: int
    test: int
    hidden: int
    visits: int
    epochs: float
    lr: float
    seeds: int
    prices: tuple[float, ...]
    """Of INL: weights of satellites and rates."""
    gaussian: tuple[float, ...]
    levels: tuple[tuple[int, int], ...]
    """Of VFL: width of a code, levels of each number."""


@dataclass(frozen=True)
class Found:
    """One run: test accuracy and bits a sample, both links together."""

    accuracy: float
    real: float
    ideal: float
    control: float
    """Bytes a sample of the questions at inference: which samples are meant."""


def setup(quick: bool, root: str) -> Setup:
    """Return what is compared."""
    if quick:
        return Setup(
            digits(), 0.5, 1000, 200, 500, 32, 4, 5, 5e-3, 1,
            (0.1, 0.03, 0.01), (0.03,), ((2, 2), (4, 2), (4, 4)),
        )  # fmt: skip
    return Setup(
        fashion_mnist(root), 2.0, 6000, 1000, 5000, 128, 5, 2, 1e-3, 3,
        (0.15, 0.07, 0.03, 0.01, 0.003), (0.03,),
        ((2, 2), (4, 2), (3, 4), (8, 2), (4, 4), (16, 2)),
    )  # fmt: skip


def nodes(setup: Setup, seed: int) -> dict[str, SkillData]:
    """Return what each node holds: training rows, and held-out ones (validation, then test)."""
    views = {
        "a": View("half", Plugin("occlude", {"side": "left"}), labels=False),
        "b": View("noisy", Plugin("noise", {"sd": setup.noise}), labels=False),
        HOME: View("labels", Plugin("nothing")),
    }
    rng = np.random.default_rng([seed, 9])
    official = setup.data.is_test
    pool = np.flatnonzero(~official) if official.any() else np.arange(len(setup.data))
    drawn = rng.permutation(pool)
    kept = drawn[: setup.rows + setup.validation]
    rest = np.flatnonzero(official) if official.any() else drawn[len(kept) :]
    tested = rng.permutation(rest)[: setup.test]
    order = np.concatenate([kept, tested])
    data = replace(setup.data.take(order), is_test=np.zeros(0, np.bool_))
    held = spread_seen(SKILL, data, views, held_out=0.0, reference=0, test=0.0, seed=seed).nodes

    def parted(mine: SkillData) -> SkillData:
        at = np.argsort(mine.row_ids)
        x, y, ids = mine.train_x[at], mine.train_y[at], mine.row_ids[at]
        n = setup.rows
        return replace(
            mine, train_x=x[:n], train_y=y[:n], ids=ids[:n],
            test_x=x[n:], test_y=y[n:], test_ids=ids[n:],
        )  # fmt: skip

    return {node: parted(mine) for node, mine in held.items()}


@dataclass(frozen=True)
class Asking:
    """Lets the nodes answer samples, and nothing else."""

    method: VflMethod
    ids: Labels

    def plan(self, stop: Stop) -> Plan | None:
        """Return no work."""
        return None

    def train(self, model: Any, work: Work) -> None:
        """Do nothing."""

    def lead(self, model: Any, work: Work, partners: Sequence[Partner]) -> Script[Any]:
        """Ask."""
        data = work.stop.data[SKILL]
        return answers(self.method.settings(), model, SKILL, data, self.ids, partners)

    def follow(self, opening: Frame, data: NodeData, header: Header, seed: int) -> Script[None]:
        """Answer."""
        return self.method.follow(opening, data, header, seed)


def measure(
    setup: Setup, method: VflMethod, seed: int, **config: Any
) -> tuple[Found, dict[str, float]]:
    """Return what one run found, and the mean training bytes of a sample by kind of frame."""
    held = nodes(setup, seed)
    shape = list(held["a"].train_x.shape[1:])
    view = {"shape": shape, "hidden": [setup.hidden]}
    model = Architecture(
        "inl",
        {
            "views": {"half": view, "noisy": view}, "classes": len(setup.data.classes),
            "decoder": [setup.hidden // 2], **config,
        },
    )  # fmt: skip
    net = build(model)
    assert isinstance(net, InlNet)
    initialise(net, seed)
    header = header_for(model, requirement=(Target(SKILL, 1.0),), seed=seed)
    others = {n: NodeData.of(d) for n, d in held.items() if n != HOME}
    home = NodeData.of(held[HOME])
    n = setup.validation
    x = torch.from_numpy(
        np.concatenate([held[name].test_x[:n].reshape(n, -1) for name in ("a", "b")], 1)
    )
    y = held[HOME].test_y
    best, kept, sent = -1.0, net.state_dict(), dict[str, float]()
    for visit in range(setup.visits):
        stop = Stop(HOME, visit, 1000 * seed + visit, home.skills)
        plan = method.plan(stop)
        assert plan is not None
        work = Work(stop, plan)
        run = run_stream(method, net, work, others, header=header)
        for (_, _, kind), size in run.bytes.items():
            sent[kind] = sent.get(kind, 0.0) + size / (setup.visits * work.samples)
        net.eval()
        with torch.no_grad():
            now = float((net(x).argmax(1).numpy() == y[:n]).mean())
        if now > best:
            best, kept = now, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
    stop = Stop(HOME, setup.visits, seed, home.skills)
    asking = Asking(method, held[HOME].held_out_ids[n:])
    run = run_stream(asking, net, Work(stop, Plan({})), others, header=header)  # type: ignore[arg-type]
    told: Any = run.carry
    assert isinstance(told, Answers)
    total = len(y) - n
    wired = sum(size for (_, _, kind), size in run.bytes.items() if kind == "payload")
    assert 8 * wired == sum(told.bits.values())
    asked = sum(size for (_, _, kind), size in run.bytes.items() if kind == "ask")
    found = Found(
        float((told.logits.argmax(1).numpy() == y[n:]).mean()), 8 * wired / total,
        sum(told.ideal_bits.values()) / total, asked / total,
    )  # fmt: skip
    return found, sent


def curve(
    pool: Executor, setup: Setup, label: str, method: VflMethod, knob: str,
    **config: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return a row of the table: one setting, all seeds."""
    jobs = [pool.submit(measure, setup, method, seed, **config) for seed in range(setup.seeds)]
    runs = [job.result() for job in jobs]
    found = [one for one, _ in runs]
    accuracy = np.array([100 * f.accuracy for f in found])
    row = {
        "method": label, "setting": knob,
        "accuracy": float(accuracy.mean()), "sd": float(accuracy.std()),
        "real bits": float(np.mean([f.real for f in found])),
        "ideal bits": float(np.mean([f.ideal for f in found])),
        "training bytes a sample": float(np.mean([sum(sent.values()) for _, sent in runs])),
    }  # fmt: skip
    print(f"{label:14} {knob:22} {row['accuracy']:.2f} at {row['real bits']:.2f} bits", flush=True)
    return row


def needed(rows: Sequence[dict[str, Any]], accuracy: float, kind: str = "real bits") -> float:
    """Return the fewest bits at which a method reaches an accuracy, interpolated on its front."""
    front: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda r: float(r[kind])):
        if not front or row["accuracy"] > front[-1][1]:
            front.append((row[kind], row["accuracy"]))
    if not front or accuracy > front[-1][1]:
        return math.inf
    if accuracy <= front[0][1]:
        return front[0][0]
    for (low, a), (high, b) in itertools.pairwise(front):
        if accuracy <= b:
            return low + (high - low) * (accuracy - a) / (b - a)
    raise AssertionError("the front rises")


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy over bits a sample."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for label in dict.fromkeys(row["method"] for row in rows):
        mine = sorted(
            (r for r in rows if r["method"] == label), key=lambda r: float(r["real bits"])
        )
        bits, accuracy = [r["real bits"] for r in mine], [r["accuracy"] for r in mine]
        axes.errorbar(bits, accuracy, [r["sd"] for r in mine], marker="o", capsize=3, label=label)
        if label == "inl gaussian":
            ideal = [r["ideal bits"] for r in mine]
            axes.plot(ideal, accuracy, "x:", label=f"{label}, ideal (KL) bits")
    axes.set_xlabel("real payload, bits a sample (two links)")
    axes.set_ylabel("test accuracy, %")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    """Run the comparison; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="", help="folder with fashion-mnist's file")
    parser.add_argument("--out", default="", help="folder for the plot")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    of = setup(options.quick, options.root)
    base: dict[str, Any] = {"epochs": of.epochs, "lr": of.lr, "measure": 0}
    fork = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, fork, torch.set_num_threads, (1,)) as pool:
        rows = [
            *(
                curve(pool, of, "inl", InlMethod(s=s, **base), f"s {s:g}", code=8, levels=4)
                for s in of.prices
            ),
            *(
                curve(
                    pool, of, "vfl", VflMethod(**base), f"{width} x {levels} levels", code=width,
                    levels=levels,
                )
                | {"fixed-length bits": 2 * width * math.log2(levels)}
                for width, levels in of.levels
            ),
            *(
                curve(
                    pool, of, "inl gaussian", InlMethod(s=s, **base), f"s {s:g}", code=8,
                    channel="gaussian",
                )
                for s in of.gaussian
            ),
        ]  # fmt: skip
    show("Accuracy and bits a sample, both links together", rows)
    inl, vfl = ([r for r in rows if r["method"] == name] for name in ("inl", "vfl"))
    equal = [
        {
            "vfl": row["setting"], "accuracy": row["accuracy"], "vfl bits": row["real bits"],
            "inl bits": (bits := needed(inl, row["accuracy"] - 100 * WITHIN)),
            "share": bits / row["real bits"],
            "share of fixed-length": bits / row["fixed-length bits"],
        }
        for row in vfl
    ]  # fmt: skip
    show("Bits that INL takes to be within 0.3 points of VFL", equal)
    if options.out:
        Path(options.out).mkdir(parents=True, exist_ok=True)
        draw(rows, Path(options.out) / "inl.svg")
    best = max(vfl, key=lambda r: float(r["accuracy"]))
    top = needed(vfl, best["accuracy"] - 100 * WITHIN)
    share = needed(inl, best["accuracy"] - 100 * WITHIN) / top
    bars = [Bar("share of VFL's bits at VFL's best accuracy", min(share, 99.0), RATIO, False)]
    print(f"VFL takes {1 / share:.2f} times INL's bits there; the authors' claim is about 3")
    return finish("inl", [*rows, *equal], bars)


if __name__ == "__main__":
    sys.exit(main())
