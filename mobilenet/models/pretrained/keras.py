"""Keras Applications' MobileNetV2: HDF5 files of Keras 2 and 3, and TF.js layers models.

Source: keras/src/applications/mobilenet_v2.py. At stride 2 Keras pads by explicit ZeroPadding2D of
`correct_pad`, or by "same": for a model of a fixed size both are TensorFlow's SAME, at even and odd
sizes. A model built for any size (input shape None) pads (0, 1) whatever the size, which is SAME
only where every map of stride 2 has an even size; that is said in a note.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.models.pretrained.fit import (
    Layer,
    Slot,
    fit,
    padding_convention,
    paper_networks,
    variable_paths,
)
from mobilenet.models.pretrained.weights import TENSORFLOW, PretrainedError, Weights

_TENSORS = {
    "kernel": "kernel",
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}
# Variables of a layer by their number in `.weights.h5` files: keras/src/layers/*, in order of
# creation. The key is the layer's class as its group names it.
_NUMBERED = {
    "conv2d": ("kernel",),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}


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
    """As `slots`, for files that number the layers of a class instead of naming them."""
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


def read_h5(path: Path, source: str) -> Weights:
    """Reads `.weights.h5` of Keras 3, or a legacy `.h5` (weights alone, or the whole model).

    Args:
      path: of the file.
      source: what `Weights.source` is to say.

    Raises:
      PretrainedError: truncated, no such file, or another network.
    """
    try:
        import h5py
    except ImportError as error:
        raise PretrainedError(
            "Reading Keras' HDF5 files needs a package that is not installed; `pip install "
            ".[convert]` brings it."
        ) from error
    try:
        with h5py.File(path, "r") as file:
            if "layers" in file:
                arrays, named, topology = *_keras3_arrays(file["layers"]), None
            else:
                weights = file["model_weights"] if "model_weights" in file else file
                arrays, named = _legacy_arrays(weights), True
                topology = file.attrs.get("model_config")
            topology = None if topology is None else json.loads(topology)
    except (OSError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise PretrainedError(
            f"{path.name} is truncated, damaged or not a file of Keras weights: {error}."
        ) from error
    return _weights(arrays, topology, path.name, source, named=named)


def _keras3_arrays(layers: Any) -> tuple[dict[str, np.ndarray], bool]:
    """Arrays below the group `layers`, by layer and variable, and whether layers have their names.

    Groups are named by class and number; newer files say the layer's name in an attribute. Models
    within the model have groups of their own.
    """
    groups: dict[str, Any] = {}

    def visit(path: str, item: Any) -> None:
        if path.endswith("/vars") and len(item):
            groups[path.split("/")[-2]] = item

    layers.visititems(visit)
    named = all("name" in group.attrs for group in groups.values())
    arrays = {}
    for name, group in groups.items():
        known = _NUMBERED.get(re.sub(r"_\d+$", "", name), ())
        variables = dict(enumerate(known))
        for number in group:
            layer = _text(group.attrs["name"]) if named else name
            variable = variables.get(int(number), number) if number.isdigit() else number
            arrays[f"{layer}/{variable}"] = np.asarray(group[number])
    return arrays, named


def _legacy_arrays(weights: Any) -> dict[str, np.ndarray]:
    arrays = {}
    for layer in weights.attrs["layer_names"]:
        group = weights[_text(layer)]
        for name in group.attrs["weight_names"]:
            arrays[_text(name)] = np.asarray(group[_text(name)])
    return arrays


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def read_tfjs(path: Path, source: str) -> Weights:
    """Reads a TF.js layers model: `model.json` and the shards that it names beside itself.

    Args:
      path: of `model.json`.
      source: what `Weights.source` is to say.

    Raises:
      PretrainedError: no such file, truncated or missing shards, or another network.
    """
    try:
        model = json.loads(path.read_text())
        if model.get("format", "layers-model") != "layers-model":
            raise PretrainedError(
                f"{path.name} is a TF.js {model['format']}; only layers models name their tensors "
                "by layer. Convert the Keras model with tfjs' --output_format=tfjs_layers_model."
            )
        arrays: dict[str, np.ndarray] = {}
        for group in model["weightsManifest"]:
            arrays |= _shards(path, group)
        topology = model["modelTopology"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PretrainedError):
            raise
        raise PretrainedError(
            f"{path.name} is truncated, damaged or no TF.js model: {type(error).__name__}: {error}."
        ) from error
    return _weights(arrays, topology.get("model_config", topology), path.name, source)


def shard_paths(path: Path) -> list[Path]:
    """The shards that a TF.js `model.json` names beside itself; [] if it cannot be read."""
    try:
        groups = json.loads(path.read_text())["weightsManifest"]
        return [path.parent / Path(name).name for group in groups for name in group["paths"]]
    except (ValueError, KeyError, TypeError, OSError):
        return []


def _shards(path: Path, group: Mapping[str, Any]) -> dict[str, np.ndarray]:
    data = b""
    for name in group["paths"]:
        shard = path.parent / Path(name).name
        if not shard.is_file():
            raise PretrainedError(f"{path.name} names the shard {name}, which is not beside it.")
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
    topology: Mapping[str, Any] | None,
    file: str,
    source: str,
    *,
    named: bool = True,
) -> Weights:
    """Weights from tensors named `layer/variable`, and from the layers' configuration if known."""
    scheme = slots if named else numbered_slots
    arrays = {_plain_name(name): array for name, array in arrays.items()}
    fitted = fit(arrays, scheme, paper_networks(), file=file, names="Keras'")
    network, notes = _read_topology(topology, file) if topology else (dict(_DEFAULTS), ())
    settings = {**fitted.settings, **network, **TENSORFLOW.settings}
    return Weights(
        fitted.params,
        fitted.batch_stats,
        settings,
        TENSORFLOW.mean,
        TENSORFLOW.std,
        None,
        source,
        notes,
    )


