"""Depthwise convolution as shifted multiply-adds, with a hand-derived gradient.

XLA's grouped convolution is 15 to 20 times slower on CPU than the hardware allows, and its
gradients are worse. A depthwise convolution is defined by the sum

    y[b, h, w, c] = sum_ij x[b, s h + d i, s w + d j, c] k[i, j, c]        (x padded).

This sum is `kh * kw` shifted multiply-adds over contiguous channels, which XLA fuses into one
vectorised pass. The gradient of the input is the same kind of sum over the gradient of the output,
one sum for each phase of the stride, with the taps that read this phase. The gradient of the
filter,

    dk[i, j, c] = sum_bhw x[b, s h + d i, s w + d j, c] g[b, h, w, c],

is a reduction, and XLA does not vectorise a reduction that is fused with slices. This module
computes it in a loop over images. The loop keeps one running sum per tap and adds to it element by
element (see `loops`).

The gradient rules are ordinary differentiable JAX. So second derivatives (forward over reverse,
reverse over reverse), `vmap`, `pmap` and `jax.checkpoint` work. `jax.jvp` of the convolution itself
does not work, as for any `jax.custom_vjp`: use the form 'grouped' for that.
"""

import itertools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mobilenet.models.loops import images_per_chunk, rows_per_sum, take_images, widen

Pads = tuple[tuple[int, int], tuple[int, int]]
# Taps of a window along one axis, each with the row or column where it begins to read.
Taps = Sequence[tuple[int, int]]


def resolve_form(form: str) -> str:
    """Chooses how convolutions are computed. This is the only place that depends on the backend.

    On CPU 'shifted' makes a training step of MobileNetV2 more than ten times as fast
    (experiments/results/speed.md). Elsewhere 'auto' uses XLA's own 'grouped' convolution: it is a
    library call there, and 'shifted' has not been measured.

    Args:
      form: 'auto', 'shifted' or 'grouped'.

    Returns:
      'shifted' or 'grouped'.

    Raises:
      ValueError: any other form.
    """
    if form == "auto":
        return "shifted" if jax.default_backend() == "cpu" else "grouped"
    if form not in ("shifted", "grouped"):
        raise ValueError(f"form must be 'auto', 'shifted' or 'grouped', got {form!r}")
    return form


