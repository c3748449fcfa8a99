"""Labelled pictures by name: the embedded digits, a folder of files, or a prepared TFDS data set.

A data set is three `Source`s (train, validation, test) of encoded pictures with random access.
Opening never uses the network; `prepare` is the one function that may. tensorflow_datasets is
imported only when a data set of its kind is opened, and TensorFlow never.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64

EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")

# Names that a folder may give to the validation part.
_VALIDATION_FOLDERS = ("validation", "val")


class DatasetError(ValueError):
    """A data set that cannot be opened; the message says what to do."""


@runtime_checkable
class Source(Protocol):
    """Labelled pictures with random access; picklable, safe to read from several threads."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """Example `index` in [0, len): an encoded picture or uint8 [H, W, C], and its label."""
        ...

    def describe(self, index: int) -> str:
        """Where the example comes from, for messages: a path, or "cifar10/train record 17"."""
        ...


def read_many(source: Source, indices: Sequence[int]) -> list[tuple[bytes | np.ndarray, int]]:
    """`[source.read(i) for i in indices]`, in one call where the source can (5x for TFDS)."""
    many = getattr(source, "read_many", None)
    return many(indices) if many is not None else [source.read(i) for i in indices]


@dataclass(frozen=True)
class Dataset:
    """An opened data set.

    Attributes:
      name: as it was asked for.
      class_names: label -> name.
      image_shape: (H, W, C) when all pictures share one known shape, else None.
      splits: "train", "validation" and "test"; validation is empty when none was asked for.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    splits: Mapping[str, Source]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


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


@dataclass(frozen=True)
class FolderSource:
    """Picture files with their labels."""

    root: str
    paths: tuple[str, ...]  # relative to root
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[bytes, int]:
        with open(os.path.join(self.root, self.paths[index]), "rb") as file:
            return file.read(), self.labels[index]

    def describe(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])


@dataclass(frozen=True)
class TfdsSource:
    """One split of a prepared TFDS data set, pictures left encoded."""

    data_source: Any
    name: str  # "cifar10/train"
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
                "trained or evaluated on, so name another one."
            )
        return features[self.image_key], label

    def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
        return self._example(index, self.data_source[index])

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes | np.ndarray, int]]:
        examples = self.data_source.__getitems__(list(indices))
        return [self._example(i, e) for i, e in zip(indices, examples, strict=True)]

    def describe(self, index: int) -> str:
        return f"{self.name} record {index}"


def evenly_spaced(num_examples: int, fraction: float) -> Bool[np.ndarray, " N"]:
    """Marks floor(N * fraction) of N examples, as evenly as possible by index.

    Example i is marked iff floor((i + 1) f) > floor(i f), with f the decimal fraction as written
    (0.29 is 29/100 and not the binary number nearest to it), so no seed is involved.
    """
    if not 0 <= fraction <= 1:
        raise DatasetError(f"a fraction of {fraction} was asked for; use a value in [0, 1].")
    exact = Fraction(str(fraction)).limit_denominator(10**6)
    steps = np.arange(num_examples + 1, dtype=np.int64) * exact.numerator // exact.denominator
    return steps[1:] > steps[:-1]


def default_data_dir() -> Path:
    """Where TFDS keeps its data: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def cache_dir() -> Path:
    """Where the digits are written without a data_dir: $XDG_CACHE_HOME or ~/.cache, /mobilenet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is invalid and ignored.
    root = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return root / "mobilenet" / "tfds"


# ------------------------------------------------------------------------------------------ digits


