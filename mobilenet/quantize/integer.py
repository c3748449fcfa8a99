"""Quantised networks in integer arithmetic: the reference for every other implementation.

A `Graph` is a list of operations on named tensors of integer codes. A code stands for the real
number scale * (code - zero_point) of its tensor's `Grid` (Jacob et al. 2017, arXiv 1712.05877,
section 2.1). Products are summed in int32, and a fixed-point multiplication converts the sum to
eight bits (section 2.2 and appendix B), as in TFLite's built-in kernels. Only NumPy is needed, and
the codes do not depend on the machine or on the number of threads.

    graph = tflite_file.read(path)                       # or built from operations
    codes = run(graph, graph.quantize_input(images))     # [B, classes]
    logits = graph.dequantize_output(codes)

Activations have up to 16 bits. TFLite sums those of 16 bits in 64 bits. Here every sum must fit
into 32 bits for any grid; a sum that does not fit is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args, overload

import numpy as np

Rounding = Literal["double", "builtin", "single"]
MeanRule = Literal["centred", "offset", "pool"]

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
_INT32 = np.iinfo(np.int32)
# Elements that are requantised at a time: a few int64 arrays of this size stay in a core's cache.
_BLOCK = 1 << 15
# Elements of a matrix product: many, because a BLAS with threads waits for them after each product.
_MATRIX = 1 << 20


class IntegerError(ValueError):
    """A graph is not an integer network, or cannot take an input; the message says why."""


# ---------------------------------------------------------------------------------------------
# Grids
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Grid:
    """The codes of a tensor and what they mean: real = scale * (code - zero_point).

    Attributes:
      scale: step between two neighbouring codes, in real units; positive and finite.
      zero_point: the code of 0.0, which is used for padding.
      low, high: the smallest and the largest code: -128 and 127 for int8, 0 and 255 for uint8, -8
        and 7 for four bits. All codes fit into int16, or all into uint16.

    Raises IntegerError for any other values.
    """

    scale: float
    zero_point: int = 0
    low: int = -128
    high: int = 127

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise IntegerError(f"A grid's scale is {self.scale}; it must be positive and finite.")
        if not self.low <= self.zero_point <= self.high or self.low == self.high:
            raise IntegerError(
                f"A grid has the codes {self.low} to {self.high} and the zero point "
                f"{self.zero_point}; it needs at least two codes, and the zero point must be one."
            )
        if not any(
            info.min <= self.low and self.high <= info.max
            for info in (np.iinfo(np.int16), np.iinfo(np.uint16))
        ):
            raise IntegerError(
                f"A grid has the codes {self.low} to {self.high}; they do not fit into 16 bits."
            )

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The smallest of int8, uint8, int16 and uint16 that holds every code."""
        for dtype in map(np.dtype, ("int8", "uint8", "int16", "uint16")):
            if np.iinfo(dtype).min <= self.low and self.high <= np.iinfo(dtype).max:
                return dtype
        raise AssertionError(self)  # excluded by `__post_init__`

    @property
    def reach(self) -> int:
        """The largest |code - zero_point|."""
        return max(self.zero_point - self.low, self.high - self.zero_point)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """The nearest codes of real numbers, half to even, clipped to the range: [...] in `dtype`.

        Raises:
          IntegerError: a number is NaN.
        """
        codes = np.rint(np.asarray(x, np.float64) / self.scale)
        if np.isnan(codes).any():
            raise IntegerError("A grid was asked for the code of NaN; it has none.")
        return np.clip(codes + self.zero_point, self.low, self.high).astype(self.dtype)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """The real numbers that codes stand for: [...] float32."""
        centred = np.asarray(codes).astype(np.int64) - self.zero_point
        return (self.scale * centred).astype(np.float32)

    def check(self, codes: np.ndarray, name: str) -> None:
        """Raises IntegerError, with `name`, unless all codes are integers of this grid."""
        if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu":
            found = codes.dtype if isinstance(codes, np.ndarray) else type(codes).__name__
            raise IntegerError(f"Tensor {name} was given as {found}; it must be integer codes.")
        if codes.size == 0:
            raise IntegerError(f"Tensor {name} has the shape {list(codes.shape)}: it is empty.")
        least, most = int(codes.min()), int(codes.max())
        if least < self.low or most > self.high:
            raise IntegerError(
                f"Tensor {name} holds codes {least} to {most}; its grid has {self.low} to "
                f"{self.high}."
            )


