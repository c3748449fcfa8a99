"""The integer executor: numbers worked out by hand, loops over Python's integers, and errors."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mobilenet.quantize import integer
from mobilenet.quantize.integer import (
    Add,
    Convolution,
    Dense,
    Graph,
    Grid,
    IntegerError,
    Lookup,
    Mean,
    Multiply,
    Operation,
    Rescale,
    Rounding,
    lookup_table,
    run,
    run_op,
)

UNIT = Grid(1.0)


def scaled(x: int, multiplier: int, shift: int, rounding: Rounding) -> int:
    """x * multiplier / 2**31 * 2**shift by the definitions, in exact fractions."""
    half = Fraction(1, 2)
    if rounding == "single":
        return math.floor(Fraction(x * multiplier, 2**31) * Fraction(2) ** shift + half)
    product = Fraction((x << max(shift, 0)) * multiplier, 2**31)
    high = math.floor(product + half)
    rest = Fraction(high, 2 ** max(-shift, 0))
    if rounding == "builtin":
        return math.floor(rest + half)
    return math.floor(rest + half) if high >= 0 else -math.floor(-rest + half)


def of(
    operation: Operation,
    tensors: dict[str, np.ndarray],
    grids: dict[str, Grid],
    rounding: Rounding = "double",
) -> np.ndarray:
    """The result of a graph of one operation."""
    graph = Graph((operation,), operation.inputs[0], operation.output, grids)
    return run_op(graph, operation, tensors, rounding=rounding)


# ---------------------------------------------------------------------------------------------
# Grids and fixed-point arithmetic
# ---------------------------------------------------------------------------------------------


def test_a_grid_rounds_half_to_even_and_clips():
    grid = Grid(0.5, 10, -8, 12)
    codes = grid.quantize(np.array([0.0, 0.25, 0.75, -0.25, -0.75, 0.3, 100.0, -np.inf]))
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, [10, 10, 12, 10, 8, 11, 12, -8])
    real = grid.dequantize(codes)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, [0, 0, 1, 0, -1, 0.5, 1, -9])


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (-128, 127, "int8"),
        (0, 255, "uint8"),
        (-8, 7, "int8"),
        (-500, 500, "int16"),
        (0, 65535, "uint16"),
    ],
)
def test_codes_are_held_in_the_smallest_type(low: int, high: int, dtype: str):
    assert Grid(1.0, 0, low, high).quantize(np.zeros(1)).dtype == dtype


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((0.0,), "scale is 0.0"),
        ((-1.0,), "scale is -1.0"),
        ((math.nan,), "scale is nan"),
        ((math.inf,), "scale is inf"),
        ((1.0, 128), "zero point 128"),
        ((1.0, 3, 3, 3), "at least two codes"),
        ((1.0, 0, -1, 65535), "they do not fit into 16 bits"),
    ],
)
def test_grids_that_cannot_be(fields: tuple[Any, ...], message: str):
    with pytest.raises(IntegerError, match=message):
        Grid(*fields)


def test_nan_has_no_code():
    with pytest.raises(IntegerError, match="the code of NaN"):
        UNIT.quantize(np.array([1.0, np.nan]))


@pytest.mark.parametrize(
    ("real", "multiplier", "shift"),
    [
        (0.5, 1 << 30, 0),
        (0.75, 3 << 29, 0),
        (1.0, 1 << 30, 1),
        (3.0, 3 << 29, 2),
        (0.1, 1_717_986_918, -3),  # 0.8 * 2**31 = 1717986918.4
        (1 - 2.0**-40, 1 << 30, 1),  # rounds up to 1
        (2.0**-32, 1 << 30, -31),
        (2.0**-33, 0, 0),  # lost
        (0.0, 0, 0),
    ],
)
def test_factors_as_multiplier_and_shift(real: float, multiplier: int, shift: int):
    found = integer.quantize_multiplier(real)
    assert (int(found[0]), int(found[1])) == (multiplier, shift)


def test_factors_of_channels_at_once():
    reals = np.array([0.5, 0.1, 1 - 2.0**-40, 0.0])
    together = integer.quantize_multiplier(reals)
    alone = [integer.quantize_multiplier(real) for real in reals]
    np.testing.assert_array_equal(np.stack(together), np.array(alone).T)


@pytest.mark.parametrize("real", [-0.1, math.nan, math.inf, 2.0**31])
def test_factors_that_cannot_be(real: float):
    with pytest.raises(IntegerError, match="factor of a requantisation"):
        integer.quantize_multiplier(real)


def test_high_multiply_rounds_half_upwards_and_saturates():
    half = np.array(1 << 30)  # a half, so that products are k / 2
    a = np.array([1, -1, 3, -3, 2, -2], np.int64)
    np.testing.assert_array_equal(integer.high_multiply(a, half), [1, 0, 2, -1, 1, -1])
    lowest = np.array([-(1 << 31)])
    np.testing.assert_array_equal(integer.high_multiply(lowest, lowest), [(1 << 31) - 1])


def test_rounding_shift_rounds_half_away_from_zero():
    x = np.array([5, -5, 6, -6, 2, -2, 1, -1], np.int64)
    np.testing.assert_array_equal(integer.rounding_shift(x, 2), [1, -1, 2, -2, 1, -1, 0, 0])
    np.testing.assert_array_equal(integer.rounding_shift(x, 0), x)


def test_rounding_twice_and_once():
    quarter = integer.quantize_multiplier(0.25)
    x = np.array([1, -1, 2, -2, 3, -3, 6, -6], np.int64)
    # 1/4 becomes 1/2 and then 1 when it is rounded twice.
    twice = integer.multiply(x, *quarter, "double")
    np.testing.assert_array_equal(twice, [1, 0, 1, -1, 1, -1, 2, -2])
    upwards = integer.multiply(x, *quarter, "builtin")
    np.testing.assert_array_equal(upwards, [1, 0, 1, 0, 1, 0, 2, -1])
    once = integer.multiply(x, *quarter, "single")
    np.testing.assert_array_equal(once, [0, 0, 1, 0, 1, -1, 2, -1])


@pytest.mark.parametrize("rounding", integer.ROUNDINGS)
def test_multiplication_equals_exact_fractions(rounding: Rounding):
    rng = np.random.default_rng(0)
    reals = np.concatenate([10.0 ** rng.uniform(-9, 0.5, 200), [0.5, 0.25, 2.0**-20]])
    multiplier, shift = integer.quantize_multiplier(reals)
    x = rng.integers(-(1 << 28), 1 << 28, (20, len(reals)))
    x[:6] = rng.integers(-40, 40, (6, len(reals)))
    x[6:8] = (x[6:8] >> 20) << 20  # many ties
    found = integer.multiply(x, multiplier, shift, rounding)
    factors = [(int(m), int(s)) for m, s in zip(multiplier, shift, strict=True)]
    wanted = [
        [scaled(int(v), *factor, rounding) for v, factor in zip(row, factors, strict=True)]
        for row in x
    ]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("rounding", ["double", "single"])
def test_multiplication_that_leaves_int32(rounding: Rounding):
    three = integer.quantize_multiplier(3.0)
    with pytest.raises(IntegerError, match="Add z overflows int32"):
        integer.multiply(np.array([1 << 30]), *three, rounding, name="Add z")


# ---------------------------------------------------------------------------------------------
# Linear operations
# ---------------------------------------------------------------------------------------------


def convolution(kernel: np.ndarray, **fields: Any) -> Convolution:
    return Convolution(
        **{"inputs": ("x",), "output": "y", "kernel": kernel, "kernel_scale": 1.0, **fields}
    )


def dense(kernel: np.ndarray, **fields: Any) -> Dense:
    return Dense(
        **{"inputs": ("x",), "output": "y", "kernel": kernel, "kernel_scale": 1.0, **fields}
    )


def test_padding_is_the_zero_point():
    # Reals [[0, 1], [2, 0]], summed over 2 x 2 windows, with nothing below and to the right.
    x = np.array([[3, 4], [5, 3]], np.int8).reshape(1, 2, 2, 1)
    operation = convolution(np.ones((2, 2, 1, 1), np.int8), pads=(0, 1, 0, 1))
    y = of(operation, {"x": x}, {"x": Grid(1.0, 3), "y": Grid(1.0, -5)})
    assert y.dtype == np.int8
    np.testing.assert_array_equal(y[0, :, :, 0], [[-2, -4], [-3, -5]])


def test_asymmetric_weights():
    # Reals x = [2, -1], weights [[10 - 7, 5 - 7], [7 - 7, 9 - 7]] / 2, bias [1, -3] / 2.
    operation = dense(
        np.array([[10, 5], [7, 9]], np.uint8),
        kernel_scale=np.array([0.5]),
        kernel_zero_point=np.array([7]),
        bias=np.array([1, -3], np.int32),
    )
    x = np.array([[130, 127]], np.uint8)
    y = of(operation, {"x": x}, {"x": Grid(1.0, 128, 0, 255), "y": Grid(0.5, 10, 0, 255)})
    # 2 * 1.5 + 0.5 = 3.5; 2 * -1 - 1 - 1.5 = -4.5.
    np.testing.assert_array_equal(y, [[17, 1]])


def test_clipping_is_of_codes():
    operation = dense(np.ones((1, 1), np.int8), low=-5, high=7)
    x = np.array([[-100], [3], [100]], np.int8)
    y = of(operation, {"x": x}, {"x": UNIT, "y": UNIT})
    np.testing.assert_array_equal(y[:, 0], [-5, 3, 7])
    unclipped = dense(np.full((1, 1), 2, np.int8))
    y = of(unclipped, {"x": x}, {"x": UNIT, "y": Grid(1.0, 0, -8, 7)})
    np.testing.assert_array_equal(y[:, 0], [-8, 6, 7])


def test_ties_of_negative_sums():
    operation = dense(np.ones((1, 1), np.int8))
    x = np.array([[-3], [-1], [1], [3]], np.int8)
    y = of(operation, {"x": x}, {"x": UNIT, "y": Grid(2.0)})
    # A factor of 1/2 needs no right shift, so halves are rounded upwards.
    np.testing.assert_array_equal(y[:, 0], [-1, 0, 1, 2])
    y = of(dense(np.full((1, 1), 2, np.int8)), {"x": x}, {"x": UNIT, "y": Grid(4.0)})
    # 1/4 does, and the shift rounds them away from zero, or upwards as the built-in kernels.
    np.testing.assert_array_equal(y[:, 0], [-2, -1, 1, 2])
    quarter = dense(np.full((1, 1), 2, np.int8))
    y = of(quarter, {"x": x}, {"x": UNIT, "y": Grid(4.0)}, "builtin")
    np.testing.assert_array_equal(y[:, 0], [-1, 0, 1, 2])
    # Depthwise ones do not.
    depthwise = convolution(np.full((1, 1, 1, 1), 2, np.int8), depthwise=True)
    y = of(depthwise, {"x": x[None, None]}, {"x": UNIT, "y": Grid(4.0)}, "builtin")
    np.testing.assert_array_equal(y.ravel(), [-2, -1, 1, 2])


def slow_linear(
    operation: Convolution | Dense, x: np.ndarray, grid: Grid, target: Grid, rounding: Rounding
) -> np.ndarray:
    """The same in loops over Python's integers."""
    kernel, strides, dilation, pads, depthwise = operation.kernel, 1, 1, (0, 0, 0, 0), False
    if isinstance(operation, Convolution):
        strides, dilation = operation.strides, operation.dilation
        pads, depthwise = operation.pads, operation.depthwise
    else:
        kernel, x = kernel[None, None], x[:, None, None]
    rows, columns, _, channels = kernel.shape
    top, bottom, left, right = pads
    height = (x.shape[1] + top + bottom - (rows - 1) * dilation - 1) // strides + 1
    width = (x.shape[2] + left + right - (columns - 1) * dilation - 1) // strides + 1
    scales = np.broadcast_to(operation.kernel_scale, channels)
    zeros = np.broadcast_to(operation.kernel_zero_point, channels)
    low, high = operation.clip(target)
    found = np.zeros((len(x), height, width, channels), np.int64)
    for b, i, j, c in np.ndindex(found.shape):
        total = 0 if operation.bias is None else int(operation.bias[c])
        for p, q in itertools.product(range(rows), range(columns)):
            row, column = i * strides + p * dilation - top, j * strides + q * dilation - left
            if not (0 <= row < x.shape[1] and 0 <= column < x.shape[2]):
                continue
            for k in [c] if depthwise else range(x.shape[3]):
                weight = int(kernel[p, q, 0 if depthwise else k, c]) - int(zeros[c])
                total += (int(x[b, row, column, k]) - grid.zero_point) * weight
        factor = integer.quantize_multiplier(grid.scale * float(scales[c]) / target.scale)
        code = scaled(total, int(factor[0]), int(factor[1]), rounding) + target.zero_point
        found[b, i, j, c] = min(max(code, low), high)
    return found if isinstance(operation, Convolution) else found[:, 0, 0]


