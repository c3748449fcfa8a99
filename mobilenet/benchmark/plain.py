"""The convolution and normalisation of plain Flax, with which the fast forms are compared."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from mobilenet.models.depthwise import resolve_padding
from mobilenet.models.normalization import activate


def conv(
    *,
    features: int,
    kernel_size: int = 1,
    strides: int = 1,
    depthwise: bool = False,
    padding: str = "SAME",
    form: str = "auto",
    dtype: Any = None,
    kernel_init: Callable[..., Any],
    name: str,
) -> nn.Conv:
    """`flax.linen.Conv` instead of `mobilenet.models.layers.Conv`; `form` has no meaning here."""
    del form
    window = (kernel_size, kernel_size)
    # Symmetric padding does not depend on the size of the image.
    pads = "SAME" if padding == "SAME" else resolve_padding(padding, window, window, strides, 1)
    return nn.Conv(
        features,
        window,
        strides,
        padding=pads,
        feature_group_count=features if depthwise else 1,
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )


def norm(
    *, activation: str, name: str, axis_index_groups: Any = None, **settings: Any
) -> Callable[..., jax.Array]:
    """`flax.linen.BatchNorm`, then the activation, instead of `normalization.BatchNorm`."""
    layer = nn.BatchNorm(name=name, axis_index_groups=axis_index_groups, **settings)

    def apply(x: jax.Array, use_running_average: bool) -> jax.Array:
        return activate(layer(x, use_running_average=use_running_average), activation)

    return apply
