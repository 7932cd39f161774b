"""What several copies of one packet bring back, made one again. NumPy only.

The *trunk* forks; each child is a *part* that comes back with a model of its own. A *rule* makes
the trunk's new tensors of them (entry-point group `aats.merges`): it sees plain arrays by name
and knows nothing of packets. `merge` is the whole of it at the payload's level: it reads the
children, leaves out those that cannot be used, applies the rule, merges what the method carries,
and writes the payload.

Sums run in float64, part after part in the order given, element by element: no BLAS, no order of
arrival. So the same parts give the same bits on every machine. Tensors of whole numbers and truth
values are not averaged: the trunk keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from aats import plugins
from aats.errors import ModelError, UnknownPluginError
from aats.ids import NodeId
from aats.learning.factors import is_factor, side_by_side
from aats.learning.measures.options import NONE, Measures
from aats.learning.method import configure
from aats.learning.surrogate import KNOWLEDGE
from aats.learning.weights import Allocate, Tensor, check_finite, kept, tensor_of, write
from aats.packet import Plugin
from aats.payload import MERGE_STATE, MODEL, STATE, Array, Manifest, Payload

GROUP = "aats.merges"
CARRIED = MERGE_STATE
"""State under this name is a rule's; all other is the method's."""
WEIGHTINGS = "samples", "equal"
WITNESSES = 8
"""Parts whose state each other part's is held against, where all together do not fit."""

_LOCAL: dict[str, Callable[..., MergeRule]] = {}

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trunk:
    """Tensors of the packet that forked: names without `model.`, state with `state.`."""

    model: Mapping[str, Array]
    """Dtypes as they travel, but bfloat16, which NumPy has not: as float32."""
    state: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Part:
    """One copy that came back."""

    model: Mapping[str, Array]
    """Names without `model.`."""
    weight: float
    """Factor on its share; 1 unless the rendezvous says otherwise."""
    state: Mapping[str, Array]
    """Names with `state.`."""
    samples: int
    """Rows it drew since the fork."""
    nodes: tuple[NodeId, ...]
    """Where it trained since the fork, in order."""


@runtime_checkable
class MergeRule(Protocol):
    """How parts become one. State between merges belongs in `Trunk.state`, not in the object."""

    def merge(self, trunk: Trunk, parts: Sequence[Part]) -> Trunk:
        """Return the new tensors.

        Args:
            trunk: As it forked.
            parts: At least one, finite, in the order of their errands. Their tensors have the
                trunk's names and shapes. If the rule has `grows`, they may have adapters
                besides that the trunk has not.

        Raises:
            ModelError: If these parts cannot be merged by this rule.
        """
        ...


@runtime_checkable
class MergesState(Protocol):
    """A method may offer this; otherwise the trunk's state is kept."""

    def merge_state(
        self, trunk: Mapping[str, Array], states: Sequence[Mapping[str, Array]]
    ) -> Mapping[str, Array]:
        """Return one state of several (names with `state.`).

        Args:
            trunk: What every part set out with: what it counts must not be counted again.
            states: What each part came back with.
        """
        ...


@dataclass(frozen=True, slots=True)
class Child:
    """A copy that came back, as its packet has it."""

    payload: Payload
    samples: int
    nodes: tuple[NodeId, ...]
    weight: float = 1.0
    fault: str = ""
    """Why it cannot be used, as its packet knows."""


@dataclass(frozen=True, slots=True)
class Merging:
    """What a merge made."""

    manifest: Manifest
    """Of the payload written."""
    left_out: Mapping[int, str]
    """By place among the children: why this one was not used."""


def local(name: str, factory: Callable[..., MergeRule]) -> None:
    """Make a rule known by name in this process only, without an entry point."""
    _LOCAL[name] = factory


def merge_rule(plugin: Plugin) -> MergeRule:
    """Return the rule of a name, with its parameters.

    Raises:
        UnknownPluginError: If no such rule is installed or local.
        ScenarioError: On a parameter that the rule does not have or of a wrong type.
    """
    factory = _LOCAL.get(plugin.name) or _installed(plugin.name)
    return configure(factory, plugin.params, f"merge rule {plugin.name!r}")


