"""Calibration: from pilot hops to the constants of learning, judged on deals not fitted on.

The law of visits is fitted by bounded least squares from several starts, to the knowledge of
each class and to its mean alike; the law of probes, which is linear but for one constant, by
bounded linear least squares over a grid of that one. What is left over is the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares, lsq_linear
from scipy.stats import rankdata

from aats.learning.dynamics import (
    Dynamics,
    Floats,
    Scores,
    accuracy,
    moved,
    probed,
    suspected,
)
from aats.learning.fit import BOUNDS, Fit, Prediction, Quality
from aats.learning.method import method_of
from aats.learning.partition import Part
from aats.learning.pilot import WRONG_SHARE, Hops, SkillPlan, Task, pilot
from aats.packet import Architecture, Plugin

LAW = (
    "tau", "maturity", "forget", "retain", "hold", "harm", "sway", "blend", "settle", "ceiling",
    "novelty",
)  # fmt: skip
"""What a visit does: fitted together."""
FIRST = Dynamics(sway=0.6, blend=0.5)
"""Where the first start begins; the others scatter around it."""
STARTS = 4
TRIALS = 2.0 ** np.arange(-1.0, 5.5, 0.5)
"""Values of `Dynamics.trial` that are tried."""
HELD_OUT = 0.35
"""Share of the hops that judge the fit instead of making it."""


def digits_task() -> Task:
    """Return handwritten digits and an MLP 64-32-10: 14 nodes, two epochs at a visit."""
    return Task(
        "digits",
        Architecture("mlp", {"features": 64, "hidden": [32], "classes": 10}),
        Plugin("sequential", {"epochs": 2, "batch_size": 8, "lr": 0.1, "decay": 1.0}),
        {"digits": _plan("digits", 1.0)},
    )


def departments_task() -> Task:
    """Return the hospitals' model and data: breast cancer and diabetes, one shared trunk.

    More rows are set aside than in the example, because knowledge is measured on them.
    """
    return Task(
        "departments",
        Architecture("departments", {
            "features": {"oncology": 30, "diabetes": 10},
            "classes": {"oncology": 2, "diabetes": 2}, "width": 16,
        }),
        Plugin("sequential", {
            "epochs": 3, "batch_size": 8, "lr": 0.1, "decay": 0.97, "average_last": 4,
        }),
        {
            "oncology": _plan("breast-cancer", 5.0, held_out=0.4, reference=60, test=0.3),
            "diabetes": _plan("diabetes", 5.0, held_out=0.4, reference=80, test=0.3),
        },
    )  # fmt: skip


TASKS: dict[str, Callable[[], Task]] = {"digits": digits_task, "departments": departments_task}
"""What the shipped fits were made of."""


def _plan(source: str, alpha: float, **rest: Any) -> SkillPlan:
    parts = tuple(Part(f"n{i}") for i in range(14))
    return SkillPlan(Plugin(source), Plugin("dirichlet", {"alpha": alpha}), parts, **rest)


def calibrate(
    task: Task,
    *,
    seed: int,
    hops: int = 3000,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Fit]:
    """Make pilot hops, fit each skill's constants to most of them, judge them on the rest.

    Args:
        task: What to train on what.
        seed: Of everything.
        hops: Visits to make, about.
        progress: Told the visits made and wanted.
    """
    made, rest = round(hops * (1 - HELD_OUT)), round(hops * HELD_OUT)

    def later(done: int, _: int) -> None:
        if progress is not None:
            progress(made + done, hops)

    fitted = pilot(
        task, seed=2 * seed, hops=made, progress=progress and (lambda n, _: progress(n, hops))
    )
    judged = pilot(task, seed=2 * seed + 1, hops=rest, progress=later)
    return {
        skill: fit_skill(task, skill, fitted[skill], judged[skill], seed) for skill in task.skills
    }


def fit_skill(task: Task, skill: str, fitted: Hops, judged: Hops, seed: int) -> Fit:
    """Return the fit of one skill: made on some hops, judged on others."""
    dynamics = fit_dynamics(fitted, seed)
    plan = task.skills[skill]
    method = method_of(task.method)[0]
    return Fit(
        name=task.name if len(task.skills) == 1 else f"{task.name}-{skill}",
        skill=skill,
        dynamics=dynamics,
        epochs=float(getattr(method, "epochs", 1.0)),
        task={
            "architecture": {"name": task.architecture.name, **task.architecture.config},
            "method": {"name": task.method.name, **task.method.params},
            "source": {"name": plan.source.name, **plan.source.params},
            "partition": {"name": plan.partition.name, **plan.partition.params},
            "nodes": len(plan.parts),
        },
        seed=seed,
        hops=len(fitted),
        versions={name: version(name) for name in ("aats-network", "torch", "numpy", "scipy")},
        quality=quality_of(dynamics, judged),
    )


def fit_dynamics(hops: Hops, seed: int) -> Dynamics:
    """Return the constants that explain recorded hops best."""
    start = 1.0 / hops.known.shape[1]
    law = _fit_law(hops, replace(FIRST, start=start), np.random.default_rng(seed))
    off = hops.after - predicted(hops, law)
    middle = 4 * hops.after * (1 - hops.after)
    law = replace(law, visit_noise=_kept("visit_noise", np.sqrt((off**2).mean()
                                                                / (middle**2).mean())))  # fmt: skip
    return _fit_probe(hops, _fit_link(hops, law))


def predicted(hops: Hops, dynamics: Dynamics, wrong: Floats | None = None) -> Floats:
    """Return knowledge [H, C] after each hop.

    Args:
        hops: What was recorded.
        dynamics: The constants.
        wrong: [H], the share of wrong labels that is believed; None for what is true.
    """
    if wrong is None:
        return moved(hops.known, hops.clean, hops.wrong.sum(1), hops.visits, dynamics)
    rows = hops.clean + hops.wrong
    return moved(
        hops.known, rows * (1 - wrong)[:, None], rows.sum(1) * wrong, hops.visits, dynamics
    )


def gains(hops: Hops, after: Floats) -> Floats:
    """Return by how much mean knowledge rises [H], classes weighed as in the test rows."""
    out: Floats = ((after - hops.known) * hops.weights).sum(1)
    return out


def suspicion(hops: Hops, dynamics: Dynamics) -> Floats:
    """Return the share of wrong labels [H] that the recorded probes speak for."""
    scores = Scores(*hops.scores.T)
    labelled = hops.clean + hops.wrong
    return suspected(hops.known, labelled, scores, hops.weights, dynamics, WRONG_SHARE)


def quality_of(dynamics: Dynamics, hops: Hops) -> Quality:
    """Return how well constants predict recorded hops."""
    found = accuracy(hops.after, hops.weights, dynamics)
    return Quality(
        known=_prediction(dynamics, hops, None),
        probed=_prediction(dynamics, hops, suspicion(hops, dynamics)),
        accuracy_mae=_rounded(np.abs(found - hops.accuracy[:, 1]).mean()),
        gain_sd=_rounded(gains(hops, hops.after).std()),
        hops=len(hops),
    )


def open_loop(dynamics: Dynamics, hops: Hops, wrong: Floats | None = None) -> tuple[Floats, Floats]:
    """Return mean knowledge over all walks, predicted from their first stop, and as it was."""
    expected, real = [], []
    for walk in np.unique(hops.walk):
        rows = np.flatnonzero((hops.walk == walk) & hops.taken)
        known = hops.known[rows[:1]]
        for i in rows.tolist():
            one = replace(hops.where(np.array([i])), known=known)
            known = predicted(one, dynamics, None if wrong is None else wrong[[i]])
            expected.append(float((known * hops.weights[i]).sum()))
            real.append(float((hops.after[i] * hops.weights[i]).sum()))
    return np.array(expected), np.array(real)


def _prediction(dynamics: Dynamics, hops: Hops, wrong: Floats | None) -> Prediction:
    expected, real = gains(hops, predicted(hops, dynamics, wrong)), gains(hops, hops.after)
    rho, captured = _within(hops, expected, real)
    ahead, was = open_loop(dynamics, hops, wrong)
    return Prediction(
        r2=_rounded(_r2(expected, real)),
        rho=_rounded(rho),
        captured=_rounded(captured),
        open_loop_r2=_rounded(_r2(ahead, was)),
        open_loop_mae=_rounded(np.abs(ahead - was).mean()),
    )


def _within(hops: Hops, expected: Floats, real: Floats) -> tuple[float, float]:
    """Return rank correlation within states, and the captured share of what was to be had."""
    state = hops.walk * (hops.stop.max() + 1) + hops.stop
    correlations, chosen, best = [], 0.0, 0.0
    for value in np.unique(state):
        of_state = state == value
        e, r = expected[of_state], real[of_state]
        if len(r) < 3:
            continue
        chosen += float(r[e.argmax()] - r.mean())
        best += float(r.max() - r.mean())
        if np.ptp(e) and np.ptp(r):
            correlations.append(float(np.corrcoef(rankdata(e), rankdata(r))[0, 1]))
    return (
        float(np.mean(correlations)) if correlations else np.nan,
        chosen / best if best else np.nan,
    )


def _fit_law(hops: Hops, first: Dynamics, rng: np.random.Generator) -> Dynamics:
    low, high = np.array([BOUNDS[name] for name in LAW]).T
    weight = np.sqrt(hops.weights) / 2

    def law(values: Floats) -> Dynamics:
        return replace(first, **dict(zip(LAW, values.tolist(), strict=True)))

    def misses(values: Floats) -> Floats:
        off = predicted(hops, law(values)) - hops.after
        return np.concatenate([(off * weight).ravel(), (off * hops.weights).sum(1)])

    begin = np.array([getattr(first, name) for name in LAW])
    found = []
    for number in range(STARTS):
        scattered = begin * np.exp((number > 0) * 0.4 * rng.standard_normal(len(LAW)))
        inside = np.clip(scattered, low + 1e-6 * (high - low), high - 1e-6 * (high - low))
        found.append(least_squares(
            misses, inside, bounds=(low, high), x_scale=np.maximum(np.abs(inside), 0.01),
            max_nfev=80,
        ))  # fmt: skip
    best = min(found, key=lambda result: float(result.cost))
    return law(np.array([_kept(name, x) for name, x in zip(LAW, best.x, strict=True)]))


def _fit_link(hops: Hops, law: Dynamics) -> Dynamics:
    def misses(values: Floats) -> Floats:
        linked = replace(law, link_a=float(values[0]), link_b=float(values[1]))
        return accuracy(hops.after, hops.weights, linked) - hops.accuracy[:, 1]

    low, high = np.array([BOUNDS["link_a"], BOUNDS["link_b"]]).T
    a, b = least_squares(misses, [1.5, 0.5], bounds=(low, high)).x
    return replace(law, link_a=_kept("link_a", a), link_b=_kept("link_b", b))


def _fit_probe(hops: Hops, law: Dynamics) -> Dynamics:
    """Fit the constants of a probe; each of its scores is linear in its own."""
    gain, alignment, loss, norm = hops.scores.T

    def part(**constants: float) -> Scores:
        zero = dict.fromkeys(("probe_gain", "pull", "surprise", "norm", "norm_wrong"), 0.0)
        only = replace(law, **{**zero, **constants})
        return probed(hops.known, hops.clean, hops.wrong, hops.weights, only)

    ones = np.ones(len(hops))
    tried = {}
    for trial in TRIALS.tolist():
        columns = [part(probe_gain=1.0, trial=trial).gain, -ones]
        tried[trial] = _linear(gain, columns, "probe_gain", "probe_toll")
    trial = min(tried, key=lambda trial: tried[trial][1])
    base = part().loss
    bad = part(surprise=1.0).loss - base
    surprise, _ = _linear(loss - base, [bad], "surprise")
    off = loss - base - surprise["surprise"] * bad
    spread, _ = _linear(off**2, [ones, bad], "loss_noise", "surprise_noise")
    fits = {
        "probe_gain_noise": tried[trial],
        "alignment_noise": _linear(
            alignment, [ones, part(pull=1.0).alignment, part(lean=1.0).alignment],
            "alignment", "pull", "lean",
        ),
        "norm_noise": _linear(
            norm, [part(norm=1.0).gradient_norm, part(norm_wrong=1.0).gradient_norm],
            "norm", "norm_wrong",
        ),
    }  # fmt: skip
    law = replace(law, trial=round(trial, 5), **surprise)
    law = replace(law, **{name: _kept(name, variance**0.5) for name, variance in spread.items()})
    for noise, (constants, left) in fits.items():
        law = replace(law, **constants, **{noise: _kept(noise, left)})
    return law


def _linear(
    wanted: Floats, columns: list[Floats], *names: str
) -> tuple[Mapping[str, float], float]:
    """Return the constants by name, and the standard deviation of what they leave."""
    low, high = np.array([BOUNDS[name] for name in names]).T
    matrix = np.stack(columns, 1)
    x = lsq_linear(matrix, wanted, bounds=(low, high)).x
    left = float(np.sqrt(((matrix @ x - wanted) ** 2).mean()))
    return {name: _kept(name, value) for name, value in zip(names, x, strict=True)}, left


def _kept(name: str, value: float | np.floating[Any]) -> float:
    """Return a constant with the digits that are kept of it, within its bounds."""
    low, high = BOUNDS[name]
    return min(high, max(low, round(float(value), 5)))


def _rounded(value: float | npt.NDArray[Any] | np.floating[Any]) -> float:
    return round(float(value), 4)


def _r2(expected: Floats, real: Floats) -> float:
    spread = float(((real - real.mean()) ** 2).sum())
    return 1 - float(((expected - real) ** 2).sum()) / spread if spread else float("nan")
