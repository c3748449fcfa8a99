"""Masks from scores: exactly as many are kept as requested; of equal scores, the earlier index.

Scores are at least 0; higher is better. The number that is kept is an argument, so that targets
that rise during a run, or differ between runs, share a compiled program.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from mobilenet.compress.rules import Pattern


def keep_largest(scores: Float[Array, "*s"], keep: Int[Array, ""] | int) -> Bool[Array, "*s"]:
    """Keeps the `keep` highest scores of an array; of equal scores, the first in memory.

    Args:
      scores: of any shape.
      keep: from 0 to all.
    """
    flat = scores.ravel()
    keep = jnp.asarray(keep, jnp.int32)
    # A sort of values without indices is several times faster on CPU.
    threshold = jnp.sort(flat)[jnp.clip(flat.size - keep, 0, flat.size - 1)]
    above = flat > threshold
    level = flat == threshold
    room = keep - jnp.sum(above, dtype=jnp.int32)
    mask = above | (level & (jnp.cumsum(level, dtype=jnp.int32) <= room))
    return (mask & (keep > 0)).reshape(scores.shape)


def keep_in_groups(
    scores: Float[Array, "*k I O"], keep: Int[Array, ""] | int, group: int
) -> Bool[Array, "*k I O"]:
    """Keeps the `keep` highest of each `group` consecutive input channels; of equal ones the first.

    Args:
      scores: of a kernel; the axis before the last is input channels, a multiple of `group`.
      keep: from 0 to `group`.
      group: the M of N:M.
    """
    *front, inputs, outputs = scores.shape
    parts = scores.reshape(*front, inputs // group, group, outputs)
    position = jnp.arange(group)
    other, own = parts[..., None, :, :], parts[..., :, None, :]
    earlier = (position[None, :] < position[:, None])[:, :, None]
    better = (other > own) | ((other == own) & earlier)
    rank = jnp.sum(better, axis=-2, dtype=jnp.int32)
    return (rank < keep).reshape(scores.shape)


def block_scores(scores: Float[Array, "*k I O"], rows: int, columns: int) -> Float[Array, "*k i o"]:
    """The sum of scores over blocks of `rows` input by `columns` output channels."""
    *front, inputs, outputs = scores.shape
    parts = scores.reshape(*front, inputs // rows, rows, outputs // columns, columns)
    return parts.sum(axis=(-3, -1))


def spread_blocks(mask: Bool[Array, "*k i o"], rows: int, columns: int) -> Bool[Array, "*k I O"]:
    """Expands a mask of blocks to a mask of weights."""
    return jnp.repeat(jnp.repeat(mask, rows, axis=-2), columns, axis=-1)


def make_masks(
    scores: dict[str, Array], counts: Int[Array, " n"], pattern: Pattern, *, together: bool
) -> dict[str, Array]:
    """Masks of several kernels.

    Args:
      scores: of the weights of each kernel, in the order of `counts`.
      counts: units that each kernel keeps (`rules.keep_counts`); with `together` [1], for all.
      pattern: defines a unit.
      together: rank the units of all kernels in one order.

    Returns:
      A mask for each kernel, shaped like its scores.
    """
    if pattern.kind == "n_of_m":
        return {
            name: keep_in_groups(values, counts[i], pattern.group)
            for i, (name, values) in enumerate(scores.items())
        }
    rows, columns, units = pattern.rows, pattern.columns, scores
    if pattern.unit > 1:
        units = {name: block_scores(v, rows, columns) for name, v in scores.items()}
    if together:
        flat = keep_largest(jnp.concatenate([v.ravel() for v in units.values()]), counts[0])
        kept, begin = {}, 0
        for name, values in units.items():
            kept[name] = flat[begin : begin + values.size].reshape(values.shape)
            begin += values.size
    else:
        kept = {name: keep_largest(v, counts[i]) for i, (name, v) in enumerate(units.items())}
    if pattern.unit == 1:
        return kept
    return {name: spread_blocks(mask, rows, columns) for name, mask in kept.items()}


def regrow(
    mask: Bool[Array, "*s"],
    magnitude: Float[Array, "*s"],
    growth: Float[Array, "*s"],
    keep: Int[Array, ""],
    drop: Float[Array, ""],
) -> Bool[Array, "*s"]:
    """Exchanges weights: the smallest are removed, as many grow (Evci et al. 2020, section 3).

    Weights that have just been removed may grow again at once, as in the paper.

    Args:
      mask: the current one.
      magnitude: of the weights, at least 0.
      growth: scores of the weights that may grow, at least 0.
      keep: number of weights in the new mask, whatever the old one had.
      drop: fraction of `keep` that is exchanged, in [0, 1].
    """
    exchanged = jnp.floor(drop * keep.astype(jnp.float32) + 0.5).astype(jnp.int32)
    # -1 is below every score: removed weights cannot survive, and survivors need not grow.
    survivors = keep_largest(jnp.where(mask, magnitude, -1.0), keep - exchanged) & mask
    short = keep - jnp.sum(survivors, dtype=jnp.int32)
    return survivors | keep_largest(jnp.where(survivors, -1.0, growth), short)


def random_scores(shape: tuple[int, ...], seed: UInt32[Array, ""], *folds: int | Array) -> Array:
    """Scores in [0, 1) that depend only on the seed and the numbers folded into it."""
    key = jax.random.key(seed)
    for fold in folds:
        key = jax.random.fold_in(key, fold)
    return jax.random.uniform(key, shape)
