"""Defines a data set: three sources of encoded images with random access, and class names."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64


class DatasetError(ValueError):
    """A data set that cannot be opened; the message says what to do."""


@runtime_checkable
class Source(Protocol):
    """Labelled images with random access; picklable, safe to read from several threads."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """Example `index` in [0, len): an encoded image or uint8 [H, W, C], and its label."""
        ...

    def describe(self, index: int) -> str:
        """Where the example comes from, for messages: a path, or "cifar10/train record 17"."""
        ...


def read_many(source: Source, indices: Sequence[int]) -> list[tuple[bytes | np.ndarray, int]]:
    """`[source.read(i) for i in indices]`, in one call if the source supports it (5x for TFDS)."""
    many = getattr(source, "read_many", None)
    return many(indices) if many is not None else [source.read(i) for i in indices]


@dataclass(frozen=True)
class Dataset:
    """An opened data set.

    Attributes:
      name: as the user gave it.
      class_names: label -> name.
      image_shape: (H, W, C) if all images have one known shape, else None.
      splits: "train", "validation" and "test". Validation is empty if none was requested; train is
        empty in a folder that has only a test part.
      left_out: reason why files of a folder are not examples -> their number; empty for other data
        sets.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    splits: Mapping[str, Source]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def examples(self) -> dict[str, dict[str, Any]]:
        """Split -> `identify`, which identifies its examples."""
        return {name: identify(source) for name, source in self.splits.items()}


@dataclass(frozen=True)
class SubsetSource:
    """Some examples of another source, in the order of `indices` (int64 [N])."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
        return self.source.read(int(self.indices[index]))

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes | np.ndarray, int]]:
        return read_many(self.source, self.indices[np.asarray(indices, np.int64)].tolist())

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.indices[index]))


def evenly_spaced(num_examples: int, fraction: float) -> Bool[np.ndarray, " N"]:
    """Marks floor(N * fraction) of N examples, as evenly as possible by index.

    Example i is marked iff floor((i + 1) f) > floor(i f), where f is the decimal fraction as
    written (0.29 is 29/100 and not the nearest binary number). So no seed is involved.
    """
    if not 0 <= fraction <= 1:
        raise DatasetError(f"a fraction of {fraction} was given; use a value in [0, 1].")
    exact = Fraction(str(fraction)).limit_denominator(10**6)
    steps = np.arange(num_examples + 1, dtype=np.int64) * exact.numerator // exact.denominator
    return steps[1:] > steps[:-1]


def labels_of(source: Source) -> Int64[np.ndarray, " N"]:
    """All labels of a source, read without decoding images (folders: without reading them)."""
    if isinstance(source, SubsetSource):
        return labels_of(source.source)[source.indices]
    known = getattr(source, "labels", None)
    if known is not None:
        return np.array(known, np.int64)
    chunks: Iterator[list[tuple[Any, int]]] = (
        read_many(source, range(start, min(start + 1024, len(source))))
        for start in range(0, len(source), 1024)
    )
    return np.array([label for chunk in chunks for _, label in chunk], np.int64)


def identify(source: Source) -> dict[str, Any]:
    """Identifies the examples of a run: their `count`, and a `digest` of their names in order.

    The digest is 16 hexadecimal digits, and does not depend on where the data set is stored.
    """
    names = b"\0".join(os.fsencode(name) for name in names_of(source))
    return {"count": len(source), "digest": hashlib.sha256(names).hexdigest()[:16]}


def names_of(source: Source) -> Sequence[str]:
    """The names of all examples within their data set, in order; no example is read.

    The names do not depend on where the data set is stored: "cat/1.jpg" below the part of a folder,
    or "cifar10/3.0.2/train record 17". A file name that is not UTF-8 has surrogates, as Python's
    `os.fsdecode` gives them, so convert names to bytes with `os.fsencode`, not `str.encode`.
    """
    if isinstance(source, SubsetSource):
        names = names_of(source.source)
        return [names[int(index)] for index in source.indices]
    known = getattr(source, "names", None)
    return known if known is not None else [source.describe(i) for i in range(len(source))]
