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
Counts = npt.NDArray[np.float64] | npt.NDArray[np.int64]
DOUBT = 1e-3
"""Probability below which none counts, so that no loss is infinite."""
SUSPICIONS: Floats = np.arange(10) / 10
"""Shares of wrong labels that `suspected` weighs."""


@dataclass(frozen=True, slots=True, eq=False)
class Dynamics:
    """The constants of learning; the defaults are those published for a digits MLP."""

    tau: Value = 50.1
    """Clean rows of a class that close 63 % of the gap for a model that knows nothing."""
    maturity: Value = 1.55
    """How much faster a model gains that knows more already: times 1 + maturity * mean; slower
    if negative, at least -1."""
    forget: Value = 181.0
    """Rows of other classes after which 63 % of what can be forgotten is."""
    retain: Value = 665.0
    """Own rows of a class that keep 63 % of it from being forgotten."""
    hold: Value = 2.32
    """How much less a model forgets, and is swayed, that knows more: times exp(-hold * mean)."""
    harm: Value = 0.196
    """Share lost, as an exponent, for each 100 wrongly labelled rows."""
    sway: Value = 0.0
    """How strongly a class's share of the labels moves its log odds: times log(share * classes)."""
    blend: Value = 1.0
    """Rows of each class that a model seems to have seen besides, when shares are taken."""
    settle: Value = 30.0
    """Rows after which 63 % of what shares can move has moved."""
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
    visit_noise: Value = 0.0
    """Standard deviation of a class's knowledge after a visit, where that is in the middle."""
    trial: Value = 2.5
    """What a row of a probe's minibatch counts, in rows of a visit: the trial repeats it."""
    probe_gain: Value = 1.0
    """Fall of the trusted loss for each nat by which knowledge rises in a trial."""
    probe_toll: Value = 0.0
    """Nats that a trial costs whatever its rows."""
    alignment: Value = 0.0
    """Alignment of a minibatch that is neither for nor against."""
    pull: Value = 1.0
    """Share of the alignment that comes of rows of the classes that are wanted."""
    lean: Value = 0.0
    """Share of it that comes of a case mix as the verifier's."""
    surprise: Value = 3.0
    """Loss in nats of a row that is labelled wrong."""
    norm: Value = 1.0
    """Gradient norm of rows of which nothing is known."""
    norm_wrong: Value = 1.0
    """Gradient norm of wrongly labelled rows of which all is known."""
    probe_gain_noise: Value = 0.0
    """Standard deviation of a probe's gain in nats, of 32 rows; so are the next three."""
    alignment_noise: Value = 0.0
    """Of its alignment."""
    loss_noise: Value = 0.0
    """Of its loss, in nats, where all labels are right."""
    surprise_noise: Value = 0.0
    """Of its loss besides, in nats, where all are wrong; variances add up by their share."""
    norm_noise: Value = 0.0
    """Of its gradient norm."""


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
    clean: Counts,
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
    k' = (top - (top - k) e) (1 - f) exp(-harm wrong / 100), top = max(ceiling, k),
    and then, because classes compete, with share = (s + wrong / C + blend) / (S + blend C),
    log odds of k'' = log odds of k' + sway exp(-hold m) (1 - exp(-S / settle)) log(share C).

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
    count = law.lead(float(known.shape[-1]) if classes is None else np.asarray(classes, np.float64))
    scale = law.lead(scale)
    bad = np.asarray(wrong, np.float64) * scale
    own = np.asarray(clean, np.float64) * _column(scale)
    rows = _total(own) + bad
    mean = _total(known) / count
    loose = np.exp(-law.hold * mean)
    pace = (1 + law.maturity * mean) * np.exp(-law.novelty * np.asarray(visits)) / law.tau

    e = np.exp(-own * _column(pace))
    f = np.exp((own - _column(rows)) / _column(law.forget))
    np.subtract(1.0, f, out=f)
    f = f * e
    f *= np.exp(-own / _column(law.retain))
    f *= _column(loose)
    top = np.maximum(known, _column(law.ceiling))
    out = top - (top - known) * e
    np.subtract(1.0, f, out=f)
    out *= f
    out *= _column(np.exp(-law.harm * bad / 100))

    blend = law.blend
    share = (own + _column(bad / count + blend)) * _column(count)
    share /= _column(rows + blend * count)
    np.log(share, out=share)
    share *= _column(law.sway * loose * (1 - np.exp(-rows / law.settle)))
    odds = out * np.exp(share)
    out = odds / (odds + (1 - out))
    np.maximum(out, 0.0, out=out)
    return np.minimum(out, 1.0, out=out)