def _prepare_digits(data_dir: Path) -> Path:
    """Writes digits below data_dir unless they are there; returns their version directory."""
    target = data_dir / "digits" / "1.0.0"
    if (target / "features.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".preparing-", dir=target.parent))
    except OSError as error:
        raise DatasetError(
            f"the embedded digits are written once to {target}, which failed ({error}); "
            "name a writable folder with data_dir, or set XDG_CACHE_HOME."
        ) from error
    try:
        import tensorflow_datasets as tfds

        from mobilenet.data.digits import Digits

        builder = Digits(data_dir=os.fspath(temporary))
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces even a second's work
                builder.download_and_prepare(
                    file_format="array_record",
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                )
        finally:
            tfds.enable_progress_bar()
        prepared = Path(builder.data_dir)
        prepared.chmod(0o755)
        try:
            # The rename is the moment at which the data set exists, whole; of several processes
            # the first wins and the others use its copy.
            prepared.rename(target)
        except OSError:
            if not (target / "features.json").is_file():
                raise
    except OSError as error:
        raise DatasetError(
            f"the embedded digits could not be written to {target} ({error}); "
            "name a writable folder with data_dir, or set XDG_CACHE_HOME."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


# -------------------------------------------------------------------------------------------- TFDS


def _parse_name(name: str) -> tuple[str, str, str]:
    """Splits "name[/config][:version]" into (name, config, version)."""
    match = re.fullmatch(r"(\w+)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise DatasetError(
            f"dataset name {name!r} was given; use 'digits', 'folder', or a TFDS name such as "
            "'cifar10', 'name/config' or 'name:1.0.0'."
        )
    return match[1], match[2] or "", match[3] or ""


def _versions(folder: Path) -> dict[tuple[int, ...], Path]:
    if not folder.is_dir():
        return {}
    return {
        tuple(int(part) for part in path.name.split(".")): path
        for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
    }


def _find_prepared(name: str, data_dir: Path) -> Path:
    """The version directory of a prepared data set; the newest version when none is named.

    Looking at files alone (instead of `tfds.builder`) keeps dataset code, and whatever it imports
    or contacts, out of opening.
    """
    base, config, version = _parse_name(name)
    root = data_dir / base
    folders = [root / config] if config else [root]
    if not config and not _versions(root) and root.is_dir():
        configs = sorted(p for p in root.iterdir() if p.is_dir() and _versions(p))
        try:
            default = json.loads((root / ".config" / "metadata.json").read_text())
            configs = [p for p in configs if p.name == default["default_config_name"]] or configs
        except (OSError, ValueError, KeyError):
            pass  # written by TFDS only for data sets whose code knows configs
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
            "has it with data_dir."
        )
    return found[max(found)]


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Keys of the picture and of the label among the features of a TFDS data set."""
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
        f"dataset {name!r} is not an image classification data set, its features are {listed}; "
        "one Image and one ClassLabel are needed."
    )


def _split_source(
    builder: Any, name: str, split: str, keys: tuple[str, str], num_classes: int
) -> TfdsSource:
    import tensorflow_datasets as tfds

    available = list(builder.info.splits)
    for part in split.split("+"):
        base = part.split("[")[0].strip()
        if base not in available:
            raise DatasetError(
                f"dataset {name!r} has no split {base!r}; it has {', '.join(available)}."
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
            f"split {split!r} of dataset {name!r} is not understood ({error}); "
            "write it as 'train' or 'train[:10%]'."
        ) from error
    return TfdsSource(data, f"{name}/{split}", keys[0], keys[1], num_classes)


def _open_prepared(
    name: str, folder: Path, data_dir: Path, wanted: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[int, int, int] | None, dict[str, Source]]:
    """(class names, shape, sources by role) of the version directory `folder`."""
    from mobilenet.data import metadata

    stored = metadata.read(folder).get("fileFormat") or "tfrecord"
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
            f"dataset {name!r} has {np.dtype(image.np_dtype)} pictures; uint8 and uint16 are read."
        )
    sources: dict[str, Source] = {}
    for role, split in wanted.items():
        source = _split_source(builder, name, split, keys, label.num_classes)
        if len(source) == 0:
            raise DatasetError(f"split {split!r} of dataset {name!r} is empty; name another.")
        # Unlabelled test splits carry -1 throughout, so the ends show it at once.
        read_many(source, sorted({0, len(source) // 2, len(source) - 1}))
        sources[role] = source
    shape = tuple(image.shape)
    known = len(shape) == 3 and all(isinstance(side, int) for side in shape)
    return tuple(label.names), (shape if known else None), sources


# ------------------------------------------------------------------------------------------ folder


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_pictures(folder: Path) -> dict[str, list[str]]:
    """Class name -> sorted file names, of folder/<class>/*."""
    classes = {}
    for path in _visible_folders(folder):
        files = sorted(
            entry.name
            for entry in os.scandir(path)
            if not entry.name.startswith(".")
            and entry.name.rpartition(".")[2].lower() in EXTENSIONS
            and entry.is_file()
        )
        if not files:
            raise DatasetError(
                f"class folder {path} holds no pictures ({', '.join(EXTENSIONS)}); "
                "add some or remove the folder."
            )
        classes[path.name] = files
    if not classes:
        raise DatasetError(
            f"{folder} holds no class folders; put the pictures of each class into a folder of "
            "its own, as DIR/train/cat/1.jpg or DIR/cat/1.jpg."
        )
    return classes


def _folder_source(
    root: Path, pictures: Mapping[str, list[str]], class_names: Sequence[str], split: str
) -> FolderSource:
    unknown = sorted(set(pictures) - set(class_names))
    if unknown:
        raise DatasetError(
            f"{root} has class {unknown[0]!r} in its {split} part that the train part lacks; "
            "the classes must be the same."
        )
    examples = [(f"{name}/{file}", name) for name, files in pictures.items() for file in files]
    # A fixed order that mixes the classes, so that a part taken by index (validation, the first n)
    # has all of them. Hashed names keep it when the folder is copied or gains pictures.
    examples.sort(key=lambda e: (hashlib.sha256(e[0].encode()).digest(), e[0]))
    label = {name: i for i, name in enumerate(class_names)}
    return FolderSource(
        os.fspath(root), tuple(e[0] for e in examples), tuple(label[e[1]] for e in examples)
    )


def _open_folder(
    data_dir: str, wanted: Mapping[str, str], test_fraction: float
) -> tuple[tuple[str, ...], dict[str, Source]]:
    if not data_dir:
        raise DatasetError("dataset 'folder' was given without data_dir; name the folder there.")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DatasetError(f"data_dir={data_dir} is no folder; name one that exists.")
    if (root / "train").is_dir():
        folders = {p.name: p for p in _visible_folders(root)}
        for folder in _VALIDATION_FOLDERS:
            if folder in folders:
                folders.setdefault("validation", folders[folder])
        parts = {role: folders.get(split) for role, split in wanted.items()}
        for role, path in parts.items():
            if path is None:
                raise DatasetError(
                    f"{root} has no split {wanted[role]!r}; it has {', '.join(sorted(folders))}."
                )
        listed = {role: (path, _list_pictures(path)) for role, path in parts.items() if path}
        if "validation" not in listed and "validation" in folders:
            path = folders["validation"]
            if path not in [part for part in parts.values()]:
                listed["validation"] = (path, _list_pictures(path))
    else:
        for split in wanted.values():
            if split not in ("train", "test"):
                raise DatasetError(
                    f"{root} has no split {split!r}; as a single folder of classes it has train "
                    "and test."
                )
        train: dict[str, list[str]] = {}
        test: dict[str, list[str]] = {}
        for name, files in _list_pictures(root).items():
            in_test = evenly_spaced(len(files), test_fraction)
            train[name] = [f for f, t in zip(files, in_test, strict=True) if not t]
            test[name] = [f for f, t in zip(files, in_test, strict=True) if t]
        if not any(test.values()):
            raise DatasetError(
                f"test_fraction={test_fraction} leaves no test picture in {root}; raise it."
            )
        pictures = {"train": train, "test": test}
        listed = {role: (root, pictures[split]) for role, split in wanted.items()}
    class_names = tuple(sorted(listed["train"][1]))
    sources: dict[str, Source] = {
        role: _folder_source(path, pictures, class_names, role)
        for role, (path, pictures) in listed.items()
    }
    return class_names, sources


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
    """Opens a data set; nothing is decoded and the network is not used.

    Args:
      name: "digits" (embedded, written on first use), "folder" (picture files in data_dir), or the
        name of a prepared TFDS data set: "cifar10", "name/config", "name:1.0.0".
      data_dir: the folder of pictures; or where TFDS data sets are (default `default_data_dir`);
        or where digits are written (default `cache_dir`).
      train_split, test_split: names of splits; for TFDS also parts, as "train[:10%]".
      validation_split: a split to use for validation; "" carves one from the train split, except
        that a folder with a "validation" or "val" part uses that.
      validation_fraction: what is carved, in [0, 1), evenly by index (`evenly_spaced`); 0 for none.
      train_examples: keeps the first n of the train part after carving; 0 keeps all.
      test_fraction: for a folder without train/ and test/, the part of each class used for testing,
        evenly by sorted file name; 1 is a folder to evaluate on, whose train part is empty.

    Raises:
      DatasetError: one sentence that says what was found and what to do.
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
        raise DatasetError(f"{described} name one split twice; use different ones.")

    image_shape = None
    if name == "folder":
        class_names, sources = _open_folder(data_dir, wanted, test_fraction)
    else:
        if name == "digits":
            root = Path(data_dir).expanduser() if data_dir else cache_dir()
            folder = _prepare_digits(root)
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
            f"train_examples={train_examples} was given but the train part of {name!r} has "
            f"{available}; use at most that, or 0 for all."
        )
    if train_examples:
        sources["train"] = SubsetSource(sources["train"], np.arange(train_examples))
    if not len(sources["train"]) and test_fraction < 1:
        raise DatasetError(
            f"the train part of {name!r} is empty after validation_fraction={validation_fraction}; "
            "lower it."
        )
    splits = {role: sources[role] for role in ("train", "validation", "test")}
    return Dataset(name, class_names, image_shape, splits)


def labels_of(source: Source) -> Int64[np.ndarray, " N"]:
    """All labels of a source, read without decoding pictures (folders: without reading them)."""
    if isinstance(source, FolderSource):
        return np.array(source.labels, np.int64)
    if isinstance(source, SubsetSource):
        return labels_of(source.source)[source.indices]
    chunks: Iterator[list[tuple[Any, int]]] = (
        read_many(source, range(start, min(start + 1024, len(source))))
        for start in range(0, len(source), 1024)
    )
    return np.array([label for chunk in chunks for _, label in chunk], np.int64)


# ----------------------------------------------------------------------------------------- prepare


def prepare(name: str, data_dir: str | os.PathLike[str] = "") -> Path:
    """Downloads and prepares a TFDS data set as ArrayRecord; the only function that downloads.

    Args:
      name: a TFDS name, or "digits" (which needs no download).
      data_dir: where it is written; "" means `default_data_dir` (digits: `cache_dir`).

    Returns:
      The version directory; an existing ArrayRecord copy is left as it is.

    Raises:
      DatasetError: an unknown name, or a data set that TFDS cannot write without TensorFlow.
    """
    data_dir = os.fspath(data_dir)
    if name == "folder":
        raise DatasetError("dataset 'folder' needs no preparation; open it with data_dir.")
    if name == "digits":
        return _prepare_digits(Path(data_dir).expanduser() if data_dir else cache_dir())
    _parse_name(name)
    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    import tensorflow_datasets as tfds

    from mobilenet.data import metadata

    metadata.check_feature_classes_below(root / _parse_name(name)[0])
    try:
        builder = tfds.builder(name, data_dir=os.fspath(root), try_gcs=False)
        folder = Path(builder.data_dir)
        if (folder / "dataset_info.json").is_file():
            info = json.loads((folder / "dataset_info.json").read_text())
            if (info.get("fileFormat") or "tfrecord") != "array_record":
                raise DatasetError(
                    f"{folder} already holds {name!r} in another format; convert it with "
                    f"`mobilenet prepare --from_tfrecord={folder} --data_dir=NEW_DIR`, or name "
                    "another data_dir."
                )
            return folder
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except tfds.core.DatasetNotFoundError as error:
        raise DatasetError(
            f"TFDS knows no dataset {name!r}; see https://www.tensorflow.org/datasets/catalog."
        ) from error
    except ImportError as error:
        reason = str(error).splitlines()[-1]  # TFDS puts the whole example before it
        raise DatasetError(
            f"preparing {name!r} needs a package that is not installed ({reason}); install the "
            "extra with `pip install 'mobilenet[prepare]'`."
        ) from error
    return folder
