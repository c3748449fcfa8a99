"""What loops over images have in common that take sums over pixels on CPU.

XLA:CPU does not vectorise a reduction that is fused with slices, and writes what it reduces to
memory first. Adding element by element to sums that a loop carries, and that stay in the caches, is
vectorised and writes nothing else. `depthwise` and `normalization` take the sums of their gradients
that way.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Rows of an image that a turn of a loop adds into one row of its sums: these are then read and
# written once for so many terms. Seven divides the heights of 224 pixels. Longer runs and turns of
# less than an image gained nothing and compile longer.
ROWS_PER_SUM = 7


def take_image(images: Float[Array, "b h w c"], image: Array) -> Float[Array, "1 h w c"]:
    """One of the images, in memory of its own.

    It is copied out by a conditional whose condition always holds. A conditional is not fused, and
    a dynamic slice fused into the sums would read its index from memory beside every element,
    because LLVM cannot know that the sums do not overwrite the index: nothing would be vectorised.
    (An image carried by the loop is not fused either, but XLA copies it once more.)
    """
    shape = (1, *images.shape[1:])
    return lax.cond(
        image >= 0,
        lambda: lax.dynamic_slice(images, (image, 0, 0, 0), shape),
        lambda: jnp.zeros(shape, images.dtype),
    )


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is not above `most`, both at least 1."""
    return max(n for n in range(1, most + 1) if number % n == 0)
