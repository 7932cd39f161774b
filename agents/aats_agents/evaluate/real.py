"""Policies in the simulated world: the nodes' own code, real training, a virtual clock."""

from __future__ import annotations

import time
from dataclasses import replace

from aats.compose import compose
from aats.oam.view import RunView
from aats.packet import Plugin
from aats.simulate import simulate
from aats_agents.evaluate.case import Case, Journey
from aats_agents.evaluate.specs import ORACLE, Spec, carried
from aats_agents.planner import LearnerOf
from aats_envs.from_scenario import from_scenario
from aats_envs.learner import Surrogate
from aats_envs.to_scenario import advertised
from aats_envs.torch_learner import TorchLearner

LIMIT = 3000.0
"""Usual stops after which a packet that is not home is given up."""


def travel(spec: Spec, case: Case) -> Journey:
    """Return what a packet with this policy comes to in the simulated world.

    Args:
        spec: The policy.
        case: One with a scenario.
    """
    import torch

    torch.set_num_threads(1)
    since = time.perf_counter()
    return run(spec, case, plugin_of(spec, case), since)


def plugin_of(spec: Spec, case: Case) -> Plugin:
    """Return what the packet carries; what the oracle knows comes of training in earnest."""
    assert case.scenario is not None
    learner: LearnerOf = Surrogate
    if spec.name == ORACLE:
        ((network, task),) = from_scenario(case.scenario)
        learner, case = TorchLearner.of(task), replace(case, network=network)
    return carried(spec, case, learner)


def run(spec: Spec, case: Case, plugin: Plugin, since: float) -> Journey:
    """Return the journey of a packet that carries this policy."""
    assert case.scenario is not None
    unit_s = case.unit_s
    scenario = case.scenario
    (packet,) = scenario.packets
    limit_s = min(scenario.scenario.limit_s, LIMIT * unit_s)
    scenario = replace(
        scenario,
        packets=(replace(packet, policy=plugin),),
        scenario=replace(scenario.scenario, limit_s=limit_s),
    )
    plan = compose(scenario)
    view = RunView()
    simulate(scenario, advertised(case.network, plan) if case.drawn else plan, view.apply)
    return told(spec.name, case, view, unit_s, limit_s, time.perf_counter() - since)


def told(
    policy: str, case: Case, view: RunView, unit_s: float, limit_s: float, wall_s: float
) -> Journey:
    """Return a run's only packet in figures."""
    (packet,) = view.packets.values()
    sites = case.network.layout.sites
    bad = {str(site.name) for site, is_bad in zip(sites, case.bad, strict=True) if is_bad}
    visits = [node for _, node, what in packet.stops if what in ("train", "rolled-back")]
    home = packet.status == "home"
    return Journey(
        policy, case.family, case.key,
        seconds=packet.seconds if home else limit_s,
        unit_s=unit_s,
        hops=packet.hops if home else packet.hop,
        bytes=packet.bytes,
        success=home and packet.met,
        bad_visits=sum(node in bad for node in visits) / max(1, len(visits)),
        wall_s=wall_s,
        network=case.network.name,
    )  # fmt: skip
