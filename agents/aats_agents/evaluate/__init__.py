"""Policies compared: in the learning environment, in the simulated world, with real training."""

from aats_agents.evaluate.command import eval_command

__all__ = ["eval_command"]
