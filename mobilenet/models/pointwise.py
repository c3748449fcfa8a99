"""Dense convolutions: 1x1 as a matrix product, the stem as a matrix product over its patches."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mobilenet.models.depthwise import Pads, output_size, pad, resolve_form, resolve_padding

# Patches are written to memory up to this many numbers per patch (window x input channels). The
# stem has 27, and 32 outputs per pixel: its patches are smaller than its output. With more channels
# the patches would cost more memory traffic than they save compared with XLA's own convolution.
PATCH_LIMIT = 75


def conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    *,
    strides: int = 1,
    padding: str | Pads = "SAME",
    dilation: int = 1,
    form: str = "auto",
) -> Float[Array, "b i j d"]:
    """Convolves densely (every input channel reaches every output channel).

    The form 'shifted' is the one for CPU. It computes a 1x1 kernel as a matrix product over
    flattened pixels. A window over few channels, such as the stem's 3x3x3, is a matrix product over
    patches that are concatenated along the channels. Other kernels, dilated kernels and the form
    'grouped' use `lax.conv_general_dilated`. All derivatives are JAX's own: those of slices,
    concatenation and matrix product, which are fast.

    Args:
      x: images [b, h, w, c].
      kernel: [kh, kw, c, d] of the dtype of `x`.
      strides: steps along height and width, at least 1.
      padding: 'SAME' (TensorFlow's), 'SYMMETRIC' (PyTorch's) or ((top, bottom), (left, right)).
      dilation: step between the taps of the window (atrous convolution), at least 1.
      form: 'auto', 'shifted' or 'grouped'; see `depthwise.resolve_form`.

    Returns:
      [b, i, j, d] of the dtype of `x`; half precision accumulates in float32 in the matrix
      products.

    Raises:
      ValueError: an unknown form or padding, channels that do not match, a dilation below 1, or a
        window larger than the padded image.
    """
    kh, kw, c, d = kernel.shape
    if x.shape[-1] != c:
        raise ValueError(f"kernel {kernel.shape} expects {c} channels, got images {x.shape}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation!r}")
    pads = resolve_padding(padding, x.shape[1:3], (kh, kw), strides, dilation)
    rows, columns = output_size(x.shape[1:3], (kh, kw), strides, pads, dilation)
    large = kh * kw > 1 and (kh * kw * c > PATCH_LIMIT or dilation > 1)
    if resolve_form(form) == "grouped" or large:
        return lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            pads,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    padded = pad(x, pads)
    # Columns first: a third of the strided slices, and longer contiguous rows.
    bottom, right = (rows - 1) * strides + 1, (columns - 1) * strides + 1
    runs = [lax.slice_in_dim(padded, j, j + right, strides, axis=2) for j in range(kw)]
    side_by_side = jnp.concatenate(runs, axis=-1)
    windows = [lax.slice_in_dim(side_by_side, i, i + bottom, strides, axis=1) for i in range(kh)]
    # XLA:CPU is slower at products over an odd number of terms, such as the stem's 27.
    odd = kh * kw * c % 2 if kh * kw > 1 else 0
    if odd:
        windows.append(jnp.zeros((x.shape[0], rows, columns, 1), x.dtype))
    patches = jnp.concatenate(windows, axis=-1)
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.matmul(
        patches.reshape(-1, kh * kw * c + odd),
        jnp.pad(kernel.reshape(-1, d), ((0, odd), (0, 0))),
        preferred_element_type=accumulator,
    )
    return y.astype(x.dtype).reshape(x.shape[0], rows, columns, d)
