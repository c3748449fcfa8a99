"""Batches whose images Grain decodes during training, in threads or worker processes."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilenet.data import images as views
from mobilenet.data.batches import Batch, Batches
from mobilenet.data.datasets import Source
from mobilenet.data.memory import (
    READ_ERRORS,
    describe_failure,
    nothing_readable,
    unreadable_error,
)
from mobilenet.data.order import example_rng, sample

# Loaders run in Grain's threads or worker processes. They are pickled, so they hold only the source
# and plain settings. They report failures as data (JSON text), because an exception of a worker
# process loses its type and its example.


def _position(element: int, first: int, local: int, stride: int) -> int:
    """Position in the global stream of the element-th example of one process."""
    step, offset = divmod(element, local)
    return first + step * stride + offset


@dataclass(frozen=True)
class TrainLoader:
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
            except READ_ERRORS as error:
                failed[candidate] = describe_failure(self.source, candidate, error)
        return {**result, "failed": json.dumps(failed), "fatal": True}

    def _view(self, data: bytes | np.ndarray, epoch: int, index: int) -> np.ndarray:
        if not self.random_resized_crop:
            return views.load_eval_view_or_same(
                data,
                size=self.image_size,
                channels=self.channels,
                crop_fraction=self.crop_fraction,
            )
        return views.load_train_view(
            data,
            size=self.image_size,
            rng=example_rng(self.seed, epoch, index),
            channels=self.channels,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
        )


@dataclass(frozen=True)
class EvalLoader:
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
            image = views.load_eval_view_or_same(
                data,
                size=self.image_size,
                channels=self.channels,
                crop_fraction=self.crop_fraction,
            )
            return {**result, "image": image, "mask": 1.0, "failed": "{}"}
        except READ_ERRORS as error:
            failed = {position: describe_failure(self.source, position, error)}
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

    Workers need only this package. Without this, a script without an `if __name__ == "__main__"`
    guard would run again in every worker, and a script with the guard would import all its modules
    again, JAX included.
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


def stream(
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

        # Grain reads one of its flags when it starts workers. This fails in notebooks, tests and
        # scripts without absl's app.run. A later app.run still parses the flags.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Grain distributes elements over the workers, so each element must be a whole batch.
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
            # Copied out of Grain's shared memory, which must not outlive the workers.
            batch = {name: np.array(values) for name, values in batch.items()}
            for index, description in failed.items():
                unreadable.setdefault(index, description)
            if failed and on_error == "raise":
                raise unreadable_error(*next(iter(failed.items())))
            if failed and fatal:
                raise nothing_readable(next(iter(failed.values())))
            yield batch

    def close() -> None:
        nonlocal iterator
        atexit.unregister(close)
        closing, iterator = iterator, None
        if hasattr(closing, "close"):
            closing.close()
        # Its buffers still hold arrays in shared memory, in reference cycles.
        del closing
        gc.collect()

    # Grain's threads and shared memory print errors if the interpreter ends before them.
    atexit.register(close)
    return Batches(batches(), unreadable, close)