CASES: dict[str, dict[str, Any]] = {
    "pointwise": {"size": 1},
    "dense, stride 2, pads of TensorFlow": {"strides": 2, "pads": (0, 1, 0, 1)},
    "dense, dilated": {"dilation": 2, "pads": (2, 2, 2, 2)},
    "depthwise": {"depthwise": True, "pads": (1, 1, 1, 1)},
    "depthwise, stride 2, uneven": {"depthwise": True, "strides": 2, "pads": (0, 1, 2, 0)},
    "depthwise, dilated": {"depthwise": True, "dilation": 3, "pads": (3, 3, 3, 3)},
    "five taps, stride 3": {"size": 5, "strides": 3},
    "uint8, asymmetric": {"unsigned": True, "pads": (1, 1, 1, 1)},
    "uint8, depthwise, asymmetric": {"unsigned": True, "depthwise": True, "pads": (1, 0, 0, 1)},
    "four bits": {"bits": 4, "pads": (1, 1, 1, 1)},
    "sixteen bits": {"grid": Grid(1e-4, 0, -32768, 32767), "target": Grid(1e-3, 0, -32768, 32767)},
    "sixteen bits, depthwise": {
        "grid": Grid(1e-4, 100, -32768, 32767),
        "target": Grid(1e-3, -9, -32768, 32767),
        "depthwise": True,
        "bits": 16,
    },
}


