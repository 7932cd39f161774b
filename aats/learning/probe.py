"""What a visit would bring, measured before it: a few trial steps on one minibatch.

Only scalars leave, clipped and, if the node wants it, noised. Judged on the packet's own
trusted samples, because a minibatch's loss alone leads into bad data (it is highest there).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from aats.errors import ModelError
from aats.learning.backend import backend_of
from aats.learning.method import seed_of
from aats.learning.weights import reference_of
from aats.messages import ProbeAsk, ProbeScores
from aats.packet import Architecture
from aats.payload import MODEL, REFERENCE, Manifest, Payload, layout
from aats.roles.data import Batch

MAX_GAIN = 5.0
MAX_LOSS = 10.0
MAX_NORM = 100.0
"""Ranges that scores are clipped to: gain -5..5, alignment -1..1, loss 0..10, norm 0..100."""
DIGITS = 6
"""Decimals that leave."""
TRUSTED_ROWS = 64
"""Rows of the reference sets that a probe is judged on, the same for all candidates of a hop:
a comparison needs fewer than an estimate."""
TRIAL_STEPS = 5
TRIAL_LR = 0.1
"""Steps on the minibatch, and their learning rate where the asker names none."""


def make_probe_payload(payload: Payload) -> tuple[Manifest, bytes]:
    """Return the model and reference tensors of a payload, packed, as a probe sends them.

    Digests are kept.
    """
    chosen = [t for t in payload.manifest.tensors if t.name.startswith((MODEL, REFERENCE))]
    plan = layout({t.name: (t.dtype, t.shape) for t in chosen})
    out = bytearray(plan.total)
    specs = []
    for old, new in zip(chosen, plan.tensors, strict=True):
        out[new.offset : new.offset + new.size] = payload.bytes_of(old)
        specs.append(type(new)(new.name, new.dtype, new.shape, new.offset, new.size, old.digest))
    return Manifest(tuple(specs), plan.total), bytes(out)


def probe_payload(ask: ProbeAsk, *, limit_bytes: int) -> Payload:
    """Return the tensors that came with a probe, checked.

    Raises:
        WireError: If the manifest is wrong or does not fit the bytes.
        ModelError: If no model came.
    """
    ask.manifest.check(limit_bytes=limit_bytes)
    if len(ask.tensors) != ask.manifest.total or not ask.manifest.tensors:
        raise ModelError(
            f"probe: {len(ask.tensors)} bytes of tensors, the manifest says {ask.manifest.total}"
        )
    return Payload(ask.manifest, memoryview(ask.tensors))


def probe(
    architecture: Architecture,
    payload: Payload,
    batch: Mapping[str, Batch],
    *,
    lr: float = 0.0,
    seed: int = 0,
    noise: float = 0.0,
    noise_seed: int = 0,
) -> ProbeScores:
    """Score a model on a minibatch of each skill.

    Args:
        architecture: Of the model.
        payload: Its tensors and, if they came along, the reference set's.
        batch: Rows and labels by skill, at least one row.
        lr: Of the trial steps; 0 for the default.
        seed: Of the computation.
        noise: Standard deviation of Gaussian noise, as a share of each score's range.
        noise_seed: Of the noise; the node's secret, so that the asker cannot take it off.

    Raises:
        ModelError: If the model or the rows do not fit.
    """
    backend = backend_of(architecture)
    reference = _some({s: b for s, b in reference_of(payload).items() if s in batch}, seed)
    with backend.scope(seed_of("probe", seed)):
        # Trial steps work on a copy, so that one payload can be probed again and again.
        frozen = Payload(payload.manifest, payload.arena.toreadonly())
        model = backend.load(architecture, frozen)
        for skill, (x, y) in (*batch.items(), *reference.items()):
            width = backend.log_probabilities(model, x[:1], skill).shape[1]
            if y.max() >= width:
                raise ModelError(f"skill {skill!r}: label {y.max()}, the model has {width} classes")
        trial = backend.trial(model, batch, reference, lr)
    rng = np.random.default_rng(noise_seed)

    def clipped(value: float, low: float, high: float) -> float:
        # A model that blows up on these rows is as bad as a score can say.
        worst = low if low < 0 else high
        clean = value if math.isfinite(value) else worst
        noised = min(high, max(low, clean)) + noise * (high - low) * float(rng.standard_normal())
        return round(min(high, max(low, noised)), DIGITS)

    return ProbeScores(
        gain=clipped(trial.gain, -MAX_GAIN, MAX_GAIN) if reference else 0.0,
        alignment=clipped(trial.alignment, -1.0, 1.0) if reference else 0.0,
        loss=clipped(trial.loss, 0.0, MAX_LOSS),
        gradient_norm=clipped(trial.gradient_norm, 0.0, MAX_NORM),
        samples=sum(len(y) for _, y in batch.values()),
    )


def _some(sets: Mapping[str, Batch], seed: int) -> dict[str, Batch]:
    """Return at most `TRUSTED_ROWS` rows in all, drawn alike from every skill's set."""
    share = TRUSTED_ROWS // max(1, len(sets))
    rng = np.random.default_rng(seed)
    chosen = {s: np.sort(rng.permutation(len(y))[:share]) for s, (_, y) in sets.items()}
    return {s: (x[chosen[s]], y[chosen[s]]) for s, (x, y) in sets.items()}
