"""Generative replay: rows of classes seen before are drawn from a Gaussian of each.

The statistics of rows (or of what enters the last layer) travel; no row does. A class of which
a node holds too few rows adds nothing. In feature space the statistics are of the model as it
was when they were taken; they age as the layers before the last change.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.measures.gaussian import Gaussians, private
from aats.learning.measures.measure import Measure, generator
from aats.learning.measures.options import FEATURE, INPUT
from aats.learning.method import Plan, Stop
from aats.learning.models import predict
from aats.learning.modules import FORWARD_ROWS, rows
from aats.payload import Array
from aats.roles.data import Features, Labels, SkillData


class Bank:
    """The Gaussians of every skill that a packet carries.

    Args:
        state: What travelled: `<part>.<skill>`.
        skills: The skills here.
        widths: Features of each.
        rank: Directions of a class; 0 for diagonals.

    Raises:
        ModelError: If what travelled does not fit.
    """

    def __init__(
        self, state: Mapping[str, Array], skills: Mapping[str, SkillData],
        widths: Mapping[str, int], rank: int,
    ) -> None:  # fmt: skip
        self._others = {
            name: array for name, array in state.items() if name.partition(".")[2] not in skills
        }
        self.of = {
            skill: Gaussians.read(
                {n.partition(".")[0]: a for n, a in state.items() if n.partition(".")[2] == skill},
                f"Gaussians of skill {skill!r}",
                width=widths[skill], rank=rank, num_classes=data.num_classes,
            )
            for skill, data in skills.items()
        }  # fmt: skip

    def draw(self, skill: str, size: int, rng: np.random.Generator) -> tuple[Features, Labels]:
        """Return rows [size, d] and labels, all classes of the bank alike; none if it is empty."""
        bank = self.of[skill]
        if not len(bank.classes):
            size = 0
        labels = bank.classes[rng.integers(0, max(len(bank.classes), 1), size)]
        return bank.sample(labels, rng), labels

    def arrays(self) -> dict[str, Array]:
        """Return what travels on."""
        return self._others | {
            f"{part}.{skill}": array
            for skill, bank in self.of.items()
            for part, array in bank.arrays().items()
        }


class Replay(Measure):
    """Mixes each minibatch with rows of earlier classes, then adds the node's own statistics."""

    name = "replay"

    def __init__(
        self, share: float, rank: int, space: str, minimum: int, *, epsilon: float = 0.0,
        delta: float = 0.0, clip: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self._share, self._rank, self._space, self._minimum = share, rank, space, minimum
        self._epsilon, self._delta, self._clip = epsilon, delta, clip
        self.needs = frozenset({"batch" if space == INPUT else "loss"})
        self._batch_size = 0
        self._rng = np.random.default_rng(0)
        self._bank = Bank({}, {}, {}, 0)
        self._heads: dict[str, nn.Module] = {}

    def begin(self, model: nn.Module, stop: Stop, plan: Plan, state: Mapping[str, Array]) -> None:
        """Read the statistics that travelled."""
        self._rng = generator(stop, self.name)
        self._batch_size = plan.batch_size
        skills = {skill: stop.data[skill] for skill, steps in plan.steps.items() if steps}
        widths = {}
        for skill, data in skills.items():
            if self._space == INPUT:
                if not np.issubdtype(data.train_x.dtype, np.floating):
                    raise ModelError(
                        f"replay of skill {skill!r}: rows of tokens have no Gaussian; "
                        f"replay_space {FEATURE!r} has"
                    )
                widths[skill] = int(np.prod(data.train_x.shape[1:]))
            else:
                z, self._heads[skill] = features(model, data.train_x[:1], skill)
                widths[skill] = z.shape[1]
        self._bank = Bank(state, skills, widths, self._rank)

    def batch(self, skill: str, x: Features, y: Labels) -> tuple[Features, Labels]:
        """Return the minibatch with rows drawn from the bank."""
        if self._space == FEATURE:
            return x, y
        drawn, labels = self._bank.draw(skill, self._added(len(y)), self._rng)
        self.forwards += 3 * len(labels)
        mixed = np.concatenate([x, drawn.reshape(-1, *x.shape[1:])])
        return mixed, np.concatenate([y, labels])

    def term(self, value: Tensor, model: nn.Module, skill: str) -> Tensor:
        """Return the loss mixed with that of features drawn from the bank."""
        if self._space == INPUT:
            return value
        z, labels = self._bank.draw(skill, self._added(self._batch_size), self._rng)
        if not len(labels):
            return value
        logits = predict(self._heads[skill], rows(z), skill)
        replayed = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        return (1 - self._share) * value + self._share * replayed

    def finish(self, model: nn.Module, stop: Stop) -> Mapping[str, Array]:
        """Add the statistics of the node's rows to the bank."""
        for skill, bank in self._bank.of.items():
            data = stop.data[skill]
            if self._space == INPUT:
                x = data.train_x.reshape(len(data.train_x), -1)
            else:
                x = features(model, data.train_x, skill)[0]
                self.forwards += len(x)
            if self._epsilon:
                own = private(
                    x, data.train_y, num_classes=data.num_classes, clip=self._clip,
                    epsilon=self._epsilon, delta=self._delta, minimum=self._minimum,
                    # Not the visit's seed: who knows that could take the noise away.
                    rng=np.random.default_rng(),
                )  # fmt: skip
            else:
                own = Gaussians.of(x, data.train_y, rank=self._rank, minimum=self._minimum)
            self._bank.of[skill] = bank.merged(own)
        return self._bank.arrays()

    def _added(self, real: int) -> int:
        return round(real * self._share / (1 - self._share))


def features(
    model: nn.Module, x: Features, skill: str
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], nn.Module]:
    """Return what enters the last linear layer [n, d], and that layer.

    Raises:
        ModelError: If the model ends in none.
    """
    entered: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entered.append((module, inputs[0]))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    parts = []
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(x), FORWARD_ROWS):
                entered.clear()
                part = rows(x[start : start + FORWARD_ROWS])
                logits = predict(model, part, skill)
                if not entered or not _is_head(*entered[-1], logits, skill):
                    raise ModelError(
                        f"replay_space {FEATURE!r} needs a model that ends in a linear layer"
                    )
                head, z = entered[-1]
                parts.append(z.numpy().copy())
    finally:
        for hook in hooks:
            hook.remove()
    return np.concatenate(parts), head


def _is_head(module: nn.Module, z: Tensor, logits: Tensor, skill: str) -> bool:
    """Return whether the logits are what a layer makes of a row of features each."""
    return z.ndim == 2 and torch.equal(predict(module, z, skill), logits)
