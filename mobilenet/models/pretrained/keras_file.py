"""Reads Keras files as arrays and the layers' configuration: HDF5 of Keras 2 and 3, and `.keras`.

HDF5 can declare numbers that the file does not hold, and can take numbers from other files. The
reader refuses both.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilenet.models.pretrained.weights import PretrainedError, check_size

# Variables of a layer by their number in `.weights.h5` files, in order of creation, from
# keras/src/layers/*. The key is the layer's class as the name of its group writes it.
_NUMBERED = {
    "conv2d": ("kernel",),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}
# Entries of a `.keras` archive.
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
# Group of the state of random layers, such as those that augment images.
_SEED = "seed_generator"


class File(NamedTuple):
    """The content of a file.

    `arrays` are named `layer/variable`. `named` is True if layers have their own names, False if
    they are numbered by class. `topology` is Keras' configuration of the model, or None.
    """

    arrays: dict[str, np.ndarray]
    named: bool
    topology: Any


def read(path: Path) -> File:
    """Reads `.weights.h5` of Keras 3, a legacy `.h5` (weights or a whole model), or `.keras`.

    Raises:
      PretrainedError: the file is truncated, has another format, or declares more than it holds.
    """
    try:
        import h5py
    except ImportError as error:
        raise PretrainedError(
            "Reading Keras' HDF5 files needs a package that is not installed; "
            "`pip install -e '.[convert]'` in the checkout brings it."
        ) from error
    try:
        archive, topology = _open_archive(path)
        with h5py.File(path if archive is None else archive, "r") as file:
            if "model_weights" in file or "layer_names" in file.attrs:
                group = file["model_weights"] if "model_weights" in file else file
                datasets = _datasets(file, path)
                arrays, named = _legacy_arrays(group, datasets), True
                text = file.attrs.get("model_config")
                topology = None if text is None else json.loads(text)
            else:
                arrays, named = _keras3_arrays(file, _datasets(file, path))
    except PretrainedError:
        raise
    # h5py and zipfile raise exceptions of many types for a damaged file.
    except Exception as error:
        raise PretrainedError(
            f"{path.name} is truncated, damaged or not a file of Keras weights: {error}."
        ) from error
    return File(arrays, named, topology)


def _open_archive(path: Path) -> tuple[io.BytesIO | None, Any]:
    """The weights and the configuration of a `.keras` archive; (None, None) for another file."""
    if not zipfile.is_zipfile(path):
        return None, None
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if _WEIGHTS not in entries:
            raise PretrainedError(
                f"{path.name} is a zip archive, but not one of Keras: it has no {_WEIGHTS}."
            )
        known = [name for name in (_WEIGHTS, _CONFIG) if name in entries]
        declared = sum(entries[name].file_size for name in known)
        check_size(path.name, declared, path.stat().st_size)
        topology = json.loads(archive.read(_CONFIG)) if _CONFIG in known else None
        return io.BytesIO(archive.read(_WEIGHTS)), topology


def _datasets(file: Any, path: Path) -> dict[str, Any]:
    """Full name -> data set, for all numeric data sets that the file itself holds."""
    found = dict(_walk(file, path.name, set()))
    declared = sum(math.prod(item.shape) * item.dtype.itemsize for item in found.values())
    check_size(path.name, declared, path.stat().st_size)
    return found


def _walk(group: Any, file: str, seen: set[Any]) -> Iterator[tuple[str, Any]]:
    import h5py

    library: Any = h5py  # type checkers do not see its C modules
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise PretrainedError(f"{file} has the link {name!r}; links are not followed.")
        item = group[name]
        if isinstance(item, h5py.Group):
            place = library.h5o.get_info(item.id).addr
            if place not in seen:
                seen.add(place)
                yield from _walk(item, file, seen)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise PretrainedError(
                    f"{file} takes the numbers of {item.name} from another file; this is refused."
                )
            if item.shape is not None and item.dtype.kind in "fiu":
                yield str(item.name), item


def _keras3_arrays(file: Any, datasets: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], bool]:
    """Arrays by layer and variable, and whether layers have their own names.

    Groups are named by class and number; newer files give the layer's name in an attribute. A model
    within the model has a group of its own, in which numbers start again. The group with the most
    layers is the network; a layer of another group that has the same name keeps its whole path.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, item in datasets.items():
        group, _, variable = name.rpartition("/")
        if group.endswith("/vars") and not group.startswith("/optimizer/"):
            groups.setdefault(group, {})[variable] = item
    groups = {group: found for group, found in groups.items() if group.split("/")[-2] != _SEED}
    named = bool(groups) and all("name" in file[group].attrs for group in groups)
    around = [group.rsplit("/", 2)[0] for group in groups]
    network = max(around, key=around.count, default="")
    arrays: dict[str, np.ndarray] = {}
    for group in sorted(groups, key=lambda group: group.rsplit("/", 2)[0] != network):
        layer = group.split("/")[-2]
        variables = dict(enumerate(_NUMBERED.get(re.sub(r"_\d+$", "", layer), ())))
        if named:
            layer = _text(file[group].attrs["name"])
        for number, item in groups[group].items():
            variable = variables.get(int(number), number) if number.isdigit() else number
            key = f"{layer}/{variable}"
            if key in arrays:
                key = f"{group.strip('/').replace('/', '.')}/{variable}"
            arrays[key] = np.asarray(item)
    return arrays, named


def _legacy_arrays(weights: Any, datasets: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {}
    for layer in map(_text, weights.attrs["layer_names"]):
        for name in map(_text, weights[layer].attrs["weight_names"]):
            arrays[name] = np.asarray(datasets[f"{weights[layer].name}/{name}"])
    return arrays


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
