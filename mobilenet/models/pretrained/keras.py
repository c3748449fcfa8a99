"""Keras Applications' MobileNetV2: HDF5 files of Keras 2 and 3, and TF.js layers models.

Source: keras/src/applications/mobilenet_v2.py. At stride 2 Keras pads with an explicit
ZeroPadding2D from `correct_pad`, or by "same". For a model of a fixed size both equal TensorFlow's
SAME, at even and odd sizes. A model built for any size (input shape None) pads (0, 1) at every
size, which equals SAME only if every map before a stride of 2 has an even size; a note says so.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.models.pretrained import keras_file, keras_topology
from mobilenet.models.pretrained.fit import Layer, Slot, fit, paper_networks, variable_paths
from mobilenet.models.pretrained.weights import TENSORFLOW, PretrainedError, Weights, preset

_TENSORS = {
    "kernel": "kernel",
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}


# Of keras.applications.MobileNetV2, for files that hold only tensors.
_DEFAULTS = {"model.padding": "SAME", "model.bn_epsilon": 1e-3, "data.image_size": 224}


def _modules(layer: Layer) -> tuple[str, str]:
    """Keras' names of a layer's convolution and batch normalisation."""
    outside = {
        "stem": ("Conv1", "bn_Conv1"),
        "head": ("Conv_1", "Conv_1_bn"),
        "classifier": ("predictions", ""),
    }
    if layer.role in outside:
        return outside[layer.role]
    prefix = f"block_{layer.number}_" if layer.number else "expanded_conv_"
    return f"{prefix}{layer.role}", f"{prefix}{layer.role}_BN"


def slots(found: Sequence[Layer]) -> list[Slot]:
    places = []
    for layer in found:
        conv, norm = _modules(layer)
        dense, depthwise = layer.role == "classifier", layer.role == "depthwise"
        for name, path in variable_paths(layer).items():
            if name == "kernel":
                # Depthwise kernels are [k, k, C, 1] there.
                shape = (*layer.shape[:2], layer.shape[3], 1) if depthwise else layer.shape
                axes = (0, 1, 3, 2) if depthwise else None
                places.append(Slot(f"{conv}/kernel", shape, path, axes))
            else:
                tensor = f"{conv}/bias" if dense else f"{norm}/{_TENSORS[name]}"
                places.append(Slot(tensor, (layer.shape[-1],), path))
    return places


def numbered_slots(found: Sequence[Layer]) -> list[Slot]:
    """As `slots`, for files that number the layers of each class instead of naming them."""
    counts: dict[str, int] = {}

    def group(kind: str) -> str:
        number = counts[kind] = counts.get(kind, -1) + 1
        return f"{kind}_{number}" if number else kind

    named: dict[str, str] = {}
    for layer in found:
        conv, norm = _modules(layer)
        kinds = {"depthwise": "depthwise_conv2d", "classifier": "dense"}
        named[conv] = group(kinds.get(layer.role, "conv2d"))
        if norm:
            named[norm] = group("batch_normalization")
    renamed = []
    for slot in slots(found):
        module, tensor = slot.name.split("/")
        renamed.append(slot._replace(name=f"{named[module]}/{tensor}"))
    return renamed


def read_file(path: Path, source: str) -> Weights:
    """Reads `.weights.h5` of Keras 3, a legacy `.h5` (weights or a whole model), or `.keras`.

    Args:
      path: of the file.
      source: the value of `Weights.source`.

    Raises:
      PretrainedError: the file is truncated, of another format, or holds another network.
    """
    found = keras_file.read(path)
    return _weights(found.arrays, found.topology, path.name, source, named=found.named)


def read_tfjs(path: Path, source: str) -> Weights:
    """Reads a TF.js layers model: `model.json` and the shards that it names, next to it.

    Args:
      path: of `model.json`.
      source: the value of `Weights.source`.

    Raises:
      PretrainedError: the file has another format, shards are truncated or missing, or the file
        holds another network.
    """
    try:
        model = json.loads(path.read_text(encoding="utf-8-sig"))
        if model.get("format", "layers-model") != "layers-model":
            raise PretrainedError(
                f"{path.name} is a TF.js {model['format']}; only layers models name their tensors "
                "by layer. Convert the Keras model with tfjs' --output_format=tfjs_layers_model."
            )
        arrays: dict[str, np.ndarray] = {}
        shards = [name for group in model["weightsManifest"] for name in group["paths"]]
        if len(set(shards)) < len(shards):
            raise PretrainedError(f"{path.name} is damaged: it names a shard twice.")
        for group in model["weightsManifest"]:
            arrays |= _shards(path, group)
        topology = model["modelTopology"]
        topology = topology.get("model_config", topology)
    except PretrainedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PretrainedError(
            f"{path.name} is truncated, damaged or not a TF.js model: {type(error).__name__}: "
            f"{error}."
        ) from error
    return _weights(arrays, topology, path.name, source)


def shard_paths(path: Path) -> list[Path]:
    """The shards that a TF.js `model.json` names, next to it; [] if it cannot be read."""
    try:
        groups = json.loads(path.read_text(encoding="utf-8-sig"))["weightsManifest"]
        names = [name for group in groups for name in group["paths"]]
        return [path.parent / Path(name).name for name in dict.fromkeys(names)]
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return []


def _shards(path: Path, group: Mapping[str, Any]) -> dict[str, np.ndarray]:
    data = b""
    for name in group["paths"]:
        shard = path.parent / Path(name).name
        if not shard.is_file():
            raise PretrainedError(f"{path.name} names the shard {name}, which is not next to it.")
        data += shard.read_bytes()
    arrays, offset = {}, 0
    for tensor in group["weights"]:
        if tensor["dtype"] != "float32" or "quantization" in tensor:
            raise PretrainedError(
                f"{path.name}: {tensor['name']} is {tensor['dtype']} or quantised; convert the "
                "model to TF.js again with float32 weights."
            )
        count = math.prod(tensor["shape"])
        if offset + 4 * count > len(data):
            raise PretrainedError(
                f"{', '.join(group['paths'])} of {path.name} is truncated: {len(data):,} bytes end "
                f"within {tensor['name']}."
            )
        values = np.frombuffer(data, "<f4", count, offset)
        arrays[tensor["name"]] = values.reshape(tensor["shape"])
        offset += 4 * count
    if offset != len(data):
        raise PretrainedError(
            f"{', '.join(group['paths'])} of {path.name} has {len(data):,} bytes instead of "
            f"{offset:,}."
        )
    return arrays


def _weights(
    arrays: Mapping[str, np.ndarray],
    topology: Any,
    file: str,
    source: str,
    *,
    named: bool = True,
) -> Weights:
    """Weights from tensors named `layer/variable` and the layers' configuration, if present."""
    scheme = slots if named else numbered_slots
    arrays = {_plain_name(name): array for name, array in arrays.items()}
    arrays = _with_classifier(arrays, "predictions" if named else "dense", file)
    fitted = fit(arrays, scheme, paper_networks(), file=file, names="Keras'")
    config = keras_topology.Topology({})
    try:
        # A model that is an instance of a user's own class has no list of layers.
        if isinstance(topology, Mapping) and "layers" in topology["config"]:
            config = keras_topology.read(topology, file)
    except PretrainedError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PretrainedError(
            f"{file} is damaged: its model's configuration cannot be read: "
            f"{type(error).__name__}: {error}."
        ) from error
    assumed = tuple(key for key in _DEFAULTS if key not in config.settings)
    settings = {**fitted.settings, **_DEFAULTS, **config.settings, **TENSORFLOW.settings}
    mean, std = TENSORFLOW.mean, TENSORFLOW.std
    if config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
        settings["data.normalization"] = preset(mean, std)
    else:
        assumed = (*assumed, "data.normalization")
    return Weights(
        fitted.params,
        fitted.batch_stats,
        settings,
        mean,
        std,
        None,
        source,
        config.notes,
        (*assumed, "data.crop_fraction"),
    )


