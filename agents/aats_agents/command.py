"""`aats policy ...`: train routing policies, judge them, look at their files.

Mounted by the entry point `policy` of the group `aats.commands`. Nothing heavy is loaded before
a command's arguments are understood.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aats.errors import MissingExtraError, ScenarioError
from aats.options import Exit

if TYPE_CHECKING:
    from aats_agents.policy_file import PolicyFile
    from aats_agents.rl.train import EnvFactory, Origin

app = typer.Typer()
LATER: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}
"""For commands whose arguments are known only once their module is loaded."""
EXTRA = ("gymnasium", "stable_baselines3", "sb3_contrib", "pettingzoo")
"""What the extra `rl` installs."""


class Algorithm(StrEnum):
    """How a network learns."""

    PPO = "ppo"
    DQN = "dqn"


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The policy's file; curve and checkpoint beside it.")],
    scenario: Annotated[
        Path | None, typer.Option(help="Train on networks like this scenario's.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Train on this family of networks.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    steps: Annotated[
        int, typer.Option(min=0, help="Decisions to learn from; 0: write the heuristic as it is.")
    ] = 1_000_000,
    envs: Annotated[int, typer.Option(min=1, help="Packets that learn side by side.")] = 256,
    algorithm: Annotated[Algorithm, typer.Option(help="How it learns.")] = Algorithm.PPO,
    prior: Annotated[bool, typer.Option(help="Start as the heuristic, or as nothing.")] = True,
    fidelity: Annotated[
        str,
        typer.Option(
            help="How models learn: small ones by rows, by formula, or a scenario's own by torch."
        ),
    ] = "rows",
    probes: Annotated[int, typer.Option(min=0, max=32, help="Nodes it may ask at each stop.")] = 3,
    fallback: Annotated[
        str, typer.Option(help="Policy that decides where this one was not trained.")
    ] = "minibatch",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard's curves.")
    ] = None,
) -> int:
    """Train a policy on simulated knowledge networks and keep the best one found."""
    if bool(preset) == (scenario is not None):
        raise typer.BadParameter("one of --preset and --scenario is wanted")
    try:
        import torch

        from aats_agents.prior import Prior
        from aats_agents.rl import report, settings
        from aats_agents.rl.train import train as run
    except ImportError as missing:
        raise _told(missing, "aats policy train") from missing
    from aats import plugins

    if fallback == "rl" or fallback not in plugins.names("aats.policies"):
        others = ", ".join(name for name in plugins.names("aats.policies") if name != "rl")
        raise ScenarioError("--fallback", fallback, f"one of {others} is wanted")
    torch.set_num_threads(1)  # the networks are small, and one thread gives one result
    config = settings.TrainingConfig(
        settings.Algorithm(algorithm.value), steps, envs, seed, Prior() if prior else None,
        probes=probes, fallback=fallback,
    )  # fmt: skip
    make_env, origin = _world(preset, scenario, probes, fidelity)
    with report.shown(steps) as told:
        policy = run(
            config, make_env, out, origin=origin, resume=resume, report=told,
            tensorboard=tensorboard,
        )  # fmt: skip
    for line in _described(policy):
        typer.echo(line)
    typer.echo(f"policy: {out}  (use it: aats launch PATH --policy {out})")
    return Exit.OK


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A policy's file.")],
) -> int:
    """Say what a policy's file is: where it comes from, where it may be used."""
    from aats_agents.policy_file import load

    for line in _described(load(file)):
        typer.echo(line)
    return Exit.OK


@app.command("eval", **LATER)
def evaluate(context: typer.Context) -> None:
    """Compare policies on scenarios and families of networks."""
    _hand_over(context, "aats_agents.evaluate", "eval_command")


@app.command(**LATER)
def calibrate(context: typer.Context) -> None:
    """Fit the laws of learning that environments go by to a scenario of your own."""
    _hand_over(context, "aats_agents.calibrate_command", "calibrate_command")


def _hand_over(context: typer.Context, module: str, name: str) -> None:
    try:
        function: Callable[..., int | None] = getattr(import_module(module), name)
    except ImportError as missing:
        raise _told(missing, context.command_path) from missing

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        raise typer.Exit(function(*args, **kwargs) or 0)

    command = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    command.command()(run)
    command(context.args, prog_name=context.command_path)


def _told(missing: ImportError, what: str) -> ImportError | MissingExtraError:
    """Return the error to raise where something could not be imported."""
    is_extra = (missing.name or "").partition(".")[0] in EXTRA
    return MissingExtraError(what, "rl") if is_extra else missing


def _world(
    preset: str, scenario: Path | None, probes: int, fidelity: str
) -> tuple[EnvFactory, Origin]:
    """Return what makes the environments, and what the policy's file says of them."""
    import blake3
    from stable_baselines3.common.vec_env import VecEnv

    from aats_agents.rl.train import Origin
    from aats_envs.sb3 import KnowledgeVecEnv

    command = shlex.join(["aats", *sys.argv[1:]])
    if scenario is not None:
        from aats.config import load_scenario
        from aats.config.write import digest

        loaded = load_scenario(scenario)
        origin = Origin(f"scenario:{loaded.name}", digest(loaded), command)
    else:
        from aats_envs.presets import preset as family

        said = repr(family(preset)).encode()
        origin = Origin(f"preset:{preset}", blake3.blake3(said).hexdigest(), command)

    def make(num_envs: int, seed: int) -> VecEnv:
        env: VecEnv = KnowledgeVecEnv(
            num_envs,
            preset=preset,
            scenario=scenario,
            seed=seed,
            probes=probes,
            fidelity=fidelity,
        )
        return env

    return make, origin


def _described(policy: PolicyFile) -> list[str]:
    """Return what there is to say of a policy, a line each."""
    made, scorer = policy.training, policy.weights
    size = sum(weights.size for weights in scorer.values())
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in made.metrics.items())
    guarded = ", ".join(
        f"{name} {low:.2f}..{high:.2f}"
        for name, (low, high) in policy.ranges.items()
        if name in _guarded()
    )
    prior = "none"
    if policy.prior is not None:
        weights = ((name, getattr(policy.prior, name)) for name in policy.prior.__slots__)
        prior = ", ".join(f"{name} {value:.3g}" for name, value in weights)
    trained = f"{made.algorithm}, {made.steps} decisions, seed {made.seed}, on {made.world}"
    lines = [
        f"digest    {policy.digest}",
        f"trained   {trained if made.algorithm else 'no: the heuristic as it is'}",
        f"found     {metrics or 'nothing was measured'}",
        f"network   {size} weights",
        f"prior     {prior}",
        f"probes    {policy.probes} at each stop at most",
        f"fallback  {policy.fallback}",
        f"range     {guarded or 'not known: it decides everywhere'}",
        f"world     {made.world_digest or '-'}",
        f"command   {made.command or '-'}",
    ]
    return lines


def _guarded() -> tuple[str, ...]:
    from aats_agents.policies.rl import GUARDED

    return GUARDED