@pytest.mark.parametrize("rounding", integer.ROUNDINGS)
@pytest.mark.parametrize("case", CASES)
def test_convolutions_equal_loops(case: str, rounding: Rounding):
    fields = dict(CASES[case])
    rng = np.random.default_rng(len(case))
    size, bits, unsigned = fields.pop("size", 3), fields.pop("bits", 8), fields.pop("unsigned", 0)
    span = (0, 255) if unsigned else (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    grid = fields.pop("grid", Grid(0.02, 100 if unsigned else -20, *((0, 255) if unsigned else ())))
    target = fields.pop("target", Grid(0.05, 12))
    cin, cout = (5, 5) if fields.get("depthwise") else (5, 7)
    kernel = rng.integers(*span, (size, size, 1 if fields.get("depthwise") else cin, cout))
    operation = convolution(
        kernel.astype(np.uint8 if unsigned else np.int16 if bits > 8 else np.int8),
        kernel_scale=np.array([0.01]) if unsigned else rng.uniform(0.001, 0.02, cout),
        kernel_zero_point=131 if unsigned else 0,
        bias=rng.integers(-3000, 3000, cout).astype(np.int32),
        low=-20,
        **fields,
    )
    x = rng.integers(grid.low, grid.high + 1, (2, 9, 8, cin)).astype(grid.dtype)
    if case.startswith("sixteen"):
        x //= 64  # so that sums fit
    found = of(operation, {"x": x}, {"x": grid, "y": target}, rounding)
    if operation.depthwise and rounding == "builtin":
        rounding = "double"
    np.testing.assert_array_equal(found, slow_linear(operation, x, grid, target, rounding))
    assert len(np.unique(found)) > 5


def test_dense_layers_equal_loops():
    rng = np.random.default_rng(0)
    grid, target = Grid(0.02, -128), Grid(0.03, 5)
    operation = dense(
        rng.integers(-127, 128, (40, 11)).astype(np.int8),
        kernel_scale=rng.uniform(0.001, 0.01, 11),
        bias=rng.integers(-9000, 9000, 11).astype(np.int32),
    )
    x = rng.integers(-128, 128, (3, 40)).astype(np.int8)
    found = of(operation, {"x": x}, {"x": grid, "y": target})
    np.testing.assert_array_equal(found, slow_linear(operation, x, grid, target, "double"))


def test_products_in_float64_are_exact():
    """Sums up to 2**45, far beyond int32, equal int64's."""
    rng = np.random.default_rng(0)
    grid = Grid(1.0, 0, -32768, 32767)
    operation = dense(rng.integers(-32768, 32768, (30_000, 3)))
    rows = rng.integers(-32768, 32768, (5, 30_000))
    rows[0], operation.kernel[:, 0] = 32767, 32767
    found = np.concatenate(list(operation._products(rows, grid)))
    np.testing.assert_array_equal(found, rows @ operation.kernel)
    assert found.max() > 1 << 44


@pytest.mark.parametrize("depthwise", [False, True])
def test_sums_that_leave_int32(depthwise: bool):
    grid = Grid(1.0, 0, -32768, 32767)
    channels = 1 if depthwise else 1200
    kernel = np.full((3, 3, channels, 1), 127 if not depthwise else 32767, np.int32)
    operation = convolution(kernel, depthwise=depthwise)
    x = np.full((1, 3, 3, channels), 32767, np.int16)
    with pytest.raises(IntegerError, match="Convolution y overflows int32: it reaches"):
        of(operation, {"x": x}, {"x": grid, "y": Grid(1e9)})
    # The same kernel with inputs that it can take.
    small = np.full_like(x, 1)
    y = of(operation, {"x": small}, {"x": grid, "y": Grid(float(kernel.sum()))})
    assert y.ravel().tolist() == [1]


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (convolution(np.ones((3, 3, 1, 2))), "Convolution y has a kernel of float64"),
        (convolution(np.ones((3, 3, 2), int)), r"kernel of shape \[3, 3, 2\], not \[k, k, C_in"),
        (convolution(np.ones((3, 3, 2, 2), int), depthwise=True), r"not \[k, k, 1, C\]"),
        (convolution(np.ones((3, 3, 1, 2), int), strides=0), "strides 0"),
        (convolution(np.ones((3, 3, 1, 2), int), pads=(0, 0, -1, 0)), "pads at least 0"),
        (convolution(np.ones((1, 1, 1, 2), int), kernel_scale=np.ones(3)), r"scales of shape \[3"),
        (convolution(np.ones((1, 1, 1, 2), int), kernel_scale=0.0), "kernel scale that is not pos"),
        (convolution(np.ones((1, 1, 1, 2), int), kernel_scale=np.nan), "kernel scale that is not"),
        (convolution(np.ones((1, 1, 1, 2), int), kernel_zero_point=0.5), "zero point of float64"),
        (convolution(np.ones((1, 1, 1, 2), int), bias=np.ones(2)), "bias of float64"),
        (convolution(np.ones((1, 1, 1, 2), int), bias=np.ones(3, int)), r"biases of shape \[3\]"),
        (convolution(np.ones((1, 1, 1, 1), int), bias=np.array([1 << 31])), "not fit into int32"),
        (dense(np.ones((2, 2, 2), int)), r"kernel of shape \[2, 2, 2\], not \[K, N\]"),
        (dense(np.full((1, 1), 1 << 38)), "add up to more than"),
        (dense(np.ones((2, 2), int), low=-129), "clips to -129 .. 127"),
        (dense(np.ones((2, 2), int), low=3, high=2), "clips to 3 .. 2"),
        (dense(np.ones((2, 2), int), inputs=("x", "x")), "reads 2 tensors, not 1"),
        (dense(np.ones((2, 2), int), inputs=("z",)), "Tensor z of Dense y has no grid"),
        (Mean(inputs=("x",), output="y", rule="median"), "rule 'median'"),  # pyright: ignore[reportArgumentType]
        (Lookup(inputs=("x",), output="y", table=np.zeros(16, int)), r"table of shape \[16\]"),
        (Lookup(inputs=("x",), output="y", table=np.full(256, 200)), "codes 200 to 200"),
        (Lookup(inputs=("w",), output="y", table=np.zeros(65536, int)), "tables have at most 256"),
    ],
)  # fmt: skip
def test_operations_that_cannot_be(operation: Operation, message: str):
    grids = {"x": UNIT, "y": UNIT, "w": Grid(1.0, 0, -32768, 32767)}
    with pytest.raises(IntegerError, match=message):
        Graph((operation,), operation.inputs[0], "y", grids)


