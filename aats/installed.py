"""Installed routing policies, rendezvous and agents, as a node core wants them."""

from __future__ import annotations

from aats import plugins
from aats.packet import Plugin
from aats.routing.agent import Agent
from aats.routing.build import build
from aats.routing.policy import RoutePolicy
from aats.routing.rendezvous import Rendezvous


def load_policy(plugin: Plugin) -> RoutePolicy:
    """Return the routing policy that a packet names, with its parameters.

    Raises:
        UnknownPluginError: If no such policy is installed.
        LocalError: If it does not take these parameters.
    """
    policy: RoutePolicy = build(plugins.load("aats.policies", plugin.name), plugin.params)
    return policy


def load_rendezvous(plugin: Plugin) -> Rendezvous:
    """Return the rendezvous that a packet names, with its parameters.

    Raises:
        UnknownPluginError: If no such rendezvous is installed.
        LocalError: If it does not take these parameters.
    """
    found: Rendezvous = build(plugins.load("aats.rendezvous", plugin.name), plugin.params)
    return found


def load_agent(kind: str) -> Agent:
    """Return the agent for a kind of packet.

    Raises:
        UnknownPluginError: If none is installed.
    """
    agent: Agent = plugins.load("aats.agents", kind)()
    return agent
