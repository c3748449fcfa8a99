"""What sums over pixels have in common on CPU: their precision, and loops over images.

XLA:CPU does not vectorise a reduction that is fused with slices, and writes what it reduces to
memory first. Adding element by element to sums that a loop carries, and that stay in the caches, is
vectorised and writes nothing else. `depthwise` and `normalization` take the sums of their gradients
that way. Several sums over the same pixels are one array, next to the innermost two axes: XLA would
make a program of its own for each, which reads the pixels again.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# A turn takes as many images as stay below this: fewer turns, while L2 caches hold what one reads.
TURN_BYTES = 1_000_000


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` as at least float32, in which sums are taken."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def take_images(
    images: Float[Array, "b h w c"], turn: Array, count: int
) -> Float[Array, "count h w c"]:
    """The images [turn * count, (turn + 1) * count), in memory of their own.

    They are copied out by a conditional whose condition always holds. A conditional is not fused,
    and a dynamic slice fused into the sums would read its index from memory beside every element,
    because LLVM cannot know that the sums do not overwrite the index: nothing would be vectorised.
    (Images carried by the loop are not fused either, but XLA copies them once more.)
    """
    shape = (count, *images.shape[1:])
    return lax.cond(
        turn >= 0,
        lambda: lax.dynamic_slice(images, (turn * count, 0, 0, 0), shape),
        lambda: jnp.zeros(shape, images.dtype),
    )


def images_per_turn(images: Float[Array, "b h w c"]) -> int:
    """How many images a turn takes: a divisor of all."""
    return largest_divisor(len(images), TURN_BYTES * len(images) // max(images.nbytes, 1))


def rows_per_sum(rows: int, sums: int) -> int:
    """Rows of an image that a turn adds into one row of each of its `sums`: a divisor of all.

    The sums are then read and written once for so many terms. Seven divides the heights of 224
    pixels. Terms in greater number are not vectorised.
    """
    return largest_divisor(rows, 7 if sums <= 3 else 4)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is not above `most`; 1 if `most` is less."""
    return max(n for n in range(1, max(most, 1) + 1) if number % n == 0)
