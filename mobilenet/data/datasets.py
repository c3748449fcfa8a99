"""Labelled images by name: the embedded digits, a folder of files, or a prepared TFDS data set.

A data set consists of three `Source`s (train, validation, test) of encoded images with random
access. Opening never uses the network; only `prepare` may use it. tensorflow_datasets is imported
only when a TFDS data set is opened, and TensorFlow is never imported.
"""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.data.folders import FolderSource, open_folder, open_images
from mobilenet.data.preparation import (
    DownloadError,
    cache_dir,
    default_data_dir,
    parse_name,
    prepare,
    prepare_digits,
    stored_format,
)
from mobilenet.data.sources import (
    Dataset,
    DatasetError,
    Source,
    SubsetSource,
    evenly_spaced,
    identify,
    labels_of,
    names_of,
    read_many,
)

__all__ = [
    "Dataset",
    "DatasetError",
    "DownloadError",
    "FolderSource",
    "Source",
    "SubsetSource",
    "TfdsSource",
    "cache_dir",
    "default_data_dir",
    "empty",
    "evenly_spaced",
    "labels_of",
    "identify",
    "names_of",
    "open_dataset",
    "open_images",
    "prepare",
    "read_many",
    "require_trainable",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TfdsSource:
    """One split of a prepared TFDS data set; its images stay encoded."""

    data_source: Any
    name: str  # "cifar10/train"
    full_name: str  # "cifar10/3.0.2/train", with the version that was opened
    image_key: str
    label_key: str
    num_classes: int

    def __len__(self) -> int:
        return len(self.data_source)

    def _example(self, index: int, features: Mapping[str, Any]) -> tuple[bytes | np.ndarray, int]:
        label = int(features[self.label_key])
        if not 0 <= label < self.num_classes:
            raise DatasetError(
                f"{self.describe(index)} has label {label}; a split without labels (-1) cannot be "
                "used for training or evaluation. Name another split with data.train_split, "
                "data.validation_split or data.test_split."
            )
        return features[self.image_key], label

    def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
        return self._example(index, self.data_source[index])

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes | np.ndarray, int]]:
        examples = self.data_source.__getitems__(list(indices))
        return [self._example(i, e) for i, e in zip(indices, examples, strict=True)]

    def describe(self, index: int) -> str:
        return f"{self.name} record {index}"

    @property
    def names(self) -> list[str]:
        return [f"{self.full_name} record {index}" for index in range(len(self))]


# -------------------------------------------------------------------------------------------- TFDS


def _versions(folder: Path) -> dict[tuple[int, ...], Path]:
    if not folder.is_dir():
        return {}
    return {
        tuple(int(part) for part in path.name.split(".")): path
        for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
    }