def _installed(name: str) -> Callable[..., MergeRule]:
    try:
        return cast("Callable[..., MergeRule]", plugins.load(GROUP, name))
    except UnknownPluginError as error:
        raise UnknownPluginError(GROUP, name, {*error.known, *_LOCAL}) from None


def merge(
    rule: MergeRule,
    method: Any,
    trunk: Payload,
    children: Sequence[Child],
    allocate: Allocate,
    measures: Measures = NONE,
) -> Merging:
    """Merge the children into the trunk's payload.

    Args:
        rule: How.
        method: The packet's; asked for `merge_state` if it has that.
        trunk: As it forked.
        children: Those that came back, in the order of their errands.
        allocate: Makes the arena of the payload that is written.
        measures: The packet's, against forgetting; they merge what they carry themselves.

    Raises:
        ModelError: If no child can be used, the rule refuses, or what it made is not finite.
    """
    own = Trunk(_model(trunk), trunk.arrays(STATE))
    grows = getattr(rule, "grows", False)
    fitting, left_out = {}, {}
    for i, child in enumerate(children):
        part = Part(
            _model(child.payload), child.weight, child.payload.arrays(STATE),
            child.samples, child.nodes,
        )  # fmt: skip
        if fault := child.fault or _fault(own, part, grows):
            left_out[i] = fault
        else:
            fitting[i] = part

    def joined(chosen: Sequence[Part]) -> dict[str, Array]:
        return _joined_state(method, measures, own.state, [part.state for part in chosen])

    left_out |= _at_odds(joined, fitting)
    parts = [part for i, part in fitting.items() if i not in left_out]
    if not parts:
        raise ModelError(f"nothing to merge: {'; '.join(left_out.values()) or 'no child'}")

    new = rule.merge(own, parts)
    state = {name: tensor_of(array) for name, array in new.state.items() if _is_rules(name)}
    if not isinstance(method, MergesState):
        mine = _of_method(own.state, measures)
        state |= {name: t for name, t in kept(trunk, STATE).items() if name in mine}
    state |= {name: tensor_of(array) for name, array in joined(parts).items()}
    dtypes = {t.name: t.dtype for t in trunk.manifest.tensors}
    model = {
        MODEL + name: _tensor(array, dtypes.get(MODEL + name, ""))
        for name, array in new.model.items()
    }
    check_finite({**model, **state})
    return Merging(write(trunk, model, state, allocate), left_out)


def _joined_state(
    method: Any,
    measures: Measures,
    trunk: Mapping[str, Array],
    states: Sequence[Mapping[str, Array]],
) -> dict[str, Array]:
    """Return what the method and the measures make of what they carried on all copies."""
    out: dict[str, Array] = {}
    if isinstance(method, MergesState):
        mine, theirs = _of_method(trunk, measures), [_of_method(s, measures) for s in states]
        out |= method.merge_state(mine, theirs)
    if measures:
        out |= measures.merge_state(trunk, states)
    return out