def resolve_padding(
    padding: str | Pads, size: tuple[int, ...], window: tuple[int, ...], strides: int, dilation: int
) -> Pads:
    """Pixels to add before and after the rows and the columns.

    Args:
      padding: 'SAME' (TensorFlow's: the output has `ceil(size / strides)` pixels, an odd pixel goes
        to the end), 'SYMMETRIC' (PyTorch's: `dilation * (window - 1) // 2` on each side) or
        ((top, bottom), (left, right)).
      size: rows and columns of the image.
      window: rows and columns of the kernel.
      strides: step of the window.
      dilation: step between the taps of the window.

    Returns:
      ((top, bottom), (left, right)).

    Raises:
      ValueError: the padding is none of these.
    """
    if not isinstance(padding, str):
        (top, bottom), (left, right) = padding
        return (int(top), int(bottom)), (int(left), int(right))
    pads = []
    for pixels, taps in zip(size, window, strict=True):
        reach = dilation * (taps - 1)
        if padding == "SAME":
            last = (-(-pixels // strides) - 1) * strides
            total = max(last + reach + 1 - pixels, 0)
            pads.append((total // 2, total - total // 2))
        elif padding == "SYMMETRIC":
            pads.append((reach // 2, reach // 2))
        else:
            raise ValueError(f"padding must be 'SAME', 'SYMMETRIC' or pairs, got {padding!r}")
    return pads[0], pads[1]


def output_size(
    size: tuple[int, ...], window: tuple[int, ...], strides: int, pads: Pads, dilation: int
) -> tuple[int, int]:
    """Rows and columns of the output of a convolution.

    Args:
      size: rows and columns of the image.
      window: rows and columns of the kernel.
      strides: step of the window.
      pads: ((top, bottom), (left, right)).
      dilation: step between the taps of the window.

    Returns:
      (rows, columns), each at least 1.

    Raises:
      ValueError: the window does not fit into the padded image.
    """
    rows, columns = (
        (pixels + low + high - dilation * (taps - 1) - 1) // strides + 1
        for pixels, taps, (low, high) in zip(size, window, pads, strict=True)
    )
    if rows < 1 or columns < 1:
        raise ValueError(
            f"window {window} with dilation {dilation} does not fit an image of {size} padded by "
            f"{pads}"
        )
    return rows, columns


def pad(x: Float[Array, "b h w c"], pads: Pads) -> Float[Array, "b i j c"]:
    """Adds zeros around images [b, h, w, c] of any dtype; negative numbers remove pixels."""
    low_high_between = ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), low_high_between)


def _keep(padded: Array) -> Array:
    """Returns the array unchanged, but makes XLA write it to memory.

    Without this, XLA would take a slice that contains no padding from the input of the padding. It
    would then compute that input, normalisation included, a second time for the taps in the middle
    of the window.
    """
    return lax.optimization_barrier(padded)


def _window_sum(
    padded: Array, kernel: Array, rows: Taps, columns: Taps, size: tuple[int, int], strides: int = 1
) -> Array:
    """`sum padded[:, top::strides, left::strides] kernel[i, j]`, of which `size` rows and columns.

    `rows` holds the pairs (i, top), `columns` the pairs (j, left).
    """
    shape = (padded.shape[0], *size, padded.shape[3])
    total = jnp.zeros(shape, jnp.promote_types(padded.dtype, jnp.float32))
    height, width = ((pixels - 1) * strides + 1 for pixels in size)
    for (i, top), (j, left) in itertools.product(rows, columns):
        shifted = lax.slice(
            padded,
            (0, top, left, 0),
            (shape[0], top + height, left + width, shape[3]),
            (1, strides, strides, 1),
        )
        total = total + widen(shifted) * widen(kernel[i, j, 0])
    return total.astype(padded.dtype)


def _forward(
    x: Array, kernel: Array, strides: int, pads: Pads, dilation: int
) -> tuple[Array, tuple[Array, Array]]:
    """The convolution, and the arrays that its gradient needs.

    The gradient keeps the padded images instead of the images. The padded images are written to
    memory in any case; the images are then never written, because XLA fuses the operation that
    computes them with the padding.
    """
    padded = _keep(pad(x, pads))
    size = output_size(x.shape[1:3], kernel.shape[:2], strides, pads, dilation)
    rows, columns = ([(i, i * dilation) for i in range(taps)] for taps in kernel.shape[:2])
    return _window_sum(padded, kernel, rows, columns, size, strides), (padded, kernel)


def _phase_taps(taps: int, strides: int, low: int, dilation: int) -> list[Taps]:
    """For each phase of an image's rows (or columns): its taps, and the row of `g` each starts at.

    Tap i of output row `m + begin` reads row `strides * m + phase`. Where `begin` would not be an
    integer, the tap does not read this phase.
    """
    reads = [[(i, phase + low - dilation * i) for i in range(taps)] for phase in range(strides)]
    return [
        [(i, place // strides) for i, place in phase if place % strides == 0] for phase in reads
    ]


def _input_gradient(
    g: Array, kernel: Array, size: tuple[int, int], strides: int, pads: Pads, dilation: int
) -> tuple[Array, Array, tuple[int, int]]:
    """Gradient of the images, of `size` rows and columns, from the gradient `g` of the output.

    Each of the `strides ** 2` phases of the pixels is a sum over its own window. (The alternative,
    `g` with zeros inserted between its pixels, would be as large as the images, and most products
    with it would be zero.)

    Returns:
      The gradient; `g` with the zero padding that was needed; and the row and column of this padded
      array at which `g` starts.
    """
    phases, counts, begins, around = [], [], [], []
    for pixels, taps, outputs, (low, _) in zip(
        size, kernel.shape[:2], g.shape[1:3], pads, strict=True
    ):
        reads = _phase_taps(taps, strides, low, dilation)
        reached = [begin for phase in reads for _, begin in phase]
        counts.append(-(-pixels // strides))
        begins.append(max(0, -min(reached)))
        around.append((begins[-1], max(0, counts[-1] + max(reached) - outputs)))
        phases.append([[(i, begins[-1] + begin) for i, begin in phase] for phase in reads])
    padded = _keep(pad(g, (around[0], around[1])))
    # All phases in one program: the phase is the same for all channels, so selecting it is free.
    window_sum = partial(_window_sum, padded, kernel, size=(counts[0], counts[1]))
    rows = [jnp.stack([window_sum(i, j) for j in phases[1]], axis=3) for i in phases[0]]
    whole = jnp.stack(rows, axis=2).reshape(
        len(g), strides * counts[0], strides * counts[1], g.shape[3]
    )
    return whole[:, : size[0], : size[1]], padded, (begins[0], begins[1])


def _filter_gradient(
    padded: Array,
    g: Array,
    window: tuple[int, ...],
    size: tuple[int, int],
    begin: tuple[int, int],
    strides: int,
    dilation: int,
) -> Array:
    """Gradient of the kernel, at least float32, from the padded images and the gradient `g`.

    `g` is padded too: its `size` rows and columns start at `begin`.
    """
    kh, kw = window
    (h, w), (b, c) = size, (g.shape[0], g.shape[-1])
    first, column = begin
    count, run = images_per_chunk(padded), rows_per_sum(h, kh)
    rows = h // run

    def add_chunk(index: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        pixels, gradient = (widen(take_images(images, index, count)) for images in (padded, g))
        added = []
        for j, total in enumerate(sums):
            left = j * dilation
            right = left + (w - 1) * strides + 1
            for r in range(run):
                tops = [r * strides + i * dilation for i in range(kh)]
                shifted = [
                    lax.slice(
                        pixels,
                        (0, top, left, 0),
                        (count, top + (rows - 1) * run * strides + 1, right, c),
                        (1, run * strides, strides, 1),
                    )
                    for top in tops
                ]
                weights = lax.slice(
                    gradient,
                    (0, first + r, column, 0),
                    (count, first + h - run + r + 1, column + w, c),
                    (1, run, 1, 1),
                )
                total = total + jnp.stack(shifted, axis=2) * weights[:, :, None]
            added.append(total)
        return tuple(added)

    zero = jnp.zeros((count, rows, kh, w, c), jnp.promote_types(g.dtype, jnp.float32))
    sums = lax.fori_loop(0, b // count, add_chunk, (zero,) * kw)
    # One reduction for all taps: nine small ones per layer would take seconds to compile.
    return jnp.stack(sums, axis=3).sum((0, 1, 4)).reshape(kh, kw, 1, c)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted(x: Array, kernel: Array, strides: int, pads: Pads, dilation: int) -> Array:
    return _forward(x, kernel, strides, pads, dilation)[0]


def _backward(
    strides: int, pads: Pads, dilation: int, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    padded, kernel = residuals
    (top, bottom), (left, right) = pads
    size = (padded.shape[1] - top - bottom, padded.shape[2] - left - right)
    outputs = (g.shape[1], g.shape[2])
    # Both gradients use the padded `g`, so XLA writes only this array to memory.
    dx, g, begin = _input_gradient(g, kernel, size, strides, pads, dilation)
    dk = _filter_gradient(padded, g, kernel.shape[:2], outputs, begin, strides, dilation)
    return dx, dk.astype(kernel.dtype)


_shifted.defvjp(_forward, _backward)


def depthwise_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    strides: int = 1,
    padding: str | Pads = "SAME",
    dilation: int = 1,
    form: str = "auto",
) -> Float[Array, "b i j c"]:
    """Convolves each channel with its own window.

    Args:
      x: images [b, h, w, c].
      kernel: [kh, kw, 1, c] of the dtype of `x`.
      strides: 1 or 2, along height and width.
      padding: 'SAME' (TensorFlow's), 'SYMMETRIC' (PyTorch's) or ((top, bottom), (left, right)).
      dilation: step between the taps of the window (atrous convolution), at least 1.
      form: 'shifted' (multiply-adds of this module), 'grouped' (`lax.conv_general_dilated`) or
        'auto'; see `resolve_form`.

    Returns:
      [b, i, j, c] of the dtype of `x`. The form 'shifted' accumulates half precision in float32,
      and so do its gradients.

    Raises:
      ValueError: an unknown form or padding, strides other than 1 and 2, a dilation below 1, a
        kernel that does not match the channels, or a window larger than the padded image.
    """
    if strides not in (1, 2):
        raise ValueError(f"strides must be 1 or 2, got {strides!r}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation!r}")
    if kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
        raise ValueError(
            f"kernel must be [kh, kw, 1, {x.shape[-1]}] for images {x.shape}, got {kernel.shape}"
        )
    pads = resolve_padding(padding, x.shape[1:3], kernel.shape[:2], strides, dilation)
    output_size(x.shape[1:3], kernel.shape[:2], strides, pads, dilation)
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