def _find_prepared(name: str, data_dir: Path) -> Path:
    """The version directory of a prepared data set; the newest version if none is named.

    This only looks at files. `tfds.builder` would run the data set's code, with everything that
    this code imports or contacts.
    """
    base, config, version = parse_name(name)
    root = data_dir / base
    folders = [root / config] if config else [root]
    if not config and not _versions(root) and root.is_dir():
        configs = sorted(p for p in root.iterdir() if p.is_dir() and _versions(p))
        try:
            default = json.loads((root / ".config" / "metadata.json").read_text())
            configs = [p for p in configs if p.name == default["default_config_name"]] or configs
        except (OSError, ValueError, KeyError, TypeError):
            pass  # TFDS writes this file only for data sets whose code has configs
        if len(configs) > 1:
            raise DatasetError(
                f"dataset {name!r} has several configs in {data_dir}: "
                f"{', '.join(p.name for p in configs)}; name one as '{base}/{configs[0].name}'."
            )
        folders = configs
    found = {k: v for folder in folders for k, v in _versions(folder).items()}
    if version:
        found = {k: v for k, v in found.items() if v.name == version}
    if not found:
        raise DatasetError(
            f"dataset {name!r} is not prepared in {data_dir}; prepare it with "
            f"`mobilenet prepare --dataset={name} --data_dir={data_dir}`, or name the folder that "
            "has it with data.data_dir=DIR."
        )
    return found[max(found)]


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Keys of the image and of the label among the features of a TFDS data set."""
    import tensorflow_datasets as tfds

    known = isinstance(info.features, tfds.features.FeaturesDict)
    features = dict(info.features.items()) if known else {}
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    keys = info.supervised_keys
    if keys and len(keys) == 2 and keys[0] in images and keys[1] in labels:
        return keys[0], keys[1]
    if len(images) == 1 and len(labels) == 1:
        return images[0], labels[0]
    listed = ", ".join(f"{k}: {type(f).__name__}" for k, f in sorted(features.items())) or "none"
    raise DatasetError(
        f"dataset {name!r} is not an image classification data set: its features are {listed}, "
        "but one Image and one ClassLabel are needed."
    )


def _split_source(
    builder: Any, name: str, role: str, split: str, keys: tuple[str, str], num_classes: int
) -> TfdsSource:
    import tensorflow_datasets as tfds

    available = list(builder.info.splits)
    for part in split.split("+"):
        base = part.split("[")[0].strip()
        if base not in available:
            raise DatasetError(
                f"dataset {name!r} has no split {base!r}; it has {', '.join(available)}. Name one "
                f"of them, or a part of one, with data.{role}_split."
            )
        for path in builder.info.splits[base].filepaths:
            if not os.path.exists(path):
                raise DatasetError(
                    f"dataset {name!r} is incomplete, {os.fspath(path)} is missing; "
                    "copy or prepare it again."
                )
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    try:
        data = builder.as_data_source(split=split, decoders=skip)
    except (ValueError, AssertionError) as error:
        raise DatasetError(
            f"split {split!r} of dataset {name!r} cannot be parsed ({error}); "
            "write it as 'train' or 'train[:10%]'."
        ) from error
    full_name = f"{builder.info.full_name}/{split}"
    return TfdsSource(data, f"{name}/{split}", full_name, keys[0], keys[1], num_classes)


def _check_overlaps(builder: Any, name: str, wanted: Mapping[str, str]) -> None:
    """Refuses splits that share records. Splits are ranges of records in the data set's files."""
    ranges = sorted(
        (part.filename, part.skip, part.skip + part.take, role)
        for role, split in wanted.items()
        for part in builder.info.splits[split].file_instructions
    )
    reached: tuple[str, int, str] = ("", 0, "")
    for file, begin, end, role in ranges:
        if file == reached[0] and begin < reached[1]:
            roles = [r for r in wanted if r in (role, reached[2])]
            described = ", ".join(f"{r}_split={wanted[r]!r}" for r in roles)
            shared = "share records" if len(roles) > 1 else "names records twice"
            raise DatasetError(
                f"{described} of dataset {name!r} {shared}; use parts that do not overlap, such as "
                "'train[:90%]' and 'train[90%:]'."
            )
        if file != reached[0] or end > reached[1]:
            reached = file, end, role


