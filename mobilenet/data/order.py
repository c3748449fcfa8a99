"""The order of training: a function of (seed, position) only, so one integer gives the position."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int64

Batch = dict[str, np.ndarray]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> Int64[np.ndarray, " N"]:
    """A permutation of 0..N-1 for (seed, epoch).

    It sorts N raw 64-bit words of Philox-4x64-10 with key (seed, epoch). NumPy guarantees stable
    streams for its bit generators (NEP 19), but not for `Generator.permutation`.
    """
    words = np.random.Philox(key=[seed, epoch]).random_raw(num_examples)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.flags.writeable = False  # the cache returns the same array again
    return order


def example_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers for one example in one epoch, used for its crop in the host's workers.

    The counter's upper half separates this stream from the permutation, which has the same key.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, index, 1]))


def sample(
    position: int | Int[np.ndarray, " B"], num_examples: int, seed: int
) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
    """(epoch, index) at positions of the endless training stream.

    The stream consists of one permutation of all examples after the other. A batch may contain the
    end of one and the start of the next, and nothing is dropped at the end of an epoch.

    Args:
      position: int or int64 [B], from 0.
      num_examples: N, at least 1.
      seed: 0 .. 2**64 - 1.

    Returns:
      epoch and index, int64 of the shape of `position`; index in [0, N).
    """
    if num_examples < 1:
        raise ValueError("training needs at least 1 example, 0 were given; check the train split.")
    if seed < 0:
        raise ValueError(f"seed={seed} was given; use 0 or more.")
    position = np.asarray(position, np.int64)
    epoch, offset = np.divmod(position, num_examples)
    index = np.empty_like(position)
    for each in np.unique(epoch).tolist():
        chosen = epoch == each
        index[chosen] = _permutation(seed, each, num_examples)[offset[chosen]]
    return epoch, index
