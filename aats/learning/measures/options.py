"""Counter-measures against forgetting, as a mandate asks for them. Any method's parameters may.

A visit to a node whose data are one-sided makes a model forget what other nodes taught it. The
measures here are independent of the method: loss terms act through `Work.loss`, replayed rows
through the minibatches of `Work`, the rest before and after `Method.train`. They may be
combined. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from aats.errors import ModelError
from aats.learning.backend import SURROGATE
from aats.packet import Architecture
from aats.payload import STATE, Array

if TYPE_CHECKING:
    from aats.learning.measures.measure import Measure

SEEN = "seen"
INPUT, FEATURE = "input", "feature"
CHAIN = "lora"
"""Name of the architecture whose weights are frozen once they travel."""
_OF_WEIGHTS_THAT_CAME = frozenset({"proximal", "ewc", "ema", "interpolate"})


@dataclass(frozen=True, slots=True)
class Measures:
    """What is done against forgetting. Any method's parameters may set these.

    Raises:
        ValueError: On a value out of range, or one that has no effect.
    """

    proximal: float = 0.0
    """Adds this / 2 times the squared distance to the received weights (FedProx). 0: off."""
    distil: float = 0.0
    """Share of the loss that is cross-entropy against the received model's own prediction
    (learning without forgetting), below 1. 0: off."""
    temperature: float = 1.0
    """Of both predictions in `distil`; 1-2 is usual."""
    ewc: float = 0.0
    """Adds this / 2 times the squared distance to the received weights, each weight by its
    importance, which travels with the packet (elastic weight consolidation). 0: off."""
    ewc_decay: float = 0.9
    """Factor on the importance so far at each visit, 0-1."""
    ewc_rows: int = 256
    """Most rows a visit's importance is measured on."""
    ewc_batch: int = 1
    """Rows a gradient is taken over before it is squared; 1 is exact."""
    ewc_bits: int = 32
    """In which importance travels: 8 or 32."""
    ema: float = 0.0
    """Half-life, in hops, of the mean of the weights that is shipped and judged; training goes
    on from the raw weights, which travel along. 0: off."""
    ema_steps: bool = False
    """Whether the mean is over all steps rather than over the ends of visits."""
    interpolate: float | str = ""
    """Share of the trained weights in what leaves, the rest is the received ones: a number
    between 0 and 1, or "seen": this node's rows among all rows so far. "": off."""
    replay: float = 0.0
    """Share of each minibatch that is drawn from Gaussians of the classes seen before, whose
    statistics travel with the packet; below 1. 0: off."""
    replay_rank: int = 20
    """Directions of a class's covariance; 0: its diagonal instead."""
    replay_space: str = INPUT
    """Of what the statistics are: "input", the rows, or "feature", what enters the last layer."""
    replay_minimum: int = 20
    """A class of which a node holds fewer rows than this adds nothing."""
    replay_epsilon: float = 0.0
    """Epsilon of differential privacy for what a visit adds, for one row more or less; noise
    of the Gaussian mechanism. Repeated visits add up. 0: no noise."""
    replay_delta: float = 1e-5
    """Delta that goes with it."""
    replay_clip: float = 0.0
    """Norm to which rows are cut before they are counted; needed with `replay_epsilon`."""
    masked: bool = False
    """Whether only the logits of classes present (at the node or replayed) enter the loss."""
    calibrated: bool = False
    """Whether the frequencies of the classes trained on are added to the logits in training, so
    that the model does not learn them; instead of `masked`."""
    sam: float = 0.0
    """Radius: the gradient is taken this far up the slope (sharpness-aware). 0: off."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, wanted = getattr(self, field.name), type(field.default)
            if wanted in (bool, int) and type(value) is not wanted:
                kind = "true or false" if wanted is bool else "a whole number"
                raise ValueError(f"{field.name} is {value!r}, allowed is {kind}")
        for name in ("proximal", "ewc", "ema", "sam", "replay_epsilon", "replay_clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)!r}, allowed is 0 or above")
        for name in ("distil", "replay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, allowed is 0 to below 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature!r}, allowed is above 0")
        if not 0 <= self.ewc_decay <= 1 or self.ewc_rows < 1 or self.ewc_batch < 1:
            raise ValueError("ewc_decay must be in 0-1, ewc_rows and ewc_batch at least 1")
        if self.ewc_bits not in (8, 32):
            raise ValueError(f"ewc_bits is {self.ewc_bits!r}, allowed are 8 and 32")
        b = self.interpolate
        if b not in ("", SEEN) and (isinstance(b, str) or not 0 < b < 1):
            raise ValueError(
                f"interpolate is {b!r}, allowed is a number between 0 and 1, or {SEEN!r}"
            )
        if self.masked and self.calibrated:
            raise ValueError("masked and calibrated exclude each other: calibrated does both")
        self._check_replay()
        for name, needed in _PART_OF.items():
            if getattr(self, name) != _DEFAULTS[name] and not getattr(self, needed):
                raise ValueError(f"{name} has no effect without {needed}")

    def _check_replay(self) -> None:
        if self.replay_space not in (INPUT, FEATURE):
            raise ValueError(
                f"replay_space is {self.replay_space!r}, allowed are {INPUT!r} and {FEATURE!r}"
            )
        if self.replay_rank < 0 or self.replay_minimum < 2:
            raise ValueError("replay_rank must be at least 0, replay_minimum at least 2")
        if not 0 < self.replay_delta < 1:
            raise ValueError(f"replay_delta is {self.replay_delta!r}, allowed is 0-1 exclusive")
        if self.replay_epsilon and not (self.replay_clip and self.replay_rank == 0):
            raise ValueError(
                "replay_epsilon needs replay_clip above 0, which bounds what one row can do, and "
                "replay_rank 0: a covariance's directions cannot be made private here"
            )

    def __bool__(self) -> bool:
        return bool(
            self.proximal or self.distil or self.ewc or self.ema or self.interpolate
            or self.replay or self.masked or self.calibrated or self.sam
        )  # fmt: skip

    def check(self, architecture: Architecture) -> None:
        """Check that the measures can be applied to a model.

        Raises:
            ModelError: If there are any and the model has no weights to apply them to, or has them
                frozen.
        """
        if self and architecture.name == SURROGATE:
            raise ModelError(
                f"counter-measures ({', '.join(self.names())}) need a model of weights; "
                f"architecture {SURROGATE!r} has none"
            )
        frozen = [name for name in self.names() if name in _OF_WEIGHTS_THAT_CAME]
        if frozen and architecture.name == CHAIN:
            raise ModelError(
                f"counter-measures ({', '.join(frozen)}) hold on to the weights that came; those "
                f"of architecture {CHAIN!r} are frozen, and what it trains is new at every stop"
            )

    def names(self) -> tuple[str, ...]:
        """Return the measures asked for."""
        return tuple(
            f.name for f in fields(self) if f.name not in _PART_OF and getattr(self, f.name)
        )

    def start(self) -> tuple[Measure, ...]:
        """Return the measures for one visit, outermost first.

        So the teacher of `distil` is the model as it arrived, all else starts from the weights
        that are trained, and `ema` is the last to change what leaves.
        """
        from aats.learning.measures.calibrated import Calibrated
        from aats.learning.measures.distil import Distil
        from aats.learning.measures.ema import Ema
        from aats.learning.measures.ewc import Ewc
        from aats.learning.measures.interpolate import Interpolate
        from aats.learning.measures.masked import Masked
        from aats.learning.measures.proximal import Proximal
        from aats.learning.measures.replay import Replay
        from aats.learning.measures.sam import Sam

        found: list[Measure] = []
        if self.distil:
            found.append(Distil(self.distil, self.temperature))
        if self.ema:
            found.append(Ema(self.ema, self.ema_steps))
        if self.proximal:
            found.append(Proximal(self.proximal))
        if self.ewc:
            found.append(
                Ewc(self.ewc, self.ewc_decay, self.ewc_rows, self.ewc_batch, self.ewc_bits)
            )
        if self.replay:
            found.append(Replay(
                self.replay, self.replay_rank, self.replay_space, self.replay_minimum,
                epsilon=self.replay_epsilon, delta=self.replay_delta, clip=self.replay_clip,
            ))  # fmt: skip
        if self.masked:
            found.append(Masked())
        if self.calibrated:
            found.append(Calibrated())
        if self.sam:
            found.append(Sam(self.sam))
        if self.interpolate:
            found.append(Interpolate(self.interpolate))
        return tuple(found)

    def merge_state(
        self, trunk: Mapping[str, Array], states: Sequence[Mapping[str, Array]]
    ) -> dict[str, Array]:
        """Return the measures' part of one state of several (names with `state.`).

        Args:
            trunk: What every copy of the packet set out with.
            states: What each came back with.

        Raises:
            ModelError: If they do not fit each other.
        """
        from aats.learning.measures.merging import merged

        out: dict[str, Array] = {}
        for name in self._carrying():
            out |= merged(name, trunk, states)
        return out

    def owns(self, name: str) -> bool:
        """Return whether a tensor (name with `state.`) is carried by one of these measures."""
        return name.startswith(tuple(f"{STATE}{measure}." for measure in self._carrying()))

    def _carrying(self) -> list[str]:
        return [name for name in ("ema", "ewc", "interpolate", "replay") if getattr(self, name)]


_PART_OF = {
    "temperature": "distil", "ewc_decay": "ewc", "ewc_rows": "ewc", "ewc_batch": "ewc",
    "ewc_bits": "ewc", "ema_steps": "ema", "replay_rank": "replay", "replay_space": "replay",
    "replay_minimum": "replay", "replay_epsilon": "replay", "replay_delta": "replay",
    "replay_clip": "replay",
}  # fmt: skip
"""Settings, and the measure each belongs to."""
_DEFAULTS = {f.name: f.default for f in fields(Measures)}
NONE = Measures()
