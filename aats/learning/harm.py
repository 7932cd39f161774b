"""Which contribution harmed a model: leave-one-out on two independent samples. NumPy only.

The harm of a contribution is the accuracy of the model without it less the accuracy with it. One
sample alone would often blame a good one by chance; so it counts only what two samples that
share no row agree on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aats.learning.backend import LogProbabilities
from aats.learning.evaluate import check_labels
from aats.roles.data import Batch


def accuracy_of_halves(
    predicted: Mapping[str, LogProbabilities], sets: Mapping[str, Batch]
) -> tuple[float, ...]:
    """Return the accuracy on two disjoint halves of the rows, drawn alike for the same rows.

    Args:
        predicted: A model's prediction by skill.
        sets: Rows and labels of the same skills; the mean over skills counts.

    Returns:
        Two shares, or none where no skill has two rows.

    Raises:
        ModelError: If a label is none of the model's classes.
    """
    found = []
    for skill, log_p in predicted.items():
        labels = sets[skill][1]
        check_labels(log_p, labels)
        if len(labels) > 1:
            right = (log_p.argmax(1) == labels)[np.random.default_rng(0).permutation(len(labels))]
            found.append((right[0::2].mean(), right[1::2].mean()))
    return tuple(np.mean(found, axis=0).tolist()) if found else ()


def harms(
    every: Mapping[str, LogProbabilities],
    without: Mapping[str, LogProbabilities],
    sets: Mapping[str, Batch],
) -> float:
    """Return the harm of a contribution: the smaller of what two disjoint samples say.

    Args:
        every: Prediction of the model with all contributions, by skill.
        without: Prediction of the model without the one.
        sets: Rows and labels.
    """
    pairs = zip(accuracy_of_halves(without, sets), accuracy_of_halves(every, sets), strict=True)
    return min((a - b for a, b in pairs), default=0.0)
