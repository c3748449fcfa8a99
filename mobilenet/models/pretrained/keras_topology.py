"""Reads padding, epsilon and image size of a MobileNetV2 from Keras' configuration."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mobilenet.models.pretrained.fit import padding_convention
from mobilenet.models.pretrained.weights import PretrainedError

# Layers that compute the same as this project's network, or nothing outside of training.
_KNOWN = {
    *("InputLayer", "Functional", "Sequential", "Conv2D", "DepthwiseConv2D", "BatchNormalization"),
    *("ReLU", "ZeroPadding2D", "Add", "GlobalAveragePooling2D", "AveragePooling2D", "Dense"),
    *("Dropout", "SpatialDropout2D", "GaussianNoise", "Flatten", "Reshape", "Softmax"),
    *("Activation", "Rescaling"),
}
# Pooling layers whose result is not the mean.
_OTHER_POOLING = ("GlobalMaxPooling2D", "MaxPooling2D")


class Topology(NamedTuple):
    """Settings from the configuration of a model's layers.

    `settings` are padding, epsilon and, if fixed, resolution; `notes` are sentences for the user.
    `mean` and `std` are those of the images if the model normalises images itself, else None.
    """

    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read(topology: Mapping[str, Any], file: str) -> Topology:
    """Reads the configuration of a functional or sequential model.

    Args:
      topology: with the key "config", which has the key "layers".
      file: for messages.

    Raises:
      PretrainedError: the model has layers that this project's network does not have.
      KeyError, TypeError, ValueError, AttributeError, IndexError: the configuration is damaged.
    """
    found = list(_layers(topology))
    for kind, config in found:
        if kind == "ReLU" and config.get("max_value") != 6:
            raise PretrainedError(
                f"{file}: the layer {config['name']} is a ReLU with maximum "
                f"{config.get('max_value')}; MobileNetV2 has ReLU6."
            )
        if kind in _OTHER_POOLING:
            raise PretrainedError(
                f"{file}: the layer {config.get('name')} is a {kind}; MobileNetV2 takes the mean."
            )
    epsilons = {float(config["epsilon"]) for kind, config in found if kind == "BatchNormalization"}
    image_size, pads, explicit = _pads(found)
    padding = padding_convention(pads)
    if padding is None or len(epsilons) != 1:
        raise PretrainedError(
            f"{file}: its layers pad {[pad[1:] for pad in pads]} at stride 2 and have BN "
            f"epsilons {sorted(epsilons)}; this project's network pads either as TensorFlow or "
            "as PyTorch in all layers, and has one epsilon."
        )
    settings: dict[str, Any] = {"model.padding": padding, "model.bn_epsilon": epsilons.pop()}
    notes = []
    if image_size is not None:
        settings["data.image_size"] = image_size
    elif explicit and padding == "SAME":
        notes.append(
            "The Keras model was built for any size and pads (0, 1) at stride 2 at every size; "
            "this network does the same only at multiples of 32 pixels."
        )
    unknown = [f"{config.get('name')} ({kind})" for kind, config in found if not _is_known(kind)]
    if unknown:
        notes.append(
            f"These layers were not read: {', '.join(unknown)}. If they change images, say so with "
            "--config.data.normalization."
        )
    return Topology(settings, tuple(notes), *_normalization(found))


def _is_known(kind: str) -> bool:
    return kind in _KNOWN or kind.startswith("Random")


def _pads(
    found: Sequence[tuple[str, Mapping[str, Any]]],
) -> tuple[int | None, list[tuple[int, int, int]], bool]:
    """The size of images, (size, before, after) at each stride 2, whether a separate layer pads.

    An unknown size counts as even, as in Keras' `correct_pad`.
    """
    size, padded, explicit, image_size = None, (0, 0), False, None
    pads: list[tuple[int, int, int]] = []
    for kind, config in found:
        if kind == "InputLayer" and not pads:
            shape = config.get("batch_input_shape") or config["batch_shape"]
            # A model within the model may have no fixed size.
            size = image_size = shape[1] or image_size
        elif kind == "ZeroPadding2D":
            before, after = config["padding"][0]
            padded = (int(before), int(after))
        elif kind in ("Conv2D", "DepthwiseConv2D"):
            if tuple(config["strides"]) == (2, 2):
                explicit = explicit or config["padding"] != "same"
                same = config["padding"] == "same"
                before, after = ((size or 0) % 2, 1) if same else padded
                pads.append((size or 0, before, after))
                size = size and -(-size // 2)
            padded = (0, 0)
    return image_size, pads, explicit


def _normalization(
    found: Sequence[tuple[str, Mapping[str, Any]]],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std of values in [0, 1] from the Rescaling layers; (None, None) without any.

    Such a layer computes scale * x + offset of 8-bit values x; both are a number or per channel.
    """
    layers = [config for kind, config in found if kind == "Rescaling"]
    if not layers:
        return None, None
    scale, offset = (1.0,) * 3, (0.0,) * 3
    for config in layers:
        factor, term = _three(config["scale"]), _three(config.get("offset", 0.0))
        scale = tuple(s * f for s, f in zip(scale, factor, strict=True))
        offset = tuple(o * f + t for o, f, t in zip(offset, factor, term, strict=True))
    std = tuple(round(1 / (255 * s), 9) for s in scale)
    # Adding 0 turns -0.0 into 0.0.
    return tuple(round(-o * s, 9) + 0.0 for o, s in zip(offset, std, strict=True)), std


def _three(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value] * 3
    return tuple(map(float, values))


def _layers(topology: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(class, configuration) of every layer in order, including layers of models in the model."""
    for layer in topology["config"]["layers"]:
        if "layers" in layer["config"]:
            yield from _layers(layer)
        else:
            yield layer["class_name"], layer["config"]
