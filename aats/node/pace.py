"""How fast a node works: the work behind a task's result, and the seconds and joules it takes.

The simulated world charges them; a live node on a faster machine can imitate them.
"""

from __future__ import annotations

from dataclasses import dataclass

from aats.advert import ComputeAdvert
from aats.learning.probe import TRUSTED_ROWS
from aats.node.tasks import (
    MergeTask,
    ProbeResult,
    ProbeTask,
    Result,
    Spending,
    Task,
    VerifyResult,
    VisitResult,
    VisitTask,
)
from aats.payload import REFERENCE, Manifest

FORWARD_SHARE = 1 / 3
"""Cost of scoring a sample relative to training on it: a forward pass without the backward."""
PROBE_SHARE = 5.0
"""Cost of probing a sample relative to training on it: five trial steps."""
TRUST_SHARE = 1 + FORWARD_SHARE
"""Cost of a trusted sample in a probe: its gradient before the steps, its loss after them."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a node works."""

    samples_per_s: float = 1000.0
    joules_per_sample: float = 0.0
    overhead_s: float = 0.01
    """Of each task."""

    @classmethod
    def of(cls, compute: ComputeAdvert) -> Pace:
        """Return the pace of a node that advertises this; one that offers none has some."""
        return cls(compute.samples_per_s or 1.0, compute.joules_per_sample)

    def spending(self, samples: float) -> Spending:
        """Return what training on so many samples costs."""
        return Spending(
            self.overhead_s + samples / self.samples_per_s, samples * self.joules_per_sample
        )


def effort(task: Task, result: Result) -> float:
    """Return the work behind a result, in samples trained on."""
    match task, result:
        case VisitTask(header=header), VisitResult():
            # The model is judged on what the packet trusts before and after.
            return result.samples + 2 * FORWARD_SHARE * trusted_rows(header.manifest)
        case MergeTask(header=header), _:
            return 2 * FORWARD_SHARE * trusted_rows(header.manifest)
        case _, VerifyResult():
            return FORWARD_SHARE * sum(e.n for e in result.estimates)
        case ProbeTask(ask=ask, header=header), ProbeResult(reply=reply) if reply.scores:
            rows = trusted_rows(header.manifest if header else ask.manifest)
            return PROBE_SHARE * reply.scores.samples + TRUST_SHARE * min(rows, TRUSTED_ROWS)
        case _:
            return 0.0


def trusted_rows(manifest: Manifest) -> int:
    """Return the samples of all reference sets in a payload."""
    return sum(
        t.shape[0]
        for t in manifest.tensors
        if t.name.startswith(REFERENCE) and t.name.endswith(".y")
    )
