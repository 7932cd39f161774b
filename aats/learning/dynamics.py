"""What visits, verdicts and probes do by formula: one law for one packet and for whole batches.

Knowledge `known[..., C]` is the mean probability a model gives the true class, by class. Every
function works over any leading dimensions and rounds alike whatever they are: a batch is bit for
bit the rows of it. A padded C is used with `classes`, the number of classes in use, which stand
first; the padding must be 0 in knowledge, rows and weights, and stays 0.

A field of `Dynamics` is a float or an array [...], whose dimensions stand for the first ones of
the arguments (as `stack` makes them): [B] serves known[B, C] and known[B, N, C] alike.

The law was found on a digits MLP; `aats.learning.calibrate` fits its constants to other work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Value = float | Floats
DOUBT = 1e-3
"""Probability below which none counts, so that no loss is infinite."""


@dataclass(frozen=True, slots=True, eq=False)
class Dynamics:
    """The constants of learning; the defaults are those published for a digits MLP."""

    tau: Value = 50.1
    """Clean rows of a class that close 63 % of the gap for a model that knows nothing."""
    maturity: Value = 1.55
    """How much faster a model gains that knows more already: times 1 + maturity * mean."""
    forget: Value = 181.0
    """Rows of other classes after which 63 % of what can be forgotten is."""
    retain: Value = 665.0
    """Own rows of a class that keep 63 % of it from being forgotten."""
    hold: Value = 2.32
    """How much less a model forgets that knows more: times exp(-hold * mean)."""
    harm: Value = 0.196
    """Share lost, as an exponent, for each 100 wrongly labelled rows."""
    ceiling: Value = 1.0
    """Knowledge, 0-1, that no number of clean rows goes beyond."""
    start: Value = 0.1
    """Knowledge of chance, of a fresh model: one over the number of classes."""
    novelty: Value = 0.0
    """How much less a visit brings for each earlier one to the same node, as an exponent."""
    link_a: Value = 1.0
    """Accuracy from knowledge: factor on its log odds."""
    link_b: Value = 0.0
    """Accuracy from knowledge: added to its log odds."""
    trial: Value = 2.5
    """What a row of a probe's minibatch counts, in rows of a visit: the trial repeats it."""
    probe_gain: Value = 1.0
    """Fall of the trusted loss for each nat that knowledge rises in a trial."""
    probe_gain_noise: Value = 0.0
    """Standard deviation of a probe's gain, as a share of the scale of its gain, plus its tenth."""
    alignment: Value = 1.0
    """Factor on the expected alignment."""
    alignment_noise: Value = 0.0
    """Standard deviation of a probe's alignment."""
    loss_noise: Value = 0.0
    """Standard deviation of a probe's loss, as a share of it."""
    norm: Value = 1.0
    """Gradient norm where every row of the minibatch is wholly wrong."""
    norm_noise: Value = 0.0
    """Standard deviation of a probe's gradient norm, as a share of it."""
    visit_noise: Value = 0.0
    """Standard deviation of knowledge after a visit, where it is in the middle."""


class Scores(NamedTuple):
    """A probe's scores, each [...]: see `aats.messages.ProbeScores`."""

    gain: Floats
    alignment: Floats
    loss: Floats
    gradient_norm: Floats


def stack(rows: Sequence[Dynamics]) -> Dynamics:
    """Return constants whose fields are arrays [B, ...] of those of B rows.

    Raises:
        ValueError: If there are none, or of unequal shapes.
    """
    if not rows:
        raise ValueError("no dynamics to stack")
    return Dynamics(
        **{f.name: np.stack([np.asarray(getattr(row, f.name), np.float64) for row in rows])
           for f in fields(Dynamics)}
    )  # fmt: skip


def moved(
    known: Floats,
    clean: npt.NDArray[np.generic],
    wrong: npt.ArrayLike,
    visits: npt.ArrayLike,
    dynamics: Dynamics,
    scale: Value = 1.0,
    classes: npt.ArrayLike | None = None,
) -> Floats:
    """Return knowledge [..., C] after a visit.

    With s clean rows of a class, S rows in all, m the mean knowledge, v earlier visits:
    e = exp(-s (1 + maturity m) exp(-novelty v) / tau),
    f = e exp(-hold m) (1 - exp(-(S - s) / forget)) exp(-s / retain),
    k' = (top - (top - k) e) (1 - f) exp(-harm wrong / 100), top = max(ceiling, k).

    Args:
        known: [..., C].
        clean: [..., C], rows of each class that are labelled right.
        wrong: [...], rows that are not.
        visits: [...], earlier ones to this node.
        dynamics: The constants.
        scale: Factor on the rows: epochs of the visit to those of the fit.
        classes: [...], classes in use; all of C if None.
    """
    law = _Aligned(dynamics, max(known.ndim, clean.ndim) - 1)
    scale = law.lead(scale)
    bad = np.asarray(wrong, np.float64) * scale
    s = clean * _column(scale)
    mean = _total(known) / (known.shape[-1] if classes is None else np.asarray(classes))
    pace = (1 + law.maturity * mean) * np.exp(-law.novelty * np.asarray(visits)) / law.tau
    e = np.exp(-s * _column(pace))
    f = _total(s) + bad
    f = np.exp((s - _column(f)) / _column(law.forget))
    np.subtract(1.0, f, out=f)
    f *= np.exp(-s / _column(law.retain))
    f = f * (e * _column(np.exp(-law.hold * mean)))
    top = np.maximum(known, _column(law.ceiling))
    out: Floats = top - (top - known) * e
    out = out * (1 - f)
    out = out * _column(np.exp(-law.harm * bad / 100))
    np.maximum(out, 0.0, out=out)
    return np.minimum(out, 1.0, out=out)


