"""Uniform quantisation in float: grids of codes, rounding, straight-through and learned gradients.

A code q stands for the real number scale * (q - zero_point) (Jacob et al. 2017, arXiv 1712.05877,
equation 1). This module computes with real numbers that lie on such a grid ("fake" or simulated
quantisation), in float32 and with gradients; `mobilenet.quantize.integer` computes with the codes.

Bits may be traced numbers, so one compiled program serves every bit width. A tensor with 0 bits is
not changed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


class Grid(NamedTuple):
    """The reals that codes stand for; leaves broadcast against the tensor to which they belong.

    Attributes:
      scale: distance between neighbours, positive, float32.
      zero_point: code of 0.0, an integer in float32.
      low, high: lowest and highest code, integers in float32.
    """

    scale: Any
    zero_point: Any
    low: Any
    high: Any


def code_limits(bits: Any, *, signed: Any, narrow: bool = False) -> tuple[Any, Any]:
    """(lowest, highest) code: for 8 bits -128..127, unsigned 0..255.

    Args:
      bits: a number or an array of numbers, at least 2; 0 is treated as 8 (the caller does not
        quantise the tensor, but the arithmetic must stay finite).
      signed: two's complement; may be traced.
      narrow: leave out the lowest code, which makes a signed grid symmetric: -127..127.
    """
    bits = jnp.where(jnp.asarray(bits) > 0, bits, 8).astype(jnp.float32)
    levels = jnp.exp2(bits)
    low = jnp.where(signed, -levels / 2, 0.0)
    return low + (1 if narrow else 0), low + levels - 1


def make_grid(
    low: Any, high: Any, bits: Any, *, symmetric: bool, signed: Any = True, narrow: bool = False
) -> Grid:
    """The grid that covers the reals from `low` to `high`.

    Affine: the range is widened to include 0, which gets its own code, so that zero padding is
    exact (Jacob et al. 2017, section 3). The zero point is rounded, which moves the range by up to
    half a step. Symmetric: the zero point is code 0, and the scale is that of the larger magnitude
    (Krishnamoorthi 2018, arXiv 1806.08342, section 2.2).

    An empty range (a dead channel, a tensor of zeros) gets the scale 1, so zero is exact.

    Args:
      low, high: finite reals, low <= high, of any shape that broadcasts.
      bits: see `code_limits`.
      symmetric, signed, narrow: of the grid. Symmetric and unsigned needs low >= 0, or clips at 0.
    """
    code_low, code_high = code_limits(bits, signed=signed, narrow=narrow)
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    if symmetric:
        extent = jnp.where(signed, jnp.maximum(-low, high), high)
        scale = _positive(extent / code_high)
        return Grid(scale, jnp.zeros_like(scale), code_low, code_high)
    scale = _positive((high - low) / (code_high - code_low))
    zero_point = jnp.clip(jnp.round(code_low - low / scale), code_low, code_high)
    return Grid(scale, zero_point, code_low, code_high)


def _positive(scale: Any) -> Any:
    # Below the smallest normal number a quotient x / scale would overflow.
    return jnp.where(scale > np.finfo(np.float32).tiny, scale, 1.0)


def to_codes(x: Any, grid: Grid) -> Float[Array, "*shape"]:
    """Codes of an array, as float32: ties round to even, values outside become the nearest code."""
    return jnp.clip(jnp.round(x / grid.scale) + grid.zero_point, grid.low, grid.high)


def from_codes(codes: Any, grid: Grid) -> Float[Array, "*shape"]:
    """The reals that codes stand for."""
    return (codes - grid.zero_point) * grid.scale


def fake_quantize(x: Float[Array, "*shape"], grid: Grid) -> Float[Array, "*shape"]:
    """The nearest real on the grid; gradient 1 where it is within half a step, and 0 elsewhere.

    This is the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) with the derivative
    of the clip. The grid has no gradient.
    """
    return _fake_quantize(x, *map(lax.stop_gradient, grid))


@jax.custom_vjp
def _fake_quantize(x: Array, scale: Array, zero_point: Array, low: Array, high: Array) -> Array:
    return _forward(x, scale, zero_point, low, high)[0]


def _forward(x: Array, *leaves: Array) -> tuple[Array, Array]:
    grid = Grid(*leaves)
    codes = jnp.round(x / grid.scale) + grid.zero_point
    clipped = jnp.clip(codes, grid.low, grid.high)
    # The gradient only needs to know what was clipped: one byte per number.
    return from_codes(clipped, grid), codes == clipped


def _backward(inside: Array, g: Array) -> tuple[Array | None, ...]:
    return jnp.where(inside, g, 0), None, None, None, None


_fake_quantize.defvjp(_forward, _backward)


def round_through(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Rounds half to even, with the gradient of the identity."""
    return x + lax.stop_gradient(jnp.round(x) - x)


def scale_gradient(x: Float[Array, "*shape"], factor: Any) -> Float[Array, "*shape"]:
    """`x`, unchanged to the last bit, with `factor` times its gradient."""
    fixed = lax.stop_gradient(x)
    return fixed + factor * (x - fixed)


