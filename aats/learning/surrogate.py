"""Learning without tensors: what a visit does to a model, by formula, for the simulated world.

The model is its knowledge: for each class of each skill the probability of the true class, kept
as whole millionths, so that versions are content hashes here too and the same on every machine.
The data are rows of one number, the true class, beside the label that the node believes
(source `classes`), so label noise is felt and can be probed for as with real data.

A visit moves knowledge by the law of `aats.learning.dynamics`, with the constants published for a
digits MLP (two epochs, learning rate 0.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aats.errors import ModelError
from aats.learning.backend import LogProbabilities
from aats.learning.dynamics import DOUBT, Dynamics, Floats, moved
from aats.learning.evaluate import cross_entropy
from aats.learning.method import Carry, Plan, Stop, Work, passes
from aats.learning.weights import Tensor, tensor_of
from aats.packet import Architecture
from aats.payload import MODEL, Array, Payload
from aats.roles.data import Batch, Features, Labels

MILLION = 1_000_000
FITTED_EPOCHS = 2.0
TRIAL_PASSES = 5.0
KNOWLEDGE = f"{MODEL}knowledge."


@dataclass(slots=True)
class Knowledge:
    """A surrogate model: by skill, millionths of certainty for each class, int32."""

    known: dict[str, npt.NDArray[np.int32]]

    def of(self, skill: str) -> Floats:
        """Return the probability of the true class, by class.

        Raises:
            ModelError: If the model has no such skill.
        """
        if skill not in self.known:
            raise ModelError(
                f"the surrogate has no skill {skill!r}; it has {', '.join(self.known) or 'none'}"
            )
        return self.known[skill] / MILLION


@dataclass(frozen=True, slots=True)
class SurrogateMethod:
    """A visit by formula: six constants of `aats.learning.dynamics.Dynamics`, for two epochs.

    Raises:
        ValueError: If a constant is not positive.
    """

    epochs: float = 2.0
    batch_size: int = 32
    tau: float = 50.1
    """Clean rows of a class that close 63 % of the gap for a model that knows nothing."""
    maturity: float = 1.55
    """How much faster a model gains that knows more already."""
    forget: float = 181.0
    """Rows of other classes after which 63 % of what can be forgotten is."""
    retain: float = 665.0
    """Own rows of a class that keep 63 % of it from being forgotten."""
    hold: float = 2.32
    """How much less a model forgets that knows more."""
    harm: float = 0.196
    """Share lost, as an exponent, for each 100 wrongly labelled rows."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.tau, self.forget, self.retain) <= 0:
            raise ValueError("epochs, batch_size, tau, forget and retain must be above 0")

    def plan(self, stop: Stop) -> Plan | None:
        """Return `epochs` passes over every wanted skill the node has."""
        return passes(stop, self.epochs, self.batch_size)

    def train(self, model: Knowledge, work: Work) -> Carry | None:
        """Move the knowledge of every planned skill."""
        work.take_all()
        for skill in work.plan.steps:
            data = work.stop.data[skill]
            after = self.moved(
                model.of(skill), data.train_x, data.train_y, self.epochs / FITTED_EPOCHS
            )
            model.known[skill] = np.rint(after * MILLION).astype(np.int32)
        return None

    def moved(self, known: Floats, x: Features, y: Labels, scale: float) -> Floats:
        """Return knowledge [C] after a visit to rows `x` (true class) labelled `y`."""
        right = true_class(x) == y
        clean = np.bincount(y[right], minlength=len(known))[: len(known)]
        constants = Dynamics(
            tau=self.tau, maturity=self.maturity, forget=self.forget, retain=self.retain,
            hold=self.hold, harm=self.harm,
        )  # fmt: skip
        return moved(known, clean, (~right).sum(), 0.0, constants, scale)


@dataclass(frozen=True, slots=True)
class SurrogateTrial:
    """See `aats.learning.backend.Trial`."""

    gain: float
    alignment: float
    loss: float
    gradient_norm: float