def shaken(known: Floats, draws: Floats, dynamics: Dynamics) -> Floats:
    """Return knowledge [..., C] with the scatter of a visit, from standard normal draws [..., C].

    What is not known at all, or wholly, does not scatter; nothing scatters above the ceiling,
    or luck would add up to knowledge that nobody has to give.
    """
    law = _Aligned(dynamics, max(known.ndim, draws.ndim) - 1)
    out: Floats = known + 4 * _column(law.visit_noise) * known * (1 - known) * draws
    top = np.maximum(known, _column(law.ceiling))
    return np.minimum(np.maximum(out, 0.0), top)


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
    clean: Counts,
    wrong: Counts,
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
    clean, wrong = np.asarray(clean, np.float64), np.asarray(wrong, np.float64)
    held = np.maximum(_total(clean + wrong), 1e-9)
    right, labelled = clean / _column(held), (clean + wrong) / _column(held)
    bad = _total(wrong) / held
    trusted = weights / _column(_total(weights))
    some = _total(labelled) > 0
    gap = 1 - known
    mean = _total(trusted * known)
    sure = np.log(DOUBT + known)

    after = moved(known, rows * right, rows * bad, 0.0, dynamics, scale=law.trial, classes=classes)
    rise = _total(trusted * (np.log(DOUBT + after) - sure))
    need = right * gap
    pull = _cosine(need - _column(bad) * trusted * known, trusted * gap)
    # What the model says of the trusted rows: right ones, and the rest as it knows the classes.
    said = known + DOUBT * (weights > 0)
    said = trusted * known + _column(1 - mean) * said / _column(_total(said))
    lean = _cosine(labelled - said, trusted - said)
    return Scores(
        np.where(some, law.probe_gain * rise - law.probe_toll, 0.0),
        np.where(some, np.clip(law.alignment + law.pull * pull + law.lean * lean, -1.0, 1.0), 0.0),
        law.surprise * bad - _total(right * sure),
        law.norm * _total(need) + law.norm_wrong * bad * mean,
    )


def scattered(
    scores: Scores, draws: Floats, dynamics: Dynamics, wrong: npt.ArrayLike = 0.0
) -> Scores:
    """Return scores as single probes find them.

    Args:
        scores: Those expected, each [...].
        draws: [..., 4], standard normal.
        dynamics: The constants.
        wrong: [...], share of the node's labels that are wrong.
    """
    law = _Aligned(dynamics, scores.gain.ndim)
    loss_noise = np.sqrt(law.loss_noise**2 + law.surprise_noise**2 * np.asarray(wrong))
    return Scores(
        scores.gain + law.probe_gain_noise * draws[..., 0],
        np.clip(scores.alignment + law.alignment_noise * draws[..., 1], -1.0, 1.0),
        np.maximum(scores.loss + loss_noise * draws[..., 2], 0.0),
        np.maximum(scores.gradient_norm + law.norm_noise * draws[..., 3], 0.0),
    )


def suspected(
    known: Floats,
    labelled: Counts,
    scores: Scores,
    weights: Floats,
    dynamics: Dynamics,
    prior: float = 0.3,
) -> Floats:
    """Return the share of wrong labels [...] that a probe speaks for: a posterior mean.

    Compares the scores with those expected for shares of 0 to 0.9, each class alike. Constants
    without noise do not say how far to trust a probe; theirs is taken to be 0.1.

    Args:
        known: [..., C].
        labelled: [..., C], the node's rows by the class they are labelled.
        scores: Of the probe, each [...].
        weights: [..., C], share of each class among the trusted rows.
        dynamics: The constants.
        prior: Probability that a node has wrong labels at all, 0-1.
    """
    rows = np.asarray(labelled, np.float64)[..., None, :]
    share = SUSPICIONS[:, None]
    expected = probed(
        known[..., None, :], rows * (1 - share), rows * share, weights[..., None, :], dynamics
    )
    law = _Aligned(dynamics, expected.gain.ndim)
    loss_noise = np.sqrt(law.loss_noise**2 + law.surprise_noise**2 * SUSPICIONS)
    noises = law.probe_gain_noise, law.alignment_noise, loss_noise, law.norm_noise
    doubt = np.zeros(())
    for found, mean, noise in zip(scores, expected, noises, strict=True):
        sd = np.where(np.asarray(noise) > 0, noise, 0.1)
        doubt = doubt + ((found[..., None] - mean) / sd) ** 2 / 2 + np.log(sd)
    odds = np.exp(doubt.min(-1, keepdims=True) - doubt)
    odds *= np.where(SUSPICIONS > 0, prior / (len(SUSPICIONS) - 1), 1 - prior)
    out: Floats = _total(odds * SUSPICIONS) / _total(odds)
    return out


def _cosine(a: Floats, b: Floats) -> Floats:
    out: Floats = _total(a * b) / np.maximum(np.sqrt(_total(a * a) * _total(b * b)), 1e-12)
    return out


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
