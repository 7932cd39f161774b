"""Train a routing policy: rollouts, evaluations on held-out networks, the best one as a file.

A run is cut into segments of a few rollouts. At the start of each the environments and every
random source begin anew from the run's seed and the segment's number, so that a run resumed from
a checkpoint is the run it continues, bit for bit. No journey's value is lost by the cut: what
lies ahead is estimated by the critic, as at the end of every rollout.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.vec_env import VecEnv

from aats.errors import MissingExtraError, ScenarioError
from aats.routing.features import FEATURES, GLOBALS
from aats_agents.policy_file import PolicyFile, Range, Training, save
from aats_agents.rl import settings
from aats_agents.rl.curve import Point, best, draw, write_csv
from aats_agents.rl.network import Actor, CandidatePolicy, prior_weights
from aats_agents.rl.settings import ROLLOUT, Algorithm, TrainingConfig
from aats_agents.rl.value import CandidateValuePolicy, MaskedDQN
from aats_agents.scorer import Scorer, zeros

EVALUATION = 0x5EED
"""Seeds the held-out networks: the same ones in every training, so that curves compare."""


class EnvFactory(Protocol):
    """Makes environments that learn side by side, all that happens in them drawn from a seed."""

    def __call__(self, num_envs: int, seed: int) -> VecEnv:
        """Return them; the info of a journey's end has `is_success` and `cost`."""
        ...


Report = Callable[[int, Point | None], None]
"""Called with the decisions so far, and with an evaluation's result where there was one."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the policy's file says of its making."""

    world: str = ""
    world_digest: str = ""
    command: str = ""


@dataclass(slots=True)
class State:
    """What a run needs to go on: all of it is in a checkpoint."""

    config: dict[str, Any]
    segment: int = 0
    """Segments done."""
    steps: int = 0
    updates: int = 0
    network: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    kept: list[dict[str, npt.NDArray[np.float32]]] = field(default_factory=list)
    """The weights at each point."""


