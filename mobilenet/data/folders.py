"""Folders of image files: which files are examples, of which class, and in which part.

A folder has one folder per part (train, test, optionally validation), each with one folder per
class; or it has only class folders. All images below a class folder are examples of the class.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilenet.data.listing import (
    Walk,
    describe_counts,
    few,
    holds_folders,
    holds_images,
    is_run,
)
from mobilenet.data.sources import DatasetError, Source, evenly_spaced

# Names of the folders of the parts, in lower case and without "-", "_" and spaces.
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trainset", "trainingset"),
    "validation": ("validation", "val", "valid", "dev", "validationset", "valset", "devset"),
    "test": ("test", "testing", "testset", "testingset"),
}


@dataclass(frozen=True)
class FolderSource:
    """Image files with their labels; `paths`, below `root`, are also the examples' names."""

    root: str
    paths: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[bytes, int]:
        with open(os.path.join(self.root, self.paths[index]), "rb") as file:
            return file.read(), self.labels[index]

    def describe(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])


def open_folder(
    data_dir: str, wanted: Mapping[str, str], test_fraction: float
) -> tuple[tuple[str, ...], dict[str, Source], dict[str, int]]:
    """(class names, sources by role, counts of files left out) of a folder with classes.

    Args:
      data_dir: the folder.
      wanted: role ("train", "test", optionally "validation") -> the name of its folder.
      test_fraction: of each class, if the folder has no parts.

    Raises:
      DatasetError: one sentence that says what is wrong and what to do.
    """
    if not data_dir:
        raise DatasetError(
            "dataset 'folder' needs a folder of images; name it with data.data_dir=DIR."
        )
    root = _require_folder("data_dir", data_dir)
    walk = Walk()
    folders = walk.folders(root)
    parts = _find_parts(root, folders, wanted)
    if parts is None:
        listed = _split_classes(root, walk.classes(root, folders), wanted, test_fraction)
    else:
        listed = {}
        for role, path in parts.items():
            listed[role] = (path, walk.classes(path, walk.folders(path)))
        walk.unused = sorted(name for name, path in folders.items() if path not in parts.values())
    if walk.linked:
        _check_disjoint(listed)
    known = [listed["train"]] if "train" in listed else listed.values()
    class_names = tuple(sorted({name for _, classes in known for name in classes}))
    sources: dict[str, Source] = {"train": FolderSource(root, (), ())}
    for role, (path, classes) in listed.items():
        sources[role] = _make_source(path, classes, class_names, role)
    walk.tell(root)
    return class_names, sources, dict(walk.left_out)


def open_images(folder: str, key: str) -> FolderSource:
    """All images below a folder, whether in class folders or not, sorted by path; labels are 0.

    Args:
      folder: its path.
      key: of the configuration, for messages.

    Raises:
      DatasetError: it is not a folder, or holds no images.
    """
    root = _require_folder(key, folder)
    walk = Walk()
    paths = walk.images(root)
    if not paths:
        raise DatasetError(f"{key}={folder} holds no images{describe_counts(walk.left_out)}.")
    walk.tell(root)
    return FolderSource(root, tuple(paths), (0,) * len(paths))


def _require_folder(key: str, folder: str) -> str:
    root = os.fspath(Path(folder).expanduser())
    if not os.path.isdir(root):
        raise DatasetError(f"{key}={folder} is not a folder; name one that exists.")
    if is_run(root):
        raise DatasetError(
            f"{key}={folder} is the directory of a run or a sweep. Name the folder of the images, "
            "and give the run its own --workdir."
        )
    return root


def _usual(name: str) -> str | None:
    """The role that the name of a folder indicates, or None."""
    plain = name.casefold().translate(str.maketrans("", "", "-_ "))
    return next((role for role, names in USUAL_NAMES.items() if plain in names), None)


def _match(root: str, folders: Iterable[str], role: str, split: str) -> str | None:
    """The folder with the name `split`, or with a usual name of the same meaning; or None."""
    folders = list(folders)
    if split in folders:
        return split
    alike = [name for name in folders if name.casefold() == split.casefold()]
    if not alike and _usual(split):
        alike = [name for name in folders if _usual(name) == _usual(split)]
    if len(alike) > 1:
        raise DatasetError(
            f"{root} has {' and '.join(alike)}, and both may be its {role} part; name one with "
            f"data.{role}_split."
        )
    return alike[0] if alike else None


