"""Generative learning: nodes add up statistics, the last layer follows from them.

The layers before the last are left as they are (or trained at the first few stops, then left).
The packet carries moments of what enters the last layer: of each class the count and the sum,
and one sum of outer products. These add up exactly, so the order of the nodes does not matter
and nothing is forgotten. The last layer is the best one for Gaussian classes of one covariance
(Fisher's discriminant, as one-shot Gaussian heads have it), or is trained on the node's rows
and rows drawn from those Gaussians.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from aats.errors import ModelError
from aats.learning.measures.measure import generator
from aats.learning.measures.replay import features
from aats.learning.method import Carry, Plan, Stop, Work, passes
from aats.learning.models import predict
from aats.learning.modules import rows
from aats.learning.sgd import sgd
from aats.payload import STATE, Array
from aats.roles.data import Labels

PREFIX = f"{STATE}generative."
CLOSED, TRAINED = "closed", "trained"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What is known of the rows so far; sums, so two sets of rows add up."""

    count: Floats
    """[C] rows of each class."""
    total: Floats
    """[C, d] their sums."""
    outer: Floats
    """[d, d] the sum of outer products over all rows."""

    @classmethod
    def of(cls, z: npt.ArrayLike, y: Labels, num_classes: int, minimum: int) -> Moments:
        """Return the moments of rows [n, d]; classes with fewer than `minimum` are left out."""
        x = np.asarray(z, np.float64)
        kept = np.isin(y, np.flatnonzero(np.bincount(y, minlength=num_classes) >= minimum))
        x, y = x[kept], y[kept]
        total = np.zeros((num_classes, x.shape[1]))
        np.add.at(total, y, x)
        return cls(np.bincount(y, minlength=num_classes).astype(np.float64), total, x.T @ x)

    @classmethod
    def read(cls, state: Mapping[str, Array], skill: str, num_classes: int, width: int) -> Moments:
        """Return what travelled; nothing known if nothing did.

        Raises:
            ModelError: If it does not fit, or is not finite.
        """
        shapes = {"count": (num_classes,), "total": (num_classes, width), "outer": (width, width)}
        found = {}
        for part, shape in shapes.items():
            array = state.get(f"{PREFIX}{part}.{skill}", np.zeros(shape))
            if array.shape != shape or not np.isfinite(array).all():
                raise ModelError(
                    f"tensor '{PREFIX}{part}.{skill}' must be finite and of shape {list(shape)}"
                )
            found[part] = array.astype(np.float64)
        if (found["count"] < 0).any():
            raise ModelError(f"tensor '{PREFIX}count.{skill}' must be 0 or above")
        return cls(**found)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def arrays(self, skill: str) -> dict[str, Array]:
        """Return what travels."""
        parts = {"count": self.count, "total": self.total, "outer": self.outer}
        return {f"{PREFIX}{part}.{skill}": array for part, array in parts.items()}

    @property
    def present(self) -> Labels:
        """The classes there are rows of."""
        return np.flatnonzero(self.count > 0)

    def gaussians(self, ridge: float) -> tuple[Floats, Floats]:
        """Return the means [present, d] and the covariance [d, d] of the classes present.

        Args:
            ridge: Share of the mean variance that is added to each variance.
        """
        count = self.count[self.present]
        means = self.total[self.present] / count[:, None]
        within = self.outer - (means.T * count) @ means
        spread = within / max(float(count.sum()) - len(count), 1.0)
        level = max(float(np.trace(spread)) / len(spread), float(np.finfo(np.float32).tiny))
        wide: Floats = spread + ridge * level * np.eye(len(spread))
        return means, wide

    def head(self, ridge: float) -> tuple[Floats, Floats]:
        """Return weight [C, d] and bias [C] of the discriminant.

        A class that no node had is given one row, the mean of all.
        """
        present, spread = self.gaussians(ridge)
        total = float(self.count.sum())
        means = np.tile(self.total.sum(0) / total, (len(self.count), 1))
        means[self.present] = present
        weight: Floats = np.linalg.solve(spread, means.T).T
        bias: Floats = np.log(np.maximum(self.count, 1.0) / total) - 0.5 * (means * weight).sum(1)
        return weight, bias


