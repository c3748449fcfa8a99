"""PyTorch's MobileNetV2s: torchvision's, timm's and Hugging Face's names, settings and files.

Sources: torchvision/models/mobilenetv2.py; timm/models/efficientnet.py (`mobilenetv2_*`);
transformers/models/mobilenet_v2/modeling_mobilenet_v2.py.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet.models.layers import make_divisible
from mobilenet.models.mobilenet_v2 import PAPER_BLOCKS, BlockSpec, Plan
from mobilenet.models.pretrained import native, safetensors_file, state_dict
from mobilenet.models.pretrained.fit import (
    Fitted,
    Layer,
    Slot,
    fit,
    layers,
    leaf,
    paper_networks,
    planned_network,
    table_network,
    variable_paths,
)
from mobilenet.models.pretrained.weights import (
    IMAGENET,
    TENSORFLOW,
    PretrainedError,
    Weights,
    check_blocks,
)

# (layer, number of blocks) -> the prefixes of its convolution and of its batch normalisation.
Naming = Callable[[Layer, int], tuple[str, str]]


def torchvision_names(layer: Layer, blocks: int) -> tuple[str, str]:
    """torchvision's prefixes of a layer, in a network of `blocks` blocks."""
    if layer.role == "classifier":
        return "classifier.1", ""
    if layer.role in ("stem", "head"):
        prefix = "features.0" if layer.role == "stem" else f"features.{blocks + 1}"
        return f"{prefix}.0", f"{prefix}.1"
    prefix = f"features.{layer.number + 1}.conv"
    place = ("expand", "depthwise", "project").index(layer.role) - (not layer.expands)
    if layer.role == "project":
        return f"{prefix}.{place}", f"{prefix}.{place + 1}"
    return f"{prefix}.{place}.0", f"{prefix}.{place}.1"


def timm_names(layer: Layer, blocks: int) -> tuple[str, str]:
    """timm's prefixes of a layer."""
    del blocks
    outside = {
        "stem": ("conv_stem", "bn1"),
        "head": ("conv_head", "bn2"),
        "classifier": ("classifier", ""),
    }
    if layer.role in outside:
        return outside[layer.role]
    # A block without expansion is timm's DepthwiseSeparableConv: two convolutions.
    names = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
    if not layer.expands:
        names = {"depthwise": "conv_dw", "project": "conv_pw"}
    prefix = f"blocks.{layer.stage}.{layer.block}"
    return f"{prefix}.{names[layer.role]}", f"{prefix}.bn{list(names).index(layer.role) + 1}"


def huggingface_names(layer: Layer, blocks: int) -> tuple[str, str]:
    """Hugging Face's prefixes of a layer."""
    del blocks
    names = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
    if layer.role == "classifier":
        return "classifier", ""
    if layer.role == "stem":
        prefix = "mobilenet_v2.conv_stem.first_conv"
    elif layer.role == "head":
        prefix = "mobilenet_v2.conv_1x1"
    elif layer.number == 0:
        prefix = f"mobilenet_v2.conv_stem.{names[layer.role]}"
    else:
        prefix = f"mobilenet_v2.layer.{layer.number - 1}.{names[layer.role]}"
    return f"{prefix}.convolution", f"{prefix}.normalization"


NAMES: dict[str, Naming] = {
    "torchvision": torchvision_names,
    "timm": timm_names,
    "huggingface": huggingface_names,
}
_HUGGINGFACE_PREFIX = "mobilenet_v2."
# The tensor that identifies a library's network in a file, and the classifier's name.
_STEMS = {
    "torchvision": "features.0.0.weight",
    "timm": "conv_stem.weight",
    "huggingface": "conv_stem.first_conv.convolution.weight",
}
_CLASSIFIERS = {
    "torchvision": "classifier.1",
    "timm": "classifier",
    "huggingface": "classifier",
}
_TENSORS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def slots(found: Sequence[Layer], naming: Naming) -> list[Slot]:
    """A network's tensors in PyTorch's layout: kernels [out, in, h, w] and [classes, features]."""
    blocks = 1 + max(layer.number for layer in found)
    places = []
    for layer in found:
        conv, norm = naming(layer, blocks)
        for name, path in variable_paths(layer).items():
            dense = layer.role == "classifier"
            if name == "kernel":
                shape = tuple(layer.shape[axis] for axis in ((1, 0) if dense else (3, 2, 0, 1)))
                places.append(
                    Slot(f"{conv}.weight", shape, path, (1, 0) if dense else (2, 3, 1, 0))
                )
            else:
                prefix = conv if dense else norm
                places.append(Slot(f"{prefix}.{_TENSORS[name]}", (layer.shape[-1],), path))
    return places


