"""The cost formulas against the figures their sources print."""

from __future__ import annotations

import pytest

from aats.control.cost import (
    adapters_bytes,
    averaging_bytes,
    chain_bytes,
    in_network_bytes,
    snake_bytes,
    split_bytes,
)

GB, TB = 1e9, 1e12


def test_llama_2_7b_by_federated_averaging_costs_28_terabytes() -> None:
    assert averaging_bytes(14 * GB, participants=10, rounds=100) == 28 * TB


def test_two_passes_of_a_chain_cost_280_gigabytes_a_hundredth_of_that() -> None:
    chain = chain_bytes(14 * GB, nodes=10, passes=2)
    assert chain == 280 * GB
    assert averaging_bytes(14 * GB, 10, 100) / chain == 100


def test_a_snake_on_vgg_11_sends_what_the_paper_says_in_either_reading() -> None:
    model, mean_slice, hops = 9_750_922, 1_089_589, 9
    slices = [float(mean_slice)] * hops
    federated = averaging_bytes(model, hops, 1)
    assert snake_bytes(slices, 1, model) / federated == pytest.approx(0.556, abs=0.001)
    assert federated / snake_bytes(slices, 1) == pytest.approx(17.9, abs=0.05)


def test_a_chain_of_adapters_carries_those_before() -> None:
    assert adapters_bytes(100, 1, visits=4) == 1 + 2 + 3 + 4
    assert adapters_bytes(100, 1, visits=4, cached=False) == 4 * 100 + 10


def test_split_learning_sends_each_row_up_and_down_and_hands_the_clients_part_on() -> None:
    assert split_bytes(1000, 64, client=5000, clients=3, epochs=2) == 2 * (
        1000 * 64 * 4 + 1000 * 64 * 4 + 3 * 5000
    )


def test_codes_of_views_cost_what_their_widths_say() -> None:
    assert in_network_bytes(1000, [32, 32]) == split_bytes(1000, 64, client=0, clients=2)
