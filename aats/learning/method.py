"""How the work at one stop is done: the `Method` protocol and what it is given.

A method says how much to work (`plan`) and works (`train`). The visit around it
(`aats.learning.visit`) loads and judges the model, counts, guards and writes. A method of one's
own is a class with a `plan` and a loop over minibatches:

    @dataclass(frozen=True)
    class Mine:
        lr: float = 0.1

        def plan(self, stop):
            return one_pass(stop, batch_size=32)

        def train(self, model, work):
            for skill, x, y in work:
                loss = work.loss(model, tensor(x), tensor(y), skill)
                ...
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

import blake3
import numpy as np

from aats import plugins
from aats.advert import ComputeAdvert
from aats.errors import ModelError, ScenarioError, UnknownPluginError, nearest
from aats.ids import NodeId
from aats.learning.measures.options import Measures
from aats.packet import Architecture, Header, Plugin
from aats.payload import Array, Payload
from aats.roles.data import Features, Labels, SkillData

if TYPE_CHECKING:
    from aats.learning.measures.measure import Stack

T = TypeVar("T")

Loss = Callable[[Any, Any, Any, str], Any]
"""(module, tensor x [n, ...], tensor y [n], skill) -> scalar tensor."""

MAX_STEPS = 1 << 20
"""Of one visit: more are a mistake, or meant to keep the node busy."""

GROUP = "aats.methods"
_LOCAL: dict[str, Callable[..., Method]] = {}


def local(name: str, factory: Callable[..., Method]) -> None:
    """Make a method known by name in this process only, without an entry point.

    Args:
        name: As a packet's mandate names it.
        factory: Called with the mandate's parameters as keywords; usually a dataclass.
    """
    _LOCAL[name] = factory


def known() -> list[str]:
    """Return the names of the methods that are installed or local."""
    return sorted({*plugins.names(GROUP), *_LOCAL})


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed that depends on every part and on nothing else."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(blake3.blake3(text).digest(8), "little") >> 1


@dataclass(frozen=True, slots=True)
class Stop:
    """What a method knows of a stop."""

    node: NodeId
    """Whose data."""
    hop: int
    seed: int
    """Of all randomness here; follows from the mandate's seed, the hop and the node."""
    data: Mapping[str, SkillData]
    """The wanted skills that the node has training rows for."""
    trained: Mapping[str, float] = field(default_factory=dict)
    """The packet's numbers, this visit counted: see `progress`."""
    state: Mapping[str, Array] = field(default_factory=dict)
    """The `state.` tensors the packet carries, read-only."""
    shared: Mapping[str, Features] = field(default_factory=dict)
    """The rows of the packet's reference set, which every node sees; without their labels."""
    show_labels: bool = True
    """Whether the node lets its label histograms be known."""
    compute: ComputeAdvert = ComputeAdvert()
    """What the node that works computes with; zeros where nothing is known of it."""
    bandwidth_bps: float = 0.0
    """Of its fastest link, bits per second; 0: not known."""

    @property
    def cycle(self) -> int:
        """How often the packet has come round."""
        return int(self.trained.get("cycle", 0))

    @property
    def caution(self) -> float:
        """Factor on the learning rate: halved by each divergence so far."""
        return float(0.5 ** self.trained.get("diverged", 0))


