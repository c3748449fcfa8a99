"""This project's own weight files: `.safetensors` with all attributes of `Weights` as metadata.

The tensors are named by their paths in the variables (`params/stem/conv/kernel`,
`batch_stats/stem/bn/mean`). The other attributes are JSON under the metadata key "mobilenet".
`mobilenet.models.pretrained.pytorch` reads files with PyTorch's names and the same metadata.
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

KEY = "mobilenet"  # key of the metadata


def describe(weights: Weights) -> str:
    """All attributes of the weights except the arrays, as JSON."""
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
    """Weights from the arrays and the text of `describe`; the inverse of `describe`.

    Raises:
      PretrainedError: the text is not from `describe`.
    """
    return from_description(load_json(text, source), params, batch_stats, source)


def load_json(text: str | bytes, source: str) -> Any:
    """Reads a JSON value from a file's metadata.

    Raises:
      PretrainedError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(source, error) from error


def damaged(source: str, error: Exception) -> PretrainedError:
    """The error for metadata that cannot be used."""
    return PretrainedError(f"The metadata of {source} is damaged: {type(error).__name__}: {error}.")


def from_description(
    found: Any, params: dict[str, Any], batch_stats: dict[str, Any], source: str
) -> Weights:
    """Weights from the values in the text of `describe`.

    Raises:
      PretrainedError: the values are not from `describe`.
    """
    try:
        names, _ = found["class_names"], found["settings"]["model.num_classes"]
        settings = {key: _tuples(value) for key, value in found["settings"].items()}
        mean, std = (tuple(map(float, found[name])) for name in ("mean", "std"))
        if settings.get("data.normalization") == "pretrained":
            # From a run that started from another run; its mean and std are in the description.
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
    """Reads a file that `dumps` wrote.

    Args:
      path: of the file.
      source: the value of `Weights.source`.

    Raises:
      PretrainedError: the file is damaged, or `dumps` did not write it.
    """
    arrays, metadata = safetensors_file.read(path)
    if KEY not in metadata or not all(n.startswith(("params/", "batch_stats/")) for n in arrays):
        raise PretrainedError(
            f"{path.name} does not use this project's names of tensors; if it uses the names of "
            "another library, name the library: --from=torchvision, timm or huggingface."
        )
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise PretrainedError(f"{path.name}: {name} is of type {array.dtype}, not float32.")
        try:
            put(variables, name.split("/"), array)
        except (AttributeError, IndexError) as error:  # the path leads below another tensor
            raise PretrainedError(
                f"{path.name} is damaged: {name} lies below another tensor."
            ) from error
    found = undescribe(metadata[KEY], variables["params"], variables["batch_stats"], source)
    if "model.blocks" in found.settings:
        check_blocks(found.settings["model.blocks"], len(arrays), source)
    return found


def dumps(weights: Weights) -> bytes:
    """The bytes of a file from which `read` restores exactly the same weights."""
    tree = {"params": weights.params, "batch_stats": weights.batch_stats}
    return safetensors_file.dumps(flatten(tree), {KEY: describe(weights)})


def flatten(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Path with slashes -> array, for the leaves of a nested dictionary."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