def timm_deep_networks() -> Iterator[tuple[dict[str, Any], Plan]]:
    """timm's mobilenetv2_110d and _120d, which are wider and deeper.

    The depth multiplier rounds up and does not apply to the first and the last stage; the width
    multiplier does not apply to the stem and the head (timm's `fix_stem_head`).
    """
    for width, depth in ((1.1, 1.2), (1.2, 1.4)):
        blocks = [
            BlockSpec(
                spec.expansion_ratio,
                make_divisible(spec.features * width),
                spec.repeats
                if stage in (0, len(PAPER_BLOCKS) - 1)
                else math.ceil(spec.repeats * depth),
                spec.strides,
            )
            for stage, spec in enumerate(PAPER_BLOCKS)
        ]
        yield table_network(blocks)


def read(path: Path, names: str, source: str) -> Weights:
    """Reads a checkpoint with PyTorch's tensors.

    For Hugging Face, a `config.json` next to the file gives padding, epsilon, resolution and
    classes. Without it, and for torchvision and timm, the library's defaults are used.

    Args:
      path: `.safetensors`, or a file that `torch.save` wrote (`.pth`, `.bin`).
      names: a key of NAMES.
      source: the value of `Weights.source`.

    Raises:
      PretrainedError: the file is damaged, or holds another network.
    """
    metadata: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    if path.suffix == ".safetensors":
        arrays, metadata = safetensors_file.read(path)
    else:
        arrays, notes = state_dict.find(path)
    arrays = {k: v for k, v in arrays.items() if not k.endswith(".num_batches_tracked")}
    if native.KEY in metadata:
        # `tensors` below wrote the file, with all settings in its metadata.
        described = native.undescribe(metadata[native.KEY], {}, {}, source)
        if "model.blocks" in described.settings:
            check_blocks(described.settings["model.blocks"], len(arrays), source)
        try:
            network = planned_network(described.settings)
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise native.damaged(path.name, error) from error
        channels = described.settings.get("data.channels", 3)
        fitted = _fit(arrays, names, path.name, [network], channels)
        return dataclasses.replace(described, params=fitted.params, batch_stats=fitted.batch_stats)
    _check_names(arrays, names, path.name)
    arrays, left = _unwrapped(arrays, names, path.name)
    networks = [*paper_networks(), *(timm_deep_networks() if names == "timm" else ())]
    fitted = _fit(arrays, names, path.name, networks)
    # nn.BatchNorm2d's epsilon; nn.Conv2d pads both sides equally.
    settings = {"model.padding": "SYMMETRIC", "model.bn_epsilon": 1e-5, "data.image_size": 224}
    preprocessing, class_names, assumed = IMAGENET, None, tuple(settings)
    if names == "huggingface":
        settings, class_names, assumed = _huggingface_config(path, fitted.num_classes)
        preprocessing = TENSORFLOW
    return Weights(
        fitted.params,
        fitted.batch_stats,
        {**fitted.settings, **settings, **preprocessing.settings},
        preprocessing.mean,
        preprocessing.std,
        class_names,
        source,
        (*notes, *left),
        assumed=(*assumed, *preprocessing.settings),
    )


