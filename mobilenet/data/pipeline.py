"""Batches from a data set: order, sharding, padding, decoding in memory or during training.

The order of training depends only on (seed, position in the stream), so one integer, the step,
gives the position of a run. Batches are dicts of NumPy arrays with uint8 images. This module does
not import JAX, so data workers stay small and do not use the accelerator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from mobilenet.data.batches import Batch, Batches
from mobilenet.data.datasets import Source
from mobilenet.data.memory import (
    Arrays,
    check_on_error,
    nothing_readable,
    readable_mask,
    unreadable_error,
)
from mobilenet.data.order import sample
from mobilenet.data.stream import EvalLoader, TrainLoader, stream


def _local_size(global_batch_size: int, process_index: int, process_count: int) -> int:
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size={global_batch_size} was given; use at least 1.")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index={process_index} of process_count={process_count} was given; "
            "use 0 <= process_index < process_count."
        )
    if global_batch_size % process_count:
        raise ValueError(
            f"global_batch_size={global_batch_size} does not divide over {process_count} "
            "processes; use a multiple."
        )
    return global_batch_size // process_count


def _substitutes(arrays: Arrays) -> Int64[np.ndarray, " N"]:
    """index -> itself, or the next readable index (continuing at the start after the end)."""
    own = np.arange(len(arrays), dtype=np.int64)
    if not arrays.unreadable:
        return own
    good = np.flatnonzero(readable_mask(arrays))
    if not len(good):
        raise nothing_readable(next(iter(arrays.unreadable.values())))
    return good[np.searchsorted(good, own) % len(good)]


def train_batches(
    data: Arrays | Source,
    *,
    global_batch_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    image_size: int = 0,
    channels: int = 3,
    random_resized_crop: bool = True,
    crop_scale: Sequence[float] = (0.08, 1.0),
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
    crop_fraction: float = 0.875,
    on_error: str = "raise",
    num_workers: int = 0,
    num_threads: int = 4,
) -> Batches:
    """Training batches from `start_step` on, exactly those of an uninterrupted run.

    Global batch t holds positions t * G .. (t + 1) * G - 1 of the stream (`sample`), and process p
    of P gets its p-th contiguous slice. With on_error="skip" the next readable example replaces an
    unreadable one, with its own label and index.

    Args:
      data: `Arrays`, or a source whose images are decoded during training.
      global_batch_size: G, over all processes.
      seed: of the order and of crops.
      start_step: first step, from 0.
      num_steps: number of batches; None for an endless stream.
      process_index, process_count: p and P.
      image_size: S of streamed images. The following arguments only matter for streamed images.
      channels: 1 or 3.
      random_resized_crop: True crops at random (a function of seed, epoch and index); False gives
        the `evaluation_view`, which the device augments.
      crop_scale, crop_ratio: of `images.random_box`.
      crop_fraction: of `evaluation_view`.
      on_error: "raise" or "skip".
      num_workers: Grain worker processes; 0 decodes in `num_threads` threads of this process.

    Returns:
      Iterator of image uint8 [b, S, S, C], label int32 [b], index int32 [b], epoch int32 [b], with
      b = G / P. Close it if workers are used.

    Raises:
      UnreadableExample: while iterating, with on_error="raise".
      ValueError: an argument outside its range.
    """
    check_on_error(on_error)
    local = _local_size(global_batch_size, process_index, process_count)
    if start_step < 0:
        raise ValueError(f"start_step={start_step} was given; use 0 or more.")
    count = len(data)
    if num_steps == 0:  # an empty train part is allowed if nothing is trained
        return Batches(iter(()), {})
    sample(0, count, seed)

    def positions(step: int) -> np.ndarray:
        first = (start_step + step) * global_batch_size + process_index * local
        return np.arange(first, first + local, dtype=np.int64)

    if isinstance(data, Arrays):
        _check_arrays(data, on_error)
        substitute = _substitutes(data)

        def batches() -> Iterator[Batch]:
            step = 0
            while num_steps is None or step < num_steps:
                epoch, index = sample(positions(step), count, seed)
                index = substitute[index]
                yield {
                    "image": data.image[index],
                    "label": data.label[index],
                    "index": index.astype(np.int32),
                    "epoch": epoch.astype(np.int32),
                }
                step += 1

        return Batches(batches(), dict(data.unreadable))

    loader = TrainLoader(
        source=data,
        seed=seed,
        first=start_step * global_batch_size + process_index * local,
        local=local,
        stride=global_batch_size,
        image_size=_streamed_size(image_size),
        channels=channels,
        random_resized_crop=random_resized_crop,
        crop_scale=tuple(crop_scale),
        crop_ratio=tuple(crop_ratio),
        crop_fraction=crop_fraction,
        skip=on_error == "skip",
    )
    # Grain needs a length; 2**40 batches never end.
    steps = 2**40 if num_steps is None else num_steps
    return stream(loader, steps, local, on_error, num_workers, num_threads)


def eval_batches(
    data: Arrays | Source,
    *,
    global_batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    image_size: int = 0,
    channels: int = 3,
    crop_fraction: float = 0.875,
    on_error: str = "raise",
    num_workers: int = 0,
    num_threads: int = 4,
) -> Batches:
    """Every example exactly once, in order, for any batch size and number of processes.

    All processes yield ceil(N / G) batches of b = G / P. The last batch is padded: mask 0, index
    -1, label 0, image 0. With on_error="skip" an unreadable example has mask 0 and image 0, but
    keeps its label and index.

    Args:
      As in `train_batches`.

    Returns:
      Iterator of image uint8 [b, S, S, C], label int32 [b], index int32 [b], mask float32 [b].

    Raises:
      UnreadableExample: while iterating, with on_error="raise".
    """
    check_on_error(on_error)
    local = _local_size(global_batch_size, process_index, process_count)
    count = len(data)
    steps = -(-count // global_batch_size)
    first = process_index * local

    if isinstance(data, Arrays):
        _check_arrays(data, on_error)
        readable = readable_mask(data)

        def batches() -> Iterator[Batch]:
            for step in range(steps):
                position = step * global_batch_size + first + np.arange(local, dtype=np.int64)
                real = position < count
                index = np.where(real, position, 0)
                yield {
                    "image": data.image[index] * real[:, None, None, None].astype(np.uint8),
                    "label": np.where(real, data.label[index], 0).astype(np.int32),
                    "index": np.where(real, position, -1).astype(np.int32),
                    "mask": (real & readable[index]).astype(np.float32),
                }

        return Batches(batches(), dict(data.unreadable))

    loader = EvalLoader(
        source=data,
        first=first,
        local=local,
        stride=global_batch_size,
        image_size=_streamed_size(image_size),
        channels=channels,
        crop_fraction=crop_fraction,
    )
    return stream(loader, steps, local, on_error, num_workers, num_threads)


def _check_arrays(arrays: Arrays, on_error: str) -> None:
    if arrays.unreadable and on_error == "raise":
        raise unreadable_error(*next(iter(arrays.unreadable.items())))


def _streamed_size(image_size: int) -> int:
    if image_size < 1:
        raise ValueError(
            f"image_size={image_size} was given for streamed images; use at least 1 pixel."
        )
    return image_size
