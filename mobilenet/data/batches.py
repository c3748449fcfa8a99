"""Iterators of batches: reports of unreadable examples, and prefetching in a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np

Batch = dict[str, np.ndarray]


T = TypeVar("T")


class Batches:
    """An iterator of batches that also reports unreadable examples.

    Attributes:
      unreadable: index -> where the example comes from and why it failed, in the order of discovery
        (complete from the start for data in memory).
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
        """Stops workers and ends streamed batches. May be called twice."""
        if self._close is not None:
            self._close()
            self._close = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Prefetcher(Generic[T]):
    """Iterates in a background thread, a few items ahead, to hide host work and transfers.

    An exception of the iterable is raised in the consumer, after the items before it.

    Attributes:
      wait_seconds: total time that the consumer has waited for items.
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
          iterable: the items; `close` calls its `close()`, if it has one.
          buffer_size: number of items that are prepared ahead, at least 1.
          transform: applied to each item in the thread, such as a transfer to the device.
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
        except BaseException as error:  # any exception is passed to the consumer
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
