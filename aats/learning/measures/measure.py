"""What a counter-measure is during one visit, and how several act together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from aats.errors import ModelError
from aats.learning.method import Loss, Plan, Stop, seed_of
from aats.payload import STATE, Array
from aats.roles.data import Features, Labels


class Measure:
    """One counter-measure during one visit; each part does nothing unless it is overridden.

    Measures are nested: `begin` is called on the outermost first, all else on the innermost
    first.
    """

    name = ""
    """As in the mandate; state travels under `state.<name>.`."""
    needs: frozenset[str] = frozenset()
    """Which of "batch", "criterion" and "loss" a method must use for this to have an effect."""

    def __init__(self) -> None:
        self.forwards = 0.0
        """Rows passed through the model so far besides the method's own."""

    def begin(self, model: nn.Module, stop: Stop, plan: Plan, state: Mapping[str, Array]) -> None:
        """Prepare, before the method trains; may change the model.

        Args:
            model: As it came, or as the measures outside this one left it.
            stop: The stop.
            plan: The method's plan.
            state: What this measure's `finish` returned at the last stop.

        Raises:
            ModelError: If the state does not fit the model.
        """

    def batch(self, skill: str, x: Features, y: Labels) -> tuple[Features, Labels]:
        """Return the minibatch with rows added."""
        return x, y

    def criterion(
        self, value: Tensor, logits: Tensor, x: Tensor, y: Tensor, skill: str
    ) -> Tensor:  # fmt: skip
        """Return the loss of a minibatch's logits, given that of the measures within."""
        return value

    def term(self, value: Tensor, model: nn.Module, skill: str) -> Tensor:
        """Return the loss with a term of the model added."""
        return value

    def around(self, loss: Loss) -> Loss:
        """Return the loss to be differentiated instead."""
        return loss

    def stepped(self, model: nn.Module) -> None:
        """Take note of a step that was made."""

    def finish(self, model: nn.Module, stop: Stop) -> Mapping[str, Array]:
        """Change the model into what leaves; return what this measure carries on."""
        return {}


class Stack:
    """The measures of one visit, acting together.

    Args:
        measures: Outermost first.
        model: What the method will train.
        stop: The stop.
        plan: The method's plan.

    Raises:
        ModelError: If a measure's state does not fit the model.
    """

    def __init__(
        self, measures: Sequence[Measure], model: nn.Module, stop: Stop, plan: Plan
    ) -> None:
        self._measures = tuple(measures)
        self._inward = self._measures[::-1]
        self._model = model
        self._used: set[str] = set()
        rest = {name: array for name, array in stop.state.items() if not self.owns(name)}
        self.stop = replace(stop, state=rest)
        """What the method sees of the stop: its own state only."""
        for measure in self._measures:
            place = f"{STATE}{measure.name}."
            own = {n[len(place) :]: a for n, a in stop.state.items() if n.startswith(place)}
            measure.begin(model, stop, plan, own)

    @property
    def forwards(self) -> float:
        """Rows passed through the model besides the method's own."""
        return sum(m.forwards for m in self._measures)

    def batch(self, skill: str, x: Features, y: Labels) -> tuple[Features, Labels]:
        """Return a minibatch with the rows that measures add."""
        self._used.add("batch")
        for measure in self._inward:
            x, y = measure.batch(skill, x, y)
        return x, y

    def criterion(self, logits: Tensor, x: Tensor, y: Tensor, skill: str) -> Tensor:
        """Return the loss of a minibatch's logits."""
        self._used.add("criterion")
        value = nn.functional.cross_entropy(logits, y)
        for measure in self._inward:
            value = measure.criterion(value, logits, x, y, skill)
        return value

    def composed(self, base: Loss) -> Loss:
        """Return a loss with every measure's terms."""
        self._used.add("loss")

        def total(model: nn.Module, x: Tensor, y: Tensor, skill: str) -> Tensor:
            value: Tensor = base(model, x, y, skill)
            for measure in self._inward:
                value = measure.term(value, model, skill)
            return value

        loss: Loss = total
        for measure in self._inward:
            loss = measure.around(loss)
        return loss

    def stepped(self) -> None:
        """Take note of a step that was made."""
        for measure in self._inward:
            measure.stepped(self._model)

    def check(self) -> None:
        """Check, after the method trained, that every measure had its part in it.

        Raises:
            ModelError: If the method did not use what a measure acts through.
        """
        for measure in self._measures:
            if missing := measure.needs - self._used:
                raise ModelError(
                    f"counter-measure {measure.name!r} has no effect: the method does not use "
                    + ", ".join(sorted(_HOOK[part] for part in missing))
                )

    def finish(self) -> dict[str, Array]:
        """Change the model into what leaves; return the state, names with the prefix."""
        state: dict[str, Array] = {}
        for measure in self._inward:
            found = measure.finish(self._model, self.stop)
            state |= {f"{STATE}{measure.name}.{name}": array for name, array in found.items()}
        return state

    def owns(self, name: str) -> bool:
        """Return whether a `state.` tensor is one of these measures'."""
        return name.startswith(tuple(f"{STATE}{m.name}." for m in self._measures))


_HOOK = {
    "batch": "the minibatches of `work`",
    "criterion": "`work.loss` or `work.criterion`",
    "loss": "`work.loss` or `work.composed`",
}


def generator(stop: Stop, name: str) -> np.random.Generator:
    """Return a measure's own randomness at a stop."""
    return np.random.default_rng(seed_of("measure", name, stop.seed))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model: nn.Module, received: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield how far each trained parameter is from what was received, by name.

    Raises:
        ModelError: If the method trains a model of other widths.
    """
    for name, p in model.named_parameters():
        if name in received and p.requires_grad:
            if p.shape != received[name].shape:
                raise ModelError(
                    f"a distance to the received weights has no effect: the method trains a part "
                    f"of {name!r} only"
                )
            yield name, p - received[name]


def carried(state: Mapping[str, Array], name: str, like: Tensor) -> Tensor | None:
    """Return a copy of a tensor that travelled, None if there is none.

    Raises:
        ModelError: If it is not of the parameter's shape, or not finite.
    """
    array = state.get(name)
    if array is None:
        return None
    if array.shape != tuple(like.shape) or not np.isfinite(array).all():
        raise ModelError(f"state {name!r} must be finite and of shape {list(like.shape)}")
    return torch.from_numpy(array.copy()).to(like.dtype)
