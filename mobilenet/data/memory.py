"""Splits decoded into memory, statistics of pictures, and what to do about unreadable ones."""

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

from mobilenet.data import images as pictures
from mobilenet.data.datasets import Dataset, DatasetError, Source, read_many

log = logging.getLogger("mobilenet")

T = TypeVar("T")

# "auto" keeps data sets in memory up to this size: CIFAR-10 is 0.2 GB, and copies exist only once.
MEMORY_LIMIT_BYTES = 2 * 2**30

_ON_ERROR = ("raise", "skip")

# What makes one example unreadable: its pixels, its file, or a file that memory cannot hold.
READ_ERRORS = (pictures.UnreadableImage, OSError, MemoryError)

_CHUNK = 256  # examples that a thread reads and decodes in one go


class UnreadableExample(pictures.UnreadableImage):
    """An example of a data set that cannot be read or decoded; the message names it."""


def describe_failure(source: Source, index: int, reason: object) -> str:
    if isinstance(reason, MemoryError):  # which mostly says nothing
        reason = "it needs more memory than there is."
    if isinstance(reason, OSError) and reason.strerror:  # which else has a number and the path
        reason = f"{reason.strerror}."
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
    shape = (count, image_size, image_size, channels)
    try:
        image, label = np.zeros(shape, np.uint8), np.zeros(count, np.int32)
    except MemoryError as error:
        raise DatasetError(
            f"{count:,} images of {image_size} x {image_size} pixels need "
            f"{math.prod(shape) / 1e9:,.1f} GB, more memory than there is; decode them as they are "
            "used, with in_memory='never'."
        ) from error

    def view(data: bytes | np.ndarray) -> np.ndarray:
        return pictures.load_eval_view_or_same(
            data, size=image_size, channels=channels, crop_fraction=crop_fraction
        )

    def fill(indices: Sequence[int]) -> dict[int, str]:
        failed = {}
        for index, picture, label[index], reason in _read_chunk(source, indices, view):
            if picture is None:
                failed[index] = reason
            else:
                image[index] = picture
        return failed

    unreadable: dict[int, str] = {}
    # Closed at once on an error, so that no thread goes on decoding.
    with contextlib.closing(_in_threads(source, range(count), fill, num_threads)) as chunks:
        for failed in chunks:
            if failed and on_error == "raise":
                raise unreadable_error(*next(iter(failed.items())))
            unreadable.update(failed)
    return Arrays(image, label, unreadable)


def _read_chunk(
    source: Source, indices: Sequence[int], view: Callable[[Any], np.ndarray]
) -> Generator[tuple[int, np.ndarray | None, int, str]]:
    """(index, its view or None, label, why there is none) of some examples of a source."""
    try:
        examples: list[Any] = read_many(source, indices)
    except (OSError, MemoryError):  # one vanished or too large file; find out which
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
    """`work` of all chunks of the indices, in their order, by threads that suit the source."""
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
    data: Arrays | Source,
    *,
    channels: int = 3,
    image_size: int = 0,
    crop_fraction: float = 0.875,
    max_examples: int = 0,
    on_error: str = "skip",
) -> tuple[Float64[np.ndarray, " C"], Float64[np.ndarray, " C"]]:
    """Mean and standard deviation per channel, of values in [0, 1], over all pixels.

    A source gives the same numbers as the `Arrays` that `load_in_memory` makes of it with the same
    image_size and crop_fraction. Unreadable examples do not count.

    Args:
      data: `Arrays`, or a source that is decoded here, in threads; the rest matters for it alone.
      channels: 1 or 3.
      image_size: of the `evaluation_view`s that count; 0 takes images in their own sizes, where
        larger ones weigh more.
      crop_fraction: of `evaluation_view`.
      max_examples: at most that many, spread evenly by index; 0 takes all.
      on_error: "raise" or "skip".

    Returns:
      mean and std (population), float64 [C].

    Raises:
      UnreadableExample: no readable example, or with on_error="raise" the first unreadable one.
    """
    check_on_error(on_error)
    # Whole numbers: uint8 sums are exact in int64, whatever the order or the number of pixels.
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
    """Of the pixels of some images, per channel: int64 [C] each; and what could not be read."""

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
            return pictures.decode_image(data, channels)
        return pictures.load_eval_view_or_same(
            data, size=image_size, channels=channels, crop_fraction=crop_fraction
        )

    def add(indices: Sequence[int]) -> _Sums:
        found = _NOTHING
        failed = {}
        for index, picture, _, reason in _read_chunk(source, indices, view):
            if picture is None:
                failed[index] = reason
                continue
            one = _sums_of(picture)
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
