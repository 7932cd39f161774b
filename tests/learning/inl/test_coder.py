"""The range coder: exact, short, and the same tables on any machine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aats.learning.inl.coder import TOTAL, Table, decode, encode, normal_cdf, table_of

WEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=9).filter(any)


def table(weights: list[int]) -> Table:
    return table_of(np.array([np.concatenate([[0], np.cumsum(weights)]) / sum(weights)]))


@given(st.data(), st.lists(WEIGHTS, min_size=1, max_size=4), st.integers(0, 200))
def test_what_was_encoded_is_decoded(data: st.DataObject, kinds: list[list[int]], n: int) -> None:
    size = min(map(len, kinds))
    tables = [table([w or 1 for w in weights[:size]]) for weights in kinds]
    rows = np.concatenate([tables[i % len(tables)] for i in range(n)]) if n else tables[0][:0]
    drawn = data.draw(st.lists(st.integers(0, size - 1), min_size=n, max_size=n))
    symbols = np.array(drawn, np.int64)
    assert decode(encode(symbols, rows), rows, n).tolist() == drawn


@given(WEIGHTS)
def test_every_symbol_can_be_said(weights: list[int]) -> None:
    (row,) = table(weights)
    assert row[0] == 0
    assert row[-1] == TOTAL
    assert (np.diff(row) >= 1).all()


@pytest.mark.parametrize("weights", [[1, 1, 1], [9, 1], [1, 2, 3, 4, 500], [1] * 64])
def test_it_takes_what_entropy_says_and_a_byte(weights: list[int]) -> None:
    rng = np.random.default_rng(1)
    share = np.array(weights) / sum(weights)
    symbols = rng.choice(len(weights), 4000, p=share)
    rows = table(weights)
    ideal = -np.log2(share[symbols]).sum() / 8
    real = len(encode(symbols, rows))
    assert ideal - 2 <= real <= 1.002 * ideal + 2


def test_carries_run_through_bytes_that_are_full() -> None:
    rows = table([1, 65000, 1])
    for n in range(60):
        for last in (0, 2):
            symbols = np.array([2] * n + [1] * 5 + [last] * 3)
            assert decode(encode(symbols, rows), rows, len(symbols)).tolist() == symbols.tolist()


@given(st.binary(max_size=40))
def test_any_bytes_decode_to_symbols_of_the_table(data: bytes) -> None:
    found = decode(data, table([5, 1, 3]), 30)
    assert set(found.tolist()) <= {0, 1, 2}


def test_the_normal_distribution_is_close_enough() -> None:
    z = np.linspace(-7, 7, 2001)
    exact = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z])
    assert np.abs(normal_cdf(z) - exact).max() < 3e-7
    assert (np.diff(normal_cdf(z)) >= 0).all()