class SurrogateBackend:
    """See `aats.learning.backend.Backend`. Config: `classes` ({skill: number})."""

    def initial(self, architecture: Architecture, seed: int) -> Mapping[str, Array]:
        """Return the knowledge of chance; there is nothing to seed."""
        return {
            KNOWLEDGE + skill: np.full(count, round(MILLION / count), np.int32)
            for skill, count in _classes(architecture).items()
        }

    def scope(self, seed: int) -> AbstractContextManager[None]:
        """Return an empty scope: nothing here is random."""
        return nullcontext()

    def load(self, architecture: Architecture, payload: Payload) -> Knowledge:
        """Return the knowledge in a payload.

        Raises:
            ModelError: If it does not fit the architecture or is out of range.
        """
        arrays = payload.arrays(MODEL)
        expected = {KNOWLEDGE + s: n for s, n in _classes(architecture).items()}
        if set(arrays) != set(expected):
            raise ModelError(f"architecture 'surrogate': tensors {sorted(arrays)}, expected are "
                             f"{sorted(expected)}")  # fmt: skip
        known = {}
        for name, count in expected.items():
            array = arrays[name]
            if array.shape != (count,) or array.dtype != np.int32:
                raise ModelError(
                    f"architecture 'surrogate': tensor {name!r} is {array.dtype}"
                    f"{list(array.shape)}, expected is int32[{count}]"
                )
            known[name[len(KNOWLEDGE) :]] = values = array.astype(np.int32)
            if values.min() < 0 or values.max() > MILLION:
                raise ModelError(f"tensor {name!r} is out of range, allowed is 0-{MILLION}")
        return Knowledge(known)

    def subject(self, model: Knowledge) -> Knowledge:
        """Return the knowledge itself."""
        return model

    def log_probabilities(self, model: Knowledge, x: Features, skill: str) -> LogProbabilities:
        """Return a prediction that is right on the share of each class's rows that is known."""
        known, truth = model.of(skill), true_class(x)
        classes = len(known)
        inside = np.clip(truth, 0, classes - 1)
        rank = np.zeros(len(x))
        for label in np.unique(inside):
            of_class = inside == label
            rank[of_class] = (np.arange(of_class.sum()) + 0.5) / of_class.sum()
        sure = known[inside]
        right = rank <= sure
        at = np.arange(len(x))
        p = np.zeros((len(x), classes))
        p[at, (inside + 1) % classes] = np.where(right, (1 - sure) / 2, 1 - sure / 2)
        p[at, inside] = np.where(right, (1 + sure) / 2, sure / 2)
        # Rounded, because the last digit of a logarithm differs between machines.
        log_p: LogProbabilities = np.log((1 - DOUBT) * p + DOUBT / classes)
        return log_p.round(9)

    def tensors(self, model: Knowledge, payload: Payload) -> dict[str, Tensor]:
        """Return the knowledge as tensors."""
        return {KNOWLEDGE + skill: tensor_of(known) for skill, known in model.known.items()}

    def trial(
        self, model: Knowledge, batch: Mapping[str, Batch], reference: Mapping[str, Batch],
        lr: float,
    ) -> SurrogateTrial:  # fmt: skip
        """Return what a short visit to the minibatch does to knowledge of the reference set."""
        losses, gains, shares, gaps = [], [], [], []
        for skill, (x, y) in batch.items():
            known = model.of(skill)
            losses.append(cross_entropy(self.log_probabilities(model, x, skill), y))
            shares.append(2 * float((true_class(x) == y).mean()) - 1)
            gaps.append(float((1 - known[y]).mean()))
            if skill in reference:
                after = SurrogateMethod().moved(known, x, y, TRIAL_PASSES / FITTED_EPOCHS)
                trusted = reference[skill][1]
                doubt = np.log(DOUBT + known[trusted]) - np.log(DOUBT + after[trusted])
                gains.append(-float(doubt.mean()))
        gain = sum(gains) / len(gains) if gains else 0.0
        count = len(losses)
        return SurrogateTrial(gain, sum(shares) / count, sum(losses) / count, sum(gaps) / count)

    def flops(self, model: Knowledge) -> float:
        """Return two operations for each class."""
        return 2.0 * sum(len(k) for k in model.known.values())


def true_class(x: Features) -> Labels:
    """Return the true class of each row.

    Raises:
        ModelError: If the rows are not of the surrogate's data.
    """
    if x.ndim != 2 or x.shape[1] != 1:
        raise ModelError(
            f"rows of shape {list(x.shape[1:])} are no data for a surrogate, which reads the true "
            "class of a row; use the data source 'classes'"
        )
    return np.rint(x[:, 0]).astype(np.int64)


def _classes(architecture: Architecture) -> dict[str, int]:
    table = architecture.config.get("classes")
    if (
        isinstance(table, Mapping)
        and table
        and set(architecture.config) == {"classes"}
        and all(isinstance(n, int) and 2 <= n <= MILLION for n in table.values())
    ):
        return dict(table)
    raise ModelError(
        f"architecture 'surrogate': config is {architecture.config!r}, allowed is "
        f"{{'classes': {{skill: 2-{MILLION}}}}}"
    )
