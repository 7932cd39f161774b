"""Metrics of a prediction, with 95 % intervals. NumPy only.

Metric names: `accuracy`, `balanced-accuracy` (mean recall of the classes present), `auc`
(area under the ROC curve; mean over one-against-rest for more than two classes),
`inverse-perplexity` (1 / perplexity: the geometric mean of the labels' probabilities, 1 / classes
for a guess), `loss` (mean cross-entropy in nats; lower is better, so no target is set on it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aats.errors import ModelError
from aats.learning.backend import LogProbabilities
from aats.roles.data import Labels

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A value with its 95 % interval, on n samples."""

    value: float
    low: float
    high: float
    n: int


def wilson(value: float, n: float) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share `value` of `n` (Wilson 1927)."""
    if n <= 0:
        return 0.0, 1.0
    z2 = Z95 * Z95
    middle = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * float(np.sqrt(value * (1 - value) / n + z2 / (4 * n * n)))
    # Rounding must not push the end past the value itself at 0 and 1.
    return max(0.0, min(middle - half, value)), min(1.0, max(middle + half, value))


def accuracy(log_p: LogProbabilities, y: Labels) -> Measured:
    """Return the share of rows whose likeliest class is the label."""
    value = float((log_p.argmax(1) == y).mean())
    return Measured(value, *wilson(value, len(y)), len(y))


def balanced_accuracy(log_p: LogProbabilities, y: Labels) -> Measured:
    """Return the mean recall; interval from the sample size that has the same variance."""
    right = log_p.argmax(1) == y
    counts = np.bincount(y)
    present = counts > 0
    recall = np.bincount(y, weights=right)[present] / counts[present]
    value = float(recall.mean())
    n = float(len(recall) ** 2 / (1.0 / counts[present]).sum())
    return Measured(value, *wilson(value, n), len(y))


def auc(log_p: LogProbabilities, y: Labels) -> Measured:
    """Return the area under the ROC curve; interval by Hanley and McNeil (1982)."""
    classes = [1] if log_p.shape[1] == 2 else list(range(log_p.shape[1]))
    areas, variances = [], []
    for label in classes:
        positive = y == label
        n1, n0 = int(positive.sum()), int((~positive).sum())
        if not n1 or not n0:
            continue
        area = _area(log_p[:, label], positive)
        q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
        areas.append(area)
        variances.append(
            (area * (1 - area) + (n1 - 1) * (q1 - area**2) + (n0 - 1) * (q2 - area**2)) / (n1 * n0)
        )
    if not areas:
        return Measured(0.5, 0.0, 1.0, len(y))
    value = float(np.mean(areas))
    half = Z95 * float(np.sqrt(np.mean(variances)))
    return Measured(value, max(0.0, value - half), min(1.0, value + half), len(y))


def inverse_perplexity(log_p: LogProbabilities, y: Labels) -> Measured:
    """Return exp(-cross-entropy); normal interval of the mean log-probability."""
    of_label = log_p[np.arange(len(y)), y]
    mean = float(of_label.mean())
    half = Z95 * float(of_label.std()) / float(np.sqrt(len(y)))
    low, value, high = np.exp([mean - half, mean, min(0.0, mean + half)]).tolist()
    return Measured(value, low, high, len(y))


def _area(score: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    n1 = int(positive.sum())
    above = mean_rank[inverse][positive].sum() - n1 * (n1 + 1) / 2
    return float(above / (n1 * (len(score) - n1)))


METRICS: dict[str, Callable[[LogProbabilities, Labels], Measured]] = {
    "accuracy": accuracy,
    "balanced-accuracy": balanced_accuracy,
    "auc": auc,
    "inverse-perplexity": inverse_perplexity,
}
"""By the name a target has; all in 0-1, higher is better."""


def measure(metric: str, log_p: LogProbabilities, y: Labels) -> Measured:
    """Return a metric of a prediction on at least one row.

    Raises:
        ModelError: If the metric is unknown or a label is none of the model's classes.
    """
    if metric not in METRICS:
        raise ModelError(f"metric {metric!r} is unknown; known: {', '.join(METRICS)}")
    check_labels(log_p, y)
    return METRICS[metric](log_p, y)


def cross_entropy(log_p: LogProbabilities, y: Labels) -> float:
    """Return the mean cross-entropy in nats; NaN if the prediction has NaN.

    Raises:
        ModelError: If a label is none of the model's classes.
    """
    check_labels(log_p, y)
    return float(-log_p[np.arange(len(y)), y].mean())


def check_labels(log_p: LogProbabilities, y: Labels) -> None:
    """Check that every label is a class of the model.

    Raises:
        ModelError: Naming both numbers.
    """
    if len(y) and y.max() >= log_p.shape[1]:
        raise ModelError(f"labels up to {y.max()}, but the model has {log_p.shape[1]} classes")
