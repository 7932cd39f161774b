"""What a visit, a probe and a verdict need of a model, whatever it is made of.

Two backends: torch modules (`aats.learning.modules`) and the surrogate of the simulated world
(`aats.learning.surrogate`), which needs no torch. The architecture's name decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from aats.packet import Architecture
from aats.payload import Array, Payload
from aats.roles.data import Batch, Features

if TYPE_CHECKING:
    from aats.learning.weights import Tensor

SURROGATE = "surrogate"
"""Name of the architecture that is no torch module."""

LogProbabilities = npt.NDArray[np.float64]
"""[n, classes]."""


class Backend(Protocol):
    """How models of one make are built, judged, tried and written."""

    def initial(self, architecture: Architecture, seed: int) -> Mapping[str, Array]:
        """Return a fresh model's tensors, names with the prefix `model.`."""
        ...

    def scope(self, seed: int) -> AbstractContextManager[None]:
        """Return a scope in which computing is deterministic and seeded."""
        ...

    def load(self, architecture: Architecture, payload: Payload) -> Any:
        """Return the model, checked. The payload's bytes may be used as they are if writable.

        Raises:
            ModelError: If the tensors do not fit the architecture or are not finite.
        """
        ...

    def subject(self, model: Any) -> Any:
        """Return what a method trains: the module itself, or the surrogate's knowledge."""
        ...

    def log_probabilities(self, model: Any, x: Features, skill: str) -> LogProbabilities:
        """Return the model's prediction for rows.

        Raises:
            ModelError: If the rows do not fit the model.
        """
        ...

    def tensors(self, model: Any, payload: Payload) -> dict[str, Tensor]:
        """Return the model's tensors, those untouched since `load` with the digest they had."""
        ...

    def trial(
        self, model: Any, batch: Mapping[str, Batch], reference: Mapping[str, Batch], lr: float
    ) -> Trial:
        """Try a few steps on `batch`; changes the model."""
        ...

    def flops(self, model: Any) -> float:
        """Return floating-point operations of a forward pass for one row, estimated."""
        ...


class Trial(Protocol):
    """What a few trial steps on a minibatch found."""

    @property
    def gain(self) -> float:
        """Fall of the loss on the reference set; 0 without one."""

    @property
    def alignment(self) -> float:
        """Cosine of the minibatch's and the reference set's gradient; 0 without one."""

    @property
    def loss(self) -> float:
        """Loss on the minibatch before the steps."""

    @property
    def gradient_norm(self) -> float:
        """Norm of its gradient."""


def backend_of(architecture: Architecture) -> Backend:
    """Return the backend for an architecture; imports torch only where it is needed."""
    if architecture.name == SURROGATE:
        from aats.learning.surrogate import SurrogateBackend

        return SurrogateBackend()
    from aats.learning.modules import ModuleBackend

    return ModuleBackend()
