"""What a scenario means: names that must exist, and requirements that can be met at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from aats.advert import Role
from aats.codec import names_destination
from aats.config.scenario import FaultConfig, FaultKind, PacketConfig, Scenario
from aats.errors import InfeasibleError, ScenarioError, nearest
from aats.ids import NODE_ID, NodeId
from aats.packet import Plugin, Target
from aats.plugins import names

VERIFIERS = ("mpvu", "any")


def check(scenario: Scenario, place: str) -> None:
    """Check everything that types and ranges do not show.

    Raises:
        ScenarioError: If a name refers to nothing, or settings contradict each other.
        InfeasibleError: If a packet's requirement cannot be met on this network, and why.
    """
    _check_name(scenario.name, f"{place}scenario.name")
    _check_nodes(scenario, place)
    check_data(scenario, place)
    for i, fault in enumerate(scenario.faults):
        _check_fault(scenario, fault, f"{place}faults[{i}]")
    last_port = scenario.live.base_port + 2 * len(scenario.nodes)
    if scenario.live.base_port and last_port > 65_535:
        allowed = f"{len(scenario.nodes)} nodes need ports up to {last_port}; 65535 is the last"
        raise ScenarioError(f"{place}live.base_port", scenario.live.base_port, allowed)
    check_packets(scenario, place)
    feasible(scenario)


def feasible(scenario: Scenario) -> None:
    """Check that every packet can reach what its requirement needs, within its budget.

    Raises:
        InfeasibleError: With one line a reason.
    """
    part_of = {node: part for part in scenario.network.components() for node in part}
    reasons = [
        f"packet {packet.name!r}: {reason}"
        for packet in scenario.packets
        for reason in _obstacles(scenario, packet, part_of)
    ]
    if reasons:
        raise InfeasibleError("cannot be met on this network: " + "; ".join(reasons))


def known_name(name: str, known: Iterable[str], place: str, what: str) -> None:
    """Check that a name is one of those known.

    Raises:
        ScenarioError: If it is not; lists them and hints at the nearest.
    """
    listed = list(known)
    if name not in listed:
        allowed = f"known {what} are {', '.join(listed) or 'none'}"
        raise ScenarioError(place, name, allowed, nearest(name, listed))


def _check_name(name: str, at: str) -> None:
    """Names of scenarios and packets become names of files."""
    if not NODE_ID.fullmatch(name):
        allowed = "1-64 letters, digits, '.', '_', '-', the first a letter or digit"
        raise ScenarioError(at, name, allowed)


def _check_nodes(scenario: Scenario, place: str) -> None:
    nodes, units = scenario.nodes, scenario.with_role(Role.MPVU)
    for name, node in nodes.items():
        at = f"{place}nodes.{name}"
        if (node.lat is None) != (node.lon is None):
            raise ScenarioError(at, node.lat or node.lon, "lat and lon come together")
        if node.delegate:
            known_name(node.delegate, nodes, f"{at}.delegate", "nodes")
            if Role.COMPUTE not in nodes[node.delegate].roles:
                allowed = "a delegate must have the role compute"
                raise ScenarioError(f"{at}.delegate", node.delegate, allowed)
        for unit in node.contributes_to:
            known_name(unit, units, f"{at}.contributes_to", "MPVUs")
        for skill in node.data:
            known_name(skill, scenario.data.skills, f"{at}.data", "skills")
            if Role.DATA not in node.roles:
                raise ScenarioError(f"{at}.data", skill, "needs the role data")


def check_data(scenario: Scenario, place: str) -> None:
    """Check the names in the data tables.

    Raises:
        ScenarioError: If one refers to nothing, or settings contradict each other.
    """
    from aats.learning.datasets import SOURCES
    from aats.learning.partition import PARTITIONERS
    from aats.learning.views import TRANSFORMS

    sources = {*SOURCES, *names("aats.data")}
    for skill, config in scenario.data.skills.items():
        at = f"{place}data.skills.{skill}"
        if names_destination(skill):
            raise ScenarioError(at, skill, "a packet has no destination, and no skill of that name")
        known_name(config.source.name, sorted(sources), f"{at}.source", "sources")
        known_name(config.partition.name, PARTITIONERS, f"{at}.partition", "partitioners")
        for node in config.nodes:
            known_name(node, scenario.with_role(Role.DATA), f"{at}.nodes", "data nodes")
        if config.views and (config.nodes or config.partition != Plugin("iid")):
            raise ScenarioError(f"{at}.views", [*config.views], "drop nodes and partition")
        for name, view in config.views.items():
            _check_name(name, f"{at}.views")
            seeing = scenario.with_role(Role.DATA)
            known_name(view.node, seeing, f"{at}.views.{name}.node", "data nodes")
            transform = view.transform.name
            known_name(transform, TRANSFORMS, f"{at}.views.{name}.transform", "transforms")


def _check_fault(scenario: Scenario, fault: FaultConfig, at: str) -> None:
    for node in (*fault.nodes, *(fault.link or ()), *([fault.node] if fault.node else [])):
        known_name(node, scenario.nodes, at, "nodes")
    if fault.link and fault.link[1] not in scenario.network.neighbours(fault.link[0]):
        raise ScenarioError(f"{at}.link", "-".join(fault.link), "must be a link of the topology")
    if fault.kind is FaultKind.PARTITION and not fault.nodes:
        raise ScenarioError(f"{at}.nodes", None, "a partition needs the nodes of one side")
    of_node = fault.kind in (FaultKind.CRASH, FaultKind.RESTART)
    if of_node and not (fault.node or fault.on):
        raise ScenarioError(f"{at}.node", None, f"a {fault.kind} needs a node or an event (on)")


def check_packets(scenario: Scenario, place: str) -> None:
    """Check the names in the packets, which must be there.

    Raises:
        ScenarioError: If one refers to nothing, or a target is out of range.
    """
    if not scenario.packets:
        raise ScenarioError(f"{place}packets", None, "at least one packet is wanted")
    from aats.learning.method import known as methods

    seen = set[str]()
    for i, packet in enumerate(scenario.packets):
        at = f"{place}packets[{i}]"
        _check_name(packet.name, f"{at}.name")
        if packet.name in seen:
            raise ScenarioError(f"{at}.name", packet.name, "each name may stand once")
        seen.add(packet.name)
        known_name(packet.owner, scenario.nodes, f"{at}.owner", "nodes")
        known_name(packet.kind, names("aats.agents"), f"{at}.kind", "agents")
        known_name(packet.policy.name, names("aats.policies"), f"{at}.policy", "policies")
        if packet.rendezvous:
            known = names("aats.rendezvous")
            known_name(packet.rendezvous.name, known, f"{at}.rendezvous", "rendezvous")
        known_name(packet.method.name, methods(), f"{at}.method", "methods")
        known_name(packet.model.name, (*names("aats.models"), "surrogate"), f"{at}.model", "models")
        if not packet.requirement:
            raise ScenarioError(f"{at}.requirement", None, "at least one target is wanted")
        for k, target in enumerate(packet.requirement):
            _check_target(target, f"{at}.requirement[{k}]")


def _check_target(target: Target, at: str) -> None:
    from aats.learning.evaluate import METRICS

    known_name(target.metric, [m for m in METRICS if m != "loss"], f"{at}.metric", "metrics")
    known_name(target.verifier, VERIFIERS, f"{at}.verifier", "verifiers")
    if not 0 < target.value <= 1:
        raise ScenarioError(f"{at}.value", target.value, "must be above 0 and at most 1")


Parts = Mapping[NodeId, frozenset[NodeId]]
"""Which nodes a node can reach."""


def _obstacles(scenario: Scenario, packet: PacketConfig, part_of: Parts) -> Iterable[str]:
    """Yield why a packet's requirement cannot be met, one reason a target at most."""
    hops = _hops_from(scenario, packet.owner)
    if packet.rendezvous and packet.rendezvous.name == "assemble":
        known = sorted({h for t in packet.requirement for h in scenario.holders(t.skill)})
        if known and not any(scenario.nodes[node].streams for node in known):
            yield (f"no node with its data works along with packets elsewhere: set "
                   f"`streams = true` for those that may ({_few(known)})")  # fmt: skip
    for target in packet.requirement:
        skill = target.skill
        if skill not in scenario.data.skills or not (holders := scenario.holders(skill)):
            yield f"nobody has data for skill {skill!r}{nearest(skill, scenario.data.skills)}"
            continue
        workers = [stop for stop in (_worked_at(scenario, h, part_of) for h in holders) if stop]
        if not workers:
            yield f"no node with data for {skill!r} ({_few(holders)}) has compute or a delegate"
        elif reason := _out_of_reach(hops, workers, packet):
            yield f"the data for {skill!r} at {_few(workers)} {reason}"
        elif target.verifier == "mpvu":
            yield from _unverifiable(scenario, packet, skill, hops, part_of)