def shaken(known: Floats, draws: Floats, dynamics: Dynamics) -> Floats:
    """Return knowledge [..., C] with the scatter of a visit, from standard normal draws [..., C].

    What is known of nothing or wholly does not scatter.
    """
    noise = _column(_Aligned(dynamics, known.ndim - 1).visit_noise)
    out: Floats = known + noise * 4 * known * (1 - known) * draws
    return np.minimum(np.maximum(out, 0.0), 1.0)


def accuracy(known: Floats, weights: Floats, dynamics: Dynamics) -> Floats:
    """Return the accuracy [...] a verifier would measure.

    Of each class: log odds = link_a * log odds of knowledge + link_b.

    Args:
        known: [..., C].
        weights: [..., C], share of each class in the verifier's rows; they need not sum to 1.
        dynamics: The constants.
    """
    law = _Aligned(dynamics, max(known.ndim, weights.ndim) - 1)
    a = _column(law.link_a)
    right = np.exp(_column(law.link_b)) * known**a
    share = right / (right + (1 - known) ** a)
    out: Floats = _total(share * weights) / _total(weights)
    return out


def probed(
    known: Floats,
    clean: npt.NDArray[np.generic],
    wrong: npt.NDArray[np.generic],
    weights: Floats,
    dynamics: Dynamics,
    rows: Value = 32.0,
    classes: npt.ArrayLike | None = None,
) -> Scores:
    """Return the scores, each [...], that a probe of a node would find on the average.

    A node without rows scores 0 throughout.

    Args:
        known: [..., C].
        clean: [..., C], the node's rows by class that are labelled right.
        wrong: [..., C], those that are not, by the class they are labelled.
        weights: [..., C], share of each class among the trusted rows.
        dynamics: The constants.
        rows: Of the minibatch.
        classes: [...], classes in use; all of C if None.
    """
    law = _Aligned(dynamics, max(known.ndim, clean.ndim) - 1)
    held = np.maximum(_total(clean) + _total(wrong), 1e-9)
    right, false = clean / _column(held), wrong / _column(held)
    bad = _total(false)
    after = moved(known, right * rows, bad * rows, 0.0, dynamics, scale=law.trial, classes=classes)
    trusted = weights / _column(_total(weights))
    gap = 1 - known
    gain = law.probe_gain * _total(trusted * (np.log(DOUBT + after) - np.log(DOUBT + known)))
    pull, want = (right - false) * gap, trusted * gap
    length = np.sqrt(_total(((right + false) * gap) ** 2) * _total(want**2))
    alignment = law.alignment * _total(pull * want) / np.maximum(length, 1e-12)
    drawn = right + false
    loss = -_total(right * np.log(DOUBT + known) + false * np.log(DOUBT + gap / known.shape[-1]))
    norm = law.norm * _total(drawn * gap)
    return Scores(gain, np.clip(alignment, -1.0, 1.0), loss, norm)


def scattered(scores: Scores, draws: Floats, dynamics: Dynamics) -> Scores:
    """Return scores as single probes find them, from standard normal draws [..., 4]."""
    law = _Aligned(dynamics, scores.gain.ndim)
    gain, alignment, loss, norm = np.moveaxis(draws, -1, 0)
    return Scores(
        scores.gain + law.probe_gain_noise * (np.abs(scores.gain) + 0.1) * gain,
        np.clip(scores.alignment + law.alignment_noise * alignment, -1.0, 1.0),
        scores.loss * np.maximum(1 + law.loss_noise * loss, 0.0),
        scores.gradient_norm * np.maximum(1 + law.norm_noise * norm, 0.0),
    )


class _Aligned:
    """Reads constants with their dimensions put first, to go with arrays [...] of `ndim`."""

    def __init__(self, dynamics: Dynamics, ndim: int) -> None:
        self._dynamics, self._ndim = dynamics, ndim

    def __getattr__(self, name: str) -> Value:
        return self.lead(getattr(self._dynamics, name))

    def lead(self, value: Value) -> Value:
        """Return a scalar as it is, an array with dimensions of 1 put behind."""
        if isinstance(value, np.ndarray) and value.ndim:
            return value.reshape(value.shape + (1,) * (self._ndim - value.ndim))
        return value


def _column(value: Value) -> Value:
    """Return [...] as [..., 1]."""
    return value[..., None] if isinstance(value, np.ndarray) else value


def _total(values: Floats) -> Floats:
    """Return the sum over the last dimension, in order, so that padding rounds nothing else."""
    out: Floats = np.add.accumulate(values, axis=-1)[..., -1]
    return out
