"""Splits decoded into memory, statistics of images, and the handling of unreadable examples."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

from mobilenet.data import images as views
from mobilenet.data.datasets import Dataset, DatasetError, Source, read_many

log = logging.getLogger("mobilenet")

T = TypeVar("T")

# "auto" keeps data sets in memory up to this size: CIFAR-10 has 0.2 GB, and there is only one copy.
MEMORY_LIMIT_BYTES = 2 * 2**30

_ON_ERROR = ("raise", "skip")

# Errors that make one example unreadable: its pixels, its file, or too little memory for it.
READ_ERRORS = (views.UnreadableImage, OSError, MemoryError)

_CHUNK = 256  # examples that a thread reads and decodes at a time


class UnreadableExample(views.UnreadableImage):
    """An example of a data set that cannot be read or decoded; the message names it."""


def describe_failure(source: Source, index: int, reason: object) -> str:
    if isinstance(reason, MemoryError):  # its message is mostly empty
        reason = "it needs more memory than there is."
    if isinstance(reason, OSError) and reason.strerror:  # its text repeats the path
        reason = f"{reason.strerror}."
    return f"{source.describe(index)}: {reason}"


def unreadable_error(index: int, description: str) -> UnreadableExample:
    return UnreadableExample(
        f"example {index} cannot be read, {description} Repair or remove it, or skip it with "
        'on_error="skip".'
    )


def nothing_readable(description: str) -> UnreadableExample:
    """The error if every example of a split was skipped; `description` is that of the first."""
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
      unreadable: index -> where it comes from and why it was not decoded, in order of index.
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
      image_size: S. Images of S x S stay unchanged, others become `evaluation_view`s.
      channels: 1 or 3.
      crop_fraction: of `evaluation_view`.
      on_error: "raise", or "skip" to record unreadable examples in `Arrays.unreadable`.
      num_threads: 0 means one per processor, at most 16. For files below 8 kB it means one: their
        time is spent in Python code, where threads only wait for each other.

    Raises:
      UnreadableExample: with on_error="raise", for the unreadable example with the lowest index.
    """
    check_on_error(on_error)
    count = len(source)
    shape = (count, image_size, image_size, channels)
    try:
        image, label = np.zeros(shape, np.uint8), np.zeros(count, np.int32)
    except MemoryError as error:
        raise DatasetError(
            f"{count:,} images of {image_size} x {image_size} pixels need "
            f"{math.prod(shape) / 1e9:,.1f} GB, more memory than there is; decode them during "
            "training, with in_memory='never'."
        ) from error

    def view(data: bytes | np.ndarray) -> np.ndarray:
        return views.load_eval_view_or_same(
            data, size=image_size, channels=channels, crop_fraction=crop_fraction
        )

    def fill(indices: Sequence[int]) -> dict[int, str]:
        failed = {}
        for index, pixels, label[index], reason in _read_chunk(source, indices, view):
            if pixels is None:
                failed[index] = reason
            else:
                image[index] = pixels
        return failed

    unreadable: dict[int, str] = {}
    # Closed at once after an error, so that no thread continues to decode.
    with contextlib.closing(_in_threads(source, range(count), fill, num_threads)) as chunks:
        for failed in chunks:
            if failed and on_error == "raise":
                raise unreadable_error(*next(iter(failed.items())))
            unreadable.update(failed)
    return Arrays(image, label, unreadable)


def _read_chunk(
    source: Source, indices: Sequence[int], view: Callable[[Any], np.ndarray]
) -> Generator[tuple[int, np.ndarray | None, int, str]]:
    """(index, its view or None, label, reason if None) of some examples of a source."""
    try:
        examples: list[Any] = read_many(source, indices)
    except (OSError, MemoryError):  # one file is missing or too large; find out which
        examples = [None] * len(indices)
    for index, example in zip(indices, examples, strict=True):
        label = 0
        try:
            data, label = source.read(index) if example is None else example
            yield index, view(data), label, ""
        except READ_ERRORS as error:
            yield index, None, label, describe_failure(source, index, error)