@pytest.mark.parametrize(
    ("operation", "shape", "message"),
    [
        (convolution(np.ones((3, 3, 2, 2), int)), (1, 5, 5, 3), r"reads \[B, H, W, 2\]"),
        (convolution(np.ones((3, 3, 2, 2), int)), (5, 5, 2), r"reads \[B, H, W, 2\]"),
        (convolution(np.ones((3, 3, 2, 2), int)), (1, 2, 5, 2), "smaller than its window"),
        (dense(np.ones((2, 2), int)), (1, 3), r"reads \[..., 2\]"),
        (Mean(inputs=("x",), output="y"), (2, 3), r"reads \[B, H, W, C\]"),
    ],
)
def test_shapes_that_do_not_fit(operation: Operation, shape: tuple[int, ...], message: str):
    with pytest.raises(IntegerError, match=message):
        of(operation, {"x": np.zeros(shape, np.int8)}, {"x": UNIT, "y": UNIT})


# ---------------------------------------------------------------------------------------------
# Other operations
# ---------------------------------------------------------------------------------------------


def column(*codes: int, dtype: Any = np.int8) -> np.ndarray:
    return np.array(codes, dtype).reshape(1, -1, 1, 1)


def add(x: np.ndarray, y: np.ndarray, gx: Grid, gy: Grid, gz: Grid, **fields: Any) -> list[int]:
    operation = Add(inputs=("x", "y"), output="z", **fields)
    grids = {"x": gx, "y": gy, "z": gz}
    graph = Graph(
        (Rescale(inputs=("x",), output="y"), operation), "x", "z", grids
    )  # so that y is made
    return run_op(graph, operation, {"x": x, "y": y}).ravel().tolist()


