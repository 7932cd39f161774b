"""Learning on rows: small networks, each trained on what its nodes hold, all of them at once.

Between the formula and a scenario's own models: a visit takes the sequential method's steps on the
node's rows (`aats_envs.rows`), a probe tries a few on a minibatch, a verdict counts errors. What a
formula must be told, rows bring along: a second visit teaches less, a wrong label learnt twice
does more harm, and what one node teaches is not what another does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from aats.learning.dynamics import Scores
from aats.learning.probe import TRIAL_LR, TRIAL_STEPS, TRUSTED_ROWS
from aats_envs.batch import Networks
from aats_envs.chance import Stream, uniforms
from aats_envs.learner import PROBE_ROWS, At, Models
from aats_envs.network import Floats, Ints
from aats_envs.perceptrons import NEVER, TINY, Array, Perceptrons, Rows
from aats_envs.rows import MOST_TEST, MOST_TRUSTED, Deal, Table

BATCH, RATE, CLIP = 8, 0.1, 1.0
"""Of the sequential method in the scenarios that networks are made into (`to_scenario`)."""
KEPT = 4
"""Visits whose weights travel along at most, where their mean is shipped."""
STRIDES = np.array([1, 7, 11, 13, 17, 19, 23, 29, 31, 37])
"""Of walks round a node's rows: one at least has no divisor in common with any number of them."""