def learned_grid(
    step: Any, bits: Any, *, signed: Any, offset: Any = None, narrow: bool = False
) -> Grid:
    """The grid of a learned step and an optional offset; arguments as in `learned_step`."""
    low, high = code_limits(bits, signed=signed, narrow=narrow)
    # Learned steps may cross zero, where the order of the grid would be reversed.
    step = jnp.maximum(jnp.abs(step), np.finfo(np.float32).tiny * 2.0**24)
    if offset is None:
        return Grid(step, jnp.zeros_like(step), low, high)
    zero_point = jnp.clip(low - round_through(offset / step), low, high)
    return Grid(step, zero_point, low, high)


def learned_step(
    x: Float[Array, "*shape"],
    step: Any,
    bits: Any,
    *,
    signed: Any,
    offset: Any = None,
    narrow: bool = False,
    count: int | None = None,
) -> Float[Array, "*shape"]:
    """Quantises with a learned step: LSQ, and with an offset LSQ+.

    The step's gradient is round(v) - v for v = x / step inside the range, and the nearest limit
    outside (Esser et al. 2019, arXiv 1902.08153, equation 3), times 1 / sqrt(N * levels), where N
    numbers share the step (section 2.2). The offset is the real at the lowest code (Bhalgat et al.
    2020, arXiv 2004.09576, equations 1-3, where it is a real offset of the whole grid). Here the
    zero point that follows from it is rounded, so that 0.0 keeps a code and integer hardware can
    pad with it.

    Args:
      x: the tensor to quantise.
      step: positive, scalar or one per channel along the last axis.
      bits: see `code_limits`.
      signed, narrow: of the codes.
      offset: lowest real, scalar; None is a symmetric grid with the zero point 0.
      count: N; None is the number of elements of `x` per step. For activations it is the number per
        example (the paper's features of a layer), so that the gradient does not depend on how a
        batch is divided.
    """
    low, high = code_limits(bits, signed=signed, narrow=narrow)
    levels = high if offset is None else high - low  # the paper's Q_P
    factor = lax.rsqrt((count or x.size / step.size) * levels)
    step = scale_gradient(step, factor)
    offset = None if offset is None else scale_gradient(offset, factor)
    grid = learned_grid(step, bits, signed=signed, offset=offset, narrow=narrow)
    return _learned_step(x, *grid)


@jax.custom_vjp
def _learned_step(x: Array, step: Array, zero_point: Array, low: Array, high: Array) -> Array:
    return _learned_forward(x, step, zero_point, low, high)[0]


def _learned_forward(
    x: Array, step: Array, zero_point: Array, low: Array, high: Array
) -> tuple[Array, tuple[Array, ...]]:
    v, low, high = x / step, low - zero_point, high - zero_point
    code = jnp.round(jnp.clip(v, low, high))
    # A value at the upper end is clipped, as in the paper. 0.0 is never clipped: it has a code.
    inside = (v >= low) & (v < high)
    slope = code - jnp.where(inside, v, 0.0)
    return code * step, (inside, slope, step, zero_point)


def _learned_backward(saved: tuple[Array, ...], g: Array) -> tuple[Array | None, ...]:
    inside, slope, step, zero_point = saved
    dx = jnp.where(inside, g, 0)
    dstep = _sum_to(g * slope, step.shape)
    dzero = _sum_to(dx - g, zero_point.shape) * step
    return dx, dstep, dzero, None, None


_learned_step.defvjp(_learned_forward, _learned_backward)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the axes along which `shape`, [] or [C], was broadcast."""
    return x.sum(tuple(range(x.ndim - len(shape))))


_LEAST_CLIP = 1e-6


def clip_grid(clip: Any, bits: Any, *, low: Any = 0.0) -> Grid:
    """The grid of `learned_clip`, for the same arguments."""
    clip = jnp.maximum(clip, _LEAST_CLIP)
    return make_grid(low, clip, bits, symmetric=True, signed=jnp.asarray(low) < 0)


def learned_clip(
    x: Float[Array, "*shape"], clip: Any, bits: Any, *, low: Any = 0.0
) -> Float[Array, "*shape"]:
    """Clips to [0, clip] with a learned upper end, and quantises the result: PACT.

    The gradient with respect to `clip` is the sum over all numbers at or above it (Choi et al.
    2018, arXiv 1805.06085, equation 3); below it the straight-through estimator is the identity.

    Args:
      x: activations; in the paper after a ReLU.
      clip: positive scalar.
      bits: see `code_limits`.
      low: 0, or the lowest real observed if that is below 0. Then the codes are signed, and values
        are clipped only at the ends of the grid, as in an integer runtime.
    """
    clip = jnp.maximum(clip, _LEAST_CLIP)
    clipped = jnp.where((x < clip) | (jnp.asarray(low) < 0), x, clip)
    return fake_quantize(clipped, clip_grid(clip, bits, low=low))