def _find_parts(
    root: str, folders: Mapping[str, str], wanted: Mapping[str, str]
) -> dict[str, str] | None:
    """Role -> path of its folder; None for a folder of classes without parts."""
    names = {role: _match(root, folders, role, split) for role, split in wanted.items()}
    matched = {name for name in names.values() if name is not None}
    named = matched | {name for name in folders if _usual(name)}
    others = folders.keys() - named
    # Folders called "train" and "test" are classes if they hold images next to other classes.
    has_parts = any(holds_folders(folders[name]) for name in named)
    if not (has_parts and (matched or not others)):
        if named and not others:
            raise DatasetError(
                f"{root} has {', '.join(sorted(named))}, which look like parts of a data set but "
                "hold no class folders; put the images of each class into a folder of its own, "
                "such as DIR/train/cat/1.jpg."
            )
        _refuse_unnamed_parts(root, folders)
        return None
    for role, name in names.items():
        if name is None and (role != "train" or wanted[role] != "train"):
            raise _no_part(root, role, wanted[role], folders)
    parts = {role: folders[name] for role, name in names.items() if name is not None}
    _check_different(parts, wanted)
    if "validation" not in parts:
        free = [name for name, path in folders.items() if path not in parts.values()]
        plain = [name for name in ("validation", "val") if name in free]
        name = plain[0] if plain else _match(root, free, "validation", "validation")
        if name is not None:
            parts["validation"] = folders[name]
    return parts


def _refuse_unnamed_parts(root: str, folders: Mapping[str, str]) -> None:
    """Refuses folders such as seg_train/ and seg_test/ with sub-folders: they are not classes."""
    roles = {name: _word_of_a_part(name) for name in folders}
    alike = [
        name
        for name, path in folders.items()
        if roles[name] and holds_folders(path) and not holds_images(path)
    ]
    if len({roles[name] for name in alike}) > 1:
        raise DatasetError(
            f"{root} has {', '.join(alike)}, which look like parts of a data set; name them with "
            "data.train_split and data.test_split, and put the class folders directly below them."
        )


def _word_of_a_part(name: str) -> str | None:
    return next(filter(None, map(_usual, re.split("[^a-z]+", name.casefold()))), None)


def _no_part(root: str, role: str, split: str, folders: Mapping[str, str]) -> DatasetError:
    message = (
        f"{root} has no split {split!r}; it has {', '.join(sorted(folders))}. Name the folder of "
        f"the {role} part with data.{role}_split"
    )
    validation = [name for name in folders if _usual(name) == "validation"]
    if role == "test" and validation:
        message += (
            f": data.test_split={validation[0]!r} uses that part for testing, and validation "
            "examples are then taken from train"
        )
    elif role == "test" and len(folders) == 1:
        (path,) = folders.values()
        message += f", or set data.data_dir={path!r} to take data.test_fraction of each class"
    return DatasetError(message + ".")


def _check_different(parts: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for role, path in parts.items():
        other = seen.setdefault(os.path.realpath(path), role)
        if other != role:
            raise DatasetError(
                f"{other}_split={wanted[other]!r}, {role}_split={wanted[role]!r} name the same "
                f"folder ({path}); use different folders."
            )


def _check_disjoint(listed: Mapping[str, tuple[str, Mapping[str, list[str]]]]) -> None:
    """Refuses an image that is in two parts, through links."""
    seen: dict[tuple[int, int], tuple[str, str]] = {}
    for role, (path, classes) in listed.items():
        for name in (name for names in classes.values() for name in names):
            file = os.path.join(path, name)
            stat = os.stat(file)
            other, first = seen.setdefault((stat.st_dev, stat.st_ino), (role, file))
            if other != role:
                raise DatasetError(
                    f"{first} of the {other} part and {file} of the {role} part are one file; an "
                    "image must be in one part only."
                )


def _split_classes(
    root: str, classes: Mapping[str, list[str]], wanted: Mapping[str, str], test_fraction: float
) -> dict[str, tuple[str, Mapping[str, list[str]]]]:
    """The parts of a folder of classes; test images are taken evenly by file name, per class."""
    for role, split in wanted.items():
        if split not in ("train", "test"):
            raise DatasetError(
                f"{root} has no split {split!r} for data.{role}_split: its folders are "
                f"{few(classes)}. A single folder of classes has only train and test."
            )
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for name, files in classes.items():
        in_test = evenly_spaced(len(files), test_fraction)
        parts["train"][name] = [f for f, t in zip(files, in_test, strict=True) if not t]
        parts["test"][name] = [f for f, t in zip(files, in_test, strict=True) if t]
    if not any(parts["test"].values()):
        raise DatasetError(
            f"test_fraction={test_fraction} leaves no test image in {root}; raise it."
        )
    return {role: (root, parts[split]) for role, split in wanted.items()}


def _make_source(
    root: str, classes: Mapping[str, list[str]], class_names: Sequence[str], role: str
) -> FolderSource:
    unknown = sorted(set(classes) - set(class_names))
    if unknown:
        raise DatasetError(
            f"{root} has class {unknown[0]!r} in its {role} part, but the train part does not; "
            "the classes must be the same."
        )
    examples = [(path, name) for name, paths in classes.items() for path in paths]
    # A fixed order that mixes the classes, so that a part taken by index (validation, the first n)
    # has all classes. Sorting by hashed names keeps the order if the folder is copied or extended.
    examples.sort(key=lambda e: (hashlib.sha256(os.fsencode(e[0])).digest(), e[0]))
    label = {name: i for i, name in enumerate(class_names)}
    return FolderSource(root, tuple(e[0] for e in examples), tuple(label[e[1]] for e in examples))
