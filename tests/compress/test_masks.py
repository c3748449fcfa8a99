"""Masks on tiny literal arrays: exact counts, ties, patterns, drop and grow."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.compress import masks
from mobilenet.compress.rules import parse_pattern


@pytest.mark.parametrize(
    ("scores", "keep", "expected"),
    [
        ([3.0, 1.0, 2.0], 2, [1, 0, 1]),
        ([1.0, 1.0, 1.0, 1.0], 2, [1, 1, 0, 0]),  # ties to the earlier index
        ([0.0, 2.0, 0.0, 2.0, 0.0], 3, [1, 1, 0, 1, 0]),
        ([1.0, 2.0], 0, [0, 0]),
        ([1.0, 2.0], 2, [1, 1]),
        ([-1.0, -1.0, 0.0], 1, [0, 0, 1]),
        ([[1.0, 5.0], [4.0, 4.0]], 2, [[0, 1], [1, 0]]),
    ],
)
def test_the_highest_are_kept_exactly(scores: Any, keep: int, expected: Any):
    np.testing.assert_array_equal(masks.keep_largest(jnp.array(scores), keep), expected)


def test_counts_are_exact_among_many_ties():
    scores = jnp.asarray(np.random.default_rng(0).integers(0, 5, 1000), jnp.float32)
    for keep in (0, 1, 137, 500, 999, 1000):
        assert int(masks.keep_largest(scores, keep).sum()) == keep


def test_two_of_four_input_channels():
    # Two groups of four input channels, two output channels.
    scores = jnp.array(
        [[1, 9], [2, 9], [3, 9], [4, 9], [8, 0], [7, 1], [0, 0], [6, 2]], jnp.float32
    ).reshape(1, 1, 8, 2)  # fmt: skip
    expected = [[0, 1], [0, 1], [1, 0], [1, 0], [1, 0], [1, 1], [0, 0], [0, 1]]
    found = masks.keep_in_groups(scores, 2, 4)
    np.testing.assert_array_equal(found.reshape(8, 2), expected)
    np.testing.assert_array_equal(masks.keep_in_groups(scores, 4, 4), np.ones((1, 1, 8, 2)))


def test_blocks_stay_and_go_together():
    scores = jnp.array([[1, 1, 0, 0], [0, 0, 0, 3], [9, 0, 1, 0], [0, 0, 0, 0]], jnp.float32)
    np.testing.assert_array_equal(masks.block_scores(scores, 2, 2), [[2, 3], [9, 1]])
    made = masks.make_masks({"k": scores}, jnp.array([2]), parse_pattern("2x2"), together=False)
    expected = np.kron(np.array([[0, 1], [1, 0]]), np.ones((2, 2)))
    np.testing.assert_array_equal(made["k"], expected)


def test_all_kernels_are_ranked_together():
    scores = {"a": jnp.array([5.0, 1.0]), "b": jnp.array([[4.0, 3.0], [2.0, 0.0]])}
    made = masks.make_masks(scores, jnp.array([3]), parse_pattern("weights"), together=True)
    np.testing.assert_array_equal(made["a"], [1, 0])
    np.testing.assert_array_equal(made["b"], [[1, 1], [0, 0]])


def test_drop_and_grow_by_hand():
    mask = jnp.array([True, True, True, True, False, False, False, False])
    weights = jnp.array([4.0, 1.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    growth = jnp.array([0.0, 0.0, 0.0, 9.0, 1.0, 8.0, 2.0, 8.0])
    exchanged = masks.regrow(mask, weights, growth, jnp.int32(4), jnp.float32(0.5))
    # 1 and 2 are dropped; of those absent now, 3 (it may come back) and 5 have the largest growth.
    np.testing.assert_array_equal(exchanged, [1, 0, 1, 1, 0, 1, 0, 0])
    same = masks.regrow(mask, weights, growth, jnp.int32(4), jnp.float32(0.0))
    np.testing.assert_array_equal(same, mask)
    # At first everything is exchanged, for fewer.
    first = masks.regrow(mask, weights, growth, jnp.int32(2), jnp.float32(1.0))
    np.testing.assert_array_equal(first, [0, 0, 0, 1, 0, 1, 0, 0])
