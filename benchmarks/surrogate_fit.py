"""How well the shipped fits predict real learning: on deals, models and walks of other seeds.

Real packets walk over fresh networks; before each visit the law of learning says what it will
bring. Judged are the gain of the next stop (share of variance explained, rank correlation over
the nodes tried from one state, share of the best gain captured) and whole walks predicted from
their start alone. `known`: the number of wrong labels is known; `probed`: only one probe of 32
rows tells of it. The published constants (`classic`) stand beside, as they are.

    python benchmarks/surrogate_fit.py --seed 7 --hops 1500 --out DIR
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import Bar, finish, show

from aats.learning.calibrate import TASKS, gains, open_loop, predicted, quality_of
from aats.learning.dynamics import Dynamics
from aats.learning.fit import load_fit
from aats.learning.pilot import WALKS, Hops, pilot

FITS = {
    "digits": {"digits": "digits"},
    "departments": {"oncology": "departments-oncology", "diabetes": "departments-diabetes"},
}
"""Task -> skill -> fit."""
LIMITS = {"r2": 0.7, "rho": 0.6, "captured": 0.85, "open_loop_r2": 0.85}
FRESH = 1_000_000
"""Added to the seed, so that no deal of a calibration comes again."""


def main() -> int:
    """Walk, predict, print and draw; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=(*FITS, "all"), default="all")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--hops", type=int, default=1500, help="real visits, a task")
    parser.add_argument("--out", type=Path, help="folder for the plots")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    for task in FITS if args.task == "all" else [args.task]:
        walked = pilot(TASKS[task](), seed=FRESH + args.seed, hops=args.hops)
        for skill, name in FITS[task].items():
            law = load_fit(name).dynamics
            rows += [*judged(name, law, walked[skill]), *judged("classic", Dynamics(),
                                                                walked[skill], skill)]  # fmt: skip
            bars += limits(name, rows)
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                draw(law, walked[skill], name, args.out / f"{name}.png")
    show("Real learning, predicted by the law", rows)
    return finish("surrogate_fit", rows, bars)


def judged(name: str, law: Dynamics, hops: Hops, skill: str = "") -> list[dict[str, Any]]:
    """Return a row with the labels known and one with them probed."""
    quality = quality_of(law, hops)
    rest = {"accuracy_mae": quality.accuracy_mae, "gain_sd": quality.gain_sd, "hops": quality.hops}
    fit = f"{name} on {skill}" if skill else name
    return [
        {"fit": fit, "labels": labels, **asdict(found), **rest}
        for labels, found in (("known", quality.known), ("probed", quality.probed))
    ]


def limits(name: str, rows: list[dict[str, Any]]) -> list[Bar]:
    """Return the bars of one fit, labels known or probed."""
    return [
        Bar(f"{name} {row['labels']} {key}", row[key], limit)
        for row in rows
        if row["fit"] == name
        for key, limit in LIMITS.items()
    ]


def draw(law: Dynamics, hops: Hops, name: str, path: Path) -> None:
    """Draw gains against their prediction, and a walk of each kind beside its prediction."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5))
    scatter, walks = figure.subplots(1, 2)
    expected, real = gains(hops, predicted(hops, law)), gains(hops, hops.after)
    is_bad = hops.wrong.sum(1) > 0
    for chosen, label in ((~is_bad, "all labels right"), (is_bad, "some wrong")):
        scatter.scatter(expected[chosen], real[chosen], s=6, alpha=0.5, label=label)
    ends = [float(real.min()), float(real.max())]
    scatter.plot(ends, ends, color="0.5", linewidth=1)
    scatter.set(xlabel="predicted gain of mean knowledge", ylabel="real gain", title=name)
    scatter.legend()
    for kind, called in enumerate(WALKS):
        first = np.unique(hops.walk[hops.kind == kind])[:1]
        if first.size:
            ahead, was = open_loop(law, hops.where(hops.walk == first[0]))
            (line,) = walks.plot(was, label=called)
            walks.plot(ahead, color=line.get_color(), linestyle="--")
    walks.set(xlabel="stop", ylabel="mean knowledge", title="real walks and, dashed, predicted")
    walks.legend()
    figure.savefig(path, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    raise SystemExit(main())
