"""From a data set to batches: order, sharding, padding, decoding in memory or on the fly.

The order of training is a pure function of (seed, position in the stream), so the place in a run is
one integer, the step. Batches are dicts of NumPy arrays, images uint8; JAX is not imported here,
which keeps data workers small and off the accelerator.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64, UInt8

from mobilenet.data import images as pictures
from mobilenet.data.datasets import Dataset, Source, read_many

Batch = dict[str, np.ndarray]
T = TypeVar("T")

# "auto" keeps data sets in memory up to this size: CIFAR-10 is 0.2 GB, and copies exist only once.
MEMORY_LIMIT_BYTES = 2 * 2**30

_ON_ERROR = ("raise", "skip")


class UnreadableExample(pictures.UnreadableImage):
    """An example of a data set that cannot be read or decoded; the message names it."""


# ------------------------------------------------------------------------------------------- order


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> Int64[np.ndarray, " N"]:
    """A permutation of 0..N-1 for (seed, epoch).

    The ranks of N raw 64-bit words of Philox-4x64-10 with key (seed, epoch). NumPy promises stable
    streams for its bit generators (NEP 19) but not for `Generator.permutation`.
    """
    words = np.random.Philox(key=[seed, epoch]).random_raw(num_examples)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.flags.writeable = False  # the cache hands out the same array again
    return order


def example_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers of one example in one epoch, for the crop in the host's workers.

    The counter's upper half keeps this stream apart from the permutation of the same key.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, index, 1]))


def sample(
    position: int | Int[np.ndarray, " B"], num_examples: int, seed: int
) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
    """(epoch, index) at positions of the endless training stream.

    The stream is one permutation of all examples after the other; a batch may straddle two, and
    nothing is dropped at the end of an epoch.

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


# ----------------------------------------------------------------------------------------- loading


def _describe(source: Source, index: int, reason: object) -> str:
    return f"{source.describe(index)}: {reason}"


def _unreadable_error(index: int, description: str) -> UnreadableExample:
    return UnreadableExample(
        f"example {index} cannot be read, {description} Repair or remove it, or go on without it "
        'with on_error="skip".'
    )


