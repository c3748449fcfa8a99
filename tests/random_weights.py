"""A MobileNetV2 with variables drawn at random, and the arrays of its files elsewhere."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mobilenet.models.pretrained import keras
from mobilenet.models.pretrained.fit import Slot, layers, leaf, planned_network, put, variable_paths
from mobilenet.models.pretrained.weights import TENSORFLOW, Weights


def random_weights(
    width: float = 0.35, num_classes: int = 7, *, channels: int = 3, **settings: Any
) -> Weights:
    """Weights of the paper's network; `settings` are of `model.*`."""
    model = {"width_multiplier": width, "num_classes": num_classes, "padding": "SYMMETRIC"}
    model |= {"bn_epsilon": 1e-5, **settings}
    told = {f"model.{key}": value for key, value in model.items()} | {"data.image_size": 224}
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    _, plan = planned_network(told)
    for layer in layers(plan, num_classes, channels):
        for name, path in variable_paths(layer).items():
            rng = np.random.default_rng(zlib.crc32("/".join(path).encode()))
            shape = layer.shape if name == "kernel" else layer.shape[-1:]
            values = rng.uniform(0.5, 2, shape) if name == "var" else rng.normal(0.4, 0.2, shape)
            put(variables, path, values.astype(np.float32))
    if channels != 3:
        told["data.channels"] = channels
    return Weights(
        variables["params"],
        variables["batch_stats"],
        {**told, **TENSORFLOW.settings},
        TENSORFLOW.mean[:channels],
        TENSORFLOW.std[:channels],
        None,
        "random",
    )


def small_weights(num_classes: int = 3, **settings: Any) -> Weights:
    """A network of two blocks for images of 16 pixels; its settings say what no public name can."""
    small = {
        "blocks": ((1, 8, 1, 1), (3, 8, 1, 2)),
        "stem_features": 8,
        "head_features": 16,
        "bn_epsilon": 1e-3,
    }
    weights = random_weights(1.0, num_classes, **{**small, **settings})
    return dataclasses.replace(weights, settings={**weights.settings, "data.image_size": 16})


def file_arrays(weights: Weights, scheme: Callable[..., list[Slot]]) -> dict[str, np.ndarray]:
    """The arrays that a file with a scheme's names has for the weights."""
    _, plan = planned_network(weights.settings)
    variables = {"params": weights.params, "batch_stats": weights.batch_stats}
    arrays = {}
    for slot in scheme(layers(plan, weights.settings["model.num_classes"])):
        array = leaf(variables, slot.path)
        arrays[slot.name] = array if slot.axes is None else array.transpose(np.argsort(slot.axes))
    return arrays


def assert_same(found: Weights, wanted: Weights) -> None:
    """Asserts that the variables are the same to the last bit, and nothing is left over."""
    from jax.tree_util import keystr, tree_leaves_with_path

    def flat(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {keystr(path): leaf for path, leaf in tree_leaves_with_path(tree)}

    for collection in ("params", "batch_stats"):
        ours, theirs = flat(getattr(found, collection)), flat(getattr(wanted, collection))
        assert ours.keys() == theirs.keys()
        for path, array in ours.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, theirs[path], err_msg=path)


def write_legacy(
    path: Path, weights: Weights, model: Mapping[str, Any] | None = None, *, top: bool = True
) -> Path:
    """As Keras 2 writes `.h5`: weights by layer, with TensorFlow's ":0"; the model as attribute.

    Without `top` the classifier is left out, as in the files that Keras names `no_top`.
    """
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if model else file
        by_layer: dict[str, list[str]] = {}
        for name, array in file_arrays(weights, keras.slots).items():
            layer, variable = name.split("/")
            if layer == "predictions" and not top:
                continue
            if "depthwise" in layer and variable == "kernel":
                name = f"{layer}/depthwise_kernel"
            by_layer.setdefault(layer, []).append(f"{name}:0")
            group.create_dataset(f"{layer}/{name}:0", data=array)
        group.attrs["layer_names"] = [layer.encode() for layer in by_layer]
        for layer, names in by_layer.items():
            group[layer].attrs["weight_names"] = [name.encode() for name in names]
        if model:
            file.attrs["model_config"] = json.dumps(model)
    return path
