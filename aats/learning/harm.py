"""Which contribution harmed a model: leave-one-out on two independent samples. NumPy only.

The harm of a contribution is the accuracy of the model without it less the accuracy with it. One
sample alone would often blame a good one by chance; so it counts only what two samples that
share no row agree on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from aats.learning.backend import LogProbabilities
from aats.learning.evaluate import check_labels
from aats.roles.data import Batch

if TYPE_CHECKING:
    from aats.learning.lora import LoraModel


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


def harm(every: Sequence[float], without: Sequence[float]) -> float:
    """Return the harm of a contribution: the smaller of what two disjoint samples say.

    Args:
        every: Accuracy on each sample of the model with all contributions.
        without: Of the model without the one.
    """
    return min((a - b for a, b in zip(without, every, strict=True)), default=0.0)


def remove_harmful(
    model: LoraModel, predict: Callable[[], Mapping[str, LogProbabilities]],
    sets: Mapping[str, Batch], limit: float,
) -> dict[str, float]:  # fmt: skip
    """Take the most harmful contribution out of a chain, again and again while one is.

    Args:
        model: Changed in place.
        predict: Returns its prediction for the rows of `sets`.
        sets: Rows and labels by skill.
        limit: Harm that is borne.

    Returns:
        By contribution taken out, its harm at that time.
    """
    gone: dict[str, float] = {}
    while model.contributions:
        every, found = accuracy_of_halves(predict(), sets), {}
        for contribution in model.contributions:
            with model.without(contribution):
                found[contribution] = harm(every, accuracy_of_halves(predict(), sets))
        worst = max(model.contributions, key=found.__getitem__)
        if found[worst] <= limit:
            break
        gone[str(worst)] = found[worst]
        model.remove(worst)
    return gone
