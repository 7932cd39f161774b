"""A drawn network as a scenario: the same nodes, links, data and wish, in any world.

Rows are real ones of the task's data. What a scenario cannot say is told by `advertised` for the
simulated world: adverts that are stale or boast. Beyond that remain: an advertised speed that
differs from the true one, and a queue, for which the node is as much slower.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aats.compose import Plan
from aats.config import Scenario, build
from aats.errors import ScenarioError, nearest
from aats.ids import NodeId
from aats.packet import POLICY, Plugin
from aats_envs.network import KnowledgeNetwork

HELD_OUT = 0.25
"""Share of its rows that a node keeps for judging a visit and for test sets."""
TEST = 0.05
"""Share of the rows nobody gets."""
MIN_CONTRIBUTORS = 3
FLOAT_BYTES = 4
LABEL_BYTES = 8
LIMIT_S = 1e7
SETTLED_S = 2.0
"""When the packet sets out: the nodes know each other by then."""
WIDTHS = range(4, 1 << 18)
TOLERANCE = 0.1
"""By how much a packet's size may differ from the network's."""


@dataclass(frozen=True, slots=True)
class RealData:
    """Data, and the model that is trained on them."""

    skills: tuple[str, ...]
    sources: tuple[str, ...]
    features: tuple[int, ...]
    classes: int
    model: Callable[[int, int], dict[str, Any]]
    """Of the number of skills and a width."""
    weights: Callable[[int, int], int]
    """Of the same."""
    method: Mapping[str, Any]
    """Besides `epochs`."""


def _mlp(skills: int, width: int) -> dict[str, Any]:
    return {"name": "mlp", "features": 64, "hidden": [width], "classes": 10}


def _mlp_weights(skills: int, width: int) -> int:
    return 65 * width + 10 * (width + 1)


_FEATURES = {"oncology": 30, "diabetes": 10}


def _departments(skills: int, width: int) -> dict[str, Any]:
    features = dict(list(_FEATURES.items())[:skills])
    return {"name": "departments", "features": features, "classes": dict.fromkeys(features, 2),
            "width": width}  # fmt: skip


def _departments_weights(skills: int, width: int) -> int:
    features = list(_FEATURES.values())[:skills]
    return sum((f + 1) * width + 2 * (width + 1) for f in features) + width * (width + 1)


DATA = {
    "digits": RealData(
        ("digits",), ("digits",), (64,), 10, _mlp, _mlp_weights,
        {"batch_size": 8, "lr": 0.1, "decay": 1.0},
    ),
    "departments": RealData(
        tuple(_FEATURES), ("breast-cancer", "diabetes"), tuple(_FEATURES.values()), 2,
        _departments, _departments_weights,
        {"batch_size": 8, "lr": 0.1, "decay": 0.97, "average_last": 4},
    ),
}  # fmt: skip
"""By name: what `to_scenario` can make of a network."""


def to_scenario(
    network: KnowledgeNetwork,
    task: str = "digits",
    seed: int = 0,
    *,
    policy: Plugin = POLICY,
) -> Scenario:
    """Return a scenario of a drawn network, with its packet.

    The model is as wide as makes the packet the network's size.

    Args:
        network: As `aats_envs.draw.draw` returns it.
        task: A key of `DATA`: what is learnt.
        seed: Of the deal, the model and the policy.
        policy: How the packet picks its next stop.

    Raises:
        ScenarioError: If the task is unknown, has other skills or classes than the network, or
            no model of it makes a packet of that size: draw from a family `with_data` of the task.
    """
    if task not in DATA:
        raise ScenarioError("task", task, f"known are {', '.join(DATA)}", nearest(task, DATA))
    data = DATA[task]
    t = len(network.classes)
    if t > len(data.skills) or (network.classes != data.classes).any():
        allowed = f"{task} has up to {len(data.skills)} skills of {data.classes} classes"
        raise ScenarioError(f"network {network.name}", network.classes.tolist(), allowed)
    names = [site.name for site in network.layout.sites]
    good = [i for i in np.flatnonzero(network.has_data) if not network.wrong[i].any()]
    givers = [[i for i in good if network.clean[i, k].any()] for k in range(t)]
    units = [names[i] for i in np.flatnonzero(network.is_mpvu)]
    edges = [
        [e.a, e.b, {"bandwidth_mbps": e.bandwidth_mbps, "latency_ms": e.latency_ms,
                    "loss": e.loss or 0.0}]
        for e in network.layout.edges
    ]  # fmt: skip
    return build({
        "scenario": {
            "name": f"{task}-{network.name}-{seed}", "seed": seed, "limit_s": LIMIT_S,
            "description": "A network drawn from a family, with real data",
        },
        "topology": {"names": names, "edges": edges},
        "nodes": {
            name: _node(network, i, data, units if i in good else [])
            for i, name in enumerate(names)
        },
        "data": {"skills": {
            skill: {
                "source": source, "held_out": HELD_OUT, "test": TEST,
                "reference": int(network.reference[k]),
                "nodes": [names[i] for i in range(len(names)) if _rows(network, i, k).sum()],
            }
            for k, (skill, source) in enumerate(zip(data.skills[:t], data.sources, strict=False))
        }},
        "mpvu": {
            "min_contributors": min(MIN_CONTRIBUTORS, *(len(found) for found in givers)),
            "contribution": max(
                math.ceil(n / len(found)) for n, found in zip(network.test, givers, strict=True)
            ),
        },
        "packets": [_packet(network, data, names[network.home], policy)],
        "faults": [
            {"kind": "crash", "node": names[i], "after_s": SETTLED_S + start, "for_s": end - start}
            for i, (start, end) in enumerate(network.down.tolist()) if start < math.inf
        ],
    })  # fmt: skip


def advertised(network: KnowledgeNetwork, plan: Plan) -> Plan:
    """Return the plan of a network's scenario with the rows its nodes advertise, true or not.

    Args:
        network: What the scenario was made of.
        plan: What `aats.compose.compose` made of the scenario.
    """
    nodes = {}
    for i, (name, node) in enumerate(plan.nodes.items()):
        told = []
        for item in node.core.data:
            k = list(plan.test).index(item.skill)
            labels = tuple(np.rint(network.shown[i, k]).astype(int).tolist())
            told.append(replace(
                item,
                samples=max(1, round(network.shown_samples[i, k])),
                labels=labels if network.shows_labels[i, k] else (),
            ))  # fmt: skip
        nodes[name] = replace(node, core=replace(node.core, data=tuple(told)))
    return replace(plan, nodes=nodes)


def _rows(network: KnowledgeNetwork, node: int, skill: int) -> Any:
    """Return the training rows of a node by true class [C]."""
    clean, wrong = network.clean[node, skill], network.wrong[node, skill]
    total = clean.sum() + wrong.sum()
    mix = clean if clean.sum() else np.ones_like(clean)
    exact = total * mix / mix.sum()
    rows = np.floor(exact)
    rows[np.argsort(rows - exact, kind="stable")[: round(total - rows.sum())]] += 1
    return rows.astype(int)


def _node(network: KnowledgeNetwork, i: int, data: RealData, units: list[NodeId]) -> dict[str, Any]:
    x, y = network.position[i].tolist()
    node: dict[str, Any] = {
        "position": [x, y],
        "samples_per_s": float(network.samples_per_s[i] / (1 + network.queue[i])),
        "joules_per_sample": float(network.joules_per_sample[i]),
        "roles": ["transit"],
    }
    if i == network.home:
        node["roles"] = ["owner"]
    elif network.is_mpvu[i]:
        node["roles"] = ["mpvu"]
    elif network.has_data[i]:
        held = {
            data.skills[k]: _held(network, i, k)
            for k in range(len(network.classes)) if _rows(network, i, k).sum()
        }  # fmt: skip
        node |= {
            "roles": ["data", "compute"],
            "probe": "score" if network.probe_allowed[i] else "none",
            "show_labels": bool(network.shows_labels[i].all()),
            "contributes_to": units,
            "data": held,
        }
    return node


def _held(network: KnowledgeNetwork, i: int, k: int) -> dict[str, Any]:
    train = _rows(network, i, k)
    # Of each class `held_out` is set aside, rounded, and never the last row.
    whole = train + np.rint(train * HELD_OUT / (1 - HELD_OUT)).astype(int)
    wrong = float(network.wrong[i, k].sum())
    return {
        "samples": int(whole.sum()),
        "mix": [float(rows) for rows in whole],
        "wrong_labels": wrong / float(train.sum()),
        "quality": float(network.quality[i]),
        "freshness_s": float(network.freshness_s[i]),
    }


def _packet(
    network: KnowledgeNetwork, data: RealData, owner: NodeId, policy: Plugin
) -> dict[str, Any]:
    t = len(network.classes)
    trusted = sum(
        int(rows) * (features * FLOAT_BYTES + LABEL_BYTES)
        for rows, features in zip(network.reference, data.features, strict=False)
    )
    # With the weights of the last visits, if those travel along.
    copies = 1 + int(data.method.get("average_last", 0))
    wanted = (network.size_bytes - trusted) / copies / FLOAT_BYTES
    width = _width(lambda w: data.weights(t, w), wanted)
    size = trusted + copies * FLOAT_BYTES * data.weights(t, width)
    if abs(size / network.size_bytes - 1) > TOLERANCE:
        allowed = f"with these trusted rows and width {width} the packet has {size} bytes"
        raise ScenarioError(f"network {network.name}", network.size_bytes, allowed)
    hops, seconds, carried, joules = network.budget.tolist()
    return {
        "name": "packet",
        "owner": owner,
        "after_s": SETTLED_S,
        "requirement": [
            {"skill": skill, "value": float(value)}
            for skill, value in zip(data.skills, network.target, strict=False)
        ],
        "model": data.model(t, width),
        "method": {"name": "sequential", "epochs": network.epochs, **data.method},
        "policy": {"name": policy.name, **policy.params},
        "budget": {"hops": hops, "seconds": seconds, "bytes": carried, "joules": joules},
    }


def _width(weights: Callable[[int], int], wanted: float) -> int:
    """Return the width whose number of weights, which grows with it, is nearest."""
    at = bisect_left(WIDTHS, wanted, key=weights)
    near = WIDTHS[max(0, at - 1) : at + 1]
    return min(near, key=lambda width: abs(weights(width) - wanted))