def _with_classifier(
    arrays: Mapping[str, np.ndarray], classifier: str, file: str
) -> dict[str, np.ndarray]:
    """Gives the only dense layer the classifier's name, whatever its name in the file is."""
    dense = [
        name.removesuffix("/kernel")
        for name, array in arrays.items()
        if name.endswith("/kernel") and array.ndim == 2
    ]
    if len(dense) > 1:
        raise PretrainedError(
            f"{file} has {len(dense)} dense layers, {', '.join(dense)}; this project's network has "
            "one, its classifier. Save a model of the features and one dense layer."
        )
    if not dense:
        return dict(arrays)
    found = {}
    for name, array in arrays.items():
        layer, _, variable = name.rpartition("/")
        found[f"{classifier}/{variable}" if layer == dense[0] else name] = array
    # A layer without a bias equals one with a bias of 0.
    outputs = found[f"{classifier}/kernel"].shape[1]
    found.setdefault(f"{classifier}/bias", np.zeros(outputs, np.float32))
    return found


def _plain_name(name: str) -> str:
    """`layer/variable` of a tensor, without the model's name and without TensorFlow's ":0"."""
    layer, variable = ["", *name.removesuffix(":0").split("/")][-2:]
    if variable == "depthwise_kernel":
        variable = "kernel"
    # Before Keras 2.4 the classifier was called Logits.
    return f"{'predictions' if layer == 'Logits' else layer}/{variable}"
