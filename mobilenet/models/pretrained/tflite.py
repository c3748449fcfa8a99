"""TFLite files: float, float16, int8 and uint8, with batch normalisation already folded.

A TFLite file is a graph of operations on numbered tensors, and no name in it is reliable. So the
operations are read in order (`tflite_graph`) and compared with a MobileNetV2: convolutions of the
planned shapes and strides, ReLU6 where the paper has it, each block's shortcut, the pooling.

Files of `mobilenet export` have metadata: the network's settings, how images are normalised, and
the names of the classes. For other files the usual values are assumed.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.models.mobilenet_v2 import Plan
from mobilenet.models.pretrained.fit import (
    Fitted,
    Layer,
    Slot,
    fit,
    layers,
    padding_convention,
    paper_networks,
    planned_network,
    put,
    variable_paths,
)
from mobilenet.models.pretrained.native import KEY, damaged, from_description, load_json
from mobilenet.models.pretrained.tflite_graph import Convolution, Graph, load, read_graph
from mobilenet.models.pretrained.weights import (
    DATA_SET_KEYS,
    IMAGE_KEYS,
    TENSORFLOW,
    PretrainedError,
    Weights,
    check_blocks,
)

BN_EPSILON = 1e-3  # TF-Slim's and Keras'; the identity is exact for any epsilon


def read(path: Path, source: str) -> Weights:
    """Reads a TFLite file's weights as float32, with a BN that only adds the bias.

    Args:
      path: of the file.
      source: the value of `Weights.source`.

    Returns:
      Weights whose BN is the identity plus a bias: scale 1, mean 0, variance 1 - epsilon.

    Raises:
      PretrainedError: the file is truncated, not a TFLite file, or holds another network.
    """
    data = load(path)
    graph = read_graph(data, path.name)
    metadata = _metadata(data, path.name)
    channels = graph.tensors[graph.image].shape[3]
    described = None if metadata is None else _from_metadata(metadata, graph, source)
    networks = paper_networks() if described is None else [_described_network(described)]
    fitted = _fit(graph, path.name, networks, channels)
    padding = check(graph, fitted.plan, fitted.num_classes, path.name)
    settings = {
        **fitted.settings,
        "model.padding": padding,
        "model.bn_epsilon": BN_EPSILON,
        "data.image_size": graph.size,
    }
    notes = ()
    if graph.quantised:
        notes = (
            "The weights are dequantised: activations are no longer rounded, so outputs differ "
            "slightly from those of the TFLite file.",
        )
    if described is not None:
        if described.settings.get("model.padding") == "SYMMETRIC" and _pads_alike(graph):
            settings["model.padding"] = "SYMMETRIC"
        return dataclasses.replace(
            described,
            params=fitted.params,
            batch_stats=fitted.batch_stats,
            settings={**described.settings, **settings},
            notes=notes,
        )
    if channels != 3:
        settings["data.channels"] = channels
    return Weights(
        fitted.params,
        fitted.batch_stats,
        {**settings, **TENSORFLOW.settings},
        TENSORFLOW.mean[:channels],
        TENSORFLOW.std[:channels],
        None,
        source,
        (*notes, *_range_note(graph)),
        tuple(TENSORFLOW.settings),
    )


def _metadata(data: bytes, file: str) -> Any:
    """The metadata that `mobilenet export` wrote into a file; None in other files."""
    import tflite

    model: Any = tflite.Model.GetRootAsModel(data, 0)
    try:
        for number in range(model.MetadataLength()):
            entry = model.Metadata(number)
            if entry.Name() == KEY.encode():
                return load_json(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes(), file)
    except PretrainedError:
        raise
    # Offsets in a damaged buffer can raise any exception.
    except Exception as error:
        raise damaged(file, error) from error
    return None


def _from_metadata(metadata: Any, graph: Graph, source: str) -> Weights:
    """All attributes of the weights except the arrays, from the metadata of `mobilenet export`."""
    try:
        model, data = dict(metadata["config"]["model"]), metadata["config"]["data"]
        if model["name"] != "mobilenet_v2":
            raise PretrainedError(
                f"{source} is a {model['name']}; convert reads only MobileNetV2. Write the weights "
                "of its run: mobilenet convert --workdir=RUN --to=FILE.safetensors."
            )
        # The path of a folder is valid on one machine only.
        kept = (*IMAGE_KEYS, *(() if data["name"] == "folder" else DATA_SET_KEYS))
        settings = {f"model.{key}": value for key, value in model.items()}
        settings |= {key: data[key.removeprefix("data.")] for key in kept}
        names, preprocessing = metadata["labels"], metadata["preprocessing"]
        description = {
            "settings": {**settings, "model.num_classes": len(names)},
            "mean": preprocessing["mean"],
            "std": preprocessing["std"],
            "class_names": names,
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(source, error) from error
    check_blocks(model.get("blocks"), len(graph.convolutions), source)
    if model.get("kernel_size") != 3:
        raise PretrainedError(
            f"{source} has depthwise kernels of size {model.get('kernel_size')!r}; convert "
            "reads only size 3 from TFLite files."
        )
    return from_description(description, {}, {}, source)


def _described_network(described: Weights) -> tuple[dict[str, Any], Plan]:
    try:
        return planned_network(
            {key: value for key, value in described.settings.items() if key.startswith("model.")}
        )
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise damaged(described.source, error) from error


def _pads_alike(graph: Graph) -> bool:
    """Whether every convolution of stride 2 pads (1, 1); at odd sizes this is also SAME."""
    return all(found.pads[1:] == (1, 1) for found in graph.convolutions if found.strides == 2)


def _range_note(graph: Graph) -> tuple[str, ...]:
    """A note if the quantisation range of the input does not fit the assumed normalisation."""
    numbers = [graph.image]
    numbers += [
        step.output
        for step in graph.steps
        if step.kind == "QUANTIZE" and step.inputs[0] == graph.image
    ]
    for number in numbers:
        tensor = graph.tensors[number]
        if len(tensor.scale) != 1 or tensor.kind not in ("INT8", "UINT8"):
            continue
        first = -128 if tensor.kind == "INT8" else 0
        low, high = (
            float(tensor.scale[0]) * (code - int(tensor.zero_point[0]))
            for code in (first, first + 255)
        )
        if max(abs(low + 1), abs(high - 1)) > 0.05:
            return (
                f"The file quantises images from {low:.2f} to {high:.2f}, but images that are "
                f"{TENSORFLOW.normalization} range from -1 to 1: the file was probably made for "
                "another normalisation.",
            )
    return ()


def _fit(
    graph: Graph,
    file: str,
    networks: Iterable[tuple[dict[str, Any], Plan]],
    channels: int,
) -> Fitted:
    """Assigns the convolutions in order, and sets their BN to the identity plus a bias."""
    arrays = {}
    for number, convolution in enumerate(graph.convolutions):
        kernel = convolution.kernel
        if _is_classifier(graph, convolution) and kernel.ndim == 4 and kernel.shape[:2] == (1, 1):
            kernel = kernel[0, 0]
        arrays[f"convolution {number}"] = kernel
        arrays[f"bias {number}"] = convolution.bias

    def scheme(found: Sequence[Layer]) -> list[Slot]:
        places = []
        for number, layer in enumerate(found):
            paths = variable_paths(layer)
            places.append(Slot(f"convolution {number}", layer.shape, paths["kernel"]))
            places.append(Slot(f"bias {number}", (layer.shape[-1],), paths["bias"]))
        return places

    fitted = fit(arrays, scheme, networks, file=file, names="TFLite's", channels=channels)
    variables = {"params": fitted.params, "batch_stats": fitted.batch_stats}
    for layer in layers(fitted.plan, 0):
        paths, size = variable_paths(layer), layer.shape[-1]
        put(variables, paths["scale"], np.ones(size, np.float32))
        put(variables, paths["mean"], np.zeros(size, np.float32))
        # In float32 this plus epsilon is exactly 1: the rounding error of the difference is below
        # half a unit in the last place of 1.
        put(variables, paths["var"], np.full(size, np.float32(1) - np.float32(BN_EPSILON)))
    return fitted


def _is_classifier(graph: Graph, convolution: Convolution) -> bool:
    return convolution.dense or convolution.source in graph.pooled


def check(graph: Graph, plan: Plan, num_classes: int, file: str) -> str:
    """Checks that the operations are connected as in the plan.

    Args:
      graph: with as many convolutions as the plan has layers, of the same shapes.
      plan: of the network.
      num_classes: 0 for a file without a classifier.
      file: for messages.

    Returns:
      The padding convention, "SAME" or "SYMMETRIC".

    Raises:
      PretrainedError: a stride, an activation, a shortcut or a padding differs; the message names
        the first difference.
    """
    blocks = {block.name: block for block in plan.blocks}
    found = layers(plan, num_classes)
    x = block_input = graph.image
    pads = []
    for number, (layer, convolution) in enumerate(zip(found, graph.convolutions, strict=True)):
        block = blocks.get(layer.name.split("/")[0])
        if layer.role == "classifier":
            x = next((pooled for pooled, source in graph.pooled.items() if source == x), -1)
        strides = {"stem": plan.stem_strides, "depthwise": block.strides if block else 1}
        expected = {
            "input": x,
            "strides": strides.get(layer.role, 1),
            "relu6": layer.role not in ("project", "classifier"),
        }
        actual = {
            "input": convolution.source,
            "strides": convolution.strides,
            "relu6": convolution.relu6,
        }
        for key, value in expected.items():
            if actual[key] != value:
                raise PretrainedError(
                    f"{file} is not a MobileNetV2: convolution {number}, at the position of "
                    f"{layer.name}, has {key} {actual[key]} instead of {value}."
                )
        if convolution.strides == 2:
            pads.append(convolution.pads)
        elif convolution.kernel.shape[0] == 3 and convolution.pads[1:] != (1, 1):
            raise PretrainedError(
                f"{file}: convolution {number} pads {convolution.pads[1:]} at stride 1."
            )
        x = convolution.target
        if layer.role == "project" and block is not None:
            if block.shortcut == "identity":
                terms = {x, block_input}
                x = next((total for total, parts in graph.sums.items() if set(parts) == terms), -1)
                if x < 0:
                    raise PretrainedError(
                        f"{file} is not a MobileNetV2: {block.name} has no shortcut."
                    )
        if layer.role in ("stem", "project"):
            block_input = x
    shortcuts = sum(block.shortcut == "identity" for block in plan.blocks)
    if len(graph.sums) != shortcuts:
        raise PretrainedError(
            f"{file} is not a MobileNetV2: it has {len(graph.sums)} sums instead of {shortcuts}."
        )
    padding = padding_convention(pads)
    if padding is None:
        raise PretrainedError(
            f"{file} pads {', '.join(str(pad[1:]) for pad in pads)} at stride 2; this project's "
            "network pads either as TensorFlow or as PyTorch in all layers."
        )
    return padding
