"""Metadata of prepared TFDS directories, which is checked before TFDS or this project uses it.

People share such directories, so dataset_info.json and features.json may come from anybody. TFDS
imports every module that they name, and its templates of file names may lead out of the directory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet.data.sources import DatasetError

DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_FIELDS = ("DATASET", "SPLIT", "FILEFORMAT", "SHARD_INDEX", "NUM_SHARDS", "SHARD_X_OF_Y")

# One visible component of a path that means the same on every operating system.
_PLAIN_NAME = re.compile(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)


def read(folder: Path) -> dict[str, Any]:
    """dataset_info.json of a version directory, checked together with features.json.

    Nothing that the two files name is imported.

    Args:
      folder: such as DIR/cifar10/3.0.2.

    Returns:
      The object. Its name, configName and version, and the name and filepathTemplate of each split,
      are plain names if they exist.

    Raises:
      DatasetError: a file is missing or not JSON, a feature class is not TFDS's own, or a name
        could lead out of the directory.
    """
    path = folder / "dataset_info.json"
    if not path.is_file() or not (folder / "features.json").is_file():
        raise DatasetError(
            f"{folder} holds no dataset_info.json and features.json; "
            "name the version directory of a prepared TFDS data set, such as DIR/cifar10/3.0.2."
        )
    info = _read_object(path)
    check_feature_classes(folder)
    _check_name(path, "name", info.get("name", ""), optional=True)
    _check_name(path, "configName", info.get("configName", ""), optional=True)
    version = info.get("version", "")
    if version and not (isinstance(version, str) and _VERSION.fullmatch(version)):
        raise DatasetError(
            f"{path} gives the version {version!r}; a version is three numbers, such as 3.0.2."
        )
    splits = info.get("splits", [])
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise _damaged(path, "its splits are not a list of objects")
    for split in splits:
        _check_name(path, "split", split.get("name", ""))
        _check_template(path, split.get("filepathTemplate", ""))
        _shard_lengths(path, split)
    return info


def subdirectory(info: dict[str, Any], folder: Path) -> str:
    """The path of a data set below a data_dir: name[/config]/version.

    Raises:
      DatasetError: the name or the version is missing.
    """
    for key in ("name", "version"):
        if not info.get(key):
            raise _damaged(folder / "dataset_info.json", f"it gives no {key}")
    parts = [info["name"], info.get("configName", ""), info["version"]]
    return "/".join(part for part in parts if part)


def shard_lengths(split: dict[str, Any]) -> list[int]:
    """Records in each shard of a split that `read` returned."""
    return [int(length) for length in split.get("shardLengths", [])]


def check_feature_classes(folder: Path) -> None:
    """Refuses a version directory that names a feature class other than TFDS's own.

    Raises:
      DatasetError: the message names the class.
    """
    for name in ("features.json", "dataset_info.json"):
        path = folder / name
        if not path.is_file():
            continue
        unknown = set(_class_names(_read_object(path))) - _own_classes()
        if unknown:
            raise DatasetError(
                f"{path} names the feature class {min(unknown)!r}, which is not one of TFDS's own. "
                "TFDS would import its module, so the data set is not opened; prepare it again "
                "with classes of tensorflow_datasets.features."
            )


def check_feature_classes_below(root: Path) -> None:
    """`check_feature_classes` of every version directory below `root`, which TFDS may open."""
    for path in sorted(root.glob("**/features.json")):
        check_feature_classes(path.parent)


def _own_classes() -> set[str]:
    import tensorflow_datasets as tfds

    features = tfds.features
    own = {
        f"{value.__module__}.{value.__name__}"
        for value in vars(features).values()
        if isinstance(value, type) and issubclass(value, features.FeatureConnector)
    }
    # Tensor's name before TFDS 4.3, which TFDS still accepts.
    return own | {"tensorflow_datasets.core.features.feature.Tensor"}


def _class_names(value: Any) -> Iterator[str]:
    """The Python classes that features, parsed from JSON, name at any depth.

    Both forms of TFDS are known: "pythonClassName" in its messages, and "type" with "content" in
    older versions. Each may contain the other as JSON text.
    """
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            try:
                left.append(json.loads(value))
            except (ValueError, RecursionError):
                continue
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += value.values()
            names = [value.get("pythonClassName"), value.get("python_class_name")]
            names += [value.get("type")] if "content" in value else []
            yield from (name for name in names if isinstance(name, str))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(path, "it is not a JSON object")
    return value


def _damaged(path: Path, what: str) -> DatasetError:
    return DatasetError(f"{path} cannot be used, {what}; copy or prepare the data set again.")


def _check_name(path: Path, key: str, value: Any, *, optional: bool = False) -> None:
    if optional and not value:
        return
    if not isinstance(value, str) or not _PLAIN_NAME.fullmatch(value):
        raise DatasetError(
            f"{path} gives the {key} {value!r}, which is not a plain name and could lead to files "
            "outside the data set; it is refused."
        )


def _check_template(path: Path, template: Any) -> None:
    if not template:
        return
    fields = "|".join(_FIELDS)
    plain = isinstance(template, str) and re.sub(rf"\{{({fields})\}}", "x", template)
    if not plain or not _PLAIN_NAME.fullmatch(plain) or re.search(r"[{}]", plain):
        raise DatasetError(
            f"{path} gives the filepathTemplate {template!r}; it must be a plain file name with "
            f"fields of {', '.join(f'{{{field}}}' for field in _FIELDS)}, because others could "
            "lead to files outside the data set."
        )


def _shard_lengths(path: Path, split: dict[str, Any]) -> None:
    try:
        lengths = shard_lengths(split)
    except (TypeError, ValueError) as error:
        raise _damaged(path, f"the shardLengths of {split['name']!r} are not numbers") from error
    if min(lengths, default=0) < 0:
        raise _damaged(path, f"a shard of {split['name']!r} has fewer than 0 records")
