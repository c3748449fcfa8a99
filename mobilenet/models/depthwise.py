"""Depthwise convolution as shifted multiply-adds, with a hand-derived gradient."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]


def resolve_form(form: str) -> str:
    if form == "auto":
        return "shifted" if jax.default_backend() == "cpu" else "grouped"
    if form not in ("shifted", "grouped"):
        raise ValueError(f"form must be 'auto', 'shifted' or 'grouped', got {form!r}")
    return form


def resolve_padding(padding, size, window, strides: int, dilation: int) -> Pads:
    if isinstance(padding, str):
        pads = []
        for n, k in zip(size, window, strict=True):
            reach = dilation * (k - 1)
            if padding == "SAME":
                total = max((-(-n // strides) - 1) * strides + reach + 1 - n, 0)
                pads.append((total // 2, total - total // 2))
            elif padding == "SYMMETRIC":
                pads.append((reach // 2, reach // 2))
            else:
                raise ValueError(f"padding must be 'SAME', 'SYMMETRIC' or pairs, got {padding!r}")
        return pads[0], pads[1]
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _accum(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _taps(x, kernel, strides, dilation, out):
    """sum_ij x[:, i*d::s, j*d::s] * kernel[i, j] for x already padded."""
    h, w = out
    b, _, _, c = x.shape
    acc = _accum(x.dtype)
    total = None
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            a, e = i * dilation, j * dilation
            part = lax.slice(
                x,
                (0, a, e, 0),
                (b, a + (h - 1) * strides + 1, e + (w - 1) * strides + 1, c),
                (1, strides, strides, 1),
            ).astype(acc) * kernel[i, j, 0].astype(acc)
            total = part if total is None else total + part
    return total


def _forward(x, kernel, strides, pads, dilation):
    kh, kw = kernel.shape[:2]
    (top, bottom), (left, right) = pads
    h = (x.shape[1] + top + bottom - dilation * (kh - 1) - 1) // strides + 1
    w = (x.shape[2] + left + right - dilation * (kw - 1) - 1) // strides + 1
    padded = jnp.pad(x, ((0, 0), pads[0], pads[1], (0, 0)))
    return _taps(padded, kernel, strides, dilation, (h, w)).astype(x.dtype)


def _input_gradient(g, kernel, size, strides, pads, dilation):
    kh, kw = kernel.shape[:2]
    spec = [(0, 0, 0)]
    for n, k, q, (lo, _) in zip(size, (kh, kw), g.shape[1:3], pads, strict=True):
        low = dilation * (k - 1) - lo
        spread = (q - 1) * strides + 1
        spec.append((low, n + dilation * (k - 1) - low - spread, strides - 1))
    spec.append((0, 0, 0))
    spread = lax.pad(g, jnp.zeros((), g.dtype), spec)
    return _taps(spread, kernel[::-1, ::-1], 1, dilation, size).astype(g.dtype)


def _filter_gradient(x, g, window, strides, pads, dilation, dtype):
    kh, kw = window
    b, h, w, c = g.shape
    acc = _accum(x.dtype)
    xp = jnp.pad(x, ((0, 0), pads[0], pads[1], (0, 0)))
    n = next(n for n in (4, 2, 1) if b % n == 0)

    def step(carry, index):
        image, row = index // h * n, index % h
        gr = lax.dynamic_slice(g, (image, row, 0, 0), (n, 1, w, c))[:, 0].astype(acc)
        reach = dilation * (kh - 1) + 1
        xr = lax.dynamic_slice(
            xp, (image, row * strides, 0, 0), (n, reach, xp.shape[2], c)
        ).astype(acc)
        new = []
        for i in range(kh):
            for j in range(kw):
                e = j * dilation
                xs = xr[:, i * dilation, e : e + (w - 1) * strides + 1 : strides]
                new.append(carry[i * kw + j] + xs * gr)
        return tuple(new), None

    zero = jnp.zeros((n, w, c), acc)
    sums, _ = lax.scan(step, (zero,) * (kh * kw), jnp.arange(b // n * h))
    return jnp.stack([s.sum((0, 1)) for s in sums]).reshape(kh, kw, 1, c).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted(x, kernel, strides, pads, dilation):
    return _forward(x, kernel, strides, pads, dilation)


def _shifted_fwd(x, kernel, strides, pads, dilation):
    return _forward(x, kernel, strides, pads, dilation), (x, kernel)


def _shifted_bwd(strides, pads, dilation, residuals, g):
    x, kernel = residuals
    dx = _input_gradient(g, kernel, x.shape[1:3], strides, pads, dilation)
    dw = _filter_gradient(x, g, kernel.shape[:2], strides, pads, dilation, kernel.dtype)
    return dx, dw


_shifted.defvjp(_shifted_fwd, _shifted_bwd)


def depthwise_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    strides: int = 1,
    padding: str | Pads = "SAME",
    dilation: int = 1,
    form: Literal["auto", "shifted", "grouped"] | str = "auto",
) -> Float[Array, "b i j c"]:
    pads = resolve_padding(padding, x.shape[1:3], kernel.shape[:2], strides, dilation)
    if resolve_form(form) == "shifted":
        return _shifted(x, kernel, strides, pads, dilation)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