def train(
    config: TrainingConfig,
    make_env: EnvFactory,
    out: Path,
    *,
    origin: Origin = Origin(),
    resume: bool = False,
    report: Report = lambda steps, point: None,
    tensorboard: Path | None = None,
) -> PolicyFile:
    """Train, write the best policy found, its learning curve and a checkpoint; return the policy.

    Beside `out` stand `.csv`, `.png` and, until the next training, `.checkpoint`.

    Args:
        config: The run. One seed and one torch thread give one result.
        make_env: Makes the environments of the training and of its evaluations.
        out: The policy's file.
        origin: What the file is to say of its making.
        resume: Go on from the checkpoint beside `out`.
        report: Is told how it goes.
        tensorboard: Folder for TensorBoard's curves; none unless asked for.

    Raises:
        ScenarioError: If there is no checkpoint to resume, or one of another run.
        MissingExtraError: If TensorBoard is asked for and not installed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_suffix(".checkpoint")
    state = _read(checkpoint, config) if resume else State(_plain(config))
    held_out = make_env(config.episodes, _seed(EVALUATION, 0))
    run = _Run(config, make_env, state, report, _logger(tensorboard))
    if not state.points:
        run.evaluate(held_out)
    while state.steps < config.steps:
        run.segment()
        run.evaluate(held_out)
        _write(state, checkpoint)
    held_out.close()
    index = best(state.points)
    first, last = state.points[0], state.points[index]
    metrics = {
        "success": last.success, "cost": last.cost, "steps": float(last.steps),
        "start_success": first.success, "start_cost": first.cost,
    }  # fmt: skip
    algorithm = config.algorithm.value if config.steps else ""
    policy = PolicyFile(
        state.kept[index], run.prior, state.ranges, config.probes, config.fallback,
        Training(
            algorithm, origin.world, origin.world_digest, config.seed, state.steps, metrics,
            origin.command,
        ),
    )  # fmt: skip
    save(policy, out)
    write_csv(state.points, out.with_suffix(".csv"))
    draw(state.points, out.with_suffix(".png"), f"{algorithm or 'prior'} on {origin.world}")
    return policy


def evaluate(scorer: Scorer, env: VecEnv, seed: int) -> Point:
    """Return how a policy that always takes the highest score fares, one journey an environment.

    Args:
        scorer: The policy.
        env: Environments; `steps` of the point is 0.
        seed: Of the networks they draw.
    """
    count = env.num_envs
    env.seed(seed)
    observed: Any = env.reset()
    success, cost, reward, hops = np.zeros((4, count))
    open_ = np.ones(count, np.bool_)
    while open_.any():
        mask = observed["mask"] > 0.5
        chosen = scorer.choose(observed["features"], observed["globals"], mask)
        observed, gained, done, infos = env.step(chosen)
        reward += np.where(open_, gained, 0.0)
        hops += open_
        for i in np.flatnonzero(open_ & done):
            success[i], cost[i] = infos[i]["is_success"], infos[i]["cost"]
        open_ &= ~done
    means = (float(values.mean()) for values in (success, cost, reward, hops))
    return Point(0, *means)


class _Run:
    """The algorithm on its environments, from one segment to the next."""

    def __init__(
        self, config: TrainingConfig, make_env: EnvFactory, state: State, report: Report,
        logger: Logger,
    ) -> None:  # fmt: skip
        self._config, self._make_env, self._state = config, make_env, state
        self._report, self._logger = report, logger
        self.prior = config.prior
        if config.prior is not None and config.algorithm is Algorithm.DQN:
            self.prior = replace(config.prior, sharpness=settings.VALUE_SHARPNESS)
        self._model: BaseAlgorithm | None = None

    def segment(self) -> None:
        """Train for a few rollouts, from where the state is."""
        config, state = self._config, self._state
        env_seed = _seed(config.seed, 2 * state.segment + 1)
        env = self._make_env(config.num_envs, env_seed)
        if self._model is None:
            self._model = self._build(env)
        else:
            self._model.set_env(env)
        env.seed(env_seed)  # building a model has seeded them with its own
        _seed_all(_seed(config.seed, 2 * state.segment + 2))
        rollout = ROLLOUT * config.num_envs
        left = -(-(config.steps - state.steps) // rollout)
        steps = min(left, config.every) * rollout
        watch = _Watch(state.ranges, lambda done: self._report(done, None))
        self._model.learn(steps, watch, log_interval=10, reset_num_timesteps=False)
        env.close()
        state.ranges = watch.found()
        state.segment, state.steps = state.segment + 1, self._model.num_timesteps
        state.updates = self._model._n_updates
        state.network = self._model.policy.state_dict()
        state.optimizer = self._model.policy.optimizer.state_dict()

    def evaluate(self, held_out: VecEnv) -> None:
        """Evaluate the network as a packet would use it, and keep its weights."""
        weights = zeros() if self._model is None else self._actor().export()
        point = evaluate(Scorer(weights, self.prior), held_out, _seed(EVALUATION, 1))
        point = replace(point, steps=self._state.steps)
        self._state.points.append(point)
        self._state.kept.append(weights)
        for name in ("success", "cost", "reward", "hops"):
            self._logger.record(f"eval/{name}", getattr(point, name))
        self._logger.dump(point.steps)
        self._report(point.steps, point)

    def _actor(self) -> Actor:
        model: Any = self._model
        actor: Actor = model.policy.actor
        return actor

    def _build(self, env: VecEnv) -> BaseAlgorithm:
        config, state = self._config, self._state
        shape = {
            "hidden": config.hidden,
            "prior": prior_weights(self.prior),
            "attention": config.attention,
        }
        common: dict[str, Any] = {
            "env": env, "policy_kwargs": shape, "seed": _seed(config.seed, 0), "device": "cpu",
        }  # fmt: skip
        model: Any
        if config.algorithm is Algorithm.PPO:
            model = MaskablePPO(
                CandidatePolicy, **common, **settings.PPO,
                batch_size=min(settings.PPO_BATCH, ROLLOUT * config.num_envs),
                learning_rate=lambda _: settings.PPO_RATE * (1 - self._progress()),
            )  # fmt: skip
        else:
            model = MaskedDQN(
                CandidateValuePolicy, **common, **settings.DQN,
                learning_rate=lambda _: settings.DQN_RATE * (1 - self._progress()),
            )  # fmt: skip
            first, last, share = settings.EXPLORATION
            model.exploration_schedule = lambda _: (
                first + (last - first) * min(1.0, self._progress() / share)
            )
        model.set_logger(self._logger)
        if state.segment:
            model.policy.load_state_dict(state.network)
            model.policy.optimizer.load_state_dict(state.optimizer)
            model.num_timesteps, model._n_updates = state.steps, state.updates
        built: BaseAlgorithm = model
        return built

    def _progress(self) -> float:
        done = self._state.steps if self._model is None else self._model.num_timesteps
        return min(1.0, done / self._config.steps)


class _Watch(BaseCallback):
    """Notes between which values each column lies, and tells how far the training is."""

    def __init__(self, ranges: dict[str, Range], tell: Callable[[int], None]) -> None:
        super().__init__()
        low_high = np.full((2, len(FEATURES) + len(GLOBALS)), np.inf, np.float32)
        low_high[1] = -np.inf
        for i, name in enumerate(FEATURES + GLOBALS):
            if name in ranges:
                low_high[:, i] = ranges[name]
        self._low, self._high = low_high
        self._tell = tell

    def _on_step(self) -> bool:
        observed: Any = self.model._last_obs
        features, packet = observed["features"], observed["globals"]
        rows = features[(observed["mask"] > 0.5) & (features[..., _IS_DATA] > 0.5)]
        for columns, at in ((rows, slice(0, len(FEATURES))), (packet, slice(len(FEATURES), None))):
            self._low[at] = np.minimum(self._low[at], columns.min(axis=0, initial=np.inf))
            self._high[at] = np.maximum(self._high[at], columns.max(axis=0, initial=-np.inf))
        return True

    def _on_rollout_end(self) -> None:
        self._tell(self.num_timesteps)

    def found(self) -> dict[str, Range]:
        """Return the lowest and highest value of each column seen."""
        return {
            name: (float(low), float(high))
            for name, low, high in zip(FEATURES + GLOBALS, self._low, self._high, strict=True)
            if low <= high
        }


_IS_DATA = FEATURES.index("is_data")


def _seed(run: int, stream: int) -> int:
    """Return the seed of one stream of a run, independent of all others."""
    return int(np.random.SeedSequence((run, stream)).generate_state(1)[0] >> 1)


def _seed_all(seed: int) -> None:
    """Seed what Stable-Baselines3 draws from: it keeps no random source of its own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _logger(folder: Path | None) -> Logger:
    if folder is None:
        return configure(None, [])
    try:
        return configure(str(folder), ["tensorboard"])
    except (AssertionError, ImportError) as error:
        raise MissingExtraError("--tensorboard", "tensorboard") from error


