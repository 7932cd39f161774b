"""Statistics of two nodes and how far they are apart."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from aats.control.divergence import jensen_shannon
from aats.errors import ModelError
from aats.learning.divergence import BINS, divergence, statistics
from aats.testing.methods import SKILL, blobs

SHARES = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=5, max_size=5).filter(
    lambda v: sum(v) > 0.01
)


@given(SHARES, SHARES)
def test_the_divergence_is_scipys_squared_distance_in_bits(p: list[float], q: list[float]) -> None:
    found = jensen_shannon(p, q)
    assert found == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-7)
    assert found == pytest.approx(jensen_shannon(q, p), abs=1e-12)
    assert 0 <= found <= 1 + 1e-12


def test_same_is_0_and_disjoint_is_1() -> None:
    assert jensen_shannon([1, 2, 3], [2, 4, 6]) == 0.0
    assert jensen_shannon([1, 0], [0, 5]) == 1.0


def test_features_are_compared_in_bins_that_the_first_node_set() -> None:
    data = {SKILL: blobs(300)}
    first = statistics(data, {})
    assert len(first[f"features.{SKILL}"]) == BINS
    assert np.ptp(first[f"features.{SKILL}"]) < 0.01, "its own quantiles: even shares"
    far = {SKILL: replace(data[SKILL], train_x=data[SKILL].train_x + 100)}
    there = statistics(far, first)
    assert np.array_equal(there[f"edges.{SKILL}"], first[f"edges.{SKILL}"])
    assert there[f"features.{SKILL}"][-1] == 1.0
    apart = divergence(there, first)
    assert apart is not None
    assert apart > 0.5
    assert divergence(statistics(data, first), first) == pytest.approx(0, abs=1e-6)


def test_values_that_are_mostly_equal_have_fewer_bins() -> None:
    data = blobs(60)
    flat = {SKILL: replace(data, train_x=np.zeros_like(data.train_x))}
    assert len(statistics(flat, {})[f"features.{SKILL}"]) == 2


def test_what_cannot_be_compared_is_not() -> None:
    ours = statistics({SKILL: blobs(60)}, {})
    assert divergence(ours, {}) is None
    bad = {
        name: np.full_like(array, value)
        for name, array in ours.items()
        for value in (math.nan,)
        if not name.startswith("edges.")
    }
    assert divergence(ours, bad) is None
    with pytest.raises(ModelError, match="finite, 15 at most"):
        statistics({SKILL: blobs(60)}, {f"edges.{SKILL}": np.array([np.nan], np.float32)})
