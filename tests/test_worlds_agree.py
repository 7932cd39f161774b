"""The live and the simulated world tell the same story of one scenario."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aats.compose import Plan, compose
from aats.config.load import load_scenario
from aats.oam.progress import Quiet
from aats.oam.view import RunView
from aats.packet import Header
from aats.run import Delivered, Watch, run_live, run_simulated

RING = Path(__file__).parents[1] / "examples" / "ring"
SETTINGS = (
    'packets.*.policy={ name = "cycle", order = "fixed" }',
    "packets.*.requirement=[{ skill = 'tumours', value = 0.93 }]",
    "live.shaping=false",
)


def the_only(delivered: Delivered) -> Header:
    """Return the header of the one packet that came home."""
    ((header, payload),) = delivered.values()
    payload.verify()
    return header


def watch() -> Watch:
    """Return a watch that shows nothing."""
    view = RunView()
    return Watch(view, Quiet(view, None))  # type: ignore[arg-type]


def test_a_deterministic_policy_gives_one_route_one_model_and_one_ledger(tmp_path: Path) -> None:
    scenario = load_scenario(RING, SETTINGS)
    plan: Plan = compose(scenario)
    assert len(plan.nodes) == 8
    seen, met = watch(), watch()
    simulated = the_only(run_simulated(scenario, None, seen))
    live = the_only(asyncio.run(run_live(scenario, tmp_path / "live", met)))
    (a,), (b,) = seen.view.packets.values(), met.view.packets.values()
    assert a.route == b.route
    assert len(a.stops) >= 4, "a trip worth comparing"
    assert [(r.kind, r.node, r.hop) for r in simulated.chain] == [
        (r.kind, r.node, r.hop) for r in live.chain
    ]
    assert [r.version for r in simulated.chain] == [r.version for r in live.chain]
    # An id covers all but the attestation: time, cost and the keys, which are each world's own.
    assert [r.id for r in simulated.chain] == [r.id for r in live.chain]
    assert {r.signature for r in simulated.chain}.isdisjoint(r.signature for r in live.chain)