@dataclass(frozen=True, slots=True)
class GenerativeMethod:
    """Adds the node's statistics to the packet's and renews the last layer from them.

    Raises:
        ValueError: On a value out of range.
    """

    head: str = CLOSED
    """"closed": computed from the statistics; "trained": by SGD on real rows and drawn ones."""
    ridge: float = 0.1
    """Added to each variance, as a share of the mean one."""
    minimum: int = 20
    """A class of which a node holds fewer rows than this adds nothing."""
    encoder_visits: int = 0
    """Visits at which all layers are trained first; the statistics begin at the last of them.
    0: the layers before the last stay as the packet brought them."""
    epochs: float = 1.0
    """Passes over the node's rows where there is something to train."""
    batch_size: int = 32
    lr: float = 0.03
    share: float = 0.5
    """Of drawn rows in a minibatch of a trained head, below 1."""

    def __post_init__(self) -> None:
        if self.head not in (CLOSED, TRAINED):
            raise ValueError(f"head is {self.head!r}, allowed are {CLOSED!r} and {TRAINED!r}")
        if self.epochs <= 0 or self.batch_size < 1 or self.lr <= 0 or self.ridge <= 0:
            raise ValueError("epochs, lr and ridge must be above 0, batch_size at least 1")
        if self.minimum < 2 or self.encoder_visits < 0 or not 0 <= self.share < 1:
            raise ValueError("minimum must be at least 2, encoder_visits 0, share 0 to below 1")

    def plan(self, stop: Stop) -> Plan | None:
        """Return passes over every wanted skill; one where nothing is trained."""
        trains = self.head == TRAINED or self._visit(stop) <= self.encoder_visits
        return passes(stop, self.epochs if trains else 1.0, self.batch_size)

    def train(self, model: nn.Module, work: Work) -> Carry | None:
        """Train the encoder if it is time for that, then add statistics and renew the head."""
        stop = work.stop
        if (visit := self._visit(stop)) <= self.encoder_visits:
            sgd(model, work, lr=self.lr, clip=1.0)
            if visit < self.encoder_visits:
                return None
        known, heads, own = {}, {}, {}
        for skill in work.plan.steps:
            data = stop.data[skill]
            own[skill], heads[skill] = features(model, data.train_x, skill)
            old = Moments.read(stop.state, skill, data.num_classes, own[skill].shape[1])
            known[skill] = old + Moments.of(
                own[skill], data.train_y, data.num_classes, self.minimum
            )
        if self.head == CLOSED:
            for skill, moments in known.items():
                if len(moments.present):
                    _set(heads[skill], *moments.head(self.ridge))
            if not work.steps:
                work.take_all()
        elif not work.steps:
            self._train_heads(model, work, known, heads)
        rest = {n: a for n, a in stop.state.items() if not n.startswith(PREFIX)}
        return Carry(rest | {n: a for s, m in known.items() for n, a in m.arrays(s).items()})

    def merge_state(
        self, trunk: Mapping[str, Array], states: Sequence[Mapping[str, Array]]
    ) -> Mapping[str, Array]:
        """Return the statistics of all copies together, rows before the fork counted once."""
        out = {name: array for name, array in trunk.items() if not name.startswith(PREFIX)}
        for name in sorted({n for s in states for n in s if n.startswith(PREFIX)}):
            parts = [s[name].astype(np.float64) for s in states if name in s]
            base = trunk[name].astype(np.float64) if name in trunk else np.zeros(parts[0].shape)
            if any(part.shape != base.shape for part in parts):
                raise ModelError(f"tensor {name!r} is of different shapes in the copies")
            if name.startswith(f"{PREFIX}count.") and any((part < base).any() for part in parts):
                raise ModelError(f"tensor {name!r} of a copy counts less than it set out with")
            out[name] = base + sum(part - base for part in parts)
        return out

    def _visit(self, stop: Stop) -> int:
        return int(stop.trained.get("visits", 1.0))

    def _train_heads(
        self, model: nn.Module, work: Work, known: Mapping[str, Moments],
        heads: Mapping[str, nn.Module],
    ) -> None:  # fmt: skip
        """Train each last layer on what enters it: of real rows and of drawn ones."""
        rng = generator(work.stop, "generative")
        factors = {}
        for skill, moments in known.items():
            means, spread = moments.gaussians(self.ridge)
            factors[skill] = means, np.linalg.cholesky(spread)
        for skill, x, y in work:
            means, factor = factors[skill]
            size = round(len(y) * self.share / (1 - self.share)) if len(means) else 0
            place = rng.integers(0, max(len(means), 1), size)
            drawn = means[place] + rng.standard_normal((size, len(factor))) @ factor.T
            z = np.concatenate([features(model, x, skill)[0], drawn.astype(np.float32)])
            labels = np.concatenate([y, known[skill].present[place]])
            head = heads[skill]
            params = list(head.parameters())
            loss = nn.functional.cross_entropy(
                predict(head, rows(z), skill), torch.from_numpy(labels)
            )
            for p, slope in zip(params, torch.autograd.grad(loss, params), strict=True):
                with torch.no_grad():
                    p.sub_(slope, alpha=self.lr)


def _set(head: nn.Module, weight: Floats, bias: Floats) -> None:
    """Give a last layer the discriminant; one with a single output its log-odds of class 1."""
    assert isinstance(head, nn.Linear)
    if head.out_features == 1:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    if tuple(head.weight.shape) != weight.shape:
        raise ModelError(
            f"the last layer has {head.out_features} outputs, the data {len(weight)} classes"
        )
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias))