def _worked_at(scenario: Scenario, holder: NodeId, part_of: Parts) -> NodeId | None:
    """Return the node at which a holder's data can be trained on, if any."""
    node = scenario.nodes[holder]
    if node.delegate:
        return node.delegate if node.delegate in part_of[holder] else None
    return holder if Role.COMPUTE in node.roles and node.samples_per_s > 0 else None


def _unverifiable(
    scenario: Scenario,
    packet: PacketConfig,
    skill: str,
    hops: dict[NodeId, int],
    part_of: Parts,
) -> Iterable[str]:
    units = scenario.with_role(Role.MPVU)
    needed = scenario.mpvu.min_contributors
    if not units:
        yield f"skill {skill!r} must be verified by an MPVU, and no node has that role"
        return
    able = [unit for unit in units if _contributors(scenario, unit, skill, part_of) >= needed]
    if not able:
        yield (
            f"skill {skill!r} must be verified by an MPVU, and none of {_few(units)} gets test "
            f"samples from {needed} node(s) that hold it (contributes_to)"
        )
    elif reason := _out_of_reach(hops, able, packet):
        yield f"the MPVU for {skill!r} at {_few(able)} {reason}"


def _contributors(scenario: Scenario, unit: NodeId, skill: str, part_of: Parts) -> int:
    return sum(
        unit in scenario.nodes[holder].contributes_to and holder in part_of[unit]
        for holder in scenario.holders(skill)
    )


def _out_of_reach(hops: dict[NodeId, int], stops: list[NodeId], packet: PacketConfig) -> str:
    """Return why none of `stops` can be visited, or "" if one can."""
    nearest_hops = min((hops[stop] for stop in stops if stop in hops), default=None)
    if nearest_hops is None:
        return f"cannot be reached from owner {packet.owner}: no path"
    if nearest_hops > packet.budget.hops:
        return (
            f"is {nearest_hops} hops from owner {packet.owner}, the budget {packet.budget.hops:g}"
        )
    return ""


def _hops_from(scenario: Scenario, start: NodeId) -> dict[NodeId, int]:
    """Return the links on the shortest path from `start` to every node it can reach."""
    hops, queue = {start: 0}, deque([start])
    while queue:
        here = queue.popleft()
        for peer in scenario.network.neighbours(here):
            if peer not in hops:
                hops[peer] = hops[here] + 1
                queue.append(peer)
    return hops


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")
