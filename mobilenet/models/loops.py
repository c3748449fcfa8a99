"""Sums over pixels on CPU: their precision, and loops over chunks of images.

XLA:CPU does not vectorise a reduction that is fused with slices: it first writes the reduction's
input to memory. A loop that adds element by element to running sums is vectorised and writes
nothing else, because the running sums stay in the caches. `depthwise` and `normalization` compute
the sums of their gradients in such loops. Several sums over the same pixels are stored in one
array, stacked at the third axis from the end: XLA would otherwise make one program for each sum,
and each program would read the pixels again.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# A chunk takes as many images as fit into these bytes: few chunks, each within the L2 cache.
CHUNK_BYTES = 1_000_000


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` as at least float32, the precision of sums."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def take_images(
    images: Float[Array, "b h w c"], chunk: Array, count: int
) -> Float[Array, "count h w c"]:
    """Copies the images [chunk * count, (chunk + 1) * count).

    The copy is made by a conditional whose condition is always true, because XLA does not fuse a
    conditional. A dynamic slice would be fused into the sums, and would then read its index from
    memory for every element: LLVM cannot know that the sums do not overwrite the index, so it would
    vectorise nothing. (Images that the loop carries are not fused either, but XLA copies them once
    more.)
    """
    shape = (count, *images.shape[1:])
    return lax.cond(
        chunk >= 0,
        lambda: lax.dynamic_slice(images, (chunk * count, 0, 0, 0), shape),
        lambda: jnp.zeros(shape, images.dtype),
    )


def images_per_chunk(images: Float[Array, "b h w c"]) -> int:
    """How many images a chunk takes; it divides the number of images."""
    return largest_divisor(len(images), CHUNK_BYTES * len(images) // max(images.nbytes, 1))


def rows_per_sum(rows: int, sums: int) -> int:
    """How many rows of an image are added to one row of each of the `sums`; it divides `rows`.

    The sums are then read and written once for this many terms. It is at most 7 (7 divides the
    heights of all maps of an image of 224 pixels), because XLA does not vectorise more terms.
    """
    return largest_divisor(rows, 7 if sums <= 3 else 4)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`; 1 if `most` is below 1."""
    return max(n for n in range(1, max(most, 1) + 1) if number % n == 0)