def _open_prepared(
    name: str, folder: Path, data_dir: Path, wanted: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[int, int, int] | None, dict[str, Source]]:
    """(class names, shape, sources by role) of the version directory `folder`."""
    stored = stored_format(folder)
    if stored == "tfrecord":
        raise DatasetError(
            f"dataset {name!r} in {folder} is stored as TFRecord, which has no random access; "
            f"convert it with `mobilenet prepare --from_tfrecord={folder} --data_dir=NEW_DIR` and "
            "open it from there."
        )
    if stored != "array_record":
        raise DatasetError(
            f"dataset {name!r} in {folder} is stored as {stored}; prepare it as array_record with "
            f"`mobilenet prepare --dataset={name} --data_dir=NEW_DIR`."
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(os.fspath(folder))
    keys = _image_and_label(name, builder.info)
    features: Any = builder.info.features
    image, label = features[keys[0]], features[keys[1]]
    if np.dtype(image.np_dtype) not in (np.uint8, np.uint16):
        raise DatasetError(
            f"dataset {name!r} has {np.dtype(image.np_dtype)} images; only uint8 and uint16 can be "
            "read."
        )
    sources: dict[str, Source] = {}
    for role, split in wanted.items():
        source = _split_source(builder, name, role, split, keys, label.num_classes)
        if len(source) == 0:
            raise DatasetError(
                f"split {split!r} of dataset {name!r} is empty; name another with "
                f"data.{role}_split."
            )
        # Splits without labels have -1 everywhere, so reading both ends finds them at once.
        read_many(source, sorted({0, len(source) // 2, len(source) - 1}))
        sources[role] = source
    _check_overlaps(builder, name, wanted)
    shape = tuple(image.shape)
    known = len(shape) == 3 and all(isinstance(side, int) for side in shape)
    class_names = tuple(unicodedata.normalize("NFC", text) for text in label.names)
    return class_names, (shape if known else None), sources


# -------------------------------------------------------------------------------------------- open


def open_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] = "",
    train_split: str = "train",
    test_split: str = "test",
    validation_split: str = "",
    validation_fraction: float = 0.1,
    train_examples: int = 0,
    test_fraction: float = 0.2,
) -> Dataset:
    """Opens a data set; no image is decoded and the network is not used.

    Args:
      name: "digits" (embedded, written on first use), "folder" (image files in data_dir), or the
        name of a prepared TFDS data set: "cifar10", "name/config", "name:1.0.0".
      data_dir: for a folder its path; for TFDS the directory of data sets (default
        `default_data_dir`); for digits the directory to write to (default `cache_dir`).
      train_split, test_split: names of splits. For TFDS also parts, such as "train[:10%]". For a
        folder the names of its parts; any usual name of a part is found (`folders.USUAL_NAMES`).
      validation_split: the split used for validation. "" takes examples from the train split, or
        uses the validation part of a folder if there is one.
      validation_fraction: fraction that "" takes from the train split, in [0, 1), evenly by index
        (`evenly_spaced`); 0 for none.
      train_examples: keeps the first n examples of the train part that is left; 0 keeps all.
      test_fraction: for a folder without parts, the fraction of each class that is used for
        testing, evenly by sorted file name; 1 is for evaluation only, with an empty train part.

    Raises:
      DatasetError: one sentence that says what is wrong and what to do.
    """
    data_dir = os.fspath(data_dir)
    if train_examples < 0:
        raise DatasetError(f"train_examples={train_examples} was given; use 0 (all) or more.")
    if not 0 <= validation_fraction < 1:
        raise DatasetError(
            f"validation_fraction={validation_fraction} was given; use a value in [0, 1)."
        )
    evenly_spaced(0, test_fraction)
    wanted = {"train": train_split, "test": test_split}
    if validation_split:
        wanted["validation"] = validation_split
    if len(set(wanted.values())) < len(wanted):
        described = ", ".join(f"{role}_split={split!r}" for role, split in wanted.items())
        raise DatasetError(f"{described} name the same split; use different splits.")

    image_shape, left_out = None, {}
    if name == "folder":
        class_names, sources, left_out = open_folder(data_dir, wanted, test_fraction)
    else:
        if name == "digits":
            root = Path(data_dir).expanduser() if data_dir else cache_dir()
            folder = prepare_digits(root)
        else:
            root = Path(data_dir).expanduser() if data_dir else default_data_dir()
            folder = _find_prepared(name, root)
        class_names, image_shape, sources = _open_prepared(name, folder, root, wanted)

    if "validation" not in sources:
        train = sources["train"]
        held_out = evenly_spaced(len(train), validation_fraction)
        sources["validation"] = SubsetSource(train, np.flatnonzero(held_out))
        sources["train"] = SubsetSource(train, np.flatnonzero(~held_out))
    available = len(sources["train"])
    if train_examples > available:
        raise DatasetError(
            f"train_examples={train_examples} was given, but the train part of {name!r} has "
            f"{available}; use at most that, or 0 for all."
        )
    if train_examples:
        sources["train"] = SubsetSource(sources["train"], np.arange(train_examples))
    splits = {role: sources[role] for role in ("train", "validation", "test")}
    if name == "folder":
        _warn_of_absent_classes(class_names, splits)
    return Dataset(name, class_names, image_shape, splits, left_out)


def empty(name: str, class_names: Sequence[str]) -> Dataset:
    """A data set without examples, used instead of one that is not available."""
    nothing = FolderSource("", (), ())
    splits = {role: nothing for role in ("train", "validation", "test")}
    return Dataset(name, tuple(class_names), None, splits)


def require_trainable(dataset: Dataset, data_dir: str = "") -> None:
    """Refuses a data set without training examples, or with fewer than two classes.

    Raises:
      DatasetError: one sentence that says what to do.
    """
    where = f"dataset {dataset.name!r}" + (f" in {data_dir}" if data_dir else "")
    train = dataset.splits["train"]
    if not len(train):
        raise DatasetError(
            f"{where} has no training examples; name its train part with data.train_split. If it "
            "is a single folder of classes, lower data.test_fraction."
        )
    if dataset.num_classes < 2:
        raise DatasetError(
            f"{where} has one class, {dataset.class_names[0]!r}, with examples such as "
            f"{train.describe(0)}; training needs two or more. Set data.data_dir to the folder "
            "whose sub-folders are the classes."
        )


def _warn_of_absent_classes(class_names: Sequence[str], splits: Mapping[str, Source]) -> None:
    """Warns if a part has no image of some classes: they are not trained, or not measured."""
    for role, source in splits.items():
        counts = np.bincount(labels_of(source), minlength=len(class_names))
        absent = [name for name, count in zip(class_names, counts, strict=True) if not count]
        if absent and len(source):
            more = f" and {len(absent) - 10} more" if absent[10:] else ""
            log.warning(
                "The %s part has no image of %d of %d classes (%s%s); add images of them, or "
                "change data.test_fraction or data.validation_fraction.",
                role, len(absent), len(class_names), ", ".join(absent[:10]), more,
            )  # fmt: skip