def progress(header: Header, node: NodeId) -> dict[str, float]:
    """Return the header's numbers with a visit to `node` counted.

    `visits`; `distinct` nodes; `cycle`, which rises when the packet comes back to a node after
    as many visits as it knows nodes; `in_cycle` visits so far; `diverged` visits. Nodes that
    have fallen off the journal count as new.
    """
    old = header.trained
    known = any(entry.node == node for entry in header.journal)
    distinct = old.get("distinct", 0.0) + (not known)
    in_cycle, cycle = old.get("in_cycle", 0.0), old.get("cycle", 0.0)
    if known and in_cycle >= distinct:
        in_cycle, cycle = 0.0, cycle + 1
    return {
        **old,
        "visits": old.get("visits", 0.0) + 1,
        "distinct": distinct,
        "cycle": cycle,
        "in_cycle": in_cycle + 1,
        "diverged": old.get("diverged", 0.0),
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of one visit: SGD steps for each skill, rows a step."""

    steps: Mapping[str, int]
    batch_size: int = 32

    @property
    def total(self) -> int:
        """Steps over all skills."""
        return sum(self.steps.values())


def passes(
    stop: Stop,
    epochs: float,
    batch_size: int,
    *,
    weights: Mapping[str, float] | None = None,
    max_steps: int = 0,
) -> Plan | None:
    """Return work in proportion to the node's data, or None where there is none.

    Equal work at unequal nodes is what breaks sequential training (Balachandar et al. 2020).

    Args:
        stop: The stop.
        epochs: Passes over the training rows of each skill.
        batch_size: Rows a step.
        weights: Factors on `epochs` by skill; 1 where absent.
        max_steps: Upper bound over all skills, cut in proportion; 0 for none.
    """
    steps = {
        skill: math.ceil(epochs * (weights or {}).get(skill, 1.0) * data.samples / batch_size)
        for skill, data in stop.data.items()
    }
    total = sum(steps.values())
    if max_steps and total > max_steps:
        steps = {skill: n * max_steps // total for skill, n in steps.items()}
    return Plan(steps, batch_size) if sum(steps.values()) else None


class Work:
    """The minibatches of one visit; iterating draws them and counts what was drawn.

    Epochs are cut into batches of even size, so that no batch of one row is left over; the
    skills take turns in a seeded order. One seed, one sequence.

    What the mandate asks for against forgetting acts through this: through the minibatches,
    which may hold made-up rows besides the node's own (only those are counted), and through
    `loss`.
    """

    def __init__(self, stop: Stop, plan: Plan, measures: Stack | None = None) -> None:
        if plan.total > MAX_STEPS:
            raise ModelError(f"a plan of {plan.total} steps; a visit has at most {MAX_STEPS}")
        self.stop, self.plan = stop, plan
        self._measures = measures
        self.steps = 0
        self.samples = 0
        self.drawn = np.zeros(0, np.int64)
        """Row numbers of the node's own rows in the minibatch last drawn."""
        self.labels = {s: np.zeros(stop.data[s].num_classes) for s in plan.steps}

    def __iter__(self) -> Iterator[tuple[str, Features, Labels]]:
        rng = np.random.default_rng(self.stop.seed)
        order = rng.permutation([s for s, n in self.plan.steps.items() for _ in range(n)])
        rows = {s: self._rows(self.stop.data[s].samples, rng) for s in self.plan.steps}
        for skill in order.tolist()[self.steps :]:
            data, drawn = self.stop.data[skill], next(rows[skill])
            self.drawn = drawn
            self.count(skill, 1, len(drawn), data.train_y[drawn])
            x, y = data.train_x[drawn], data.train_y[drawn]
            if self._measures is None:
                yield skill, x, y
            else:
                yield skill, *self._measures.batch(skill, x, y)
                self._measures.stepped()

    def loss(self, model: Any, x: Any, y: Any, skill: str) -> Any:
        """Return what to minimise on a minibatch: cross-entropy, and the mandate's measures.

        Args:
            model: The module that is trained.
            x: Its rows, a tensor [n, ...].
            y: Their labels, a tensor [n].
            skill: Whose rows.
        """
        return self.composed(self._cross_entropy)(model, x, y, skill)

    def criterion(self, logits: Any, x: Any, y: Any, skill: str) -> Any:
        """Return the loss of logits [n, classes], for a loss of one's own: see `composed`."""
        from torch.nn.functional import cross_entropy

        if self._measures is None:
            return cross_entropy(logits, y)
        return self._measures.criterion(logits, x, y, skill)

    def composed(self, base: Loss) -> Loss:
        """Return a loss of one's own with the mandate's measures added.

        Args:
            base: (model, x, y, skill) -> scalar; should use `criterion` on its logits.
        """
        return base if self._measures is None else self._measures.composed(base)

    def _cross_entropy(self, model: Any, x: Any, y: Any, skill: str) -> Any:
        from aats.learning.language import lessons

        logits, labels = lessons(model, x, y, skill)
        return self.criterion(logits, x, labels, skill)

    def take_all(self) -> None:
        """Count the whole plan as done, for a method that needs no minibatches."""
        for skill, steps in self.plan.steps.items():
            data = self.stop.data[skill]
            per_epoch = math.ceil(data.samples / self.plan.batch_size)
            whole, rest = divmod(steps, per_epoch)
            drawn = np.tile(np.arange(data.samples), whole)
            part = np.arange(data.samples * rest // per_epoch)
            self.count(skill, steps, len(drawn) + len(part), data.train_y[[*drawn, *part]])

    def count(self, skill: str, steps: int, samples: int, labels: Labels) -> None:
        """Count steps that were taken and rows that were trained on, here or at a partner.

        Args:
            skill: Whose rows.
            steps: Optimisation steps.
            samples: Rows.
            labels: Theirs; may be empty where a partner keeps them.
        """
        self.steps += steps
        self.samples += samples
        drawn, known = np.bincount(labels), self.labels.get(skill, np.zeros(0))
        total = np.zeros(max(len(drawn), len(known)))
        total[: len(known)] += known
        total[: len(drawn)] += drawn
        self.labels[skill] = total

    def _rows(self, samples: int, rng: np.random.Generator) -> Iterator[Labels]:
        while True:
            yield from np.array_split(
                rng.permutation(samples), math.ceil(samples / self.plan.batch_size)
            )


@dataclass(frozen=True, slots=True)
class Carry:
    """What a method lets travel on besides the model."""

    state: Mapping[str, Array] | None = None
    """Replaces the `state.` tensors (names with the prefix); None keeps them."""
    trained: Mapping[str, float] = field(default_factory=dict)
    """Added to the header's numbers."""
    note: str = ""
    """What the ledger shall say of this visit, in a few words."""


@runtime_checkable
class Method(Protocol):
    """The work at one stop. State between stops belongs in the packet, not in the object."""

    def plan(self, stop: Stop) -> Plan | None:
        """Return the work to do here, None for none. Must depend on `stop` alone."""
        ...

    def train(self, model: Any, work: Work) -> Carry | None:
        """Change the model in place, drawing minibatches from `work`.

        `model` is what the architecture's builder made: a module, or a surrogate's knowledge.
        On return the model holds what shall be judged and shipped. All randomness comes from
        `work.stop.seed` or torch's generator, which the visit has seeded from it.
        """
        ...


@runtime_checkable
class Preparing(Protocol):
    """A method that has a say in a packet's tensors before it leaves its owner."""

    def prepare(self, architecture: Architecture, payload: Payload, seed: int) -> Payload:
        """Return the payload, or a better one.

        Args:
            architecture: Of the model in it.
            payload: Model and reference set; not to be changed.
            seed: The mandate's.

        Raises:
            ModelError: If the packet had better not leave.
        """
        ...


def prepared(plugin: Plugin, architecture: Architecture, payload: Payload, seed: int) -> Payload:
    """Return a packet's payload as its method wants it to leave; as it is if that has no wish.

    An owner need not have the method: then it is as it is, too.

    Raises:
        ScenarioError: On a parameter that the method does not have or of a wrong type.
        ModelError: If the method refuses it.
    """
    try:
        method = method_of(plugin)[0]
    except UnknownPluginError:
        return payload
    if isinstance(method, Preparing):
        return method.prepare(architecture, payload, seed)
    return payload


@dataclass(frozen=True, slots=True)
class Guard:
    """When a visit is undone, or a merge. Any method's parameters may set these."""

    rollback_drop: float = 0.3
    """Largest fall of the mean capped skill on trusted data; 1 switches this off. On skewed
    digits 0.1 undid a third of the good visits and cost ten points of accuracy, 0.3 none."""
    rollback_loss: float = 2.0
    """The loss may grow to this multiple plus one nat: the multiple at which a divergence is
    told from forgetting; a huge one, 1e9, switches this off."""
    reject_harm: float = math.inf
    """Largest harm of what the visit added: accuracy without it less accuracy with it, above this
    on both of two disjoint halves of the reference set. Infinity switches this off."""
    drop_harm: float = math.inf
    """An MPVU takes contributions out of a chain (`lora`) that harm more than this on both halves
    of its test set, before it measures the rest. Infinity switches this off."""
    visits: int = 0
    """After so many visits the packet is verified, if it must be, and goes home; 0 for no bound.
    Read by `aats.routing.observe`."""

    def of_child(self) -> Guard:
        """Return what a fork's child is held to: it may forget what its siblings know.

        Where each node knows a few classes, a child that learned them is far worse on the trusted
        set, and the mean of all children far better. So the merge is judged.
        """
        return dataclasses.replace(self, rollback_drop=1.0, rollback_loss=math.inf)


def method_of(plugin: Plugin) -> tuple[Method, Guard, Measures]:
    """Return the method, the guard and the counter-measures a mandate names.

    A parameter that a method has itself is the method's.

    Raises:
        UnknownPluginError: If no such method is installed or local.
        ScenarioError: On a parameter that the method does not have or of a wrong type.
    """
    place = f"method {plugin.name!r}"
    factory = _LOCAL.get(plugin.name) or _installed(plugin.name)
    own = _fields(factory)
    shared = {kind: _fields(kind) - own for kind in (Guard, Measures)}
    params = dict(plugin.params)
    parts = {
        kind: {name: params.pop(name) for name in names & params.keys()}
        for kind, names in shared.items()
    }
    also = sorted(frozenset().union(*shared.values()))
    method = configure(factory, params, place, also=also)
    measures = configure(Measures, parts[Measures], place)
    if measures.ema and getattr(method, "ships_mean", False):
        raise ScenarioError(f"{place}.ema", measures.ema, "0: the method ships a mean of its own")
    return method, configure(Guard, parts[Guard], place), measures


def _fields(factory: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(factory).parameters)


def _installed(name: str) -> Callable[..., Method]:
    try:
        return cast("Callable[..., Method]", plugins.load(GROUP, name))
    except UnknownPluginError as error:
        raise UnknownPluginError(GROUP, name, {*error.known, *_LOCAL}) from None


def configure(
    factory: Callable[..., T], params: Mapping[str, Any], place: str, also: Iterable[str] = ()
) -> T:
    """Call a factory with parameters; a dataclass's keys and number types are checked first.

    Args:
        factory: What to call.
        params: Its keywords.
        place: Where they stand, for the message.
        also: Other parameters that may stand there, for the message.

    Raises:
        ScenarioError: Naming the parameter and what is allowed.
    """
    if dataclasses.is_dataclass(factory):
        fields = {f.name: f for f in dataclasses.fields(factory) if f.init}
        for key, value in params.items():
            if key not in fields:
                known = [*fields, *also]
                raise ScenarioError(
                    f"{place}.{key}", value, f"known parameters: {', '.join(known) or 'none'}",
                    nearest(key, known),
                )  # fmt: skip
            default = fields[key].default
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if isinstance(default, int | float) and not isinstance(default, bool) and not number:
                raise ScenarioError(f"{place}.{key}", value, "a number is wanted")
            if isinstance(value, float) and math.isnan(value):
                raise ScenarioError(f"{place}.{key}", value, "a number is wanted")
    try:
        return factory(**params)
    except (TypeError, ValueError) as error:
        raise ScenarioError(place, dict(params), str(error)) from error
