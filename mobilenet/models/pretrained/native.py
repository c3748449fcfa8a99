"""This project's own weight files: `.safetensors` whose metadata says all that `Weights` says.

The tensors are named by their paths in the variables (`params/stem/conv/kernel`,
`batch_stats/stem/bn/mean`); the rest is JSON under the metadata key "mobilenet". Files with
PyTorch's names and the same metadata are `mobilenet.models.pretrained.pytorch`'s.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mobilenet.models.pretrained import safetensors_file
from mobilenet.models.pretrained.fit import put
from mobilenet.models.pretrained.weights import (
    PretrainedError,
    Weights,
    check_blocks,
    preset,
)

KEY = "mobilenet"  # of the metadata


def describe(weights: Weights) -> str:
    """Everything of the weights but the arrays, as JSON."""
    return json.dumps(
        {
            "settings": weights.settings,
            "mean": weights.mean,
            "std": weights.std,
            "class_names": weights.class_names,
        },
        sort_keys=True,
    )


def undescribe(
    text: str | bytes, params: dict[str, Any], batch_stats: dict[str, Any], source: str
) -> Weights:
    """Weights from `describe`'s text and the arrays; inverse of it.

    Raises:
      PretrainedError: the text is not `describe`'s.
    """
    return from_description(load_json(text, source), params, batch_stats, source)


def load_json(text: str | bytes, source: str) -> Any:
    """A JSON value of a file's metadata.

    Raises:
      PretrainedError: no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(source, error) from error


def damaged(source: str, error: Exception) -> PretrainedError:
    """The error of metadata that cannot be used."""
    return PretrainedError(f"The metadata of {source} is damaged: {type(error).__name__}: {error}.")


def from_description(
    found: Any, params: dict[str, Any], batch_stats: dict[str, Any], source: str
) -> Weights:
    """Weights from the values of `describe`'s text.

    Raises:
      PretrainedError: they are not `describe`'s.
    """
    try:
        names, _ = found["class_names"], found["settings"]["model.num_classes"]
        settings = {key: _tuples(value) for key, value in found["settings"].items()}
        mean, std = (tuple(map(float, found[name])) for name in ("mean", "std"))
        if settings.get("data.normalization") == "pretrained":
            # Of a run that started from another: the numbers are what it says.
            settings["data.normalization"] = preset(mean, std)
        return Weights(
            params,
            batch_stats,
            settings,
            mean,
            std,
            None if names is None else tuple(map(str, names)),
            source,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(source, error) from error


def read(path: Path, source: str) -> Weights:
    """Reads a file that `dumps` made.

    Args:
      path: of the file.
      source: what `Weights.source` is to say.

    Raises:
      PretrainedError: damaged, or not such a file.
    """
    arrays, metadata = safetensors_file.read(path)
    if KEY not in metadata or not all(n.startswith(("params/", "batch_stats/")) for n in arrays):
        raise PretrainedError(
            f"{path.name} was not written with this project's names; if its tensors are those of "
            "another library, name it: --from=torchvision, timm or huggingface."
        )
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise PretrainedError(f"{path.name}: {name} is of type {array.dtype}, not float32.")
        try:
            put(variables, name.split("/"), array)
        except (AttributeError, IndexError) as error:  # below another tensor
            raise PretrainedError(f"{path.name} is damaged: {name} has no place.") from error
    found = undescribe(metadata[KEY], variables["params"], variables["batch_stats"], source)
    if "model.blocks" in found.settings:
        check_blocks(found.settings["model.blocks"], len(arrays), source)
    return found


def dumps(weights: Weights) -> bytes:
    """The bytes of a file that `read` turns back into the same weights, to the last bit."""
    tree = {"params": weights.params, "batch_stats": weights.batch_stats}
    return safetensors_file.dumps(flatten(tree), {KEY: describe(weights)})


def flatten(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Path with slashes -> array of a nested dictionary."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