def test_sums():
    x, y = column(3, -3, 127, 1), column(4, -4, 127, -1)
    assert add(x, y, UNIT, UNIT, UNIT) == [7, -7, 127, 0]
    # Halves away from zero.
    assert add(x, y, UNIT, UNIT, Grid(2.0)) == [4, -4, 127, 0]
    assert add(x, y, UNIT, UNIT, UNIT, low=0, high=6) == [6, 0, 6, 0]
    # 0.5 * (5 - 1) + 2 * 3 = 8, onto a grid whose zero is 10.
    assert add(column(5), column(3), Grid(0.5, 1), Grid(2.0), Grid(1.0, 10)) == [18]
    wide = Grid(1.0, 0, -32768, 32767)
    assert add(column(30000, dtype=np.int16), column(2000, dtype=np.int16), wide, wide, wide) == [
        32000
    ]


def test_sums_equal_exact_fractions():
    rng = np.random.default_rng(0)
    gx, gy, gz = Grid(0.0371, -7), Grid(0.0219, 11), Grid(0.0433, -1)
    x, y = (rng.integers(-128, 128, (1, 500, 1, 1)).astype(np.int8) for _ in range(2))
    common = 2 * gx.scale
    total = [int(v) for v in integer.quantize_multiplier(common / (2**20 * gz.scale))]

    def term(code: int, grid: Grid) -> int:
        factor = [int(v) for v in integer.quantize_multiplier(grid.scale / common)]
        return scaled((code - grid.zero_point) << 20, factor[0], factor[1], "double")

    wanted = [
        scaled(term(int(a), gx) + term(int(b), gy), total[0], total[1], "double") + gz.zero_point
        for a, b in zip(x.ravel(), y.ravel(), strict=True)
    ]
    found = add(x, y, gx, gy, gz)
    assert found == np.clip(wanted, -128, 127).tolist()
    real = gx.dequantize(x) + gy.dequantize(y)
    assert np.abs(gz.quantize(real).astype(int).ravel() - found).max() <= 1


