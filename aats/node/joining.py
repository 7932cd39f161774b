"""What a header is once children are back: their costs, journals, counts and histories in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import isfinite

from aats.packet import JOURNAL_LENGTH, Cost, Header, VisitEntry

ADDED = "visits", "diverged"
"""Numbers of `Header.trained` that are counts: what each child added, adds up."""
MAX_ADDED = 1e14
"""Of anything that is counted, by one child: sums stay what a header may say."""
MAX_CLASSES = 4096
"""Of which a child's counts are taken, unless the trunk had more: a header must stay small."""
MAX_NUMBERS = 128
"""Of `Header.trained`: no node takes a packet with many more."""


def joined(trunk: Header, back: Sequence[Header], used: Sequence[Header], lost: Cost) -> Header:
    """Return the trunk's header with what its children did, on a hop after all of theirs.

    Args:
        trunk: As it forked.
        back: Children that are back: the packet pays for all of them, and knows where they were.
        used: Those of them whose models were merged, whose training counts.
        lost: What is known to have been spent on children that are not back.
    """
    assert trunk.forked is not None, "children come of a fork"
    since = trunk.forked.hop
    new = [entry for child in back for entry in child.journal if entry.hop >= since]
    header = replace(
        trunk,
        hop=max(header.hop for header in (trunk, *back)) + 1,
        spent=_spent(trunk, back) + lost,
        probe_bytes=trunk.probe_bytes
        + sum(_added(c.probe_bytes, trunk.probe_bytes) for c in back),
        journal=(*trunk.journal, *new)[-JOURNAL_LENGTH:],
        chain=trunk.joined_chain(*used),
        awaited=(), merge_by=0.0, quorum=0.0,
    )  # fmt: skip
    for child in back:
        header = header.with_probes(tuple(p for p in child.probed if p.hop >= since))
    if not used:
        return header
    return replace(header, labels_used=_labels(trunk, used), trained=_trained(trunk, used, new))


def _spent(trunk: Header, back: Iterable[Header]) -> Cost:
    """Return all that was spent; the seconds are the trunk's own, and counted where it waits."""
    spent = trunk.spent
    for child in back:
        hops = _added(child.spent.hops, trunk.spent.hops)
        moved = _added(child.spent.bytes, trunk.spent.bytes)
        joules = _added(child.spent.joules, trunk.spent.joules)
        spent = spent + Cost(hops, 0.0, moved, joules)
    return spent


def _added(now: float, before: float) -> float:
    """Return what a child added, as it says: never less than nothing, nor what none could."""
    return min(max(0.0, now - before), MAX_ADDED)


def _labels(trunk: Header, used: Iterable[Header]) -> dict[str, list[float]]:
    found = {skill: list(counts) for skill, counts in trunk.labels_used.items()}
    wanted = {target.skill for target in trunk.mandate.requirement}
    for child in used:
        for skill, counts in child.labels_used.items():
            if skill not in wanted:
                continue
            before = trunk.labels_used.get(skill, [])
            counts = counts[: max(MAX_CLASSES, len(before))]
            total = found.setdefault(skill, [])
            total += [0.0] * (len(counts) - len(total))
            for i, count in enumerate(counts):
                total[i] += _added(count, before[i] if i < len(before) else 0.0)
    return found


def _trained(trunk: Header, used: Sequence[Header], new: Sequence[VisitEntry]) -> dict[str, float]:
    """Return the packet's numbers: counts add up, a round is a cycle, the rest is the mean."""
    old = trunk.trained
    names = dict.fromkeys([*ADDED, *old, *(name for child in used for name in child.trained)])
    found = dict(old)
    for name in [*names][:MAX_NUMBERS]:
        values = [c.trained[name] for c in used if name in c.trained]
        if name in ADDED and values:
            # No child can have added more than the visits that all have made.
            added = sum(min(max(0.0, v - old.get(name, 0.0)), len(new)) for v in values)
            found[name] = old.get(name, 0.0) + added
        elif values and isfinite(mean := sum(values) / len(values)):
            found[name] = mean
    known = {entry.node for entry in trunk.journal}
    met = {entry.node for entry in new} - known
    return {
        **found,
        "distinct": old.get("distinct", 0.0) + len(met),
        "cycle": old.get("cycle", 0.0) + 1,
        "in_cycle": 0.0,
    }
