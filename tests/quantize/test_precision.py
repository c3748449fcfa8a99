"""Bits by layer: sizes, and the choice that a budget leaves."""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from mobilenet.quantize import precision

NUMBERS = {"a/weights": 10, "b/weights": 40, "c/weights": 5}
LOSSES = {
    "a/weights": {2: 8.0, 4: 1.0, 8: 0.0},
    "b/weights": {2: 4.0, 4: 2.0, 8: 0.0},
    "c/weights": {2: 0.1, 4: 0.3, 8: 0.0},
}


def total(bits: Mapping[str, int]) -> float:
    return sum(LOSSES[site][count] for site, count in bits.items())


def size(bits: Mapping[str, int]) -> int:
    return sum(NUMBERS[site] * count for site, count in bits.items())


def test_sizes_of_a_network_are_its_kernels_at_their_bits():
    variables = {
        "params": {
            "conv": {"kernel": np.zeros((3, 3, 1, 2)), "bias": np.zeros(2)},
            "dense": {"kernel": np.zeros((2, 5))},
        },
        "quant": {
            "conv": {"weights": {"bits": np.int32(4)}, "activations": {"bits": np.int32(8)}},
            "dense": {"weights": {"bits": np.int32(0)}},  # float
        },
    }
    assert precision.kernel_sizes(variables) == {"conv/weights": 18, "dense/weights": 10}
    found = precision.sizes(variables)
    assert (found.float_bytes, found.weight_bytes) == (112, (18 * 4 + 10 * 32) / 8)
    assert found.mean_bits == pytest.approx((18 * 4 + 10 * 32) / 28)


def test_a_budget_for_everything_leaves_all_bits():
    assert set(precision.allocate(LOSSES, NUMBERS, 8 * 55).values()) == {8}


def test_the_least_budget_leaves_the_fewest_bits():
    found = precision.allocate(LOSSES, NUMBERS, 2 * 55)
    assert found["a/weights"] == found["b/weights"] == found["c/weights"] == 2


@pytest.mark.parametrize("budget", range(110, 441, 22))
def test_choices_keep_the_budget_and_no_better_one_lies_on_the_hull(budget: int):
    found = precision.allocate(LOSSES, NUMBERS, budget)
    assert size(found) <= budget
    sites = list(NUMBERS)
    every = [dict(zip(sites, c, strict=True)) for c in itertools.product((2, 4, 8), repeat=3)]
    # Of all choices as large as this one or smaller, none loses less than what its cheapest step
    # up would win: greedy on the hull is at most one step from the best.
    best = min(total(c) for c in every if size(c) <= budget)
    steps = [abs(LOSSES[s][a] - LOSSES[s][b]) for s in sites for a, b in ((2, 4), (4, 8), (2, 8))]
    assert total(found) - best <= max(steps)
    if budget in (110, 440):
        assert total(found) == pytest.approx(best)


def test_losses_per_bit_decide_and_not_losses():
    # Four bits less: a gives 10 numbers for a loss of 1, b 40 numbers for 2.
    found = precision.allocate(LOSSES, NUMBERS, 8 * 55 - 4 * 40)
    assert found == {"a/weights": 8, "b/weights": 4, "c/weights": 8}


def test_what_is_left_over_is_spent():
    # The hull's step takes 160 bits of b where 20 would do; c, given up before it, comes back.
    losses = {"b/weights": {4: 0.5, 8: 0.0}, "c/weights": {4: 0.01, 8: 0.0}}
    numbers = {"b/weights": 40, "c/weights": 5}
    found = precision.allocate(losses, numbers, 8 * 45 - 30)
    assert found == {"b/weights": 4, "c/weights": 8}


def test_a_loss_that_rises_with_bits_is_noise():
    # c loses less at 2 bits than at 4: nothing is bought by 4.
    for budget in range(110, 441, 10):
        assert precision.allocate(LOSSES, NUMBERS, budget)["c/weights"] != 4


def test_a_budget_out_of_reach_says_what_is_within():
    with pytest.raises(precision.BudgetError, match="109 bits, but the fewest .* sum to 110"):
        precision.allocate(LOSSES, NUMBERS, 109)
