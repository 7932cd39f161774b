"""Installed routing policies and agents, as a node core wants them."""

from __future__ import annotations

from aats import plugins
from aats.errors import LocalError
from aats.packet import Plugin
from aats.routing.agent import Agent
from aats.routing.policy import RoutePolicy


def load_policy(plugin: Plugin) -> RoutePolicy:
    """Return the routing policy that a packet names, with its parameters.

    Raises:
        UnknownPluginError: If no such policy is installed.
        LocalError: If it does not take these parameters.
    """
    make = plugins.load("aats.policies", plugin.name)
    try:
        policy: RoutePolicy = make(**plugin.params)
    except TypeError as error:
        raise LocalError(f"policy {plugin.name!r}: {error}") from error
    return policy


def load_agent(kind: str) -> Agent:
    """Return the agent for a kind of packet.

    Raises:
        UnknownPluginError: If none is installed.
    """
    agent: Agent = plugins.load("aats.agents", kind)()
    return agent
