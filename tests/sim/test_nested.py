"""A packet that visits large and small nodes in turn: what small ones do to the whole model.

A visit of a slice is as noisy as any: of 96 on even data at a rate of 0.1 the accuracy of the whole
model fell by more than a point after 30 (worst 6.0), of as many visits that trained all of it after
23 (worst 7.0). What a packet cannot afford to lose, the guard undoes.
"""

from __future__ import annotations

import itertools
from statistics import fmean
from typing import Any

import pytest

from aats.compose import compose
from aats.config.load import build
from aats.lineage import RecordKind
from aats.simulate import simulate

NAMES = tuple(f"n{i}" for i in range(8))
SMALL = NAMES[1::2]
HIDDEN = [64, 64, 64]
WIDTHS = (64, *HIDDEN, 10)
MODEL_MB = 4 * sum((a + 1) * b for a, b in itertools.pairwise(WIDTHS)) / 1e6


def journey(memory_mb: float = 0.0, **method: Any) -> tuple[float, list[float], int]:
    """Return the last accuracy, its change at each visit to a node of `SMALL`, visits undone."""
    edges = [[a, b] for i, a in enumerate((*NAMES, "owner", "judge")) for b in NAMES[:i]]
    small = {"memory_mb": memory_mb} if memory_mb else {}
    made = build({
        "scenario": {"seed": 0, "limit_s": 1e6},
        "topology": {"edges": [*edges, ["owner", "judge"]]},
        "nodes": {
            "owner": {"roles": ["owner"]}, "judge": {"roles": ["mpvu"]},
            **{n: {"contributes_to": ["judge"], **(small if n in SMALL else {})} for n in NAMES},
        },
        "data": {"skills": {"digits": {
            "source": "digits", "held_out": 0.05, "reference": 300, "test": 0.0,
        }}},
        "packets": [{
            "name": "reader", "owner": "owner", "policy": "cycle", "budget": {"hops": 1000},
            "requirement": [{"skill": "digits", "value": 1.0}],
            "model": {"name": "mlp", "features": 64, "hidden": HIDDEN, "classes": 10},
            "method": {"name": "nested", "lr": 0.1, "decay": 0.95, "visits": 64, **method},
        }],
    }, name="nested")  # fmt: skip
    ((header, _),) = simulate(made, compose(made), lambda event: None).values()
    kinds = RecordKind.TRAIN, RecordKind.ROLLED_BACK
    visits = [r for r in header.chain if r.kind in kinds]
    found = [r.metrics["digits.accuracy.reference"] for r in visits]
    changes = [
        after - before
        for record, before, after in zip(visits[1:], found, found[1:], strict=False)
        if record.node in SMALL
    ]
    return found[-1], changes, sum(r.kind is RecordKind.ROLLED_BACK for r in visits)


@pytest.mark.slow
def test_visits_of_slices_cost_the_whole_model_no_more_than_visits_of_all_of_it() -> None:
    accuracy, changes, _ = journey(0.55 * 3 * MODEL_MB, rollback_drop=1.0)
    whole, control, _ = journey(rollback_drop=1.0)
    assert len(changes) == len(control) == 32
    assert fmean(changes) > -0.005
    assert min(changes) > min(control) - 0.03
    assert accuracy > whole - 0.05


@pytest.mark.slow
def test_with_the_guard_at_a_point_no_visit_of_a_slice_costs_more() -> None:
    accuracy, changes, undone = journey(0.55 * 3 * MODEL_MB, rollback_drop=0.01)
    assert min(changes) >= -0.01 - 1e-9
    assert undone > 0
    assert accuracy > 0.85