def _in_threads(
    source: Source, indices: Sequence[int], work: Callable[[Sequence[int]], T], num_threads: int = 0
) -> Generator[T]:
    """Yields `work` of every chunk of the indices in order; the source decides on the threads."""
    with ThreadPoolExecutor(num_threads or _useful_threads(source)) as pool:
        chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
        try:
            yield from pool.map(work, chunks)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _useful_threads(source: Source) -> int:
    try:
        data = source.read(0)[0] if len(source) else b""
    except (OSError, MemoryError):
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

    True if all images have one known shape and all splits together, as uint8 of that shape (or of
    image_size and channels if given), take at most `limit_bytes`.
    """
    if dataset.image_shape is None:
        return False
    height, width, depth = dataset.image_shape
    pixels = image_size * image_size if image_size else height * width
    examples = sum(len(source) for source in dataset.splits.values())
    return examples * pixels * (channels or depth) <= limit_bytes


def channel_statistics(
    data: Arrays | Source,
    *,
    channels: int = 3,
    image_size: int = 0,
    crop_fraction: float = 0.875,
    max_examples: int = 0,
    on_error: str = "skip",
) -> tuple[Float64[np.ndarray, " C"], Float64[np.ndarray, " C"]]:
    """Mean and standard deviation per channel, of values in [0, 1], over all pixels.

    A source gives the same numbers as the `Arrays` of `load_in_memory` with the same image_size and
    crop_fraction. Unreadable examples do not count.

    Args:
      data: `Arrays`, or a source that is decoded here in threads. The other arguments only matter
        for a source.
      channels: 1 or 3.
      image_size: of the `evaluation_view`s that count; 0 takes images in their own sizes, so larger
        images have more weight.
      crop_fraction: of `evaluation_view`.
      max_examples: number of examples, spread evenly by index; 0 takes all.
      on_error: "raise" or "skip".

    Returns:
      mean and std (population), float64 [C].

    Raises:
      UnreadableExample: no readable example, or with on_error="raise" the first unreadable one.
    """
    check_on_error(on_error)
    # Integers: sums of uint8 are exact in int64, in any order and for any number of pixels.
    total: np.ndarray = np.zeros(1, np.int64)
    squares: np.ndarray = np.zeros(1, np.int64)
    pixels = 0
    failures: dict[int, str] = {}
    if isinstance(data, Arrays):
        parts = _sums_in_memory(data)
    else:
        parts = _sums_of_source(data, channels, image_size, crop_fraction, max_examples)
    with contextlib.closing(parts):
        for part in parts:
            if part.failed and on_error == "raise":
                raise unreadable_error(*next(iter(part.failed.items())))
            failures.update(part.failed)
            total, squares = total + part.total, squares + part.squares
            pixels += part.pixels
    if not pixels:
        first = next((f"; the first is {reason}" for reason in failures.values()), ".")
        raise UnreadableExample(
            f"channel statistics need at least 1 readable image, 0 were given{first} Repair the "
            "images, or set data.normalization."
        )
    mean = total / pixels
    variance = squares / pixels - mean**2
    return mean / 255.0, np.sqrt(np.maximum(variance, 0.0)) / 255.0


class _Sums(NamedTuple):
    """Sums over the pixels of some images, int64 [C] per channel; and unreadable examples."""

    total: np.ndarray
    squares: np.ndarray
    pixels: int
    failed: dict[int, str]


_NOTHING = _Sums(np.zeros(1, np.int64), np.zeros(1, np.int64), 0, {})


def _sums_of(images: np.ndarray) -> _Sums:
    flat = images.reshape(-1, images.shape[-1])
    # float64 products of values up to 255 are exact below 2**53, and fast.
    wide = flat.astype(np.float64)
    squares = np.einsum("pc,pc->c", wide, wide).astype(np.int64)
    return _Sums(wide.sum(0).astype(np.int64), squares, len(flat), {})


def _sums_in_memory(arrays: Arrays) -> Generator[_Sums]:
    readable = readable_mask(arrays)
    for start in range(0, len(arrays), 1024):
        yield _sums_of(arrays.image[start : start + 1024][readable[start : start + 1024]])


def _sums_of_source(
    source: Source, channels: int, image_size: int, crop_fraction: float, max_examples: int
) -> Generator[_Sums]:
    count = min(len(source), max_examples or len(source))
    if count > 10_000:
        log.info("Reading %d training images once for their mean and deviation.", count)

    def view(data: bytes | np.ndarray) -> np.ndarray:
        if not image_size:
            return views.decode_image(data, channels)
        return views.load_eval_view_or_same(
            data, size=image_size, channels=channels, crop_fraction=crop_fraction
        )

    def add(indices: Sequence[int]) -> _Sums:
        found = _NOTHING
        failed = {}
        for index, pixels, _, reason in _read_chunk(source, indices, view):
            if pixels is None:
                failed[index] = reason
                continue
            one = _sums_of(pixels)
            found = _Sums(
                found.total + one.total,
                found.squares + one.squares,
                found.pixels + one.pixels,
                failed,
            )
        return found._replace(failed=failed)

    yield from _in_threads(source, (np.arange(count) * len(source) // max(count, 1)).tolist(), add)


def readable_mask(arrays: Arrays) -> Bool[np.ndarray, " N"]:
    readable = np.ones(len(arrays), bool)
    readable[list(arrays.unreadable)] = False
    return readable
