"""Dense convolutions: 1x1 as a matrix product, and the stem."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mobilenet.models.depthwise import Pads, resolve_form, resolve_padding


def conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    *,
    strides: int = 1,
    padding: str | Pads = "SAME",
    form: str = "auto",
) -> Float[Array, "b i j d"]:
    pads = resolve_padding(padding, x.shape[1:3], kernel.shape[:2], strides, 1)
    shifted = resolve_form(form) == "shifted"
    if shifted and kernel.shape[:2] == (1, 1) and strides == 1 and pads == ((0, 0), (0, 0)):
        b, h, w, c = x.shape
        y = jnp.matmul(x.reshape(-1, c), kernel.reshape(c, -1))
        return y.reshape(b, h, w, -1)
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