def test_terms_of_a_sum_have_one_shape():
    with pytest.raises(IntegerError, match=r"Add z was given \[1, 2, 1, 1\] and \[1, 1, 1, 1\]"):
        add(column(1, 2), column(1), UNIT, UNIT, UNIT)


@pytest.mark.parametrize(
    ("rule", "codes", "grid", "target", "wanted"),
    [
        # Reals 0, 1, 2, 4: 1.75.
        ("centred", (1, 2, 3, 5), Grid(1.0, 1), Grid(1.0), 2),
        ("offset", (1, 2, 3, 5), Grid(1.0, 1), Grid(1.0), 2),
        # Reals 0, 1, 2, 3 in fours: 0.375. The rounded share of the zero point is 0, so the second
        # rule takes 10 / 16 for the mean.
        ("centred", (1, 2, 3, 4), Grid(1.0, 1), Grid(4.0), 0),
        ("offset", (1, 2, 3, 4), Grid(1.0, 1), Grid(4.0), 1),
        ("offset", (-128, -128, -128, -124), Grid(1.0, -128), Grid(0.5, -128), -126),
        ("centred", (-128, -128, -128, -124), Grid(1.0, -128), Grid(0.5, -128), -126),
        ("pool", (1, 2, 3, 4), Grid(1.0), Grid(1.0), 3),  # 2.5
        ("pool", (-1, -2, -3, -4), Grid(1.0), Grid(1.0), -3),
        ("pool", (1, 2, 3, 3), Grid(1.0, 7), Grid(1.0, 7), 2),
    ],
)
def test_means(rule: Any, codes: tuple[int, ...], grid: Grid, target: Grid, wanted: int):
    operation = Mean(inputs=("x",), output="y", rule=rule)
    x = np.array(codes, np.int8).reshape(1, 2, 2, 1)
    y = of(operation, {"x": x}, {"x": grid, "y": target})
    assert y.tolist() == [[wanted]]


@pytest.mark.parametrize("rule", ["centred", "offset"])
def test_means_are_within_one_code(rule: Any):
    rng = np.random.default_rng(0)
    grid, target = Grid(0.0235, -100), Grid(0.0191, -128)
    x = rng.integers(-128, 128, (3, 7, 7, 50)).astype(np.int8)
    y = of(Mean(inputs=("x",), output="y", rule=rule), {"x": x}, {"x": grid, "y": target})
    assert y.shape == (3, 50) and len(np.unique(y)) > 10
    real = grid.dequantize(x).mean((1, 2))
    assert np.abs(target.quantize(real).astype(int) - y).max() <= 1


