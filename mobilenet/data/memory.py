"""Splits decoded into memory, statistics of pictures, and what to do about unreadable ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

from mobilenet.data import images as pictures
from mobilenet.data.datasets import Dataset, Source, read_many

# "auto" keeps data sets in memory up to this size: CIFAR-10 is 0.2 GB, and copies exist only once.
MEMORY_LIMIT_BYTES = 2 * 2**30

_ON_ERROR = ("raise", "skip")


class UnreadableExample(pictures.UnreadableImage):
    """An example of a data set that cannot be read or decoded; the message names it."""


def describe_failure(source: Source, index: int, reason: object) -> str:
    return f"{source.describe(index)}: {reason}"


def unreadable_error(index: int, description: str) -> UnreadableExample:
    return UnreadableExample(
        f"example {index} cannot be read, {description} Repair or remove it, or go on without it "
        'with on_error="skip".'
    )


def nothing_readable(description: str) -> UnreadableExample:
    """The error of a split in which every example was skipped; `description` is of the first."""
    return UnreadableExample(
        f"no example can be read; the first is {description} Repair or replace the images."
    )


def check_on_error(on_error: str) -> None:
    if on_error not in _ON_ERROR:
        raise ValueError(f"on_error={on_error!r} was given; use 'raise' or 'skip'.")


@dataclass(frozen=True)
class Arrays:
    """A split decoded into memory.

    Attributes:
      image: uint8 [N, S, S, C]; zeros where unreadable.
      label: int32 [N].
      unreadable: index -> where it comes from and why it was not decoded, by rising index.
    """

    image: UInt8[np.ndarray, "N S S C"]
    label: Int32[np.ndarray, " N"]
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)


def load_in_memory(
    source: Source,
    *,
    image_size: int,
    channels: int = 3,
    crop_fraction: float = 0.875,
    on_error: str = "raise",
    num_threads: int = 0,
) -> Arrays:
    """Decodes a whole source once, in threads.

    Args:
      source: examples.
      image_size: S. Pictures of S x S stay as they are, others become `evaluation_view`s.
      channels: 1 or 3.
      crop_fraction: of `evaluation_view`.
      on_error: "raise", or "skip" to note unreadable examples in `Arrays.unreadable`.
      num_threads: 0 means one per processor, at most 16; for files below 8 kB, one, because their
        time goes to Python code, where threads only wait for each other.

    Raises:
      UnreadableExample: with on_error="raise", for the first one by index.
    """
    check_on_error(on_error)
    count = len(source)
    image = np.zeros((count, image_size, image_size, channels), np.uint8)
    label = np.zeros(count, np.int32)

    def fill(start: int) -> dict[int, str]:
        failed = {}
        indices = range(start, min(start + 256, count))
        try:
            examples: list[Any] = read_many(source, indices)
        except OSError:  # one vanished file; find out which
            examples = [None] * len(indices)
        for index, example in zip(indices, examples, strict=True):
            try:
                data, label[index] = source.read(index) if example is None else example
                decoded = pictures.load_eval_view_or_same(
                    data, size=image_size, channels=channels, crop_fraction=crop_fraction
                )
                image[index] = decoded
            except (pictures.UnreadableImage, OSError) as error:
                failed[index] = describe_failure(source, index, error)
        return failed

    threads = num_threads or _useful_threads(source)
    unreadable: dict[int, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for failed in pool.map(fill, range(0, count, 256)):
            if failed and on_error == "raise":
                pool.shutdown(wait=False, cancel_futures=True)
                raise unreadable_error(*next(iter(failed.items())))
            unreadable.update(failed)
    return Arrays(image, label, unreadable)


def _useful_threads(source: Source) -> int:
    try:
        data = source.read(0)[0] if len(source) else b""
    except OSError:
        data = b""
    size = data.nbytes if isinstance(data, np.ndarray) else len(data)
    return 1 if size < 8192 else min(16, os.cpu_count() or 1)


def fits_in_memory(
    dataset: Dataset,
    *,
    image_size: int = 0,
    channels: int = 0,
    limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> bool:
    """Whether "auto" decodes the data set into memory.

    True when all pictures share one known shape and all splits together, as uint8 of that shape
    (or of image_size and channels where given), take at most `limit_bytes`.
    """
    if dataset.image_shape is None:
        return False
    height, width, depth = dataset.image_shape
    pixels = image_size * image_size if image_size else height * width
    examples = sum(len(source) for source in dataset.splits.values())
    return examples * pixels * (channels or depth) <= limit_bytes


def channel_statistics(
    data: Arrays | Source, *, channels: int = 3, image_size: int = 0, max_examples: int = 10_000
) -> tuple[Float64[np.ndarray, " C"], Float64[np.ndarray, " C"]]:
    """Mean and standard deviation per channel, of values in [0, 1], over all pixels.

    `Arrays` count whole, except unreadable examples. Of a source, `max_examples` spread evenly by
    index are decoded (all when it has fewer): as `evaluation_view`s of image_size, or in their own
    sizes, where larger pictures weigh more, when it is 0; unreadable ones are left out.

    Returns:
      mean and std (population), float64 [C].

    Raises:
      UnreadableExample: no readable example.
    """
    # Whole numbers: uint8 sums are exact in int64, whatever the order or the number of pixels.
    total: np.ndarray = np.zeros(1, np.int64)
    squares: np.ndarray = np.zeros(1, np.int64)
    pixels = 0
    for picture in _statistics_pictures(data, channels, image_size, max_examples):
        flat = picture.reshape(-1, picture.shape[-1])
        # float64 products of values up to 255 are exact below 2**53, and fast.
        wide = flat.astype(np.float64)
        total = total + wide.sum(0).astype(np.int64)
        squares = squares + np.einsum("pc,pc->c", wide, wide).astype(np.int64)
        pixels += len(flat)
    if not pixels:
        raise UnreadableExample(
            "channel statistics need at least 1 readable image, 0 were given; repair the images, "
            "or set data.normalization."
        )
    mean = total / pixels
    variance = squares / pixels - mean**2
    return mean / 255.0, np.sqrt(np.maximum(variance, 0.0)) / 255.0


def _statistics_pictures(
    data: Arrays | Source, channels: int, image_size: int, max_examples: int
) -> Iterator[np.ndarray]:
    if isinstance(data, Arrays):
        readable = readable_mask(data)
        for start in range(0, len(data), 1024):
            yield data.image[start : start + 1024][readable[start : start + 1024]]
        return
    count = min(len(data), max_examples)
    for index in (np.arange(count) * len(data) // max(count, 1)).tolist():
        try:
            encoded, _ = data.read(index)
            if image_size:
                yield pictures.load_eval_view_or_same(encoded, size=image_size, channels=channels)
            else:
                yield pictures.decode_image(encoded, channels)
        except (pictures.UnreadableImage, OSError):
            continue


def readable_mask(arrays: Arrays) -> Bool[np.ndarray, " N"]:
    readable = np.ones(len(arrays), bool)
    readable[list(arrays.unreadable)] = False
    return readable