class RowLearner:
    """Learning on rows; a model is [1 + KEPT, P]: what is shipped, then the newest weights first.

    Args:
        networks: B networks whose rows were dealt.
    """

    def __init__(self, networks: Networks) -> None:
        self._net = networks
        limits = networks.limits
        self._kinds = [Perceptrons(t, limits.classes) for t in range(1, limits.skills + 1)]
        self._size = max(kind.size for kind in self._kinds)

    def fresh(self, rows: Ints) -> Models:
        """See `Learner`; nothing in a row that has no network yet."""
        out = np.full((len(rows), 1 + KEPT, self._size), np.nan, np.float32)
        for kind, i in self._groups(rows):
            for place in i:
                out[place, 0, : kind.size] = kind.untrained(self._deal(rows[place]).start)
        return out

    def visit(self, rows: Ints, nodes: Ints, visits: Floats, models: Models, at: At) -> Models:
        """See `Learner`. Training goes on from the newest weights, whatever mean is shipped."""
        begun = np.isfinite(models[:, 1, :1])
        newest = np.where(begun, models[:, 1], models[:, 0])
        for kind, i in self._groups(rows):
            own = newest[i, : kind.size]
            newest[i, : kind.size] = self._trained(kind, rows[i], nodes[i], own, at.of(i))
        past = np.concatenate([newest[:, None], models[:, 1:-1]], axis=1)
        wanted = np.array([max(1, self._deal(row).average_last) for row in rows])
        counted = (np.arange(KEPT) < wanted[:, None]) & np.isfinite(past[:, :, 0])
        total = np.where(counted[..., None], past, np.float32(0)).sum(axis=1)
        shipped = total / counted.sum(axis=1, keepdims=True).astype(np.float32)
        return np.concatenate([shipped[:, None], past], axis=1)

    def judged(self, rows: Ints, models: Models, at: At) -> Floats:
        """See `Learner`."""
        return self._accuracy(rows, models, [self._deal(row).trusted for row in rows], MOST_TRUSTED)

    def verdict(self, rows: Ints, models: Models, at: At) -> Floats:
        """See `Learner`."""
        return self.exact(rows, models)

    def exact(self, rows: Ints, models: Models) -> Floats:
        """Return [n, T] the accuracy on the MPVUs' test set."""
        return self._accuracy(rows, models, [self._deal(row).test for row in rows], MOST_TEST)

    def probe(self, rows: Ints, nodes: Ints, models: Models, at: At) -> Scores:
        """See `Learner`."""
        out = np.zeros((4, len(rows)))
        for kind, i in self._groups(rows):
            out[:, i] = self._tried(kind, rows[i], nodes[i], models[i, 0, : kind.size], at.of(i))
        return Scores(*out)

    # --- training and trying ---

    def _trained(self, kind: Perceptrons, rows: Ints, nodes: Ints, flat: Array, at: At) -> Array:
        """Return the weights [n, P] after a visit."""
        held = self._held(kind, rows, nodes)
        passes = np.rint(self._net.epochs[rows]).astype(np.int64)
        # The longest visits first: those that go on are the first rows of all arrays.
        order = np.argsort(-(passes[:, None] * -(-held // BATCH)).sum(axis=1), kind="stable")
        held, rows, nodes = held[order], rows[order], nodes[order]
        batches = -(-held // BATCH)
        steps = passes[order, None] * batches
        total = steps.sum(axis=1)
        picked, label = self._rows_of(kind, rows, nodes, int(held.max(initial=1)))
        table, unused, flat = self._table, self._unused(kind, rows), flat[order]
        start, stride, first = _walk(held, at.of(order))
        done, lane = np.zeros_like(held), np.arange(BATCH)
        for step in range(int(total.max(initial=0))):
            n = int(np.searchsorted(-total, -step))
            i = np.arange(n)
            # Skills take turns: next is the one with the least of its share done.
            share = (done[:n] + first[:n]) / np.maximum(1, steps[:n])
            s = np.where(done[:n] < steps[:n], share, np.inf).argmin(axis=1)
            batch, of, count = done[i, s] % batches[i, s], batches[i, s], held[i, s]
            done[i, s] += 1
            low, high = batch * count // of, (batch + 1) * count // of
            place = low[:, None] + lane
            weight = (place < high[:, None]) / (high - low)[:, None]
            place = (start[i, s][:, None] + place * stride[i, s][:, None]) % count[:, None]
            at_row = i[:, None], s[:, None], place
            _, slope = kind.gradient(flat[:n], Rows(
                s, table[picked[at_row]], label[at_row], weight.astype(np.float32),
                unused[i, s],
            ))  # fmt: skip
            rate = RATE * np.minimum(1.0, CLIP / np.maximum(_norm(slope), TINY))
            flat[:n] -= rate.astype(np.float32)[:, None] * slope
        out = np.empty_like(flat)
        out[order] = flat
        return out

    def _tried(self, kind: Perceptrons, rows: Ints, nodes: Ints, flat: Array, at: At) -> Floats:
        """Return [4, n] gain, alignment, loss and gradient norm of a probe."""
        held, unused = self._held(kind, rows, nodes), self._unused(kind, rows)
        share = (held > 0) / np.maximum(1, (held > 0).sum(axis=1, keepdims=True))
        picked, label = self._rows_of(kind, rows, nodes, int(held.max(initial=1)))
        # A node is probed at most once at each step.
        own = At(at.keys + nodes.astype(np.uint64), at.steps, at.hops)
        start, _, _ = _walk(held, own)
        batch, trusted = [], []
        for s in range(kind.skills):
            count, i = held[:, s, None], np.arange(len(rows))[:, None]
            lane = np.arange(max(1, int(PROBE_ROWS) // kind.skills))
            place = (start[:, s, None] + lane) % np.maximum(1, count)
            batch.append(self._weighted(
                s, picked[i, s, place], label[i, s, place], lane < count, share[:, s], unused
            ))  # fmt: skip
            few = TRUSTED_ROWS // kind.skills
            x, y = _padded([_spread(self._deal(row).trusted[s], few) for row in rows], few)
            trusted.append(self._weighted(s, x, y, y >= 0, share[:, s], unused))

        def slope(weights: Array, sets: Sequence[Rows]) -> tuple[Floats, Array]:
            parts = [kind.gradient(weights, part) for part in sets]
            losses, slopes = zip(*parts, strict=True)
            return np.sum(losses, axis=0, dtype=np.float64), np.sum(slopes, axis=0)

        loss, there = slope(flat, batch)
        before, wanted = slope(flat, trusted)
        norm = _norm(there)
        alignment = (there * wanted).sum(axis=1) / np.maximum(norm * _norm(wanted), TINY)
        trial = flat - np.float32(TRIAL_LR) * there
        for _ in range(TRIAL_STEPS - 1):
            trial = trial - np.float32(TRIAL_LR) * slope(trial, batch)[1]
        return np.stack([before - slope(trial, trusted)[0], alignment, loss, norm])

    def _weighted(
        self, skill: int, at: Ints, label: Ints, is_row: npt.NDArray[np.bool_], share: Floats,
        unused: Array,
    ) -> Rows:  # fmt: skip
        count = np.maximum(1, is_row.sum(axis=1))
        weight = is_row * (share / count)[:, None]
        skills = np.full(len(at), skill)
        return Rows(skills, self._table[at], np.maximum(label, 0), weight.astype(np.float32),
                    unused[:, skill])  # fmt: skip

    def _accuracy(
        self, rows: Ints, models: Models, sets: Sequence[Sequence[tuple[Ints, Ints]]], most: int
    ) -> Floats:
        out = np.zeros((len(rows), self._net.limits.skills))
        for kind, i in self._groups(rows):
            flat, unused = models[i, 0, : kind.size], self._unused(kind, rows[i])
            for s in range(kind.skills):
                x, y = _padded([sets[place][s] for place in i], most)
                of = Rows(np.full(len(i), s), self._table[x], y, np.zeros(0, np.float32),
                          unused[:, s])  # fmt: skip
                right = kind.logits(flat, of).argmax(axis=2) == y
                out[i, s] = right.sum(axis=1) / np.maximum(1, (y >= 0).sum(axis=1))
        return out

    # --- who holds what ---

    def _held(self, kind: Perceptrons, rows: Ints, nodes: Ints) -> Ints:
        """Return [n, T] how many rows the nodes hold."""
        deals = zip(map(self._deal, rows), nodes, strict=True)
        return np.array([deal.held[node] for deal, node in deals]).reshape(-1, kind.skills)

    def _rows_of(self, kind: Perceptrons, rows: Ints, nodes: Ints, most: int) -> tuple[Ints, Ints]:
        """Return [n, T, most] the rows that the nodes hold, and their labels."""
        picked, label = np.zeros((2, len(rows), kind.skills, most), np.int64)
        for i, (deal, node) in enumerate(zip(map(self._deal, rows), nodes, strict=True)):
            for s in range(kind.skills):
                first, count = deal.first[node, s], deal.held[node, s]
                picked[i, s, :count] = deal.at[first : first + count]
                label[i, s, :count] = deal.label[first : first + count]
        return picked, label

    def _unused(self, kind: Perceptrons, rows: Ints) -> Array:
        """Return [n, T, 1, C]."""
        counts = self._net.classes[rows, : kind.skills, None, None]
        return np.where(np.arange(kind.classes) < counts, np.float32(0), NEVER)

    @property
    def _table(self) -> Table:
        """Of all networks: a source has one."""
        return next(n.rows.table for n in self._net.drawn if n is not None and n.rows is not None)

    def _deal(self, row: int) -> Deal:
        network = self._net.drawn[row]
        assert network is not None
        assert network.rows is not None
        return network.rows

    def _groups(self, rows: Ints) -> Iterator[tuple[Perceptrons, Ints]]:
        """Yield each kind of model with the places in `rows` that have such."""
        skills = (self._net.classes[rows] > 0).sum(axis=1)
        for kind in self._kinds:
            at = np.flatnonzero(skills == kind.skills)
            if len(at):
                yield kind, at


def _walk(held: Ints, at: At) -> tuple[Ints, Ints, Floats]:
    """Return [n, T] where among its rows a visit begins, by what stride it goes, who is first.

    Rows were shuffled when they were dealt: to go round by a stride that has no divisor in common
    with their number is as good as to shuffle them again.
    """
    t = held.shape[1]
    luck = uniforms(at.keys, at.steps, Stream.VISIT, 3 * t)
    count = np.maximum(1, held)
    start = (luck[:, :t] * count).astype(np.int64)
    fits = np.gcd(STRIDES, count[..., None]) == 1
    chosen = (luck[:, t : 2 * t] * fits.sum(axis=2)).astype(np.int64)
    stride = STRIDES[(fits.cumsum(axis=2) > chosen[..., None]).argmax(axis=2)]
    return start, stride, luck[:, 2 * t :]


def _spread(rows: tuple[Ints, Ints], most: int) -> tuple[Ints, Ints]:
    """Return at most so many rows, from all over."""
    at = np.linspace(0, len(rows[0]) - 1, min(most, len(rows[0]))).astype(np.int64)
    return rows[0][at], rows[1][at]


def _padded(rows: Sequence[tuple[Ints, Ints]], most: int) -> tuple[Ints, Ints]:
    """Return [n, most] rows and labels, -1 where there is none."""
    x, y = np.zeros((len(rows), most), np.int64), np.full((len(rows), most), -1)
    for i, (at, label) in enumerate(rows):
        x[i, : len(at)], y[i, : len(at)] = at, label
    return x, y


def _norm(slope: Array) -> Array:
    found: Array = np.sqrt(np.einsum("np,np->n", slope, slope))
    return found