def _plain_name(name: str) -> str:
    """`layer/variable` of a tensor: without a model's name before it and TensorFlow's ":0"."""
    layer, variable = name.removesuffix(":0").split("/")[-2:]
    if variable == "depthwise_kernel":
        variable = "kernel"
    # Before Keras 2.4 the classifier was called Logits.
    return f"{'predictions' if layer == 'Logits' else layer}/{variable}"


# Of keras.applications.MobileNetV2, for files that hold tensors alone.
_DEFAULTS = {"model.padding": "SAME", "model.bn_epsilon": 1e-3, "data.image_size": 224}


def _read_topology(
    topology: Mapping[str, Any], file: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Padding, epsilon and resolution from the layers' configuration, and notes."""
    # An unknown size counts as even, as `correct_pad` takes it.
    size, padded, explicit = None, (0, 0), False
    epsilons: set[float] = set()
    pads = []
    image_size = None
    for kind, config in _layers(topology):
        if kind == "InputLayer" and not pads:
            shape = config.get("batch_input_shape") or config["batch_shape"]
            size = image_size = shape[1]
        elif kind == "ReLU" and config.get("max_value") != 6:
            raise PretrainedError(
                f"{file}: the layer {config['name']} is a ReLU with maximum "
                f"{config.get('max_value')}; MobileNetV2 has ReLU6."
            )
        elif kind == "BatchNormalization":
            epsilons.add(float(config["epsilon"]))
        elif kind == "ZeroPadding2D":
            padded = tuple(config["padding"][0])
        elif kind in ("Conv2D", "DepthwiseConv2D"):
            if tuple(config["strides"]) == (2, 2):
                explicit = explicit or config["padding"] != "same"
                same = ((size or 0) % 2, 1)
                pads.append((size or 0, *(same if config["padding"] == "same" else padded)))
                size = size and -(-size // 2)
            padded = (0, 0)
    padding = padding_convention(pads)
    if padding is None or len(epsilons) != 1:
        raise PretrainedError(
            f"{file}: its layers pad {[pad[1:] for pad in pads]} at stride 2 and have "
            f"BN epsilons {sorted(epsilons)}; this project's network pads as TensorFlow or as "
            "PyTorch throughout, with one epsilon."
        )
    settings = {
        "model.padding": padding,
        "model.bn_epsilon": epsilons.pop(),
        "data.image_size": image_size or _DEFAULTS["data.image_size"],
    }
    if image_size is None and explicit and padding == "SAME":
        return settings, (
            "The Keras model was built for any size and pads (0, 1) at stride 2 whatever it is; "
            "this network does the same at multiples of 32 pixels alone.",
        )
    return settings, ()


def _layers(topology: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(class, configuration) of every layer in order, models within models opened."""
    for layer in topology["config"]["layers"]:
        if "layers" in layer["config"]:
            yield from _layers(layer)
        else:
            yield layer["class_name"], layer["config"]