def test_pooling_stays_on_its_grid():
    operation = Mean(inputs=("x",), output="y", rule="pool")
    with pytest.raises(IntegerError, match="Mean y pools into another grid"):
        Graph((operation,), "x", "y", {"x": UNIT, "y": Grid(2.0)})


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 1, 3)])
def test_gates(shape: tuple[int, ...]):
    operation = Multiply(inputs=("x", "g"), output="y")
    grids = {"x": Grid(0.5, 2), "g": Grid(1 / 256, -128), "y": Grid(0.25, -3)}
    graph = Graph((Rescale(inputs=("x",), output="g"), operation), "x", "y", grids)
    x = np.arange(12, dtype=np.int8).reshape(2, 2, 1, 3)
    gate = np.array([[-128, 0, 127], [64, -64, 0]], np.int8)
    y = run_op(graph, operation, {"x": x, "g": gate.reshape(shape)})
    real = grids["x"].dequantize(x) * grids["g"].dequantize(gate)[:, None, None]
    assert np.abs(grids["y"].quantize(real).astype(int) - y).max() <= 1
    # (code - 2) * (gate + 128) / 128 - 3, half away from zero: -2 * 0, -1 * 128, 0 * 255, 7 * 192.
    assert y[0, 0, 0].tolist() == [-3, -4, -3]
    assert y[1, 1, 0, 0] == 11 - 3
    with pytest.raises(IntegerError, match=r"\[2, 2, 1, 3\] and \[2, 2\]"):
        run_op(graph, operation, {"x": x, "g": gate[:, :2]})


def test_tables():
    source, target = Grid(1.0, 0, -4, 3), Grid(1 / 60, 0, 0, 255)
    table = lookup_table("hard_sigmoid", source, target)
    # (x + 3) / 6 in sixtieths.
    np.testing.assert_array_equal(table, [0, 0, 10, 20, 30, 40, 50, 60])
    operation = Lookup(inputs=("x",), output="y", table=table, high=45)
    x = np.array([[-4, 3], [0, -1]], np.int8)
    y = of(operation, {"x": x}, {"x": source, "y": target})
    assert y.dtype == np.uint8
    np.testing.assert_array_equal(y, [[0, 45], [30, 20]])
    sigmoid = lookup_table("sigmoid", UNIT, Grid(1 / 256, -128))
    assert sigmoid[128] == 0 and sigmoid[0] == -128 and sigmoid[-1] == 127
    squares = lookup_table(np.square, source, Grid(1.0, 0, 0, 20))
    np.testing.assert_array_equal(squares, [16, 9, 4, 1, 0, 1, 4, 9])


def test_tables_that_cannot_be():
    with pytest.raises(IntegerError, match="reads 65,536 codes; tables have at most 256"):
        lookup_table("sigmoid", Grid(1.0, 0, -32768, 32767), UNIT)
    with pytest.raises(IntegerError, match="There is no function 'tanh'"):
        lookup_table("tanh", UNIT, UNIT)


def test_rescaling():
    operation = Rescale(inputs=("x",), output="y")
    x = np.array([0, 127, 128, 255], np.uint8)
    y = of(operation, {"x": x}, {"x": Grid(0.1, 127, 0, 255), "y": Grid(0.1, -1)})
    np.testing.assert_array_equal(y, [-128, -1, 0, 127])
    y = of(operation, {"x": x}, {"x": Grid(0.1, 127, 0, 255), "y": Grid(0.4, 0)})
    np.testing.assert_array_equal(y, [-32, 0, 1, 32])  # 1/4 rounded twice is 1
    assert y.dtype == np.int8


# ---------------------------------------------------------------------------------------------
# Graphs
# ---------------------------------------------------------------------------------------------