def _check_on_error(on_error: str) -> None:
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
    _check_on_error(on_error)
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
                failed[index] = _describe(source, index, error)
        return failed

    threads = num_threads or _useful_threads(source)
    unreadable: dict[int, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for failed in pool.map(fill, range(0, count, 256)):
            if failed and on_error == "raise":
                pool.shutdown(wait=False, cancel_futures=True)
                raise _unreadable_error(*next(iter(failed.items())))
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
      ValueError: no readable example.
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
        raise ValueError("channel statistics need at least 1 readable picture, 0 were given.")
    mean = total / pixels
    variance = squares / pixels - mean**2
    return mean / 255.0, np.sqrt(np.maximum(variance, 0.0)) / 255.0


def _statistics_pictures(
    data: Arrays | Source, channels: int, image_size: int, max_examples: int
) -> Iterator[np.ndarray]:
    if isinstance(data, Arrays):
        readable = _readable(data)
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


# ----------------------------------------------------------------------------------------- batches


class Batches:
    """An iterator of batches that also reports what could not be read.

    Attributes:
      unreadable: index -> where the example comes from and why it failed, in the order of discovery
        (all at once for data in memory).
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        unreadable: dict[int, str],
        close: Callable[[], None] | None = None,
    ):
        self._batches = batches
        self._close = close
        self.unreadable = unreadable

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Stops workers; streamed batches end here. May be called twice."""
        if self._close is not None:
            self._close()
            self._close = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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


def _readable(arrays: Arrays) -> Bool[np.ndarray, " N"]:
    readable = np.ones(len(arrays), bool)
    readable[list(arrays.unreadable)] = False
    return readable


def _substitutes(arrays: Arrays) -> Int64[np.ndarray, " N"]:
    """index -> itself, or the next readable index (around the end)."""
    own = np.arange(len(arrays), dtype=np.int64)
    if not arrays.unreadable:
        return own
    good = np.flatnonzero(_readable(arrays))
    if not len(good):
        raise _unreadable_error(*next(iter(arrays.unreadable.items())))
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
    """Training batches from `start_step` on, exactly as an uninterrupted run would see them.

    Global batch t holds positions t * G .. (t + 1) * G - 1 of the stream (`sample`), and process p
    of P gets the contiguous slice p of it. With on_error="skip" an unreadable example is replaced
    by the next readable one, with that one's label and index.

    Args:
      data: `Arrays`, or a source that is decoded on the fly.
      global_batch_size: G, over all processes.
      seed: of the order and of crops.
      start_step: first step, from 0.
      num_steps: batches to yield; None for no end.
      process_index, process_count: p and P.
      image_size: S of streamed pictures; the rest only matters for these too.
      channels: 1 or 3.
      random_resized_crop: crop at random (a function of seed, epoch and index); False gives the
        `evaluation_view`, to be augmented on the device.
      crop_scale, crop_ratio: of `images.random_box`.
      crop_fraction: of `evaluation_view`.
      on_error: "raise" or "skip".
      num_workers: Grain worker processes; 0 decodes in `num_threads` threads of this process.

    Returns:
      Iterator of image uint8 [b, S, S, C], label int32 [b], index int32 [b], epoch int32 [b], with
      b = G / P. Close it when workers are used.

    Raises:
      UnreadableExample: while iterating, with on_error="raise".
      ValueError: an argument outside its range.
    """
    _check_on_error(on_error)
    local = _local_size(global_batch_size, process_index, process_count)
    if start_step < 0:
        raise ValueError(f"start_step={start_step} was given; use 0 or more.")
    count = len(data)
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

    loader = _TrainLoader(
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
    # Grain wants a length; 2**40 batches do not end.
    steps = 2**40 if num_steps is None else num_steps
    return _stream(loader, steps, local, on_error, num_workers, num_threads)


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

    All processes yield ceil(N / G) batches of b = G / P. The last is padded: mask 0, index -1,
    label 0, image 0. With on_error="skip" an unreadable example has mask 0 and image 0 but keeps
    its label and index.

    Args:
      As in `train_batches`.

    Returns:
      Iterator of image uint8 [b, S, S, C], label int32 [b], index int32 [b], mask float32 [b].

    Raises:
      UnreadableExample: while iterating, with on_error="raise".
    """
    _check_on_error(on_error)
    local = _local_size(global_batch_size, process_index, process_count)
    count = len(data)
    steps = -(-count // global_batch_size)
    first = process_index * local

    if isinstance(data, Arrays):
        _check_arrays(data, on_error)
        readable = _readable(data)

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

    loader = _EvalLoader(
        source=data,
        first=first,
        local=local,
        stride=global_batch_size,
        image_size=_streamed_size(image_size),
        channels=channels,
        crop_fraction=crop_fraction,
    )
    return _stream(loader, steps, local, on_error, num_workers, num_threads)


def _check_arrays(arrays: Arrays, on_error: str) -> None:
    if arrays.unreadable and on_error == "raise":
        raise _unreadable_error(*next(iter(arrays.unreadable.items())))


def _streamed_size(image_size: int) -> int:
    if image_size < 1:
        raise ValueError(
            f"image_size={image_size} was given for streamed pictures; use at least 1 pixel."
        )
    return image_size


# ----------------------------------------------------------------------------------------- streams
#
# Loaders run in Grain's threads or worker processes: they are pickled, hold the source and plain
# settings, and report failures as data (a JSON text), since an exception of a worker process loses
# its type and its example on the way.


def _position(element: int, first: int, local: int, stride: int) -> int:
    """Position in the global stream of the element-th example of one process."""
    step, offset = divmod(element, local)
    return first + step * stride + offset


@dataclass(frozen=True)
class _TrainLoader:
    source: Source
    seed: int
    first: int
    local: int
    stride: int
    image_size: int
    channels: int
    random_resized_crop: bool
    crop_scale: tuple[float, ...]
    crop_ratio: tuple[float, ...]
    crop_fraction: float
    skip: bool

    def __call__(self, element: int) -> dict[str, Any]:
        position = _position(element, self.first, self.local, self.stride)
        count = len(self.source)
        epoch, index = (int(x) for x in sample(position, count, self.seed))
        failed: dict[int, str] = {}
        blank = np.zeros((self.image_size, self.image_size, self.channels), np.uint8)
        result: dict[str, Any] = {"image": blank, "label": 0, "index": index, "epoch": epoch}
        for tried in range(count if self.skip else 1):
            candidate = (index + tried) % count
            try:
                data, label = self.source.read(candidate)
                result.update(image=self._view(data, epoch, candidate), label=label)
                result.update(index=candidate, failed=json.dumps(failed))
                return result
            except (pictures.UnreadableImage, OSError) as error:
                failed[candidate] = _describe(self.source, candidate, error)
        return {**result, "failed": json.dumps(failed), "fatal": True}

    def _view(self, data: bytes | np.ndarray, epoch: int, index: int) -> np.ndarray:
        if not self.random_resized_crop:
            return pictures.load_eval_view_or_same(
                data,
                size=self.image_size,
                channels=self.channels,
                crop_fraction=self.crop_fraction,
            )
        return pictures.load_train_view(
            data,
            size=self.image_size,
            rng=example_rng(self.seed, epoch, index),
            channels=self.channels,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
        )


@dataclass(frozen=True)
class _EvalLoader:
    source: Source
    first: int
    local: int
    stride: int
    image_size: int
    channels: int
    crop_fraction: float

    def __call__(self, element: int) -> dict[str, Any]:
        position = _position(element, self.first, self.local, self.stride)
        blank = np.zeros((self.image_size, self.image_size, self.channels), np.uint8)
        result: dict[str, Any] = {"image": blank, "label": 0, "index": -1, "mask": 0.0}
        if position >= len(self.source):
            return {**result, "failed": "{}"}
        result["index"] = position
        try:
            data, result["label"] = self.source.read(position)
            image = pictures.load_eval_view_or_same(
                data,
                size=self.image_size,
                channels=self.channels,
                crop_fraction=self.crop_fraction,
            )
            return {**result, "image": image, "mask": 1.0, "failed": "{}"}
        except (pictures.UnreadableImage, OSError) as error:
            failed = {position: _describe(self.source, position, error)}
            return {**result, "failed": json.dumps(failed)}


_DTYPES = {"label": np.int32, "index": np.int32, "epoch": np.int32, "mask": np.float32}


def _collate(elements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {"image": np.stack([e["image"] for e in elements])}
    for name, dtype in _DTYPES.items():
        if name in elements[0]:
            batch[name] = np.array([e[name] for e in elements], dtype)
    failed: dict[str, str] = {}
    for element in elements:
        failed.update(json.loads(element["failed"]))
    batch["failed"] = json.dumps(failed)
    batch["fatal"] = any("fatal" in element for element in elements)
    return batch


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keeps multiprocessing from running the user's script again in each spawned worker.

    Workers need this package alone. Without this, a script that lacks an
    `if __name__ == "__main__"` guard would start itself over in every worker, and one that has it
    would import everything it imports, JAX included, once more.
    """
    main = sys.modules["__main__"]
    missing = object()
    saved = {name: getattr(main, name, missing) for name in ("__spec__", "__file__")}
    try:
        main.__spec__ = None
        if saved["__file__"] is not missing:
            del main.__file__
        yield
    finally:
        for name, value in saved.items():
            if value is not missing:
                setattr(main, name, value)


def _stream(
    loader: Callable[[int], dict[str, Any]],
    steps: int,
    local: int,
    on_error: str,
    num_workers: int,
    num_threads: int,
) -> Batches:
    """Batches of loader(0), loader(1), ... through Grain, in this order."""
    if num_workers < 0 or num_threads < 1:
        raise ValueError(
            f"num_workers={num_workers} and num_threads={num_threads} were given; use at least 0 "
            "and 1."
        )
    import grain

    elements = grain.MapDataset.range(steps * local).map(loader)
    if num_workers:
        from absl import flags

        # Grain reads a flag of its own when it starts workers, which fails in notebooks, tests and
        # scripts without absl's app.run; a later app.run still parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Grain deals elements out to the workers, so whole batches have to be the elements.
        stream = elements.batch(local, batch_fn=_collate).to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        )
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        )
    else:
        stream = elements.to_iter_dataset(
            grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * local)
        ).batch(local, batch_fn=_collate)
    iterator: Any = iter(stream)
    unreadable: dict[int, str] = {}

    def batches() -> Iterator[Batch]:
        first = True
        while iterator is not None:
            try:
                with _main_module_hidden() if first and num_workers else contextlib.nullcontext():
                    batch: Any = next(iterator)
            except StopIteration:
                return
            first = False
            failed = {int(k): v for k, v in json.loads(batch.pop("failed")).items()}
            fatal = batch.pop("fatal")
            # Out of Grain's shared memory, which must not outlive the workers.
            batch = {name: np.array(values) for name, values in batch.items()}
            for index, description in failed.items():
                unreadable.setdefault(index, description)
            if failed and (fatal or on_error == "raise"):
                raise _unreadable_error(*next(iter(failed.items())))
            yield batch

    def close() -> None:
        nonlocal iterator
        atexit.unregister(close)
        closing, iterator = iterator, None
        if hasattr(closing, "close"):
            closing.close()
        # Its buffers still hold arrays in shared memory, in cycles.
        del closing
        gc.collect()

    # Grain's threads and shared memory complain loudly when the interpreter goes before them.
    atexit.register(close)
    return Batches(batches(), unreadable, close)


