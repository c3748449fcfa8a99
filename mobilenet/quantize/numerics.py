"""Uniform quantisation in float: grids of codes, rounding, straight-through and learned gradients.

A code q stands for the real number scale * (q - zero_point) (Jacob et al. 2017, arXiv 1712.05877,
equation 1). Everything here computes on real numbers that lie on such a grid ("fake" or simulated
quantisation), in float32 and with gradients; `mobilenet.quantize.integer` computes on the codes.

Bits may be traced numbers, so that one compiled program serves every width, and 0 bits leave a
tensor as it is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


class Grid(NamedTuple):
    """The reals that codes stand for; leaves broadcast against the tensor they belong to.

    Attributes:
      scale: distance of neighbours, positive, float32.
      zero_point: code of 0.0, a whole number in float32.
      low, high: lowest and highest code, whole numbers in float32.
    """

    scale: Any
    zero_point: Any
    low: Any
    high: Any


def code_limits(bits: Any, *, signed: Any, narrow: bool = False) -> tuple[Any, Any]:
    """(lowest, highest) code: of 8 bits -128..127, unsigned 0..255.

    Args:
      bits: a number or an array of them, at least 2; 0 is read as 8 (the caller leaves the tensor
        as it is, and the arithmetic must stay finite).
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

    Affine: the range is widened to hold 0, which gets a code of its own, so that zero padding is
    exact (Jacob et al. 2017, section 3). The zero point is rounded, which moves the range by up to
    half a step. Symmetric: the zero point is code 0 and the scale the larger magnitude's
    (Krishnamoorthi 2018, arXiv 1806.08342, section 2.2).

    A range without extent (a dead channel, a tensor of zeros) gets the scale 1: zero is exact.

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
    """Codes of an array, as float32: ties round to even, what lies outside to the nearest."""
    return jnp.clip(jnp.round(x / grid.scale) + grid.zero_point, grid.low, grid.high)


def from_codes(codes: Any, grid: Grid) -> Float[Array, "*shape"]:
    """The reals that codes stand for."""
    return (codes - grid.zero_point) * grid.scale


def fake_quantize(x: Float[Array, "*shape"], grid: Grid) -> Float[Array, "*shape"]:
    """The nearest real on the grid; gradient 1 where it is nearer than half a step and 0 elsewhere.

    The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) with the clip's own
    derivative. The grid has no gradient.
    """
    return _fake_quantize(x, *map(lax.stop_gradient, grid))


@jax.custom_vjp
def _fake_quantize(x: Array, scale: Array, zero_point: Array, low: Array, high: Array) -> Array:
    grid = Grid(scale, zero_point, low, high)
    return from_codes(to_codes(x, grid), grid)


def _forward(x: Array, *grid: Array) -> tuple[Array, tuple[Array, ...]]:
    return _fake_quantize(x, *grid), (x, *grid)


def _backward(saved: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
    x, scale, zero_point, low, high = saved
    code = jnp.round(x / scale) + zero_point
    inside = (code >= low) & (code <= high)
    zeros = (jnp.zeros_like(leaf) for leaf in (scale, zero_point, low, high))
    return jnp.where(inside, g, 0), *zeros


_fake_quantize.defvjp(_forward, _backward)


def round_through(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Rounds half to even, with the gradient of the identity."""
    return x + lax.stop_gradient(jnp.round(x) - x)


def scale_gradient(x: Float[Array, "*shape"], factor: Any) -> Float[Array, "*shape"]:
    """`x`, with `factor` times its gradient."""
    return lax.stop_gradient(x - factor * x) + factor * x


def learned_grid(
    step: Any, bits: Any, *, signed: Any, offset: Any = None, narrow: bool = False
) -> Grid:
    """The grid of `learned_step`, for the same arguments."""
    low, high = code_limits(bits, signed=signed, narrow=narrow)
    step = _learned(step)
    if offset is None:
        return Grid(step, jnp.zeros_like(step), low, high)
    return Grid(step, jnp.clip(low - jnp.round(offset / step), low, high), low, high)


def _learned(step: Any) -> Any:
    # Learned numbers may cross zero, where the grid would turn over.
    return jnp.maximum(jnp.abs(step), np.finfo(np.float32).tiny * 2.0**24)


def learned_step(
    x: Float[Array, "*shape"],
    step: Any,
    bits: Any,
    *,
    signed: Any,
    offset: Any = None,
    narrow: bool = False,
) -> Float[Array, "*shape"]:
    """Quantises with a step that is learned: LSQ, and with an offset LSQ+.

    The step's gradient is round(v) - v of v = x / step inside the range, and the nearest limit
    outside (Esser et al. 2019, arXiv 1902.08153, equation 3), times 1 / sqrt(N * limit) of the N
    numbers that share the step (section 2.2). The offset is the real at the lowest code (Bhalgat et
    al. 2020, arXiv 2004.09576, equations 1-3, where it is a real offset of the whole grid); here
    the zero point that follows from it is rounded, so that 0.0 keeps a code and integer hardware
    pads with it.

    Args:
      x: what is quantised.
      step: positive, scalar or one a channel along the last axis.
      bits: see `code_limits`.
      signed, narrow: of the codes.
      offset: lowest real, scalar; None is a symmetric grid with the zero point 0.
    """
    low, high = code_limits(bits, signed=signed, narrow=narrow)
    step = _learned(step)
    factor = lax.rsqrt(x.size / step.size * (high if offset is None else high - low))
    step = scale_gradient(step, factor)
    if offset is None:
        zero_point = jnp.zeros_like(step)
    else:
        zero_point = low - round_through(scale_gradient(offset, factor) / step)
        zero_point = jnp.clip(zero_point, low, high)
    inside = jnp.clip(x / step, low - zero_point, high - zero_point)
    return round_through(inside) * step


def clip_grid(clip: Any, bits: Any) -> Grid:
    """The grid of `learned_clip`: unsigned, from 0 to `clip`."""
    return make_grid(0.0, jnp.maximum(clip, _LEAST_CLIP), bits, symmetric=True, signed=False)


_LEAST_CLIP = 1e-6


def learned_clip(x: Float[Array, "*shape"], clip: Any, bits: Any) -> Float[Array, "*shape"]:
    """Clips to [0, clip] with a learned upper end, and quantises what is left: PACT.

    The gradient with respect to `clip` is that of every number at or above it (Choi et al. 2018,
    arXiv 1805.06085, equation 3); below it the straight-through estimator sees the identity.

    Args:
      x: activations behind a ReLU; what is below 0 becomes 0.
      clip: positive scalar.
      bits: see `code_limits`; codes are unsigned.
    """
    clip = jnp.maximum(clip, _LEAST_CLIP)
    clipped = jnp.where(x < clip, jnp.maximum(x, 0.0), clip)
    grid = clip_grid(lax.stop_gradient(clip), bits)
    rounded = from_codes(to_codes(lax.stop_gradient(clipped), grid), grid)
    return clipped + (rounded - lax.stop_gradient(clipped))