def gated_network(rng: np.random.Generator) -> Graph:
    """A convolution, squeeze-and-excitation, a shortcut, the mean, a classifier."""

    def kernel(*shape: int) -> np.ndarray:
        return rng.integers(-127, 128, shape).astype(np.int8)

    grids = {
        "x": Grid(2 / 255, -1),
        "a": Grid(6 / 255, -128),
        "pooled": Grid(6 / 255, -128),
        "reduced": Grid(3 / 255, -128),
        "expanded": Grid(0.05, 0),
        "gate": Grid(1 / 256, -128),
        "gated": Grid(6 / 255, -128),
        "sum": Grid(10 / 255, -128),
        "mean": Grid(6 / 255, -128),
        "logits": Grid(0.05, 0),
    }
    operations = (
        convolution(kernel(3, 3, 3, 8), inputs=("x",), output="a", kernel_scale=0.004,
                    bias=np.full(8, 9000), strides=2, pads=(0, 1, 0, 1)),
        Mean(inputs=("a",), output="pooled"),
        dense(kernel(8, 4), inputs=("pooled",), output="reduced", kernel_scale=0.004),
        dense(kernel(4, 8), inputs=("reduced",), output="expanded", kernel_scale=0.01),
        Lookup(inputs=("expanded",), output="gate",
               table=lookup_table("sigmoid", grids["expanded"], grids["gate"])),
        Multiply(inputs=("a", "gate"), output="gated"),
        Add(inputs=("gated", "a"), output="sum"),
        Mean(inputs=("sum",), output="mean"),
        dense(kernel(8, 5), inputs=("mean",), output="logits", kernel_scale=0.005),
    )  # fmt: skip
    return Graph(operations, "x", "logits", grids, (8, 8, 3))


def test_a_network_with_gates_is_near_its_real_numbers():
    rng = np.random.default_rng(0)
    graph = gated_network(rng)
    images = rng.uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    codes = graph.quantize_input(images)
    tensors = run(graph, codes, keep=True)
    assert set(tensors) == set(graph.grids)
    np.testing.assert_array_equal(run(graph, codes), tensors["logits"])
    # The same in real numbers, from each operation's own inputs.
    real = {name: graph.grids[name].dequantize(found) for name, found in tensors.items()}
    gated = real["a"] * real["gate"][:, None, None]
    for name, wanted in (
        ("gate", 1 / (1 + np.exp(-real["expanded"]))),
        ("gated", gated),
        ("sum", np.clip(real["gated"] + real["a"], 0, 10)),
        ("mean", np.clip(real["sum"].mean((1, 2)), 0, 6)),
    ):
        apart = np.abs(real[name] - wanted).max()
        assert apart <= 1.01 * graph.grids[name].scale, name
    assert real["logits"].std() > 0.1


def test_a_batch_is_its_pictures_one_by_one():
    rng = np.random.default_rng(1)
    graph = gated_network(rng)
    codes = graph.quantize_input(rng.uniform(-1, 1, (3, 8, 8, 3)))
    together = run(graph, codes)
    assert together.shape == (3, 5) and together.dtype == np.int8
    alone = [run(graph, codes[n : n + 1]) for n in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert graph.dequantize_output(together).dtype == np.float32
    # The rounding is another one, and the answer is close.
    for rounding in integer.ROUNDINGS[1:]:
        other = run(graph, codes, rounding=rounding)
        assert np.abs(other.astype(int) - together).max() <= 3


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "Tensor x was given as float32"),
        (np.zeros((1, 8, 8, 3), bool), "Tensor x was given as bool"),
        ([[1]], "Tensor x was given as list"),
        (np.zeros((0, 8, 8, 3), np.int8), "it is empty"),
        (np.zeros((8, 8, 3), np.int8), r"given \[8, 8, 3\]; it reads \[B, 8, 8, 3\]"),
        (np.zeros((1, 9, 8, 3), np.int8), r"given \[1, 9, 8, 3\]"),
        (np.full((1, 8, 8, 3), 128), "codes 128 to 128; its grid has -128 to 127"),
    ],
)
def test_input_that_a_network_cannot_take(codes: Any, message: str):
    with pytest.raises(IntegerError, match=message):
        run(gated_network(np.random.default_rng(0)), codes)


def test_graphs_that_cannot_be():
    one, two = (
        Rescale(inputs=("x",), output="a"),
        Rescale(inputs=("a",), output="b"),
    )
    grids = {"x": UNIT, "a": UNIT, "b": UNIT}
    with pytest.raises(IntegerError, match="Rescale b reads tensor a, which nothing before it"):
        Graph((two, one), "x", "b", grids)
    with pytest.raises(IntegerError, match="Rescale a computes tensor a again"):
        Graph((one, one), "x", "a", grids)
    with pytest.raises(IntegerError, match="No operation computes the output, tensor b"):
        Graph((one,), "x", "b", grids)
    graph = Graph((one, two), "x", "b", grids)
    assert graph.operation("b") is two
    with pytest.raises(IntegerError, match="No operation computes tensor x"):
        graph.operation("x")
    with pytest.raises(IntegerError, match="reads tensor a, which was not given"):
        run_op(graph, two, {"x": np.zeros(1, np.int8)})
    with pytest.raises(IntegerError, match="use one of double, builtin, single"):
        run(graph, np.zeros((1, 1, 1, 1), np.int8), rounding="half")  # pyright: ignore