# --- checkpoints ------------------------------------------------------------------------------


def _plain(config: TrainingConfig) -> dict[str, Any]:
    return asdict(config) | {"algorithm": config.algorithm.value}


def _write(state: State, path: Path) -> None:
    part = path.with_suffix(".part")
    kept = [{k: torch.from_numpy(v) for k, v in weights.items()} for weights in state.kept]
    points = [asdict(point) for point in state.points]
    fields = {f.name: getattr(state, f.name) for f in dataclass_fields(state)}
    torch.save(fields | {"kept": kept, "points": points}, part)
    part.replace(path)


def _read(path: Path, config: TrainingConfig) -> State:
    if config.algorithm is not Algorithm.PPO:
        allowed = "only ppo can be resumed: a dqn's memory of steps is not kept"
        raise ScenarioError("--resume", config.algorithm.value, allowed)
    try:
        # Weights only: a checkpoint is tensors and plain values, nothing is executed.
        held = torch.load(path, weights_only=True)
        state = State(**held)
    except FileNotFoundError as missing:
        raise ScenarioError("--resume", str(path), "there is no such checkpoint") from missing
    except (OSError, RuntimeError, pickle.UnpicklingError, TypeError, KeyError) as broken:
        allowed = f"a checkpoint of `aats policy train` is wanted ({broken})"
        raise ScenarioError("--resume", str(path), allowed) from broken
    for name, value in _plain(config).items():
        if state.config.get(name) != value:
            allowed = f"the run to resume has {state.config.get(name)!r}"
            raise ScenarioError(f"--resume: {name}", value, allowed)
    state.points = [Point(**point) for point in held["points"]]
    state.kept = [{k: v.numpy() for k, v in weights.items()} for weights in held["kept"]]
    state.ranges = {name: (low, high) for name, (low, high) in state.ranges.items()}
    return state