def _at_odds(
    joined: Callable[[Sequence[Part]], object], parts: Mapping[int, Part]
) -> dict[int, str]:
    """Return the parts whose state fits no other's, and why, so that one cannot stop a merge.

    Those first that are wrong by themselves; then those that do not go with most others.
    """

    def fault(*chosen: Part) -> str:
        try:
            joined(chosen)
        except (ModelError, LookupError, ValueError, TypeError, ArithmeticError) as error:
            return f"the copy from {', '.join(chosen[0].nodes) or 'nowhere'}: state: {error}"
        return ""

    if not parts or not fault(*parts.values()):
        return {}
    found = {i: why for i, part in parts.items() if (why := fault(part))}
    rest = {i: part for i, part in parts.items() if i not in found}
    if not rest or not fault(*rest.values()):
        return found
    witnesses = [*rest.items()][:: -(-len(rest) // WITNESSES)]
    for i, part in rest.items():
        against = [fault(part, other) for j, other in witnesses if j != i]
        if 2 * sum(map(bool, against)) > len(against):
            found[i] = next(filter(None, against))
    return found


def _is_rules(name: str) -> bool:
    return name.startswith(CARRIED)


def _of_method(state: Mapping[str, Array], measures: Measures) -> dict[str, Array]:
    return {
        name: array for name, array in state.items() if not (_is_rules(name) or measures.owns(name))
    }


def _model(payload: Payload) -> dict[str, Array]:
    return {
        t.name[len(MODEL) :]: _read(payload.array(t), t.dtype, t.name)
        for t in payload.manifest.tensors
        if t.name.startswith(MODEL)
    }


def _read(bits: Array, dtype: str, name: str) -> Array:
    if name.startswith(KNOWLEDGE):
        return bits.astype(np.float64)  # whole millionths, but of something that has a mean
    return (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else bits


def _tensor(array: Array, dtype: str) -> Tensor:
    if dtype == "i32" and is_averaged(array):
        return tensor_of(np.rint(array).astype(np.int32))
    if dtype != "bf16":
        return tensor_of(array)
    bits = np.asarray(array, np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to the nearest, ties to even
    return Tensor((rounded >> 16).astype(np.uint16), dtype)


def _fault(trunk: Trunk, part: Part, grows: bool) -> str:
    """Return why a part cannot be used, "" if it can."""
    who = f"the copy from {', '.join(part.nodes) or 'nowhere'}"
    for name, array in (*part.model.items(), *part.state.items()):
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            return f"{who}: tensor {name!r} has NaN or infinite values"
    for name in dict.fromkeys([*trunk.model, *part.model]):
        mine, theirs = trunk.model.get(name), part.model.get(name)
        if grows and mine is None and is_factor(name):
            continue
        if mine is None or theirs is None:
            return f"{who}: tensor {name!r} is {'new' if mine is None else 'missing'}"
        if is_factor(name) and not np.array_equal(mine, theirs):
            return f"{who}: the factor {name!r} was changed; factors have no mean of their own"
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return (
                f"{who}: tensor {name!r} is {theirs.dtype}{list(theirs.shape)}, "
                f"the trunk's {mine.dtype}{list(mine.shape)}"
            )
    return ""


def is_averaged(array: Array) -> bool:
    """Return whether a tensor has a mean: numbers with a fraction do, counts and flags do not."""
    return bool(np.issubdtype(array.dtype, np.floating))


def shares(parts: Sequence[Part], weighting: str) -> list[float]:
    """Return each part's weight, not normalised.

    Raises:
        ModelError: If they are all 0.
    """
    found = [p.weight * (p.samples if weighting == "samples" else 1.0) for p in parts]
    if not sum(found) > 0:
        raise ModelError(f"no part has a weight: {weighting} of {len(parts)} parts are 0")
    return found


def mean_of(name: str, parts: Sequence[Part], weights: Sequence[float]) -> FloatArray:
    """Return the weighted mean of one tensor in float64.

    The sum of weight times value comes first and is divided last, so that equal parts give their
    very bits back where weights are whole numbers.
    """
    total = np.zeros(parts[0].model[name].shape, np.float64)
    for part, weight in zip(parts, weights, strict=True):
        total += weight * part.model[name].astype(np.float64)
    mean: FloatArray = total / sum(weights)
    return mean


def check_weighting(weighting: str) -> None:
    """Check the name of a weighting.

    Raises:
        ValueError: Naming those there are.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}, allowed are {', '.join(WEIGHTINGS)}")


@dataclass(frozen=True, slots=True)
class Mean:
    """The weighted mean of the parts: FedAvg's rule (McMahan et al. 2017).

    Adapters that the parts added stay side by side: see `aats.learning.factors`.

    Raises:
        ValueError: On an unknown weighting.
    """

    grows = True
    weighting: str = "samples"
    """"samples": by the rows each drew since the fork; "equal": all alike."""

    def __post_init__(self) -> None:
        check_weighting(self.weighting)

    def merge(self, trunk: Trunk, parts: Sequence[Part]) -> Trunk:
        """Return the mean; the trunk's state is kept."""
        weights = shares(parts, self.weighting)
        model = {
            name: mean_of(name, parts, weights).astype(array.dtype) if is_averaged(array) else array
            for name, array in trunk.model.items()
        }
        share = [weight / sum(weights) for weight in weights]
        model |= side_by_side(trunk.model, [part.model for part in parts], share)
        return Trunk(model, trunk.state)