# ---------------------------------------------------------------------------------------------
# Fixed-point arithmetic
# ---------------------------------------------------------------------------------------------


def quantize_multiplier(real: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real factors as int32 multipliers and shifts: real = multiplier / 2**31 * 2**shift.

    The multiplier is the mantissa of `real` in [1/2, 1) with 31 bits after the point, rounded half
    away from zero, so it has 31 significant bits for a factor of any size (Jacob et al., section
    2.2). A factor below 2**-32 becomes 0, as in TFLite.

    Args:
      real: factors, scalar or array; not negative, at most 2**30.

    Returns:
      multiplier: int64 of real's shape, 0 or 2**30 .. 2**31 - 1.
      shift: int64 of real's shape, -31 .. 30; positive ones shift to the left.

    Raises:
      IntegerError: NaN, infinite, negative or too large.
    """
    real = np.asarray(real, np.float64)
    if not np.all(np.isfinite(real)) or np.any(real < 0):
        raise IntegerError("A factor of a requantisation is negative, infinite or NaN.")
    mantissa, exponent = np.frexp(real)
    multiplier = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64)
    shift = exponent.astype(np.int64)
    # A mantissa that rounds up to 1 is 1/2 with the next exponent.
    carried = multiplier == 1 << 31
    multiplier, shift = np.where(carried, 1 << 30, multiplier), shift + carried
    if np.any(shift > 30):
        raise IntegerError(f"A factor of a requantisation is {real.max():.3g}, above 2**30.")
    lost = shift < -31
    return np.where(lost, 0, multiplier), np.where(lost, 0, shift)


def high_multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a * b / 2**31, rounded half upwards, for int32 values in int64 arrays (appendix B).

    It is the high half of the doubled product, "saturating rounding doubling high multiply". Only
    the product of -2**31 with itself does not fit; it saturates at 2**31 - 1.
    """
    product = np.asarray(a * b)
    product += 1 << 30
    product >>= 31
    return np.minimum(product, _INT32.max, out=product)


def rounding_shift(
    x: np.ndarray, exponent: np.ndarray | int, *, upwards: bool = False
) -> np.ndarray:
    """x / 2**exponent, rounded half away from zero (appendix B), or half `upwards`.

    The exponent is 0 .. 31.
    """
    half = (np.int64(1) << np.asarray(exponent, np.int64)) >> 1
    result = x + half
    if not upwards:
        # An arithmetic shift rounds down; subtracting 1 makes negative ties round down too.
        result -= (x < 0) & (half > 0)
    result >>= exponent
    return result


def multiply(
    x: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    rounding: Rounding = "double",
    *,
    name: str = "",
) -> np.ndarray:
    """x * multiplier / 2**31 * 2**shift, rounded to integers.

    Args:
      x: int64 array of int32 values.
      multiplier, shift: of `quantize_multiplier`; scalars, or one for each of the last axis.
      rounding: one of:
        "double": the product by `high_multiply`, then its right shift by `rounding_shift`, half
        away from zero, as in gemmlowp and TFLite's reference kernels.
        "builtin": the same, but with the right shift half upwards in those operations in which
        TFLite's built-in kernels on x86 do so: "offset" means, and dense layers and convolutions
        that are not depthwise (computed by ruy, a matrix library). Others use "double".
        "single": one rounding, half upwards, as in TFLite built with TFLITE_SINGLE_ROUNDING.
      name: of the operation, for the message.

    Returns:
      int64 array of x's shape.

    Raises:
      IntegerError: an intermediate value does not fit into int32, or the rounding is unknown.
    """
    if rounding not in ROUNDINGS:
        raise IntegerError(f"rounding is {rounding!r}; use one of {', '.join(ROUNDINGS)}.")
    if rounding == "single":
        total = 31 - shift
        result = (x * multiplier + (np.int64(1) << (total - 1))) >> total
        # Factors below 1 cannot cause an overflow.
        return result if np.all(shift <= 0) else _int32(result, name)
    if np.any(shift > 0):
        x = _int32(x << np.maximum(shift, 0), name)
    high = high_multiply(x, multiplier)
    return rounding_shift(high, np.maximum(-shift, 0), upwards=rounding == "builtin")


def _int32(x: np.ndarray, name: str) -> np.ndarray:
    least, most = int(x.min()), int(x.max())
    if least < _INT32.min or most > _INT32.max:
        raise IntegerError(
            f"{name or 'A requantisation'} overflows int32: it reaches "
            f"{least if least < _INT32.min else most}."
        )
    return x


# ---------------------------------------------------------------------------------------------
# Operations
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Operation:
    """The common part of all operations.

    Attributes:
      inputs: names of the tensors it reads.
      output: name of the tensor it computes, which is also the operation's name.
      low, high: codes to which its result is clipped, for an activation such as ReLU6; None is the
        end of the output's grid.
    """

    inputs: tuple[str, ...]
    output: str
    low: int | None = None
    high: int | None = None

    arity = 1  # of inputs

    @property
    def name(self) -> str:
        """The operation's name in messages."""
        return f"{type(self).__name__} {self.output}"

    def validate(self, grids: Sequence[Grid], target: Grid) -> None:
        """Checks it against the grids of its inputs and of its output; raises IntegerError."""
        if len(self.inputs) != self.arity:
            raise IntegerError(f"{self.name} reads {len(self.inputs)} tensors, not {self.arity}.")
        low, high = self.clip(target)
        if not target.low <= low <= high <= target.high:
            raise IntegerError(
                f"{self.name} clips to {low} .. {high}; its output has the codes {target.low} to "
                f"{target.high}."
            )

    def clip(self, target: Grid) -> tuple[int, int]:
        """The smallest and the largest code of the result."""
        return (
            target.low if self.low is None else self.low,
            target.high if self.high is None else self.high,
        )

    def run(
        self, inputs: Sequence[np.ndarray], grids: Sequence[Grid], target: Grid, rounding: Rounding
    ) -> np.ndarray:
        """The codes of the output, for codes of the inputs."""
        raise NotImplementedError

    def _finish(self, x: np.ndarray, target: Grid) -> np.ndarray:
        return np.clip(x + target.zero_point, *self.clip(target)).astype(target.dtype)

    def _away(self, rounding: Rounding) -> Rounding:
        """The rounding of operations that round ties away from zero in the built-in kernels too."""
        return "double" if rounding == "builtin" else rounding

    def _fail(self, message: str) -> IntegerError:
        return IntegerError(f"{self.name} {message}")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Linear(Operation):
    """Products with a kernel, summed in int32, plus a bias, requantised per channel.

    Attributes:
      kernel: codes, integers of at most 16 bits; the last axis is output channels.
      kernel_scale: scale of the kernel, [1] or one per output channel.
      kernel_zero_point: code of a zero weight, an integer or one per output channel; 0 if the
        weights are symmetric.
      bias: integers [output channels] in units of input scale * kernel scale; None for no bias.
    """

    kernel: np.ndarray
    kernel_scale: np.ndarray | float
    kernel_zero_point: np.ndarray | int = 0
    bias: np.ndarray | None = None

    # Axes over which a sum is taken.
    _summed = (0,)

    def validate(self, grids: Sequence[Grid], target: Grid) -> None:
        super().validate(grids, target)
        channels = self.kernel.shape[-1]
        for what, values in (
            ("kernel", self.kernel),
            ("kernel zero point", np.asarray(self.kernel_zero_point)),
            ("bias", self._bias),
        ):
            if values.dtype.kind not in "iu":
                raise self._fail(f"has a {what} of {values.dtype}; it must be integers.")
        for what, values in (
            ("kernel scales", np.asarray(self.kernel_scale)),
            ("kernel zero points", np.asarray(self.kernel_zero_point)),
            ("biases", self._bias),
        ):
            if values.shape not in ((), (1,), (channels,)) or (
                what == "biases" and values.shape != (channels,)
            ):
                raise self._fail(
                    f"has {what} of shape {list(values.shape)} for {channels} channels."
                )
        scale = np.asarray(self.kernel_scale, np.float64)
        if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
            raise self._fail("has a kernel scale that is not positive and finite.")
        if self._bias.min() < _INT32.min or self._bias.max() > _INT32.max:
            raise self._fail("has a bias that does not fit into int32.")
        # With this limit and inputs of 16 bits every sum stays below 2**53.
        if self._magnitude.max() > 1 << 37:
            raise self._fail("has a kernel whose codes add up to more than 2**37.")

    @functools.cached_property
    def centred(self) -> np.ndarray:
        """The kernel without its zero point, int64."""
        return self.kernel.astype(np.int64) - self.kernel_zero_point

    @functools.cached_property
    def _bias(self) -> np.ndarray:
        if self.bias is None:
            return np.zeros(self.kernel.shape[-1], np.int64)
        return self.bias if self.bias.dtype.kind not in "iu" else self.bias.astype(np.int64)

    @functools.cached_property
    def _weights(self) -> np.ndarray:
        return self.centred.reshape(-1, self.kernel.shape[-1]).astype(np.float64)

    @functools.cached_property
    def _magnitude(self) -> np.ndarray:
        """Sum of |weight| for each output channel."""
        return np.abs(self.centred).sum(self._summed)

    def _fits(self, grid: Grid) -> bool:
        """Whether all sums fit into int32, including intermediate ones."""
        return bool((self._magnitude * grid.reach + np.abs(self._bias)).max() <= _INT32.max)

    def _requantised(
        self, sums: Iterator[np.ndarray], grid: Grid, target: Grid, rounding: Rounding
    ) -> np.ndarray:
        """Turns blocks of sums of products, [some rows, channels], into one array of codes.

        The sums are integers of any type; this method adds the bias.
        """
        scale = np.asarray(self.kernel_scale, np.float64)
        scaling = quantize_multiplier(grid.scale * scale / target.scale)
        fits = self._fits(grid)
        found = []
        for block in sums:
            step = max(1, _BLOCK // block.shape[1])
            for start in range(0, len(block), step):
                total = block[start : start + step].astype(np.int64)
                total += self._bias
                total = total if fits else _int32(total, self.name)
                scaled = multiply(total, *scaling, rounding, name=self.name)
                found.append(self._finish(scaled, target))
        return np.concatenate(found)

    def _products(self, rows: np.ndarray, grid: Grid) -> Iterator[np.ndarray]:
        """Centred codes [rows, K] times the kernel, in blocks [some rows, N] of float64."""
        step = max(1, _MATRIX // max(self._weights.shape))
        for start in range(0, len(rows), step):
            block = rows[start : start + step].astype(np.float64)
            block -= grid.zero_point
            # float64 adds integers exactly below 2**53, which `validate` guarantees, and it has a
            # fast matrix product; int64 has none.
            yield block @ self._weights


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(_Linear):
    """A convolution, dense or depthwise, of codes [B, H, W, C].

    Attributes:
      kernel: [k, k, C_in, C_out], or [k, k, 1, C] when `depthwise`, as
        `mobilenet.models.layers.Conv`.
      strides, dilation: of both axes.
      pads: (top, bottom, left, right), of the input's zero point.
      depthwise: one filter per channel.
    """

    strides: int = 1
    dilation: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    depthwise: bool = False

    _summed = (0, 1, 2)

    def validate(self, grids: Sequence[Grid], target: Grid) -> None:
        if self.kernel.ndim != 4 or (self.depthwise and self.kernel.shape[2] != 1):
            wanted = "[k, k, 1, C]" if self.depthwise else "[k, k, C_in, C_out]"
            raise self._fail(f"has a kernel of shape {list(self.kernel.shape)}, not {wanted}.")
        if min(self.strides, self.dilation) < 1 or min(self.pads) < 0 or len(self.pads) != 4:
            raise self._fail(
                f"has strides {self.strides}, dilation {self.dilation}, pads {self.pads}; strides "
                "and dilation must be at least 1, the four pads at least 0."
            )
        super().validate(grids, target)

    def run(
        self, inputs: Sequence[np.ndarray], grids: Sequence[Grid], target: Grid, rounding: Rounding
    ) -> np.ndarray:
        (x,), (grid,) = inputs, grids
        channels = self.kernel.shape[3 if self.depthwise else 2]
        if x.ndim != 4 or x.shape[3] != channels:
            raise self._fail(f"was given {list(x.shape)}; it reads [B, H, W, {channels}].")
        top, bottom, left, right = self.pads
        height = self._size(x.shape[1] + top + bottom, self.kernel.shape[0])
        width = self._size(x.shape[2] + left + right, self.kernel.shape[1])
        if min(height, width) < 1:
            raise self._fail(f"was given {list(x.shape)}, smaller than its window.")
        if any(self.pads):
            pads = ((0, 0), (top, bottom), (left, right), (0, 0))
            x = np.pad(x, pads, constant_values=grid.zero_point)
        if self.depthwise:
            rounding = self._away(rounding)
        sums = (self._depthwise if self.depthwise else self._dense)(x, height, width, grid)
        codes = self._requantised(sums, grid, target, rounding)
        return codes.reshape(len(x), height, width, self.kernel.shape[3])

    def _size(self, padded: int, kernel: int) -> int:
        return (padded - (kernel - 1) * self.dilation - 1) // self.strides + 1

    def _windows(self, x: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
        """The input of each tap of the kernel: [..., height, width, C], in the kernel's order."""
        for i in range(self.kernel.shape[0]):
            for j in range(self.kernel.shape[1]):
                row, column = i * self.dilation, j * self.dilation
                yield x[
                    ...,
                    row : row + (height - 1) * self.strides + 1 : self.strides,
                    column : column + (width - 1) * self.strides + 1 : self.strides,
                    :,
                ]

    def _dense(self, x: np.ndarray, height: int, width: int, grid: Grid) -> Iterator[np.ndarray]:
        windows = list(self._windows(x, height, width))
        patches = windows[0] if len(windows) == 1 else np.concatenate(windows, axis=-1)
        return self._products(patches.reshape(-1, patches.shape[-1]), grid)

    def _depthwise(
        self, x: np.ndarray, height: int, width: int, grid: Grid
    ) -> Iterator[np.ndarray]:
        dtype = np.int32 if self._fits(grid) else np.int64
        taps = self.centred.reshape(-1, self.kernel.shape[3]).astype(dtype)
        total = np.empty((height, width, len(taps[0])), dtype)
        product = np.empty_like(total)
        for image in x:
            centred = image.astype(dtype) - dtype(grid.zero_point)
            windows = zip(self._windows(centred, height, width), taps, strict=True)
            np.multiply(*next(windows), out=total)
            for window, tap in windows:
                np.multiply(window, tap, out=product)
                np.add(total, product, out=total)
            yield total.reshape(-1, total.shape[-1])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dense(_Linear):
    """A dense layer on the last axis: codes [..., K] to [..., N], with a kernel [K, N]."""

    def validate(self, grids: Sequence[Grid], target: Grid) -> None:
        if self.kernel.ndim != 2:
            raise self._fail(f"has a kernel of shape {list(self.kernel.shape)}, not [K, N].")
        super().validate(grids, target)

    def run(
        self, inputs: Sequence[np.ndarray], grids: Sequence[Grid], target: Grid, rounding: Rounding
    ) -> np.ndarray:
        (x,), (grid,) = inputs, grids
        size, channels = self.kernel.shape
        if x.ndim < 2 or x.shape[-1] != size:
            raise self._fail(f"was given {list(x.shape)}; it reads [..., {size}].")
        sums = self._products(x.reshape(-1, size), grid)
        return self._requantised(sums, grid, target, rounding).reshape(*x.shape[:-1], channels)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Add(Operation):
    """The sum of two tensors of the same shape, each with its own grid (Jacob et al., app. A.2).

    As in TFLite, both terms are shifted left by 20 bits (15 if a grid has more than 256 codes),
    converted to a common scale of twice the larger one, added, and converted to the output's scale.
    """

    arity = 2

    def run(
        self, inputs: Sequence[np.ndarray], grids: Sequence[Grid], target: Grid, rounding: Rounding
    ) -> np.ndarray:
        if inputs[0].shape != inputs[1].shape:
            shapes = " and ".join(str(list(x.shape)) for x in inputs)
            raise self._fail(f"was given {shapes}; the shapes must be the same.")
        rounding = self._away(rounding)
        wide = any(grid.high - grid.low > 255 for grid in (*grids, target))
        left = 15 if wide else 20
        common = 2 * max(grid.scale for grid in grids)
        terms = [quantize_multiplier(grid.scale / common) for grid in grids]
        total = quantize_multiplier(common / (2.0**left * target.scale))
        flat = [x.ravel() for x in inputs]
        codes = np.empty(flat[0].shape, target.dtype)
        for start in range(0, len(codes), _BLOCK):
            block = slice(start, start + _BLOCK)
            scaled = [
                multiply((x[block].astype(np.int64) - grid.zero_point) << left, *term, rounding)
                for x, grid, term in zip(flat, grids, terms, strict=True)
            ]
            result = multiply(scaled[0] + scaled[1], *total, rounding, name=self.name)
            codes[block] = self._finish(result, target)
        return codes.reshape(inputs[0].shape)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Mean(Operation):
    """The mean over height and width: codes [B, H, W, C] to [B, C].

    Attributes:
      rule: one of TFLite's definitions, which are all within one code of the real mean.
        "centred": the sum of code - zero_point, times one multiplier that includes the number of
        pixels; used by MEAN in general.
        "offset": the sum of the codes is scaled, and the contribution of the zero point, rounded
        separately, is added; used by MEAN of int8 and uint8 that keeps the axes, with size 1.
        "pool": the sum of the codes over their number, rounded half away from zero; used by
        AVERAGE_POOL_2D, whose input and output have the same grid.
    """

    rule: MeanRule = "centred"

    def validate(self, grids: Sequence[Grid], target: Grid) -> None:
        super().validate(grids, target)
        if self.rule not in ("centred", "offset", "pool"):
            raise self._fail(f"has the rule {self.rule!r}; use 'centred', 'offset' or 'pool'.")
        same = (grids[0].scale, grids[0].zero_point) == (target.scale, target.zero_point)
        if self.rule == "pool" and not same:
            raise self._fail("pools into another grid; scale and zero point must be the input's.")

    def run(
        self, inputs: Sequence[np.ndarray], grids: Sequence[Grid], target: Grid, rounding: Rounding
    ) -> np.ndarray:
        (x,), (grid,) = inputs, grids
        if x.ndim != 4:
            raise self._fail(f"was given {list(x.shape)}; it reads [B, H, W, C].")
        number = x.shape[1] * x.shape[2]
        total = _int32(x.sum((1, 2), dtype=np.int64), self.name)
        if self.rule == "pool":
            # An integer division that rounds towards zero.
            quotient = (np.abs(total) + number // 2) // number
            return self._finish(np.sign(total) * quotient - target.zero_point, target)
        if self.rule == "offset":
            # In float32, as in the kernel, because this decides the direction of ties.
            source, result = np.float32(grid.scale), np.float32(target.scale)
            share = np.float32(grid.zero_point) * source / result
            share = int(share + np.copysign(np.float32(0.5), share))
            scaling = quantize_multiplier(float(source / (np.float32(number) * result)))
            return self._finish(multiply(total, *scaling, rounding, name=self.name) - share, target)
        rounding = self._away(rounding)
        multiplier, shift = quantize_multiplier(grid.scale / target.scale)
        more = min(number.bit_length() - 1, 31 + int(shift))
        centred = _int32(total - grid.zero_point * number, self.name)
        scaling = (multiplier << more) // number, shift - more
        return self._finish(multiply(centred, *scaling, rounding, name=self.name), target)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Multiply(Operation):
    """A tensor times a gate per image and channel: the end of squeeze-and-excitation.

    The inputs are codes [B, H, W, C] and a gate [B, C] or [B, 1, 1, C]; the product of both
    centred codes is requantised once.
    """

    arity = 2

    def run(
        self, inputs: Sequence[np.ndarray], grids: Sequence[Grid], target: Grid, rounding: Rounding
    ) -> np.ndarray:
        x, gate = inputs
        if x.ndim != 4 or gate.shape not in (
            (x.shape[0], x.shape[3]),
            (x.shape[0], 1, 1, x.shape[3]),
        ):
            raise self._fail(
                f"was given {list(x.shape)} and {list(gate.shape)}; it reads [B, H, W, C] and a "
                "gate [B, C]."
            )
        rounding = self._away(rounding)
        scaling = quantize_multiplier(grids[0].scale * grids[1].scale / target.scale)
        codes = np.empty(x.shape, target.dtype)
        for number, image in enumerate(x):
            factor = gate[number].reshape(-1).astype(np.int64) - grids[1].zero_point
            product = (image.astype(np.int64) - grids[0].zero_point) * factor
            scaled = multiply(_int32(product, self.name), *scaling, rounding, name=self.name)
            codes[number] = self._finish(scaled, target)
        return codes


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Lookup(Operation):
    """Any function of one code, as a table: codes of any shape to the same shape.

    Attributes:
      table: codes of the output, one for each code of the input's grid from `low` to `high`, at
        most 256 (`lookup_table` makes one).
      function: the key of `FUNCTIONS` that the table represents, for information; "" for others.
    """

    table: np.ndarray
    function: str = ""

    def validate(self, grids: Sequence[Grid], target: Grid) -> None:
        super().validate(grids, target)
        _check_table_size(grids[0], self.name)
        if self.table.shape != (grids[0].high - grids[0].low + 1,):
            raise self._fail(
                f"has a table of shape {list(self.table.shape)} for the codes {grids[0].low} to "
                f"{grids[0].high}."
            )
        target.check(self.table, f"{self.output} (of {self.name}'s table)")

    def run(
        self, inputs: Sequence[np.ndarray], grids: Sequence[Grid], target: Grid, rounding: Rounding
    ) -> np.ndarray:
        found = self.table[inputs[0].astype(np.int64) - grids[0].low]
        return np.clip(found, *self.clip(target)).astype(target.dtype)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Rescale(Operation):
    """The same numbers on another grid: codes of any shape to the same shape."""

    def run(
        self, inputs: Sequence[np.ndarray], grids: Sequence[Grid], target: Grid, rounding: Rounding
    ) -> np.ndarray:
        (x,), (grid,) = inputs, grids
        rounding = self._away(rounding)
        scaling = quantize_multiplier(grid.scale / target.scale)
        centred = x.astype(np.int64) - grid.zero_point
        return self._finish(multiply(centred, *scaling, rounding, name=self.name), target)


# Functions of float64 arrays for `lookup_table`.
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


def lookup_table(
    function: str | Callable[[np.ndarray], np.ndarray], source: Grid, target: Grid
) -> np.ndarray:
    """The table of `Lookup` for a function of real numbers, computed in float64.

    Args:
      function: a key of `FUNCTIONS`, or a function of float64 arrays.
      source, target: grids of the input, of at most 256 codes, and of the output.

    Returns:
      Codes of `target` for each code of `source`.

    Raises:
      IntegerError: an unknown function, more than 256 codes, or a result that is NaN.
    """
    _check_table_size(source, "A table")
    if isinstance(function, str):
        if function not in FUNCTIONS:
            raise IntegerError(f"There is no function {function!r}; there is {sorted(FUNCTIONS)}.")
        function = FUNCTIONS[function]
    centred = np.arange(source.low, source.high + 1, dtype=np.float64) - source.zero_point
    return target.quantize(function(source.scale * centred))


def _check_table_size(grid: Grid, name: str) -> None:
    if grid.high - grid.low > 255:
        raise IntegerError(
            f"{name} reads {grid.high - grid.low + 1:,} codes; tables have at most 256, for inputs "
            "of 8 bits."
        )


# ---------------------------------------------------------------------------------------------
# Graphs
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A quantised network.

    Attributes:
      operations: in the order in which they run.
      input, output: names of the network's input tensor and of its result.
      grids: the grid of every tensor, by name.
      input_shape: [H, W, C] of one image; None for any.

    Raises IntegerError if an operation reads a tensor that no earlier one computes, a tensor has no
    grid or is computed twice, or an operation does not fit its grids.
    """

    operations: tuple[Operation, ...]
    input: str
    output: str
    grids: Mapping[str, Grid]
    input_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        made = {self.input}
        for operation in self.operations:
            for name in (self.input, *operation.inputs, operation.output):
                if name not in self.grids:
                    raise IntegerError(f"Tensor {name} of {operation.name} has no grid.")
            for name in operation.inputs:
                if name not in made:
                    raise IntegerError(
                        f"{operation.name} reads tensor {name}, which nothing before it computes."
                    )
            if operation.output in made:
                raise IntegerError(f"{operation.name} computes tensor {operation.output} again.")
            made.add(operation.output)
            operation.validate(self._grids(operation), self.grids[operation.output])
        if self.output not in made:
            raise IntegerError(f"No operation computes the output, tensor {self.output}.")

    def _grids(self, operation: Operation) -> list[Grid]:
        return [self.grids[name] for name in operation.inputs]

    def quantize_input(self, images: np.ndarray) -> np.ndarray:
        """Codes of normalised images: float [B, H, W, C] to the input's dtype."""
        return self.grids[self.input].quantize(images)

    def dequantize_output(self, codes: np.ndarray) -> np.ndarray:
        """Real numbers of the output's codes: [B, ...] to float32."""
        return self.grids[self.output].dequantize(codes)

    def operation(self, name: str) -> Operation:
        """The operation that computes a tensor; IntegerError if there is none."""
        for operation in self.operations:
            if operation.output == name:
                return operation
        raise IntegerError(f"No operation computes tensor {name}.")


def run_op(
    graph: Graph,
    operation: Operation,
    tensors: Mapping[str, np.ndarray],
    *,
    rounding: Rounding = "double",
) -> np.ndarray:
    """Runs one operation of a graph on given inputs, whatever their source.

    Args:
      graph: for its grids.
      operation: one of its operations.
      tensors: codes of at least the operation's inputs, by name.
      rounding: as `multiply`.

    Returns:
      The codes of its output, in their grid's dtype.

    Raises:
      IntegerError: an input is missing, has another dtype, shape or range, or a sum does not fit
        into int32.
    """
    if rounding not in ROUNDINGS:
        raise IntegerError(f"rounding is {rounding!r}; use one of {', '.join(ROUNDINGS)}.")
    grids = [graph.grids[name] for name in operation.inputs]
    for name, grid in zip(operation.inputs, grids, strict=True):
        if name not in tensors:
            raise IntegerError(f"{operation.name} reads tensor {name}, which was not given.")
        grid.check(tensors[name], name)
    inputs = [tensors[name] for name in operation.inputs]
    return operation.run(inputs, grids, graph.grids[operation.output], rounding)


@overload
def run(
    graph: Graph, codes: np.ndarray, *, keep: Literal[False] = ..., rounding: Rounding = ...
) -> np.ndarray: ...


@overload
def run(
    graph: Graph, codes: np.ndarray, *, keep: Literal[True], rounding: Rounding = ...
) -> dict[str, np.ndarray]: ...


def run(
    graph: Graph, codes: np.ndarray, *, keep: bool = False, rounding: Rounding = "double"
) -> np.ndarray | dict[str, np.ndarray]:
    """Runs a graph.

    Args:
      graph: the network.
      codes: integers [B, H, W, C] of the input's grid (`Graph.quantize_input`).
      keep: return all tensors.
      rounding: of every requantisation, as `multiply`.

    Returns:
      The codes of the output, [B, classes] for a classifier, in their grid's dtype; with `keep`, a
      dictionary of all tensors by name, including the input.

    Raises:
      IntegerError: codes have another dtype or shape or are outside of the grid, or a sum does not
        fit into int32; the message names the tensor or the operation.
    """
    grid = graph.grids[graph.input]
    grid.check(codes, graph.input)
    wanted = graph.input_shape
    if codes.ndim != 4 or (wanted is not None and codes.shape[1:] != tuple(wanted)):
        shape = ", ".join(str(n) for n in wanted) if wanted else "H, W, C"
        raise IntegerError(f"The network was given {list(codes.shape)}; it reads [B, {shape}].")
    last = {name: n for n, op in enumerate(graph.operations) for name in op.inputs}
    tensors = {graph.input: codes.astype(grid.dtype)}
    for number, operation in enumerate(graph.operations):
        tensors[operation.output] = run_op(graph, operation, tensors, rounding=rounding)
        if not keep:
            for name in operation.inputs:
                if last[name] == number and name != graph.output:
                    tensors.pop(name, None)
    return tensors if keep else tensors[graph.output]