def _marked(arrays: Mapping[str, np.ndarray], names: str) -> list[str]:
    """The prefix of every stem in a file: "", "model.", ..."""
    mark = _STEMS[names]
    stems = [name for name in arrays if f".{name}".endswith(f".{mark}")]
    return [name.removesuffix(mark) for name in stems]


def _check_names(arrays: Mapping[str, np.ndarray], names: str, file: str) -> None:
    """Refuses a file whose stem has another library's name."""
    if _marked(arrays, names):
        return
    for other in NAMES:
        if _marked(arrays, other):
            raise PretrainedError(
                f"{file} has {other}'s names, not {names}'s; read it with --from={other}."
            )


def _unwrapped(
    arrays: Mapping[str, np.ndarray], names: str, file: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Tensors with the library's own names, and a note on the tensors that were left out.

    Training scripts keep a network as an attribute ("model.features.0.0.weight") and may give its
    classifier another name; the classifier is the only tensor of two axes.
    """
    found = _marked(arrays, names)
    if len(found) > 1:
        shown = ", ".join(prefix or "no prefix" for prefix in found)
        raise PretrainedError(
            f"{file} has {len(found)} networks, under {shown}; save only the one that you mean: "
            "torch.save(model.state_dict(), PATH)."
        )
    prefix = found[0] if found else ""
    # Hugging Face's base model, MobileNetV2Model, is saved without its usual prefix.
    base = names == "huggingface" and not prefix.endswith(_HUGGINGFACE_PREFIX)
    if names == "huggingface":
        prefix = prefix.removesuffix(_HUGGINGFACE_PREFIX)
    inside = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    outside = {k: v for k, v in arrays.items() if not k.startswith(prefix)}
    dense = _dense(inside) or _dense(outside)
    if len(dense) > 1:
        raise PretrainedError(
            f"{file} has {len(dense)} dense layers, {', '.join(dense)}; this project's network has "
            "one, its classifier. Save the features and one classifier."
        )
    for name in [name for name in outside if dense and name.startswith(f"{dense[0]}.")]:
        inside[name] = outside.pop(name)
    result = {}
    for name, array in inside.items():
        layer, _, tensor = name.rpartition(".")
        if dense and layer == dense[0]:
            name = f"{_CLASSIFIERS[names]}.{tensor}"
        elif base:
            name = f"{_HUGGINGFACE_PREFIX}{name}"
        result[name] = array
    if dense:  # a layer without a bias equals one with a bias of 0
        outputs = result[f"{_CLASSIFIERS[names]}.weight"].shape[0]
        result.setdefault(f"{_CLASSIFIERS[names]}.bias", np.zeros(outputs, np.float32))
    if not outside:
        return result, ()
    most = ", ".join(list(outside)[:5]) + (", ..." if len(outside) > 5 else "")
    return result, (f"These tensors do not belong to the network and were left out: {most}.",)


def _dense(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the layers whose weight has two axes."""
    return [
        name.removesuffix(".weight")
        for name, array in arrays.items()
        if name.endswith(".weight") and array.ndim == 2
    ]


def _fit(
    arrays: Mapping[str, np.ndarray],
    names: str,
    file: str,
    networks: Sequence[tuple[dict[str, Any], Plan]],
    channels: int = 3,
) -> Fitted:
    def scheme(found: Sequence[Layer]) -> list[Slot]:
        return slots(found, NAMES[names])

    return fit(arrays, scheme, networks, file=file, names=f"{names}'s", channels=channels)


# Values in a Hugging Face configuration of the network that this project builds.
_HUGGINGFACE_NETWORK = {
    "expand_ratio": 6,
    "output_stride": 32,
    "first_layer_is_expansion": True,
    "hidden_act": "relu6",
    "num_channels": 3,
}


def _huggingface_config(
    path: Path, outputs: int
) -> tuple[dict[str, Any], tuple[str, ...] | None, tuple[str, ...]]:
    """Settings and class names from `config.json` next to a file, or the library's defaults.

    The last value names the settings that are defaults.
    """
    file = path.parent / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        config = {}
    except (OSError, ValueError, RecursionError) as error:
        raise PretrainedError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise PretrainedError(f"{file} is not a configuration of Hugging Face: it has no keys.")
    for key, value in _HUGGINGFACE_NETWORK.items():
        if config.get(key, value) != value:
            raise PretrainedError(
                f"config.json next to {path.name} has {key} {config[key]!r}; this project's "
                f"network has {value!r}."
            )
    try:
        settings = {
            "model.padding": "SAME" if config.get("tf_padding", True) else "SYMMETRIC",
            "model.bn_epsilon": float(config.get("layer_norm_eps", 1e-3)),
            "data.image_size": int(config.get("image_size", 224)),
        }
        labels = {int(index): str(name) for index, name in config.get("id2label", {}).items()}
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise PretrainedError(f"{file} is damaged: {type(error).__name__}: {error}.") from error
    assumed = () if config else tuple(settings)
    # ImageNet's data sets use WordNet's ids, so its names are not read. LABEL_0, ... are no names.
    named = sorted(labels) == list(range(outputs)) and outputs not in (0, 1000, 1001)
    if not named or all(name == f"LABEL_{index}" for index, name in labels.items()):
        return settings, None, assumed
    return settings, tuple(labels[index] for index in range(outputs)), assumed


# torchvision.models.MobileNetV2, without width_mult, inverted_residual_setting and round_nearest.
_TORCHVISION_NETWORK = {
    "model.stem_features": 32,
    "model.stem_strides": 2,
    "model.head_features": 1280,
    "model.shrink_head": False,
    "model.kernel_size": 3,
    "model.activation": "relu6",
    "model.bottleneck_activation": "identity",
    "model.shortcut": "bottleneck",
    "model.shortcut_projection": False,
    "model.expand_always": False,
    "model.se_ratio": None,
}


def tensors(weights: Weights) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """A state dict with torchvision's names, in torchvision's order.

    Args:
      weights: with the whole network in `settings`.

    Returns:
      (name -> float32 array, or int64 for `num_batches_tracked`; one sentence for each difference
      between torchvision's module and this network).

    Raises:
      PretrainedError: the network has parts for which torchvision has no names.
    """
    settings = weights.settings
    for key, value in _TORCHVISION_NETWORK.items():
        if settings.get(key, value) != value:
            raise PretrainedError(
                f"{key} is {settings[key]!r}, but torchvision's MobileNetV2 only has names for "
                f"{value!r}; write the weights with --names=mobilenet."
            )
    _, plan = planned_network(settings)
    variables = {"params": weights.params, "batch_stats": weights.batch_stats}
    found = layers(plan, settings["model.num_classes"], settings.get("data.channels", 3))
    arrays = {}
    for slot in slots(found, torchvision_names):
        array = leaf(variables, slot.path)
        if slot.axes is not None:
            array = array.transpose(np.argsort(slot.axes))
        arrays[slot.name] = np.ascontiguousarray(array)
        if slot.name.endswith(".running_var"):
            prefix = slot.name.removesuffix("running_var")
            arrays[f"{prefix}num_batches_tracked"] = np.zeros((), np.int64)
    return arrays, tuple(_differences(weights))


def _differences(weights: Weights) -> Iterator[str]:
    settings = weights.settings
    if settings["model.padding"] != "SYMMETRIC":
        yield (
            "model.padding is 'SAME', but torchvision's module pads symmetrically, so its outputs "
            "would differ: pad as TensorFlow does before its convolutions of stride 2."
        )
    if settings["model.bn_epsilon"] != 1e-5:
        yield (
            f"model.bn_epsilon is {settings['model.bn_epsilon']:g}: create torchvision's module "
            f"with norm_layer=partial(BatchNorm2d, eps={settings['model.bn_epsilon']:g})."
        )
    if (weights.mean, weights.std) != (IMAGENET.mean, IMAGENET.std):
        yield f"Images are normalised by mean {weights.mean} and std {weights.std}."
    if not settings["model.num_classes"]:
        yield "There is no classifier: load the tensors with strict=False."
