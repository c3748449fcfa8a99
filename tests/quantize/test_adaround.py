"""Learned rounding: windows are a convolution's, weights neighbours on the grid, errors fall."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.models.depthwise import depthwise_conv, resolve_padding
from mobilenet.models.pointwise import conv
from mobilenet.quantize import adaround, numerics
from mobilenet.quantize.adaround import Problem


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "strides", "dilation", "padding"),
    [(3, 1, 1, "SAME"), (3, 2, 1, "SAME"), (3, 2, 1, "SYMMETRIC"), (3, 1, 2, "SAME"),
     (5, 2, 1, "SAME"), (1, 1, 1, "SAME")],
)  # fmt: skip
def test_windows_are_those_of_the_convolution(size: int, strides: int, dilation: int, padding: Any):
    x = normal(2, 7, 8, 3)
    kernel = normal(size, size, 1, 3, seed=1)
    options: dict[str, Any] = {"strides": strides, "dilation": dilation, "padding": padding}
    y = np.asarray(depthwise_conv(jnp.asarray(x), jnp.asarray(kernel), form="grouped", **options))
    positions = np.stack(np.meshgrid(*map(np.arange, y.shape[:3]), indexing="ij"), -1).reshape(
        -1, 3
    )
    pads = resolve_padding(padding, (7, 8), (size, size), strides, dilation)
    windows = adaround.sample_windows(x, size, strides, pads, dilation, positions)
    products = (windows * kernel.reshape(-1, 3)).sum(1)
    np.testing.assert_allclose(products, y.reshape(-1, 3), rtol=1e-4, atol=1e-5)
    if dilation == 1:
        dense = normal(size, size, 3, 4, seed=2)
        y = np.asarray(conv(jnp.asarray(x), jnp.asarray(dense), form="grouped", **options)).reshape(
            -1, 4
        )
        flat = windows.reshape(len(positions), -1) @ dense.reshape(-1, 4)
        np.testing.assert_allclose(flat, y, rtol=1e-4, atol=1e-4)


def correlated(activation: str = "relu") -> tuple[np.ndarray, numerics.Grid, Problem]:
    """Inputs of two directions: rounding errors can be made to cancel."""
    inputs = normal(2000, 2) @ normal(2, 16, seed=1) + 0.05 * normal(2000, 16, seed=2)
    kernel = normal(1, 1, 16, 6, seed=3)
    bias = normal(6, seed=4)
    grid = numerics.make_grid(
        kernel.min((0, 1, 2)), kernel.max((0, 1, 2)), 3, symmetric=True, narrow=True
    )
    return kernel, grid, Problem(inputs, inputs @ kernel[0, 0], bias, activation)


def difference(kernel: np.ndarray, problem: Problem) -> float:
    """Mean squared difference after ReLU, in NumPy."""
    y = problem.inputs @ kernel.reshape(-1, kernel.shape[-1])
    y, wanted = (np.maximum(x + problem.bias, 0) for x in (y, problem.targets))
    return float(np.square(y - wanted).mean())


def test_rounding_is_learnt_on_a_correlated_problem():
    kernel, grid, problem = correlated()
    learned, errors = adaround.learn_rounding(kernel, grid, problem, steps=400)
    nearest = np.asarray(numerics.from_codes(numerics.to_codes(kernel, grid), grid))
    assert errors["nearest"] == pytest.approx(difference(nearest, problem), rel=1e-4)
    assert errors["learned"] == pytest.approx(difference(learned, problem), rel=1e-4)
    assert errors["learned"] < 0.3 * errors["nearest"]

    codes = learned / np.asarray(grid.scale)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    exact = kernel / np.asarray(grid.scale)
    assert np.all((np.round(codes) >= np.floor(exact)) & (np.round(codes) <= np.ceil(exact)))
    assert np.abs(codes).max() <= 3 + 1e-4
    assert np.any(learned != nearest)


def test_learning_that_does_not_help_is_not_applied():
    """No step at all, and problems without anything to gain: nearest rounding stays."""
    kernel, grid, problem = correlated()
    nearest = np.asarray(numerics.from_codes(numerics.to_codes(kernel, grid), grid))
    learned, errors = adaround.learn_rounding(kernel, grid, problem, steps=0)
    np.testing.assert_array_equal(learned, nearest)
    assert errors["learned"] == errors["nearest"]
    # Independent inputs of one size: each weight is best at its nearest code.
    alone = Problem(np.eye(16, dtype=np.float32), kernel[0, 0], np.zeros(6, np.float32), "identity")
    learned, errors = adaround.learn_rounding(kernel, grid, alone, steps=100)
    np.testing.assert_allclose(learned, nearest, atol=1e-6)
    assert errors["learned"] <= errors["nearest"]


def test_depthwise_channels_come_to_the_best_of_all_roundings():
    inputs = normal(1000, 1, 3) * np.ones((1, 9, 1), np.float32) + 0.1 * normal(1000, 9, 3, seed=1)
    kernel = normal(3, 3, 1, 3, seed=2)
    low, high = kernel.min((0, 1, 2)), kernel.max((0, 1, 2))
    grid = numerics.make_grid(low, high, 3, symmetric=True, narrow=True)
    targets = (inputs * kernel.reshape(9, 3)).sum(1)
    problem = Problem(inputs, targets, np.zeros(3, np.float32), "identity")
    learned, errors = adaround.learn_rounding(kernel, grid, problem, steps=300)
    assert learned.shape == kernel.shape
    y = (inputs * learned.reshape(9, 3)).sum(1)
    assert errors["learned"] == pytest.approx(np.square(y - targets).mean(), rel=1e-4)

    best = []
    for channel, scale in enumerate(np.asarray(grid.scale)):
        floor = np.floor(kernel.reshape(9, 3)[:, channel] / scale)
        all_ways = np.clip(floor + list(itertools.product((0, 1), repeat=9)), -3, 3) * scale
        products = inputs[:, :, channel] @ all_ways.T
        best.append(np.square(products - targets[:, [channel]]).mean(0).min())
    assert errors["learned"] <= 1.05 * np.mean(best) < 0.5 * errors["nearest"]


def test_affine_grids_too():
    kernel, _, problem = correlated("identity")
    kernel = kernel + 1
    grid = numerics.make_grid(kernel.min(), kernel.max(), 4, symmetric=False)
    problem = problem._replace(targets=problem.inputs @ kernel[0, 0])
    learned, errors = adaround.learn_rounding(kernel, grid, problem, steps=200)
    codes = np.asarray(learned / grid.scale + grid.zero_point)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    assert codes.min() >= -8 - 1e-3 and codes.max() <= 7 + 1e-3
    assert errors["learned"] < errors["nearest"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_were_pruned_stay_zero(symmetric: bool):
    # What the grid clips of the first weight could be made up for by the others, which are 0.
    kernel = np.asarray([[[[5.0], [0.5], [0.0], [0.0], [0.0]]]], np.float32)
    grid = numerics.make_grid(jnp.asarray([-3.0]), jnp.asarray([3.0]), 3, symmetric=symmetric)
    inputs = normal(500, 1) * np.ones((1, 5), np.float32)
    problem = Problem(inputs, inputs @ kernel[0, 0], np.zeros(1, np.float32), "identity")
    learned, _ = adaround.learn_rounding(kernel, grid, problem, steps=400)
    np.testing.assert_array_equal(learned[kernel == 0], 0)


def test_report_is_a_geometric_mean():
    errors = {
        "a": {"nearest": 1.0, "learned": 0.25},
        "b": {"nearest": 2.0, "learned": 2.0},
        "exact": {"nearest": 0.0, "learned": 0.0},
    }
    found = adaround.report(errors)
    assert found["error_ratio"] == pytest.approx(0.25 ** (1 / 3))
    assert (found["error_ratio_best"], found["error_ratio_worst"]) == (0.25, 1.0)