# ---------------------------------------------------------------------------------------- prefetch


class Prefetcher(Generic[T]):
    """Iterates in a background thread, a few items ahead; for hiding host work and transfers.

    An exception of the iterable is raised in the consumer, after the items before it.

    Attributes:
      wait_seconds: time that the consumer spent waiting for items so far.
    """

    _END = object()

    def __init__(
        self,
        iterable: Iterable[Any],
        buffer_size: int = 2,
        transform: Callable[[Any], T] | None = None,
    ):
        """Starts the thread.

        Args:
          iterable: what to iterate; its `close()`, if any, is called by `close`.
          buffer_size: items held ready, at least 1.
          transform: applied to each item in the thread, as a transfer to the device.
        """
        if buffer_size < 1:
            raise ValueError(f"buffer_size={buffer_size} was given; use at least 1.")
        self.wait_seconds = 0.0
        self._iterable = iterable
        self._transform = transform
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(buffer_size)
        self._stop = threading.Event()
        self._done = False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _put(self, item: Any, error: BaseException | None = None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _run(self) -> None:
        try:
            for item in self._iterable:
                if not self._put(item if self._transform is None else self._transform(item)):
                    return
        except BaseException as error:  # handed to the consumer, whatever it is
            self._put(self._END, error)
            return
        self._put(self._END)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._done or self._stop.is_set():
            raise StopIteration
        start = time.perf_counter()
        item, error = self._queue.get()
        self.wait_seconds += time.perf_counter() - start
        if item is self._END:
            self._done = True
            if error is not None:
                raise error
            raise StopIteration
        return item

    def close(self) -> None:
        """Stops the thread, waits for it, and closes the iterable; may be called twice."""
        self._stop.set()
        self._thread.join()
        close = getattr(self._iterable, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
